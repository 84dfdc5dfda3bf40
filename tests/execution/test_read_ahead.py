"""What is needed next is read while something else is used."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import families
import pytest
import torch
from streams import forwards, save
from torch import Tensor

from zpruner.checkpoint import Checkpoint
from zpruner.execution import Skeleton, Spill, StreamedRunner, open_runner
from zpruner.execution.read_ahead import ReadAhead
from zpruner.model import open_checkpoint
from zpruner.model.stored import Facts
from zpruner.settings.params import MachineSettings, ModelSettings


class Noted:
    """A checkpoint that notes which thread reads what."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.ahead: list[str] = []
        self.at_once: list[str] = []

    def names(self) -> list[str]:
        return self.checkpoint.names()

    def facts(self, name: str) -> Facts:
        return self.checkpoint.facts(name)

    def read(self, name: str) -> Tensor:
        ahead = threading.current_thread().name.startswith("weight-reader")
        (self.ahead if ahead else self.at_once).append(name)
        return self.checkpoint.read(name)


def noted(folder: Path, room: int) -> tuple[StreamedRunner, Noted]:
    tensors = Noted(save(families.build("llama"), folder))
    skeleton = Skeleton(open_checkpoint(folder, "float32", tensors), torch.device("cpu"))
    return StreamedRunner(skeleton, None, Spill(), small=0, room=room), tensors


def test_the_next_unit_is_read_while_one_is_used(tmp_path: Path) -> None:
    runner, tensors = noted(tmp_path, room=1 << 30)
    list(runner.run(forwards(runner.model)))
    assert sorted([*tensors.ahead, *tensors.at_once]) == sorted(tensors.names())  # each once
    assert all("embed_tokens" in name for name in tensors.at_once)
    tensors.ahead.clear()
    for block in range(2):
        with runner.holding(block):
            pass
    runner.release()
    assert {name.split(".")[2] for name in tensors.at_once if "layers" in name} == {"0"}
    assert {name.split(".")[2] for name in tensors.ahead} == {"1"}  # whoever holds blocks needs no head


def test_a_unit_that_has_no_room_is_read_when_it_is_needed(tmp_path: Path) -> None:
    runner, tensors = noted(tmp_path, room=0)
    room = max(runner.skeleton.sizes(runner.units[f"model.layers.{i}"]) for i in range(2))
    list(runner.run(forwards(runner.model)))
    assert not tensors.ahead
    runner, tensors = noted(tmp_path, room=room - 1)
    list(runner.run(forwards(runner.model)))
    assert not [name for name in tensors.ahead if "layers" in name]


@pytest.mark.parametrize(("memory", "ahead"), [(1.0, True), (1e-5, False)])
def test_what_is_read_ahead_may_take_a_tenth_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, ahead: bool
) -> None:
    checkpoint, announced = save(families.build("llama"), tmp_path), []

    def announce(_: ReadAhead, names: Iterable[str]) -> None:
        announced.extend(names)

    monkeypatch.setattr(ReadAhead, "announce", announce)
    machine = MachineSettings(memory=memory, device="cpu")
    runner = open_runner(checkpoint, ModelSettings(source="tiny"), machine, True, tmp_path / "hidden")
    list(runner.run(forwards(runner.model)))
    assert bool(announced) == ahead


def test_an_error_of_reading_ahead_is_raised_where_the_weight_is_needed(tmp_path: Path) -> None:
    runner, tensors = noted(tmp_path, room=1 << 30)
    broken, read = OSError("the disk is broken"), tensors.read

    def fail(name: str) -> Tensor:
        if name == "model.layers.1.mlp.down_proj.weight":
            raise broken
        return read(name)

    tensors.read = fail
    with runner.holding(0):
        pass
    with pytest.raises(OSError, match="the disk is broken") as caught, runner.holding(1):
        pass
    assert caught.value is broken
