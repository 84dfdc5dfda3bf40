"""The benchmark of memory, sized down: every stage runs, and prints its row; what a solver takes is bounded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch

import zpruner

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(what: str) -> int:
    """Return bytes of this process: VmRSS, now, or VmHWM, the most since it was last reset."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not RESET.exists(), reason="the kernel counts no peak that can be reset")
def test_pruning_a_wide_layer_takes_three_matrices_of_its_width() -> None:
    """The Gram matrix, the Hessian (then the factor of its inverse), and one while that is found.

    Matrices of 36 MiB: the allocator gives such memory back at once.
    """

    def prune(width: int) -> float:
        windows = torch.randint(0, tiny.VOCABULARY, (2, 32), dtype=torch.int32)
        model = tiny.llama(hidden_size=32, intermediate_size=width, num_hidden_layers=1)
        RESET.write_text("5", encoding="ascii")
        before = resident("VmRSS")
        zpruner.prune_sequentially(model, windows, method="sparsegpt", sparsity=0.5)
        return (resident("VmHWM") - before) / (4 * width**2)

    prune(48)  # what is loaded when it is first called
    assert 2.9 < prune(3072) < 3.4


@pytest.mark.slow
def test_every_stage_has_its_row(tmp_path: Path) -> None:
    script = tiny.REPOSITORY / "benchmarks" / "memory.py"
    command = [sys.executable, str(script), "--layers", "2", "--hidden", "384", "--work", str(tmp_path)]
    out = tiny.run(command, tiny.REPOSITORY).stdout
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ") and "GB" in line]
    assert rows == ["fetch", "calibrate", "score", "mask", "apply", "evaluate"]
    assert not list(tmp_path.iterdir())
