"""GGUF files that lie: any damage is one sentence, in bounded time and memory."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest
from gguf_files import write_gguf

from zpruner.errors import ZprunerError
from zpruner.sources import fetch_model

LENGTHS = [0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


@pytest.fixture(scope="session")
def good(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def header(good: bytes) -> int:
    """Return the bytes before the first tensor's values."""
    return good.index(b"output.weight") + 64


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Return a file with bytes changed, lengths replaced, or parts lost, doubled or exchanged."""
    data, end = bytearray(good), header(good)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(end)
        match chance.randrange(5):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at : at + 8] = struct.pack("<Q", chance.choice(LENGTHS))
            case 2:
                data[at : at + 4] = struct.pack("<I", chance.choice(LENGTHS) & 0xFFFFFFFF)
            case 3:
                del data[at : at + chance.choice([1, 8, 1000])]
            case 4:
                data[at:at] = data[at : at + chance.choice([1, 8, 64])]
    return bytes(data)


def fetched(data: bytes, folder: Path) -> str:
    """Fetch a file; return `read`, or the one sentence with which it is refused."""
    (folder / "x.gguf").write_bytes(data)
    try:
        fetch_model(str(folder / "x.gguf"), None, folder / "out", folder, "auto")
    except ZprunerError as error:
        assert not (folder / "out").exists()
        return str(error)
    shutil.rmtree(folder / "out")
    return "read"


def test_a_header_alone_makes_up_no_model(tmp_path: Path) -> None:
    """Of its name transformers takes the sizes of the first Llama: 27 GB of random weights."""
    name, value = b"general.architecture", b"llama"
    text = struct.pack(f"<Q{len(name)}sIQ{len(value)}s", len(name), name, 8, len(value), value)
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text
    assert "got 0 weights, expected the 6,607,343,616 of the model" in fetched(data + bytes(64), tmp_path)


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 320), marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_any_damage_is_one_sentence(good: bytes, seeds: range, tmp_path: Path) -> None:
    said = [fetched(damaged(good, random.Random(seed)), tmp_path) for seed in seeds]
    assert all("\n" not in sentence and len(sentence) < 1000 for sentence in said)
    assert sum(sentence != "read" for sentence in said) > len(said) // 3
