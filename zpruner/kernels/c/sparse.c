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
#ifdef _OPENMP
#include <omp.h>
#endif

#include "portable.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512_bf16.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

/* ---------------------------------------------------------------- what the machine has */

int zp_abi(void) { return ABI; }

int zp_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int zp_supports(int isa) {
    if (isa == PORTABLE) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vbmi2");
    if (isa == AVX2) return avx2;
    if (isa == AVX512) return avx512;
    if (isa == AVX512_BF16) return avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
    if (isa == NEON) return 1;
#endif
    return 0;
}

static const Functions *functions_of(int isa, int narrow) {
    (void)narrow;
#if defined(__x86_64__)
    if (narrow) return &narrow_functions;
    if (isa >= AVX512) return &avx512_functions;
    if (isa == AVX2) return &avx2_functions;
#elif defined(__aarch64__)
    if (isa == NEON) return &neon_functions;
#endif
    return &portable_functions;
}

static int known(const Matrix *w, int isa) {
    int integers = (w->bits == 8 || w->bits == 4) && w->group >= 0 && w->group % BLOCK == 0
        && w->scale_type >= BF16 && w->scale_type < TYPES && w->value_type >= BF16 && w->value_type < TYPES;
    return isa >= 0 && isa < ISAS && zp_supports(isa) && (w->bits == 0 || integers);
}

/* ---------------------------------------------------------------- rows */

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

/* ---------------------------------------------------------------- products */

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

/* Numbers of `size` bytes from one row of whole words to the next: a line more than they need, so that rows do not meet
 * in the same sets of a cache. */
static int64_t stride_of(int64_t words, int size) { return words * WORD + 64 / size; }

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
    for (int64_t r = 0; r < TILE && r < rows; r++) {
        for (int64_t i = 0; i < TILE && m + i < p->batch; i++) put_sum(p, row + inside + r, m + i, sums[r * TILE + i]);
    }
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
            if (w->bitmask) f->expand(w->bitmask + row * mask_bytes, values, w->columns, size, to);
            else memcpy(to, values, (size_t)(w->columns * size));
        }
        free(scratch);
    }
    return failed ? NO_MEMORY : OK;
}
