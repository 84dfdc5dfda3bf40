/* Rows of a matrix: their values, and which thread has them. */
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "machine.h"

/* The values of a row, decoded into `scratch` where they are integers. */
static const uint8_t *values_of(const Matrix *w, int64_t row, int size, DecodeFunction decode, uint8_t *scratch) {
    int64_t first = offset_of(w, row);
    if (!decode) return w->values + first * size;
    int64_t stored = offset_of(w, row + 1) - first;
    Codes codes = {w->values + first, w->scales + scale_of(w, row) * size_of(w->scale_type),
                   w->bits == 4 ? 2 * stored : stored, w->group, w->scale_type};
    decode(&codes, scratch);
    return scratch;
}

/* Room for a row of decoded integers. Never nothing. */
static size_t scratch_bytes(const Matrix *w) { return (size_t)((w->columns + WORD) / BLOCK * BLOCK + 2 * WORD) * 4; }

static DecodeFunction decoder_of(const Matrix *w, const Functions *f) {
    return w->bits == 8 ? f->decode8[w->value_type] : w->bits == 4 ? f->decode4[w->value_type] : NULL;
}

/* The first row of thread `part` of `parts`: rows are shared out by the values they hold, not by their number. */
static int64_t first_row(const Matrix *w, int64_t start, int64_t stop, int part, int parts) {
    if (part == 0) return start;
    if (part == parts) return stop;
    if (!w->offsets) return start + (stop - start) * part / parts;
    int64_t from = offset_of(w, start), wanted = from + (offset_of(w, stop) - from) * part / parts;
    int64_t low = start, high = stop;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (offset_of(w, middle) < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The rows of the calling thread. */
static void share(const Matrix *w, int64_t *start, int64_t *stop) {
    int part = 0, parts = 1;
#ifdef _OPENMP
    part = omp_get_thread_num();
    parts = omp_get_num_threads();
#endif
    int64_t first = *start, end = *stop;
    *start = first_row(w, first, end, part, parts);
    *stop = first_row(w, first, end, part + 1, parts);
}
