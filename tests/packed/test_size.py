"""The bytes of a packed checkpoint, counted before it is packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import family, packed, save, zero_half

from zpruner.evaluate import storage
from zpruner.kernels.parts import Layout
from zpruner.model import get_weight, set_weight, table_bytes, take_inventory
from zpruner.packed.content import Content, packed_size
from zpruner.packed.encode import parts_of
from zpruner.packed.layout import PackedTensor
from zpruner.packed.size import codes_of_grid, packed_bytes
from zpruner.quantization import Grid
from zpruner.types import SparsityPattern

HALF = SparsityPattern.parse(0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.sampled_from([torch.bfloat16, torch.float32]), st.data())
def test_the_parts_take_what_is_said(rows: int, columns: int, dtype: torch.dtype, data: st.DataObject) -> None:
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    keep = torch.rand(rows, columns, generator=draw) < data.draw(st.floats(0, 1))
    weight = torch.randn(rows, columns, generator=draw).to(dtype)
    parts = parts_of(weight, keep)
    said = packed_bytes(Layout.of(weight), keep.sum(dim=1))
    content = Content(PackedTensor("w", (rows, columns), False, dtype), weight, keep)
    assert packed_size(content) == said
    taken = sum(part.nbytes for part in (parts.bitmask, parts.values, parts.offsets) if part is not None)
    assert said in (None, taken)


def test_a_tenth_of_zeros_is_worth_packing() -> None:
    layout, counts = Layout(32, 64, torch.bfloat16), torch.full((32,), 56)
    assert packed_bytes(layout, counts) == 32 * 8 + 33 * 4 + 1792 * 2 + 64 < 32 * 64 * 2
    assert packed_bytes(layout, counts + 2) is None
    assert packed_bytes(Layout(1, 64, torch.bfloat16), torch.tensor([32])) is None, "larger than it was"


def test_integers_are_worth_packing_without_a_zero() -> None:
    counts = torch.tensor([64, 63])
    eight = Layout(2, 64, torch.bfloat16, codes=codes_of_grid(Grid(8)))
    assert packed_bytes(eight, counts) == 2 * 8 + 127 + 64 + 3 * 4 + 2 * 4
    whole = Layout(2, 64, torch.bfloat16, masked=False, codes=codes_of_grid(Grid(3, 32)))
    assert packed_bytes(whole, torch.tensor([64, 64]), torch.bfloat16) == 64 + 64 + 4 * 2, "3 bits take 4"


def test_what_evaluation_counts_is_what_packing_makes(tmp_path: Path) -> None:
    """A layer without zeros stays as it is, as everything that is not prunable."""
    model = zero_half(tiny.build("llama"))
    layers = take_inventory(model).layers
    for layer in layers:
        set_weight(model, layer, get_weight(model, layer) + 0.0)  # no zero is negative
    set_weight(model, layers[0], torch.ones_like(get_weight(model, layers[0])))
    folder = save(model, tmp_path / "dense")
    saved = packed(folder, tmp_path / "packed")
    found = storage(folder, ((get_weight(model, layer), None) for layer in layers), HALF)
    assert (found.stored, found.bitmask) == (saved.dense, saved.packed)
    assert 0 < saved.tensors < len(layers)


@pytest.mark.parametrize(("name", "tables"), [("llama", True), ("gpt2", False)])
def test_a_token_reads_one_row_of_the_embedding_unless_it_is_the_head(name: str, tables: bool) -> None:
    model = family(name)
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    assert tied is not tables
    found = table_bytes(model)
    positions = sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Embedding)) - embedding.nbytes
    assert found == positions + (0 if tied else embedding.nbytes)
