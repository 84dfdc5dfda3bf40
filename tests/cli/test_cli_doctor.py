"""`zpruner doctor`: damage in a project and in DVC's cache is found, deleted, and made again by the named command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one variant after `dvc repro`, whose data and cache share their files."""
    root = tiny.make_project(tmp_path_factory.mktemp("doctor") / "finished")
    params = tiny.read_params(root)
    params["methods"] = {"wanda": {"score": "wanda", "group": "row"}}
    params["sparsities"] = {"s50": 0.5}
    tiny.write_params(root, params)
    tiny.repro(root)
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", str(finished), str(tmp_path / "project")], check=True)  # keeps files that share bytes
    return tmp_path / "project"


def flip(path: Path) -> None:
    """Alter a byte in place, as a bad disk does: size and time of change stay."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def outputs(root: Path) -> dict[str, bytes]:
    found = tiny.files_of(root / "data", leave_out=(".work", ".downloads"))
    return {name: data for name, data in found.items() if "costs" not in name and "report" not in name}


def doctor(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return tiny.run([sys.executable, "-m", "zpruner", "doctor", *options], root, check=False)


def commands_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize(
    ("damaged", "failing"),
    [
        ("scores/wanda/model.layers.1.mlp.up_proj.arrow", "mask --method wanda --sparsity s50"),
        ("scores/wanda/index.json", "mask --method wanda --sparsity s50"),
        ("models/dense/model.safetensors", "calibrate"),
        ("models/dense/tokenizer.json", "fetch calibration"),
        ("calibration/tokens.arrow", "calibrate"),
        ("pruned/wanda/s50/model-00002-of-00004.safetensors", "evaluate --method wanda --sparsity s50"),
        ("evaluation/dense.json", "report"),
        ("costs/calibrate.json", "report"),
    ],
)
def test_the_command_in_the_message_brings_everything_back(project: Path, damaged: str, failing: str) -> None:
    expected = outputs(project)
    assert doctor(project).returncode == 0
    flip(project / "data" / damaged)
    done = tiny.run([sys.executable, "-m", f"stages.{failing.split()[0]}", *failing.split()[1:]], project, check=False)
    assert done.returncode == 1
    assert Path(damaged).name in done.stderr
    said = doctor(project)
    assert said.returncode == 1, said.stdout
    assert Path(damaged).name in said.stdout
    assert "1 of " in said.stdout
    assert commands_in(done.stderr)[0] == "zpruner doctor --mend"
    for command in commands_in(done.stderr):
        assert command.startswith(("zpruner doctor --mend", "dvc repro"))
        tiny.run(command.split(), project)
    assert outputs(project) == expected
    assert doctor(project).returncode == 0


def test_what_only_dvc_has_a_checksum_of(project: Path) -> None:
    for path in (project / "data" / "report" / "report.html", next((project / ".dvc/cache").rglob("*.dir"))):
        flip(path)
    assert "2 of " in doctor(project).stdout
    assert not (project / "data" / "report" / "report.html").exists() or doctor(project, "--mend").returncode == 0
    tiny.run(["dvc", "repro"], project)
    assert doctor(project).returncode == 0


def test_damage_that_dvc_has_taken_over(project: Path) -> None:
    expected = outputs(project)
    path = project / "data" / "scores" / "wanda" / "model.layers.1.mlp.up_proj.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    tiny.run(["dvc", "commit", "-f", "score@wanda"], project)
    assert doctor(project, "--mend").returncode == 0
    tiny.run(["dvc", "repro"], project)
    assert outputs(project) == expected
    assert doctor(project).returncode == 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("how", "trials"), [("dvc", 30), ("flow", 6)])
def test_damage_anywhere_is_refused_and_mended(how: str, trials: int, tmp_path: Path) -> None:
    stages = tiny.REPOSITORY / "tests" / "stages"
    paths = f"{stages.parent}:{stages}:{tiny.REPOSITORY}"
    command = [sys.executable, str(stages / "pipeline_damage_driver.py"), str(tmp_path), how, str(trials)]
    done = tiny.run(command, tiny.REPOSITORY, PYTHONPATH=paths)
    assert sum(json.loads(done.stdout)["outcomes"].values()) == trials
