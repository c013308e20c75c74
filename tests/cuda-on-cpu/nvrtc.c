// libnvrtc on a CPU: "compiles" a program with the system's C compiler into a shared library, whose path is the PTX.
//
// For each kernel the program gets a function `NAME_call`, which takes the arguments as the driver gets them, and a list
// `NAME_sizes` of their sizes, with a zero at its end. Libraries are kept in the directory that CUDA_ON_CPU names, under a
// hash of the source.

#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct program {
    char *source, *ptx, *log;
};

enum { OK = 0, OUT_OF_MEMORY = 1, CREATION = 2, COMPILATION = 6 };

int nvrtcVersion(int *major, int *minor) {
    *major = 12, *minor = 0;
    return OK;
}

int nvrtcCreateProgram(struct program **out, const char *source, const char *name, int n, const char **headers, const char **names) {
    (void)name, (void)n, (void)headers, (void)names;
    *out = calloc(1, sizeof **out);
    (*out)->source = strdup(source);
    (*out)->log = strdup("");
    return OK;
}

int nvrtcDestroyProgram(struct program **program) {
    free((*program)->source), free((*program)->ptx), free((*program)->log), free(*program);
    *program = NULL;
    return OK;
}

static char *contents(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    const long length = ftell(file);
    rewind(file);
    char *text = calloc(1, length + 1);
    if (fread(text, 1, length, file) != (size_t)length) text[0] = 0;
    fclose(file);
    return text;
}

static int run(struct program *program, const char *directory, const char *command) {
    char *whole, *log;
    if (asprintf(&log, "%s/%d.log", directory, getpid()) < 0 || asprintf(&whole, "%s 2>%s", command, log) < 0) return OUT_OF_MEMORY;
    const int failed = system(whole);
    free(program->log);
    program->log = contents(log);
    unlink(log);
    return failed ? COMPILATION : OK;
}

// After the preprocessor: `__kernel__ NAME(TYPE PARAMETER, …) {`.
static void write_calls(FILE *out, const char *text) {
    for (const char *at = text; (at = strstr(at, "__kernel__ "));) {
        at += strlen("__kernel__ ");
        const char *open = strchr(at, '('), *close = open ? strchr(open, ')') : NULL;
        if (!close) return;
        const char *end = open;
        while (isspace(end[-1])) end--;
        const int name = end - at;
        for (int sizes = 0; sizes < 2; sizes++) {
            if (sizes) fprintf(out, "const unsigned long %.*s_sizes[] = {", name, at);
            else fprintf(out, "void %.*s_call(void **p) { %.*s(", name, at, name, at);
            int index = 0;
            for (const char *from = open + 1; from < close; index++) {
                const char *to = from;
                while (to < close && *to != ',') to++;
                const char *type = to;
                while (isspace(type[-1])) type--;
                while (isalnum(type[-1]) || type[-1] == '_') type--;
                if (sizes) fprintf(out, "sizeof(%.*s), ", (int)(type - from), from);
                else fprintf(out, "%s*(%.*s *)p[%d]", index ? ", " : "", (int)(type - from), from, index);
                from = to + 1;
            }
            fprintf(out, sizes ? "0};\n" : "); }\n");
        }
        at = close;
    }
}

int nvrtcCompileProgram(struct program *program, int count, const char **options) {
    unsigned long hash = 14695981039346656037ul;
    for (const char *c = program->source; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211ul;
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "--gpu-architecture=compute_", 27) && atoi(options[i] + 27) < 50) return 5;
    }
    const char *directory = getenv("CUDA_ON_CPU");
    if (!directory) return CREATION;
    char *base, *library, *command, *path;
    if (asprintf(&library, "%s/%016lx.so", directory, hash) < 0) return OUT_OF_MEMORY;
    if (access(library, R_OK)) {
        if (asprintf(&base, "%s/%016lx.%d", directory, hash, getpid()) < 0) return OUT_OF_MEMORY;
        if (asprintf(&path, "%s.c", base) < 0) return OUT_OF_MEMORY;
        FILE *file = fopen(path, "w");
        if (!file) return CREATION;
        fprintf(file, "#include \"%s/device.h\"\n%s", directory, program->source);
        fclose(file);
        if (asprintf(&command, "cc -E -P %s -o %s.i.c", path, base) < 0) return OUT_OF_MEMORY;
        int failed = run(program, directory, command);
        if (!failed) {
            if (asprintf(&path, "%s.i.c", base) < 0) return OUT_OF_MEMORY;
            char *text = contents(path);
            file = fopen(path, "a");
            write_calls(file, text);
            fclose(file);
            const char *flags = "-O3 -march=native -ffp-contract=off -fno-math-errno -fPIC -shared -w -D__kernel__=void";
            if (asprintf(&command, "cc %s %s -o %s.so -lm && mv %s.so %s", flags, path, base, base, library) < 0) return OUT_OF_MEMORY;
            failed = run(program, directory, command);
        }
        if (failed) return failed;
        if (asprintf(&command, "rm -f %s.c %s.i.c", base, base) < 0 || system(command)) return CREATION;
    }
    program->ptx = library;
    return OK;
}

int nvrtcGetPTXSize(struct program *program, size_t *size) {
    *size = strlen(program->ptx) + 1;
    return OK;
}
int nvrtcGetPTX(struct program *program, char *to) {
    strcpy(to, program->ptx);
    return OK;
}
int nvrtcGetProgramLogSize(struct program *program, size_t *size) {
    *size = strlen(program->log) + 1;
    return OK;
}
int nvrtcGetProgramLog(struct program *program, char *to) {
    strcpy(to, program->log);
    return OK;
}
