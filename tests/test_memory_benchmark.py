"""The benchmark of memory, sized down: every stage runs, and prints its row; what a solver takes is bounded."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from allocations import peak_bytes

import zpruner


def test_pruning_a_wide_layer_takes_three_matrices_of_its_width(tmp_path: Path) -> None:
    """The Gram matrix, the Hessian (then the factor of its inverse), and one while that is found.

    Counted by the allocator: what a process holds (its resident set) also depends on what ran before in it.
    """
    width = 1024
    model = tiny.llama(hidden_size=32, intermediate_size=width, num_hidden_layers=1)
    windows = torch.randint(0, tiny.VOCABULARY, (2, 32), dtype=torch.int32)
    most = peak_bytes(partial(zpruner.prune_sequentially, model, windows, method="sparsegpt", sparsity=0.5), tmp_path)
    assert 2.9 < most / (4 * width**2) < 3.2


@pytest.mark.slow
def test_every_stage_has_its_row(tmp_path: Path) -> None:
    script = tiny.REPOSITORY / "benchmarks" / "memory.py"
    command = [sys.executable, str(script), "--layers", "2", "--hidden", "384", "--work", str(tmp_path)]
    out = tiny.run(command, tiny.REPOSITORY).stdout
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ") and "GB" in line]
    assert rows == ["fetch", "calibrate", "score", "mask", "apply", "evaluate"]
    assert not list(tmp_path.iterdir())
