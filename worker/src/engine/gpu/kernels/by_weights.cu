// A 3×3 convolution's gradient by its weights: rows are output channels, columns taps by input channels, and
// the inner axis runs over the output pixels of a stretch of samples, in their order. Each stretch has its own sum, which
// `gather_weights` adds up.
//
// Before it stand NAME, INPUTS, OUTPUTS, SIDE_IN, SIDE_OUT, PADDING, WARPS_M, WARPS_N, as in convolution.cu.
// `out` is [stretch][output channel][tap][input channel].

#define ROWS (64 * WARPS_M)
#define COLUMNS (32 * WARPS_N)
#define THREADS (32 * WARPS_M * WARPS_N)
#define DEPTH 32
#define ROW_PITCH (ROWS + 8) // a depth's rows in shared memory: no two threads meet in a bank
#define COLUMN_PITCH (COLUMNS + 8)
#define STAGE (DEPTH * (ROW_PITCH + COLUMN_PITCH))
#define AREA (SIDE_OUT * SIDE_OUT)
#define WIDTH (9 * INPUTS)
// Without tensor units: a thread's rows and columns are two times four in a row each.
#define ROW_OF(i) (thread / (COLUMNS / 8) * 4 + ROWS / 2 * ((i) / 4) + (i) % 4)
#define COLUMN_OF(j) (thread % (COLUMNS / 8) * 4 + COLUMNS / 2 * ((j) / 4) + (j) % 4)

KERNEL BOUNDS(THREADS, 2) NAME(const float *by_output, const float *input, const stretch *stretches, float *out) {
    ALL_SHARED(shared);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int first_row = blockIdx.x / (WIDTH / COLUMNS) * ROWS, first_column = blockIdx.x % (WIDTH / COLUMNS) * COLUMNS;
    const stretch own = stretches[blockIdx.y];
    const int start = own.first * AREA, pixels = own.count * AREA;
    const int tiles = (pixels + DEPTH - 1) / DEPTH;

#define FETCH(tile)                                                                                                  \
    if ((tile) < tiles) {                                                                                            \
        float *to = shared + (tile) % STAGES * STAGE;                                                                \
        for (int i = thread; i < DEPTH * ROWS / 4; i += THREADS) {                                                   \
            const int depth = i / (ROWS / 4), at = i % (ROWS / 4) * 4;                                               \
            const int pixel = (tile) * DEPTH + depth, there = pixel < pixels;                                        \
            copy16(to + depth * ROW_PITCH + at,                                                                      \
                   by_output + (there ? (u64)(start + pixel) * OUTPUTS + first_row + at : 0), there);                \
        }                                                                                                            \
        to += DEPTH * ROW_PITCH;                                                                                     \
        for (int i = thread; i < DEPTH * COLUMNS / 4; i += THREADS) {                                                \
            const int depth = i / (COLUMNS / 4), at = i % (COLUMNS / 4) * 4;                                         \
            const int pixel = (tile) * DEPTH + depth;                                                                \
            const int tap = (first_column + at) / INPUTS, channel = (first_column + at) % INPUTS;                    \
            const int image = (start + pixel) / AREA, inside = (start + pixel) % AREA;                               \
            const int y = inside / SIDE_OUT - PADDING + tap / 3, x = inside % SIDE_OUT - PADDING + tap % 3;          \
            const int there = pixel < pixels && (unsigned)y < SIDE_IN && (unsigned)x < SIDE_IN;                      \
            copy16(to + depth * COLUMN_PITCH + at,                                                                   \
                   input + (there ? ((u64)(image * SIDE_IN + y) * SIDE_IN + x) * INPUTS + channel : 0), there);      \
        }                                                                                                            \
    }                                                                                                                \
    copies_end();

    for (int tile = 0; tile < STAGES - 1; tile++) {
        FETCH(tile)
    }

    OWN_SUMS
    for (int tile = 0; tile < tiles; tile++) {
        COPIES_WAIT(STAGES - 2);
        BARRIER();
        FETCH(tile + STAGES - 1)
        const float *rows = shared + tile % STAGES * STAGE, *columns = rows + DEPTH * ROW_PITCH;
        ADD_ROWS_BY_COLUMNS_ACROSS(rows, columns)
    }

    float *to = out + (u64)blockIdx.y * OUTPUTS * WIDTH;
    FOR_EACH_SUM(row, column_of, sum, { to[(u64)(first_row + row) * WIDTH + first_column + column_of] = sum; })
}

#undef FETCH
#undef ROWS
#undef COLUMNS
#undef THREADS
#undef DEPTH
#undef ROW_PITCH
#undef COLUMN_PITCH
#undef STAGE
#undef AREA
#undef WIDTH
#undef ROW_OF
#undef COLUMN_OF
