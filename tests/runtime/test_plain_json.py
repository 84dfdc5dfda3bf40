"""JSON that anybody may have written: every fault is a ValueError."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpruner.runtime import plain_json
from zpruner.runtime.plain_json import read_json


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, null, "é"]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, None, "é"]}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 50_000, b"9" * 9000, b"{} {}"],
    ids=["empty", "open", "bytes", "lists", "objects", "digits", "two"],
)
def test_any_fault_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^"):
        read_json(tmp_path / "x.json")


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_json, "_LONGEST", 3)
    (tmp_path / "x.json").write_text("[1]")
    assert read_json(tmp_path / "x.json") == [1]
    (tmp_path / "x.json").write_text("[10]")
    with pytest.raises(ValueError, match="4 bytes, more than 3"):
        read_json(tmp_path / "x.json")
