"""`zpruner bench` for people and for machines, and `zpruner kernels`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zpruner.bench.measure import CONTROL, INT4, INT8, PACKED, TORCH, TORCH_INT8
from zpruner.kernels import choose
from zpruner.model import get_weight, load_model, take_inventory
from zpruner.packed.pack import pack

Command = Callable[..., tuple[int, str, str]]
SHORT = ["--new-tokens", "2", "--prefill", "8", "--rounds", "1", "--threads", "1"]


@pytest.fixture
def packed(place: Path) -> Path:
    model = load_model(place / "source/model", "bfloat16", "cpu")
    for layer in take_inventory(model).layers:
        weight = get_weight(model, layer)
        weight.masked_fill_(torch.rand(weight.shape) < 0.5, 0)
    model.save_pretrained(place / "plain")
    (place / "packed").mkdir()
    pack(place / "plain", place / "packed")
    return place


def test_a_table_with_its_controls_and_what_follows(packed: Path, command: Command) -> None:
    code, out, err = command("bench", "packed", "--no-memory", *SHORT)
    assert code == 0, err
    table = [line.split(" | ")[1] for line in out.splitlines() if line.startswith("| packed")]
    assert table == [PACKED, CONTROL, TORCH, INT8, INT4, TORCH_INT8]
    assert "packed decodes at" in out
    assert "Beside dense int8 by the same code packed decodes at" in out


def test_every_number_as_json(packed: Path, command: Command) -> None:
    code, out, err = command("bench", "plain", "packed", "--no-memory", "--no-quantized", "--json", *SHORT)
    assert code == 0, err
    found = json.loads(out)
    assert found["kernels"] == choose().why
    assert found["threads"] == found["plan"]["rounds"] == 1
    rows = {(row["model"], row["how"]): row for row in found["rows"]}
    assert list(rows) == [
        *(("plain", how) for how in (CONTROL, TORCH)),
        *(("packed", how) for how in (PACKED, CONTROL, TORCH)),
    ]
    assert all(len(row["decode"]) == len(row["prefill"]) == 1 for row in rows.values())
    assert not any(row["memory"] for row in rows.values())
    assert rows["packed", PACKED]["disk"] < rows["plain", TORCH]["disk"]
    assert [key for key, row in rows.items() if row["disk"] is not None] == [("plain", TORCH), ("packed", PACKED)]


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(packed: Path, command: Command) -> None:
    code, out, err = command("bench", "plain", "packed", "--no-quantized", "--json", *SHORT)
    assert code == 0, err
    found = {(row["model"], row["how"]): row["memory"] for row in json.loads(out)["rows"]}
    assert {key for key, memory in found.items() if memory} == {("plain", TORCH), ("packed", PACKED)}


def test_what_multiplies_is_told(command: Command) -> None:
    code, out, _ = command("kernels")
    assert code == 0
    assert out.startswith(f"runs       {choose().name}: {choose().why}\n")
