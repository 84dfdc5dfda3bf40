"""The report counts every stage instance that ran: a cost that is gone or another's is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import staged
from staged import METHOD, PACKED, SPARSITY

from stages import report
from stages._deciding import instances
from stages._project import Project
from zpruner.artifacts.costs import Cost
from zpruner.errors import ArtifactError

VARIANT = f"{METHOD}/{SPARSITY}"
COSTS = (
    *("generate", "calibrate", "gradients", "fetch/model", "fetch/calibration", "fetch/evaluation", "evaluate/dense"),
    *(f"score/{METHOD}", *(f"{stage}/{VARIANT}" for stage in ("mask", "apply", "pack", "evaluate"))),
)


def project_with_costs(root: Path, packed: object) -> Project:
    project = Project.open(staged.make(root, packed=packed))
    for instance in instances(project.params):
        Cost(stage=instance[0], seconds=1.0, peak_memory_bytes=1).write(project.cost_file(*instance))
    return project


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_that_is_gone_or_anothers_is_told(name: str, tmp_path: Path) -> None:
    project = project_with_costs(tmp_path, PACKED)
    path = project.costs() / f"{name}.json"
    other = project.costs() / f"{COSTS[COSTS.index(name) - 1]}.json"
    path.unlink()
    for damage, said in (
        (lambda: None, r"got no file, .* Run `dvc repro` first"),
        (path.mkdir, "got a folder"),
        (lambda: shutil.copy(other, path), f"got results of {other.relative_to(project.costs())}"),
    ):
        shutil.rmtree(path, ignore_errors=True)
        damage()
        with pytest.raises(ArtifactError, match=said) as caught:
            report.read(project)
        assert str(path) in str(caught.value)


def test_a_variant_that_is_not_packed_needs_no_cost_of_it(tmp_path: Path) -> None:
    project = project_with_costs(tmp_path, {})
    shutil.rmtree(project.costs() / "pack")
    with pytest.raises(ArtifactError, match=r"dense\.json: got no file"):  # beyond the costs: nothing is evaluated
        report.read(project)
