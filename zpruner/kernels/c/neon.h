/* NEON: 8 weights at a time. */
#pragma once

#include <arm_neon.h>

#include "functions.h"
#include "lanes.h"
#include "numbers.h"

#define ISA(name) neon_##name
#define TARGET
#define WEIGHTS float32x4_t
#define SUMS float32x4_t
#define LANES 4
#define X_SIZE 4
#define STEPS 8
#define PER 2
#define CHAINS 2
#define TILE_ROWS 4
#define STREAM NULL

/* Four lanes of 32 bits named by the low half of a byte: byte numbers from the table for 16-bit lanes of 0b00bbddcc. */
INLINE float32x4_t neon_four(unsigned nibble, int masked, const uint8_t *p) {
    uint8x16_t v = vld1q_u8(p);
    if (masked) {
        unsigned pairs = (nibble & 1) * 3 | (nibble & 2) * 6 | (nibble & 4) * 12 | (nibble & 8) * 24;
        v = vqtbl1q_u8(v, vld1q_u8(lanes16[pairs]));
    }
    return vreinterpretq_f32_u8(v);
}

INLINE float32x4_t neon_wide(uint16x4_t h, int type) {
    if (type == FP16) return vcvt_f32_f16(vreinterpret_f16_u16(h));
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}

INLINE const uint8_t *neon_take(uint64_t bits, int masked, const uint8_t *values, int type, float32x4_t *v) {
    unsigned byte = bits & 255;
    if (type == FP32) {
        v[0] = neon_four(byte & 15, masked, values);
        values += (masked ? __builtin_popcount(byte & 15) : 4) * 4;
        v[1] = neon_four(byte >> 4, masked, values);
        return values + (masked ? __builtin_popcount(byte >> 4) : 4) * 4;
    }
    uint8x16_t both = vld1q_u8(values);
    if (masked) both = vqtbl1q_u8(both, vld1q_u8(lanes16[byte]));
    v[0] = neon_wide(vget_low_u16(vreinterpretq_u16_u8(both)), type);
    v[1] = neon_wide(vget_high_u16(vreinterpretq_u16_u8(both)), type);
    return values + (masked ? __builtin_popcount(byte) : 8) * 2;
}

INLINE float32x4_t neon_zero(void) { return vdupq_n_f32(0); }
INLINE float32x4_t neon_times(float32x4_t sum, float32x4_t a, float32x4_t b) { return vfmaq_f32(sum, a, b); }
INLINE float32x4_t neon_plus(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
INLINE float neon_total(float32x4_t v) { return vaddvq_f32(v); }
INLINE float32x4_t neon_read(const uint8_t *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
INLINE void neon_write(uint8_t *p, float32x4_t v) { vst1q_u8(p, vreinterpretq_u8_f32(v)); }

INLINE void neon_totals(const float32x4_t *v, float *out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
}

INLINE float32x4_t neon_resumed(const uint8_t *p) { return neon_read(p); }
INLINE void neon_keep(uint8_t *p, float32x4_t sum) { neon_write(p, sum); }

#include "words.h"

static void neon_expand(EXPAND_ARGUMENTS) {
    if (size != 2) {
        portable_expand(mask, values, columns, size, out);
        return;
    }
    for (int64_t column = 0; column < columns; column += 8) {
        uint8_t part[16];
        vst1q_u8(part, vqtbl1q_u8(vld1q_u8(values), vld1q_u8(lanes16[mask[column / 8]])));
        memcpy(out + column * 2, part, (size_t)((columns - column < 8 ? columns - column : 8) * 2));
        values += __builtin_popcount(mask[column / 8]) * 2;
    }
}

/* ---- integers */

#define SCALE float

INLINE float neon_scale(const uint8_t *p, int type) { return number(p, type); }

INLINE float neon_scaling(float scale, int bits, int type) {
    (void)bits, (void)type;
    return scale;
}

INLINE void neon_four_scaled(int16x4_t codes, float scale, uint8_t *out, int type) {
    float32x4_t v = vfmaq_n_f32(vdupq_n_f32(0), vcvtq_f32_s32(vmovl_s16(codes)), scale);
    if (type == FP32) {
        neon_write(out, v);
    } else if (type == FP16) {
        uint16x4_t half = vreinterpret_u16_f16(vcvt_f16_f32(v));
        vst1_u8(out, vreinterpret_u8_u16(vbic_u16(half, vceq_u16(half, vdup_n_u16(0x8000)))));
    } else { /* no NaN */
        uint32x4_t bits = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        bits = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        vst1_u8(out, vreinterpret_u8_u16(vshrn_n_u32(bits, 16)));
    }
}

INLINE void neon_scaled(int8x16_t codes, float scale, uint8_t *out, int type) {
    int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_s8(vget_high_s8(codes));
    int size = 4 * size_of(type);
    neon_four_scaled(vget_low_s16(low), scale, out, type);
    neon_four_scaled(vget_high_s16(low), scale, out + size, type);
    neon_four_scaled(vget_low_s16(high), scale, out + 2 * size, type);
    neon_four_scaled(vget_high_s16(high), scale, out + 3 * size, type);
}

INLINE void neon_bytes(const uint8_t *codes, float scale, uint8_t *out, int type) {
    neon_scaled(vreinterpretq_s8_u8(vld1q_u8(codes)), scale, out, type);
}

INLINE void neon_nibbles(const uint8_t *codes, int half, float scale, uint8_t *out, int type) {
    int8x16_t both = vreinterpretq_s8_u8(vld1q_u8(codes)); /* shifts of signed numbers keep the sign */
    neon_scaled(vshrq_n_s8(vshlq_n_s8(both, 4), 4), scale, out, type);
    neon_scaled(vshrq_n_s8(both, 4), scale, out + half * size_of(type), type);
}

#include "decode.h"
ALL_FUNCTIONS

#include "undefine.h"
