"""On an accelerator: the numbers of the CPU, nothing left on the CPU, and few values that the host waits for.

Marked `gpu`. Without one `test_everything_runs_on_another_device` runs them on a device that pretends to be one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

import stages.apply
import stages.calibrate
import stages.evaluate
import stages.fetch
import stages.mask
import stages.score
import zpruner
from zpruner.artifacts.store import ArtifactReader
from zpruner.checkpoint import Checkpoint, write_manifest
from zpruner.evaluate import Predictor, batch_losses
from zpruner.execution import Skeleton, Spill, StreamedRunner, WholeRunner, choose
from zpruner.masks import select
from zpruner.methods import METHODS
from zpruner.model import open_checkpoint, resolve_device
from zpruner.runtime import transfer
from zpruner.search import Fitness, parse_formula
from zpruner.settings.params import Params
from zpruner.text import Writing, written
from zpruner.types import ComparisonGroup, SparsityPattern

WINDOWS = torch.randint(3, tiny.VOCABULARY, (8, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(7))
AGREEMENT = 0.999


def build(device: str | torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = tiny.llama(num_hidden_layers=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return model.to(dtype).to(device)


def method_of(name: str) -> dict[str, Any]:
    return {"score": name, "settings": {"formula": "mul(W, sqrt(X))"} if name == "expression" else {}}


def agreement(ours: Any, theirs: Any) -> float:
    same = [(a.mask.keep.cpu() == b.mask.keep.cpu()).flatten() for a, b in zip(ours, theirs, strict=True)]
    return float(torch.cat(same).double().mean())


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_masks_agree_with_those_of_the_cpu(accelerator: torch.device, name: str, sparsity: float | str) -> None:
    found = []
    for device in ("cpu", accelerator):
        model = build(device)
        calibration = zpruner.calibrate(model, WINDOWS, stats=zpruner.needs(name), batch_size=4)
        found.append(zpruner.prune(model, calibration, method=method_of(name), sparsity=sparsity))
        assert all(layer.mask.keep.device.type == torch.device(device).type for layer in found[-1])
    assert agreement(*found) >= AGREEMENT


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("method", "share"),
    [
        ("zpruner", AGREEMENT),
        ("sparsegpt", AGREEMENT),
        ("pruner_zero", AGREEMENT),
        ("best", 0.97),
        ("best_tuned", 0.97),
    ],
)
def test_pruning_block_after_block_agrees_with_the_cpu(accelerator: torch.device, method: str, share: float) -> None:
    """`best` iterates until a threshold is met: rounding decides by how much, and later blocks see the difference."""
    found, errors = [], []
    for device in ("cpu", accelerator):
        found.append(zpruner.prune_sequentially(build(device), WINDOWS, method=method, sparsity=0.5, batch_size=4))
        errors.append(sum(layer.layer_error for layer in found[-1]))
    assert agreement(*found) >= share
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["zpruner", "wanda", "ria"])
def test_masks_of_a_bfloat16_model_agree_with_those_of_the_cpu(accelerator: torch.device, method: str) -> None:
    found = []
    for device in ("cpu", accelerator):
        model = build(device, torch.bfloat16)
        found.append(zpruner.prune(model, zpruner.calibrate(model, WINDOWS), method=method, sparsity=0.5))
    assert agreement(*found) >= AGREEMENT


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["best", "pruner_zero"])
def test_the_same_device_gives_the_same_bytes(accelerator: torch.device, method: str) -> None:
    def weights() -> list[Tensor]:
        model = build(accelerator, torch.bfloat16)
        zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=0.5, batch_size=4)
        return [parameter.detach().cpu() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(), weights(), strict=True))


@pytest.mark.gpu
def test_block_by_block_is_the_whole_model_there_too(accelerator: torch.device, tmp_path: Path) -> None:
    build("cpu").save_pretrained(tmp_path)
    write_manifest(tmp_path, "tiny", dtype="float32")
    checkpoint = Checkpoint(tmp_path)
    skeleton = Skeleton(open_checkpoint(tmp_path, "float32", checkpoint), accelerator)
    runner = StreamedRunner(skeleton, None, Spill(), small=0)

    def losses(found: Any) -> list[list[float]]:
        batches = WINDOWS.split(2)
        with Predictor(found) as predictor:
            return list(predictor.run(batches, lambda index, logits: batch_losses(logits, batches[index])))

    assert losses(runner) == losses(WholeRunner(build(accelerator)))


@pytest.mark.gpu
def test_text_that_a_model_writes_begins_as_on_the_cpu(accelerator: torch.device) -> None:
    how = Writing(windows=8, tokens=6, start=(1,), begin=(), seed=0, temperature=1.0, top_p=0.95)
    first, again, there = (
        torch.cat([ids for _, ids, _ in written(WholeRunner(build(device)), how, how.batches())])
        for device in ("cpu", accelerator, accelerator)
    )
    assert torch.equal(again, there)
    assert (first == there).float().mean() >= 0.9  # one other token leads to another text


@pytest.mark.gpu
def test_stages_on_the_device_give_the_masks_of_the_cpu(accelerator: torch.device, tmp_path: Path) -> None:
    kept: dict[str, list[Tensor]] = {}
    for device in ("cpu", str(accelerator)):
        root = tmp_path / device.replace(":", "")
        root.mkdir()
        tiny.make_sources(root)
        params = tiny.read_params(root)
        params["machine"]["device"] = device
        params["methods"] = {"obs": {"score": "sparsegpt", "update": "obs"}, "zpruner": {"score": "zpruner"}}
        tiny.write_params(root, params)
        tiny.plan(root)
        for what in (stages.fetch.What.model, stages.fetch.What.calibration, stages.fetch.What.evaluation):
            stages.fetch.run(what, root)
        stages.calibrate.run(root)
        for method in params["methods"]:
            stages.score.run(method, root)
            stages.mask.run(method, "s50", root)
            stages.apply.run(method, "s50", root)
            stages.evaluate.run(method, "s50", root=root)
            masks = ArtifactReader(root / "data" / "masks" / method / "s50", "masks")
            kept.setdefault(method, []).append(torch.cat([masks.read(name)["keep"].flatten() for name in masks.files]))
    for ours, theirs in kept.values():
        assert float((ours == theirs).double().mean()) >= AGREEMENT


@pytest.mark.gpu
def test_selection_of_long_rows_does_not_depend_on_the_device(accelerator: torch.device) -> None:
    score = torch.randint(-40, 40, (2, 1 << 17), generator=torch.Generator().manual_seed(2)).float() / 7
    for pattern in (SparsityPattern.parse(0.37), SparsityPattern.parse("2:4")):
        for group in ComparisonGroup:
            there = select(score.to(accelerator), pattern, group)
            assert torch.equal(select(score, pattern, group), there.cpu())


@pytest.mark.gpu
def test_auto_reads_block_by_block_what_the_device_has_no_room_for(
    accelerator: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if accelerator.type != "pretend":
        pytest.skip("only the pretended device can be made smaller")
    import pretend

    settings = Params.model_validate(tiny.PARAMS).machine
    assert settings.device == "auto"
    assert resolve_device(settings.device).type == "pretend"
    assert not choose(settings, 500_000_000).streamed
    monkeypatch.setattr(pretend, "MEMORY", 600_000_000)
    found = choose(settings, 500_000_000)
    assert found.streamed
    assert found.words == "block by block: whole it takes 0.50 GB, more than 60% of the 0.60 GB available"


@pytest.mark.gpu
def test_a_search_measures_formulas_there_as_on_the_cpu(accelerator: torch.device) -> None:
    formulas = [parse_formula(text) for text in ("mul(W, sqrt(X))", "add(zsn(W), mms(G))", "exp(exp(exp(X)))")]
    found = []
    for device in ("cpu", accelerator):
        model = build(device)
        calibration = zpruner.calibrate(model, WINDOWS, stats=tiny.WITH_GRADIENTS)
        fitness = Fitness(
            [model], calibration.inventory, calibration.stats, WINDOWS, [SparsityPattern.parse(p) for p in (0.5, "2:4")]
        )
        found.append([measured.fitness for measured in fitness(formulas, 4)])
    assert found[1] == pytest.approx(found[0], rel=1e-3, nan_ok=True)
    assert len({round(value, 3) for value in found[0][:2]}) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_copies_on_their_own_stream_arrive_whole(
    accelerator: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BUFFER", 1000)
    monkeypatch.setattr(transfer, "_FREE", {})
    whole = torch.randint(-9, 9, (60, 77), generator=torch.Generator().manual_seed(1)).to(dtype)
    with ThreadPoolExecutor(1) as thread:
        for tensor in (whole, whole.T, whole[:0], whole[3, 4], whole.view(-1)[:1000], whole[:, 0], whole[:1, 0]):
            there = thread.submit(transfer.to_device, tensor, accelerator).result()
            assert there.device.type == accelerator.type
            assert there.shape == tensor.shape
            back = thread.submit(transfer.to_host(there)).result()
            assert back.device.type == "cpu"
            assert torch.equal(back, tensor)
            doubled = thread.submit(transfer.to_host(there.float() + there.float())).result()
            assert torch.equal(doubled, tensor.float() * 2)
    assert [len(lanes) for lanes in transfer._FREE.values()] == [1]


@pytest.mark.gpu
def test_copies_wait_for_the_work_that_they_depend_on_and_their_memory_for_its_readers(
    accelerator: torch.device,
) -> None:
    slow = torch.eye(256).to(accelerator)
    read, left = [], []
    with ThreadPoolExecutor(2) as threads:
        for value in range(30):
            there = threads.submit(transfer.to_device, torch.full((1 << 16,), float(value)), accelerator).result()
            for _ in range(20):
                slow = slow @ slow  # whatever comes after it is late
            read.append((there * slow[0, 0]).max())
            left.append(threads.submit(transfer.to_host(there * slow[0, 0])))
            del there
        assert [float(found) for found in read] == list(range(30))
        assert [float(found.result().min()) for found in left] == list(range(30))


@pytest.mark.gpu
def test_weights_statistics_and_artifacts_are_copied_beside_the_work(accelerator: torch.device, tmp_path: Path) -> None:
    if accelerator.type != "pretend":
        pytest.skip("only the pretended device counts them")
    from pretend import COUNTS

    COUNTS.clear()
    there = transfer.to_device(torch.ones(3), accelerator)
    transfer.to_host(there)()
    assert (COUNTS["lent"], COUNTS["awaited"], COUNTS["overlapped"]) == (1, 1, 2)
    tiny.make_sources(tmp_path)
    params = tiny.read_params(tmp_path)
    params["machine"]["device"] = str(accelerator)
    params["methods"] = {"ria": {"score": "ria", "refine": "swaps"}}
    tiny.write_params(tmp_path, params)
    tiny.plan(tmp_path)
    for what in (stages.fetch.What.model, stages.fetch.What.calibration):
        stages.fetch.run(what, tmp_path)
    stages.calibrate.run(tmp_path)
    for run, columns in (
        (lambda: stages.score.run("ria", tmp_path), 3),
        (lambda: stages.mask.run("ria", "s50", tmp_path), 5),
    ):
        COUNTS.clear()
        run()
        layers = len(ArtifactReader(tmp_path / "data" / "scores" / "ria", "scores").files)
        assert COUNTS["overlapped"] >= columns * layers
        assert COUNTS["copies"] == COUNTS["uploads"] == 0


SOME = "wanda or long_rows or waits or whole_model or room or beside or copies"


@pytest.mark.skipif("ZPRUNER_TEST_DEVICE" in os.environ, reason="this is that run")
@pytest.mark.parametrize("chosen", [SOME, pytest.param("test", marks=pytest.mark.slow)])
def test_everything_runs_on_another_device(chosen: str) -> None:
    """The tests above, on a device that is no accelerator but refuses what one refuses (tests/pretend.py)."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", chosen, "-p", "no:cacheprovider", __file__]
    environment = tiny.environment() | {"ZPRUNER_TEST_DEVICE": "pretend"}
    done = subprocess.run(command, cwd=tiny.REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "most"), [("wanda", 12), ("zpruner", 20)])
def test_the_host_waits_for_a_few_values_per_layer(accelerator: torch.device, method: str, most: int) -> None:
    if accelerator.type != "pretend":
        pytest.skip("only the pretended device counts them")
    from pretend import COUNTS

    model = tiny.llama(hidden_size=256, intermediate_size=512, num_hidden_layers=1).to(accelerator)
    calibration = zpruner.calibrate(model, WINDOWS)
    COUNTS.clear()
    layers = zpruner.prune(model, calibration, method=method, sparsity=0.5)
    assert COUNTS["waits"] <= most * len(layers)
    assert COUNTS["copies"] <= len(layers)  # what errors compare with stays on the host
    assert COUNTS["calls"] <= 230 * len(layers)  # however large a layer is
    assert resolve_device(str(accelerator)) == accelerator
