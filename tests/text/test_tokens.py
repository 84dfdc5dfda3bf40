from dataclasses import replace

import pytest
import torch

from zpruner.artifacts.arrow import write_file
from zpruner.errors import ArtifactError, ShapeMismatchError
from zpruner.text import WindowsOrigin, read_windows, windows_hash, write_windows

ORIGIN = WindowsOrigin("calibration", '{"seed": 3}', "model-hash", "tokenizer-hash")
WINDOWS = torch.arange(15, dtype=torch.int32).reshape(3, 5)


def test_windows_come_back_with_their_hash(tmp_path):
    path = tmp_path / "tokens.arrow"
    write_windows(path, WINDOWS, "pip:x", ORIGIN)
    windows, found = read_windows(path, ORIGIN)
    assert torch.equal(windows, WINDOWS)
    assert windows.dtype == torch.int32
    assert found == windows_hash(WINDOWS)
    first = path.read_bytes()
    write_windows(path, WINDOWS, "pip:x", ORIGIN)
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
            write_windows(tmp_path / "tokens.arrow", windows, "", ORIGIN)


@pytest.mark.parametrize("field", ["role", "settings", "model_hash", "tokenizer_hash"])
def test_windows_for_something_else_or_made_with_it_are_refused(tmp_path, field):
    path = tmp_path / "tokens.arrow"
    write_windows(path, WINDOWS, "pip:x", replace(ORIGIN, **{field: "another"}))
    with pytest.raises(ArtifactError, match=rf"tokens\.arrow: got {field} 'another', expected .*doctor --mend"):
        read_windows(path, ORIGIN)
    read_windows(path)


def test_an_altered_origin_is_noticed(tmp_path):
    path = tmp_path / "tokens.arrow"
    write_windows(path, WINDOWS, "pip:x", ORIGIN)
    good = path.read_bytes()
    for words in (b"calibration", b"pip:x", b"model-hash"):
        path.write_bytes(good.replace(words, b"x" * len(words)))
        with pytest.raises(ArtifactError, match=r"tokens\.arrow: got an altered origin"):
            read_windows(path)
