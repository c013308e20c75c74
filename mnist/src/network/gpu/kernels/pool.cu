// The greatest of each 2×2 window, NHWC, and the way back. A NaN is the greatest; of equals it is the first in
// row-major order that takes the gradient. A thread has four channels of a window. `side` and `channels` are of the results, of
// which there are four times `fours`.

typedef struct {
    u8 of[4];
} __attribute__((aligned(4))) window_places;

// Where a window's first value is, and how far on its other ones are.
typedef struct {
    u32 first, right, down;
} window;

DEVICE window window_of(u32 at, int side, int channels) {
    const u32 per_pixel = channels / 4, pixel = at / per_pixel, x = pixel % side, row = pixel / side;
    window it;
    it.right = channels;
    it.down = 2 * side * channels;
    // Two rows of the input for each of the results, whichever image they are in.
    it.first = 2 * row * it.down + 2 * x * channels + at % per_pixel * 4;
    return it;
}

DEVICE void take(stored it, int place, stored *most, u8 *at) {
    const float value = load(it), so_far = load(*most);
    if (value > so_far || (value != value && so_far == so_far)) {
        *most = it;
        *at = place;
    }
}

KERNEL BOUNDS(256, 8) pool_forward(const stored *RESTRICT input, stored *RESTRICT output, u8 *RESTRICT places, int side, int channels,
                                   int fours) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= fours) return;
    const window it = window_of(at, side, channels);
    stored4 most = *(const stored4 *)&input[it.first];
    window_places where = {{0, 0, 0, 0}};
    UNROLL for (int other = 1; other < 4; other++) {
        const stored4 value = *(const stored4 *)&input[it.first + other / 2 * it.down + other % 2 * it.right];
        take(value.x, other, &most.x, &where.of[0]);
        take(value.y, other, &most.y, &where.of[1]);
        take(value.z, other, &most.z, &where.of[2]);
        take(value.w, other, &most.w, &where.of[3]);
    }
    *(stored4 *)&output[4 * (u64)at] = most;
    *(window_places *)&places[4 * (u64)at] = where;
}

// The gradient by the results of the ReLU before the pool, through that ReLU.
KERNEL BOUNDS(256, 8) pool_backward(const stored *RESTRICT by_output, const stored *RESTRICT output, const u8 *RESTRICT places,
                                    stored *RESTRICT by_input, int side, int channels, int fours) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= fours) return;
    const window it = window_of(at, side, channels);
    const stored4 result = *(const stored4 *)&output[4 * (u64)at], by = *(const stored4 *)&by_output[4 * (u64)at];
    const window_places where = *(const window_places *)&places[4 * (u64)at];
    const stored x = load(result.x) <= 0.0f ? 0 : by.x, y = load(result.y) <= 0.0f ? 0 : by.y;
    const stored z = load(result.z) <= 0.0f ? 0 : by.z, w = load(result.w) <= 0.0f ? 0 : by.w;
    UNROLL for (int other = 0; other < 4; other++) {
        stored4 share;
        share.x = where.of[0] == other ? x : 0, share.y = where.of[1] == other ? y : 0;
        share.z = where.of[2] == other ? z : 0, share.w = where.of[3] == other ? w : 0;
        *(stored4 *)&by_input[it.first + other / 2 * it.down + other % 2 * it.right] = share;
    }
}
