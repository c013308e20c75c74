// The update (REP-1), from one state into another, and the new state's digest; see tally-exact's `update` and `digest`.
// A block's part of the digest is added to `digest`: a sum of integers, the same in any order.

DEVICE u64 mix(u64 index, float parameter, float momentum) {
    u64 z = ((u64)bits_of(parameter) << 32 | bits_of(momentum)) ^ index * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

// The stretch of the replica from element `first` on. All pointers but the digest's are to its start.
KERNEL BOUNDS(256, 4) update(const float *RESTRICT gradient, const float *RESTRICT parameters, const float *RESTRICT momentum,
                             float *RESTRICT new_parameters, float *RESTRICT new_momentum, u64 *RESTRICT digest, int first,
                             int length, float minus_rate, float keep, float clip) {
    SHARED(u64, parts, 256);
    const int thread = threadIdx.x;
    u64 sum = 0;
    for (int at = blockIdx.x * 256 + thread; at < length; at += gridDim.x * 256) {
        const float v = fused(keep, momentum[at], gradient[at] * clip);
        const float p = fused(minus_rate, v, parameters[at]);
        new_parameters[at] = p;
        new_momentum[at] = v;
        sum += mix((u64)first + at, p, v);
    }
    parts[thread] = sum;
    for (int half = 128; half > 0; half /= 2) {
        BARRIER();
        if (thread < half) parts[thread] += parts[thread + half];
    }
    if (thread == 0) ADD_TO(digest, parts[0]);
}
