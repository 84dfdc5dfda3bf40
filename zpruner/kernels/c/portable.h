/* Plain C, for any processor. */
#pragma once

#include "functions.h"
#include "numbers.h"

INLINE void portable_row(ROW_ARGUMENTS, int type) {
    int size = size_of(type);
    (void)ahead;
    for (int m = 0; m < batch; m++) sums[m] = 0;
    for (int64_t word = 0; word * WORD < columns; word++) {
        int64_t left = columns - word * WORD;
        uint64_t bits = mask ? load64(mask + word * 8) : ~(uint64_t)0;
        for (int64_t i = 0; i < WORD && i < left; i++, bits >>= 1) {
            float v = 0; /* zeros are multiplied too: infinity times 0 is NaN here as in a dense product */
            if (bits & 1) {
                v = number(values, type);
                values += size;
            }
            for (int m = 0; m < batch; m++) sums[m] += v * float_of(load32(x + (m * stride + word * WORD + i) * 4));
        }
    }
}

INLINE void portable_fill(FILL_ARGUMENTS, int type) {
    int size = size_of(type);
    (void)ahead;
    for (int64_t word = 0; word * WORD < columns; word++) {
        int64_t left = columns - word * WORD;
        uint64_t bits = mask ? load64(mask + word * 8) : left < WORD ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
        for (int i = 0; i < WORD; i++, bits >>= 1) {
            float v = bits & 1 ? number(values, type) : 0;
            values += (bits & 1) * size;
            memcpy(out + (word * WORD + i) * 4, &v, 4);
        }
    }
}

static void portable_tile(TILE_ARGUMENTS) {
    for (int r = 0; r < TILE; r++) {
        for (int m = 0; m < TILE; m++) {
            float sum[8] = {0};
            uint8_t *kept = state + (r * TILE + m) * sizeof(sum);
            if (!begins) memcpy(sum, kept, sizeof(sum));
            for (int64_t column = 0; column < words * WORD; column += 8) {
                for (int i = 0; i < 8; i++) {
                    sum[i] += float_of(load32(w + (r * w_stride + column + i) * 4))
                        * float_of(load32(x + (m * x_stride + column + i) * 4));
                }
            }
            if (!sums) memcpy(kept, sum, sizeof(sum));
            else sums[r * TILE + m] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        }
    }
}

static void portable_expand(EXPAND_ARGUMENTS) {
    memset(out, 0, (size_t)(columns * size));
    for (int64_t word = 0; word * WORD < columns; word++) {
        for (uint64_t bits = load64(mask + word * 8); bits; bits &= bits - 1, values += size) {
            memcpy(out + (word * WORD + __builtin_ctzll(bits)) * size, values, (size_t)size);
        }
    }
}

#define SCALE float

INLINE float portable_scale(const uint8_t *p, int type) { return number(p, type); }

INLINE float portable_scaling(float scale, int bits, int type) {
    (void)bits, (void)type;
    return scale;
}

INLINE void portable_product(int code, float scale, uint8_t *out, int type) {
    float v = (float)code * scale + 0.0f;
    if (type == FP16 && v >= -0x1p-25f && v < 0) v = 0;
    put(out, type, v);
}

INLINE void portable_bytes(const uint8_t *codes, float scale, uint8_t *out, int type) {
    for (int i = 0; i < 16; i++) portable_product((int8_t)codes[i], scale, out + i * size_of(type), type);
}

INLINE void portable_nibbles(const uint8_t *codes, int half, float scale, uint8_t *out, int type) {
    int size = size_of(type); /* two's complement of 4 bits */
    for (int i = 0; i < 16; i++) portable_product(((codes[i] & 15) ^ 8) - 8, scale, out + i * size, type);
    for (int i = 0; i < 16; i++) portable_product(((codes[i] >> 4) ^ 8) - 8, scale, out + (half + i) * size, type);
}

#define STREAM NULL
#define ISA(name) portable_##name
#define TARGET
#include "decode.h"
ALL_FUNCTIONS
#include "undefine.h"
