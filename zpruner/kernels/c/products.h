/* Products of rows of W with few rows of x, or with many. */
#pragma once

#include "rows.h"

/* How an instruction set reads x. */
typedef struct {
    int narrow, paired;
} Form;

static Form form_of(const Matrix *w, const Product *p, int isa) {
    int narrow = isa == AVX512_BF16 && w->value_type == BF16 && p->type == BF16;
    Form form = {narrow, !narrow && isa >= AVX512 && w->value_type == BF16};
    return form;
}

/* The first whole cache line. */
static uint8_t *aligned(uint8_t *p) { return p + (-(uintptr_t)p & 63); }

/* Numbers of `size` bytes from one row of whole words to the next: so many more than they need that the same piece of rows
 * one after another lies in sets of the first cache one after another (a way of it is a page), and not in the same. */
static int64_t stride_of(int64_t words, int size) {
    int64_t row = words * WORD * size, piece = PIECE * WORD * size;
    return (words > PIECE ? row + ((piece - row) & (PAGE - 1)) : row + 64) / size;
}

/* x in that form, `batch` rows of whole words and `stride` numbers, zeros where there is no x. */
static void formed(const Product *p, int64_t columns, int64_t words, int64_t batch, Form form, int64_t stride, uint8_t *out) {
    int size = form.narrow ? 2 : 4;
    for (int64_t m = 0; m < batch; m++) {
        uint8_t *to = out + m * stride * size;
        const uint8_t *from = p->x + m * p->x_stride * size_of(p->type);
        int64_t filled = m < p->batch ? columns : 0;
        memset(to + filled / WORD * WORD * size, 0, (size_t)((words - filled / WORD) * WORD * size));
        if (form.narrow || (p->type == FP32 && !form.paired)) {
            if (filled) memcpy(to, from, (size_t)(filled * size));
            continue;
        }
        for (int64_t column = 0; column < filled; column++) {
            float v = number(from + column * size_of(p->type), p->type);
            int64_t place = form.paired ? (column & ~31) + (column & 31) / 2 + (column & 1) * 16 : column;
            memcpy(to + place * 4, &v, 4);
        }
    }
}

static void put_sum(const Product *p, int64_t row, int64_t m, float sum) {
    if (p->bias) sum += number(p->bias + row * size_of(p->bias_type), p->bias_type);
    put(p->y + (m * p->y_stride + row) * size_of(p->type), p->type, sum);
}

/* The sums of a tile: of `rows` rows of W from `row` on, and `batch` of x from m on. */
static void put_tile(const Product *p, int64_t row, int64_t rows, int64_t m, int64_t batch, const float *sums) {
    if (rows < TILE || p->bias || p->type == FP16) {
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = 0; i < batch; i++) put_sum(p, row + r, m + i, sums[r * TILE + i]);
        }
        return;
    }
    int size = size_of(p->type);
    for (int64_t i = 0; i < batch; i++) { /* those of a row of x lie together */
        uint8_t to[TILE * 4];
        for (int r = 0; r < TILE; r++) put(to + r * size, p->type, sums[r * TILE + i]);
        memcpy(p->y + ((m + i) * p->y_stride + row) * size, to, (size_t)(TILE * size));
    }
}

/* x in the form that the functions read. */
typedef struct {
    const uint8_t *at;
    int64_t stride;
    int size;
} Input;

/* `scratch` has room for a row of decoded integers. */
static void few_rows(
    const Matrix *w, const Product *p, const Functions *f, Input x, uint8_t *scratch, int64_t start, int64_t stop) {
    int64_t mask_bytes = words_of(w) * 8;
    int size = size_of(w->value_type);
    DecodeFunction decode = decoder_of(w, f);
    RowFunction row_sums = f->row[w->value_type];
    float sums[FEW];
    for (int64_t row = start; row < stop; row++) {
        const uint8_t *mask = w->bitmask ? w->bitmask + row * mask_bytes : NULL;
        const uint8_t *values = values_of(w, row, size, decode, scratch);
        row_sums(mask, values, decode ? 0 : AHEAD, x.at, x.stride, w->columns, (int)p->batch, sums);
        for (int64_t m = 0; m < p->batch; m++) put_sum(p, row, m, sums[m]);
    }
}

/* Room for rows of W that meet many of x, and for their sums. */
typedef struct {
    uint8_t *scratch; /* a row of decoded integers */
    uint8_t *rows;    /* `group` rows of W */
    uint8_t *states;  /* of group / TILE tiles for every TILE rows of x */
    int64_t group;    /* of few rows of x all stay in the first cache, and so do TILE rows of W */
    int64_t stride;   /* of a row of W, in numbers */
} Room;

/* TILE rows of W in the buffer, from number `inside`, of which `rows` exist, and of x: words [from, to) of them. */
static void one_tile(
    const Matrix *w, const Product *p, const Functions *f, Input x, const Room *room, int64_t row, int64_t inside,
    int64_t rows, int64_t m, int64_t from, int64_t to) {
    int64_t words = words_of(w);
    float sums[TILE * TILE];
    uint8_t *state = room->states + (m / TILE * (room->group / TILE) + inside / TILE) * TILE_STATE;
    f->tile(room->rows + (inside * room->stride + from * WORD) * x.size, room->stride,
            x.at + (m * x.stride + from * WORD) * x.size, x.stride, to - from, from == 0, state, to == words ? sums : NULL);
    if (to < words) return;
    int64_t left = p->batch - m;
    put_tile(p, row + inside, rows < TILE ? rows : TILE, m, left < TILE ? left : TILE, sums);
}

static void many_rows(
    const Matrix *w, const Product *p, const Functions *f, Input x, const Room *room, int64_t start, int64_t stop) {
    int64_t words = words_of(w), row_bytes = room->stride * x.size;
    int size = size_of(w->value_type);
    DecodeFunction decode = decoder_of(w, f);
    FillFunction fill = f->fill[w->value_type];
    for (int64_t row = start; row < stop; row += room->group) {
        int64_t rows = stop - row < room->group ? stop - row : room->group;
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t *mask = w->bitmask ? w->bitmask + (row + r) * words * 8 : NULL;
            const uint8_t *values = values_of(w, row + r, size, decode, room->scratch);
            fill(mask, values, decode ? 0 : AHEAD, w->columns, room->rows + r * row_bytes);
        }
        for (int64_t from = 0; from == 0 || from < words; from += PIECE) {
            int64_t to = words - from < PIECE ? words : from + PIECE;
            for (int64_t m = 0; m < p->batch; m += TILE) {
                for (int64_t inside = 0; inside < rows; inside += TILE) {
                    one_tile(w, p, f, x, room, row, inside, rows - inside, m, from, to);
                }
            }
        }
    }
}
