/* What is multiplied, as Python describes it (`zpruner/kernels/library.py`), and the types of the functions that an
 * instruction set has. */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI 2
#define FEW 2      /* rows of x that meet each weight as it is expanded; more of them meet rows of W in a buffer */
#define TILE 4     /* rows of W, and of x, whose sums are in registers together */
#define ROW_GROUP 8   /* rows of W in a buffer, a multiple of TILE */
#define PIECE 16    /* words of them that meet all rows of x before the next ones do: they stay in the first cache */
#define AHEAD 8192 /* bytes */
#define LARGE (16 << 20) /* bytes from which rows are written past the caches, which would not hold them */
#define PAGE 4096  /* bytes */
#define BLOCK 32   /* integers of 4 bits whose low and high halves of bytes lie together; groups are whole blocks */
#define WORD 64    /* columns of a bitmask's word */
#define INLINE static inline __attribute__((always_inline))

enum { PORTABLE, NEON, AVX2, AVX512, AVX512_BF16, ISAS };
enum { BF16, FP16, FP32, TYPES };
enum { OK, UNSUPPORTED, NO_MEMORY };

/* A weight matrix, one row per output. Row r's values begin at element offsets[r] of them; without offsets all rows are
 * equally long. Integers (`bits`) times their scale, rounded to `value_type`, are the weights. */
typedef struct {
    int64_t rows, columns;
    const uint8_t *bitmask; /* (rows, ceil(columns / 64) * 8), least significant bit first; NULL: dense */
    const uint8_t *values;
    const uint8_t *offsets; /* (rows + 1) of offset_bytes each, or NULL */
    const uint8_t *scales;  /* of scale_type, row after row; NULL where values are no integers */
    const uint8_t *groups;  /* (rows + 1) of int64: each row's first scale; NULL: all rows have as many */
    int32_t value_type;
    int32_t offset_bytes; /* 4 or 8 */
    int32_t bits;         /* 8 or 4 for integers, 0 for values of value_type */
    int32_t group;        /* kept values that share a scale, a multiple of BLOCK; 0: those of a row */
    int32_t scale_type;
    int32_t reserved;
} Matrix;

/* The rows that multiply it, and where the products go; both of the same type. */
typedef struct {
    const uint8_t *x;
    uint8_t *y;
    const uint8_t *bias; /* (rows) of bias_type, or NULL */
    int64_t batch;
    int64_t x_stride, y_stride; /* in elements */
    int32_t type;
    int32_t bias_type;
} Product;

/* Integers of one row, and their scales. */
typedef struct {
    const uint8_t *codes, *scales;
    int64_t count; /* for 4 bits rounded up to a whole byte */
    int64_t group; /* 0: one scale */
    int scale_type;
} Codes;

/* One row of W times `batch` rows of x, which are whole words of 64 columns with zeros behind the last: bfloat16 where
 * both sides are multiplied as such (`narrow`), else float32, for bfloat16 weights on AVX-512 `paired`: of 32 columns
 * first the even, then the odd ones. `mask` is NULL for a dense row of `columns` values. Weights `ahead` bytes later
 * are asked for: where x fills the first cache, the processor's own guesses come too late. `batch` is a constant where
 * the loops are inlined, so that its sums stay in registers. */
#define ROW_ARGUMENTS                                                                                            \
    const uint8_t *mask, const uint8_t *values, int64_t ahead, const uint8_t *x, int64_t stride, int64_t columns, \
        int batch, float *sums
typedef void (*RowFunction)(ROW_ARGUMENTS);

/* Write a row of W in whole words, zeros in place, in the form that x has. */
#define FILL_ARGUMENTS const uint8_t *mask, const uint8_t *values, int64_t ahead, int64_t columns, uint8_t *out
typedef void (*FillFunction)(FILL_ARGUMENTS);

/* Sum the products of TILE such rows with TILE rows of x, `words` of each. Sums of rows that are met piece by piece wait
 * in `state` (TILE_STATE bytes): `begins` says that it holds none yet; with the last piece `sums`[row of W][row of x]
 * is written, before it is NULL. */
#define TILE_STATE (TILE * TILE * 64)
#define TILE_ARGUMENTS                                                                                          \
    const uint8_t *w, int64_t w_stride, const uint8_t *x, int64_t x_stride, int64_t words, int begins, uint8_t *state, \
        float *sums
typedef void (*TileFunction)(TILE_ARGUMENTS);

/* Write a row with its zeros, `columns` values of `size` bytes. */
#define EXPAND_ARGUMENTS const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out
typedef void (*ExpandFunction)(EXPAND_ARGUMENTS);

/* Write integers times their scales, and up to BLOCK numbers more. */
#define DECODE_ARGUMENTS const Codes *c, uint8_t *out
typedef void (*DecodeFunction)(DECODE_ARGUMENTS);

/* What an instruction set has; by type of the weights. */
typedef struct {
    RowFunction row[TYPES];
    FillFunction fill[TYPES];
    TileFunction tile;
    ExpandFunction expand;
    DecodeFunction decode8[TYPES], decode4[TYPES];
    ExpandFunction stream; /* as `expand`, past the caches, rows of whole cache lines; NULL: there is none */
} Functions;
