/* Numbers in memory; none of the pointers need be aligned. */
#pragma once

#include "matrix.h"

INLINE uint16_t load16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

INLINE uint32_t load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

INLINE uint64_t load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

INLINE float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

INLINE uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

INLINE float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    float v = (float)mantissa * 0x1p-24f;
    return sign ? -v : v;
}

INLINE uint16_t to_half(float v) {
    uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* rounds to infinity */
    if (size < 0x38800000u) return (uint16_t)(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u)); /* subnormal */
    size += 0xfff + (size >> 13 & 1);
    return (uint16_t)(sign | (size - 0x38000000u) >> 13);
}

INLINE uint16_t to_bfloat(float v) {
    uint32_t bits = bits_of(v);
    if ((bits & 0x7fffffff) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE int size_of(int type) { return type == FP32 ? 4 : 2; }

INLINE float number(const uint8_t *p, int type) {
    if (type == FP32) return float_of(load32(p));
    return type == BF16 ? float_of((uint32_t)load16(p) << 16) : from_half(load16(p));
}

INLINE void put(uint8_t *p, int type, float v) {
    if (type == FP32) {
        memcpy(p, &v, 4);
    } else {
        uint16_t h = type == BF16 ? to_bfloat(v) : to_half(v);
        memcpy(p, &h, 2);
    }
}

/* ---------------------------------------------------------------- parts of a matrix */

INLINE int64_t words_of(const Matrix *w) { return (w->columns + WORD - 1) / WORD; }

/* The first element of a row among the values. */
INLINE int64_t offset_of(const Matrix *w, int64_t row) {
    if (!w->offsets) return row * (w->bits == 4 ? (w->columns + 1) / 2 : w->columns);
    if (w->offset_bytes == 8) return (int64_t)load64(w->offsets + row * 8);
    return (int32_t)load32(w->offsets + row * 4);
}

INLINE int64_t scale_of(const Matrix *w, int64_t row) {
    if (w->groups) return (int64_t)load64(w->groups + row * 8);
    return row * (w->group ? (w->columns + w->group - 1) / w->group : 1);
}

/* Copy the values behind the last whole word of a dense row into `tail`, zeros after them. */
INLINE const uint8_t *dense_tail(uint8_t *tail, const uint8_t *values, int64_t columns, int size) {
    int64_t done = columns & ~(int64_t)(WORD - 1);
    memset(tail, 0, (size_t)(WORD * size));
    memcpy(tail, values + done * size, (size_t)((columns - done) * size));
    return tail;
}

/* Ask for the values of a word `ahead` bytes later: `size` times 64 bytes, about half of them where there is a mask. */
INLINE void fetch(const uint8_t *values, int64_t ahead, int masked, int size) {
    for (int at = 0; at < (masked ? 32 : 64) * size; at += 64) __builtin_prefetch(values + ahead + at);
}
