"""`kernel="2:4"`: which layers are handed to torch's kernels, and what is said where they cannot run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

import zpruner
from zpruner.errors import InvalidSettingError
from zpruner.packed.linear import PackedLinear
from zpruner.packed.pack import pack
from zpruner.pruning import semi_structured
from zpruner.pruning.semi_structured import use_semi_structured


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A bfloat16 Llama whose projections keep 2 of 4, and the same packed."""
    model = tiny.llama(num_hidden_layers=1, hidden_size=64, intermediate_size=96).bfloat16()
    for name, weight in model.named_parameters():
        if "proj" in name:
            weight.data.view(-1, 4)[:, :2] = 0
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "plain", tmp_path / "packed")
    return tmp_path / "plain", tmp_path / "packed"


def test_without_an_nvidia_gpu_it_is_refused(tmp_path: Path) -> None:
    for folder in folders(tmp_path):
        with pytest.raises(InvalidSettingError, match=r"kernel: got '2:4' on 'cpu', expected an NVIDIA GPU"):
            zpruner.load(folder, device="cpu", kernel="2:4")
        with pytest.raises(InvalidSettingError, match="kernel: got '4:8'"):
            zpruner.load(folder, device="cpu", kernel="4:8")


def test_layers_of_the_pattern_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU that is none: what torch would be given, and which layers stay."""
    given: list[torch.Tensor] = []

    def taken(weight: torch.Tensor) -> torch.Tensor:
        given.append(weight)
        return weight

    monkeypatch.setattr(semi_structured, "_check", lambda device, dtype: None)
    monkeypatch.setattr(torch, "sparse", SimpleNamespace(to_sparse_semi_structured=taken))
    for folder in folders(tmp_path):
        before, _ = zpruner.load(folder, device="cpu")
        model, _ = zpruner.load(folder, device="cpu")
        head = model.lm_head.weight
        assert use_semi_structured(model) == len(given) > 0
        assert all(((weight.view(-1, 4) != 0).sum(1) <= 2).all() for weight in given)
        assert model.lm_head.weight is head
        left = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
        assert all(model.get_submodule(name).in_features % 64 or "k_proj" in name or "v_proj" in name for name in left)
        assert all(isinstance(module, nn.Linear) for name, module in model.named_modules() if "gate_proj" in name)
        ids = torch.randint(3, 90, (2, 24))
        assert torch.equal(model(input_ids=ids).logits, before(input_ids=ids).logits)
        given.clear()
    dense = tiny.build("llama").bfloat16()
    with pytest.raises(InvalidSettingError, match="kernel: got '2:4' for a model without a fitting layer"):
        use_semi_structured(dense)


@pytest.mark.gpu
def test_products_there_are_those_of_dense_weights(accelerator: torch.device, tmp_path: Path) -> None:
    if accelerator.type != "cuda":
        pytest.skip("needs an NVIDIA GPU")
    ids = torch.randint(3, 90, (2, 24), device=accelerator)
    for folder in folders(tmp_path):
        expected = zpruner.load(folder, device=str(accelerator))[0](input_ids=ids).logits
        found = zpruner.load(folder, device=str(accelerator), kernel="2:4")[0](input_ids=ids).logits
        assert torch.allclose(found, expected, rtol=0.05, atol=0.05)
