// What the driver and the thread that it runs tell each other.

struct three {
    unsigned x, y, z;
};

struct machine {
    struct three thread, block, threads, blocks;
    float *shared;
    // Waits for the block, or for the warp, in which each lane shows the others 64 bytes: returned are all lanes'.
    void (*wait_for_block)(void);
    void *(*wait_for_warp)(const void *shown);
    void (*copy)(void *to, const void *from, int there);
    void (*copies_end)(void);
    void (*copies_wait)(int but);
};
