/* AVX-512 BF16: both sides bfloat16, pairs of products summed in float32. */
#pragma once

#include "avx512.h"

#define ISA(name) narrow_##name
#define TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512bf16,avx2,fma,f16c,popcnt")))
#define WEIGHTS __m512i
#define SUMS __m512
#define LANES 32
#define X_SIZE 2
#define STEPS 2
#define PER 1
#define CHAINS 2
#define TILE_ROWS 4

INLINE TARGET const uint8_t *narrow_take(uint64_t bits, int masked, const uint8_t *values, int type, __m512i *v) {
    (void)type;
    *v = avx512_expand16((uint32_t)bits, masked, values);
    return values + (masked ? __builtin_popcount((uint32_t)bits) : 32) * 2;
}

INLINE TARGET __m512 narrow_zero(void) { return _mm512_setzero_ps(); }
INLINE TARGET __m512 narrow_times(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
INLINE TARGET __m512 narrow_plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
INLINE TARGET float narrow_total(__m512 v) { return _mm512_reduce_add_ps(v); }
INLINE TARGET __m512i narrow_read(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE TARGET void narrow_write(uint8_t *p, __m512i v) { _mm512_storeu_si512(p, v); }

INLINE TARGET void narrow_totals(const __m512 *v, float *out) { avx512_totals(v, out); }
INLINE TARGET __m512 narrow_resumed(const uint8_t *p) { return avx512_read(p); }
INLINE TARGET void narrow_keep(uint8_t *p, __m512 sum) { avx512_write(p, sum); }

#include "words.h"

/* ---- integers */

#define SCALE __m512

INLINE TARGET float narrow_scale(const uint8_t *p, int type) { return avx512_scale(p, type); }

INLINE TARGET __m256i narrow_rounded(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }

INLINE TARGET __m512 narrow_scaling(float scale, int bits, int type) {
    (void)type;
    if (bits == 8) return _mm512_set1_ps(scale);
    return _mm512_castsi512_ps(_mm512_castsi256_si512(narrow_rounded(avx512_all(scale))));
}

INLINE TARGET void narrow_bytes(const uint8_t *codes, __m512 scale, uint8_t *out, int type) {
    (void)type;
    avx512_write256(out, narrow_rounded(avx512_product(avx512_widened(codes), scale)));
}

INLINE TARGET void narrow_nibbles(const uint8_t *codes, int half, __m512 all, uint8_t *out, int type) {
    avx512_nibbles(codes, half, all, out, type);
}

#include "decode.h"
FUNCTIONS_OF(BF16)

static const Functions narrow_functions = {
    {narrow_row_BF16}, {narrow_fill_BF16}, narrow_tile, avx512_expand, {narrow_decode8_BF16}, {narrow_decode4_BF16},
    avx512_stream,
};

#include "undefine.h"
