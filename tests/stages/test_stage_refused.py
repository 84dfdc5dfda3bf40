"""Settings, values and artifacts of something else: the right error names the culprit, and nothing is half-written."""

import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import staged
import tiny
from bad_input import OUTPUTS, refused, remove
from safetensors.torch import load_file, save_file
from staged import METHOD, SPARSITY

from stages import evaluate, mask, score
from zpruner.errors import (
    ArtifactError,
    HashMismatchError,
    InvalidPatternError,
    InvalidSettingError,
    ModelStructureError,
    NonFiniteError,
    SourceError,
    TextTooShortError,
    UnknownNameError,
    ZprunerError,
)

SETTINGS = [
    ("score", f"methods.{METHOD}.score", "wandaa", UnknownNameError, "'wandaa'.*Did you mean 'wanda'"),
    ("score", f"methods.{METHOD}.grup", "row", InvalidSettingError, r"unknown key 'methods\.swapped\.grup'.*'group'"),
    ("score", f"methods.{METHOD}.settings", {"power": 2}, InvalidSettingError, "unknown key 'power'"),
    ("mask", f"methods.{METHOD}.refine", "swap", UnknownNameError, "'swap'.*Did you mean 'swaps'"),
    ("apply", f"methods.{METHOD}.update", "obss", UnknownNameError, "'obss'.*Did you mean 'obs'"),
    ("fetch-model", "machine.devise", "cpu", InvalidSettingError, r"unknown key 'machine\.devise'.*'device'"),
    ("fetch-model", f"sparsities.{SPARSITY}", 1.0, InvalidPatternError, r"got 1\.0, expected a ratio in \[0, 1\)"),
    ("fetch-model", f"sparsities.{SPARSITY}", -0.1, InvalidPatternError, "got -0.1"),
    ("fetch-model", f"sparsities.{SPARSITY}", "4:2", InvalidPatternError, "'4:2'.*N of every M"),
    (
        "mask",
        f"sparsities.{SPARSITY}",
        "3:7",
        InvalidPatternError,
        r"layer model\.layers\.0\.self_attn\.q_proj: got 32 inputs",
    ),
    ("fetch-model", "model.source", "nowhere/model", SourceError, "nowhere/model"),
    ("fetch-calibration", "calibration.source", "nowhere.txt", SourceError, r"nowhere\.txt"),
    ("fetch-calibration", "calibration.sha256", "0" * 64, HashMismatchError, r"text\.txt: got .*expected .*0000"),
    (
        "fetch-calibration",
        "calibration.nsamples",
        9999,
        TextTooShortError,
        r"text\.txt.*tokens, expected at least 319968",
    ),
    ("fetch-evaluation", "evaluation.perplexity.windows", 100_000, TextTooShortError, r"text\.txt"),
    ("fetch-calibration", "calibration.seqlen", 129, InvalidSettingError, r"seqlen: got 129, expected at most 128"),
    ("fetch-evaluation", "evaluation.perplexity.seqlen", 129, InvalidSettingError, r"expected at most 128"),
    ("calibrate", "model.blocks", "model.layer", ModelStructureError, r"model\.blocks: .*Did you mean 'model\.layers'"),
    (
        "calibrate",
        "model.ignore",
        ["*.q_prj"],
        InvalidSettingError,
        r"model\.ignore: got '\*\.q_prj', which matches no layer",
    ),
    ("calibrate", "model.ignore", ["*"], ModelStructureError, r"no prunable weight in model\.layers"),
    ("calibrate", "machine.device", "gpu", InvalidSettingError, r"machine\.device: got 'gpu'"),
]


@pytest.mark.parametrize(("stage", "where", "value", "error", "message"), SETTINGS)
def test_settings(project, stage, where, value, error, message):
    remove(project, stage)
    try:
        staged.change_params(project, where, value)
    except ZprunerError as told:  # by the plan, before the stage
        assert isinstance(told, error)  # noqa: PT017
        assert re.search(message, str(told))  # noqa: PT017
    else:
        refused(project, stage, error, message)
    assert not (project / "data" / OUTPUTS[stage]).exists()


def test_labels_that_params_does_not_list(project):
    with pytest.raises(InvalidSettingError, match=r"methods: got label 'swaped'.*Did you mean 'swapped'"):
        score.run("swaped", project)
    with pytest.raises(InvalidSettingError, match=r"sparsities: got label 's25'.*Did you mean 's24'"):
        mask.run(METHOD, "s25", project)
    with pytest.raises(InvalidSettingError, match="either both --method and --sparsity, or --dense"):
        evaluate.run(METHOD, root=project)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    root = staged.make(tmp_path)
    path = root / "source" / "model" / "model.safetensors"
    good = load_file(path)
    # What follows the last block is not run in calibration: the weight itself must be looked at.
    for layer, stage in (("model.layers.0.self_attn.v_proj", "calibrate"), ("model.layers.2.mlp.down_proj", "score")):
        tensors = {name: tensor.clone() for name, tensor in good.items()}
        tensors[f"{layer}.weight"][1, 1] = value
        save_file(tensors, path, {"format": "pt"})
        for name in (
            "sources",
            "plan",
            "fetch-model",
            "fetch-calibration",
            *(["calibrate"] if stage == "score" else []),
        ):
            staged.INSTANCES[name](root)
        refused(root, stage, NonFiniteError, rf"weight of layer {re.escape(layer)}: got NaN or infinity")
        assert not (root / "data" / OUTPUTS[stage]).exists()


@pytest.fixture(scope="session")
def others(tmp_path_factory, complete):
    """Complete projects of another model, another calibration and another method."""
    found = {}
    kinds: dict[str, dict[str, Any]] = {
        "model": {},
        "calibration": {"seed": 5},
        "method": {"methods": {METHOD: {"score": "magnitude", "group": "row"}}},
        "pattern": {"sparsities": {SPARSITY: "1:4"}},
    }
    for name, changes in kinds.items():
        root = staged.make(tmp_path_factory.mktemp(name), **changes)
        if name == "model":
            path = root / "source" / "model" / "model.safetensors"
            save_file({k: t * 1.25 for k, t in load_file(path).items()}, path, {"format": "pt"})
        found[name] = staged.run_all(root, "apply")
    return found


@pytest.mark.parametrize(
    ("other", "folder", "stage", "field"),
    [
        ("model", "models", "score", "model_hash"),
        ("model", "activations", "score", "model_hash"),
        ("model", "scores", "mask", "model_hash"),
        ("model", "masks", "apply", "model_hash"),
        ("model", "pruned", "evaluate", "model_hash"),
        ("calibration", "scores", "mask", "calibration_hash"),
        ("calibration", "activations", "mask", "calibration_hash"),
        ("calibration", "activations", "apply", "calibration_hash"),
        ("calibration", "activations", "evaluate", "calibration_hash"),
        ("calibration", "masks", "apply", "calibration_hash"),
        ("calibration", "pruned", "evaluate", "calibration_hash"),
        ("method", "scores", "mask", "method"),
        ("method", "masks", "apply", "settings"),
        ("method", "pruned", "evaluate", "settings"),
        ("pattern", "masks", "apply", "pattern"),
        ("pattern", "pruned", "evaluate", "pattern"),
    ],
)
def test_artifacts_made_from_something_else(project, others, other, folder, stage, field):
    remove(project, stage)
    target = project / "data" / folder
    shutil.rmtree(target)
    shutil.copytree(others[other] / "data" / folder, target)
    refused(
        project, stage, ArtifactError, rf"data/.*: got {field} .*It belongs to another model, calibration or method"
    )


def test_commands_end_with_one_sentence_and_no_traceback(project):
    staged.change_params(project, f"methods.{METHOD}.score", "wandaa", plan=False)
    command = [sys.executable, "-m", "stages.score", "--method", METHOD]
    environment = tiny.environment() | {"PYTHONPATH": str(tiny.REPOSITORY)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert re.fullmatch(r"error: .*: got 'wandaa', expected .*\. Did you mean 'wanda'\?\n", done.stderr)
    done = subprocess.run(
        [*command[:3], "--methd", METHOD], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--method" in done.stderr
    assert "Traceback" not in done.stderr
