"""NEON under an emulator, and every instruction set under AddressSanitizer and UBSan."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
import torch
from kernel_cases import ISAS, random_weight, within_rounding
from torch import Tensor

from zpruner.kernels.library import VALUE_TYPES, Isa
from zpruner.packed.encode import bitmask_of, offsets_of, values_of

DRIVER = Path(__file__).with_name("driver.c")
SHAPES = ((1, 1), (3, 64), (5, 131), (2, 200), (4, 63), (0, 70), (2, 0))
BATCHES = (0, 1, 2, 3, 5, 8, 13, 16, 33)


def compile_driver(output: Path, compiler: str, *flags: str) -> Path:
    subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, DRIVER, "-o", output], check=True
    )
    return output


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def compare(command: list[str], isas: Iterable[Isa], threads: int) -> None:
    """Run every case through the driver, and compare with float64."""
    cases, expected = [], []
    for isa, (rows, columns), dtype, share in product(isas, SHAPES, VALUE_TYPES, (0.5, 1.0, None)):
        weight = random_weight(rows, columns, share or 0.0, dtype)
        keep = weight != 0
        for batch, wide in ((BATCHES[(rows * columns + isa) % 9], False), (BATCHES[(columns + isa) % 9], True)):
            x_dtype, long = torch.float32 if wide else dtype, wide
            x, bias = torch.randn(batch, columns).to(x_dtype), torch.randn(rows).to(x_dtype)
            kept = -1 if share is None else int(keep.sum())
            offsets = offsets_of(keep).to(torch.int64 if long else torch.int32)
            head = (
                isa,
                rows,
                columns,
                VALUE_TYPES[dtype],
                kept,
                batch,
                VALUE_TYPES[x_dtype],
                8 if long else 4,
                threads,
            )
            packed = (bitmask_of(keep), values_of(weight, keep), offsets)
            parts = (weight,) if share is None else packed
            cases.append(struct.pack("<9q", *head) + b"".join(map(bytes_of, (*parts, x, bias))))
            expected.append((x, weight, bias, share is not None))
    done = subprocess.run(command, input=b"".join(cases), capture_output=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    rest = done.stdout
    for x, weight, bias, sparse in expected:
        size = x.shape[0] * weight.shape[0] * x.element_size()
        y = torch.frombuffer(bytearray(rest[:size] or b"\0\0\0\0"), dtype=x.dtype)[: x.shape[0] * weight.shape[0]]
        assert within_rounding(y.view(x.shape[0], weight.shape[0]), x, weight, bias)
        rest = rest[size:]
        if sparse:
            whole = bytes_of(weight)
            assert rest[: len(whole)] == whole
            rest = rest[len(whole) :]
    assert not rest


def test_neon_under_an_emulator(tmp_path: Path) -> None:
    compiler, emulator = "aarch64-linux-gnu-gcc", shutil.which("qemu-aarch64")
    if shutil.which(compiler) is None or emulator is None:
        pytest.skip("needs `apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user`")
    driver = compile_driver(tmp_path / "driver", compiler, "-static", "-Wno-unknown-pragmas")
    compare([emulator, str(driver)], (Isa.NEON, Isa.PORTABLE), 1)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_sanitizers_find_nothing(sanitizer: str, tmp_path: Path) -> None:
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-fopenmp")
    compare([str(compile_driver(tmp_path / "driver", "gcc", *flags))], ISAS, 2)
