"""The command `zpruner`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zpruner
from zpruner.cli import main
from zpruner.cli._estimate import estimate, read_shapes
from zpruner.cli._options import NEWS, NEWS_SHA256
from zpruner.cli._prune import composition_settings, pattern_of
from zpruner.cli._validate import check_compositions
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.params import load

Command = Callable[..., tuple[int, str, str]]
TEXT = {"source": "source/text.txt", "seqlen": 32}
PRUNE = ("--calibration", "source/text.txt", "--nsamples", "6", "--seqlen", "32")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.make_sources(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom zpruner.cli import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'pyarrow', 'datasets', 'lm_eval', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("prune", "evaluate", "export", "inspect", "methods", "validate"):
        assert f"\n  {name} " in done.stdout


def test_the_public_page_is_lazy_and_complete() -> None:
    assert set(zpruner.__all__) <= set(dir(zpruner))
    for name in zpruner.__all__:
        assert getattr(zpruner, name) is not None
    assert callable(zpruner.calibrate), "the room of that name hides the function"
    with pytest.raises(AttributeError, match="no attribute 'prume'"):
        zpruner.prume  # noqa: B018


def test_importing_a_room_does_not_hide_the_function_of_its_name() -> None:
    code = "import zpruner.calibrate\nimport zpruner\nprint(zpruner.calibrate.__class__.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "function"


def test_prune_writes_an_ordinary_checkpoint(place: Path, command: Command) -> None:
    code, out, err = command(
        "prune", "source/model", *PRUNE, "-o", "out", "--evaluate", "source/text.txt", "--evaluate-windows", "4"
    )
    assert (code, err) == (0, ""), "not quiet although standard error is no terminal"
    assert "21 layers, 50.00% of their weights removed" in out
    model = AutoModelForCausalLM.from_pretrained("out")
    dense = AutoModelForCausalLM.from_pretrained("source/model")
    assert AutoTokenizer.from_pretrained("out")("abc")["input_ids"]
    for (name, pruned), (_, before) in zip(model.named_parameters(), dense.named_parameters(), strict=True):
        if ".layers." in name and pruned.ndim == 2:
            assert int((pruned == 0).sum()) == pruned.numel() // 2, name
            kept = pruned != 0
            assert torch.equal(pruned[kept], before[kept])
        else:
            assert torch.equal(pruned, before), name
    card = (place / "out/README.md").read_text()
    assert "neither smaller nor faster" in card
    assert "| perplexity (source/text.txt, 4 windows of 32) |" in card
    assert not [p for p in place.iterdir() if p.name.startswith(".")], "leftovers"


def test_prune_with_a_pattern_an_update_and_propagation_equals_the_library(place: Path, command: Command) -> None:
    options = ("--method", "wanda", "--sparsity-type", "2:4", "--update", "least_squares", "--propagation", "pruned")
    assert command("prune", "source/model", *PRUNE, "-o", "out", *options)[0] == 0
    model, tokenizer = zpruner.load("source/model")
    windows = zpruner.load_windows("source/text.txt", model, tokenizer, nsamples=6, seqlen=32)
    zpruner.prune_sequentially(model, windows, method={"score": "wanda", "update": "least_squares"}, sparsity="2:4")
    written = AutoModelForCausalLM.from_pretrained("out")
    for (name, expected), (_, found) in zip(model.named_parameters(), written.named_parameters(), strict=True):
        assert torch.equal(expected, found), name


def test_an_existing_folder_is_kept_without_force(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    before = tiny.files_of(place / "out")
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity-ratio", "0.25")
    assert code == 1
    assert err == (
        "error: --output out: got a path that exists, expected a new folder. "
        "Choose another, or add --force to replace it.\n"
    )
    assert tiny.files_of(place / "out") == before
    assert command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity-ratio", "0.25", "--force")[0] == 0
    assert "0.25 of the weights removed" in (place / "out/README.md").read_text()


def test_force_never_replaces_what_is_no_checkpoint(place: Path, command: Command) -> None:
    (place / "thesis").mkdir()
    (place / "thesis/text.txt").write_text("years of work")
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "thesis", "--force")
    assert code == 1
    assert "no checkpoint folder" in err
    assert (place / "thesis/text.txt").read_text() == "years of work"


def test_a_failed_write_leaves_the_old_checkpoint(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    before = tiny.files_of(place / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zpruner.model.write_manifest", full)
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--force")
    assert code == 1
    assert "no space left" in err
    assert tiny.files_of(place / "out") == before
    assert sorted(p.name for p in place.iterdir()) == ["out", "params.yaml", "source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "wnada"), "Did you mean 'wanda'?"),
        (("--sparsity-ratio", "1.5"), "--sparsity-ratio: got 1.5, expected a ratio in [0, 1)"),
        (("--sparsity", "nan"), "got nan, expected a ratio in [0, 1)"),
        (("--sparsity-type", "4:2"), "--sparsity-type: got '4:2'"),
        (("--sparsity-type", "3:7"), "32 inputs for the pattern 3:7"),
        (("--set", "power"), "expected NAME=VALUE"),
        (("--set", "powr=2.0"), "unknown key 'powr'"),
        (("--nsamples", "9000"), "at least 288000 for 9000 windows"),
        (("--calibration", "nothing.txt"), "nothing.txt: got no such file"),
        (("--sha256", "0" * 64), "content with SHA-256"),
    ],
)
def test_mistakes_are_one_sentence(place: Path, command: Command, options: tuple[str, str], message: str) -> None:
    code, out, err = command("prune", "source/model", *PRUNE, "-o", "out", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (place / "out").exists()


def test_ctrl_c_is_one_sentence(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zpruner.model.write_manifest", interrupt)  # at the worst moment: the weights are written
    code, out, err = command("prune", "source/model", *PRUNE, "-o", "out")
    assert (code, out, err) == (130, "", "Interrupted; nothing was written.\n")
    assert sorted(p.name for p in place.iterdir()) == ["params.yaml", "source"]


@pytest.mark.parametrize("folder", ["source/text.txt/out", "/proc/out"])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_computed(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr("zpruner.cli._options.open_model", lambda *_: pytest.fail("a long run for nothing"))
    code, _, err = command("prune", "source/model", *PRUNE, "-o", folder)
    assert code == 1
    assert err.startswith(f"error: --output {folder}: got ")
    assert err.count("\n") == 1


def test_any_other_trouble_of_the_system_is_one_sentence(command: Command, place: Path) -> None:
    code, _, err = command("validate", "params.yaml")
    assert code == 1
    assert err == "error: params.yaml/params.yaml: Not a directory.\n"


def test_the_default_calibration_is_that_of_the_repository() -> None:
    settings = load(tiny.REPOSITORY / "params.yaml").calibration
    assert (settings.source, settings.sha256) == (NEWS, NEWS_SHA256)


def test_wrong_usage_exits_with_2(command: Command) -> None:
    code, _, err = command("prune", "model")
    assert code == 2
    assert "--output" in err


@pytest.mark.parametrize(
    ("ratio", "kind", "expected"),
    [
        (None, "unstructured", "0.5"),
        (0.65, "unstructured", "0.65"),
        (None, "2:4", "2:4"),
        (0.5, "2:4", "2:4"),
        (0.75, "1:4", "1:4"),
    ],
)
def test_pattern_of(ratio: float | None, kind: str, expected: str) -> None:
    assert pattern_of(ratio, kind) == expected


@pytest.mark.parametrize(("ratio", "kind"), [(0.25, "1:4"), (0.6, "2:4"), (None, "0.5")])
def test_a_ratio_that_n_m_does_not_have(ratio: float | None, kind: str) -> None:
    with pytest.raises(InvalidSettingError):
        pattern_of(ratio, kind)


def test_no_pattern_at_all() -> None:
    with pytest.raises(InvalidPatternError):
        pattern_of(None, "structured")


def test_options_change_a_preset() -> None:
    found = composition_settings("ria", "row", ["power=0.25"], None, "obs")
    assert found == {"score": "ria", "group": "row", "settings": {"power": 0.25}, "update": "obs"}
    assert composition_settings("sparsegpt", None, [], None, None) == {"score": "sparsegpt", "update": "obs"}


def test_evaluate_measures_what_the_library_measures(place: Path, command: Command) -> None:
    code, out, _ = command("evaluate", "source/model", "--text", "source/text.txt", "--seqlen", "32", "--windows", "5")
    assert code == 0
    model, tokenizer = zpruner.load("source/model")
    ids = torch.tensor(tokenizer((place / "source/text.txt").read_text(), verbose=False)["input_ids"])[:160]
    expected = zpruner.perplexity(model, ids.reshape(5, 32), batch_size=5)
    assert float(out.split()[1]) == pytest.approx(expected, abs=1e-3)
    assert "windows     5 of 32 tokens" in out
    assert "0.00% of the prunable weights" in out


def test_evaluate_by_protocol_on_a_local_copy(place: Path, command: Command) -> None:
    rows = "".join(json.dumps({"sentence": tiny.words(9, seed)}) + "\n" for seed in range(30))
    (place / "ptb.jsonl").write_text(rows)
    options = ("--protocol", "ptb", "--text", "ptb.jsonl", "--seqlen", "32")
    code, out, _ = command("evaluate", "source/model", *options)
    assert code == 0
    model, tokenizer = zpruner.load("source/model")
    ids = torch.tensor(tokenizer(" ".join(tiny.words(9, seed) for seed in range(30)))["input_ids"])
    count = len(ids) // 32
    expected = zpruner.perplexity(model, ids[: count * 32].reshape(count, 32))
    assert float(out.split()[1]) == pytest.approx(expected, abs=1e-3)
    code, _, err = command("evaluate", "source/model", *options, "--windows", "3")
    assert code == 1
    assert "as the protocol 'ptb' is published" in err


def test_evaluate_needs_a_text(place: Path, command: Command) -> None:
    code, _, err = command("evaluate", "source/model")
    assert code == 1
    assert "neither --text nor --protocol" in err


@pytest.fixture
def evaluated(place: Path, command: Command) -> Path:
    """A project with one variant as the stages leave it."""
    assert command("prune", "source/model", *PRUNE, "-o", "data/pruned/wanda/s50")[0] == 0
    shared = {"windows": 4, "seqlen": 32}
    tasks = {"boolq": {"acc": 0.5, "acc_stderr": 0.1, "version": 2.0, "samples": 9}}
    dense = {**shared, "perplexity": 27.5, "zero_shot": {"sparsity": 0.0, "tasks": tasks}}
    pruned = {**shared, "perplexity": 31.25, "zero_shot": {"sparsity": 0.5, "tasks": {"boolq": {"acc": 0.25}}}}
    pruned |= {"divergence": {"kl": 0.125, "top1_agreement": 0.75}}
    for name, metrics in (("dense", dense), ("wanda/s50", pruned)):
        path = place / f"data/evaluation/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics))
    return place


def test_export_copies_a_variant_with_what_was_measured(evaluated: Path, command: Command) -> None:
    code, out, _ = command("export", "wanda", "s50", "-o", "release")
    assert (code, out) == (0, "release: 4 measurements in its README.md\n")
    card = (evaluated / "release/README.md").read_text()
    for line in (
        "| perplexity (4 windows of 32 tokens) | 27.5 | 31.25 |",
        "| KL from dense per token, nats | 0 | 0.125 |",
        "| same top token as dense | 1 | 0.75 |",
        "| boolq acc | 0.5 | 0.25 |",
    ):
        assert line in card
    before, after = tiny.files_of(evaluated / "data/pruned/wanda/s50"), tiny.files_of(evaluated / "release")
    assert {k for k in after if after[k] != before.get(k)} == {"README.md", "zpruner.json"}
    assert command("inspect", "release")[0] == 0, "its checksums fit"
    code, _, err = command("export", "wanda", "s50", "-o", "release")
    assert code == 1
    assert "--force" in err


def test_a_damaged_checkpoint_is_not_measured(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    path = place / "out/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for words in (["evaluate", "out", "--text", "source/text.txt", "--seqlen", "32"], ["prune", "out", *PRUNE]):
        code, _, err = command(*words, *(["-o", "again"] if words[0] == "prune" else []))
        assert code == 1
        assert "out/model.safetensors: got checksum" in err
    assert not (place / "again").exists()


def test_windows_longer_than_the_model_takes(place: Path, command: Command) -> None:
    code, _, err = command("prune", "source/model", *PRUNE, "--seqlen", "129", "-o", "out")
    assert code == 1
    assert "seqlen: got 129, expected at most 128, the most tokens that the model takes at once" in err
    assert not (place / "out").exists()


def test_layers_named_by_ignore_stay_dense(place: Path, command: Command) -> None:
    ignore = ["--ignore", "*.mlp.*", "--ignore", "*.0.*"]
    for propagation in ("dense", "pruned"):
        code, out, _ = command(
            "prune", "source/model", *PRUNE, *ignore, "--blocks", "model.layers", "--propagation", propagation, "-o",
            f"out-{propagation}",
        )  # fmt: skip
        assert code == 0
        assert out.startswith("8 layers, 50.00% of their weights removed")
    code, _, err = command("prune", "source/model", *PRUNE, "--blocks", "model.nothing", "-o", "none")
    assert code == 1
    assert "model.nothing" in err


def test_inspect_a_checkpoint_of_others(place: Path, command: Command) -> None:
    code, out, _ = command("inspect", "source/model")
    assert code == 0
    assert "no zpruner.json, so no checksums" in out
    assert "zeros 0.0000%" in out


@pytest.mark.parametrize("name", ["dense", "wanda/s50"])
@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_export_needs_a_whole_evaluation(evaluated: Path, command: Command, name: str, text: str | None) -> None:
    path = evaluated / f"data/evaluation/{name}.json"
    path.unlink() if text is None else path.write_text(text)
    code, _, err = command("export", "wanda", "s50", "-o", "release")
    assert code == 1
    assert f"data/evaluation/{name}.json" in err
    assert "Run `dvc repro evaluate_dense evaluate@wanda-s50`" in err
    assert not (evaluated / "release").exists()


def test_methods_lists_names_defaults_and_papers(command: Command) -> None:
    code, out, _ = command("methods")
    assert code == 0
    text = " ".join(out.split())
    for expected in ("2306.11695", "row_weight: 0.7", "sq_sum", "max_swaps: 100", "least_squares", '"score": "wanda"'):
        assert expected in text


def test_inspect_a_checkpoint_and_what_damage_does(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    code, out, _ = command("inspect", "out")
    assert code == 0
    assert "every checksum right" in out
    assert "model.layers.0.mlp.down_proj.weight: float32 (32, 48), zeros 50.0000%" in out
    assert "more (--all lists them)" in out
    weights = place / "out/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    code, _, err = command("inspect", "out")
    assert code == 1
    assert "model.safetensors: got checksum" in err


def test_inspect_artifacts(command: Command, tmp_path: Path) -> None:
    from zpruner.store import Provenance, artifact_writer
    from zpruner.work import Work

    keep = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with artifact_writer(Work(tmp_path / "work", "mask", "k"), "masks", Provenance(method="wanda")) as writer:
        writer.write("layer", {"keep": keep})
        writer.finish(tmp_path / "masks")
    code, out, _ = command("inspect", tmp_path / "masks")
    assert code == 0
    assert "kind      masks" in out
    assert "method    wanda" in out
    assert "layer: keep (2, 4)" in out
    assert "sparsity 62.5000%" in out
    code, out, _ = command("inspect", tmp_path / "masks/layer.arrow")
    assert "matches the index" in out
    file = tmp_path / "masks/layer.arrow"
    file.write_bytes(file.read_bytes()[:-9])
    for path in (file, tmp_path / "masks"):
        code, out, err = command("inspect", path)
        assert (code, out) == (1, "")
        assert str(file) in err


@pytest.mark.parametrize("name", ["missing", "folder", "text.txt"])
def test_inspect_what_is_no_artifact(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    code, _, err = command("inspect", tmp_path / name)
    assert code == 1
    assert str(tmp_path / name) in err


def test_validate_a_good_project(place: Path, command: Command) -> None:
    code, out, _ = command("validate")
    assert code == 0
    assert "2 methods x 2 sparsities = 4 variants" in out
    assert "21 prunable layers in 3 blocks" in out
    assert {line.split()[0] for line in out.splitlines() if line} >= {"fetch", "calibrate", "score", "mask", "apply"}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("methods", {"a": {"score": "wanda", "settings": {"p": 1}}}, "methods.a: pruning method 'wanda'"),
        ("methods", {"a": {"score": "wanda", "update": "obs"}}, "methods.a: got a calibration without gram"),
        ("sparsities", {"s": "3:7"}, "for the pattern 3:7"),
        ("evaluation", {"perplexity": {**TEXT, "protocol": "c4"}}, "as the protocol 'c4' is published"),
        (
            "evaluation",
            {"perplexity": TEXT, "zero_shot": {"tasks": ["a"], "include_path": "mine"}},
            "'mine', expected a folder",
        ),
    ],
)
def test_validate_finds_mistakes(
    place: Path, command: Command, section: str, change: dict[str, object], message: str
) -> None:
    params = tiny.read_params(place)
    params["calibration"]["gram"] = False
    params[section] = change
    tiny.write_params(place, params)
    code, _, err = command("validate")
    assert code == 1
    assert message in err


@pytest.mark.parametrize(
    ("source", "sha256", "message"),
    [
        ("gone.txt", None, "no file or folder"),
        ("pip:gensim==4.4.0/a.txt", None, "calibration.sha256: got null"),
        ("hf:acme/news@main", None, "'hf:acme/news@main' without sha256"),
    ],
)
def test_validate_checks_sources(place: Path, command: Command, source: str, sha256: str | None, message: str) -> None:
    params = tiny.read_params(place)
    params["calibration"] |= {"source": source, "sha256": sha256}
    tiny.write_params(place, params)
    code, _, err = command("validate")
    assert code == 1
    assert message in err


def test_validate_checks_the_search(place: Path, command: Command) -> None:
    params = tiny.read_params(Path())
    params["search"] = {
        "text": {"source": "no/such.txt", "seqlen": 16},
        "sparsities": [0.5],
        "initial": ["W", "mul(W)"],
    }
    tiny.write_params(Path(), params)
    code, _, err = command("validate")
    assert code == 1
    assert "search.initial[1]: formula, column 6" in err
    params["search"]["initial"] = ["W"]
    tiny.write_params(Path(), params)
    code, _, err = command("validate")
    assert "search.text.source: got no file or folder no/such.txt" in err


def test_validate_without_the_model_says_what_it_cannot_check(place: Path, command: Command) -> None:
    params = tiny.read_params(place)
    params["model"] |= {"source": "pip:models==1.0/model.gguf", "sha256": "0" * 64}
    tiny.write_params(place, params)
    code, out, _ = command("validate")
    assert code == 0
    assert "comes from the package models 1.0" in out
    assert "nothing is estimated" in out


def test_estimates_grow_with_what_causes_them(place: Path) -> None:
    params = load(place / "params.yaml")
    shapes = read_shapes(params, place)
    assert shapes is not None
    assert shapes.prunable == sum(p.numel() for p in tiny.build("llama").model.layers.parameters() if p.ndim == 2)
    rate = {"model": 1e9, "float32": 1e9}

    def table(changed: object) -> dict[str, object]:
        return {e.stage: e for e in estimate(changed, check_compositions(changed), shapes, rate)}  # type: ignore[arg-type]

    before = table(params)
    assert before["mask"].disk == 4 * shapes.prunable / 8
    assert before["score"].disk == 2 * 4 * shapes.prunable
    data = json.loads((place / "params.yaml").read_text())
    data["calibration"]["gram"] = False
    data["sparsities"]["s60"] = 0.6
    tiny.write_params(place, data)
    after = table(load(place / "params.yaml"))
    assert after["calibrate"].disk < before["calibrate"].disk
    assert after["apply"].disk == pytest.approx(1.5 * before["apply"].disk)
