/* Shuffles that put 8 values where a byte of the mask says: for instruction sets without `expand`. */
#pragma once

#include "matrix.h"

/* For lanes of 16 bits: pairs of byte numbers, 255 for a zero. */
static uint8_t lanes16[256][16] __attribute__((aligned(16)));
/* For lanes of 32 bits: lane numbers; 0 where the lane is cleared afterwards. */
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
