// The greatest of each 2×2 window, NHWC, and the way back. A NaN is the greatest; of equals it is the first in
// row-major order that takes the gradient.

// `side` and `channels` are of the results; `places` says where in its window each was.
KERNEL BOUNDS(256, 8) pool_forward(const float *input, float *output, u8 *places, int side, int channels, u64 length) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    if (at >= length) return;
    const int channel = at % channels;
    const u64 pixel = at / channels;
    const int x = pixel % side, y = pixel / side % side;
    const u64 image = pixel / side / side;
    const float *corner = input + ((image * 2 * side + 2 * y) * 2 * side + 2 * x) * channels + channel;
    float most = corner[0];
    int place = 0;
    for (int other = 1; other < 4; other++) {
        const float value = corner[((u64)(other / 2) * 2 * side + other % 2) * channels];
        if (value > most || (value != value && most == most)) {
            most = value;
            place = other;
        }
    }
    output[at] = most;
    places[at] = place;
}

// The gradient by the results of the ReLU before the pool, through that ReLU.
KERNEL BOUNDS(256, 8) pool_backward(const float *by_output, const float *output, const u8 *places, float *by_input, int side, int channels,
                                    u64 length) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    if (at >= length) return;
    const int channel = at % channels;
    const u64 pixel = at / channels;
    const int x = pixel % side, y = pixel / side % side;
    const u64 image = pixel / side / side;
    float *corner = by_input + ((image * 2 * side + 2 * y) * 2 * side + 2 * x) * channels + channel;
    const float gradient = let_through(output[at], by_output[at]);
    const int place = places[at];
    for (int other = 0; other < 4; other++) {
        corner[((u64)(other / 2) * 2 * side + other % 2) * channels] = other == place ? gradient : 0.0f;
    }
}
