// libcuda on a CPU: as much of NVIDIA's driver as Tally asks for, to run its kernels where there is no GPU.
//
// Whatever is given to a stream is done at once, which is one of the orders that streams allow. A kernel's blocks run one
// after the other; a block's threads are fibers, each of which runs until it waits for the others. What a GPU leaves
// undefined is made visible: memory starts as NaN, and an asynchronous copy arrives no sooner than somebody
// waits for it. CUDA_ON_CPU_REVERSE has warps and blocks run from the last to the first, in which a forgotten barrier shows.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

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

struct module {
    void *library;
};

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y, unsigned threads_z,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    (void)stream, (void)extra;
    if (!x || !y || z != 1 || !threads || threads > THREADS || threads_y != 1 || threads_z != 1 || shared > SHARED || y > 65535) {
        return INVALID_VALUE;
    }
    const int reverse = getenv("CUDA_ON_CPU_REVERSE") != NULL;
    pthread_mutex_lock(&lock);
    if (!fibers) {
        fibers = calloc(THREADS, sizeof *fibers);
        for (int i = 0; i < THREADS; i++) fibers[i].stack = aligned_alloc(64, STACK);
        machine.shared = aligned_alloc(128, SHARED);
    }
    machine.wait_for_block = wait_for_block, machine.wait_for_warp = wait_for_warp;
    machine.copy = copy, machine.copies_end = copies_end, machine.copies_wait = copies_wait;
    machine.threads = (struct three){threads, 1, 1}, machine.blocks = (struct three){x, y, 1};
    kernel = (void (*)(void **))function, arguments = parameters;
    for (unsigned long i = 0, all = (unsigned long)x * y; i < all; i++) {
        const unsigned long block = reverse ? all - 1 - i : i;
        machine.block = (struct three){block % x, block / x, 0};
        run_block(threads, shared, reverse);
    }
    pthread_mutex_unlock(&lock);
    return OK;
}

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
    free(module);
    return OK;
}

int cuModuleGetFunction(void **function, struct module *module, const char *name) {
    char whole[256];
    snprintf(whole, sizeof whole, "%s_call", name);
    *function = dlsym(module->library, whole);
    return *function ? OK : NOT_FOUND;
}

// Attributes: 8 is the most dynamic shared memory.
int cuFuncSetAttribute(void *function, int attribute, int value) {
    (void)function;
    return attribute != 8 || value <= SHARED ? OK : INVALID_VALUE;
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
int cuDevicePrimaryCtxRetain(void **context, int device) {
    static char contexts[64];
    *context = &contexts[device];
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
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
int cuCtxSynchronize(void) { return OK; }

int cuGetErrorName(int error, const char **name) {
    (void)error;
    *name = "CUDA_ON_CPU_ERROR";
    return OK;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

// Memory: what was allocated is counted, so that a device can be had that has little.
static size_t allocated;
static size_t limit(void) {
    const char *bytes = getenv("CUDA_ON_CPU_MEMORY");
    return bytes ? strtoull(bytes, NULL, 10) : SIZE_MAX;
}
int cuMemAlloc_v2(void **pointer, size_t bytes) {
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
    if (!pointer) return OK;
    size_t *memory = (size_t *)((char *)pointer - 256);
    pthread_mutex_lock(&lock);
    allocated -= *memory;
    pthread_mutex_unlock(&lock);
    free(memory);
    return OK;
}
int cuMemAllocAsync(void **pointer, size_t bytes, void *stream) {
    (void)stream;
    return cuMemAlloc_v2(pointer, bytes);
}
int cuMemFreeAsync(void *pointer, void *stream) {
    (void)stream;
    return cuMemFree_v2(pointer);
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
static int moved(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
    return OK;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    return moved(to, from, bytes);
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    return moved(to, from, bytes);
}
int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    return moved(to, from, bytes);
}
int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    memset(to, value, bytes);
    return OK;
}

// Streams and events: everything is over when it is given.
static int made(void **out) {
    *out = malloc(1);
    return *out ? OK : OUT_OF_MEMORY;
}
int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    return made(stream);
}
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    (void)flags, (void)priority;
    return made(stream);
}
int cuStreamDestroy_v2(void *stream) {
    free(stream);
    return OK;
}
int cuStreamSynchronize(void *stream) {
    (void)stream;
    return OK;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    return OK;
}
int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    return made(event);
}
int cuEventDestroy_v2(void *event) {
    free(event);
    return OK;
}
int cuEventRecord(void *event, void *stream) {
    (void)event, (void)stream;
    return OK;
}
int cuEventSynchronize(void *event) {
    (void)event;
    return OK;
}
int cuEventQuery(void *event) {
    (void)event;
    return OK;
}
