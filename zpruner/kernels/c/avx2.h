/* AVX2: 8 weights at a time. */
#pragma once

#include <immintrin.h>

#include "functions.h"
#include "lanes.h"
#include "numbers.h"

#define ISA(name) avx2_##name
#define TARGET __attribute__((target("avx2,fma,f16c,popcnt")))
#define WEIGHTS __m256
#define SUMS __m256
#define LANES 8
#define X_SIZE 4
#define STEPS 8
#define PER 1
#define CHAINS 4
#define TILE_ROWS 2 /* 16 registers hold the sums of two rows */
#define STREAM NULL

INLINE TARGET __m128i avx2_load128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

INLINE TARGET const uint8_t *avx2_take(uint64_t bits, int masked, const uint8_t *values, int type, __m256 *v) {
    unsigned byte = bits & 255;
    if (type == FP32) {
        *v = _mm256_loadu_ps((const float *)(const void *)values);
        if (masked) {
            __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)byte), bit), bit);
            *v = _mm256_permutevar8x32_ps(*v, _mm256_load_si256((const __m256i *)lanes32[byte]));
            *v = _mm256_and_ps(*v, _mm256_castsi256_ps(kept));
        }
    } else {
        __m128i half = avx2_load128(values);
        if (masked) half = _mm_shuffle_epi8(half, _mm_load_si128((const __m128i *)lanes16[byte]));
        *v = type == FP16 ? _mm256_cvtph_ps(half)
                          : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    return values + (masked ? __builtin_popcount(byte) : 8) * size_of(type);
}

INLINE TARGET __m256 avx2_zero(void) { return _mm256_setzero_ps(); }
INLINE TARGET __m256 avx2_times(__m256 sum, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, sum); }
INLINE TARGET __m256 avx2_plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
INLINE TARGET __m256 avx2_read(const uint8_t *p) { return _mm256_loadu_ps((const float *)(const void *)p); }
INLINE TARGET void avx2_write(uint8_t *p, __m256 v) { _mm256_storeu_ps((float *)(void *)p, v); }

INLINE TARGET float avx2_total(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

INLINE TARGET void avx2_totals(const __m256 *v, float *out) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

INLINE TARGET __m256 avx2_resumed(const uint8_t *p) { return avx2_read(p); }
INLINE TARGET void avx2_keep(uint8_t *p, __m256 sum) { avx2_write(p, sum); }

#include "words.h"

static TARGET void avx2_expand(EXPAND_ARGUMENTS) {
    if (size != 2 && size != 4) {
        portable_expand(mask, values, columns, size, out);
        return;
    }
    for (int64_t column = 0; column < columns; column += 8) {
        unsigned byte = mask[column / 8];
        uint8_t part[32];
        uint8_t *to = columns - column < 8 ? part : out + column * size;
        if (size == 4) {
            __m256 v;
            avx2_take(byte, 1, values, FP32, &v);
            avx2_write(to, v);
        } else {
            __m128i v = _mm_shuffle_epi8(avx2_load128(values), _mm_load_si128((const __m128i *)lanes16[byte]));
            _mm_storeu_si128((__m128i *)(void *)to, v);
        }
        if (to == part) memcpy(out + column * size, part, (size_t)((columns - column) * size));
        values += __builtin_popcount(byte) * size;
    }
}

/* ---- integers */

INLINE TARGET float avx2_scale(const uint8_t *p, int type) {
    return type == FP16 ? _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load16(p)))) : number(p, type);
}

#define SCALE __m256

INLINE TARGET __m256 avx2_scaling(float scale, int bits, int type) {
    (void)bits, (void)type;
    return _mm256_set1_ps(scale);
}

INLINE TARGET __m128i avx2_half(__m256 v) {
    __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    return _mm_andnot_si128(_mm_cmpeq_epi16(half, _mm_set1_epi16(-32768)), half);
}

INLINE TARGET __m256i avx2_rounded(__m256i v) { /* float32 to bfloat16 in the lower halves; no NaN */
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(v, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(v, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}

/* 16 integers times a scale. */
INLINE TARGET void avx2_scaled(__m128i codes, __m256 scale, uint8_t *out, int type) {
    __m256 zero = _mm256_setzero_ps();
    __m256 low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale, zero);
    __m256 high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))), scale, zero);
    if (type == FP32) {
        avx2_write(out, low);
        avx2_write(out + 32, high);
    } else if (type == FP16) {
        _mm_storeu_si128((__m128i *)(void *)out, avx2_half(low));
        _mm_storeu_si128((__m128i *)(void *)(out + 16), avx2_half(high));
    } else {
        __m256i both = _mm256_packus_epi32(avx2_rounded(_mm256_castps_si256(low)), avx2_rounded(_mm256_castps_si256(high)));
        _mm256_storeu_si256((__m256i *)(void *)out, _mm256_permute4x64_epi64(both, 0xd8));
    }
}

INLINE TARGET void avx2_bytes(const uint8_t *codes, __m256 scale, uint8_t *out, int type) {
    avx2_scaled(avx2_load128(codes), scale, out, type);
}

INLINE TARGET void avx2_nibbles(const uint8_t *codes, int half, __m256 scale, uint8_t *out, int type) {
    __m128i both = avx2_load128(codes), mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    __m128i low = _mm_and_si128(both, mask), high = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
    avx2_scaled(_mm_sub_epi8(_mm_xor_si128(low, eight), eight), scale, out, type);
    avx2_scaled(_mm_sub_epi8(_mm_xor_si128(high, eight), eight), scale, out + half * size_of(type), type);
}

#include "decode.h"
ALL_FUNCTIONS

#include "undefine.h"
