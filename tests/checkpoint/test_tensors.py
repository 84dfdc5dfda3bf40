"""safetensors written tensor by tensor, and checkpoints copied block by block: the bytes of the libraries' own."""

from __future__ import annotations

import io
from pathlib import Path

import families
import pytest
import torch
from safetensors.torch import save, save_file
from transformers import AutoModelForCausalLM

from zpruner.checkpoint.tensors import write_tensors
from zpruner.execution import copy_checkpoint
from zpruner.model.stored import Stored, TensorFiles

_MOE = {
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {  # some parameters stay float32 in a bfloat16 model
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
}


def test_the_bytes_are_those_of_safetensors() -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool, torch.complex64]
    tensors = {f"{name}{kind}": torch.ones(3, 2).to(kind) * 1 for kind in kinds for name in "ba"}
    tensors["scalar"] = torch.tensor(2.0)
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    out = io.BytesIO()
    size = write_tensors(out, {name: Stored.of(tensor) for name, tensor in tensors.items()})
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert out.getvalue() == save(whole, metadata={"format": "pt"})
    assert size == sum(tensor.nbytes for tensor in whole.values())


def test_tensors_are_read_when_they_are_written(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.zeros(2)}, tmp_path / "x.safetensors")
    files = TensorFiles([tmp_path / "x.safetensors"])
    later = files.facts("a").later("a", lambda: files.read("a"))
    assert (later.dtype, later.shape, later.bytes) == (torch.float32, (4,), 16)
    order: list[str] = []

    def read(name: str) -> torch.Tensor:
        order.append(name)
        return files.read(name)

    out = io.BytesIO()
    write_tensors(out, {n: Stored(torch.float32, files.facts(n).shape, lambda n=n: read(n)) for n in files.names()})
    assert order == ["a", "b"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon", "mamba2", *_MOE])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_copy_is_what_loading_and_saving_gives(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family in _MOE:
        monkeypatch.setitem(families.FAMILIES, family, (family, {**families._LLAMA, **_MOE[family]}))
    source, expected, found = (tmp_path / name for name in ("in", "whole", "parts"))
    families.build(family).save_pretrained(source)
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(expected)
    found.mkdir()
    copy_checkpoint(source, found, dtype)
    files = {path.name: path.read_bytes() for path in expected.iterdir()}
    assert {path.name: path.read_bytes() for path in found.iterdir()} == files
