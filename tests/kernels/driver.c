/* Cases on standard input, products and expansions on standard output: for kernels that this process cannot load
 * (another processor's, run by an emulator) and for sanitizers, which see every array in an allocation of its own size.
 */
#include "../../zpruner/kernels/sparse.c"

#include <stdio.h>

static uint8_t *take(int64_t bytes) {
    uint8_t *block = malloc((size_t)bytes);
    if (bytes && (!block || fread(block, 1, (size_t)bytes, stdin) != (size_t)bytes)) exit(3);
    return block;
}

int main(void) {
    int64_t head[9]; /* isa, rows, columns, value type, kept (-1: dense), batch, x type, bytes per offset, threads */
    while (fread(head, 8, 9, stdin) == 9) {
        int isa = (int)head[0], threads = (int)head[8];
        int64_t rows = head[1], columns = head[2], kept = head[4], batch = head[5];
        int size = size_of((int)head[3]), x_size = size_of((int)head[6]), sparse = kept >= 0;
        Matrix w = {rows, columns, NULL, NULL, NULL, NULL, (int32_t)head[3], (int32_t)head[7], 0, 0};
        uint8_t *bitmask = sparse ? take(rows * words_of(&w) * 8) : NULL;
        uint8_t *values = take(sparse ? kept * size + 64 : rows * columns * size);
        uint8_t *offsets = sparse ? take((rows + 1) * head[7]) : NULL;
        uint8_t *x = take(batch * columns * x_size), *bias = take(rows * x_size);
        uint8_t *y = malloc((size_t)(batch * rows * x_size)), *out = malloc((size_t)(rows * columns * size));
        w.bitmask = bitmask;
        w.values = values;
        w.offsets = offsets;
        Product p = {x, y, bias, batch, columns, rows, (int32_t)head[6], (int32_t)head[6]};
        if (zp_matmul(&w, &p, isa, threads)) return 4;
        fwrite(y, 1, (size_t)(batch * rows * x_size), stdout);
        if (sparse) {
            if (zp_expand(&w, 0, rows, size, out, isa, threads)) return 5;
            fwrite(out, 1, (size_t)(rows * columns * size), stdout);
        }
        free(bitmask), free(values), free(offsets), free(x), free(bias), free(y), free(out);
    }
    return 0;
}
