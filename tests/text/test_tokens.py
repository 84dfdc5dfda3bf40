import pytest
import torch

from zpruner.artifacts.store import write_file
from zpruner.errors import ArtifactError, ShapeMismatchError
from zpruner.text import read_windows, windows_hash, write_windows

WINDOWS = torch.arange(15, dtype=torch.int32).reshape(3, 5)


def test_windows_come_back_with_their_hash(tmp_path):
    path = tmp_path / "tokens.arrow"
    write_windows(path, WINDOWS, "pip:x")
    windows, found = read_windows(path)
    assert torch.equal(windows, WINDOWS)
    assert windows.dtype == torch.int32
    assert found == windows_hash(WINDOWS)
    first = path.read_bytes()
    write_windows(path, WINDOWS, "pip:x")
    assert path.read_bytes() == first


def test_other_windows_under_the_old_hash(tmp_path):
    path = tmp_path / "tokens.arrow"
    write_file(path, {"input_ids": WINDOWS + 1}, "tokens", {"windows_hash": windows_hash(WINDOWS), "source": ""})
    with pytest.raises(ArtifactError, match=rf"tokens\.arrow: got windows of hash .*expected {windows_hash(WINDOWS)}"):
        read_windows(path)


def test_no_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"tokens\.arrow: got no file"):
        read_windows(tmp_path / "tokens.arrow")


def test_only_int32_windows_are_written(tmp_path):
    for windows in (WINDOWS.long(), WINDOWS.reshape(-1)):
        with pytest.raises(ShapeMismatchError):
            write_windows(tmp_path / "tokens.arrow", windows, "")
