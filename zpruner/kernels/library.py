"""The C library as Python sees it: its two structures, and its functions."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path

import torch

ABI = 2
VALUE_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""Number formats that are multiplied by the kernels; others are expanded."""
KERNEL_ROWS = 32
"""Rows of x up to which a kernel multiplies; more of them are multiplied by torch, with the weights expanded."""
LARGE_BYTES, LARGE_KERNEL_ROWS = 8 << 20, 64
"""The same for weights of so many bytes when expanded: caches do not hold them, so that expanding takes longer."""


class Isa(IntEnum):
    """Instruction sets, in the numbers of `c/matrix.h`; a later one of a machine's is the faster."""

    PORTABLE = 0
    NEON = 1
    AVX2 = 2
    AVX512 = 3
    AVX512_BF16 = 4


class MatrixStruct(ctypes.Structure):
    """`Matrix` of `c/matrix.h`."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bitmask", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("value_type", ctypes.c_int32),
        ("offset_bytes", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class ProductStruct(ctypes.Structure):
    """`Product` of `c/matrix.h`."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("y_stride", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
    )


def open_library(file: Path) -> ctypes.CDLL:
    """Return the library with its functions' types set.

    torch is imported before: its OpenMP runtime goes by the name that the library asks for, so that both share one
    pool of threads.

    Raises:
        OSError: not a library of this machine, or of another version.
    """
    library = ctypes.CDLL(str(file))
    library.zp_abi.argtypes = ()
    if library.zp_abi() != ABI:
        raise OSError(f"{file} is of version {library.zp_abi()}, not {ABI}")
    library.zp_supports.argtypes = (ctypes.c_int,)
    library.zp_openmp.argtypes = ()
    structure, product = ctypes.POINTER(MatrixStruct), ctypes.POINTER(ProductStruct)
    library.zp_matmul.argtypes = (structure, product, ctypes.c_int, ctypes.c_int)
    library.zp_expand.argtypes = (
        structure,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_int,
    )
    return library
