"""`zpruner doctor` on a project whose cache is laid out by hand; tests/cli/test_cli_doctor.py has DVC do it."""

import hashlib
import os
import sys

import pytest
import staged
import tiny
from typer.testing import CliRunner

from zpruner.artifacts.work import Work
from zpruner.cli import app
from zpruner.errors import InvalidSettingError, LockedError

SCORES = f"scores/{staged.METHOD}"


@pytest.fixture
def project(tmp_path):
    root = staged.run_all(staged.make(tmp_path), "score")
    tiny.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], root)
    for path in sorted((root / "data").rglob("*")):
        if path.is_file() and not path.is_symlink() and ".work" not in path.parts:
            os.link(path, cached(root, path.read_bytes()))
    return root


def cached(root, data):
    digest = hashlib.md5(data).hexdigest()
    path = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def doctor(root, *options):
    return CliRunner().invoke(app, ["doctor", str(root), *options])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def test_damage_is_told_and_only_mended_where_it_is_asked_for(project):
    assert (doctor(project).exit_code, doctor(project).output.count("damaged: ")) == (0, 0)
    path = project / "data" / SCORES / "model.layers.2.mlp.up_proj.arrow"
    twin = cached(project, path.read_bytes())
    unused = cached(project, b"of earlier settings")
    unused.write_bytes(b"of earlier settingz")
    flip(path)
    before = tiny.files_of(project)
    said = doctor(project)
    assert said.exit_code == 1
    assert f"damaged: {path}: got checksum" in said.output
    assert f"damaged: {twin} of DVC's cache, which {path} shares" in said.output
    assert f"damaged: {unused} of DVC's cache\n" in said.output
    assert "1 damaged artifacts; 2 of " in said.output
    assert "`zpruner doctor --mend`" in said.output
    assert tiny.files_of(project) == before
    mended = doctor(project, "--mend")
    assert mended.exit_code == 0
    gone = set(before) - set(tiny.files_of(project))
    assert {name for name in gone if not name.startswith(f"data/{SCORES}/")} == {
        str(one.relative_to(project)) for one in (twin, unused)
    }
    assert not path.parent.exists()
    assert doctor(project).exit_code == 0


def test_every_kind_of_artifact_is_verified(project):
    damaged = ["models/dense/config.json", "calibration/tokens.arrow", "plan/calibrate.json", "costs/calibrate.json"]
    for name in damaged:
        flip(project / "data" / name)
    (project / "data" / SCORES / "index.json").unlink()
    output = doctor(project).output
    assert all(f"damaged: {project / 'data' / name}: got " in output for name in damaged)
    assert f"damaged: {project / 'data' / SCORES}: got no index.json or zpruner.json beside its files" in output
    assert "5 damaged artifacts; 4 of " in output


def test_what_dvc_took_over_after_it_was_damaged(project):
    path = project / "data" / SCORES / "model.layers.2.mlp.up_proj.arrow"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.unlink()
    path.write_bytes(data)
    taken = cached(project, data)
    os.link(path, taken)
    assert doctor(project, "--mend").exit_code == 0
    assert not taken.exists()
    assert not path.exists()


def test_it_waits_for_nobody_and_needs_a_project(project, tmp_path):
    flip(project / "data" / "calibration" / "tokens.arrow")
    with Work(project / "data" / ".work", "score-x", "key"):
        assert isinstance(doctor(project, "--mend").exception, LockedError)
        assert doctor(project).exit_code == 1
    assert isinstance(doctor(tmp_path / "source").exception, InvalidSettingError)


def test_what_links_lead_to_is_never_deleted(project):
    before = tiny.files_of(project / "source")
    (project / "data" / "more").symlink_to(project / "source")
    (project / "data" / "sources" / "another").symlink_to(project / "source" / "model")
    (project / "data" / "costs" / "link.json").symlink_to(project / "source" / "model" / "config.json")
    assert doctor(project, "--mend").exit_code == 0
    assert not (project / "data" / "costs" / "link.json").is_symlink()
    assert tiny.files_of(project / "source") == before
