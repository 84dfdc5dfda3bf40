import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zpruner.errors import HashMismatchError, InvalidSettingError, ShapeMismatchError, SourceError
from zpruner.sources import Documents, TokenTable, read_text

JsonLines = Callable[[Path, list[dict[str, object]]], Path]
TEXTS = ("Erste Größe\nzweite Zeile", "", "second\u2028document")


def _write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "news.cor"
    path.write_bytes("\ufefffirst line\n\n  \nsecond ü\n".encode())
    source = str(path)
    assert read_text(source, None, tmp_path) == Documents(source, ("first line\n\n  \nsecond ü\n",))
    assert read_text(source, None, tmp_path, documents="lines") == Documents(source, ("first line", "second ü"))
    packed = tmp_path / "news.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_text(str(packed), None, tmp_path, documents="lines") == Documents(
        str(packed), ("first line", "second ü")
    )


def test_hash_of_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    assert read_text(str(path), sha256.upper(), tmp_path) == Documents(str(path), ("abc",))
    path.write_text("abd")
    with pytest.raises(HashMismatchError, match=sha256):
        read_text(str(path), sha256, tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "stream.arrow"])
def test_tables_of_text(tmp_path: Path, name: str) -> None:
    path = _write_table(tmp_path / name, pa.table({"url": ["u", "v", "w"], "page": list(TEXTS)}))
    assert read_text(str(path), None, tmp_path, column="page") == Documents(str(path), TEXTS)
    with pytest.raises(SourceError, match="got no column text, expected one of url, page"):
        read_text(str(path), None, tmp_path)
    with pytest.raises(InvalidSettingError, match="plain text files only"):
        read_text(str(path), None, tmp_path, column="page", documents="lines")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_json_lines(tmp_path: Path, json_lines: JsonLines, name: str) -> None:
    path = json_lines(tmp_path / name, [{"page": text, "n": 1} for text in TEXTS])
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_text(str(path), None, tmp_path, column="page") == Documents(str(path), TEXTS)
    with pytest.raises(SourceError, match="got no column text, expected one of page, n"):
        read_text(str(path), None, tmp_path)


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint16(), 3)])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_token_table_is_used_as_it_is(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    rows = [[1, 2, 3], [4, 5, 60000], [7, 8, 9]]
    path = _write_table(tmp_path / name, pa.table({"text": ["x"] * 3, "input_ids": pa.array(rows, kind)}))
    table = read_text(str(path), None, tmp_path)
    assert isinstance(table, TokenTable)
    assert table.input_ids.dtype == np.int32
    assert table.input_ids.tolist() == rows


def test_token_table_as_json_lines(tmp_path: Path, json_lines: JsonLines) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"input_ids": [1, 2]}, {"input_ids": [3, 4]}])
    table = read_text(str(path), None, tmp_path)
    assert isinstance(table, TokenTable)
    assert table.input_ids.tolist() == [[1, 2], [3, 4]]


def test_unequal_rows(tmp_path: Path) -> None:
    path = _write_table(tmp_path / "a.arrow", pa.table({"input_ids": [[1, 2], [3, 4], [5]]}))
    with pytest.raises(ShapeMismatchError, match="2 token ids in row 0 and 1 in row 2, expected rows of equal length"):
        read_text(str(path), None, tmp_path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1, 2], None]), "no nulls"),
        (pa.array([[1, 2], [3, None]]), "null token ids"),
        (pa.array([[1.0], [2.0]]), "lists of integers"),
        (pa.array([1, 2]), "lists of integers"),
        (pa.array([[1, 2**40]]), "cannot be read"),
        (pa.array([[], []], pa.list_(pa.int32())), "neither of them 0"),
    ],
)
def test_bad_token_columns(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = _write_table(tmp_path / "a.parquet", pa.table({"input_ids": column}))
    with pytest.raises((SourceError, ShapeMismatchError), match=message):
        read_text(str(path), None, tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"\xff\xfe\x00"),
        ("a.parquet", b"PAR1xx"),
        ("a.arrow", b"ARROW1"),
        ("a.jsonl", b'{"text": "x"}\n{"text"'),
        ("a.jsonl", b"[1]\n"),
        ("a.txt.gz", gzip.compress(b"abc" * 100, mtime=0)[:-9]),
        ("a.txt", b" \n"),
        ("a.jsonl", b""),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError) as error:
        read_text(str(path), None, tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_nulls_and_numbers_are_no_text(tmp_path: Path) -> None:
    for column in (["a", None], [1, 2]):
        path = _write_table(tmp_path / "a.arrow", pa.table({"text": column}))
        with pytest.raises(SourceError, match="strings without nulls"):
            read_text(str(path), None, tmp_path)


def test_missing_file_and_settings_for_others(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_text(str(tmp_path / "x.txt"), None, tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        read_text(str(tmp_path), None, tmp_path)
    with pytest.raises(InvalidSettingError, match="data sets on the hub only"):
        read_text(str(tmp_path / "x.txt"), None, tmp_path, split="test")


def test_from_a_package(
    wheel: Callable[[dict[str, bytes]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel({"tiny_corpus/news.cor": b"one\ntwo\n"})
    monkeypatch.setattr("zpruner.sources._package._download", lambda source, folder: path)
    source = "pip:tiny-corpus==1.0/tiny_corpus/news.cor"
    sha256 = hashlib.sha256(b"one\ntwo\n").hexdigest()
    text = read_text(source, sha256, tmp_path / "downloads", documents="lines")
    assert text == Documents(source, ("one", "two"))
