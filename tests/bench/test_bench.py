"""The bench measures the same weights three ways, and says what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from zpruner.artifacts.results import median_ratio
from zpruner.bench import Bench, Plan, bench, markdown
from zpruner.bench.control import control, packed_names, read_per_token
from zpruner.bench.measure import CONTROL, PACKED, TORCH, Row
from zpruner.bench.page import sentences
from zpruner.errors import InvalidSettingError
from zpruner.model import load_model
from zpruner.packed.linear import restore_dense
from zpruner.packed.pack import pack


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    model = tiny.build("llama").bfloat16()
    for name, weight in model.named_parameters():
        if "proj" in name:
            weight.data.masked_fill_(torch.rand(weight.shape) < 0.5, 0)
    model.save_pretrained(folder / "dense")
    (folder / "packed").mkdir()
    pack(folder / "dense", folder / "packed")
    return folder / "dense", folder / "packed"


def test_every_row_is_measured_in_every_round(folders: tuple[Path, Path]) -> None:
    steps: list[None] = []
    plan = Plan(new_tokens=3, prompt=2, prefill=20, rounds=2)
    found = bench(folders, plan, memory=False, step=lambda: steps.append(None))
    assert [(row.model, row.how) for row in found.rows] == [
        ("dense", TORCH),
        ("dense", CONTROL),
        ("packed", PACKED),
        ("packed", CONTROL),
        ("packed", TORCH),
    ]
    assert len(steps) == 3 * 5
    assert all(len(row.decode) == len(row.prefill) == 2 for row in found.rows)
    assert [row.disk is None for row in found.rows] == [False, True, False, True, True]
    packed, dense = found.rows[2], found.rows[4]
    assert packed.read < dense.read == found.rows[0].read
    page = markdown(found)
    assert page.count("\n|") == 6
    assert "packed decodes at" in page
    assert found.to_json()["rows"][2]["how"] == "packed"


def test_the_control_computes_the_same_with_the_same_memory(folders: tuple[Path, Path]) -> None:
    model = load_model(folders[1], device="cpu")
    dense = load_model(folders[1], device="cpu")
    restore_dense(dense)
    other = control(dense, packed_names(model))
    ids = torch.randint(3, 150, (1, 5))
    with torch.no_grad():
        results = [found(input_ids=ids).logits.float() for found in (model, other, dense)]
    assert torch.allclose(results[0], results[1], rtol=0.02, atol=0.02)
    assert torch.allclose(results[0], results[2], rtol=0.02, atol=0.02)
    pointers = {weight.data_ptr() for weight in dense.parameters()}
    assert {weight.data_ptr() for weight in other.parameters()} <= pointers
    assert read_per_token(other) == read_per_token(dense)


def row(how: str, decode: tuple[float, ...], prefill: tuple[float, ...], read: int) -> Row:
    return Row("m", how, None, read, None, decode, prefill)


def test_the_sentence_follows_from_pairs() -> None:
    rows = (
        row(PACKED, (20.0, 8.0, 22.0), (90.0, 100.0, 95.0), 60),
        row(CONTROL, (10.0, 5.0, 11.0), (1.0, 1.0, 1.0), 100),
        row(TORCH, (5.0, 4.0, 10.0), (100.0, 100.0, 100.0), 100),
    )
    found = sentences(Bench("kernels", 2, 1e9, Plan(), rows))
    assert found[0].startswith(
        "m decodes at 2.00 x the same weights with their zeros by the same code and at 2.20 x torch"
    )
    assert "prefill runs at 0.95 x" in found[0]
    assert "0.60 x the bytes" in found[0]
    assert "4-bit quantisation" in found[1]
    slow = (row(PACKED, (10.0,), (1.0,), 60), row(CONTROL, (10.0,), (1.0,), 100), row(TORCH, (9.0,), (1.0,), 100))
    assert "gain no speed here" in sentences(Bench("kernels", 2, 1e9, Plan(), slow))[0]
    assert sentences(Bench("kernels", 2, 1e9, Plan(), rows[1:])) == []
    assert median_ratio((1.0, 4.0, 9.0), (1.0, 2.0, 3.0)) == 2.0


def test_no_model_is_no_bench() -> None:
    with pytest.raises(InvalidSettingError, match="no model"):
        bench([], Plan())
