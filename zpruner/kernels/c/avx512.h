/* AVX-512 (VBMI2): 16 weights of 32 bits, or 32 of 16 bits, at a time.
 *
 * On AMD's processors `expand` from memory is microcode, many times as slow as a load and an `expand` of a register, and
 * `expand` with zeroing waits for what its target held before (5 cycles a weight vector; into a register that is zero
 * already it does not). Compilers make one of the two instructions, or zeroing of the zeroed register, unless the
 * registers are pinned. */
#pragma once

#include <immintrin.h>

#include "functions.h"
#include "numbers.h"

#define ISA(name) avx512_##name
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx2,fma,f16c,popcnt")))
#define WEIGHTS __m512
#define SUMS __m512
#define LANES 16
#define X_SIZE 4
#define STEPS 2
#define PER 2
#define CHAINS 4
#define TILE_ROWS 4
#define STREAM avx512_stream

INLINE TARGET __m512i avx512_load(const uint8_t *p) {
    __m512i v = _mm512_loadu_si512(p);
    __asm__("" : "+v"(v));
    return v;
}

INLINE TARGET __m512i avx512_nothing(void) {
    __m512i v = _mm512_setzero_si512();
    __asm__("" : "+v"(v));
    return v;
}

INLINE TARGET __m512i avx512_expand16(uint32_t bits, int masked, const uint8_t *p) {
    __asm__("" : "+r"(bits)); /* or halves of a word are shifted in mask registers, which takes longer */
    return masked ? _mm512_mask_expand_epi16(avx512_nothing(), bits, avx512_load(p)) : _mm512_loadu_si512(p);
}

/* 32 weights: of bfloat16 the even and the odd ones. */
INLINE TARGET const uint8_t *avx512_take(uint64_t bits, int masked, const uint8_t *values, int type, __m512 *v) {
    if (type == FP32) {
        for (int i = 0; i < 2; i++, bits >>= 16) {
            v[i] = _mm512_castsi512_ps(masked ? avx512_load(values) : _mm512_loadu_si512(values));
            if (masked) v[i] = _mm512_mask_expand_ps(_mm512_castsi512_ps(avx512_nothing()), (__mmask16)bits, v[i]);
            values += (masked ? __builtin_popcount(bits & 0xffff) : 16) * 4;
        }
        return values;
    }
    __m512i both = avx512_expand16((uint32_t)bits, masked, values);
    if (type == FP16) {
        v[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(both));
        v[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1));
    } else {
        v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        v[1] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536)));
    }
    return values + (masked ? __builtin_popcount((uint32_t)bits) : 32) * 2;
}

INLINE TARGET __m512 avx512_zero(void) { return _mm512_setzero_ps(); }
INLINE TARGET __m512 avx512_times(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }
INLINE TARGET __m512 avx512_plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
INLINE TARGET float avx512_total(__m512 v) { return _mm512_reduce_add_ps(v); }
INLINE TARGET __m512 avx512_read(const uint8_t *p) { return _mm512_loadu_ps(p); }
INLINE TARGET void avx512_write(uint8_t *p, __m512 v) { _mm512_storeu_ps(p, v); }

INLINE TARGET void avx512_totals(const __m512 *v, float *out) {
    __m256 s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}

INLINE TARGET __m512 avx512_resumed(const uint8_t *p) { return avx512_read(p); }
INLINE TARGET void avx512_keep(uint8_t *p, __m512 sum) { avx512_write(p, sum); }

#include "words.h"

/* A register of a row; `there` says which of its numbers exist. */
INLINE TARGET void avx512_put(uint8_t *out, __m512i v, uint64_t there, int size, int stream) {
    if (stream) _mm512_stream_si512((void *)out, v);
    else if (size == 1) _mm512_mask_storeu_epi8(out, there, v);
    else if (size == 2) _mm512_mask_storeu_epi16(out, (__mmask32)there, v);
    else if (size == 4) _mm512_mask_storeu_epi32(out, (__mmask16)there, v);
    else _mm512_mask_storeu_epi64(out, (__mmask8)there, v);
}

/* 64 columns of a row. `there` says which of them exist: all of them where it is a constant. */
INLINE TARGET const uint8_t *avx512_word(
    uint64_t bits, uint64_t there, const uint8_t *values, int size, uint8_t *out, int stream) {
    int lanes = 64 / size; /* in a register */
    for (int first = 0; first < 64; first += lanes, there >>= lanes & 63, out += 64) {
        uint64_t kept = lanes == 64 ? bits : bits >> first & (((uint64_t)1 << (lanes & 63)) - 1);
        __asm__("" : "+r"(kept));
        __m512i v = avx512_load(values);
        __m512i to = avx512_nothing();
        if (size == 1) v = _mm512_mask_expand_epi8(to, kept, v);
        if (size == 2) v = _mm512_mask_expand_epi16(to, (__mmask32)kept, v);
        if (size == 4) v = _mm512_mask_expand_epi32(to, (__mmask16)kept, v);
        if (size == 8) v = _mm512_mask_expand_epi64(to, (__mmask8)kept, v);
        avx512_put(out, v, there, size, stream);
        values += __builtin_popcountll(kept) * size;
    }
    return values;
}

INLINE TARGET void avx512_words(EXPAND_ARGUMENTS, int stream) {
    int64_t whole = columns / 64;
    for (int64_t word = 0; word < whole; word++) {
        values = avx512_word(load64(mask + word * 8), ~(uint64_t)0, values, size, out + word * 64 * size, stream);
    }
    if (columns % 64) {
        uint64_t there = ((uint64_t)1 << columns % 64) - 1;
        avx512_word(load64(mask + whole * 8), there, values, size, out + whole * 64 * size, 0);
    }
}

static TARGET void avx512_expand(EXPAND_ARGUMENTS) {
    switch (size) {
    case 1: avx512_words(mask, values, columns, 1, out, 0); break;
    case 2: avx512_words(mask, values, columns, 2, out, 0); break;
    case 4: avx512_words(mask, values, columns, 4, out, 0); break;
    case 8: avx512_words(mask, values, columns, 8, out, 0); break;
    }
}

static TARGET void avx512_stream(EXPAND_ARGUMENTS) {
    switch (size) {
    case 1: avx512_words(mask, values, columns, 1, out, 1); break;
    case 2: avx512_words(mask, values, columns, 2, out, 1); break;
    case 4: avx512_words(mask, values, columns, 4, out, 1); break;
    case 8: avx512_words(mask, values, columns, 8, out, 1); break;
    }
}

/* ---- integers */

INLINE TARGET float avx512_scale(const uint8_t *p, int type) {
    return type == FP16 ? _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load16(p)))) : number(p, type);
}

#define SCALE __m512

INLINE TARGET __m256i avx512_rounded(__m512 v, int type) { /* to 16 bits; no NaN */
    if (type == FP16) {
        __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
        return _mm256_maskz_mov_epi16(_mm256_cmpneq_epi16_mask(half, _mm256_set1_epi16(-32768)), half);
    }
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

INLINE TARGET __m128i avx512_sixteen(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

INLINE TARGET void avx512_write256(uint8_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)(void *)p, v); }

INLINE TARGET __m512 avx512_product(__m512 codes, __m512 scale) {
    return _mm512_fmadd_ps(codes, scale, _mm512_setzero_ps());
}

INLINE TARGET __m512 avx512_widened(const uint8_t *codes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(avx512_sixteen(codes)));
}

/* All 16 numbers that 4 bits can stand for, in the order of their codes. */
INLINE TARGET __m512 avx512_all(float scale) {
    __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return avx512_product(codes, _mm512_set1_ps(scale));
}

INLINE TARGET __m512 avx512_scaling(float scale, int bits, int type) {
    if (bits == 8) return _mm512_set1_ps(scale);
    __m512 all = avx512_all(scale);
    return type == FP32 ? all : _mm512_castsi512_ps(_mm512_castsi256_si512(avx512_rounded(all, type)));
}

INLINE TARGET void avx512_bytes(const uint8_t *codes, __m512 scale, uint8_t *out, int type) {
    __m512 v = avx512_product(avx512_widened(codes), scale);
    if (type == FP32) avx512_write(out, v);
    else avx512_write256(out, avx512_rounded(v, type));
}

/* A shuffle looks numbers up by the lowest 4 bits of what is asked for, whatever the others are. */
INLINE TARGET void avx512_nibbles(const uint8_t *codes, int half, __m512 all, uint8_t *out, int type) {
    if (type == FP32) {
        __m512i both = _mm512_cvtepu8_epi32(avx512_sixteen(codes));
        avx512_write(out, _mm512_permutexvar_ps(both, all));
        avx512_write(out + half * 4, _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), all));
    } else {
        __m256i both = _mm256_cvtepu8_epi16(avx512_sixteen(codes)), table = _mm512_castsi512_si256(_mm512_castps_si512(all));
        avx512_write256(out, _mm256_permutexvar_epi16(both, table));
        avx512_write256(out + half * 2, _mm256_permutexvar_epi16(_mm256_srli_epi16(both, 4), table));
    }
}

#include "decode.h"
ALL_FUNCTIONS

#include "undefine.h"
