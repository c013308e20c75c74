// The few words of the kernels' language, on a CPU. The compiler puts this before a program; the driver runs a
// block's threads one after the other, each up to where it waits for others.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "machine.h"

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
#define UNROLL_8
#define RESTRICT restrict
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

static inline void copy16(void *to, const void *from, int there) { machine->copy(to, from, there); }
static inline void copy16_kept(void *to, const void *from, int there) { machine->copy(to, from, there); }
static inline void copies_end(void) { machine->copies_end(); }
#define COPIES_WAIT(but) machine->copies_wait(but)

typedef const char *shared_place;
static inline shared_place place_of(const void *it) { return it; }

// ldmatrix: every lane shows where a row of a matrix is, and takes its words of all four matrices (common.cu says which).
struct row {
    shared_place at;
    char rest[64 - sizeof(shared_place)];
};
static inline void load_matrices(unsigned *words, shared_place row) {
    const struct row own = {row, {0}}, *rows = machine->wait_for_warp(&own);
    const int lane = machine->thread.x % 32;
    for (int i = 0; i < 4; i++) memcpy(&words[i], rows[8 * i + lane / 4].at + lane % 4 * 4, 4);
}
static inline void load_matrices_across(unsigned *words, shared_place row) {
    const struct row own = {row, {0}}, *rows = machine->wait_for_warp(&own);
    const int lane = machine->thread.x % 32;
    for (int i = 0; i < 4; i++) {
        unsigned short halves[2];
        for (int half = 0; half < 2; half++) memcpy(&halves[half], rows[8 * i + lane % 4 * 2 + half].at + lane / 4 * 2, 2);
        words[i] = halves[0] | (unsigned)halves[1] << 16;
    }
}

// What a lane holds of a product of 16 rows by 8 columns.
struct fragment {
    unsigned a[4], b[4]; // of b no more than two
    float d[8];          // of d four
};

// d += a·b of a whole warp, with rows of up to 16 depths.
static inline void multiply_all(struct fragment *lanes, const float (*a)[16], const float (*b)[8], int depths) {
    float d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        for (int which = 0; which < 4; which++) d[lane / 4 + which / 2 * 8][lane % 4 * 2 + which % 2] = lanes[lane].d[which];
    }
    for (int row = 0; row < 16; row++) {
        for (int depth = 0; depth < depths; depth++) {
            for (int column = 0; column < 8; column++) d[row][column] = fmaf(a[row][depth], b[depth][column], d[row][column]);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int which = 0; which < 4; which++) lanes[lane].d[which] = d[lane / 4 + which / 2 * 8][lane % 4 * 2 + which % 2];
    }
}

// Shows the warp what this lane holds. The warp's first lane goes on first, and does it for all.
static inline struct fragment *meet(const void *a, const void *b, const float *d) {
    struct fragment own;
    memcpy(own.a, a, sizeof own.a);
    memcpy(own.b, b, 8);
    memcpy(own.d, d, 16);
    return machine->wait_for_warp(&own);
}

// mma.sync.m16n8k8 with TF32 factors: lane 4g+t has, of a, rows g and g+8 at depths t and t+4, of b, column g at depths t and
// t+4, and of d rows g and g+8 in columns 2t and 2t+1. Factors lose the bits that TF32 has not.
static inline void multiply8(float *d, const unsigned *a, const unsigned *b) {
    struct fragment *lanes = meet(a, b, d);
    const int own = machine->thread.x % 32;
    if (own == 0) {
        float rows[16][16], columns[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) rows[g + i % 2 * 8][t + i / 2 * 4] = of_bits(lanes[lane].a[i] & 0xffffe000u);
            for (int i = 0; i < 2; i++) columns[t + i * 4][g] = of_bits(lanes[lane].b[i] & 0xffffe000u);
        }
        multiply_all(lanes, rows, columns, 8);
    }
    memcpy(d, lanes[own].d, 16);
}

// mma.sync.m16n8k16 with bfloat16 factors: the same, but that each word has two depths, 2t and 2t+1, and then 2t+8 and 2t+9.
static inline void multiply16(float *d, const unsigned *a, const unsigned *b) {
    struct fragment *lanes = meet(a, b, d);
    const int own = machine->thread.x % 32;
    if (own == 0) {
        float rows[16][16], columns[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int high = 0; high < 2; high++) {
                const int up = high ? 0 : 16;
                const int depth = 2 * t + high;
                for (int i = 0; i < 4; i++) {
                    rows[g + i % 2 * 8][depth + i / 2 * 8] = of_bits(lanes[lane].a[i] << up & 0xffff0000u);
                }
                for (int i = 0; i < 2; i++) columns[depth + i * 8][g] = of_bits(lanes[lane].b[i] << up & 0xffff0000u);
            }
        }
        multiply_all(lanes, rows, columns, 16);
    }
    memcpy(d, lanes[own].d, 16);
}

// wgmma: both factors lie in shared memory, with rows of 128 bytes, of which a product takes a quarter. The place of 16 bytes within
// a row is XORed with the three bits of the address that count rows. A lane computes its own sums: of rows g and g+8 of its
// warp's 16, in columns 2t and 2t+1 of every eight.
static inline void numbers_of(float *to, const void *start, int row, int precision) {
    for (int part = 0; part < 2; part++) {
        const uintptr_t at = (uintptr_t)start + 128 * row + 16 * part;
        const char *from = (const char *)(at ^ (at >> 7 & 7) << 4);
        for (int i = 0; i < (precision == 1 ? 4 : 8); i++) {
            unsigned bits = 0;
            if (precision == 1) memcpy(&bits, from + 4 * i, 4);
            else memcpy((char *)&bits + 2, from + 2 * i, 2);
            *to++ = of_bits(precision == 1 ? bits & 0xffffe000u : bits);
        }
    }
}
static inline void product_of_warpgroup(float *d, const void *rows, const void *columns, int width, int precision) {
    const int lane = machine->thread.x % 32, first = machine->thread.x / 32 % 4 * 16 + lane / 4;
    float row[2][16], column[16];
    for (int i = 0; i < 2; i++) numbers_of(row[i], rows, first + 8 * i, precision);
    for (int i = 0; i < width / 4; i++) {
        numbers_of(column, columns, i / 2 * 8 + lane % 4 * 2 + i % 2, precision);
        for (int which = 0; which < 2; which++) {
            float *sum = &d[i / 2 * 4 + 2 * which + i % 2];
            for (int depth = 0; depth < (precision == 1 ? 8 : 16); depth++) *sum = fmaf(row[which][depth], column[depth], *sum);
        }
    }
}
#define PRODUCTS_BEGIN()
#define PRODUCTS_END()
#define PRODUCTS_WAIT(sums, length)
#define COPIES_SHOWN()
#define ALIGNED(shared, bytes) ((char *)(((uintptr_t)(shared) + (bytes) - 1) / (bytes) * (bytes)))
#define PRODUCT_OF_WARPGROUP(d, rows, columns) product_of_warpgroup(d, rows, columns, COLUMNS, PRECISION)
