// The instructions that warpgroups.cu uses, which only Hopper has. CUDA on a CPU defines these words before, in its own way.
#ifndef PRODUCTS_BEGIN
#define PRODUCTS_BEGIN() asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory")
#define PRODUCTS_END() asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory")
// The sums are operands here, so that the compiler does not move their use before the wait.
#define PRODUCTS_WAIT(sums, length)                                                                                  \
    asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");                                                 \
    UNROLL for (int i = 0; i < (length); i++) asm volatile("" : "+f"((sums)[i])::"memory");
#define COPIES_SHOWN() asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory")
#define ALIGNED(shared, bytes) ((char *)(shared) + ((bytes) - place_of(shared) % (bytes)) % (bytes))

// A tensor unit's descriptor of a factor: its start in units of 16 bytes, a distance of 1024 bytes between groups of eight rows,
// and the swizzle, which orders each row's eight parts of 16 bytes within its 128 bytes.
DEVICE u64 described(const void *start) { return (u64)(place_of(start) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

#if PRECISION == 1
#define GROUP_DEPTH "k8.f32.tf32.tf32"
#define GROUP_ORDER
#else
#define GROUP_DEPTH "k16.f32.bf16.bf16"
#define GROUP_ORDER ", 0, 0"
#endif
DEVICE void product_of_64(float *d, u64 rows, u64 columns) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64" GROUP_DEPTH " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31},"
                 " %32, %33, 1, 1, 1" GROUP_ORDER ";\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                 : "l"(rows), "l"(columns));
}
DEVICE void product_of_128(float *d, u64 rows, u64 columns) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128" GROUP_DEPTH " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"
                 " %64, %65, 1, 1, 1" GROUP_ORDER ";\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
                   "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
                   "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
                   "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "l"(rows), "l"(columns));
}
// d += rows·columnsᵀ, with 64 rows and COLUMNS columns.
#define PRODUCT_OF_WARPGROUP(d, rows, columns)                                                                       \
    if (COLUMNS == 64) product_of_64(d, described(rows), described(columns));                                        \
    else product_of_128(d, described(rows), described(columns))
#endif
