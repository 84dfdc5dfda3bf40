"""Integers times scales: every instruction set against float64, and against the weights that they stand for."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import CODES, ISAS, SHAPES, coded, kernels_of, within_rounding

from zpruner.errors import ArtifactError
from zpruner.kernels import Codes, Kernels, Layout, PackedMatrix, Parts, check_packed
from zpruner.kernels.expand import expand_rows
from zpruner.kernels.integers import nibble_places, pack_nibbles
from zpruner.kernels.library import VALUE_TYPES, Isa

KINDS = tuple(product(CODES, (torch.float32, torch.bfloat16, torch.float16)))


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("dtype", VALUE_TYPES, ids=str)
def test_integers_are_multiplied_and_written_out_as_what_they_stand_for(isa: Isa, dtype: torch.dtype) -> None:
    for number, (rows, columns) in enumerate((*SHAPES, (3, 400), (2, 257))):
        for at, share in enumerate((None, 0.0, 0.5, 0.8, 1.0)):
            codes, scale_dtype = KINDS[(number * 5 + at + isa) % len(KINDS)]
            layout, parts, weight = coded(rows, columns, share, codes, dtype, scale_dtype)
            matrix = PackedMatrix(kernels_of(isa), "w", layout, parts)
            expected = weight.view(torch.int16 if dtype.itemsize == 2 else torch.int32)
            assert torch.equal(matrix.expanded(0, rows).view(expected.dtype), expected)
            assert torch.equal(matrix.expanded(rows // 3, rows // 2), weight[rows // 3 : rows // 2])
            assert torch.equal(expand_rows(layout, parts, 0, rows).view(expected.dtype), expected)
            for x_dtype, batch in ((dtype, 1), (torch.float32, 2), (dtype, 7)):
                x = torch.randn(batch, columns, generator=torch.Generator().manual_seed(1)).to(x_dtype)
                assert within_rounding(matrix.multiply(x), x, weight)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("codes", CODES, ids=lambda codes: f"{codes.bits} bits, {codes.group}")
def test_batches_of_1_to_33_rows(isa: Isa, codes: Codes) -> None:
    layout, parts, weight = coded(7, 200, 0.5, codes, torch.bfloat16, torch.bfloat16)
    matrix, bias = PackedMatrix(kernels_of(isa), "w", layout, parts), torch.randn(7).bfloat16()
    for batch in range(34):
        x = torch.randn(batch, 200).bfloat16()
        assert within_rounding(matrix.multiply(x, bias), x, weight, bias)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_integer_is_rounded_once_and_no_zero_is_negative(isa: Isa, dtype: torch.dtype) -> None:
    integers = torch.arange(-127, 128, dtype=torch.int8).repeat(60, 1)
    scales = torch.cat([torch.randn(58) / 50, torch.tensor([1e-10, -1e-10])])
    layout = Layout(60, 255, dtype, False, Codes(8, 0))
    padded = torch.cat([integers.flatten(), torch.zeros(64, dtype=torch.int8)])
    matrix = PackedMatrix(kernels_of(isa), "w", layout, Parts(padded, scales=scales))
    expected = (integers.float() * scales.unsqueeze(1)).to(dtype)
    found = matrix.expanded(0, 60)
    assert torch.equal(found, expected)
    assert not (found.view(torch.int16) == -(2**15)).any()


def test_without_a_compiler_torch_multiplies() -> None:
    for codes, scale_dtype in KINDS:
        layout, parts, weight = coded(5, 70, 0.5, codes, torch.bfloat16, scale_dtype)
        x = torch.randn(2, 70).bfloat16()
        matrix = PackedMatrix(Kernels(None, Isa.PORTABLE, "a test"), "w", layout, parts)
        assert torch.equal(matrix.multiply(x), torch.nn.functional.linear(x, weight))
        assert torch.equal(matrix.expanded(2, 5), weight[2:5])


def test_halves_of_bytes_are_those_of_the_description() -> None:
    counts = torch.tensor([0, 1, 35, 33, 64])
    place, high = nibble_places(counts)
    assert place.tolist() == [
        *[0],
        *[1 + i for i in range(16)] * 2,
        *[17, 18, 17],
        *[19 + i for i in range(16)] * 2,
        *[35],
        *[36 + i for i in range(16)] * 2,
        *[52 + i for i in range(16)] * 2,
    ]
    halves = [0] * 16 + [1] * 16
    assert high.int().tolist() == [0, *halves, 0, 0, 1, *halves, 0, *halves, *halves]
    packed = pack_nibbles(torch.tensor([-8, 7, 1, -1], dtype=torch.int8), torch.tensor([1, 3]))
    assert packed.tolist() == [0x08, 0xF7, 0x01]


def whole(codes: Codes) -> tuple[Layout, Parts]:
    layout, parts, _ = coded(5, 70, 0.5, codes, torch.bfloat16, torch.float32)
    return layout, parts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: {"values": p.values[:-1]}, "those of the mask and 64 zeros"),
        (lambda p: {"values": p.values.to(torch.int16)}, "w_values: got int16"),
        (lambda p: {"offsets": p.offsets + 1}, "a first offset of 1"),
        (lambda p: {"offsets": p.offsets * 2}, "offsets that give row 0"),
        (lambda p: {"bitmask": p.bitmask & 254}, "offsets that give row"),
        (lambda p: {"bitmask": None}, "got no bitmask"),
        (lambda p: {"scales": None}, "got no scales"),
        (lambda p: {"scales": p.scales[:-1]}, "w_scales: got float32"),
        (lambda p: {"scales": p.scales.double()}, "w_scales: got float64"),
        (lambda p: {"scales": p.scales * torch.inf}, "a scale that is no normal number"),
        (lambda p: {"scales": p.scales * 1e-40}, "a scale that is no normal number"),
    ],
)
@pytest.mark.parametrize("codes", CODES, ids=lambda codes: f"{codes.bits} bits, {codes.group}")
def test_what_is_none_is_named(change: Any, said: str, codes: Codes) -> None:
    layout, parts = whole(codes)
    broken = Parts(**{**vars(parts), **change(parts)})
    with pytest.raises(ArtifactError) as error:
        check_packed("w", layout, broken)
    assert said in str(error.value)


@pytest.mark.parametrize("codes", [Codes(3, 0), Codes(8, 31), Codes(4, -32)])
def test_codes_of_no_kernel_are_refused(codes: Codes) -> None:
    layout, parts = whole(CODES[0])
    with pytest.raises(ArtifactError, match="8 or 4 bits, and groups of a multiple of 32 or 0"):
        check_packed("w", Layout(5, 70, layout.dtype, True, codes), parts)


@given(st.sampled_from(CODES), st.sampled_from(["bitmask", "values", "offsets", "scales"]), st.data())
def test_an_altered_byte_is_harmless_or_refused(codes: Codes, part: str, data: st.DataObject) -> None:
    layout, parts = whole(codes)
    broken = Parts(**{name: found.clone() for name, found in vars(parts).items()})
    raw = vars(broken)[part].view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, raw.numel() - 1))] = data.draw(st.integers(0, 255))
    try:
        matrix = PackedMatrix(kernels_of(ISAS[-1]), "w", layout, broken)
    except ArtifactError:
        return
    # Bits that moved within a row, or other numbers: what a checksum finds and no reader can trip over.
    assert torch.equal(vars(matrix.parts)["offsets"], vars(parts)["offsets"])
    matrix.multiply(torch.ones(1, 70, dtype=torch.bfloat16))
    matrix.expanded(0, 5)
