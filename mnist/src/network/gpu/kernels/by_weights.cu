// A 3×3 convolution's gradient by its weights: rows are output channels, columns taps by input channels, and
// the inner axis runs over the output pixels of a stretch of samples, in their order. Each stretch has its own sum, which
// `gather` adds up.
//
// The host defines before it NAME, INPUTS, OUTPUTS, SIDE_IN, SIDE_OUT, PADDING, WARPS_M, WARPS_N, WARP_COLUMNS, STAGES and
// BLOCKS, as for convolution.cu. `out` is [stretch][output channel][tap][input channel].

#define ROWS (64 * WARPS_M)
#define COLUMNS (WARP_COLUMNS * WARPS_N)
#define THREADS (32 * WARPS_M * WARPS_N)
#define DEPTH (32 * PER_WORD)
#define ROW_PITCH (ROWS + 8) // a depth's rows in shared memory: no two threads meet in a bank
#define COLUMN_PITCH (COLUMNS + 8)
#define STAGE (DEPTH * (ROW_PITCH + COLUMN_PITCH))
#define AREA (SIDE_OUT * SIDE_OUT)
#define WIDTH (9 * INPUTS)
#define ROW_STEP (THREADS / (ROWS / PER_COPY)) // depths that are copied at once
#define ROW_COPIES ((DEPTH + ROW_STEP - 1) / ROW_STEP)
#define COLUMN_STEP (THREADS / (COLUMNS / PER_COPY))
#define COLUMN_COPIES (DEPTH / COLUMN_STEP)
// Without tensor units: a thread's rows and columns are two times four in a row each.
#define ROW_OF(i) (thread / (COLUMNS / 8) * 4 + ROWS / 2 * ((i) / 4) + (i) % 4)
#define COLUMN_OF(j) (thread % (COLUMNS / 8) * 4 + COLUMNS / 2 * ((j) / 4) + (j) % 4)

KERNEL BOUNDS(THREADS, BLOCKS) NAME(const stored *RESTRICT by_output, const stored *RESTRICT input, const stretch *RESTRICT stretches,
                                    float *RESTRICT out) {
    ALL_SHARED(shared);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int first_row = blockIdx.x / (WIDTH / COLUMNS) * ROWS, first_column = blockIdx.x % (WIDTH / COLUMNS) * COLUMNS;
    const stretch own = stretches[blockIdx.y];
    const int start = own.first * AREA, pixels = own.count * AREA;
    const int tiles = (pixels + DEPTH - 1) / DEPTH;

    // What this thread copies: 16 bytes of some depths' rows and columns; of these always the same tap and channels.
    const int row_at = thread % (ROWS / PER_COPY) * PER_COPY, row_depth = thread / (ROWS / PER_COPY);
    const int column_at = thread % (COLUMNS / PER_COPY) * PER_COPY, column_depth = thread / (COLUMNS / PER_COPY);
    const int tap = (first_column + column_at) / INPUTS;
    const int down = tap / 3 - PADDING, right = tap % 3 - PADDING;
    const stored *rows_from = by_output + (u64)start * OUTPUTS + first_row + row_at;
    const stored *columns_from = input + (u64)own.first * SIDE_IN * SIDE_IN * INPUTS + (first_column + column_at) % INPUTS;

#define FETCH(tile)                                                                                                  \
    if ((tile) < tiles) {                                                                                            \
        stored *to = (stored *)shared + (tile) % STAGES * STAGE;                                                     \
        UNROLL for (int i = 0; i < ROW_COPIES; i++) {                                                                \
            const int depth = row_depth + ROW_STEP * i, pixel = (tile) * DEPTH + depth, there = pixel < pixels;      \
            /* Only the last copy may be too deep. The compiler does not know that, and would branch at each. */         \
            if (DEPTH % ROW_STEP == 0 || i + 1 < ROW_COPIES || depth < DEPTH) {                                      \
                copy16(to + depth * ROW_PITCH + row_at, there ? rows_from + pixel * OUTPUTS : by_output, there);     \
            }                                                                                                        \
        }                                                                                                            \
        to += DEPTH * ROW_PITCH;                                                                                     \
        UNROLL for (int i = 0; i < COLUMN_COPIES; i++) {                                                             \
            const int depth = column_depth + COLUMN_STEP * i, pixel = (tile) * DEPTH + depth;                        \
            const int image = pixel / AREA, inside = pixel % AREA;                                                   \
            const int y = inside / SIDE_OUT + down, x = inside % SIDE_OUT + right;                                   \
            const int there = pixel < pixels && (unsigned)y < SIDE_IN && (unsigned)x < SIDE_IN;                      \
            copy16(to + depth * COLUMN_PITCH + column_at,                                                            \
                   there ? columns_from + ((image * SIDE_IN + y) * SIDE_IN + x) * INPUTS : input, there);            \
        }                                                                                                            \
    }                                                                                                                \
    copies_end();

    OWN_SUMS
    FOR_EACH_TILE(tiles, DEPTH * ROW_PITCH, ADD_ROWS_BY_COLUMNS_ACROSS)

    float *to = out + (u64)blockIdx.y * OUTPUTS * WIDTH + (u64)first_row * WIDTH + first_column;
#if PRECISION == 0
    FOR_EACH_SUM(row, column_of, sum, { to[(u64)row * WIDTH + column_of] = sum; })
#else
    FOR_EACH_PAIR(row, column_of, one, two, {
        const pair both_of = {one, two};
        *(pair *)&to[(u64)row * WIDTH + column_of] = both_of;
    })
#endif
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
#undef ROW_STEP
#undef ROW_COPIES
#undef COLUMN_STEP
#undef COLUMN_COPIES
#undef ROW_OF
#undef COLUMN_OF
