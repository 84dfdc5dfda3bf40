"""How a process of ours manages its memory."""

from __future__ import annotations

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # names of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library reuse the memory of freed tensors of up to 32 MiB; to be called once, by a process's main.

    By default much of it goes back to the system and every new tensor's pages are cleared again, which took four
    fifths of the time of simple scores (5.5 against 1.0 ns per weight). Other C libraries than glibc are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)
