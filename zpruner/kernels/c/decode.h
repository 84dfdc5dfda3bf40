/* Integers times their scales, for one instruction set: included with these defined.
 *
 * SCALE: a type; ISA(scale)(p, scale_type): the number there; ISA(scaling)(number, bits, type): as the next two want it
 * ISA(bytes)(codes, scale, out, type), ISA(nibbles)(codes, half, scale, out, type): read 16 bytes and write 16 and twice
 * 16 numbers, the second half of them from number `half` on
 *
 * A product that is -0.0 becomes 0.0: 0 is added to it, and a float16 that was rounded to -0.0 is replaced. */

INLINE TARGET void ISA(block)(
    const uint8_t *codes, int half, SCALE scale, uint8_t *out, int bits, int type) {
    __builtin_prefetch(codes + AHEAD);
    if (bits == 4) {
        ISA(nibbles)(codes, half, scale, out, type);
    } else {
        ISA(bytes)(codes, scale, out, type);
        ISA(bytes)(codes + 16, scale, out + 16 * size_of(type), type);
    }
}

INLINE TARGET void ISA(decode)(DECODE_ARGUMENTS, int bits, int type) {
    const uint8_t *codes = c->codes, *scales = c->scales;
    const int64_t count = c->count, group = c->group ? c->group : count;
    const int scale_type = c->scale_type;
    int64_t at = 0, left = 0;
    SCALE scale = ISA(scaling)(0, bits, type);
    for (; at < count; at += BLOCK, left -= BLOCK) {
        if (left <= 0) {
            scale = ISA(scaling)(ISA(scale)(scales, scale_type), bits, type);
            scales += size_of(scale_type);
            left = group;
        }
        if (count - at < BLOCK) break;
        ISA(block)(codes + at * bits / 8, BLOCK / 2, scale, out + at * size_of(type), bits, type);
    }
    if (at < count) {
        ISA(block)(codes + at * bits / 8, (int)(count - at + 1) / 2, scale, out + at * size_of(type), bits, type);
    }
}
