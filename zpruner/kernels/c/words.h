/* The loops over a row's words, for one instruction set: included with these defined.
 *
 * WEIGHTS, SUMS: types of a vector of weights and of one of sums; LANES numbers of X_SIZE bytes in a vector of x
 * STEPS * PER vectors of weights in a word; CHAINS of sums that do not wait for each other; TILE_ROWS at once
 * ISA(take)(bits, masked, values, type, v): the next PER vectors of weights, zeros in place; where the next ones begin
 * ISA(zero)(), ISA(times)(sum, weights, x), ISA(plus)(a, b), ISA(total)(sum), ISA(totals)(sums, out): of TILE of them
 * ISA(read)(p), ISA(write)(p, v) for weights and x; ISA(resumed)(p), ISA(keep)(p, sum) for sums
 */

/* The values of a word, which of them are kept, and where the next ones begin. */
#define WORD_BEGIN                                                                                    \
    for (int64_t word = 0; word * WORD < columns; word++) {                                           \
        uint64_t bits = mask ? load64(mask + word * 8) : 0;                                           \
        if (!mask && columns - word * WORD < WORD) {                                                  \
            values = dense_tail(tail, values - word * WORD * size, columns, size);                    \
        }                                                                                             \
        fetch(values, ahead, mask != NULL, size);                                                     \
        for (int step = 0; step < STEPS; step++, bits >>= WORD / STEPS) {                             \
            WEIGHTS v[PER];                                                                           \
            values = ISA(take)(bits, mask != NULL, values, type, v);
#define WORD_END \
        }        \
    }

INLINE TARGET void ISA(row)(ROW_ARGUMENTS, int type) {
    int size = size_of(type);
    uint8_t tail[WORD * 4];
    SUMS sum[FEW * CHAINS];
    for (int i = 0; i < batch * CHAINS; i++) sum[i] = ISA(zero)();
    WORD_BEGIN
        for (int m = 0; m < batch; m++) {
            for (int i = 0; i < PER; i++) {
                const uint8_t *part = x + (m * stride + word * WORD + (step * PER + i) * LANES) * X_SIZE;
                SUMS *to = &sum[m * CHAINS + (step * PER + i) % CHAINS];
                *to = ISA(times)(*to, v[i], ISA(read)(part));
            }
        }
    WORD_END
    for (int m = 0; m < batch; m++) {
        for (int i = 1; i < CHAINS; i++) sum[m * CHAINS] = ISA(plus)(sum[m * CHAINS], sum[m * CHAINS + i]);
        sums[m] = ISA(total)(sum[m * CHAINS]);
    }
}

INLINE TARGET void ISA(fill)(FILL_ARGUMENTS, int type) {
    int size = size_of(type);
    uint8_t tail[WORD * 4];
    WORD_BEGIN
        for (int i = 0; i < PER; i++) ISA(write)(out + (word * WORD + (step * PER + i) * LANES) * X_SIZE, v[i]);
    WORD_END
}

static TARGET void ISA(tile)(TILE_ARGUMENTS) {
    for (int first = 0; first < TILE; first += TILE_ROWS) {
        SUMS sum[TILE_ROWS * TILE];
        uint8_t *kept = state + first * TILE * sizeof(SUMS);
        for (int i = 0; i < TILE_ROWS * TILE; i++) sum[i] = begins ? ISA(zero)() : ISA(resumed)(kept + i * sizeof(SUMS));
        for (int64_t at = 0; at < words * WORD; at += LANES) {
            WEIGHTS row[TILE_ROWS];
            for (int r = 0; r < TILE_ROWS; r++) row[r] = ISA(read)(w + ((first + r) * w_stride + at) * X_SIZE);
            for (int m = 0; m < TILE; m++) {
                WEIGHTS v = ISA(read)(x + (m * x_stride + at) * X_SIZE);
                for (int r = 0; r < TILE_ROWS; r++) sum[r * TILE + m] = ISA(times)(sum[r * TILE + m], row[r], v);
            }
        }
        for (int i = 0; i < TILE_ROWS * TILE; i += TILE) {
            if (sums) ISA(totals)(sum + i, sums + first * TILE + i);
            else for (int j = i; j < i + TILE; j++) ISA(keep)(kept + j * sizeof(SUMS), sum[j]);
        }
    }
}

#undef WORD_BEGIN
#undef WORD_END
