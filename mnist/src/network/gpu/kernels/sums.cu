// Sums over pixels, over stretches and along the tree.

// The gradient by the biases: a stretch's sum over pixels of NHWC, [stretch][channel]. A thread has a channel and every
// eighth pixel; the eight are added in their order. A block has 32 channels.
KERNEL BOUNDS(256, 4) sum_pixels(const stored *RESTRICT by_output, const stretch *RESTRICT stretches, float *RESTRICT out, int area,
                                 int channels) {
    SHARED(float, parts, 256);
    const int thread = threadIdx.x, channel = blockIdx.x * 32 + thread % 32, part = thread / 32;
    const stretch own = stretches[blockIdx.y];
    const stored *from = by_output + (u64)own.first * area * channels + channel;
    float sum = 0.0f;
    UNROLL_8 for (int pixel = part; pixel < own.count * area; pixel += 8) sum += load(from[(u64)pixel * channels]);
    parts[thread] = sum;
    BARRIER();
    if (thread < 32) {
        for (int other = 1; other < 8; other++) sum += parts[32 * other + thread];
        out[(u64)blockIdx.y * channels + channel] = sum;
    }
}

// A leaf in a pass: its stretches, how many of them each of its pieces has but the last, the slot of its gradient, whether pieces
// of earlier passes are in it, and whether it is whole after this pass and is to be rounded to the wire's type.
typedef struct {
    int first, stretches, per_piece, slot, more, rounding;
} leaf_part;

// A tensor's gradients from its stretches' sums [stretch][output][tap][input], in the manifest's order
// [output][input][tap]: a piece's stretches are added in their order, and so are pieces. With one tap it gathers any vector. A block
// has 32 pairs of output and input, with a thread for each of their taps, and a row of blocks has a leaf. A warp reads elements
// that lie side by side; the block puts the sums in order before it stores them. `out` is the tensor's place in slot 0. A slot has
// `whole` elements, and the tensor `length` times `taps`.
KERNEL BOUNDS(288, 4) gather(const float *RESTRICT parts, const leaf_part *RESTRICT leaves, float *RESTRICT out, u64 whole, int inputs,
                             int taps, int length) {
    SHARED(float, ordered, 288);
    const int lane = threadIdx.x % 32, tap = threadIdx.x / 32, at = blockIdx.x * 32 + lane;
    const leaf_part own = leaves[blockIdx.y];
    const u64 size = (u64)length * taps;
    float *to = out + own.slot * whole + (u64)blockIdx.x * 32 * taps;
    if (at < length) {
        const float *from = parts + own.first * size + ((u64)(at / inputs) * taps + tap) * inputs + at % inputs;
        float all = own.more ? to[lane * taps + tap] : 0.0f;
        for (int start = 0; start < own.stretches; start += own.per_piece) {
            const int end = start + own.per_piece < own.stretches ? start + own.per_piece : own.stretches;
            float piece = from[start * size];
            UNROLL_8 for (int i = start + 1; i < end; i++) piece += from[i * size];
            all = start > 0 || own.more ? all + piece : piece;
        }
        ordered[lane * taps + tap] = own.rounding ? to_bf16(all) : all;
    }
    BARRIER();
    if (blockIdx.x * 32 * (u64)taps + threadIdx.x < size) to[threadIdx.x] = ordered[threadIdx.x];
}

// Nodes of the tree that do not depend on each other: left + right in the left one's slot, over a stretch of the manifest.
// A row of blocks has a pair of slots.
KERNEL BOUNDS(256, 8) add_nodes(float *slots, const int *RESTRICT pairs, u64 whole, int length, int rounding) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= length) return;
    float *left = slots + pairs[2 * blockIdx.y] * whole + at;
    const float sum = *left + slots[pairs[2 * blockIdx.y + 1] * whole + at];
    *left = rounding ? to_bf16(sum) : sum;
}

// Rounded floats as they travel: their upper halves.
KERNEL BOUNDS(256, 8) upper_halves(const float *RESTRICT values, u16 *RESTRICT out, int length) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at < length) out[at] = bits_of(values[at]) >> 16;
}
