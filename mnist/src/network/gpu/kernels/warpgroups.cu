// The convolution of convolution.cu on Hopper's tensor units (`wgmma`). They read both factors from shared memory themselves:
// threads load no fragments, and half of the reads of shared memory are saved. Rows, columns and the order of the inner axis
// are the same.
//
// The host defines before it the same words. WARPS_M is the number of warpgroups, of four warps and 64 rows each. WARP_COLUMNS
// is 64 or 128, and WARPS_N is 1. A tile's rows have 128 bytes.

#define ROWS (64 * WARPS_M)
#define COLUMNS WARP_COLUMNS
#define THREADS (128 * WARPS_M)
#define DEPTH (32 * PER_WORD)
#define STAGE ((ROWS + COLUMNS) * DEPTH)
#define ROW_COPIES (8 * ROWS / THREADS)
#define COLUMN_COPIES (8 * COLUMNS / THREADS)
#define STEP (THREADS / 8)
#define AREA (SIDE_OUT * SIDE_OUT)
#define BY_PIXEL (PADDING == 2)
#define IMAGE_OF(row) (BY_PIXEL ? (row) % samples : (row) / AREA)
#define PIXEL_OF(row) (BY_PIXEL ? (row) / samples : (row) % AREA)
#if AFTER == 1
#define BESIDE float
#else
#define BESIDE stored
#endif

KERNEL BOUNDS(THREADS, BLOCKS) NAME(const stored *RESTRICT input, const stored *RESTRICT weights, const BESIDE *RESTRICT beside,
                                    stored *RESTRICT output, int samples) {
    ALL_SHARED(shared);
    // A swizzle needs tiles that start at a multiple of 1024 bytes. The host gives 1024 bytes more for it.
    stored *const tiles_at = (stored *)ALIGNED(shared, 1024);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int rows_there = samples * AREA, first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;

    // The block's taps: all of them, or those that lie inside for any of its pixels.
    int first_down = 0, end_down = 3, first_right = 0, end_right = 3;
    if (BY_PIXEL) {
        const int first = PIXEL_OF(first_row), last = PIXEL_OF((first_row + ROWS < rows_there ? first_row + ROWS : rows_there) - 1);
        const int top = first / SIDE_OUT - PADDING, bottom = last / SIDE_OUT - PADDING;
        const int left = top == bottom ? first % SIDE_OUT - PADDING : -PADDING;
        const int right = top == bottom ? last % SIDE_OUT - PADDING : SIDE_OUT - 1 - PADDING;
        first_down = bottom < 0 ? -bottom : 0, end_down = top + 3 > SIDE_IN ? SIDE_IN - top : 3;
        first_right = right < 0 ? -right : 0, end_right = left + 3 > SIDE_IN ? SIDE_IN - left : 3;
    }
    const int tiles = (end_down - first_down) * (end_right - first_right) * (INPUTS / DEPTH);

    // The swizzle: the place of 16 bytes among a row's eight such parts is XORed with the row. A thread's rows have the same last
    // three bits, so it has the same place in all of them.
    const int copy_row = thread / 8, copy_at = thread % 8 * PER_COPY, copy_to = (thread % 8 ^ copy_row % 8) * PER_COPY;
    int from[ROW_COPIES], y[ROW_COPIES], x[ROW_COPIES];
    UNROLL for (int i = 0; i < ROW_COPIES; i++) {
        const int row = first_row + copy_row + STEP * i, image = IMAGE_OF(row), inside = PIXEL_OF(row);
        y[i] = row < rows_there ? inside / SIDE_OUT - PADDING : -4;
        x[i] = inside % SIDE_OUT - PADDING;
        from[i] = ((image * SIDE_IN + y[i]) * SIDE_IN + x[i]) * INPUTS + copy_at;
    }
    const stored *column = weights + (u64)(first_column + copy_row) * (9 * INPUTS) + copy_at;
    int channel = 0, down = first_down, right = first_right;

#define FETCH(tile)                                                                                                  \
    if ((tile) < tiles) {                                                                                            \
        stored *to = tiles_at + (tile) % STAGES * STAGE + copy_row * DEPTH + copy_to;                                \
        const int tap = (down * SIDE_IN + right) * INPUTS + channel;                                                 \
        UNROLL for (int i = 0; i < ROW_COPIES; i++) {                                                                \
            const int there = (unsigned)(y[i] + down) < SIDE_IN && (unsigned)(x[i] + right) < SIDE_IN;               \
            copy16_kept(to + STEP * i * DEPTH, there ? input + (from[i] + tap) : input, there);                      \
        }                                                                                                            \
        to += ROWS * DEPTH;                                                                                          \
        const stored *weight = column + (down * 3 + right) * INPUTS + channel;                                       \
        UNROLL for (int i = 0; i < COLUMN_COPIES; i++) copy16(to + STEP * i * DEPTH, weight + STEP * i * 9 * INPUTS, 1); \
        if (++right == end_right) {                                                                                  \
            right = first_right;                                                                                     \
            if (++down == end_down) {                                                                                \
                down = first_down;                                                                                   \
                channel += DEPTH;                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    copies_end();

    float sums[COLUMNS / 2];
    UNROLL for (int i = 0; i < COLUMNS / 2; i++) sums[i] = 0.0f;
    const int own_row = warp / 4 * 64;
    for (int tile = 0; tile < STAGES - 1; tile++) {
        FETCH(tile)
    }
    for (int tile = 0; tile < tiles; tile++) {
        COPIES_WAIT(STAGES - 2);
        COPIES_SHOWN(); // makes the copies visible to the tensor units
        BARRIER();
        const stored *rows = tiles_at + tile % STAGES * STAGE, *columns = rows + ROWS * DEPTH;
        PRODUCTS_BEGIN();
        UNROLL for (int start = 0; start < DEPTH; start += 8 * PER_WORD) {
            PRODUCT_OF_WARPGROUP(sums, rows + own_row * DEPTH + start, columns + start);
        }
        PRODUCTS_END();
        // The products before read this stage. All warpgroups waited for these before they came to the barrier.
        FETCH(tile + STAGES - 1)
        PRODUCTS_WAIT(sums, COLUMNS / 2);
    }

// As in convolution.cu.
#define PLACE_OF(row) ((row) < rows_there ? IMAGE_OF(row) * AREA + PIXEL_OF(row) : -1)
#define WHOLE(sum) (BY_PIXEL ? (sum) + 0.0f : (sum))
    // A warp has 16 rows. A thread has two of them, and two of every eight columns.
    int places[2];
    UNROLL for (int i = 0; i < 2; i++) places[i] = PLACE_OF(first_row + own_row + warp % 4 * 16 + lane / 4 + 8 * i);
    UNROLL for (int i = 0; i < COLUMNS / 2; i += 2) {
        const int place = places[i % 4 / 2], own_column = i / 4 * 8 + lane % 4 * 2;
        if (place >= 0) {
            const u64 at = (u64)place * OUTPUTS + first_column + own_column;
            float left = WHOLE(sums[i]), right_of = WHOLE(sums[i + 1]);
            if (AFTER == 1) {
                left = relu(left + ((const float *)beside)[first_column + own_column]);
                right_of = relu(right_of + ((const float *)beside)[first_column + own_column + 1]);
            }
            if (AFTER == 2) {
                const stored2 results = *(const stored2 *)&beside[at];
                left = let_through(load_first(results), left);
                right_of = let_through(load_second(results), right_of);
            }
            *(stored2 *)&output[at] = store2(left, right_of);
        }
    }
}

#undef FETCH
#undef ROWS
#undef COLUMNS
#undef THREADS
#undef DEPTH
#undef STAGE
#undef ROW_COPIES
#undef COLUMN_COPIES
#undef STEP
#undef AREA
#undef BY_PIXEL
#undef IMAGE_OF
#undef PIXEL_OF
#undef WHOLE
#undef BESIDE
#undef PLACE_OF
