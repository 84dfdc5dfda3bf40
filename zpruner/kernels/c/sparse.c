/* Products with matrices that are stored as a bitmask and their kept values (docs/packed.md).
 *
 * y = x W^T (+ bias) for a few rows of x, and rows of W written out with their zeros. The same code without a bitmask
 * multiplies a dense W: the control in every comparison. Integers are made into the weights that they stand for row by
 * row, in the first cache, before they are multiplied or written out.
 *
 * Built with baseline flags; the instruction set is chosen per call, and every function that needs one names it in a
 * target attribute. Sums are float32. Whoever calls has checked the matrix: offsets ascend from 0, a row's bits sum to
 * its number of values, bits beyond the last column are 0, integers have a normal number or 0 as their scale, and 64
 * readable bytes follow the last value of a matrix with bitmask or integers.
 */
#include "products.h"

int zp_abi(void) { return ABI; }

int zp_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int zp_supports(int isa) { return supports(isa); }

/* y = x W^T + bias, on at most `threads` threads. */
int zp_matmul(const Matrix *w, const Product *p, int isa, int threads) {
    if (!known(w, isa) || w->value_type < BF16 || w->value_type >= TYPES || p->type < BF16 || p->type >= TYPES) {
        return UNSUPPORTED;
    }
    if (!p->batch) return OK;
    Form form = form_of(w, p, isa);
    const Functions *f = functions_of(isa, form.narrow);
    int many = p->batch > FEW, failed = 0;
    int64_t words = words_of(w), batch = many ? (p->batch + TILE - 1) / TILE * TILE : p->batch;
    Input x = {p->x, p->x_stride, form.narrow ? 2 : 4};
    uint8_t *owned = NULL;
    int64_t group = p->batch > 2 * TILE ? ROW_GROUP : TILE, stride = stride_of(words, x.size);
    if (w->columns % WORD || batch != p->batch || group == ROW_GROUP || form.paired || (!form.narrow && p->type != FP32)) {
        owned = malloc((size_t)(batch * stride * x.size) + 64);
        if (!owned) return NO_MEMORY;
        x.at = aligned(owned);
        x.stride = stride;
        formed(p, w->columns, words, batch, form, stride, aligned(owned));
    }
    size_t scratch_size = w->bits ? scratch_bytes(w) : 0;
    size_t rows_size = many ? (size_t)(group * stride * x.size) : 0;
    size_t size = scratch_size + rows_size + (many ? (size_t)(batch / TILE * (group / TILE) * TILE_STATE) : 0);
    (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int64_t start = 0, stop = w->rows;
        share(w, &start, &stop);
        uint8_t *found = size ? calloc(size + 64, 1) : NULL, *first = aligned(found);
        Room room = {first + rows_size, first, first + rows_size + scratch_size, group, stride};
        if (!found && size) {
#pragma omp atomic write
            failed = 1;
        } else if (many) {
            many_rows(w, p, f, x, &room, start, stop);
        } else {
            few_rows(w, p, f, x, first, start, stop);
        }
        free(found);
    }
    free(owned);
    return failed ? NO_MEMORY : OK;
}

/* Write rows [start, stop) of W to `out`, (stop - start, columns) values of `size` bytes, zeros in place; of integers
 * the weights that they stand for. */
int zp_expand(const Matrix *w, int64_t start, int64_t stop, int size, uint8_t *out, int isa, int threads) {
    if (!known(w, isa) || (size != 1 && size != 2 && size != 4 && size != 8)
        || (w->bits && size != size_of(w->value_type))) {
        return UNSUPPORTED;
    }
    const Functions *f = functions_of(isa, isa == AVX512_BF16 && w->bits && w->value_type == BF16);
    DecodeFunction decode = decoder_of(w, f);
    int64_t mask_bytes = words_of(w) * 8;
    int large = (stop - start) * w->columns * size >= LARGE && w->columns % WORD == 0 && (uintptr_t)out % 64 == 0;
    ExpandFunction expand = large && f->stream ? f->stream : f->expand;
    int failed = 0;
    (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int64_t first = start, end = stop;
        share(w, &first, &end);
        uint8_t *scratch = decode ? malloc(scratch_bytes(w)) : NULL;
        if (decode && !scratch) {
#pragma omp atomic write
            failed = 1;
            end = first;
        }
        for (int64_t row = first; row < end; row++) {
            const uint8_t *values = values_of(w, row, size, decode, scratch);
            uint8_t *to = out + (row - start) * w->columns * size;
            if (w->bitmask) expand(w->bitmask + row * mask_bytes, values, w->columns, size, to);
            else memcpy(to, values, (size_t)(w->columns * size));
        }
        free(scratch);
#if defined(__x86_64__)
        if (large) _mm_sfence(); /* or another thread may still read what was there before */
#endif
    }
    return failed ? NO_MEMORY : OK;
}
