// How a block adds the product of a tile of rows and a tile of columns to its sums, in each precision. Both tiles lie in
// shared memory: row after row, each DEPTH deep, or across, depth after depth.
//
// The kernels define FETCH, STAGE, ROWS, COLUMNS, DEPTH, WARPS_N, WARP_COLUMNS, and PITCH, or ROW_PITCH and COLUMN_PITCH.
// Distances count stored elements. Depths are taken in one order, so that a sum has the same bits wherever its row and column
// stand.

// The tiles in their order, each brought to shared memory by the kernel's FETCH while those before it are added. A stage is
// written again only after all threads have read it.
#define FOR_EACH_TILE(tiles, columns_at, ADD)                                                                        \
    for (int tile = 0; tile < STAGES - 1; tile++) {                                                                  \
        FETCH(tile)                                                                                                  \
    }                                                                                                                \
    for (int tile = 0; tile < (tiles); tile++) {                                                                     \
        COPIES_WAIT(STAGES - 2);                                                                                     \
        BARRIER();                                                                                                   \
        FETCH(tile + STAGES - 1)                                                                                     \
        const stored *rows = (const stored *)shared + tile % STAGES * STAGE, *columns = rows + (columns_at);         \
        ADD(rows, columns)                                                                                           \
    }

#if PRECISION == 0
// Ordinary cores: each thread has eight rows and eight columns.

#define OWN_SUMS                                                                                                     \
    float sums[8][8];                                                                                                \
    (void)warp, (void)lane;                                                                                          \
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int j = 0; j < 8; j++) sums[i][j] = 0.0f;

#define ADD_ROWS_BY_COLUMNS(rows, columns)                                                                           \
    for (int depth = 0; depth < 32; depth += 4) {                                                                    \
        quad a[8];                                                                                                   \
        UNROLL for (int i = 0; i < 8; i++) a[i] = *(const quad *)&rows[(ROW_OF(i)) * PITCH + depth];                 \
        UNROLL for (int j = 0; j < 8; j++) {                                                                         \
            const quad b = *(const quad *)&columns[(COLUMN_OF(j)) * PITCH + depth];                                  \
            UNROLL for (int i = 0; i < 8; i++) {                                                                     \
                float sum = fused(a[i].x, b.x, sums[i][j]);                                                          \
                sum = fused(a[i].y, b.y, sum);                                                                       \
                sum = fused(a[i].z, b.z, sum);                                                                       \
                sums[i][j] = fused(a[i].w, b.w, sum);                                                                \
            }                                                                                                        \
        }                                                                                                            \
    }

#define ADD_ROWS_BY_COLUMNS_ACROSS(rows, columns)                                                                    \
    UNROLL for (int depth = 0; depth < 32; depth++) {                                                                \
        quad a[2], b[2];                                                                                             \
        UNROLL for (int i = 0; i < 2; i++) {                                                                         \
            a[i] = *(const quad *)&rows[depth * ROW_PITCH + (ROW_OF(4 * i))];                                        \
            b[i] = *(const quad *)&columns[depth * COLUMN_PITCH + (COLUMN_OF(4 * i))];                               \
        }                                                                                                            \
        UNROLL for (int i = 0; i < 8; i++) {                                                                         \
            UNROLL for (int j = 0; j < 8; j++) {                                                                     \
                sums[i][j] = fused(((const float *)a)[i], ((const float *)b)[j], sums[i][j]);                        \
            }                                                                                                        \
        }                                                                                                            \
    }

#define FOR_EACH_SUM(row, column, sum, ...)                                                                          \
    UNROLL for (int i = 0; i < 8; i++) {                                                                             \
        UNROLL for (int j = 0; j < 8; j++) {                                                                         \
            const int row = ROW_OF(i), column = COLUMN_OF(j);                                                        \
            const float sum = sums[i][j];                                                                            \
            __VA_ARGS__                                                                                              \
        }                                                                                                            \
    }

#else
// Tensor units: each warp has 64 rows and WARP_COLUMNS columns, as products of 16 by 8. The instruction says which thread holds
// what: thread 4g+t has words t and t+4 of rows g and g+8 and of column g, and columns 2t and 2t+1 of the sums. A word is one
// depth in TF32 and two in bfloat16. Where bfloat16's numbers are stored as floats, the instruction gets depths t and t+4 for
// 2t and 2t+1, on both sides, so that both precisions read alike.

#define PRODUCTS_ACROSS (WARP_COLUMNS / 8)
#define OWN_SUMS                                                                                                     \
    float sums[4][PRODUCTS_ACROSS][4];                                                                               \
    const int own_row = warp / WARPS_N * 64, own_column = warp % WARPS_N * WARP_COLUMNS;                             \
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j++)                              \
        UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = 0.0f;

#if PRECISION == 1
#define MULTIPLY multiply8
#else
#define MULTIPLY multiply16
#endif
#define ADD_FRAGMENTS(a, b)                                                                                          \
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j++)                              \
        MULTIPLY(sums[i][j], a[i], b[j]);

// Fragments by `ldmatrix`: a step is eight words deep in either precision. `b[j]` and `b[j + 1]` lie side by side; one load fills
// both.
#define SIZE ((int)sizeof(stored))
#define ADD_BY_MATRICES(rows, columns)                                                                               \
    {                                                                                                                \
        const shared_place own_rows = place_of((rows) + (own_row + lane % 16) * PITCH + lane / 16 * PER_COPY);       \
        const shared_place own_columns =                                                                             \
            place_of((columns) + (own_column + lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * PER_COPY);         \
        UNROLL for (int start = 0; start < DEPTH; start += 8 * PER_WORD) {                                           \
            u32 a[4][4], b[PRODUCTS_ACROSS][2];                                                                      \
            UNROLL for (int i = 0; i < 4; i++) load_matrices(a[i], own_rows + (16 * i * PITCH + start) * SIZE);      \
            UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j += 2)                                                      \
                load_matrices(b[j], own_columns + (8 * j * PITCH + start) * SIZE);                                   \
            ADD_FRAGMENTS(a, b)                                                                                      \
        }                                                                                                            \
    }
// The same across. Only 16-bit elements have this.
#define ADD_BY_MATRICES_ACROSS(rows, columns)                                                                        \
    {                                                                                                                \
        const shared_place own_rows =                                                                                \
            place_of((rows) + (lane / 16 * 8 + lane % 8) * ROW_PITCH + own_row + lane / 8 % 2 * 8);                  \
        const shared_place own_columns =                                                                             \
            place_of((columns) + (lane / 8 % 2 * 8 + lane % 8) * COLUMN_PITCH + own_column + lane / 16 * 8);         \
        UNROLL for (int start = 0; start < DEPTH; start += 16) {                                                     \
            u32 a[4][4], b[PRODUCTS_ACROSS][2];                                                                      \
            UNROLL for (int i = 0; i < 4; i++)                                                                       \
                load_matrices_across(a[i], own_rows + (start * ROW_PITCH + 16 * i) * SIZE);                          \
            UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j += 2)                                                      \
                load_matrices_across(b[j], own_columns + (start * COLUMN_PITCH + 8 * j) * SIZE);                     \
            ADD_FRAGMENTS(a, b)                                                                                      \
        }                                                                                                            \
    }

// Fragments word by word, for numbers that are stored as floats. `row`, `depth` and `column` are constants once the loops are
// unrolled.
#define ADD_BY_WORDS(rows, columns)                                                                                  \
    {                                                                                                                \
        const float *own_rows = (rows) + (own_row + lane / 4) * PITCH + lane % 4;                                    \
        const float *own_columns = (columns) + (own_column + lane / 4) * PITCH + lane % 4;                           \
        ADD_PRODUCTS(own_rows[(row) * PITCH + (depth)], own_columns[(column) * PITCH + (depth)])                     \
    }
#define ADD_BY_WORDS_ACROSS(rows, columns)                                                                           \
    {                                                                                                                \
        const float *own_rows = (rows) + lane % 4 * ROW_PITCH + own_row + lane / 4;                                  \
        const float *own_columns = (columns) + lane % 4 * COLUMN_PITCH + own_column + lane / 4;                      \
        ADD_PRODUCTS(own_rows[(depth) * ROW_PITCH + (row)], own_columns[(depth) * COLUMN_PITCH + (column)])          \
    }
#define LOAD_A(a, start, AT_ROW)                                                                                     \
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int k = 0; k < 4; k++) {                                          \
        const int row = 16 * i + k % 2 * 8, depth = (start) + k / 2 * 4;                                             \
        a[i][k] = bits_of(AT_ROW);                                                                                   \
    }
#define LOAD_B(b, start, AT_COLUMN)                                                                                  \
    UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j++) UNROLL for (int k = 0; k < 2; k++) {                            \
        const int column = 8 * j, depth = (start) + k * 4;                                                           \
        b[j][k] = bits_of(AT_COLUMN);                                                                                \
    }

#if PRECISION == 1
#define ADD_PRODUCTS(AT_ROW, AT_COLUMN)                                                                              \
    UNROLL for (int start = 0; start < 32; start += 8) {                                                             \
        u32 a[4][4], b[PRODUCTS_ACROSS][2];                                                                          \
        LOAD_A(a, start, AT_ROW)                                                                                     \
        LOAD_B(b, start, AT_COLUMN)                                                                                  \
        ADD_FRAGMENTS(a, b)                                                                                          \
    }
#else
// Two bfloat16 in a word, of floats that are bfloat16's numbers: their upper halves.
DEVICE u32 both(u32 low, u32 high) { return low >> 16 | (high & 0xffff0000u); }

#define ADD_PRODUCTS(AT_ROW, AT_COLUMN)                                                                              \
    UNROLL for (int start = 0; start < 32; start += 16) {                                                            \
        u32 a[4][4], b[PRODUCTS_ACROSS][2];                                                                          \
        UNROLL for (int half = 0; half < 2; half++) {                                                                \
            u32 rows_of[4][4], columns_of[PRODUCTS_ACROSS][2];                                                       \
            LOAD_A(rows_of, start + 8 * half, AT_ROW)                                                                \
            LOAD_B(columns_of, start + 8 * half, AT_COLUMN)                                                          \
            UNROLL for (int i = 0; i < 4; i++) {                                                                     \
                a[i][2 * half] = both(rows_of[i][0], rows_of[i][2]);                                                 \
                a[i][2 * half + 1] = both(rows_of[i][1], rows_of[i][3]);                                             \
            }                                                                                                        \
            UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j++) b[j][half] = both(columns_of[j][0], columns_of[j][1]);  \
        }                                                                                                            \
        ADD_FRAGMENTS(a, b)                                                                                          \
    }
#endif

#if MATRIX_LOADS
#define ADD_ROWS_BY_COLUMNS ADD_BY_MATRICES
#else
#define ADD_ROWS_BY_COLUMNS ADD_BY_WORDS
#endif
#if HALF
#define ADD_ROWS_BY_COLUMNS_ACROSS ADD_BY_MATRICES_ACROSS
#else
#define ADD_ROWS_BY_COLUMNS_ACROSS ADD_BY_WORDS_ACROSS
#endif

// Sums of neighbouring columns, two at a time.
#define FOR_EACH_PAIR(row, column, first, second, ...)                                                               \
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < PRODUCTS_ACROSS; j++)                              \
        UNROLL for (int k = 0; k < 4; k += 2) {                                                                      \
            const int row = own_row + lane / 4 + 16 * i + k / 2 * 8, column = own_column + 8 * j + lane % 4 * 2;     \
            const float first = sums[i][j][k], second = sums[i][j][k + 1];                                           \
            __VA_ARGS__                                                                                              \
        }
#endif
