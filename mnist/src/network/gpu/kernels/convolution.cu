// A 3×3 convolution, stride 1, as an implicit product of matrices: rows are output pixels, columns
// output channels, and the inner axis runs over nine taps and the input channels. Activations are NHWC,
// weights [output channel][tap][input channel].
//
// The host defines before it NAME, INPUTS, OUTPUTS (channels; inputs a multiple of 32), SIDE_IN, SIDE_OUT, PADDING, WARPS_M,
// WARPS_N, WARP_COLUMNS (each warp has 64 rows), STAGES (the tiles that are on their way to a block at once), BLOCKS (the
// blocks that a processor must have registers for) and AFTER: 1 adds a bias and takes the ReLU (forward), 2 takes a ReLU's way
// back, with the ReLU's results in `beside` (backward), 0 does neither.
//
// A padding of two belongs to the way back of a convolution without padding. There about half of the taps or more lie outside.
// So rows run over the samples first: a block has one pixel of many samples, or a few pixels, and leaves out the taps that lie
// outside for all of them.
//
// Each output is one sum in one order, whatever the other rows are: a sample's results do not depend on the batch.

#define ROWS (64 * WARPS_M)
#define COLUMNS (WARP_COLUMNS * WARPS_N)
#define THREADS (32 * WARPS_M * WARPS_N)
#define DEPTH (INPUTS < 32 * PER_WORD ? INPUTS : 32 * PER_WORD)
#define PITCH (DEPTH + PER_COPY) // from row to row in shared memory, so that no two threads meet in a bank
#define STAGE ((ROWS + COLUMNS) * PITCH)
#define COPIES (DEPTH / PER_COPY) // for a row, of 16 bytes each
#define ROW_COPIES (COPIES * ROWS / THREADS)
#define COLUMN_COPIES (COPIES * COLUMNS / THREADS)
#define STEP (THREADS / COPIES)
#define AREA (SIDE_OUT * SIDE_OUT)
#define BY_PIXEL (PADDING == 2)
#define IMAGE_OF(row) (BY_PIXEL ? (row) % samples : (row) / AREA)
#define PIXEL_OF(row) (BY_PIXEL ? (row) / samples : (row) % AREA)
// Without tensor units: a thread's rows and columns lie apart, so that neighbours read neighbours.
#define ROW_OF(i) (thread / (COLUMNS / 8) + ROWS / 8 * (i))
#define COLUMN_OF(j) (thread % (COLUMNS / 8) + COLUMNS / 8 * (j))
#if AFTER == 1
#define BESIDE float
#else
#define BESIDE stored
#endif

KERNEL BOUNDS(THREADS, BLOCKS) NAME(const stored *RESTRICT input, const stored *RESTRICT weights, const BESIDE *RESTRICT beside,
                                    stored *RESTRICT output, int samples) {
    ALL_SHARED(shared);
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

    // What this thread copies: 16 bytes of each of some rows.
    const int copy_row = thread / COPIES, copy_at = thread % COPIES * PER_COPY;
    int from[ROW_COPIES], y[ROW_COPIES], x[ROW_COPIES];
    UNROLL for (int i = 0; i < ROW_COPIES; i++) {
        const int row = first_row + copy_row + STEP * i, image = IMAGE_OF(row), inside = PIXEL_OF(row);
        y[i] = row < rows_there ? inside / SIDE_OUT - PADDING : -4;
        x[i] = inside % SIDE_OUT - PADDING;
        from[i] = ((image * SIDE_IN + y[i]) * SIDE_IN + x[i]) * INPUTS + copy_at;
    }
    const stored *column = weights + (u64)(first_column + copy_row) * (9 * INPUTS) + copy_at;
    // The next tile. All taps of some channels come before the next channels, so that pixels are read again while a cache has them.
    int channel = 0, down = first_down, right = first_right;

#define FETCH(tile)                                                                                                  \
    if ((tile) < tiles) {                                                                                            \
        stored *to = (stored *)shared + (tile) % STAGES * STAGE;                                                     \
        const int tap = (down * SIDE_IN + right) * INPUTS + channel;                                                 \
        UNROLL for (int i = 0; i < ROW_COPIES; i++) {                                                                \
            const int there = (unsigned)(y[i] + down) < SIDE_IN && (unsigned)(x[i] + right) < SIDE_IN;               \
            copy16_kept(to + (copy_row + STEP * i) * PITCH + copy_at, there ? input + (from[i] + tap) : input,       \
                        there);                                                                                      \
        }                                                                                                            \
        to += ROWS * PITCH;                                                                                          \
        const stored *weight = column + (down * 3 + right) * INPUTS + channel;                                       \
        UNROLL for (int i = 0; i < COLUMN_COPIES; i++) {                                                             \
            copy16(to + (copy_row + STEP * i) * PITCH + copy_at, weight + STEP * i * 9 * INPUTS, 1);                 \
        }                                                                                                            \
        if (++right == end_right) {                                                                                  \
            right = first_right;                                                                                     \
            if (++down == end_down) {                                                                                \
                down = first_down;                                                                                   \
                channel += DEPTH;                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    copies_end();

    OWN_SUMS
    FOR_EACH_TILE(tiles, ROWS * PITCH, ADD_ROWS_BY_COLUMNS)

// Where a row's sums go; -1 if there is no such row.
#define PLACE_OF(row) ((row) < rows_there ? IMAGE_OF(row) * AREA + PIXEL_OF(row) : -1)
// A sum of -0 becomes +0 by adding a zero, as a tap outside would add it. How many of these taps a block leaves out depends on
// the batch, and the bits of the sum must not.
#define WHOLE(sum) (BY_PIXEL ? (sum) + 0.0f : (sum))
    int places[8];
#if PRECISION == 0
    UNROLL for (int i = 0; i < 8; i++) places[i] = PLACE_OF(first_row + ROW_OF(i));
    FOR_EACH_SUM(row, column_of, sum, {
        if (places[i] >= 0) {
            const u64 at = (u64)places[i] * OUTPUTS + first_column + column_of;
            float value = WHOLE(sum);
            if (AFTER == 1) value = relu(value + beside[first_column + column_of]);
            if (AFTER == 2) value = let_through(beside[at], value);
            output[at] = value;
        }
    })
#else
    UNROLL for (int i = 0; i < 8; i++) places[i] = PLACE_OF(first_row + own_row + lane / 4 + 8 * i);
    FOR_EACH_PAIR(row, column_of, one, two, {
        const int place = places[2 * i + k / 2];
        if (place >= 0) {
            const u64 at = (u64)place * OUTPUTS + first_column + column_of;
            float left = WHOLE(one);
            float right_of = WHOLE(two);
            if (AFTER == 1) {
                left = relu(left + ((const float *)beside)[first_column + column_of]);
                right_of = relu(right_of + ((const float *)beside)[first_column + column_of + 1]);
            }
            if (AFTER == 2) {
                const stored2 results = *(const stored2 *)&beside[at];
                left = let_through(load_first(results), left);
                right_of = let_through(load_second(results), right_of);
            }
            *(stored2 *)&output[at] = store2(left, right_of);
        }
    })
#endif
}

#undef FETCH
#undef ROWS
#undef COLUMNS
#undef THREADS
#undef DEPTH
#undef PITCH
#undef STAGE
#undef COPIES
#undef ROW_COPIES
#undef COLUMN_COPIES
#undef STEP
#undef AREA
#undef BY_PIXEL
#undef IMAGE_OF
#undef PIXEL_OF
#undef WHOLE
#undef ROW_OF
#undef COLUMN_OF
#undef BESIDE
#undef PLACE_OF
