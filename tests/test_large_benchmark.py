"""The benchmark of large models, sized down: its plain loop prunes as ours does, and every step has its row."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import zpruner
from zpruner.model import get_weight, take_inventory

sys.path.insert(0, str(tiny.REPOSITORY / "benchmarks"))
large: Any = import_module("large")
published: Any = import_module("published")

WINDOWS = torch.randint(0, tiny.VOCABULARY, (4, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["wanda", "zpruner", "ria", "sparsegpt"])
def test_the_plain_loop_gives_our_weights(method: str) -> None:
    torch.manual_seed(0)
    plain = tiny.llama()
    ours = tiny.llama()
    ours.load_state_dict(plain.state_dict())
    dense = {name: value.clone() for name, value in plain.state_dict().items()}
    published.prune(plain, WINDOWS, method, 0.5)
    zpruner.prune_sequentially(ours, WINDOWS, method=method, sparsity=0.5)
    for layer in take_inventory(plain).layers:
        theirs, found = get_weight(plain, layer), get_weight(ours, layer)
        assert not torch.equal(theirs, dense[layer.tensor])
        same = (theirs == 0) == (found == 0)
        if method != "sparsegpt":
            assert same.float().mean() > 0.999
            torch.testing.assert_close(theirs[same], found[same])
        elif layer.block == 0:  # it prunes one weight more per block of columns, and what follows in its row differs
            assert same.float().mean() > 0.99
            assert torch.isclose(theirs, found, rtol=1e-3, atol=1e-6).float().mean() > 0.9


def test_every_step_has_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    tiny.llama().save_pretrained(tmp_path)
    large.main(model=tmp_path, windows=2, seqlen=8, method=["sparsegpt", "zpruner"], device="cpu", plain="both")
    rows = [line.split("|")[1].strip(" *") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    loaded, loop = ", linear layers as loaded here", "plain loop"
    assert rows[2:] == [
        "calibrate",
        *(f"zpruner: {step}" for step in ("score", "a further sparsity, 0.6", "mask", "apply")),
        "zpruner from zero",
        *(f"zpruner: {loop}{kind}{ratio}" for kind in ("", loaded) for ratio in ("", " / ours")),
        "calibrate, Gram matrices",
        *(f"sparsegpt: {step}" for step in ("score", "a further sparsity, 0.6", "mask", "apply")),
        "sparsegpt from zero",
        *(f"sparsegpt: {loop}{kind}{ratio}" for kind in ("", loaded) for ratio in ("", " / ours")),
    ]
