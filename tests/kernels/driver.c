/* Cases on standard input, products and expansions on standard output: for kernels that this process cannot load
 * (another processor's, run by an emulator) and for sanitizers, which see every array in an allocation of its own size.
 */
#include "../../zpruner/kernels/c/sparse.c"

#include <stdio.h>

enum { ISA_OF, ROWS, COLUMNS, TYPE, BATCH, X_TYPE, OFFSET_BYTES, THREADS, BITS, GROUP, SCALE_TYPE, VALUES, SCALES, FACTS };

static uint8_t *take(int64_t bytes) {
    uint8_t *block = malloc((size_t)bytes);
    if (bytes && (!block || fread(block, 1, (size_t)bytes, stdin) != (size_t)bytes)) exit(3);
    return block;
}

int main(void) {
    int64_t head[FACTS]; /* OFFSET_BYTES: 0 without a bitmask; VALUES, SCALES: bytes */
    while (fread(head, 8, FACTS, stdin) == FACTS) {
        int isa = (int)head[ISA_OF], threads = (int)head[THREADS], masked = head[OFFSET_BYTES] != 0;
        int64_t rows = head[ROWS], columns = head[COLUMNS], batch = head[BATCH];
        int size = size_of((int)head[TYPE]), x_size = size_of((int)head[X_TYPE]);
        Matrix w = {.rows = rows,
                    .columns = columns,
                    .value_type = (int32_t)head[TYPE],
                    .offset_bytes = (int32_t)head[OFFSET_BYTES],
                    .bits = (int32_t)head[BITS],
                    .group = (int32_t)head[GROUP],
                    .scale_type = (int32_t)head[SCALE_TYPE]};
        uint8_t *bitmask = masked ? take(rows * words_of(&w) * 8) : NULL;
        uint8_t *values = take(head[VALUES]);
        uint8_t *offsets = masked ? take((rows + 1) * head[OFFSET_BYTES]) : NULL;
        uint8_t *scales = w.bits ? take(head[SCALES]) : NULL, *groups = w.bits ? take((rows + 1) * 8) : NULL;
        uint8_t *x = take(batch * columns * x_size), *bias = take(rows * x_size);
        uint8_t *y = malloc((size_t)(batch * rows * x_size)), *out = malloc((size_t)(rows * columns * size));
        w.bitmask = bitmask, w.values = values, w.offsets = offsets, w.scales = scales, w.groups = groups;
        Product p = {x, y, bias, batch, columns, rows, (int32_t)head[X_TYPE], (int32_t)head[X_TYPE]};
        if (zp_matmul(&w, &p, isa, threads)) return 4;
        if (zp_expand(&w, 0, rows, size, out, isa, threads)) return 5;
        fwrite(y, 1, (size_t)(batch * rows * x_size), stdout);
        fwrite(out, 1, (size_t)(rows * columns * size), stdout);
        free(bitmask), free(values), free(offsets), free(scales), free(groups);
        free(x), free(bias), free(y), free(out);
    }
    return 0;
}
