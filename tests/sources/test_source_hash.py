import hashlib
from pathlib import Path

import pytest

from zpruner.errors import HashMismatchError, InvalidSettingError
from zpruner.sources import folder_sha256, texts_sha256
from zpruner.sources._hash import checked_sha256, require_sha256


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_folder_hash_is_that_of_sha256sum_lines(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"2")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "sub.x").write_bytes(b"3")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_bytes(b"ignored")
    lines = f"{_sha(b'1')}  b\n{_sha(b'3')}  sub.x\n{_sha(b'2')}  sub/a\n"
    assert folder_sha256(tmp_path) == _sha(lines.encode())


def test_text_hash_tells_borders_apart() -> None:
    assert texts_sha256(["ä", ""]) == _sha(b"\x02" + bytes(7) + "ä".encode() + bytes(8))
    assert texts_sha256(["ab", "c"]) != texts_sha256(["a", "bc"])


def test_hash_in_params_must_be_a_hash() -> None:
    assert checked_sha256("x", "AB" * 32) == "ab" * 32
    assert checked_sha256("x", None) is None
    with pytest.raises(InvalidSettingError, match="64 hexadecimal digits"):
        checked_sha256("x", "abc")


def test_mismatch_names_both() -> None:
    require_sha256("x", "a" * 64, None)
    with pytest.raises(HashMismatchError, match=r"a{64}.*b{64}"):
        require_sha256("x", "a" * 64, "b" * 64)
