"""The plan: which stage instances a change of code or settings reaches, counted for one change after another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from stages import plan
from stages._code import Code
from stages._deciding import deciding, instances, parts
from stages._plan import read_planned
from zpruner.errors import ArtifactError
from zpruner.settings.params import Params
from zpruner.settings.reading import check_params

PARAMS: dict[str, Any] = tiny.PARAMS | {
    "methods": {
        "wanda": {"score": "wanda", "group": "row"},
        "updated": {"score": "wanda", "update": "obs"},
        "solver": {"score": "sparsegpt"},
    },
    "sparsities": {"s50": 0.5, "s24": "2:4"},
}
VARIANTS = ("mask", "apply", "evaluate")


def of(*methods: str, stages: tuple[str, ...] = VARIANTS) -> set[str]:
    return {f"{stage} {method} {sparsity}" for stage in stages for method in methods for sparsity in ("s50", "s24")}


ALL = tuple(PARAMS["methods"])
WRAPPED = "@(lambda found: found)\ndef {}("
CODE: dict[str, tuple[str, str, str, set[str]]] = {
    "a comment": ("zpruner/masks/_select.py", "def select(", "# how\ndef select(", set()),
    "a docstring": ("stages/mask.py", '"""Mask: which', '"""Masks: which', set()),
    "a method": (
        "zpruner/methods/wanda.py",
        ".abs_()",
        ".abs_().flip(0)",
        {"score wanda", "score updated"} | of("wanda", "updated"),
    ),
    "a solver": ("zpruner/methods/sparsegpt.py", "return ", "return  1 and ", {"score solver"} | of("solver")),
    "an update": ("zpruner/updates/obs.py", "def update(self", "def update_(self", of("updated")),
    "the selection of masks": (
        "zpruner/masks/_select.py",
        "def select(",
        WRAPPED.format("select"),
        {"masks"},
    ),
    "sums of calibration": ("zpruner/calibration/dense.py", "def collect(", WRAPPED.format("collect"), {"calibrate"}),
    "losses": (
        "zpruner/evaluate/perplexity.py",
        "def token_losses(",
        WRAPPED.format("token_losses"),
        {"evaluate"},
    ),
    "a metric": (
        "zpruner/artifacts/results.py",
        "    loss: float\n",
        "    loss: float\n    bits: float = 0.0\n",
        {"evaluate dense", "report"} | of(*ALL, stages=("evaluate",)),
    ),
    "a chart": ("zpruner/report/style.css.j2", "{", "{ ", {"report"}),
    "how a text is cut": (
        "zpruner/text/windows.py",
        "def calibration_windows(",
        WRAPPED.format("calibration_windows"),
        {"fetch"},
    ),
    "what says how": ("zpruner/runtime/progress.py", "def progress(", WRAPPED.format("progress"), set()),
    "an error's words": ("zpruner/errors.py", "class ZprunerError(", "class ZprunerError(object, ", set()),
    "a command": ("zpruner/cli/_export.py", "def export(", WRAPPED.format("export"), set()),
}


def planned(folder: Path, params: Params) -> dict[str, str]:
    """Return instance -> the digest of its code, of the code in `folder`."""
    code = Code({name: folder / name for name in ("zpruner", "stages")})
    found = {}
    for instance in instances(params):
        starts = [(f"stages.{instance[0]}", "run")]
        starts += [(type(part).__module__, type(part).__qualname__) for part in parts(params, instance)]
        found[" ".join(instance)] = code.digest(*starts)
    return found


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params, dict[str, str]]:
    root = tmp_path_factory.mktemp("code")
    for name in ("zpruner", "stages"):
        shutil.copytree(tiny.REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    params = check_params(PARAMS, "params.yaml")
    return root, params, planned(root, params)


@pytest.mark.parametrize("change", CODE)
def test_a_change_of_code_reaches_the_stages_that_can_run_it(
    copied: tuple[Path, Params, dict[str, str]], change: str
) -> None:
    root, params, before = copied
    name, old, new, expected = CODE[change]
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    try:
        (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        after = planned(root, params)
    finally:
        (root / name).write_text(text, encoding="utf-8")
    changed = {instance for instance in before if before[instance] != after[instance]}
    stages = {instance.split()[0] for instance in changed}
    match change:
        case "the selection of masks":
            assert stages >= {"mask", "report"}, "the report composes methods, to tell the published ones"
            assert not stages & {"fetch", "calibrate"}
        case "sums of calibration":
            assert "calibrate" in changed
            assert not stages & {"fetch", "score", "apply", "report"}
        case "losses":
            assert stages == {"evaluate"}
        case "how a text is cut":
            assert changed == {"fetch calibration", "fetch evaluation", "fetch model"}, "one stage, three instances"
        case _:
            assert changed == expected


SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], set[str]]] = {
    "a method's settings": (lambda p: p["methods"]["wanda"].update(group="layer"), of("wanda")),
    "an update": (lambda p: p["methods"]["updated"].update(update="least_squares"), of("updated")),
    "a sparsity": (lambda p: p["sparsities"].update(s24="1:4"), {f"{s} {m} s24" for s in VARIANTS for m in ALL}),
    "the seed": (lambda p: p["calibration"].update(seed=1), {"fetch calibration"}),
    "the batch size": (lambda p: p["calibration"].update(batch_size=3), {"calibrate"}),
    "the device": (lambda p: p["machine"].update(device="cpu"), set()),
    "which checkpoints are kept": (lambda p: p["evaluation"].update(checkpoints=[]), of(*ALL, stages=("apply",))),
    "windows measured": (
        lambda p: p["evaluation"]["perplexity"].update(windows=2),
        {"fetch evaluation", "evaluate dense"} | of(*ALL, stages=("evaluate",)),
    ),
    "layers left out": (
        lambda p: p["model"].update(ignore=["*.0.*"]),
        {"calibrate", "gradients", "evaluate dense"} | of(*ALL, stages=("mask", "evaluate")),
    ),
    "Gram matrices": (lambda p: p["calibration"].update(gram=False), {"calibrate"}),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_a_setting_reaches_the_instances_that_it_decides(change: str) -> None:
    alter, expected = SETTINGS[change]
    changed = json.loads(json.dumps(PARAMS))
    alter(changed)
    before, after = (check_params(found, "params.yaml") for found in (PARAMS, changed))
    differing = {" ".join(i) for i in instances(before) if deciding(before, i) != deciding(after, i)}
    assert differing - {"report"} == expected


def test_a_plan_of_other_settings_or_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.make_sources(tmp_path)
    tiny.plan(tmp_path)
    params = check_params(tiny.PARAMS, "params.yaml")
    folder = tmp_path / "data" / "plan"
    assert read_planned(folder, params, ("calibrate",)).settings["batch_size"] == 2
    with pytest.raises(ArtifactError, match=r"calibrate\.json: got no file"):
        read_planned(tmp_path, params, ("calibrate",))
    other = check_params({**tiny.PARAMS, "calibration": {**tiny.PARAMS["calibration"], "batch_size": 3}}, "params.yaml")
    with pytest.raises(ArtifactError, match=r"calibrate\.json: got a plan of other settings"):
        read_planned(folder, other, ("calibrate",))
    monkeypatch.setattr("stages._plan.source_digest", lambda: "other")
    with pytest.raises(ArtifactError, match=r"got a plan of other code, expected one of today's.*dvc repro"):
        read_planned(folder, params, ("calibrate",))


def test_the_plan_is_the_same_every_time(tmp_path: Path) -> None:
    tiny.make_sources(tmp_path)
    tiny.plan(tmp_path)
    before = tiny.files_of(tmp_path / "data" / "plan")
    plan.run(tmp_path)
    assert tiny.files_of(tmp_path / "data" / "plan") == before
    assert len(before) == 4 + 5 + 2 + 16 + 1 - 1
