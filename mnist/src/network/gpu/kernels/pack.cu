// Weights as the kernels read them, from the manifest's order [output][input][tap].

// For both directions, rounded: forward [output][tap][input], and backward [input][8 - tap][output]. A block has 32 outputs by
// 32 inputs; blocks run over inputs first.
KERNEL BOUNDS(256, 2) pack_both(const float *RESTRICT weights, stored *RESTRICT forward, stored *RESTRICT backward, int inputs, int outputs) {
    SHARED(stored, tile, 32 * 289);
    const int thread = threadIdx.x;
    const int first_input = blockIdx.x * 32, first_output = blockIdx.y * 32;
    for (int i = thread; i < 32 * 288; i += 256) {
        const int output = i / 288, at = i % 288;
        tile[output * 289 + at] = store(weights[((u64)(first_output + output) * inputs + first_input) * 9 + at]);
    }
    BARRIER();
    for (int i = thread; i < 32 * 288; i += 256) {
        const int lane = i % 32, tap = i / 32 % 9, other = i / 288;
        forward[((u64)(first_output + other) * 9 + tap) * inputs + first_input + lane] = tile[other * 289 + lane * 9 + tap];
        backward[((u64)(first_input + other) * 9 + 8 - tap) * outputs + first_output + lane] =
            tile[lane * 289 + other * 9 + tap];
    }
}

// Forward alone and as they are: [output][tap][input].
KERNEL BOUNDS(256, 4) pack_exact(const float *RESTRICT weights, float *RESTRICT forward, int inputs, int length) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= length) return;
    const int input = at % inputs, tap = at / inputs % 9, output = at / inputs / 9;
    forward[at] = weights[((u64)output * inputs + input) * 9 + tap];
}
