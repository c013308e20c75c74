// A 3×3 convolution, stride 1, as an implicit product of matrices: rows are output pixels, columns
// output channels, and the inner axis runs over nine taps and the input channels. Activations are NHWC,
// weights [output channel][tap][input channel].
//
// Before it stand NAME, INPUTS, OUTPUTS (channels; inputs a multiple of 32), SIDE_IN, SIDE_OUT, PADDING, WARPS_M,
// WARPS_N (each warp has 64 rows and 32 columns) and AFTER: 1 adds a bias and takes the ReLU (forward),
// 2 lets through what a ReLU let through, whose results `beside` are (backward), 0 neither.
//
// Each output is one sum in one order, whatever the other rows are: a sample's results do not depend on the batch.

#define ROWS (64 * WARPS_M)
#define COLUMNS (32 * WARPS_N)
#define THREADS (32 * WARPS_M * WARPS_N)
#define DEPTH 32
#define PITCH 36 // of a row of 32 floats in shared memory: no two threads meet in a bank
#define TILES (9 * INPUTS / DEPTH) // all taps of some channels, then of the next: pixels come again while they are in the cache
#define STAGE ((ROWS + COLUMNS) * PITCH)
#define ROW_COPIES (8 * ROWS / THREADS)
#define COLUMN_COPIES (8 * COLUMNS / THREADS)
#define STEP (THREADS / 8)
#define AREA (SIDE_OUT * SIDE_OUT)
// Without tensor units: a thread's rows and columns lie apart, so that neighbours read neighbours.
#define ROW_OF(i) (thread / (COLUMNS / 8) + ROWS / 8 * (i))
#define COLUMN_OF(j) (thread % (COLUMNS / 8) + COLUMNS / 8 * (j))

KERNEL BOUNDS(THREADS, 2) NAME(const float *input, const float *weights, const float *beside, float *output, int pixels) {
    ALL_SHARED(shared);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;

    // What this thread copies: 16 bytes of each of some rows.
    const int copy_row = thread / 8, copy_at = thread % 8 * 4;
    int from[ROW_COPIES], y[ROW_COPIES], x[ROW_COPIES];
    UNROLL for (int i = 0; i < ROW_COPIES; i++) {
        int pixel = first_row + copy_row + STEP * i;
        int image = pixel / AREA, inside = pixel % AREA;
        y[i] = pixel < pixels ? inside / SIDE_OUT - PADDING : -4;
        x[i] = inside % SIDE_OUT - PADDING;
        from[i] = ((image * SIDE_IN + y[i]) * SIDE_IN + x[i]) * INPUTS + copy_at;
    }
    const float *column = weights + (u64)(first_column + copy_row) * (9 * INPUTS) + copy_at;

#define FETCH(tile)                                                                                                  \
    if ((tile) < TILES) {                                                                                            \
        const int channel = (tile) / 9 * DEPTH, tap = (tile) % 9, down = tap / 3, right = tap % 3;                   \
        float *to = shared + (tile) % STAGES * STAGE;                                                                \
        UNROLL for (int i = 0; i < ROW_COPIES; i++) {                                                                \
            int there = (unsigned)(y[i] + down) < SIDE_IN && (unsigned)(x[i] + right) < SIDE_IN;                     \
            int at = from[i] + (down * SIDE_IN + right) * INPUTS + channel;                                          \
            copy16_kept(to + (copy_row + STEP * i) * PITCH + copy_at, there ? input + at : input, there);            \
        }                                                                                                            \
        to += ROWS * PITCH;                                                                                          \
        UNROLL for (int i = 0; i < COLUMN_COPIES; i++) {                                                             \
            copy16(to + (copy_row + STEP * i) * PITCH + copy_at,                                                     \
                   column + (u64)(STEP * i) * (9 * INPUTS) + tap * INPUTS + channel, 1);                             \
        }                                                                                                            \
    }                                                                                                                \
    copies_end();

    OWN_SUMS
    FOR_EACH_TILE(TILES, ROWS * PITCH, ADD_ROWS_BY_COLUMNS)

    FOR_EACH_SUM(row, column_of, sum, {
        const int pixel = first_row + row, channel = first_column + column_of;
        if (pixel < pixels) {
            const u64 at = (u64)pixel * OUTPUTS + channel;
            float value = sum;
            if (AFTER == 1) value = relu(value + beside[channel]);
            if (AFTER == 2) value = let_through(beside[at], value);
            output[at] = factor(value);
        }
    })
}

#undef FETCH
#undef ROWS
#undef COLUMNS
#undef THREADS
#undef DEPTH
#undef PITCH
#undef TILES
#undef STAGE
#undef ROW_COPIES
#undef COLUMN_COPIES
#undef STEP
#undef AREA
#undef ROW_OF
#undef COLUMN_OF
