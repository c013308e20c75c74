// The first convolution: one channel in, 32 out, 28×28 with a zero on each side, from the samples' bytes. Its factors are
// float32 in every precision; memory is what it waits for.

#define CHANNELS 32
#define SIDE 28
#define PADDED 30

// The normalised value of pixel (y, x) of a padded image of the batch, zero outside it.
DEVICE float pixel_at(const u8 *image, const float *values, int y, int x) {
    const int inside = y >= 1 && y <= SIDE && x >= 1 && x <= SIDE;
    return inside ? values[image[(y - 1) * SIDE + x - 1]] : 0.0f;
}

// Results with bias and ReLU, NHWC. A block has a sample; a thread a channel and every eighth pixel.
KERNEL BOUNDS(256, 4) first_forward(const u8 *RESTRICT images, const float *RESTRICT values, const float *RESTRICT weights,
                                    const float *RESTRICT bias, stored *RESTRICT output) {
    SHARED(float, image, PADDED * PADDED);
    const int thread = threadIdx.x, channel = thread % CHANNELS;
    const u8 *own = images + (u64)blockIdx.x * SIDE * SIDE;
    for (int i = thread; i < PADDED * PADDED; i += 256) image[i] = pixel_at(own, values, i / PADDED, i % PADDED);
    BARRIER();
    float weight[9];
    UNROLL for (int tap = 0; tap < 9; tap++) weight[tap] = weights[channel * 9 + tap];
    stored *to = output + (u64)blockIdx.x * SIDE * SIDE * CHANNELS + channel;
    for (int pixel = thread / CHANNELS; pixel < SIDE * SIDE; pixel += 256 / CHANNELS) {
        const float *corner = image + pixel / SIDE * PADDED + pixel % SIDE;
        float sum = 0.0f;
        UNROLL for (int tap = 0; tap < 9; tap++) sum = fused(weight[tap], corner[tap / 3 * PADDED + tap % 3], sum);
        to[pixel * CHANNELS] = store(relu(sum + bias[channel]));
    }
}

// The gradient by weights and biases, a sum for each stretch: `by_weights` [stretch][channel][tap], `by_bias`
// [stretch][channel]. A thread has a channel and every eighth pixel; the eight are added in their order.
KERNEL BOUNDS(256, 4) first_by_weights(const stored *RESTRICT by_output, const u8 *RESTRICT images, const float *RESTRICT values,
                                       const stretch *RESTRICT stretches, float *RESTRICT by_weights, float *RESTRICT by_bias) {
    SHARED(float, image, PADDED * PADDED);
    SHARED(float, parts, 8 * CHANNELS * 10);
    const int thread = threadIdx.x, channel = thread % CHANNELS, part = thread / CHANNELS;
    const stretch own = stretches[blockIdx.x];
    float sums[10];
    UNROLL for (int i = 0; i < 10; i++) sums[i] = 0.0f;
    for (int sample = own.first; sample < own.first + own.count; sample++) {
        BARRIER();
        for (int i = thread; i < PADDED * PADDED; i += 256) {
            image[i] = pixel_at(images + (u64)sample * SIDE * SIDE, values, i / PADDED, i % PADDED);
        }
        BARRIER();
        const stored *from = by_output + (u64)sample * SIDE * SIDE * CHANNELS + channel;
        for (int pixel = part; pixel < SIDE * SIDE; pixel += 8) {
            const float *corner = image + pixel / SIDE * PADDED + pixel % SIDE;
            const float dy = load(from[pixel * CHANNELS]);
            UNROLL for (int tap = 0; tap < 9; tap++) {
                sums[tap] = fused(dy, corner[tap / 3 * PADDED + tap % 3], sums[tap]);
            }
            sums[9] += dy;
        }
    }
    UNROLL for (int i = 0; i < 10; i++) parts[(part * 10 + i) * CHANNELS + channel] = sums[i];
    BARRIER();
    for (int i = thread; i < 10 * CHANNELS; i += 256) {
        const int of = i % CHANNELS, which = i / CHANNELS;
        float sum = parts[which * CHANNELS + of];
        for (int other = 1; other < 8; other++) sum += parts[(other * 10 + which) * CHANNELS + of];
        if (which < 9) by_weights[((u64)blockIdx.x * CHANNELS + of) * 9 + which] = sum;
        else by_bias[blockIdx.x * CHANNELS + of] = sum;
    }
}

#undef CHANNELS
#undef SIDE
#undef PADDED
