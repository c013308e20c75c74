// What all kernels share. The host defines before it PRECISION (0 float32, 1 TF32, 2 bfloat16), HALF (whether activations and
// packed weights are stored in 16 bits, which hold every bfloat16) and MATRIX_LOADS (whether fragments are loaded from shared
// memory by `ldmatrix`). The kernels are written in the common part of C and CUDA C++. So a C compiler can build them too, with
// its own definitions of the few words below.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define TABLE static __device__ const
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define SHARED(type, name, length) __shared__ type name[length]
#define ALL_SHARED(name) extern __shared__ __align__(16) float name[]
#define BARRIER() __syncthreads()
#define UNROLL _Pragma("unroll")
#define UNROLL_8 _Pragma("unroll 8") // eight loads are on their way at once; the order of additions stays
#define RESTRICT __restrict__        // no other pointer reads what this one writes
#define ADD_TO(place, value) atomicAdd(place, value)
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float of_bits(u32 x) { return __uint_as_float(x); }

// 16 bytes from global to shared memory, zeros where there is nothing to be had.
DEVICE void copy16(void *to, const void *from, int there) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// The same through the first cache, for what comes again soon.
DEVICE void copy16_kept(void *to, const void *from, int there) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copies_end(void) { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
#define COPIES_WAIT(but) asm volatile("cp.async.wait_group %0;\n" ::"n"(but) : "memory")

// A place in shared memory. Adding a number to it moves it by so many bytes.
typedef u32 shared_place;
DEVICE shared_place place_of(const void *it) { return (u32)__cvta_generic_to_shared(it); }

// Loads four matrices of eight rows of 16 bytes. Threads 0 to 7 say where the rows of the first one are, threads 8 to 15 those of
// the second, and so on. Of each matrix thread 4g+t gets word t of row g or, transposed, halves g of rows 2t and 2t+1.
DEVICE void load_matrices(u32 *words, shared_place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(row) : "memory");
}
DEVICE void load_matrices_across(u32 *words, shared_place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(row) : "memory");
}

// A warp's product of 16 rows by 8 columns, d += a·b; see the PTX manual for who holds what.
#if PRECISION == 1
DEVICE void multiply8(float *d, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#if PRECISION == 2
DEVICE void multiply16(float *d, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#endif

// Every product and sum is spelled out: with this, nothing is left that a compiler may contract.
DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }

// To bfloat16's numbers as the wire rounds: to nearest, ties to even; a NaN stays one.
DEVICE float to_bf16(float x) {
    u32 bits = bits_of(x);
    u32 nearest = bits + (0x7fffu + (bits >> 16 & 1u));
    return of_bits((x != x ? bits | 0x00400000u : nearest) & 0xffff0000u);
}

// To TF32's numbers: to nearest, ties away from zero, as cvt.rna does. Infinity and NaN stay.
DEVICE float to_tf32(float x) {
    u32 bits = bits_of(x);
    u32 finite = (bits & 0x7f800000u) != 0x7f800000u;
    return of_bits((finite ? bits + 0x1000u : bits) & (finite || x == x ? 0xffffe000u : 0xffffffffu));
}

// A factor of a product in the precision of the run. Whoever stores one rounds it, once; whoever loads it need not.
DEVICE float factor(float x) {
#if PRECISION == 1
    return to_tf32(x);
#elif PRECISION == 2
    return to_bf16(x);
#else
    return x;
#endif
}

// A ReLU, and what it lets through on the way back; both pass a NaN on.
DEVICE float relu(float x) { return x <= 0.0f ? 0.0f : x; }
DEVICE float let_through(float result, float x) { return result <= 0.0f ? 0.0f : x; }

// e^x for x <= 0 in double, of products and sums alone, so that it has the same bits everywhere: 2^k times a series
// for |r| <= ln2/2, to better than 1e-15.
DEVICE double exponential(double x) {
    if (!(x > -700.0)) return x == x ? 0.0 : x;
    double k = rint(x * 1.4426950408889634074);
    double r = fma(-k, 1.90821492927058770002e-10, fma(-k, 6.93147180369123816490e-01, x));
    double sum = 1.0;
    for (int n = 13; n >= 1; n--) sum = fma(sum, r / n, 1.0);
    union {
        u64 bits;
        double value;
    } power;
    power.bits = (u64)((long long)k + 1023) << 52;
    return sum * power.value;
}

// Four floats at once, or two.
typedef struct {
    float x, y, z, w;
} __attribute__((aligned(16))) quad;
typedef struct {
    float x, y;
} __attribute__((aligned(8))) pair;

// The type of stored activations and packed weights. A value is rounded to a factor of the precision when it is stored.
#if HALF
typedef u16 stored;
typedef struct {
    u16 x, y, z, w;
} __attribute__((aligned(8))) stored4;
typedef u32 stored2;
DEVICE float load(stored x) { return of_bits((u32)x << 16); }
DEVICE stored store(float x) { return bits_of(factor(x)) >> 16; }
DEVICE stored2 store2(float x, float y) { return bits_of(factor(x)) >> 16 | (bits_of(factor(y)) & 0xffff0000u); }
DEVICE float load_first(stored2 both) { return of_bits(both << 16); }
DEVICE float load_second(stored2 both) { return of_bits(both & 0xffff0000u); }
#else
typedef float stored;
typedef quad stored4;
typedef pair stored2;
DEVICE float load(stored x) { return x; }
DEVICE stored store(float x) { return factor(x); }
DEVICE stored2 store2(float x, float y) {
    const stored2 both = {factor(x), factor(y)};
    return both;
}
DEVICE float load_first(stored2 both) { return both.x; }
DEVICE float load_second(stored2 both) { return both.y; }
#endif
#define PER_WORD (1 + HALF)     // elements in four bytes
#define PER_COPY (4 * PER_WORD) // elements in the sixteen bytes that are copied at once

// The samples whose gradients are added up by one block: a stretch of one leaf's.
typedef struct {
    int first, count;
} stretch;
