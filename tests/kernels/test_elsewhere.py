"""NEON under an emulator, and every instruction set under AddressSanitizer and UBSan."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from kernel_cases import CODES, ISAS, coded, random_weight, within_rounding
from torch import Tensor

from zpruner.kernels import Layout, Parts
from zpruner.kernels.expand import unpack_bits
from zpruner.kernels.library import VALUE_TYPES, Isa
from zpruner.kernels.parts import starts_of
from zpruner.packed.encode import parts_of

DRIVER = Path(__file__).with_name("driver.c")
SHAPES = ((1, 1), (3, 64), (5, 131), (2, 200), (4, 63), (0, 70), (2, 0))
BATCHES = (0, 1, 2, 3, 5, 8, 13, 16, 33)


def compile_driver(output: Path, compiler: str, *flags: str) -> Path:
    subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, DRIVER, "-o", output], check=True
    )
    return output


def bytes_of(tensor: Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def matrices(isa: Isa, dtype: torch.dtype) -> Iterator[tuple[Layout, Parts, Tensor, Tensor | None]]:
    """Layout, parts, weights, and where each row's scales begin."""
    for number, (rows, columns) in enumerate(SHAPES):
        for share in (0.5, 1.0, None):
            weight = random_weight(rows, columns, share or 0.0, dtype)
            layout = Layout(rows, columns, dtype, share is not None)
            yield layout, Parts(weight) if share is None else parts_of(weight, weight != 0), weight, None
            codes, scale_dtype = CODES[(number + isa) % len(CODES)], (torch.float32, torch.float16, torch.bfloat16)
            layout, parts, weight = coded(rows, columns, share, codes, dtype, scale_dtype[number % 3])
            bits = torch.ones(rows, columns) if parts.bitmask is None else unpack_bits(parts.bitmask, columns)
            yield layout, parts, weight, starts_of(layout.scales(bits.sum(dim=1, dtype=torch.int64)))


def compare(command: list[str], isas: Iterable[Isa], threads: int) -> None:
    """Run every case through the driver, and compare with float64."""
    cases, expected = [], []
    for isa, dtype in product(isas, VALUE_TYPES):
        for number, (layout, parts, weight, groups) in enumerate(matrices(isa, dtype)):
            rows, columns = weight.shape
            for batch, x_dtype in ((BATCHES[(number + isa) % 9], dtype), (BATCHES[(2 * number) % 9], torch.float32)):
                x, bias = torch.randn(batch, columns).to(x_dtype), torch.randn(rows).to(x_dtype)
                offsets = parts.offsets if x_dtype is dtype or parts.offsets is None else parts.offsets.long()
                head = (
                    *(isa, rows, columns, VALUE_TYPES[dtype], batch, VALUE_TYPES[x_dtype]),
                    *(0 if offsets is None else offsets.element_size(), threads),
                    *((layout.codes.bits, layout.codes.group) if layout.codes else (0, 0)),
                    0 if parts.scales is None else VALUE_TYPES[parts.scales.dtype],
                    *(len(bytes_of(parts.values)), len(bytes_of(parts.scales))),
                )
                arrays = (parts.bitmask, parts.values, offsets, parts.scales, groups, x, bias)
                cases.append(struct.pack("<13q", *head) + b"".join(map(bytes_of, arrays)))
                expected.append((x, weight, bias))
    done = subprocess.run(command, input=b"".join(cases), capture_output=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    rest = done.stdout
    for x, weight, bias in expected:
        size = x.shape[0] * weight.shape[0] * x.element_size()
        y = torch.frombuffer(bytearray(rest[:size] or b"\0\0\0\0"), dtype=x.dtype)[: x.shape[0] * weight.shape[0]]
        assert within_rounding(y.view(x.shape[0], weight.shape[0]), x, weight, bias)
        rest = rest[size:]
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
