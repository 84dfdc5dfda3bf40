"""Artifacts that are whole and sealed, and not what a stage asks for: of another shape, another role, or elsewhere."""

import re
import shutil

import pytest
import staged
from staged import METHOD, SPARSITY

from zpruner.artifacts.arrow import open_table, read_metadata, to_table, to_tensors, write_table
from zpruner.artifacts.files import atomic_file, read_sealed_json, write_sealed_json
from zpruner.errors import ArtifactError

LAYER = "model.layers.1.mlp.up_proj"
"""48 outputs, 32 inputs."""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return staged.run_all(staged.make(tmp_path_factory.mktemp("forged")), "apply")


@pytest.fixture
def project(complete, tmp_path):
    root = shutil.copytree(complete, tmp_path / "project")
    shutil.rmtree(root / "data" / ".work")
    return root


def edit_index(folder, change):
    index = read_sealed_json(folder / "index.json", "an index")
    change(index)
    write_sealed_json(folder / "index.json", index)


def edit_file(folder, name, column, change):
    """Change a column of a file (all of them if it is ""), and its checksum, size, shapes and counts in the index."""
    path = folder / f"{name}.arrow"
    table = open_table(path, path.read_bytes())
    facts = read_metadata(table.schema, path)
    columns = to_tensors(table, path)
    columns |= {key: change(columns[key]).contiguous() for key in ([column] if column else columns)}
    with atomic_file(path) as file:
        write_table(to_table(columns, facts), file)
    new = {"checksum": file.checksum, "bytes": file.bytes}
    new["columns"] = {key: list(value.shape) for key, value in columns.items()}
    if column == "keep":
        new |= {"kept": int(columns["keep"].sum()), "weights": columns["keep"].numel()}
    edit_index(folder, lambda index: index["files"][name].update(new))


def refused(root, stage, message):
    before = staged.artifacts(root)
    with pytest.raises(ArtifactError, match=message) as caught:
        staged.INSTANCES[stage](root)
    assert "\n" not in str(caught.value)
    assert staged.artifacts(root) == before


@pytest.mark.parametrize(
    ("stage", "folder", "column", "change", "message"),
    [
        ("mask", f"scores/{METHOD}", "score", lambda t: t.T, r"float32 of shape \(32, 48\) as 'score'"),
        ("mask", f"scores/{METHOD}", "score", lambda t: t[:-1], r"float32 of shape \(47, 32\) as 'score'"),
        ("mask", f"scores/{METHOD}", "score", lambda t: t[:, :16], r"float32 of shape \(48, 16\) as 'score'"),
        ("mask", f"scores/{METHOD}", "score", lambda t: t.double(), r"float64 of shape \(48, 32\) as 'score'"),
        ("apply", f"masks/{METHOD}/{SPARSITY}", "keep", lambda t: t[:1], r"bool of shape \(1, 32\) as 'keep'"),
        ("apply", f"masks/{METHOD}/{SPARSITY}", "keep", lambda t: t.T, r"bool of shape \(32, 48\) as 'keep'"),
        ("apply", f"masks/{METHOD}/{SPARSITY}", "keep", lambda t: t.int(), r"int32 of shape \(48, 32\) as 'keep'"),
    ],
)
def test_another_shape_than_the_layers(project, stage, folder, column, change, message):
    edit_file(project / "data" / folder, LAYER, column, change)
    refused(project, stage, rf"{re.escape(LAYER)}\.arrow: got torch\.{message}")


def test_statistics_of_another_width(project):
    folder = project / "data" / "activations" / "dense"
    index = read_sealed_json(folder / "index.json", "an index")
    owner = next(facts["input"] for facts in index["layers"] if facts["name"] == LAYER)
    edit_file(folder, owner, "", lambda t: t[:-1])
    refused(project, "score", rf"{owner}\.arrow: got 'sq_sum' of shape \(31,\), expected statistics of the 32 inputs")


def test_counts_that_are_not_the_masks(project):
    folder = project / "data" / "masks" / METHOD / SPARSITY
    edit_index(folder, lambda index: index["files"][LAYER].update(kept=1500))
    refused(project, "apply", f"{LAYER} with .*'kept': 768.*the counts in its index")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_outside_the_folder(project, absolute):
    folder = project / "data" / "scores" / METHOD
    outside = (folder / f"{LAYER}.arrow").rename(project / f"{LAYER}.arrow")
    name = str(outside) if absolute else f"../../../{outside.name}"
    edit_index(folder, lambda index: index["files"][LAYER].update(file=name))
    refused(project, "mask", rf"index\.json: got file '.*{LAYER}\.arrow' for '{LAYER}'")


def test_a_link_that_leads_outside(project):
    folder = project / "data" / "scores" / METHOD
    outside = (folder / f"{LAYER}.arrow").rename(project / f"{LAYER}.arrow")
    (folder / f"{LAYER}.arrow").symlink_to(outside)
    refused(project, "mask", rf"{LAYER}\.arrow: got a link to {outside}")
    (folder / f"{LAYER}.arrow").unlink()
    cached = project / ".dvc" / "cache" / "files" / "md5" / "ab" / ("0" * 30)  # as DVC links where it is told to
    cached.parent.mkdir(parents=True)
    (folder / f"{LAYER}.arrow").symlink_to(outside.rename(cached))
    staged.INSTANCES["mask"](project)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("files"),
        lambda index: index.update(files=[]),
        lambda index: index["files"].update({LAYER: None}),
        lambda index: index["files"][LAYER].pop("checksum"),
        lambda index: index["files"][LAYER].update(columns={"score": "x"}),
        lambda index: index.update(provenance={"model": 3}),
        lambda index: index.update(provenance="x"),
    ],
)
def test_an_index_of_another_form(project, change):
    edit_index(project / "data" / "scores" / METHOD, change)
    refused(project, "mask", r"index\.json: got an index with another '(files|provenance)")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("blocks"),
        lambda index: index.update(n_blocks="3"),
        lambda index: index["layers"][0].update(block="0"),
        lambda index: index["layers"][0].pop("tensor"),
        lambda index: index["layers"][0].update(colour=3),
        lambda index: index.update(layers=None),
    ],
)
def test_an_inventory_of_another_form(project, change):
    edit_index(project / "data" / "activations" / "dense", change)
    refused(project, "score", r"activations/dense: got (an index with another|a layer entry with)")


@pytest.mark.parametrize(
    ("source", "target", "stage", "message"),
    [
        ("evaluation/tokens.arrow", "calibration/tokens.arrow", "calibrate", "got role 'evaluation', expected 'calib"),
        ("calibration/tokens.arrow", "evaluation/tokens.arrow", "evaluate", "got role 'calibration', expected 'eval"),
        (f"pruned/{METHOD}/{SPARSITY}", "models/dense", "calibrate", "got role 'pruned', expected 'dense'"),
        (f"pruned/{METHOD}/{SPARSITY}", "models/dense", "fetch-calibration", "got role 'pruned', expected 'dense'"),
        ("models/dense", f"pruned/{METHOD}/{SPARSITY}", "evaluate", "got role 'dense', expected 'pruned'"),
        (
            f"solved/{METHOD}/{SPARSITY}",
            "activations/dense",
            "score",
            "of kind 'solved', expected .* of kind 'act",
        ),
        (f"scores/{METHOD}", "activations/dense", "score", "of kind 'scores', expected .* of kind 'activations'"),
    ],
)
def test_another_role(project, source, target, stage, message):
    data = project / "data"
    if (data / source).is_dir():
        shutil.rmtree(data / target)
        shutil.copytree(data / source, data / target)
    else:
        shutil.copyfile(data / source, data / target)
    refused(project, stage, message)


@pytest.mark.parametrize(
    ("where", "value", "stage"),
    [
        ("calibration.seed", 7, "calibrate"),
        ("calibration.part", [0.25, 0.5], "calibrate"),
        ("evaluation.perplexity.windows", 3, "evaluate_dense"),
        ("evaluation.perplexity.stride", 8, "evaluate_dense"),
    ],
)
def test_windows_of_earlier_settings(project, where, value, stage):
    staged.change_params(project, where, value)
    refused(project, stage, r"tokens\.arrow: got settings .*dvc repro")


def test_a_model_of_earlier_settings(project):
    shutil.copytree(project / "source" / "model", project / "source" / "another")
    staged.change_params(project, "model.source", "source/another")
    refused(project, "calibrate", r"zpruner\.json: got model 'source/model', expected 'source/another'")
    staged.change_params(project, "model.source", "source/model")
    staged.change_params(project, "model.dtype", "bfloat16")
    refused(project, "calibrate", r"zpruner\.json: got dtype 'float32', expected 'bfloat16'")


def test_a_file_beside_the_checkpoints(project):
    (project / "data" / "models" / "dense" / "adapter_config.json").write_text("{}")
    refused(project, "calibrate", r"adapter_config\.json: got a file that the manifest does not list")
