"""Quantised checkpoints: their integers and scales are stored, and give them back byte for byte."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import families
import pytest
import tiny
import torch
from packed_cases import IDS, description, family, hashes, quantize, save
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import zpruner
from zpruner.errors import ArtifactError
from zpruner.packed.content import Integers, Known
from zpruner.packed.linear import PackedLinear
from zpruner.packed.pack import pack
from zpruner.packed.stack import stacks_of
from zpruner.packed.structure import transposed_tensors
from zpruner.packed.unpack import unpack
from zpruner.quantization import Grid

FEW = ("llama", "gpt2", "mixtral", "gpt_oss")
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in families.ALL if name not in FEW]
GRIDS = (Grid(8, "row"), Grid(4, 32), Grid(3, 128), Grid(8, 32), Grid(4, "row"))


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found.float()


def there_and_back(name: str, grid: Grid, share: float, tmp_path: Path, dtype: torch.dtype) -> Path:
    source, integers = quantize(save(family(name, dtype), tmp_path / "dense"), grid, share)
    (tmp_path / "packed").mkdir()
    pack(source, tmp_path / "packed", Known(transposed_tensors(source), integers=integers))
    (tmp_path / "back").mkdir()
    unpack(tmp_path / "packed", tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(source)
    return source


@pytest.mark.parametrize("name", [*FEW, *MORE])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_family_comes_back_byte_for_byte_and_computes_the_same(name: str, tmp_path: Path) -> None:
    grid, share = GRIDS[len(name) % len(GRIDS)], (0.5, 0.0)[len(name) % 2]
    source = there_and_back(name, grid, share, tmp_path, torch.float32)
    listed = description(tmp_path / "packed")["tensors"]
    assert isinstance(listed, dict)
    assert {(facts.get("bits"), facts.get("masked")) for facts in listed.values()} == {
        (8 if grid.bits == 8 else 4, share > 0)
    }
    before, _ = zpruner.load(source, device="cpu")
    after, _ = zpruner.load(tmp_path / "packed", device="cpu")
    many = logits(after, IDS), logits(before, IDS)  # 48 rows: expanded, but for experts, which each see a few
    assert torch.equal(*many) or (stacks_of(after) and torch.allclose(*many, rtol=1e-4, atol=1e-5))
    few = logits(before, IDS[:1, :5])
    assert (logits(after, IDS[:1, :5]) - few).abs().max() <= 2e-5 * few.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_any_grid_and_dtype_comes_back_byte_for_byte(
    grid: Grid, dtype: torch.dtype, share: float, tmp_path: Path
) -> None:
    there_and_back("llama", grid, share, tmp_path, dtype)


def test_the_parts_are_what_the_format_says(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path / "dense")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    source, integers = quantize(tmp_path / "dense", Grid(4, 32), 0.5)
    (tmp_path / "packed").mkdir()
    saved = pack(source, tmp_path / "packed", Known(integers=integers))
    found = load_file(tmp_path / "packed" / "zpruner.safetensors")
    rows, columns = tensors[name].shape
    counts = (load_file(source / "model.safetensors")[name] != 0).sum(dim=1)
    assert found[f"{name}_bitmask"].shape == (rows, -(-columns // 64) * 8)
    assert found[f"{name}_values"].dtype == torch.uint8
    assert found[f"{name}_scales"].dtype == torch.bfloat16
    assert found[f"{name}_offsets"].diff().tolist() >= ((counts + 1) // 2).tolist()
    facts = description(tmp_path / "packed")["tensors"]
    assert isinstance(facts, dict)
    assert facts[name] == {
        "shape": [rows, columns],
        "dtype": "float32",
        "transposed": False,
        "masked": True,
        "bits": 4,
        "group": 32,
    }
    parts = sum(found[f"{name}_{part}"].nbytes for part in ("bitmask", "values", "offsets", "scales"))
    assert parts < rows * columns
    assert saved.packed == sum(tensor.nbytes for tensor in found.values())


def test_a_saved_model_has_its_integers(tmp_path: Path) -> None:
    source = there_and_back("llama", Grid(4, 32), 0.5, tmp_path, torch.bfloat16)
    model, _ = zpruner.load(tmp_path / "packed", device="cpu")
    model.save_pretrained(tmp_path / "again", max_shard_size=40_000)
    again, _ = zpruner.load(tmp_path / "again", device="cpu")
    layers = [module for module in again.modules() if isinstance(module, PackedLinear)]
    assert {module.layout.codes is None for module in layers} == {False}
    before, _ = zpruner.load(source, device="cpu")
    assert torch.equal(logits(again, IDS), logits(before, IDS))
    layer = layers[0]
    expected = layer.weight
    assert torch.equal(layer.float().weight, expected)  # another type of other layers' numbers: integers stay
    assert layer.weight_scales is not None
    assert layer.weight_scales.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "grid", "share"), [("llama", Grid(4, 32), 0.5), ("gpt2", Grid(8), 0.0)])
def test_the_reader_of_the_documentation_reads_it(
    name: str, grid: Grid, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, integers = quantize(save(family(name, torch.bfloat16), tmp_path / "dense"), grid, share)
    (tmp_path / "OUT").mkdir()
    pack(source, tmp_path / "OUT", Known(transposed_tensors(source), integers=integers))
    text = (Path(__file__).parents[2] / "docs" / "packed.md").read_text()
    code = next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "safe_open" in part)
    read: dict[str, Tensor] = {}
    monkeypatch.chdir(tmp_path)
    exec(code.rstrip() + "\n        read[name] = tensor\n", {"read": read})
    expected = load_file(source / "model.safetensors")
    assert len(read) >= 8
    assert all(torch.equal(tensor, expected[stored]) for stored, tensor in read.items())


def test_integers_of_other_weights_are_refused(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path / "dense")
    source, integers = quantize(tmp_path / "dense", Grid(8), 0.5)
    (tmp_path / "packed").mkdir()

    def wrong(name: str, tensor: Tensor) -> Integers | None:
        found = integers(name, tensor)
        return None if found is None else replace(found, scales=found.scales * 2)

    with pytest.raises(ArtifactError, match="integers and scales of other weights"):
        pack(source, tmp_path / "packed", Known(integers=wrong))
