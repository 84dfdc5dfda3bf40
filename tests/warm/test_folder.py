"""A worker's folder is its owner's alone; one whose owner was killed is gone after the next start."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from warm import _folder
from warm._folder import PREFIX, Folder, sweep

OWNER = """
import os
from warm._folder import Folder
print(Folder().path, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_folder, "_LONGEST", 200)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_owner_left_is_swept_and_nothing_else(place: Path) -> None:
    code = OWNER.replace("print", "import warm._folder; warm._folder._LONGEST = 200; print")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=False
    )
    left = Path(done.stdout.strip())
    assert left.is_dir()
    target = place / "target"
    target.mkdir()
    link, file = place / f"{PREFIX}link", place / f"{PREFIX}file"
    link.symlink_to(target)
    file.write_text("")
    held = Folder()
    assert not left.exists()
    sweep()
    assert held.path.is_dir()
    assert target.is_dir()
    assert link.is_symlink()
    assert file.exists()
    assert stat.S_IMODE(held.path.stat().st_mode) == 0o700
    held.close()
    assert not held.path.exists()


def test_another_users_folder_is_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / f"{PREFIX}theirs").mkdir()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    sweep()
    assert (place / f"{PREFIX}theirs").is_dir()


def test_a_long_temporary_folder_has_no_room_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_folder, "_LONGEST", 3)
    folder = Folder()
    assert folder.path.parent == Path("/tmp")
    folder.close()
