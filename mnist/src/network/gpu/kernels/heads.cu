// From the last convolution's input to the answers, the losses' gradient, and back: ten logits, the number's two dense
// layers, and the two heads that see both. All in float32, whatever the convolutions' precision.
//
// What a sample's layers answer lies in a record of RECORD floats, its gradients in another, laid out alike. The host
// puts before it that, how many samples a block has (LOGITS_GROUP, HEADS_GROUP), and where the tensors lie among the parameters: SUM3, DIFF3, …, DENSE1 (a weight, its bias behind it) and
// HEADS, how many elements they have together.

#define NUMBER 0
#define DENSE1_OUT 1
#define BOTH 17 // ten logits, then what dense2 answers
#define DENSE2_OUT 27
#define SUM1_OUT 59
#define SUM2_OUT 123
#define DIFF1_OUT 251
#define DIFF2_OUT 315
#define SUM_OUT 443
#define DIFF_OUT 444
#define FLAT 9216 // the last convolution's input, (y, x, channel)
#define ANSWERS 12

#define PARTS 256

// The last convolution's results, which are the logits: `weights` [10][FLAT].
KERNEL BOUNDS(PARTS, 2) logits_forward(const stored *RESTRICT input, const float *RESTRICT weights, const float *RESTRICT bias,
                                       float *RESTRICT records, int samples) {
    SHARED(float, parts, 10 * LOGITS_GROUP * (PARTS + 1));
    const int thread = threadIdx.x, first = blockIdx.x * LOGITS_GROUP;
    float sums[LOGITS_GROUP][10];
    UNROLL for (int s = 0; s < LOGITS_GROUP; s++) UNROLL for (int o = 0; o < 10; o++) sums[s][o] = 0.0f;
    for (int at = thread; at < FLAT; at += PARTS) {
        float weight[10];
        UNROLL for (int o = 0; o < 10; o++) weight[o] = weights[o * FLAT + at];
        UNROLL for (int s = 0; s < LOGITS_GROUP; s++) {
            const float x = first + s < samples ? load(input[(u64)(first + s) * FLAT + at]) : 0.0f;
            UNROLL for (int o = 0; o < 10; o++) sums[s][o] = fused(weight[o], x, sums[s][o]);
        }
    }
    UNROLL for (int s = 0; s < LOGITS_GROUP; s++) {
        UNROLL for (int o = 0; o < 10; o++) parts[(s * 10 + o) * (PARTS + 1) + thread] = sums[s][o];
    }
    BARRIER();
    // Four threads for each sum, then one.
    const int which = thread / 4, quarter = thread % 4;
    float sum = 0.0f;
    if (which < 10 * LOGITS_GROUP) {
        const float *from = parts + which * (PARTS + 1) + quarter * (PARTS / 4);
        sum = from[0];
        for (int i = 1; i < PARTS / 4; i++) sum += from[i];
    }
    BARRIER();
    if (which < 10 * LOGITS_GROUP) parts[thread] = sum;
    BARRIER();
    if (thread < 10 * LOGITS_GROUP && first + thread / 10 < samples) {
        float whole = parts[4 * thread];
        for (int i = 1; i < 4; i++) whole += parts[4 * thread + i];
        records[(u64)(first + thread / 10) * RECORD + BOTH + thread % 10] = whole + bias[thread % 10];
    }
}

#define WORKERS 128

// One dense layer of the block's samples, `x·Wᵀ + b`, with a ReLU or without.
DEVICE void dense(int thread, const float *weight, int inputs, int outputs, const float *in, float *out, int with_relu) {
    for (int o = thread; o < outputs; o += WORKERS) {
        float sums[HEADS_GROUP];
        UNROLL for (int s = 0; s < HEADS_GROUP; s++) sums[s] = 0.0f;
        for (int i = 0; i < inputs; i++) {
            const float w = weight[o * inputs + i];
            UNROLL for (int s = 0; s < HEADS_GROUP; s++) sums[s] = fused(w, in[s * RECORD + i], sums[s]);
        }
        const float bias = weight[inputs * outputs + o];
        UNROLL for (int s = 0; s < HEADS_GROUP; s++) {
            const float sum = sums[s] + bias;
            out[s * RECORD + o] = with_relu ? relu(sum) : sum;
        }
    }
}

// The gradient by its input, to which `more` adds, through the ReLU whose results `results` are, unless there is none.
DEVICE void dense_back(int thread, const float *weight, int inputs, int outputs, const float *by_out, float *by_in, int more,
                       const float *results) {
    for (int i = thread; i < inputs; i += WORKERS) {
        float sums[HEADS_GROUP];
        UNROLL for (int s = 0; s < HEADS_GROUP; s++) sums[s] = more ? by_in[s * RECORD + i] : 0.0f;
        for (int o = 0; o < outputs; o++) {
            const float w = weight[o * inputs + i];
            UNROLL for (int s = 0; s < HEADS_GROUP; s++) sums[s] = fused(w, by_out[s * RECORD + o], sums[s]);
        }
        UNROLL for (int s = 0; s < HEADS_GROUP; s++) {
            by_in[s * RECORD + i] = results ? let_through(results[s * RECORD + i], sums[s]) : sums[s];
        }
    }
}

// The gradient of `scale` times a sample's losses by its answers, worked out in double as the host would (`losses.rs`).
DEVICE void by_answers(const float *record, float *by, int number, int label, int loss, float scale) {
    const float *logits = record + BOTH;
    float most = logits[0];
    for (int j = 1; j < 10; j++) most = logits[j] > most ? logits[j] : most;
    double powers[10], sum = 0.0;
    for (int j = 0; j < 10; j++) sum += powers[j] = exponential((double)logits[j] - (double)most);
    double factor_of = scale;
    if (loss == 0) factor_of *= powers[label] / sum; // -p of the label; else cross-entropy
    for (int j = 0; j < 10; j++) by[BOTH + j] = factor_of * (powers[j] / sum - (j == label ? 1.0 : 0.0));
    const int difference = number > label ? number - label : label - number;
    by[SUM_OUT] = scale * 2.0 * ((double)record[SUM_OUT] - (number + label));
    by[DIFF_OUT] = scale * 2.0 * ((double)record[DIFF_OUT] - difference);
}

// From the logits in `records` to the `answers` [sample][ANSWERS], and, if `back`, on to the gradients by all that is
// in a record, those by the logits included.
KERNEL BOUNDS(WORKERS, 4) heads(const float *RESTRICT parameters, const u8 *RESTRICT numbers, const u8 *RESTRICT labels, float *RESTRICT records,
                                float *RESTRICT gradients, float *RESTRICT answers, int samples, int loss, float scale, int back) {
    SHARED(float, record, HEADS_GROUP * RECORD);
    SHARED(float, by, HEADS_GROUP * RECORD);
    // Of the two heads' small layers each half of the threads has one.
    const int thread = threadIdx.x, other = (thread + WORKERS / 2) % WORKERS, first = blockIdx.x * HEADS_GROUP;
    const int own = samples - first < HEADS_GROUP ? samples - first : HEADS_GROUP;
    for (int i = thread; i < HEADS_GROUP * RECORD; i += WORKERS) by[i] = record[i] = 0.0f;
    BARRIER();
    for (int i = thread; i < 10 * own; i += WORKERS) {
        record[i / 10 * RECORD + BOTH + i % 10] = records[(u64)(first + i / 10) * RECORD + BOTH + i % 10];
    }
    if (thread < own) record[thread * RECORD + NUMBER] = numbers[first + thread];
    BARRIER();
    dense(thread, parameters + DENSE1, 1, 16, record + NUMBER, record + DENSE1_OUT, 1);
    BARRIER();
    dense(thread, parameters + DENSE2, 16, 32, record + DENSE1_OUT, record + DENSE2_OUT, 1);
    BARRIER();
    dense(thread, parameters + SUM1, 42, 64, record + BOTH, record + SUM1_OUT, 1);
    dense(other, parameters + DIFF1, 42, 64, record + BOTH, record + DIFF1_OUT, 1);
    BARRIER();
    dense(thread, parameters + SUM2, 64, 128, record + SUM1_OUT, record + SUM2_OUT, 1);
    dense(other, parameters + DIFF2, 64, 128, record + DIFF1_OUT, record + DIFF2_OUT, 1);
    BARRIER();
    dense(thread, parameters + SUM3, 128, 1, record + SUM2_OUT, record + SUM_OUT, 0);
    dense(other, parameters + DIFF3, 128, 1, record + DIFF2_OUT, record + DIFF_OUT, 0);
    BARRIER();
    for (int i = thread; i < ANSWERS * own; i += WORKERS) {
        const int sample = i / ANSWERS, at = i % ANSWERS;
        answers[(u64)(first + sample) * ANSWERS + at] = record[sample * RECORD + (at < 10 ? BOTH + at : SUM_OUT + at - 10)];
    }
    if (!back) return;
    if (thread < own) {
        by_answers(record + thread * RECORD, by + thread * RECORD, numbers[first + thread], labels[first + thread], loss, scale);
    }
    BARRIER();
    dense_back(thread, parameters + SUM3, 128, 1, by + SUM_OUT, by + SUM2_OUT, 0, record + SUM2_OUT);
    dense_back(other, parameters + DIFF3, 128, 1, by + DIFF_OUT, by + DIFF2_OUT, 0, record + DIFF2_OUT);
    BARRIER();
    dense_back(thread, parameters + SUM2, 64, 128, by + SUM2_OUT, by + SUM1_OUT, 0, record + SUM1_OUT);
    dense_back(other, parameters + DIFF2, 64, 128, by + DIFF2_OUT, by + DIFF1_OUT, 0, record + DIFF1_OUT);
    BARRIER();
    dense_back(thread, parameters + SUM1, 42, 64, by + SUM1_OUT, by + BOTH, 1, 0);
    dense_back(thread, parameters + DIFF1, 42, 64, by + DIFF1_OUT, by + BOTH, 1, 0);
    BARRIER();
    for (int i = thread; i < HEADS_GROUP * 32; i += WORKERS) {
        const int at = i / 32 * RECORD + DENSE2_OUT + i % 32;
        by[at] = let_through(record[at], by[at]);
    }
    BARRIER();
    dense_back(thread, parameters + DENSE2, 16, 32, by + DENSE2_OUT, by + DENSE1_OUT, 0, record + DENSE1_OUT);
    BARRIER();
    for (int i = thread; i < own * RECORD; i += WORKERS) {
        records[(u64)first * RECORD + i] = record[i];
        gradients[(u64)first * RECORD + i] = by[i];
    }
}

// Where a dense layer's weight lies, its inputs and outputs, and where they lie in a record. In the manifest's order.
TABLE int layers[8][5] = {
    {SUM3, 128, 1, SUM2_OUT, SUM_OUT},     {DIFF3, 128, 1, DIFF2_OUT, DIFF_OUT},
    {SUM2, 64, 128, SUM1_OUT, SUM2_OUT},   {DIFF2, 64, 128, DIFF1_OUT, DIFF2_OUT},
    {SUM1, 42, 64, BOTH, SUM1_OUT},        {DIFF1, 42, 64, BOTH, DIFF1_OUT},
    {DENSE2, 16, 32, DENSE1_OUT, DENSE2_OUT}, {DENSE1, 1, 16, NUMBER, DENSE1_OUT},
};

// The gradient by the dense layers' parameters, a sum for each stretch: [stretch][HEADS].
KERNEL BOUNDS(256, 4) heads_by_weights(const float *RESTRICT records, const float *RESTRICT gradients, const stretch *RESTRICT stretches,
                                       float *RESTRICT out) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= HEADS) return;
    int layer = 7;
    while (at < layers[layer][0]) layer--;
    const int inputs = layers[layer][1], outputs = layers[layer][2], inside = at - layers[layer][0];
    const int is_weight = inside < inputs * outputs;
    const int output = is_weight ? inside / inputs : inside - inputs * outputs;
    const stretch own = stretches[blockIdx.y];
    const float *x = records + layers[layer][3] + (is_weight ? inside % inputs : 0);
    const float *dy = gradients + layers[layer][4] + output;
    float sum = 0.0f;
    for (int sample = own.first; sample < own.first + own.count; sample++) {
        const float by = dy[(u64)sample * RECORD];
        sum = is_weight ? fused(by, x[(u64)sample * RECORD], sum) : sum + by;
    }
    out[(u64)blockIdx.y * HEADS + at] = sum;
}

// The gradient by the last convolution's input, through the ReLU whose results that input is.
KERNEL BOUNDS(256, 4) logits_backward(const float *RESTRICT gradients, const float *RESTRICT weights, const stored *RESTRICT input,
                                      stored *RESTRICT by_input, int samples) {
    SHARED(float, by, HEADS_GROUP * 10);
    const int thread = threadIdx.x, at = blockIdx.x * 256 + thread, first = blockIdx.y * HEADS_GROUP;
    const int own = samples - first < HEADS_GROUP ? samples - first : HEADS_GROUP;
    if (thread < 10 * own) by[thread] = gradients[(u64)(first + thread / 10) * RECORD + BOTH + thread % 10];
    BARRIER();
    float weight[10];
    UNROLL for (int o = 0; o < 10; o++) weight[o] = weights[o * FLAT + at];
    for (int s = 0; s < own; s++) {
        float sum = 0.0f;
        UNROLL for (int o = 0; o < 10; o++) sum = fused(by[10 * s + o], weight[o], sum);
        const u64 to = (u64)(first + s) * FLAT + at;
        by_input[to] = store(let_through(load(input[to]), sum));
    }
}

// The gradient by the last convolution's weights and biases, a sum for each stretch: `by_weights` [stretch][10][FLAT], `by_bias`
// [stretch][10].
KERNEL BOUNDS(256, 4) logits_by_weights(const float *RESTRICT gradients, const stored *RESTRICT input, const stretch *RESTRICT stretches,
                                        float *RESTRICT by_weights, float *RESTRICT by_bias) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    const stretch own = stretches[blockIdx.y];
    float sums[10];
    UNROLL for (int o = 0; o < 10; o++) sums[o] = 0.0f;
    for (int sample = own.first; sample < own.first + own.count; sample++) {
        const float x = load(input[(u64)sample * FLAT + at]);
        const float *by = gradients + (u64)sample * RECORD + BOTH;
        UNROLL for (int o = 0; o < 10; o++) sums[o] = fused(by[o], x, sums[o]);
    }
    UNROLL for (int o = 0; o < 10; o++) by_weights[((u64)blockIdx.y * 10 + o) * FLAT + at] = sums[o];
    if (at < 10) {
        float sum = 0.0f;
        for (int sample = own.first; sample < own.first + own.count; sample++) {
            sum += gradients[(u64)sample * RECORD + BOTH + at];
        }
        by_bias[blockIdx.y * 10 + at] = sum;
    }
}
