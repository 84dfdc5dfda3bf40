"""What `dvc repro` executes after a change: the stage instances that the change reaches, and no other."""

import json
import shutil

import pytest
import staged
import tiny

pytestmark = pytest.mark.xdist_group("finished_project")  # which is made once, by one worker
VARIANT = ("mask", "apply", "pack", "evaluate")


@pytest.fixture
def project(finished_project, tmp_path):
    return shutil.copytree(finished_project, tmp_path / "project", symlinks=True)


def chain(method, *sparsities, score=True):
    """Return the instances of a method's variants, its score included."""
    scored = [f"score@{method}"] if score else []
    return scored + [f"{stage}@{method}-{label}" for label in sparsities for stage in VARIANT]


def executes(root, *expected):
    executed = tiny.repro(root)
    assert sorted(executed) == sorted(["plan", *expected, "report"])
    assert executed[-1] == "report"
    return root / "data"


def keep_only(root, methods, sparsities):
    """List fewer variants, so that a test executes fewer instances."""
    params = tiny.read_params(root)
    params["methods"] = {label: params["methods"][label] for label in methods}
    params["sparsities"] = {label: params["sparsities"][label] for label in sparsities}
    tiny.write_params(root, params)


def table(root):
    return (root / "data" / "report" / "report.md").read_text(encoding="utf-8")


def test_without_a_change_nothing_is_executed(project):
    assert tiny.repro(project) == []


@pytest.mark.slow
def test_the_device_says_how_and_not_what(project):
    staged.change_params(project, "machine.device", "cpu")
    assert tiny.repro(project) == []


def test_add_a_sparsity(project):
    before = tiny.files_of(project / "data", leave_out=("plan", "report", "costs", ".work"))
    staged.change_params(project, "sparsities.s75", "1:4")
    data = executes(project, *chain("wanda", "s75", score=False), *chain("zpruner", "s75", score=False))
    after = tiny.files_of(data, leave_out=("plan", "report", "costs", ".work"))
    assert before.items() <= after.items()
    assert json.loads((data / "evaluation" / "wanda" / "s75.json").read_text())["sparsity"] == pytest.approx(0.75)
    assert "s75" in table(project)
    page = (data / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count(">1 of 4<") == 2, "the scores of the new ones came from the cache"
    assert page.count(">4 of 4<") == 4


def test_change_one_methods_file(project):
    keep_only(project, ["wanda", "zpruner"], ["s50"])
    path = project / "zpruner" / "methods" / "wanda.py"
    mask = project / "data" / "masks" / "wanda" / "s50"
    before = tiny.files_of(mask)
    path.write_text(path.read_text(encoding="utf-8").replace(".abs_()", ".abs_().flip(0)"), encoding="utf-8")
    executes(project, *chain("wanda", "s50"))
    after = tiny.files_of(mask)
    assert after.keys() == before.keys()
    assert all(after[name] != data for name, data in before.items())


@pytest.mark.slow
def test_change_of_a_comment_in_one_methods_file(project):
    """The same scores again: what reads them is left alone."""
    path = project / "zpruner" / "methods" / "wanda.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    executes(project, "score@wanda")


def test_change_the_calibration_seed(project):
    keep_only(project, ["wanda"], ["s50"])
    staged.change_params(project, "calibration.seed", 1)
    executes(project, "fetch@calibration", "calibrate", "gradients", *chain("wanda", "s50"))


def test_remove_a_variant_and_add_it_again(project):
    whole = tiny.read_params(project)
    evaluated = project / "data" / "evaluation" / "zpruner"
    before = tiny.files_of(project / "data", leave_out=("report", ".work"))
    assert "zpruner" in table(project)
    keep_only(project, ["wanda"], ["s50", "s24"])
    assert tiny.repro(project) == ["plan", "report"]
    assert "zpruner" not in table(project).split("##")[0]
    for folder in ("scores", "masks", "pruned", "evaluation"):
        shutil.rmtree(project / "data" / folder / "zpruner")
    tiny.write_params(project, whole)
    # the plan links to installed packages, and what DVC does not keep it cannot restore: that stage runs, no other does
    assert tiny.repro(project) in (["plan"], ["plan", "report"])
    assert evaluated.is_dir()
    assert tiny.files_of(project / "data", leave_out=("report", ".work")) == before
    assert "zpruner" in table(project)


@pytest.mark.slow
def test_change_one_methods_hyperparameter(project):
    staged.change_params(project, "methods.zpruner.settings", {"power": 2.0})
    executes(project, *chain("zpruner", "s50", "s24"))


@pytest.mark.slow
def test_add_a_method(project):
    staged.change_params(project, "methods.ria", {"score": "ria", "group": "layer"})
    executes(project, *chain("ria", "s50", "s24"))


@pytest.mark.slow
def test_gradients_are_collected_when_the_first_method_needs_them_and_not_again(project):
    keep_only(project, ["wanda"], ["s50"])
    formulas = project / "formulas"
    shutil.copy(formulas / "pruner_zero.json", formulas / "mine.json")
    settings = {"formula": {"file": "mine.json"}}
    staged.change_params(project, "methods.mine", {"score": "expression", "settings": settings})
    # Every score looks at the gradients; Wanda's come out as they were, and nothing below it runs.
    executes(project, "gradients", "score@wanda", *chain("mine", "s50"))
    staged.change_params(project, "methods.wanda", {"score": "wanda", "group": "layer"})
    executes(project, *chain("wanda", "s50"))
    (formulas / "mine.json").write_text('{"data": "mul", "left": {"data": "W"}, "right": {"data": "G"}}')
    executes(project, *chain("mine", "s50"))


@pytest.mark.slow
def test_the_models_own_text_is_written_where_a_source_asks_for_it_and_not_again(project):
    keep_only(project, ["wanda"], ["s50"])
    params = tiny.read_params(project)
    texts = {key: params["calibration"].pop(key) for key in ("source", "sha256", "documents", "part", "sampling")}
    after = ("fetch@calibration", "calibrate", "gradients", *chain("wanda", "s50"))
    params["calibration"]["source"] = [{"source": texts["source"], "documents": "lines", "part": [0.0, 0.5]}, "self"]
    tiny.write_params(project, params)
    executes(project, "sources", "generate", *after)
    text = project / "source" / "text.txt"
    text.write_text(tiny.words(20, 99) + "\n" + text.read_text())
    assert "generate" not in tiny.repro(project, "calibrate")
    staged.change_params(project, "calibration.seed", 1)
    assert tiny.repro(project, "calibrate") == ["plan", "generate", "fetch@calibration", "calibrate"]
    params["calibration"] |= texts
    tiny.write_params(project, params)
    assert "generate" not in tiny.repro(project, "calibrate"), "what it was before comes from the run cache"


@pytest.mark.slow
def test_change_the_evaluation(project):
    staged.change_params(project, "evaluation.perplexity.windows", 4)
    variants = [f"evaluate@{method}-{label}" for method in ("wanda", "zpruner") for label in ("s50", "s24")]
    executes(project, "fetch@evaluation", "evaluate_dense", *variants)


@pytest.mark.slow
def test_change_the_update_of_a_method(project):
    """The scores stay what they were; mask and weights are made anew."""
    staged.change_params(project, "methods.wanda.update", "least_squares")
    data = executes(project, *chain("wanda", "s50", "s24"))
    assert json.loads((data / "evaluation" / "wanda" / "s50.json").read_text())["sparsity"] == pytest.approx(0.5)


@pytest.mark.slow
def test_metrics_plots_and_experiments(project):
    file = "data/evaluation/wanda/s50.json"
    keep_only(project, ["wanda"], ["s50"])
    tiny.repro(project)
    tiny.run(["git", "add", "."], project)
    tiny.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"], project)
    metrics = json.loads(tiny.run(["dvc", "metrics", "show", "--json"], project).stdout)
    found = metrics[""]["data"]["data/report/summary.json"]["data"]
    assert found["wanda-s50"]["sparsity"] == pytest.approx(0.5)
    whole = json.loads(tiny.run(["dvc", "metrics", "show", "--json", file], project).stdout)
    assert whole[""]["data"][file]["data"]["layer_error"] > 0, "the rest of a variant is a question away"
    tiny.run(["dvc", "plots", "show", "-o", "plots"], project)
    assert (project / "plots" / "index.html").is_file()
    # dvc.yaml reads the labels of methods and sparsities: -S changes a value beneath them.
    tiny.run(["dvc", "exp", "run", "-S", "sparsities.s50=0.25"], project)
    metrics = json.loads(tiny.run(["dvc", "metrics", "show", "--json"], project).stdout)
    found = metrics[""]["data"]["data/report/summary.json"]["data"]
    assert found["wanda-s50"]["sparsity"] == pytest.approx(0.25)


@pytest.mark.slow
def test_change_what_some_methods_share(project):
    """All scores run again; of the masks only those of methods that use the helper, as the others' scores are equal."""
    params = tiny.read_params(project)
    params["methods"] = {"wanda": params["methods"]["wanda"], "solver": {"score": "sparsegpt"}}
    params["sparsities"] = {"s50": 0.5}
    tiny.write_params(project, params)
    tiny.repro(project)
    path = project / "zpruner" / "methods" / "_block.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    reached = ["score@wanda", "score@solver", "mask@solver-s50", "evaluate@solver-s50", "report"]
    assert sorted(tiny.repro(project)) == sorted(reached)
