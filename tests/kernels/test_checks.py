"""Nothing but a packed matrix reaches a kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import ISAS, kernels_of, random_weight
from torch import Tensor

from zpruner.errors import ArtifactError, ShapeMismatchError
from zpruner.kernels import Layout, PackedMatrix, Parts, check_packed
from zpruner.packed.encode import parts_of

LAYOUT = Layout(5, 70, torch.bfloat16)


def parts() -> tuple[Tensor, Tensor, Tensor]:
    weight = random_weight(5, 70, 0.5, torch.bfloat16)
    found = parts_of(weight, weight != 0)
    assert found.bitmask is not None
    assert found.offsets is not None
    return found.bitmask, found.values, found.offsets


def check(bitmask: Tensor, values: Tensor, offsets: Tensor) -> None:
    check_packed("w", LAYOUT, Parts(values, bitmask, offsets))


def matrix_of(bitmask: Tensor, values: Tensor, offsets: Tensor) -> PackedMatrix:
    return PackedMatrix(kernels_of(ISAS[-1]), "w", LAYOUT, Parts(values, bitmask, offsets))


def test_a_packed_matrix_passes() -> None:
    bitmask, values, offsets = parts()
    check(bitmask, values, offsets)
    check(bitmask, values, offsets.long())


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda m, v, o: (m[:, :8].contiguous(), v, o), "w_bitmask: got uint8 (5, 8), expected uint8 (5, 16)"),
        (lambda m, v, o: (m.to(torch.int16), v, o), "w_bitmask: got int16"),
        (lambda m, v, o: (m, v, o[:-1]), "w_offsets: got int32 (5,), expected int32 or int64 (6,)"),
        (lambda m, v, o: (m, v, o.float()), "w_offsets: got float32"),
        (lambda m, v, o: (m, v.view(1, -1), o), "w_values"),
        (lambda m, v, o: (m, v, o + 1), "a first offset of 1"),
        (lambda m, v, o: (m, v, torch.cat([o[:3], o[3:4] + 1, o[4:]])), "offsets that give row 2"),
        (lambda m, v, o: (m, v, torch.cat([o[:1], o[2:3], o[1:2], o[3:]])), "offsets that give row 0"),
        (
            lambda m, v, o: (m, v, torch.cat([o[:5], torch.tensor([2**31 - 1], dtype=torch.int32)])),
            "offsets that give row 4",
        ),
        (lambda m, v, o: (m, v, torch.cat([o[:2], -o[2:3], o[3:]])), "offsets that give row 1"),
        (lambda m, v, o: (m, v[:-1], o), "those of the mask and 32 zeros"),
        (lambda m, v, o: (m, torch.cat([v, v]), o), "those of the mask and 32 zeros"),
        (lambda m, v, o: (m, torch.cat([v[:-1], v[:1]]), o), "numbers behind the last value"),
    ],
)
def test_what_is_none_is_named(break_it: Any, said: str) -> None:
    bitmask, values, offsets = break_it(*parts())
    with pytest.raises(ArtifactError) as error:
        check(bitmask, values, offsets)
    assert said in str(error.value)


def test_bits_behind_the_last_column_are_named() -> None:
    bitmask, values, offsets = parts()
    bitmask[2, 15] |= 128
    with pytest.raises(ArtifactError, match="bits beyond column 70 in row 2"):
        check(bitmask, values, offsets)


@given(st.sampled_from(range(3)), st.integers(0, 10_000), st.integers(0, 255))
def test_an_altered_byte_is_harmless_or_refused(which: int, place: int, byte: int) -> None:
    found = [part.clone() for part in parts()]
    raw = found[which].view(-1).view(torch.uint8)
    raw[place % raw.numel()] = byte
    try:
        bitmask, values, offsets = found
        matrix = matrix_of(bitmask, values, offsets)
    except ArtifactError:
        return
    # Bits that moved within a row, or another value: what a checksum finds and no reader can trip over.
    assert torch.equal(matrix.parts.offsets, parts()[2])
    assert torch.equal((matrix.expanded(0, 5) != 0).sum(1) <= parts()[2].diff(), torch.ones(5).bool())
    matrix.multiply(torch.ones(1, 70, dtype=torch.bfloat16))


def test_inputs_that_do_not_fit_are_refused() -> None:
    matrix = matrix_of(*parts())
    for x, bias in ((torch.ones(1, 69), None), (torch.ones(70), None), (torch.ones(1, 70), torch.ones(4))):
        with pytest.raises(ShapeMismatchError):
            matrix.multiply(x, bias)
    for out, start, stop in (
        (torch.ones(5, 70), 0, 5),
        (torch.ones(4, 70).bfloat16(), 0, 5),
        (torch.ones(2, 70).bfloat16(), 4, 6),
    ):
        with pytest.raises(ShapeMismatchError):
            matrix.expand_into(out, start, stop)
