// libcuda on a CPU: as much of NVIDIA's driver as Tally asks for, to run its kernels where there is no GPU.
//
// A stream's work is done as late as possible: when the host waits for it. Of other streams only the work is done that an event
// puts before it. So a forgotten event shows. A kernel's blocks run one after the other; a block's threads are fibers, each of
// which runs until it waits for the others. What a GPU leaves undefined is made visible: memory starts as NaN, and an
// asynchronous copy arrives no sooner than the kernel waits for it. With CUDA_ON_CPU_REVERSE warps and blocks run from the last to the
// first, which shows a forgotten barrier. Some errors of a GPU end the process with a message: copies that are not
// aligned, more shared memory than the kernel's attribute allows, memory that outlives its context.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include "machine.h"

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

enum { THREADS = 1024, STACK = 64 * 1024, COPIES = 512, SHARED = 232448, SHOWN = 64 };

struct copy {
    void *to;
    const void *from;
    int there;
};

struct fiber {
    void *stack;
    void *at; // its stack pointer while it does not run
    enum { READY, AT_BARRIER, DONE } state;
    unsigned turn; // how often it waited for its warp
    struct copy copies[COPIES];
    unsigned begun, ended, groups[COPIES], first_group, next_group;
#ifndef __x86_64__
    ucontext_t context;
#endif
};

static struct machine machine;
static struct fiber *fibers;
static _Alignas(64) char shown[THREADS / 32][2][32 * SHOWN];
static unsigned current;
static void *scheduler;
static void (*kernel)(void **);
static void **arguments;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static void fail(const char *what) {
    fprintf(stderr, "cuda-on-cpu: %s\n", what);
    abort();
}

// Fibers: a switch saves what a function call would, and takes another stack.
#ifdef __x86_64__
void switch_stack(void **save, void *to);
__asm__(".text\n.globl switch_stack\n.type switch_stack,@function\nswitch_stack:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
        ".size switch_stack,.-switch_stack\n");
static void leave(void) { switch_stack(&fibers[current].at, scheduler); }
static void enter(struct fiber *fiber) { switch_stack(&scheduler, fiber->at); }
#else
static ucontext_t main_context;
static void leave(void) { swapcontext(&fibers[current].context, &main_context); }
static void enter(struct fiber *fiber) { swapcontext(&main_context, &fiber->context); }
#endif

static void body(void) {
    kernel(arguments);
    fibers[current].state = DONE;
    leave();
}

static void prepare(struct fiber *fiber) {
    fiber->state = READY;
    fiber->turn = fiber->begun = fiber->ended = fiber->first_group = fiber->next_group = 0;
#ifdef __x86_64__
    void **top = (void **)((char *)fiber->stack + STACK);
    *--top = 0; // where body would return to, and it keeps the stack aligned
    *--top = (void *)body;
    for (int i = 0; i < 6; i++) *--top = 0;
    fiber->at = top;
#else
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = STACK;
    fiber->context.uc_link = NULL;
    makecontext(&fiber->context, body, 0);
#endif
}

static void wait_for_block(void) {
    fibers[current].state = AT_BARRIER;
    leave();
}

// All lanes come here once before any goes on: they run in turn, the warp's first one first.
static void *wait_for_warp(const void *own) {
    char *all = shown[current / 32][fibers[current].turn++ % 2];
    memcpy(all + current % 32 * SHOWN, own, SHOWN);
    leave();
    return all;
}

static void copy(void *to, const void *from, int there) {
    if (((uintptr_t)to | (uintptr_t)from) % 16) fail("an asynchronous copy of 16 bytes is not aligned to them");
    struct fiber *fiber = &fibers[current];
    fiber->copies[fiber->ended++ % COPIES] = (struct copy){to, from, there};
}

static void copies_end(void) {
    struct fiber *fiber = &fibers[current];
    fiber->groups[fiber->next_group++ % COPIES] = fiber->ended;
}

static void copies_wait(int but) {
    struct fiber *fiber = &fibers[current];
    for (; (int)(fiber->next_group - fiber->first_group) > but; fiber->first_group++) {
        for (; fiber->begun < fiber->groups[fiber->first_group % COPIES]; fiber->begun++) {
            const struct copy *it = &fiber->copies[fiber->begun % COPIES];
            if (it->there) memcpy(it->to, it->from, 16);
            else memset(it->to, 0, 16);
        }
    }
}

// Runs a warp until each of its threads is at the block's barrier or done.
static void run_warp(unsigned first, unsigned end) {
    for (int ready = 1; ready;) {
        ready = 0;
        for (unsigned thread = first; thread < end; thread++) {
            if (fibers[thread].state != READY) continue;
            current = thread;
            machine.thread.x = thread;
            enter(&fibers[thread]);
            ready |= fibers[thread].state == READY;
        }
    }
}

static void run_block(unsigned threads, unsigned shared, int reverse) {
    memset(machine.shared, 0xff, shared);
    for (unsigned thread = 0; thread < threads; thread++) prepare(&fibers[thread]);
    for (int waiting = 1; waiting;) {
        const unsigned warps = (threads + 31) / 32;
        for (unsigned i = 0; i < warps; i++) {
            const unsigned first = 32 * (reverse ? warps - 1 - i : i);
            run_warp(first, first + 32 < threads ? first + 32 : threads);
        }
        waiting = 0;
        for (unsigned thread = 0; thread < threads; thread++) {
            if (fibers[thread].state == AT_BARRIER) fibers[thread].state = READY, waiting = 1;
        }
    }
}

// Streams: each has a queue of the work that is not done yet.
enum { ARGUMENTS = 32 };
struct function {
    void (*call)(void **);
    const unsigned long *sizes;
    unsigned most_shared;
};
struct event;
struct work {
    enum { LAUNCH, COPY, SET, FREE, RECORD, WAIT } what;
    struct work *next;
    union {
        struct {
            const struct function *function;
            struct three blocks;
            unsigned threads, shared;
            char values[ARGUMENTS][8];
        } launch;
        struct {
            void *to;
            const void *from;
            size_t bytes;
            unsigned char value;
        } move;
        struct event *event;
        struct {
            struct stream *stream;
            unsigned long position;
        } after;
    };
};
struct stream {
    struct work *first, **last;
    unsigned long given, done;
    struct stream *next;
};
struct event {
    struct stream *stream;
    unsigned long position;
    double milliseconds;
};
static struct stream *streams;

static void launch(const struct work *work) {
    const int reverse = getenv("CUDA_ON_CPU_REVERSE") != NULL;
    void *values[ARGUMENTS];
    for (int i = 0; i < ARGUMENTS; i++) values[i] = (void *)work->launch.values[i];
    const struct three blocks = work->launch.blocks;
    machine.threads = (struct three){work->launch.threads, 1, 1}, machine.blocks = blocks;
    kernel = work->launch.function->call, arguments = values;
    for (unsigned long i = 0, all = (unsigned long)blocks.x * blocks.y; i < all; i++) {
        const unsigned long block = reverse ? all - 1 - i : i;
        machine.block = (struct three){block % blocks.x, block / blocks.x, 0};
        run_block(work->launch.threads, work->launch.shared, reverse);
    }
}

static void give_back(void *pointer);

// Does a stream's work up to a position.
static void run_to(struct stream *stream, unsigned long position) {
    while (stream->done < position) {
        struct work *work = stream->first;
        stream->first = work->next;
        if (!stream->first) stream->last = &stream->first;
        stream->done++;
        struct timespec now;
        switch (work->what) {
        case LAUNCH: launch(work); break;
        case COPY: memcpy(work->move.to, work->move.from, work->move.bytes); break;
        case SET: memset(work->move.to, work->move.value, work->move.bytes); break;
        case FREE: give_back(work->move.to); break;
        case WAIT: run_to(work->after.stream, work->after.position); break;
        case RECORD:
            clock_gettime(CLOCK_MONOTONIC, &now);
            work->event->milliseconds = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
        }
        free(work);
    }
}
static int run_all(void) {
    pthread_mutex_lock(&lock);
    for (struct stream *stream = streams; stream; stream = stream->next) run_to(stream, stream->given);
    pthread_mutex_unlock(&lock);
    return OK;
}
static int give(struct stream *stream, struct work work) {
    struct work *own = malloc(sizeof *own);
    if (!own) return OUT_OF_MEMORY;
    *own = work;
    own->next = NULL;
    pthread_mutex_lock(&lock);
    *stream->last = own;
    stream->last = &own->next;
    stream->given++;
    pthread_mutex_unlock(&lock);
    return OK;
}

int cuLaunchKernel(struct function *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, struct stream *stream, void **parameters, void **extra) {
    (void)extra;
    if (!x || !y || z != 1 || !threads || threads > THREADS || threads_y != 1 || threads_z != 1 || shared > SHARED || y > 65535) {
        return INVALID_VALUE;
    }
    if (shared > function->most_shared) fail("a kernel is given more shared memory than its attribute says");
    pthread_mutex_lock(&lock);
    if (!fibers) {
        fibers = calloc(THREADS, sizeof *fibers);
        for (int i = 0; i < THREADS; i++) fibers[i].stack = aligned_alloc(64, STACK);
        // Aligned to 16 bytes, but not to the 1024 that a swizzle needs: the kernel must see to these itself.
        machine.shared = (float *)((char *)aligned_alloc(1024, SHARED + 1024) + 16);
    }
    pthread_mutex_unlock(&lock);
    machine.wait_for_block = wait_for_block, machine.wait_for_warp = wait_for_warp;
    machine.copy = copy, machine.copies_end = copies_end, machine.copies_wait = copies_wait;
    struct work work = {.what = LAUNCH, .launch = {.function = function, .blocks = {x, y, 1}, .threads = threads, .shared = shared}};
    for (int i = 0; function->sizes[i]; i++) {
        if (i == ARGUMENTS || function->sizes[i] > 8) fail("a kernel has more arguments, or larger ones, than there is room for");
        memcpy(work.launch.values[i], parameters[i], function->sizes[i]);
    }
    return give(stream, work);
}

struct module {
    void *library;
};

int cuModuleLoadData(struct module **module, const void *image) {
    void *library = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "cuda-on-cpu: %s\n", dlerror());
        return INVALID_IMAGE;
    }
    void (*bind)(struct machine *) = (void (*)(struct machine *))dlsym(library, "bind_machine");
    bind(&machine);
    *module = malloc(sizeof **module);
    (*module)->library = library;
    return OK;
}

int cuModuleUnload(struct module *module) {
    run_all();
    free(module);
    return OK;
}

int cuModuleGetFunction(struct function **function, struct module *module, const char *name) {
    char whole[256];
    snprintf(whole, sizeof whole, "%s_call", name);
    void (*call)(void **) = (void (*)(void **))dlsym(module->library, whole);
    if (!call) return NOT_FOUND;
    snprintf(whole, sizeof whole, "%s_sizes", name);
    *function = malloc(sizeof **function);
    **function = (struct function){call, dlsym(module->library, whole), 48 * 1024};
    return OK;
}

// Attributes: 8 is the most dynamic shared memory.
int cuFuncSetAttribute(struct function *function, int attribute, int value) {
    if (attribute != 8) return OK;
    if (value > SHARED) return INVALID_VALUE;
    function->most_shared = value;
    return OK;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
    (void)attribute, (void)function;
    *value = 0;
    return OK;
}

int cuInit(unsigned flags) {
    (void)flags;
    return OK;
}
int cuDriverGetVersion(int *version) {
    *version = 12000;
    return OK;
}
int cuDeviceGetCount(int *count) {
    const char *devices = getenv("CUDA_ON_CPU_DEVICES");
    *count = devices ? atoi(devices) : 1;
    return OK;
}
int cuDeviceGet(int *device, int ordinal) {
    int count;
    cuDeviceGetCount(&count);
    *device = ordinal;
    return ordinal < count ? OK : INVALID_DEVICE;
}
int cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    snprintf(name, length, "CUDA on a CPU");
    return OK;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = (size_t)8 << 30;
    return OK;
}
// Attributes: 75 and 76 are the compute capability, 81 the shared memory of a processor, 115 whether there are memory pools.
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    const char *capability = getenv("CUDA_ON_CPU_CAPABILITY");
    const int which = capability ? atoi(capability) : 90;
    *value = attribute == 75 ? which / 10 : attribute == 76 ? which % 10 : attribute == 81 ? 233472 : attribute == 115 ? 1 : 0;
    return OK;
}
static int retained[64];
static size_t allocated;
int cuDevicePrimaryCtxRetain(void **context, int device) {
    static char contexts[64];
    *context = &contexts[device];
    retained[device]++;
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    run_all();
    if (!--retained[device] && allocated) fail("a context ends before its memory");
    return OK;
}
static __thread void *own_context;
int cuCtxSetCurrent(void *context) {
    own_context = context;
    return OK;
}
int cuCtxGetCurrent(void **context) {
    *context = own_context;
    return OK;
}
int cuCtxSynchronize(void) { return run_all(); }

int cuGetErrorName(int error, const char **name) {
    (void)error;
    *name = "CUDA_ON_CPU_ERROR";
    return OK;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

// Memory: what was allocated is counted, so that a device can be had that has little.
static size_t limit(void) {
    const char *bytes = getenv("CUDA_ON_CPU_MEMORY");
    return bytes ? strtoull(bytes, NULL, 10) : SIZE_MAX;
}
static void give_back(void *pointer) {
    size_t *memory = (size_t *)((char *)pointer - 256);
    pthread_mutex_lock(&lock);
    allocated -= *memory;
    pthread_mutex_unlock(&lock);
    free(memory);
}
int cuMemAlloc_v2(void **pointer, size_t bytes) {
    // Memory that a stream has yet to free counts as free.
    if (limit() != SIZE_MAX) run_all();
    pthread_mutex_lock(&lock);
    const int room = allocated + bytes <= limit();
    if (room) allocated += bytes;
    pthread_mutex_unlock(&lock);
    if (!room) return OUT_OF_MEMORY;
    size_t *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xff, (bytes + 511) / 256 * 256);
    *memory = bytes;
    *pointer = (char *)memory + 256;
    return OK;
}
int cuMemFree_v2(void *pointer) {
    run_all();
    if (pointer) give_back(pointer);
    return OK;
}
int cuMemAllocAsync(void **pointer, size_t bytes, struct stream *stream) {
    (void)stream;
    return cuMemAlloc_v2(pointer, bytes);
}
int cuMemFreeAsync(void *pointer, struct stream *stream) {
    return pointer ? give(stream, (struct work){.what = FREE, .move = {.to = pointer}}) : OK;
}
int cuMemGetInfo_v2(size_t *available, size_t *total) {
    *available = *total = (size_t)8 << 30;
    return OK;
}
int cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    (void)flags;
    *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *pointer ? OK : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *pointer) {
    free(pointer);
    return OK;
}
static int moved(void *to, const void *from, size_t bytes, struct stream *stream) {
    return give(stream, (struct work){.what = COPY, .move = {to, from, bytes, 0}});
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, struct stream *stream) { return moved(to, from, bytes, stream); }
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, struct stream *stream) { return moved(to, from, bytes, stream); }
int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, struct stream *stream) { return moved(to, from, bytes, stream); }
int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, struct stream *stream) {
    return give(stream, (struct work){.what = SET, .move = {to, NULL, bytes, value}});
}

// Streams and events. They are never freed, because queued work may name them.
int cuStreamCreate(struct stream **out, unsigned flags) {
    (void)flags;
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) return OUT_OF_MEMORY;
    stream->last = &stream->first;
    pthread_mutex_lock(&lock);
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&lock);
    *out = stream;
    return OK;
}
int cuStreamCreateWithPriority(struct stream **stream, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(stream, flags);
}
static int done(struct stream *stream, unsigned long position) {
    pthread_mutex_lock(&lock);
    run_to(stream, position);
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuStreamSynchronize(struct stream *stream) { return done(stream, stream->given); }
int cuStreamDestroy_v2(struct stream *stream) { return cuStreamSynchronize(stream); }
int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    (void)flags;
    if (!event->stream) return OK;
    return give(stream, (struct work){.what = WAIT, .after = {event->stream, event->position}});
}
int cuEventCreate(struct event **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    return *event ? OK : OUT_OF_MEMORY;
}
int cuEventDestroy_v2(struct event *event) {
    (void)event;
    return OK;
}
int cuEventRecord(struct event *event, struct stream *stream) {
    const int given = give(stream, (struct work){.what = RECORD, .event = event});
    event->stream = stream, event->position = stream->given;
    return given;
}
int cuEventSynchronize(struct event *event) { return event->stream ? done(event->stream, event->position) : OK; }
int cuEventQuery(struct event *event) { return cuEventSynchronize(event); }
int cuEventElapsedTime_v2(float *milliseconds, struct event *from, struct event *to) {
    cuEventSynchronize(from), cuEventSynchronize(to);
    *milliseconds = to->milliseconds - from->milliseconds;
    return OK;
}
int cuEventElapsedTime(float *milliseconds, struct event *from, struct event *to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}
int cuProfilerStart(void) { return OK; }
int cuProfilerStop(void) { return OK; }
