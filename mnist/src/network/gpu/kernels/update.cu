// The optimizer's update (REP-1), from one state into another, and the new state's digest. The formulas are those of
// `update::rule` in tally-numerics, and the digest is its `digest::mix`. A block's part of the digest is added to `digest`:
// a sum of integers, the same in any order.

DEVICE u64 mix(u64 index, float p, float a, float b, float c) {
    const u32 moments = bits_of(a) + bits_of(b) * 0x9E3779B1u + bits_of(c) * 0x85EBCA77u;
    u64 z = ((u64)bits_of(p) << 32 | moments) ^ index * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

// The formulas, as the host numbers them.
#define SGD 0
#define ADAM 1
#define RMS_PROP 2
#define LION 3

// A parameter with its moments.
typedef struct {
    float p, a, b, c;
} element;

DEVICE float decayed(float weight_decay, float p, float g) {
    return weight_decay == 0.0f ? g : fused(weight_decay, p, g);
}

DEVICE element sgd(element e, float g, int nesterov, float rate, float momentum, float gradient, float weight_decay) {
    const float d = decayed(weight_decay, e.p, g);
    e.a = fused(momentum, e.a, d * gradient);
    e.p = fused(-rate, nesterov ? fused(momentum, e.a, d) : e.a, e.p);
    return e;
}

DEVICE element adam(element e, float g, int cautious, int amsgrad, float step_size, float beta1, float gradient1, float beta2,
                    float gradient2, float correction, float epsilon, float weight_decay, float keep) {
    const float d = decayed(weight_decay, e.p, g);
    e.a = fused(beta1, e.a, gradient1 * d);
    e.b = fused(beta2, e.b, gradient2 * (d * d));
    if (amsgrad) e.c = e.c > e.b ? e.c : e.b;
    const float q = e.a / fused(sqrtf(amsgrad ? e.c : e.b), correction, epsilon);
    const int decays = !cautious || (e.p >= 0.0f) == (e.a >= 0.0f);
    e.p = fused(-step_size, q, decays ? e.p * keep : e.p);
    return e;
}

DEVICE element rms_prop(element e, float g, int centered, int with_momentum, float rate, float alpha, float gradient,
                        float epsilon, float momentum, float weight_decay) {
    const float d = decayed(weight_decay, e.p, g);
    e.a = fused(alpha, e.a, gradient * (d * d));
    float r = e.a;
    if (centered) {
        // The mean gradient is the last moment.
        const float mean = fused(alpha, with_momentum ? e.c : e.b, gradient * d);
        if (with_momentum) e.c = mean;
        else e.b = mean;
        r = fused(-mean, mean, r);
        r = r > 0.0f ? r : 0.0f;
    }
    float q = d / (sqrtf(r) + epsilon);
    if (with_momentum) q = e.b = fused(momentum, e.b, q);
    e.p = fused(-rate, q, e.p);
    return e;
}

DEVICE element lion(element e, float g, float rate, float beta1, float gradient1, float beta2, float gradient2, float keep) {
    const float u = fused(beta1, e.a, gradient1 * g);
    const float sign = u > 0.0f ? 1.0f : u < 0.0f ? -1.0f : 0.0f;
    e.a = fused(beta2, e.a, gradient2 * g);
    e.p = fused(-rate, sign, e.p * keep);
    return e;
}

// The stretch of the replica from element `first` on. All pointers but the digest's are to its start; those of moments that the
// optimizer does not keep are null. `n0` to `n8` are the rule's numbers.
KERNEL BOUNDS(256, 4) update(const float *RESTRICT gradient, const float *RESTRICT p, const float *RESTRICT a,
                             const float *RESTRICT b, const float *RESTRICT c, float *RESTRICT new_p, float *RESTRICT new_a,
                             float *RESTRICT new_b, float *RESTRICT new_c, u64 *RESTRICT digest, int first, int length,
                             int formula, int switches, float scale, float limit, float n0, float n1, float n2, float n3,
                             float n4, float n5, float n6, float n7, float n8) {
    SHARED(u64, parts, 256);
    const int thread = threadIdx.x;
    const int one = switches & 1, two = switches >> 1;
    u64 sum = 0;
    for (int at = blockIdx.x * 256 + thread; at < length; at += gridDim.x * 256) {
        element e = {p[at], a[at], b ? b[at] : 0.0f, c ? c[at] : 0.0f};
        float g = gradient[at] * scale;
        g = g > limit ? limit : g < -limit ? -limit : g;
        if (formula == SGD) e = sgd(e, g, one, n0, n1, n2, n3);
        else if (formula == ADAM) e = adam(e, g, one, two, n0, n1, n2, n3, n4, n5, n6, n7, n8);
        else if (formula == RMS_PROP) e = rms_prop(e, g, one, two, n0, n1, n2, n3, n4, n5);
        else if (formula == LION) e = lion(e, g, n0, n1, n2, n3, n4, n5);
        else e.p = e.p + g;
        new_p[at] = e.p;
        new_a[at] = e.a;
        if (b) new_b[at] = e.b;
        if (c) new_c[at] = e.c;
        sum += mix((u64)first + at, e.p, e.a, e.b, e.c);
    }
    parts[thread] = sum;
    for (int half = 128; half > 0; half /= 2) {
        BARRIER();
        if (thread < half) parts[thread] += parts[thread + half];
    }
    if (thread == 0) ADD_TO(digest, parts[0]);
}
