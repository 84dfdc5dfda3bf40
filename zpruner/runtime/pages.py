"""Memory in pages of 2 MB, where the system has them (Linux).

A product with one row of x reads every weight once: with pages of 4 kB, which a mapped file has, a quarter of the time
goes into looking up where they lie.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/maps")
_REGION = 64 << 20
"""Bytes of tensors that share a mapping, so that few pages are left half empty and layers can still be freed."""
_ALIGNMENT = 64
_PIECE = 4 << 20
"""Bytes copied at a time."""
_DONTNEED = 4  # MADV_DONTNEED of Linux


def huge_pages() -> bool:
    """Return whether the system gives huge pages to those who ask."""
    return sys.platform == "linux" and _SETTING.is_file() and "[never]" not in _SETTING.read_text()


def empty(size: int) -> Tensor:
    """Return uint8 (size,), zeros or anything else, in huge pages where there are any."""
    return (
        torch.frombuffer(_region(size), dtype=torch.uint8)
        if size and huge_pages()
        else torch.empty(size, dtype=torch.uint8)
    )


def copied(tensor: Tensor) -> Tensor:
    """Return a contiguous copy of a tensor on the CPU, in huge pages where there are any."""
    return empty(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)


def move(tensors: Iterable[Tensor], files: Iterable[Path]) -> None:
    """Copy what is mapped from `files` into huge pages, tensor by tensor, and let go of the files' pages.

    Tensors that share memory still do. Without huge pages nothing is moved.

    Args:
        tensors: changed in place; those that lie elsewhere stay as they are.
        files: as they were opened.
    """
    if not huge_pages():
        return
    ranges = _mapped(files)
    found: dict[tuple[int, int], list[Tensor]] = {}
    for tensor in tensors:
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if tensor.nbytes and tensor.is_contiguous() and any(low <= start and end <= high for low, high in ranges):
            found.setdefault((start, end), []).append(tensor)
    group: list[list[Tensor]] = []
    for alike in found.values():
        if group and sum(_room(same[0]) for same in (*group, alike)) > _REGION:
            _move(group)
            group = []
        group.append(alike)
    _move(group)


def _move(group: list[list[Tensor]]) -> None:
    """Copy tensors into one region; those of a list share their memory."""
    if not group:
        return
    region, at = _region(sum(_room(alike[0]) for alike in group)), 0
    for alike in group:
        before = alike[0].data
        made = torch.frombuffer(region, dtype=before.dtype, count=before.numel(), offset=at).view(before.shape)
        _take_over(made, before)
        at += _room(before)
        for tensor in alike:
            tensor.data = made


def _take_over(made: Tensor, mapped: Tensor) -> None:
    """Copy what is mapped from a file and let go of it piece by piece: no tensor is in memory twice."""
    to, start = made.view(-1).view(torch.uint8), mapped.view(-1).view(torch.uint8)
    for one, other in zip(to.split(_PIECE), start.split(_PIECE), strict=True):
        one.copy_(other)
        _let_go(other)


def _region(size: int) -> mmap.mmap:
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    return region


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _mapped(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Return the addresses at which this process has mapped any of `files`."""
    wanted = {str(file.resolve()) for file in files}
    found = []
    for line in _MAPS.read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name in wanted:
            low, high = addresses.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found


def _let_go(mapped: Tensor) -> None:
    """Drop the whole pages of a tensor that is mapped from a file: nobody reads them any more."""
    page = mmap.PAGESIZE
    start = -(-mapped.data_ptr() // page) * page
    size = (mapped.data_ptr() + mapped.nbytes) // page * page - start
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)
