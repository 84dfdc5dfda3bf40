"""Packing and unpacking give back the very bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
from packed_cases import description, family, hashes, packed, save, zero_half
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from zpruner.errors import ArtifactError, SourceError
from zpruner.packed.content import Known
from zpruner.packed.pack import pack
from zpruner.packed.unpack import unpack

FEW = ("llama", "gpt2", "mixtral", "gpt_oss", "falcon", "mamba")
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in families.ALL if name not in FEW]


def there_and_back(source: Path, tmp_path: Path) -> Path:
    packed(source, tmp_path / "packed")
    (tmp_path / "back").mkdir()
    unpack(tmp_path / "packed", tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(source)
    return tmp_path / "packed"


@pytest.mark.parametrize("name", [*FEW, *MORE])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_family_comes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    source = save(zero_half(family(name)), tmp_path / "dense")
    out = there_and_back(source, tmp_path)
    listed = description(out)["tensors"]
    assert listed
    assert {"zpruner.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob("model*"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_a_dtype_comes_back_byte_for_byte(dtype: torch.dtype, pattern: str, tmp_path: Path) -> None:
    there_and_back(save(zero_half(tiny.build("llama").to(dtype), pattern), tmp_path / "dense"), tmp_path)


def test_paths_may_be_text_and_a_terminal_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = save(zero_half(tiny.build("llama"), "0.5"), tmp_path / "dense")
    monkeypatch.setattr("zpruner.runtime.progress.draws_bars", lambda: True)
    for made in ("packed", "back"):
        (tmp_path / made).mkdir()
    pack(str(dense), str(tmp_path / "packed"))
    unpack(str(tmp_path / "packed"), str(tmp_path / "back"))
    said = capsys.readouterr().err
    assert "pack: 100%" in said
    assert "unpack: 100%" in said
    assert tiny.files_of(tmp_path / "back") == tiny.files_of(dense)


def folder_of(tensors: dict[str, Tensor], folder: Path) -> Path:
    """A checkpoint of any tensors, as another tool could have left it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(b'{"model_type": "llama",\r\n "architectures": ["LlamaForCausalLM"] }')
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "made by": "another tool"})
    return folder


def test_the_parts_are_what_the_format_says(tmp_path: Path) -> None:
    weight = torch.zeros(3, 70, dtype=torch.bfloat16)
    weight[0, 0], weight[0, 9], weight[2, 69] = 1.5, -2.0, 3.0
    source = folder_of({"a.weight": weight, "a.bias": torch.ones(3)}, tmp_path / "dense")
    (tmp_path / "packed").mkdir()
    pack(source, tmp_path / "packed")
    found = load_file(tmp_path / "packed" / "zpruner.safetensors")
    assert found.keys() == {"a.bias", "a.weight_bitmask", "a.weight_values", "a.weight_offsets"}
    expected = np.zeros((3, 16), dtype=np.uint8)
    expected[0, :2], expected[2, 8] = (1, 2), 1 << 5
    assert found["a.weight_bitmask"].numpy().tolist() == expected.tolist()
    assert found["a.weight_offsets"].tolist() == [0, 2, 2, 3]
    assert found["a.weight_offsets"].dtype == torch.int32
    assert found["a.weight_values"].tolist() == [1.5, -2.0, 3.0] + [0.0] * 32
    assert description(tmp_path / "packed") == {
        "format": "zpruner-bitmask",
        "version": 2,
        "tensors": {"a.weight": {"shape": [3, 70], "dtype": "bfloat16", "transposed": False}},
    }
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "zpruner"
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_what_a_mask_keeps_is_kept_zeros_included(tmp_path: Path) -> None:
    weight = torch.zeros(2, 64)
    weight[0, :8] = torch.tensor([1.0, 0.0, -0.0, 2.0, 0.0, 0.0, -0.0, 3.0])
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, 1:4] = True  # 0.0, -0.0 and 2.0; 1.0 and 3.0 are no zeros, whatever the mask says
    source = folder_of({"a.weight": weight}, tmp_path / "dense")
    (tmp_path / "packed").mkdir()
    pack(source, tmp_path / "packed", Known(keep=lambda name, _: mask if name == "a.weight" else None))
    found = load_file(tmp_path / "packed" / "zpruner.safetensors")
    assert found["a.weight_bitmask"][0, 0] == 0b10001111
    assert struct.pack("<5f", 1.0, 0.0, -0.0, 2.0, 3.0) == found["a.weight_values"][:5].numpy().tobytes()
    (tmp_path / "back").mkdir()
    unpack(tmp_path / "packed", tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(source)


def test_zeros_that_are_negative_cost_a_bit_and_come_back(tmp_path: Path) -> None:
    weight = torch.randn(64, 128).bfloat16() * (torch.rand(64, 128) < 0.5)
    assert (weight.view(torch.int16) == -(2**15)).sum() > 1000
    source = folder_of({"a.weight": weight, "b.weight": weight.abs()}, tmp_path / "dense")
    out = there_and_back(source, tmp_path)
    found = load_file(out / "zpruner.safetensors")
    assert torch.equal(found["a.weight_bitmask"], found["b.weight_bitmask"])
    with safe_open(out / "negative_zeros.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["a.weight"]
    assert json.loads((out / "zpruner.json").read_text())["savings"]["negative_zeros"] > 1000


def test_numbers_of_any_kind_come_back(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {
        "experts": torch.randn(3, 8, 70, generator=draw) * (torch.rand(3, 8, 70, generator=draw) < 0.4),
        "conv": torch.randn(16, 8, 4, generator=draw) * (torch.rand(16, 8, 4, generator=draw) < 0.4),
        "whole": torch.randint(-3, 4, (40, 90), dtype=torch.int8) * (torch.rand(40, 90) < 0.3),
        "float8": (torch.randn(40, 90) * (torch.rand(40, 90) < 0.3)).to(torch.float8_e4m3fn),
        "odd": torch.tensor([[torch.nan, torch.inf, -torch.inf, 1e-45, -0.0, 0.0] + [0.0] * 60]),
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(2.0),
        "flags": torch.zeros(4, 80, dtype=torch.bool),
        "little": torch.cat([torch.ones(20, 37), torch.zeros(20, 3)], dim=1),
        "all": torch.zeros(5, 64),
    }
    out = there_and_back(folder_of(tensors, tmp_path / "dense"), tmp_path)
    assert set(description(out)["tensors"]) == {"experts", "whole", "float8", "odd", "all"}


def test_shards_are_packed_one_by_one(tmp_path: Path) -> None:
    model = zero_half(tiny.build("llama"))
    model.save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    (tmp_path / "dense" / "ema.safetensors").write_bytes((tmp_path / "dense" / "config.json").read_bytes())
    packed(tmp_path / "dense", tmp_path / "packed")
    (tmp_path / "back").mkdir()
    unpack(tmp_path / "packed", tmp_path / "back")
    expected = hashes(tmp_path / "dense")
    del expected["ema.safetensors"]  # which no index names
    assert hashes(tmp_path / "back") == expected
    names = sorted(path.name for path in (tmp_path / "packed").glob("zpruner-*"))
    assert len(names) > 2
    index = json.loads((tmp_path / "packed" / "zpruner.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == names


def test_what_a_card_says_of_packing_is_gone_after_unpacking(tmp_path: Path) -> None:
    source = save(zero_half(tiny.build("llama")), tmp_path / "dense")
    (source / "README.md").write_bytes("a card, \u00e4\r\n".encode())
    (tmp_path / "packed").mkdir()
    (tmp_path / "back").mkdir()
    pack(source, tmp_path / "packed", card="packed\n")
    assert (tmp_path / "packed" / "README.md").read_text() == "packed\n"
    unpack(tmp_path / "packed", tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(source)


@pytest.mark.parametrize(
    ("break_it", "error", "said"),
    [
        (lambda f: (f / "config.json").unlink(), SourceError, "no readable config.json"),
        (lambda f: (f / "model.safetensors").unlink(), SourceError, "no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), ArtifactError, "not safetensors"),
        (lambda f: save_file({"w": torch.ones(9, 90)}, f / "model.safetensors"), SourceError, "no tensor with 10%"),
        (
            lambda f: save_file({"w": torch.zeros(9, 90), "w_values": torch.ones(1)}, f / "model.safetensors"),
            ArtifactError,
            "a tensor named 'w_values'",
        ),
        (
            lambda f: (f / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}'),
            ArtifactError,
            "a checkpoint that gptq made",
        ),
    ],
)
def test_what_cannot_be_packed_is_named(break_it: object, error: type, said: str, tmp_path: Path) -> None:
    source = folder_of({"w": torch.zeros(9, 90)}, tmp_path / "dense")
    break_it(source)
    (tmp_path / "packed").mkdir()
    with pytest.raises(error, match=said):
        pack(source, tmp_path / "packed")


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    from zpruner.artifacts.work import Work

    zero_half(tiny.build("llama")).save_pretrained(tmp_path / "dense", max_shard_size="30KB")

    class StopError(Exception):
        pass

    def stop() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise StopError

    calls: list[None] = []
    with Work(tmp_path / "work", "pack", "key") as work, pytest.raises(StopError):
        pack(tmp_path / "dense", work.files, journal=work, step=stop)
    with Work(tmp_path / "work", "pack", "key") as work:
        first = (work.files / next(iter(work.items()))).stat().st_mtime_ns
        pack(tmp_path / "dense", work.files, journal=work)
        assert (work.files / next(iter(work.items()))).stat().st_mtime_ns == first
        work.publish(tmp_path / "packed")
    (tmp_path / "once").mkdir()
    pack(tmp_path / "dense", tmp_path / "once")
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "once")
