"""Bad input through the stages: the right error, one sentence that names the culprit, nothing half-written."""

import errno
import json
import re
import shutil

import pytest
import staged
import tiny
import torch
from bad_input import OUTPUTS, flip, refused, remove
from safetensors.torch import load_file, save_file
from staged import METHOD, SPARSITY

from zpruner.artifacts.work import Work
from zpruner.errors import (
    ArtifactError,
    DiskFullError,
    LockedError,
)

READS = [
    ("fetch-calibration", "models/dense/tokenizer.json"),
    ("fetch-evaluation", "models/dense/config.json"),
    ("calibrate", "models/dense/model.safetensors"),
    ("calibrate", "models/dense/zpruner.json"),
    ("calibrate", "calibration/tokens.arrow"),
    ("score", "models/dense/model.safetensors"),
    ("score", "activations/dense/model.layers.1.self_attn.q_proj.arrow"),
    ("score", "activations/dense/index.json"),
    ("mask", f"scores/{METHOD}/model.layers.2.mlp.up_proj.arrow"),
    ("mask", f"scores/{METHOD}/index.json"),
    ("apply", f"masks/{METHOD}/{SPARSITY}/model.layers.2.mlp.up_proj.arrow"),
    ("apply", "models/dense/tokenizer.json"),
    ("apply", "activations/dense/model.layers.0.mlp.down_proj.arrow"),
    ("evaluate", f"pruned/{METHOD}/{SPARSITY}/model-00003-of-00004.safetensors"),
    ("evaluate", f"pruned/{METHOD}/{SPARSITY}/config.json"),
    ("evaluate", "evaluation/tokens.arrow"),
    ("evaluate", "models/dense/model.safetensors"),
    ("evaluate_dense", "models/dense/model.safetensors"),
]


@pytest.mark.parametrize(("stage", "file"), READS)
def test_truncated_altered_or_missing_artifacts(project, stage, file):
    remove(project, stage)
    path = project / "data" / file
    good = path.read_bytes()
    flip(path, len(good) // 2)
    assert "dvc" in refused(project, stage, ArtifactError, re.escape(file))
    path.write_bytes(good[: len(good) // 2])
    refused(project, stage, ArtifactError, re.escape(file))
    path.unlink()
    refused(project, stage, ArtifactError, re.escape(file))
    path.write_bytes(good)
    staged.INSTANCES[stage](project)


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_full_disk(project, stage, monkeypatch):
    expected = staged.artifacts(project)
    remove(project, stage)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zpruner.artifacts.files.os.fsync", full)
        refused(project, stage, DiskFullError, "no space left on the device")
    assert not (project / "data" / OUTPUTS[stage]).exists()
    staged.INSTANCES[stage](project)
    assert staged.artifacts(project) == expected


@pytest.mark.parametrize("stage", OUTPUTS)
def test_the_old_artifact_stays_until_the_new_one_is_whole(project, stage, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zpruner.artifacts.files.HashingFile.write", full)
    refused(project, stage, DiskFullError, "no space left on the device")


def test_a_stage_that_runs_already(project):
    remove(project, "mask")
    with Work(project / "data" / ".work", f"mask-{METHOD}-{SPARSITY}", "other"):
        # A lock of this same process would be granted again by POSIX locks; flock refuses it.
        refused(project, "mask", LockedError, "one process per stage instance")


def test_the_fetched_model_is_not_published_again_once_altered(project):
    """The published files are links of those in the work folder: altering one alters the other."""
    expected = staged.artifacts(project)
    staged.INSTANCES["fetch-model"](project)
    flip(project / "data" / "models" / "dense" / "model.safetensors")
    shutil.rmtree(project / "data" / "models" / "dense")
    staged.INSTANCES["fetch-model"](project)
    assert staged.artifacts(project) == expected


def test_a_changed_local_model_is_fetched_anew(project):
    staged.INSTANCES["fetch-model"](project)
    before = staged.artifacts(project)
    path = project / "source" / "model" / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    staged.INSTANCES["fetch-model"](project)
    changed = {name for name, data in staged.artifacts(project).items() if data != before[name]}
    assert changed == {"models/dense/model.safetensors", "models/dense/zpruner.json"}


def test_metrics_are_plain_numbers(complete):
    metrics = json.loads((complete / "data" / OUTPUTS["evaluate"]).read_text())
    assert metrics["sparsity"] == pytest.approx(0.5)
    assert 0 < metrics["layer_error"] < 1
    assert metrics["perplexity"] > 1
    assert (metrics["windows"], metrics["tokens"], metrics["seqlen"]) == (6, 192, 32)
    dense = json.loads((complete / "data" / OUTPUTS["evaluate_dense"]).read_text())
    assert (dense["sparsity"], dense["layer_error"]) == (0.0, 0.0)


def test_an_ignored_layer_stays_dense_to_the_end(tmp_path):
    root = staged.make(tmp_path, model=tiny.PARAMS["model"] | {"ignore": ["*.1.*", "*.o_proj"]})
    staged.run_all(root, "apply")
    before = load_file(root / "source" / "model" / "model.safetensors")
    changed = set()
    for path in (root / "data" / OUTPUTS["apply"]).glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if not torch.equal(tensor, before[name]):
                changed.add(name)
    assert changed
    assert not any(".1." in name or "o_proj" in name for name in changed)
