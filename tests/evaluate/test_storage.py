"""Bytes as stored, and as they would be without the zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from zpruner.artifacts.results import Storage
from zpruner.errors import ArtifactError
from zpruner.evaluate import achieved_sparsity, storage, stored_bytes
from zpruner.evaluate.storage import satisfies
from zpruner.model import take_inventory
from zpruner.types import SparsityPattern

HALF, TWO_OF_FOUR = SparsityPattern.parse(0.5), SparsityPattern.parse("2:4")


def checkpoint(folder: Path, weight: torch.Tensor) -> Path:
    save_file({"embedding": torch.ones(10, 3, dtype=weight.dtype), "weight": weight}, folder / "model.safetensors")
    return folder


def two_of_four(dtype: torch.dtype) -> torch.Tensor:
    """32 rows of 64 columns, 2:4."""
    return torch.tensor([[1, 0, 0, 2] * 16] * 32, dtype=dtype)


def test_2_4_in_bfloat16(tmp_path: Path) -> None:
    weight = two_of_four(torch.bfloat16)
    found = storage(checkpoint(tmp_path, weight), [(weight, None)], TWO_OF_FOUR, tables=7)
    assert found.stored == 2 * (30 + 2048)
    assert found.bitmask == 2 * 30 + 32 * 8 + 33 * 4 + 1024 * 2 + 64
    assert found.packed == 2 * 30 + 2 * 1024 + 1024 * 2 // 8  # two bits of position for each kept value
    assert found.read == found.stored - 7


def test_a_chance_zero_makes_the_bitmask_smaller_but_not_the_packed_form(tmp_path: Path) -> None:
    weight = two_of_four(torch.float32)
    weight[0, 0] = 0
    found = storage(checkpoint(tmp_path, weight), [(weight, None)], TWO_OF_FOUR)
    assert found.bitmask == 4 * 30 + 32 * 8 + 33 * 4 + 1023 * 4 + 64
    assert found.packed == 4 * 30 + 4 * 1024 + 256


def test_4_8_needs_three_bits_per_position(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0]] * 2)
    found = storage(checkpoint(tmp_path, weight), [(weight, None)], SparsityPattern.parse("4:8"))
    assert found.packed == 4 * 30 + 4 * 8 + 3


def test_what_does_not_satisfy_the_pattern_has_no_packed_form(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 2, 3, 0, 0, 0, 0, 4]])
    folder = checkpoint(tmp_path, weight)
    assert storage(folder, [(weight, None)], TWO_OF_FOUR).packed is None
    assert storage(folder, [(weight, None)], HALF).packed is None
    assert storage(folder, [(torch.zeros(2, 4), None), (weight, None)], TWO_OF_FOUR).packed is None


def test_a_dense_weight_is_packed_by_nobody(tmp_path: Path) -> None:
    weight = torch.ones(4, 9)
    assert storage(checkpoint(tmp_path, weight), [(weight, None)], HALF) == Storage(stored=264, bitmask=264, read=264)


@pytest.mark.parametrize(
    ("row", "kept", "size", "expected"),
    [
        ([1, 1, 0, 0], 2, 4, True),
        ([1, 1, 1, 0], 2, 4, False),
        ([0, 0, 0, 0], 2, 4, True),
        ([0, 0, 1, 1, 1, 1, 0, 0], 2, 4, True),
        ([0, 0, 1, 1, 1, 1, 0, 0], 4, 8, True),
        ([1, 0, 0, 0, 0, 0], 2, 4, False),  # 4 does not divide 6
    ],
)
def test_satisfies(row: list[int], kept: int, size: int, expected: bool) -> None:
    assert satisfies(torch.tensor([row]), kept, size) is expected


def test_stored_bytes_counts_every_shard_and_no_header(tmp_path: Path) -> None:
    for i in range(3):
        save_file({f"t{i}": torch.zeros(5, i + 1)}, tmp_path / f"model-{i}.safetensors", {"format": "pt"})
    assert stored_bytes(tmp_path) == 4 * 5 * 6


def test_stored_bytes_of_a_real_checkpoint_are_its_parameters(checkpoint: Path, llama_model: PreTrainedModel) -> None:
    assert stored_bytes(checkpoint) == sum(p.numel() * 4 for p in llama_model.parameters())


@pytest.mark.parametrize("data", [b"", b"\x08\x00", b"\x05\x00\x00\x00\x00\x00\x00\x00{bad}", b"\xff" * 12])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: got bytes that are not safetensors"):
        stored_bytes(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no \*\.safetensors"):
        stored_bytes(tmp_path)


def test_achieved_sparsity_counts_weights_not_layers() -> None:
    model = tiny.build("gpt2")
    layers = take_inventory(model).layers
    assert achieved_sparsity(model, layers) == 0.0
    with torch.no_grad():
        model.get_parameter(layers[0].tensor).zero_()
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert achieved_sparsity(model, layers) == layers[0].in_features * layers[0].out_features / weights
    assert achieved_sparsity(model, ()) == 0.0
