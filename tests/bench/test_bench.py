"""The bench measures the same weights three ways, and says what follows."""

from __future__ import annotations

from pathlib import Path
from time import thread_time

import pytest
import tiny
import torch

from zpruner.artifacts.costs import median_ratio
from zpruner.bench import Bench, Plan, bench, markdown, row_count
from zpruner.bench.control import bandwidth, control, packed_layers, read_per_token, rounded, torch_int8
from zpruner.bench.measure import CONTROL, INT4, INT8, PACKED, TORCH, TORCH_INT8, Row
from zpruner.bench.page import sentences
from zpruner.errors import InvalidSettingError
from zpruner.kernels import Codes, PackedMatrix, choose
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
    plan = Plan(new_tokens=3, prompt=2, prefill=20, rounds=2, quantized=True)
    found = bench(folders, plan, memory=False, step=lambda: steps.append(None))
    assert [(row.model, row.how) for row in found.rows] == [
        ("dense", CONTROL),
        ("dense", TORCH),
        ("dense", INT8),
        ("dense", INT4),
        ("dense", TORCH_INT8),
        ("packed", PACKED),
        ("packed", CONTROL),
        ("packed", TORCH),
    ]
    assert len(steps) == 3 * 8
    assert all(len(row.decode) == len(row.prefill) == 2 for row in found.rows)
    assert [row.model for row in found.rows if row.disk is not None] == ["dense", "packed"]
    read = [row.read for row in found.rows]
    assert read[3] < read[2] < read[5] < read[0] == read[1] == read[6] == read[7]
    page = markdown(found)
    assert page.count("\n|") == 9
    assert "packed decodes at" in page
    assert "Beside dense int4 by the same code packed decodes at" in page
    assert "zpruner advise" in page
    assert found.to_json()["rows"][5]["how"] == "packed"


def test_ordinary_models_stand_beside_the_first(tmp_path: Path) -> None:
    for name, width in (("dense", 48), ("smaller", 24)):
        tiny.llama(intermediate_size=width).save_pretrained(tmp_path / name)
    folders = [tmp_path / "dense", tmp_path / "smaller"]
    found = bench(folders, Plan(new_tokens=2, prompt=2, prefill=8, rounds=1), memory=False)
    assert len(found.rows) == row_count(folders)
    (said,) = sentences(found)
    smaller, dense = (row for row in reversed(found.rows) if row.how == TORCH)
    assert said.startswith(f"smaller decodes at {smaller.decode[0] / dense.decode[0]:.2f} x dense, ")
    assert f"it takes {smaller.disk / dense.disk:.2f} x the bytes on disk" in said
    assert smaller.read < dense.read


def test_the_control_computes_the_same_with_the_same_memory(folders: tuple[Path, Path]) -> None:
    model = load_model(folders[1], device="cpu")
    dense = load_model(folders[1], device="cpu")
    restore_dense(dense)
    other = control(dense, packed_layers(model))
    ids = torch.randint(3, 150, (1, 5))
    with torch.no_grad():
        results = [found(input_ids=ids).logits.float() for found in (model, other, dense)]
    assert torch.allclose(results[0], results[1], rtol=0.02, atol=0.02)
    assert torch.allclose(results[0], results[2], rtol=0.02, atol=0.02)
    pointers = {weight.data_ptr() for weight in dense.parameters()}
    assert {weight.data_ptr() for weight in other.parameters()} <= pointers
    assert read_per_token(other) == read_per_token(dense)


@pytest.mark.parametrize("codes", [Codes(8, 0), Codes(4, 32)], ids=str)
def test_dense_integers_are_the_weights_within_half_a_step(codes: Codes) -> None:
    weight = torch.randn(9, 70)
    matrix = PackedMatrix(choose(), "w", *rounded(weight, codes))
    size = codes.group or 70
    most = torch.nn.functional.pad(weight, (0, -70 % size)).view(9, -1, size).abs().amax(2, True).expand(-1, -1, size)
    step = most.reshape(9, -1)[:, :70] / (127 if codes.bits == 8 else 7)
    assert ((matrix.expanded(0, 9) - weight).abs() <= 0.5 * step + 0.02 * weight.abs()).all()


def test_integers_of_controls_compute_nearly_the_same(folders: tuple[Path, Path]) -> None:
    dense = load_model(folders[0], device="cpu")
    layers = dict.fromkeys(packed_layers(load_model(folders[1], device="cpu")), Codes(8, 0))
    ids = torch.randint(3, 150, (1, 5))
    with torch.no_grad():
        models = (dense, control(dense, layers), torch_int8(dense, layers))
        results = [found(input_ids=ids).logits.float() for found in models]
    for found in results[1:]:
        assert 0 < (found - results[0]).norm() < 0.05 * results[0].norm()


def test_measuring_the_bandwidth_takes_no_time() -> None:
    start = thread_time()
    assert bandwidth(0.05) > 1e8
    assert thread_time() - start < 2


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
    others = (row(INT8, (12.0, 6.0, 12.0), (1.0, 1.0, 1.0), 55), row(INT4, (30.0, 20.0, 30.0), (1.0, 1.0, 1.0), 30))
    found = sentences(Bench("kernels", 2, 1e9, Plan(), rows + others))
    assert found[1] == (
        "Beside dense int8 by the same code m decodes at 1.67 x and reads 1.09 x the bytes: neither is better in both."
    )
    assert found[2].endswith(
        "0.67 x and reads 2.00 x the bytes: dense integers are smaller and faster: pruning would "
        "have to predict better."
    )
    assert len(found) == 4
    slow = (row(PACKED, (10.0,), (1.0,), 60), row(CONTROL, (10.0,), (1.0,), 100), row(TORCH, (9.0,), (1.0,), 100))
    assert "gain no speed here" in sentences(Bench("kernels", 2, 1e9, Plan(), slow))[0]
    assert sentences(Bench("kernels", 2, 1e9, Plan(), rows[1:])) == []
    assert median_ratio((1.0, 4.0, 9.0), (1.0, 2.0, 3.0)) == 2.0


def test_no_model_is_no_bench() -> None:
    with pytest.raises(InvalidSettingError, match="no model"):
        bench([], Plan())
