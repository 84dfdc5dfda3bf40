"""A mixture of experts through all stages: its own format on disk, its experts scored by their own tokens."""

import json
import shutil

import families
import pytest
import staged
import tiny
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.model import get_weight, load_model, take_inventory


def project(root, family, **changes):
    staged.make(root, **changes)
    shutil.rmtree(root / "source" / "model")
    families.build(family).save_pretrained(root / "source" / "model")
    tiny.tokenizer().save_pretrained(root / "source" / "model")
    return root


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize(
    ("family", "changes", "stored"),
    [
        ("mixtral", {"min_expert_tokens": 100}, "model.layers.0.block_sparse_moe.experts.3.w1.weight"),
        ("gpt_oss", {"propagation": "pruned"}, "model.layers.0.mlp.experts.gate_up_proj"),
        pytest.param("jamba", {}, "model.layers.1.feed_forward.experts.3.up_proj.weight", marks=pytest.mark.slow),
    ],
)
def test_experts_go_through_the_stages(family, changes, stored, tmp_path, capsys):
    root = staged.run_all(project(tmp_path, family, **changes))
    dense, pruned = (root / "data" / path for path in ("models/dense", f"pruned/{staged.METHOD}/{staged.SPARSITY}"))
    before, after = tensors(dense), tensors(pruned)
    source = tensors(root / "source" / "model")
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in source.items()}
    assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
    assert stored in after
    share = float((after[stored] == 0).float().mean())
    assert share == pytest.approx(0.5, abs=0.01)

    model, again = load_model(dense, device="cpu"), AutoModelForCausalLM.from_pretrained(pruned).eval()
    inventory = take_inventory(model)
    for layer in inventory.layers:
        weight = get_weight(again, layer)
        kept = (weight.reshape(weight.shape[0], -1, 4) != 0).sum(dim=-1)
        assert int(kept.max()) <= 2, layer.name
        assert torch.equal(Checkpoint(dense).read_weight(layer), get_weight(model, layer)), layer.name
    for name, _ in inventory.skipped:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name)), name  # routers among them

    details = json.loads((root / f"data/evaluation/{staged.METHOD}/{staged.SPARSITY}.layers.json").read_text())
    few = Activations(root / "data" / "activations" / "dense").few
    assert {entry["layer"]: entry["expert_tokens"] for entry in details["layers"] if "expert_tokens" in entry} == few
    warned = "weights of experts met fewer than" in capsys.readouterr().err
    assert warned == bool(few)
    if family == "mixtral":
        assert 0 < len(few) < 16
        assert all(met < 100 for met in few.values())


def test_a_mixture_that_a_killed_apply_left_is_finished_with_the_same_bytes(tmp_path, monkeypatch):
    root = staged.run_all(project(tmp_path / "whole", "mixtral"), until="apply")
    other = staged.run_all(project(tmp_path / "cut", "mixtral"), until="mask")
    count = 0
    replace = Checkpoint.read_parameters

    def cut(self, entry):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return replace(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read_parameters", cut)
        with pytest.raises(KeyboardInterrupt):
            staged.INSTANCES["apply"](other)
    staged.INSTANCES["apply"](other)
    assert staged.artifacts(root) == staged.artifacts(other)  # and two runs give the same bytes
