/* What the machine has, and which functions that chooses. */
#pragma once

#include "portable.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512_bf16.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

static int supports(int isa) {
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
    return isa >= 0 && isa < ISAS && supports(isa) && (w->bits == 0 || integers);
}
