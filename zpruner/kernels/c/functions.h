/* The functions of an instruction set by type, the type and the number of rows of x constants in each. To be used where
 * ISA and TARGET, and the functions ISA(row), ISA(fill), ISA(tile), ISA(expand) and ISA(decode) are defined; STREAM
 * is NULL or a function, too. */
#pragma once

#define ROW_FUNCTION(type)                                                                    \
    static TARGET void ISA(row_##type)(ROW_ARGUMENTS) {                                       \
        if (mask && batch == 1) {                                                             \
            ISA(row)(mask, values, ahead, x, stride, columns, 1, sums, type);                 \
        } else if (mask) {                                                                    \
            ISA(row)(mask, values, ahead, x, stride, columns, 2, sums, type);                 \
        } else if (batch == 1) {                                                              \
            ISA(row)(NULL, values, ahead, x, stride, columns, 1, sums, type);                 \
        } else {                                                                              \
            ISA(row)(NULL, values, ahead, x, stride, columns, 2, sums, type);                 \
        }                                                                                     \
    }

#define FILL_FUNCTION(type)                                           \
    static TARGET void ISA(fill_##type)(FILL_ARGUMENTS) {             \
        if (mask) ISA(fill)(mask, values, ahead, columns, out, type); \
        else ISA(fill)(NULL, values, ahead, columns, out, type);      \
    }

#define DECODE_FUNCTIONS(type)                                                                            \
    static TARGET void ISA(decode8_##type)(DECODE_ARGUMENTS) { ISA(decode)(c, out, 8, type); }            \
    static TARGET void ISA(decode4_##type)(DECODE_ARGUMENTS) { ISA(decode)(c, out, 4, type); }

#define FUNCTIONS_OF(type) ROW_FUNCTION(type) FILL_FUNCTION(type) DECODE_FUNCTIONS(type)

#define ALL_FUNCTIONS                                                  \
    FUNCTIONS_OF(BF16)                                                 \
    FUNCTIONS_OF(FP16)                                                 \
    FUNCTIONS_OF(FP32)                                                 \
    static const Functions ISA(functions) = {                          \
        {ISA(row_BF16), ISA(row_FP16), ISA(row_FP32)},                 \
        {ISA(fill_BF16), ISA(fill_FP16), ISA(fill_FP32)},              \
        ISA(tile),                                                     \
        ISA(expand),                                                   \
        {ISA(decode8_BF16), ISA(decode8_FP16), ISA(decode8_FP32)},     \
        {ISA(decode4_BF16), ISA(decode4_FP16), ISA(decode4_FP32)},     \
        STREAM,                                                        \
    };
