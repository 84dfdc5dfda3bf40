"""Labels that a shell would run: DVC itself quotes them, whoever starts it, and every stage refuses them."""

import shutil

import pytest
import tiny

pytestmark = pytest.mark.xdist_group("finished_project")
HOSTILE = ["x;touch F;#", "$(touch F)", "`touch F`", "a'b;touch F;'", "a\ntouch F\n", 'a";touch F;"', "& touch F &"]


@pytest.mark.parametrize("kind", ["methods", "sparsities"])
def test_hostile_labels_are_quoted_and_refused(finished_project, tmp_path, kind):
    project = shutil.copytree(finished_project, tmp_path / "project", symlinks=True)
    params = tiny.read_params(project)
    params[kind] |= {label: {"score": "wanda"} if kind == "methods" else 0.5 for label in HOSTILE}
    tiny.write_params(project, params)
    stage = "score" if kind == "methods" else "mask"
    last = HOSTILE[-1] if kind == "methods" else f"wanda-{HOSTILE[-1]}"
    for command in ([], ["-f", "-s", f"{stage}@{last}"]):  # the earlier stages are cached, or passed over
        done = tiny.run(["dvc", "repro", *command], project, check=False)
        assert done.returncode
        assert f"{kind}: got the label 'x;touch F;#'" in done.stderr
        assert not (project / "F").exists()
    assert f"python -m stages.{stage} --method " in done.stdout
    assert "'& touch F &'" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["methods", "sparsities"])
def test_no_hostile_label_runs_however_dvc_is_told_to_go_on(finished_project, tmp_path, kind):
    project = shutil.copytree(finished_project, tmp_path / "project", symlinks=True)
    params = tiny.read_params(project)
    params[kind] |= {label: {"score": "wanda"} if kind == "methods" else 0.5 for label in HOSTILE}
    tiny.write_params(project, params)
    for command in (["-k"], ["-f", "--ignore-errors"]):
        assert tiny.run(["dvc", "repro", *command], project, check=False).returncode
        assert not (project / "F").exists()
