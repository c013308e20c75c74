// The few words of the kernels' language, on a CPU. The compiler puts this before a program; the driver runs a
// block's threads one after the other, each up to where it waits for others.

#include <math.h>
#include <string.h>

struct three {
    unsigned x, y, z;
};

// What the driver and a thread tell each other. driver.c has the same.
struct machine {
    struct three thread, block, threads, blocks;
    float *shared;
    // Waits for the block, or for the warp, in which each lane shows the others eight words.
    void (*wait_for_block)(void);
    void (*wait_for_warp)(const unsigned *shown, const unsigned (**of_all)[8]);
    void (*copy)(void *to, const void *from, int there);
    void (*copies_end)(void);
    void (*copies_wait)(int but);
};
static struct machine *machine;
void bind_machine(struct machine *it) { machine = it; }

#define threadIdx (machine->thread)
#define blockIdx (machine->block)
#define gridDim (machine->blocks)
#define KERNEL __kernel__
#define DEVICE static inline
#define TABLE static const
#define BOUNDS(threads, blocks)
#define SHARED(type, name, length) static type name[length]
#define ALL_SHARED(name) float *const name = machine->shared
#define BARRIER() machine->wait_for_block()
#define UNROLL
#define ADD_TO(place, value) (*(place) += (value))

static inline unsigned bits_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float of_bits(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline void copy16(float *to, const float *from, int there) { machine->copy(to, from, there); }
static inline void copies_end(void) { machine->copies_end(); }
#define COPIES_WAIT(but) machine->copies_wait(but)

// mma.sync.m16n8k8 with TF32 factors: lane 4g+t has, of a, rows g and g+8 at depths t and t+4, of b, column g at depths t and
// t+4, and of d rows g and g+8 in columns 2t and 2t+1. Factors lose the bits that TF32 has not.
static inline void multiply8(float *d, const float *a, const float *b) {
    unsigned own[8] = {0};
    const unsigned(*all)[8];
    for (int i = 0; i < 4; i++) own[i] = bits_of(a[i]);
    for (int i = 0; i < 2; i++) own[4 + i] = bits_of(b[i]);
    machine->wait_for_warp(own, &all);
    const int lane = machine->thread.x % 32, g = lane / 4, t = lane % 4;
    for (int which = 0; which < 4; which++) {
        const int column = 2 * t + which % 2;
        float sum = d[which];
        for (int depth = 0; depth < 8; depth++) {
            const unsigned x = all[4 * g + depth % 4][which / 2 + depth / 4 * 2];
            const unsigned y = all[4 * column + depth % 4][4 + depth / 4];
            sum = fmaf(of_bits(x & 0xffffe000u), of_bits(y & 0xffffe000u), sum);
        }
        d[which] = sum;
    }
}

// mma.sync.m16n8k16 with bfloat16 factors: the same, but that each word has two depths, 2t and 2t+1, and then 2t+8 and 2t+9.
static inline void multiply16(float *d, const unsigned *a, const unsigned *b) {
    unsigned own[8] = {0};
    const unsigned(*all)[8];
    memcpy(own, a, 16);
    memcpy(own + 4, b, 8);
    machine->wait_for_warp(own, &all);
    const int lane = machine->thread.x % 32, g = lane / 4, t = lane % 4;
    for (int which = 0; which < 4; which++) {
        const int column = 2 * t + which % 2;
        float sum = d[which];
        for (int depth = 0; depth < 16; depth++) {
            const int from = depth % 8 / 2, shift = depth % 2 * 16;
            const unsigned x = all[4 * g + from][which / 2 + depth / 8 * 2] >> shift << 16;
            const unsigned y = all[4 * column + from][4 + depth / 8] >> shift << 16;
            sum = fmaf(of_bits(x), of_bits(y), sum);
        }
        d[which] = sum;
    }
}
