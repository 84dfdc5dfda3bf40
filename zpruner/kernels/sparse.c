/* Products with matrices that are stored as a bitmask and their kept values (docs/packed.md).
 *
 * y = x W^T (+ bias) for a few rows of x, and rows of W written out with their zeros. The same code without a bitmask
 * multiplies a dense W: the control in every comparison.
 *
 * Built with baseline flags; the instruction set is chosen per call, and every function that needs one names it in a
 * target attribute. Sums are float32. Whoever calls has checked the matrix: offsets ascend from 0, a row's bits sum to
 * its number of values, bits beyond the last column are 0, and 64 readable bytes follow the last value.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ABI 1
#define FEW 2  /* rows of x that meet each weight as it is expanded; more of them meet TILE rows of W in a buffer */
#define TILE 4 /* rows of W, and of x, whose sums are in registers together */
#define AHEAD 8192 /* bytes */
#define INLINE static inline __attribute__((always_inline))

enum { PORTABLE, NEON, AVX2, AVX512, AVX512_BF16, ISAS };
enum { BF16, FP16, FP32 };
enum { OK, UNSUPPORTED, NO_MEMORY };

/* A weight matrix, one row per output. Values of row r begin at number offsets[r]; without a bitmask at r * columns. */
typedef struct {
    int64_t rows, columns;
    const uint8_t *bitmask; /* (rows, ceil(columns / 64) * 8), least significant bit first; NULL: dense */
    const uint8_t *values;
    const uint8_t *offsets; /* (rows + 1) of offset_bytes each */
    const uint8_t *scales;  /* reserved for quantised values */
    int32_t value_type;
    int32_t offset_bytes; /* 4 or 8 */
    int32_t group;        /* reserved: kept values that share a scale */
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

/* ---------------------------------------------------------------- numbers; none of the pointers need be aligned */

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

INLINE int64_t offset_of(const Matrix *w, int64_t row) {
    if (w->offset_bytes == 8) return (int64_t)load64(w->offsets + row * 8);
    return (int32_t)load32(w->offsets + row * 4);
}

INLINE int64_t words_of(const Matrix *w) { return (w->columns + 63) / 64; }

/* ---------------------------------------------------------------- one row of W times `batch` rows of x
 *
 * Row functions get x as whole words of 64 columns, zeros behind the last: bfloat16 for `dpbf16`, float32 elsewhere,
 * and for bfloat16 weights on AVX-512 `paired`: of 32 columns first the even, then the odd ones.
 * `mask` is NULL for a dense row of `columns` values. `batch` is a constant where they are inlined, so that its sums
 * stay in registers.
 */
#define ROW_ARGUMENTS \
    const uint8_t *mask, const uint8_t *values, const uint8_t *x, int64_t stride, int64_t columns, int batch, float *sums
typedef void (*RowFunction)(ROW_ARGUMENTS);

/* Copy the values behind the last whole word of a dense row into `tail`, zeros after them. */
INLINE const uint8_t *dense_tail(uint8_t *tail, const uint8_t *values, int64_t columns, int size) {
    int64_t done = columns & ~(int64_t)63;
    memset(tail, 0, (size_t)(64 * size));
    memcpy(tail, values + done * size, (size_t)((columns - done) * size));
    return tail;
}

/* Ask for weights that are needed soon: where x fills the first cache, the processor's own guesses come too late. A word
 * takes `size` times 64 bytes, about half of them where there is a mask. */
INLINE void ahead(const uint8_t *values, int masked, int size) {
    for (int at = 0; at < (masked ? 32 : 64) * size; at += 64) __builtin_prefetch(values + AHEAD + at);
}

INLINE void portable_row(ROW_ARGUMENTS, int type) {
    int size = size_of(type);
    for (int m = 0; m < batch; m++) sums[m] = 0;
    for (int64_t word = 0; word * 64 < columns; word++) {
        int64_t left = columns - word * 64;
        uint64_t bits = mask ? load64(mask + word * 8) : ~(uint64_t)0;
        for (int64_t i = 0; i < 64 && i < left; i++, bits >>= 1) {
            float v = 0; /* zeros are multiplied too: infinity times 0 is NaN here as in a dense product */
            if (bits & 1) {
                v = number(values, type);
                values += size;
            }
            for (int m = 0; m < batch; m++) sums[m] += v * float_of(load32(x + (m * stride + word * 64 + i) * 4));
        }
    }
}

#define BY_BATCH(function, ...)                                                        \
    switch (batch) {                                                                   \
    case 1: function(mask, values, x, stride, columns, 1, sums, ##__VA_ARGS__); break; \
    case 2: function(mask, values, x, stride, columns, 2, sums, ##__VA_ARGS__); break; \
    }

static void portable_bf16(ROW_ARGUMENTS) { portable_row(mask, values, x, stride, columns, batch, sums, BF16); }
static void portable_fp16(ROW_ARGUMENTS) { portable_row(mask, values, x, stride, columns, batch, sums, FP16); }
static void portable_fp32(ROW_ARGUMENTS) { portable_row(mask, values, x, stride, columns, batch, sums, FP32); }

/* Where the 8 lanes of 16 bits that a byte of the mask names come from: pairs of byte numbers, 255 for a zero. */
static uint8_t lanes16[256][16] __attribute__((aligned(16)));
/* The same for 8 lanes of 32 bits: lane numbers; 0 where the lane is cleared afterwards. */
static uint32_t lanes32[256][8] __attribute__((aligned(32)));

__attribute__((constructor)) static void fill_lanes(void) {
    for (int byte = 0; byte < 256; byte++) {
        int next = 0;
        for (int lane = 0; lane < 8; lane++) {
            int kept = byte >> lane & 1;
            lanes16[byte][2 * lane] = (uint8_t)(kept ? 2 * next : 255);
            lanes16[byte][2 * lane + 1] = (uint8_t)(kept ? 2 * next + 1 : 255);
            lanes32[byte][lane] = (uint32_t)(kept ? next : 0);
            next += kept;
        }
    }
}

#if defined(__x86_64__)

#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c,popcnt")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx2,fma,f16c,popcnt")))
#define TARGET_BF16 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512bf16,avx2,fma,f16c,popcnt")))

/* ---- AVX2: 8 weights at a time */

INLINE TARGET_AVX2 float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

INLINE TARGET_AVX2 __m256 avx2_weights(unsigned byte, int masked, const uint8_t *p, int type) {
    if (type == FP32) {
        __m256 v = _mm256_loadu_ps((const float *)(const void *)p);
        if (!masked) return v;
        __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)byte), bit), bit);
        v = _mm256_permutevar8x32_ps(v, _mm256_load_si256((const __m256i *)lanes32[byte]));
        return _mm256_and_ps(v, _mm256_castsi256_ps(kept));
    }
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (masked) v = _mm_shuffle_epi8(v, _mm_load_si128((const __m128i *)lanes16[byte]));
    if (type == FP16) return _mm256_cvtph_ps(v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

INLINE TARGET_AVX2 void avx2_row(ROW_ARGUMENTS, int type) {
    int size = size_of(type), chains = 4;
    uint8_t tail[64 * 4];
    __m256 acc[16];
    for (int i = 0; i < batch * chains; i++) acc[i] = _mm256_setzero_ps();
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 64 * size, columns, size);
        ahead(values, mask != NULL, size);
        const uint8_t *part = x + word * 256;
        for (int step = 0; step < 8; step++, bits >>= 8) {
            __m256 v = avx2_weights(bits & 255, mask != NULL, values, type);
            values += (mask ? __builtin_popcount(bits & 255) : 8) * size;
            for (int m = 0; m < batch; m++) {
                __m256 *a = &acc[m * chains + step % chains];
                *a = _mm256_fmadd_ps(v, _mm256_loadu_ps((const float *)(const void *)(part + m * stride * 4) + step * 8), *a);
            }
        }
    }
    for (int m = 0; m < batch; m++) {
        __m256 s = acc[m * chains];
        for (int i = 1; i < chains; i++) s = _mm256_add_ps(s, acc[m * chains + i]);
        sums[m] = sum8(s);
    }
}

#define AVX2_ROWS(name, type)                            \
    static TARGET_AVX2 void name(ROW_ARGUMENTS) {        \
        if (mask) {                                      \
            BY_BATCH(avx2_row, type)                     \
        } else {                                         \
            mask = NULL;                                 \
            BY_BATCH(avx2_row, type)                     \
        }                                                \
    }
AVX2_ROWS(avx2_bf16, BF16)
AVX2_ROWS(avx2_fp16, FP16)
AVX2_ROWS(avx2_fp32, FP32)

/* ---- AVX-512: 16 weights of 32 bits, or 32 of 16 bits, at a time
 *
 * `expand` from memory is microcode on AMD's processors, many times as slow as a load and an `expand` of a register;
 * compilers fold the two into one unless the register is pinned.
 */

INLINE TARGET_AVX512 __m512i loaded(const uint8_t *p) {
    __m512i v = _mm512_loadu_si512(p);
    __asm__("" : "+v"(v));
    return v;
}

INLINE TARGET_AVX512 __m512i expand16(uint32_t bits, int masked, const uint8_t *p) {
    __asm__("" : "+r"(bits)); /* or halves of a word are shifted in mask registers, which takes longer */
    return masked ? _mm512_maskz_expand_epi16(bits, loaded(p)) : _mm512_loadu_si512(p);
}

/* Half of 32 weights as float32: of float16 the lower or upper ones, of bfloat16 the even or odd ones (see `paired`). */
INLINE TARGET_AVX512 __m512 half16(__m512i v, int second, int type) {
    if (type == FP16) return _mm512_cvtph_ps(second ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v));
    return _mm512_castsi512_ps(second ? _mm512_and_si512(v, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(v, 16));
}

INLINE TARGET_AVX512 void avx512_row(ROW_ARGUMENTS, int type) {
    int size = size_of(type), chains = 4;
    uint8_t tail[64 * 4];
    __m512 acc[16];
    for (int i = 0; i < batch * chains; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 64 * size, columns, size);
        ahead(values, mask != NULL, size);
        const uint8_t *part = x + word * 256;
        __m512 v[4];
        if (type == FP32) {
            for (int step = 0; step < 4; step++, bits >>= 16) {
                v[step] = mask ? _mm512_maskz_expand_ps((__mmask16)bits, _mm512_castsi512_ps(loaded(values)))
                               : _mm512_loadu_ps(values);
                values += (mask ? __builtin_popcount(bits & 0xffff) : 16) * 4;
            }
        } else {
            for (int step = 0; step < 4; step += 2, bits >>= 32) {
                __m512i both = expand16((uint32_t)bits, mask != NULL, values);
                values += (mask ? __builtin_popcount((uint32_t)bits) : 32) * 2;
                v[step] = half16(both, 0, type);
                v[step + 1] = half16(both, 1, type);
            }
        }
        for (int m = 0; m < batch; m++) {
            for (int step = 0; step < 4; step++) {
                __m512 *a = &acc[m * chains + step % chains];
                *a = _mm512_fmadd_ps(v[step], _mm512_loadu_ps(part + m * stride * 4 + step * 64), *a);
            }
        }
    }
    for (int m = 0; m < batch; m++) {
        __m512 s = acc[m * chains];
        for (int i = 1; i < chains; i++) s = _mm512_add_ps(s, acc[m * chains + i]);
        sums[m] = _mm512_reduce_add_ps(s);
    }
}

#define AVX512_ROWS(name, target, row, ...)            \
    static target void name(ROW_ARGUMENTS) {           \
        if (mask) {                                    \
            BY_BATCH(row, ##__VA_ARGS__)               \
        } else {                                       \
            mask = NULL;                               \
            BY_BATCH(row, ##__VA_ARGS__)               \
        }                                              \
    }
AVX512_ROWS(avx512_bf16, TARGET_AVX512, avx512_row, BF16)
AVX512_ROWS(avx512_fp16, TARGET_AVX512, avx512_row, FP16)
AVX512_ROWS(avx512_fp32, TARGET_AVX512, avx512_row, FP32)

/* ---- AVX-512 BF16: both sides bfloat16, pairs of products summed in float32 */

INLINE TARGET_BF16 void dpbf16_row(ROW_ARGUMENTS) {
    int chains = 2;
    uint8_t tail[64 * 2];
    __m512 acc[16];
    for (int i = 0; i < batch * chains; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 128, columns, 2);
        const uint8_t *part = x + word * 128;
        int kept = mask ? __builtin_popcount((uint32_t)bits) : 32;
        __m512i low = expand16((uint32_t)bits, mask != NULL, values);
        __m512i high = expand16((uint32_t)(bits >> 32), mask != NULL, values + kept * 2);
        values += (mask ? __builtin_popcountll(bits) : 64) * 2;
        ahead(values, mask != NULL, 2);
        for (int m = 0; m < batch; m++) {
            __m512i first = _mm512_loadu_si512(part + m * stride * 2);
            __m512i second = _mm512_loadu_si512(part + m * stride * 2 + 64);
            __m512 *a = &acc[m * chains], *b = &acc[m * chains + 1];
            *a = _mm512_dpbf16_ps(*a, (__m512bh)low, (__m512bh)first);
            *b = _mm512_dpbf16_ps(*b, (__m512bh)high, (__m512bh)second);
        }
    }
    for (int m = 0; m < batch; m++) {
        sums[m] = _mm512_reduce_add_ps(_mm512_add_ps(acc[2 * m], acc[2 * m + 1]));
    }
}

AVX512_ROWS(dpbf16, TARGET_BF16, dpbf16_row)

#elif defined(__aarch64__)

/* ---- NEON: 8 weights at a time */

INLINE float32x4_t neon_half(uint16x8_t v, int upper, int type) {
    uint16x4_t h = upper ? vget_high_u16(v) : vget_low_u16(v);
    if (type == FP16) return vcvt_f32_f16(vreinterpret_f16_u16(h));
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}

INLINE uint8x16_t neon_load(const uint8_t *p) { return vld1q_u8(p); }

/* Four lanes of 32 bits named by the low half of a byte: byte numbers from the table for 16-bit lanes of 0b00bbddcc. */
INLINE float32x4_t neon_four(unsigned nibble, int masked, const uint8_t *p) {
    uint8x16_t v = neon_load(p);
    if (masked) {
        unsigned pairs = (nibble & 1) * 3 | (nibble & 2) * 6 | (nibble & 4) * 12 | (nibble & 8) * 24;
        v = vqtbl1q_u8(v, vld1q_u8(lanes16[pairs]));
    }
    return vreinterpretq_f32_u8(v);
}

/* The 8 weights that a byte of the mask names, into two registers; where the next ones begin. */
INLINE const uint8_t *neon_pair(unsigned byte, int masked, const uint8_t *values, int type, float32x4_t *v) {
    if (type == FP32) {
        v[0] = neon_four(byte & 15, masked, values);
        values += (masked ? __builtin_popcount(byte & 15) : 4) * 4;
        v[1] = neon_four(byte >> 4, masked, values);
        return values + (masked ? __builtin_popcount(byte >> 4) : 4) * 4;
    }
    uint8x16_t both = neon_load(values);
    if (masked) both = vqtbl1q_u8(both, vld1q_u8(lanes16[byte]));
    v[0] = neon_half(vreinterpretq_u16_u8(both), 0, type);
    v[1] = neon_half(vreinterpretq_u16_u8(both), 1, type);
    return values + (masked ? __builtin_popcount(byte) : 8) * 2;
}

INLINE void neon_row(ROW_ARGUMENTS, int type) {
    int size = size_of(type);
    uint8_t tail[64 * 4];
    float32x4_t acc[16];
    for (int i = 0; i < batch * 2; i++) acc[i] = vdupq_n_f32(0);
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 64 * size, columns, size);
        ahead(values, mask != NULL, size);
        const uint8_t *part = x + word * 256;
        for (int step = 0; step < 8; step++, bits >>= 8) {
            float32x4_t v[2];
            values = neon_pair(bits & 255, mask != NULL, values, type, v);
            for (int m = 0; m < batch; m++) {
                const uint8_t *at = part + m * stride * 4 + step * 32;
                acc[2 * m] = vfmaq_f32(acc[2 * m], v[0], vreinterpretq_f32_u8(vld1q_u8(at)));
                acc[2 * m + 1] = vfmaq_f32(acc[2 * m + 1], v[1], vreinterpretq_f32_u8(vld1q_u8(at + 16)));
            }
        }
    }
    for (int m = 0; m < batch; m++) sums[m] = vaddvq_f32(vaddq_f32(acc[2 * m], acc[2 * m + 1]));
}

#define NEON_ROWS(name, type)                  \
    static void name(ROW_ARGUMENTS) {          \
        if (mask) {                            \
            BY_BATCH(neon_row, type)           \
        } else {                               \
            mask = NULL;                       \
            BY_BATCH(neon_row, type)           \
        }                                      \
    }
NEON_ROWS(neon_bf16, BF16)
NEON_ROWS(neon_fp16, FP16)
NEON_ROWS(neon_fp32, FP32)

#endif

/* ---------------------------------------------------------------- TILE rows of W times TILE rows of x
 *
 * `fill` writes a row of W in whole words, zeros in place, as x is: bfloat16 for `dpbf16`, float32 elsewhere. `tile` sums
 * the products of TILE such rows with TILE rows of x into sums[row of W][row of x].
 */
typedef void (*FillFunction)(const uint8_t *mask, const uint8_t *values, int64_t columns, uint8_t *out);
typedef void (*TileFunction)(
    const uint8_t *w, int64_t w_stride, const uint8_t *x, int64_t x_stride, int64_t words, float *sums);

static void portable_fill(const uint8_t *mask, const uint8_t *values, int64_t columns, uint8_t *out, int type) {
    int size = size_of(type);
    for (int64_t word = 0; word * 64 < columns; word++) {
        int64_t left = columns - word * 64;
        uint64_t bits = mask ? load64(mask + word * 8) : left < 64 ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
        for (int i = 0; i < 64; i++, bits >>= 1) {
            float v = bits & 1 ? number(values, type) : 0;
            values += (bits & 1) * size;
            memcpy(out + (word * 64 + i) * 4, &v, 4);
        }
    }
}
static void fill_bf16(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { portable_fill(m, v, c, o, BF16); }
static void fill_fp16(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { portable_fill(m, v, c, o, FP16); }
static void fill_fp32(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { portable_fill(m, v, c, o, FP32); }

static void portable_tile(
    const uint8_t *w, int64_t w_stride, const uint8_t *x, int64_t x_stride, int64_t words, float *sums) {
    for (int r = 0; r < TILE; r++) {
        for (int m = 0; m < TILE; m++) {
            float sum[8] = {0};
            for (int64_t column = 0; column < words * 64; column += 8) {
                for (int i = 0; i < 8; i++) {
                    sum[i] += float_of(load32(w + (r * w_stride + column + i) * 4))
                        * float_of(load32(x + (m * x_stride + column + i) * 4));
                }
            }
            sums[r * TILE + m] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        }
    }
}

#if defined(__x86_64__)

INLINE TARGET_AVX2 void avx2_fill(const uint8_t *mask, const uint8_t *values, int64_t columns, uint8_t *out, int type) {
    int size = size_of(type);
    uint8_t tail[64 * 4];
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 64 * size, columns, size);
        ahead(values, mask != NULL, size);
        for (int step = 0; step < 8; step++, bits >>= 8) {
            __m256 v = avx2_weights(bits & 255, mask != NULL, values, type);
            values += (mask ? __builtin_popcount(bits & 255) : 8) * size;
            _mm256_storeu_ps((float *)(void *)(out + word * 256 + step * 32), v);
        }
    }
}

INLINE TARGET_AVX512 void avx512_fill(const uint8_t *mask, const uint8_t *values, int64_t columns, uint8_t *out, int type) {
    int size = size_of(type);
    uint8_t tail[64 * 4];
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 64 * size, columns, size);
        ahead(values, mask != NULL, size);
        for (int step = 0; step < 4; step++, bits >>= 16) {
            __m512 v;
            if (type == FP32) {
                v = _mm512_castsi512_ps(loaded(values));
                if (mask) v = _mm512_maskz_expand_ps((__mmask16)bits, v);
            } else {
                __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)values);
                __asm__("" : "+v"(h));
                if (mask) h = _mm256_maskz_expand_epi16((__mmask16)bits, h);
                v = type == FP16 ? _mm512_cvtph_ps(h)
                                 : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
            }
            values += (mask ? __builtin_popcount(bits & 0xffff) : 16) * size;
            _mm512_storeu_ps(out + word * 256 + step * 64, v);
        }
    }
}

static TARGET_AVX512 void narrow_fill(const uint8_t *mask, const uint8_t *values, int64_t columns, uint8_t *out) {
    uint8_t tail[64 * 2];
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 128, columns, 2);
        ahead(values, mask != NULL, 2);
        int kept = mask ? __builtin_popcount((uint32_t)bits) : 32;
        _mm512_storeu_si512(out + word * 128, expand16((uint32_t)bits, mask != NULL, values));
        __m512i high = expand16((uint32_t)(bits >> 32), mask != NULL, values + kept * 2);
        _mm512_storeu_si512(out + word * 128 + 64, high);
        values += (mask ? __builtin_popcountll(bits) : 64) * 2;
    }
}

#define FILLS(isa, target)                                                                      \
    static target void isa##_fill_bf16(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { \
        isa##_fill(m, v, c, o, BF16);                                                           \
    }                                                                                           \
    static target void isa##_fill_fp16(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { \
        isa##_fill(m, v, c, o, FP16);                                                           \
    }                                                                                           \
    static target void isa##_fill_fp32(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { \
        isa##_fill(m, v, c, o, FP32);                                                           \
    }
FILLS(avx2, TARGET_AVX2)
FILLS(avx512, TARGET_AVX512)

static TARGET_AVX2 void avx2_tile(
    const uint8_t *w, int64_t w_stride, const uint8_t *x, int64_t x_stride, int64_t words, float *sums) {
    for (int r = 0; r < TILE; r += 2) { /* 16 registers hold the sums of two rows */
        __m256 acc[2 * TILE];
        for (int i = 0; i < 2 * TILE; i++) acc[i] = _mm256_setzero_ps();
        for (int64_t at = 0; at < words * 256; at += 32) {
            __m256 first = _mm256_loadu_ps((const float *)(const void *)(w + r * w_stride * 4 + at));
            __m256 second = _mm256_loadu_ps((const float *)(const void *)(w + (r + 1) * w_stride * 4 + at));
            for (int m = 0; m < TILE; m++) {
                __m256 v = _mm256_loadu_ps((const float *)(const void *)(x + m * x_stride * 4 + at));
                acc[m] = _mm256_fmadd_ps(first, v, acc[m]);
                acc[TILE + m] = _mm256_fmadd_ps(second, v, acc[TILE + m]);
            }
        }
        for (int i = 0; i < 2 * TILE; i++) sums[r * TILE + i] = sum8(acc[i]);
    }
}

#define TILE_512(name, target, bytes, product)                                                                  \
    static target void name(                                                                                    \
        const uint8_t *w, int64_t w_stride, const uint8_t *x, int64_t x_stride, int64_t words, float *sums) {    \
        __m512 acc[TILE * TILE];                                                                                \
        for (int i = 0; i < TILE * TILE; i++) acc[i] = _mm512_setzero_ps();                                     \
        for (int64_t at = 0; at < words * 64 * bytes; at += 64) {                                               \
            __m512i row[TILE];                                                                                  \
            for (int r = 0; r < TILE; r++) row[r] = _mm512_loadu_si512(w + r * w_stride * bytes + at);          \
            for (int m = 0; m < TILE; m++) {                                                                    \
                __m512i v = _mm512_loadu_si512(x + m * x_stride * bytes + at);                                  \
                for (int r = 0; r < TILE; r++) acc[r * TILE + m] = product(acc[r * TILE + m], row[r], v);       \
            }                                                                                                   \
        }                                                                                                       \
        for (int i = 0; i < TILE * TILE; i++) sums[i] = _mm512_reduce_add_ps(acc[i]);                           \
    }
#define PRODUCT_FP32(sum, a, b) _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
#define PRODUCT_BF16(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
TILE_512(avx512_tile, TARGET_AVX512, 4, PRODUCT_FP32)
TILE_512(dpbf16_tile, TARGET_BF16, 2, PRODUCT_BF16)

#elif defined(__aarch64__)

INLINE void neon_fill(const uint8_t *mask, const uint8_t *values, int64_t columns, uint8_t *out, int type) {
    int size = size_of(type);
    uint8_t tail[64 * 4];
    for (int64_t word = 0; word * 64 < columns; word++) {
        uint64_t bits = mask ? load64(mask + word * 8) : 0;
        if (!mask && columns - word * 64 < 64) values = dense_tail(tail, values - word * 64 * size, columns, size);
        for (int step = 0; step < 8; step++, bits >>= 8) {
            float32x4_t v[2];
            values = neon_pair(bits & 255, mask != NULL, values, type, v);
            vst1q_u8(out + word * 256 + step * 32, vreinterpretq_u8_f32(v[0]));
            vst1q_u8(out + word * 256 + step * 32 + 16, vreinterpretq_u8_f32(v[1]));
        }
    }
}
static void neon_fill_bf16(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { neon_fill(m, v, c, o, BF16); }
static void neon_fill_fp16(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { neon_fill(m, v, c, o, FP16); }
static void neon_fill_fp32(const uint8_t *m, const uint8_t *v, int64_t c, uint8_t *o) { neon_fill(m, v, c, o, FP32); }

static void neon_tile(
    const uint8_t *w, int64_t w_stride, const uint8_t *x, int64_t x_stride, int64_t words, float *sums) {
    float32x4_t acc[TILE * TILE];
    for (int i = 0; i < TILE * TILE; i++) acc[i] = vdupq_n_f32(0);
    for (int64_t at = 0; at < words * 256; at += 16) {
        float32x4_t row[TILE];
        for (int r = 0; r < TILE; r++) row[r] = vreinterpretq_f32_u8(vld1q_u8(w + r * w_stride * 4 + at));
        for (int m = 0; m < TILE; m++) {
            float32x4_t v = vreinterpretq_f32_u8(vld1q_u8(x + m * x_stride * 4 + at));
            for (int r = 0; r < TILE; r++) acc[r * TILE + m] = vfmaq_f32(acc[r * TILE + m], row[r], v);
        }
    }
    for (int i = 0; i < TILE * TILE; i++) sums[i] = vaddvq_f32(acc[i]);
}

#endif

/* ---------------------------------------------------------------- rows written out with their zeros */

typedef void (*ExpandFunction)(const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out);

static void portable_expand(const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out) {
    memset(out, 0, (size_t)(columns * size));
    for (int64_t word = 0; word * 64 < columns; word++) {
        for (uint64_t bits = load64(mask + word * 8); bits; bits &= bits - 1, values += size) {
            memcpy(out + (word * 64 + __builtin_ctzll(bits)) * size, values, (size_t)size);
        }
    }
}

#if defined(__x86_64__)

static TARGET_AVX2 void avx2_expand(const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out) {
    int type = size == 4 ? FP32 : BF16;
    if (size != 2 && size != 4) {
        portable_expand(mask, values, columns, size, out);
        return;
    }
    for (int64_t column = 0; column < columns; column += 8) {
        unsigned byte = mask[column / 8];
        uint8_t part[32];
        uint8_t *to = columns - column < 8 ? part : out + column * size;
        if (type == FP32) {
            _mm256_storeu_ps((float *)(void *)to, avx2_weights(byte, 1, values, FP32));
        } else {
            __m128i v = _mm_loadu_si128((const __m128i *)(const void *)values);
            _mm_storeu_si128((__m128i *)(void *)to, _mm_shuffle_epi8(v, _mm_load_si128((const __m128i *)lanes16[byte])));
        }
        if (to == part) memcpy(out + column * size, part, (size_t)((columns - column) * size));
        values += __builtin_popcount(byte) * size;
    }
}

/* 64 columns of a row. `there` says which of them exist: all of them where it is a constant. */
INLINE TARGET_AVX512 const uint8_t *avx512_word(uint64_t bits, uint64_t there, const uint8_t *values, int size, uint8_t *out) {
    int lanes = 64 / size; /* in a register */
    for (int first = 0; first < 64; first += lanes, there >>= lanes & 63, out += 64) {
        uint64_t kept = lanes == 64 ? bits : bits >> first & (((uint64_t)1 << (lanes & 63)) - 1);
        __asm__("" : "+r"(kept));
        __m512i v = loaded(values);
        if (size == 1) _mm512_mask_storeu_epi8(out, there, _mm512_maskz_expand_epi8(kept, v));
        if (size == 2) _mm512_mask_storeu_epi16(out, (__mmask32)there, _mm512_maskz_expand_epi16((__mmask32)kept, v));
        if (size == 4) _mm512_mask_storeu_epi32(out, (__mmask16)there, _mm512_maskz_expand_epi32((__mmask16)kept, v));
        if (size == 8) _mm512_mask_storeu_epi64(out, (__mmask8)there, _mm512_maskz_expand_epi64((__mmask8)kept, v));
        values += __builtin_popcountll(kept) * size;
    }
    return values;
}

INLINE TARGET_AVX512 void avx512_words(const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out) {
    int64_t whole = columns / 64;
    for (int64_t word = 0; word < whole; word++) {
        values = avx512_word(load64(mask + word * 8), ~(uint64_t)0, values, size, out + word * 64 * size);
    }
    if (columns % 64) {
        uint64_t there = ((uint64_t)1 << columns % 64) - 1;
        avx512_word(load64(mask + whole * 8), there, values, size, out + whole * 64 * size);
    }
}

static TARGET_AVX512 void avx512_expand(const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out) {
    switch (size) {
    case 1: avx512_words(mask, values, columns, 1, out); break;
    case 2: avx512_words(mask, values, columns, 2, out); break;
    case 4: avx512_words(mask, values, columns, 4, out); break;
    case 8: avx512_words(mask, values, columns, 8, out); break;
    }
}

#elif defined(__aarch64__)

static void neon_expand(const uint8_t *mask, const uint8_t *values, int64_t columns, int size, uint8_t *out) {
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

static RowFunction row_function(int isa, int type, int narrow) {
    (void)narrow;
#if defined(__x86_64__)
    static const RowFunction avx2[] = {avx2_bf16, avx2_fp16, avx2_fp32};
    static const RowFunction avx512[] = {avx512_bf16, avx512_fp16, avx512_fp32};
    if (narrow) return dpbf16;
    if (isa >= AVX512) return avx512[type];
    if (isa == AVX2) return avx2[type];
#elif defined(__aarch64__)
    static const RowFunction neon[] = {neon_bf16, neon_fp16, neon_fp32};
    if (isa == NEON) return neon[type];
#endif
    static const RowFunction portable[] = {portable_bf16, portable_fp16, portable_fp32};
    return portable[type];
}

static FillFunction fill_function(int isa, int type, int narrow) {
    (void)narrow;
#if defined(__x86_64__)
    static const FillFunction avx2[] = {avx2_fill_bf16, avx2_fill_fp16, avx2_fill_fp32};
    static const FillFunction avx512[] = {avx512_fill_bf16, avx512_fill_fp16, avx512_fill_fp32};
    if (narrow) return narrow_fill;
    if (isa >= AVX512) return avx512[type];
    if (isa == AVX2) return avx2[type];
#elif defined(__aarch64__)
    static const FillFunction neon[] = {neon_fill_bf16, neon_fill_fp16, neon_fill_fp32};
    if (isa == NEON) return neon[type];
#endif
    static const FillFunction portable[] = {fill_bf16, fill_fp16, fill_fp32};
    return portable[type];
}

static TileFunction tile_function(int isa, int narrow) {
    (void)narrow;
#if defined(__x86_64__)
    if (narrow) return dpbf16_tile;
    if (isa >= AVX512) return avx512_tile;
    if (isa == AVX2) return avx2_tile;
#elif defined(__aarch64__)
    if (isa == NEON) return neon_tile;
#endif
    return portable_tile;
}

static ExpandFunction expand_function(int isa) {
#if defined(__x86_64__)
    if (isa >= AVX512) return avx512_expand;
    if (isa == AVX2) return avx2_expand;
#elif defined(__aarch64__)
    if (isa == NEON) return neon_expand;
#endif
    return portable_expand;
}

/* ---------------------------------------------------------------- threads */

/* The first row of thread `part` of `parts`: rows are shared out by the values they hold, not by their number. */
static int64_t first_row(const Matrix *w, int64_t start, int64_t stop, int part, int parts) {
    if (part == 0) return start;
    if (part == parts) return stop;
    if (!w->bitmask) return start + (stop - start) * part / parts;
    int64_t from = offset_of(w, start), wanted = from + (offset_of(w, stop) - from) * part / parts;
    int64_t low = start, high = stop;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (offset_of(w, middle) < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* How the functions above read x. */
typedef struct {
    int narrow, paired;
} Form;

static Form form_of(const Matrix *w, const Product *p, int isa) {
    int narrow = isa == AVX512_BF16 && w->value_type == BF16 && p->type == BF16;
    Form form = {narrow, !narrow && isa >= AVX512 && w->value_type == BF16 && p->batch <= FEW};
    return form;
}

/* x in that form, `batch` rows of whole words, zeros where there is no x; to be freed. */
static uint8_t *formed(const Product *p, int64_t columns, int64_t words, int64_t batch, Form form) {
    int size = form.narrow ? 2 : 4;
    uint8_t *out = malloc((size_t)(batch * words * 64 * size) + 64);
    if (!out) return NULL;
    for (int64_t m = 0; m < batch; m++) {
        uint8_t *to = out + m * words * 64 * size;
        const uint8_t *from = p->x + m * p->x_stride * size_of(p->type);
        int64_t filled = m < p->batch ? columns : 0;
        memset(to + filled / 64 * 64 * size, 0, (size_t)((words - filled / 64) * 64 * size));
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
    return out;
}

static void put_sum(const Product *p, int64_t row, int64_t m, float sum) {
    if (p->bias) sum += number(p->bias + row * size_of(p->bias_type), p->bias_type);
    put(p->y + (m * p->y_stride + row) * size_of(p->type), p->type, sum);
}

static void few_rows(
    const Matrix *w, const Product *p, const uint8_t *x, int64_t stride, RowFunction row_sums, int64_t start, int64_t stop) {
    int64_t mask_bytes = words_of(w) * 8;
    int size = size_of(w->value_type);
    float sums[FEW];
    for (int64_t row = start; row < stop; row++) {
        const uint8_t *mask = w->bitmask ? w->bitmask + row * mask_bytes : NULL;
        int64_t first = mask ? offset_of(w, row) : row * w->columns;
        row_sums(mask, w->values + first * size, x, stride, w->columns, (int)p->batch, sums);
        for (int64_t m = 0; m < p->batch; m++) put_sum(p, row, m, sums[m]);
    }
}

/* `buffer` has room for TILE rows of W. */
static void many_rows(
    const Matrix *w, const Product *p, const uint8_t *x, int64_t stride, int x_size, FillFunction fill, TileFunction tile,
    uint8_t *buffer, int64_t start, int64_t stop) {
    int64_t words = words_of(w), row_bytes = words * 64 * x_size;
    int size = size_of(w->value_type);
    float sums[TILE * TILE];
    for (int64_t row = start; row < stop; row += TILE) {
        int rows = stop - row < TILE ? (int)(stop - row) : TILE;
        for (int r = 0; r < rows; r++) {
            const uint8_t *mask = w->bitmask ? w->bitmask + (row + r) * words * 8 : NULL;
            int64_t first = mask ? offset_of(w, row + r) : (row + r) * w->columns;
            fill(mask, w->values + first * size, w->columns, buffer + r * row_bytes);
        }
        for (int64_t m = 0; m < p->batch; m += TILE) {
            tile(buffer, words * 64, x + m * stride * x_size, stride, words, sums);
            for (int r = 0; r < rows; r++) {
                for (int i = 0; i < TILE && m + i < p->batch; i++) put_sum(p, row + r, m + i, sums[r * TILE + i]);
            }
        }
    }
}

/* y = x W^T + bias, on at most `threads` threads. */
int zp_matmul(const Matrix *w, const Product *p, int isa, int threads) {
    if (isa < 0 || isa >= ISAS || !zp_supports(isa) || w->value_type < BF16 || w->value_type > FP32 || p->type < BF16
        || p->type > FP32) {
        return UNSUPPORTED;
    }
    Form form = form_of(w, p, isa);
    int many = p->batch > FEW, failed = 0;
    int64_t words = words_of(w), stride = p->x_stride, batch = many ? (p->batch + TILE - 1) / TILE * TILE : p->batch;
    const uint8_t *x = p->x;
    uint8_t *owned = NULL;
    if (w->columns % 64 || batch != p->batch || form.paired || (!form.narrow && p->type != FP32)) {
        x = owned = formed(p, w->columns, words, batch, form);
        if (!owned) return NO_MEMORY;
        stride = words * 64;
    }
    RowFunction row_sums = row_function(isa, w->value_type, form.narrow);
    FillFunction fill = fill_function(isa, w->value_type, form.narrow);
    TileFunction tile = tile_function(isa, form.narrow);
    int x_size = form.narrow ? 2 : 4;
    (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int part = 0, parts = 1;
#ifdef _OPENMP
        part = omp_get_thread_num();
        parts = omp_get_num_threads();
#endif
        int64_t start = first_row(w, 0, w->rows, part, parts), stop = first_row(w, 0, w->rows, part + 1, parts);
        if (!many) {
            few_rows(w, p, x, stride, row_sums, start, stop);
        } else {
            uint8_t *buffer = calloc((size_t)(TILE * words * 64 * x_size) + 64, 1);
            if (buffer) {
                many_rows(w, p, x, stride, x_size, fill, tile, buffer, start, stop);
                free(buffer);
            } else {
#pragma omp atomic write
                failed = 1;
            }
        }
    }
    free(owned);
    return failed ? NO_MEMORY : OK;
}

/* Write rows [start, stop) of W to `out`, (stop - start, columns) values of `size` bytes, zeros in place. */
int zp_expand(const Matrix *w, int64_t start, int64_t stop, int size, uint8_t *out, int isa, int threads) {
    if (isa < 0 || isa >= ISAS || !zp_supports(isa) || !w->bitmask || (size != 1 && size != 2 && size != 4 && size != 8)) {
        return UNSUPPORTED;
    }
    ExpandFunction expand = expand_function(isa);
    int64_t mask_bytes = words_of(w) * 8;
    (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int part = 0, parts = 1;
#ifdef _OPENMP
        part = omp_get_thread_num();
        parts = omp_get_num_threads();
#endif
        int64_t end = first_row(w, start, stop, part + 1, parts);
        for (int64_t row = first_row(w, start, stop, part, parts); row < end; row++) {
            expand(w->bitmask + row * mask_bytes, w->values + offset_of(w, row) * size, w->columns, size,
                   out + (row - start) * w->columns * size);
        }
    }
    return OK;
}
