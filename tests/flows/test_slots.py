"""Device slots: one instance per device or share of the processor, freed however its holder ends."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows import machine, slots
from flows.slots import accelerator_slots, fitting, processor_slots
from zpruner.artifacts.costs import Cost
from zpruner.errors import ArtifactError, InvalidSettingError

HOLDER = """
import sys
from flows.slots import processor_slots
with processor_slots(1, "held").one():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_no_two_hold_the_same_slot_and_the_third_waits() -> None:
    two = processor_slots(2, "pair")
    got: list[str] = []

    def take() -> None:
        with two.one() as slot:
            got.append(slot.name)

    with two.one() as first:
        with two.one() as second:
            third = threading.Thread(target=take)
            third.start()
            third.join(3 * slots.POLL_SECONDS)
            assert got == []
        third.join(30)
    assert {first.name, second.name} == {"cpu-pair-0", "cpu-pair-1"}
    assert got == [second.name]


def test_who_wants_all_waits_for_every_one() -> None:
    two = processor_slots(2, "all")
    order: list[str] = []

    def take() -> None:
        with two.all():
            order.append("all")

    with two.one():
        waiting = threading.Thread(target=take)
        waiting.start()
        waiting.join(3 * slots.POLL_SECONDS)
        order.append("one")
    waiting.join(30)
    assert order == ["one", "all"]


def test_a_killed_holder_leaves_its_slot_free() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    taken: list[str] = []

    def take() -> None:
        with processor_slots(1, "held").one() as slot:
            taken.append(slot.name)

    waiting = threading.Thread(target=take)
    waiting.start()
    waiting.join(3 * slots.POLL_SECONDS)
    assert taken == []
    holder.kill()
    holder.communicate()
    waiting.join(30)
    assert taken == ["cpu-held-0"]


@pytest.mark.parametrize(
    ("parallel", "fixed", "threads"), [(1, None, None), (2, None, "4"), (3, None, "2"), (9, None, "1"), (2, "5", None)]
)
def test_slots_share_the_cores(
    parallel: int, fixed: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if fixed is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", fixed)
    monkeypatch.setattr(slots, "cores", lambda: 8)
    made = processor_slots(parallel, "p").slots
    assert len(made) == parallel
    assert all(slot.environment == ({"OMP_NUM_THREADS": threads} if threads else {}) for slot in made)


def test_no_slots_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="parallel: got 0"):
        processor_slots(0, "p")


@pytest.mark.parametrize(
    ("kind", "count", "variable", "shown", "expected"),
    [
        ("cuda", 2, "CUDA_VISIBLE_DEVICES", None, [("cuda-0", "0"), ("cuda-1", "1")]),
        ("cuda", 2, "CUDA_VISIBLE_DEVICES", "5, 7", [("cuda-5", "5"), ("cuda-7", "7")]),
        ("cuda", 1, "CUDA_VISIBLE_DEVICES", "MIG-GPU-1/2/../0", [("cuda-MIG-GPU-1_2_.._0", "MIG-GPU-1/2/../0")]),
        ("xpu", 1, "ZE_AFFINITY_MASK", None, [("xpu-0", "0")]),
        ("mps", 1, None, None, [("mps-0", None)]),
    ],
)
def test_each_device_is_a_slot_that_shows_only_itself(
    kind: str,
    count: int,
    variable: str | None,
    shown: str | None,
    expected: list[tuple[str, str | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in slots.VISIBLE.values():
        monkeypatch.delenv(name, raising=False)
    if variable is not None and shown is not None:
        monkeypatch.setenv(variable, shown)
    made = accelerator_slots(kind, count).slots
    assert [(slot.name, dict(slot.environment)) for slot in made] == [
        (name, {} if variable is None else {variable: device}) for name, device in expected
    ]


def test_as_many_as_cores_and_memory_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "cores", lambda: 8)
    monkeypatch.setattr(slots, "free_memory", lambda: 10 << 30)
    assert machine.peak_bytes(tmp_path) == machine.UNKNOWN_BYTES
    assert fitting(machine.peak_bytes(tmp_path)) == 2  # of 4 GiB, before any has run here
    for name, peak in (("calibrate", 3 << 30), ("score/wanda", 1 << 30)):
        path = tmp_path / "data" / "costs" / f"{name}.json"
        Cost(stage=name, seconds=1.0, peak_memory_bytes=peak).write(path)
    assert machine.peak_bytes(tmp_path) == 3 << 30
    assert fitting(machine.peak_bytes(tmp_path)) == 3
    assert fitting(1 << 20) == 8
    assert fitting(1 << 40) == 1


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which anybody may make files; returns where the folder of the slots belongs in it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"zpruner-slots-{os.getuid()}"


def test_slots_lie_in_a_private_folder_and_write_nothing(runtime: Path) -> None:
    with processor_slots(1, "p").one():
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    (runtime / "cpu-p-0").write_text("kept")
    with processor_slots(1, "p").all():
        assert (runtime / "cpu-p-0").read_text() == "kept"


@pytest.mark.parametrize("way", ["mode", "link", "file", "owner"])
def test_a_folder_that_others_can_reach_is_refused(runtime: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = runtime.with_name("victim")
    victim.mkdir(mode=0o700)
    if way == "link":
        runtime.symlink_to(victim)
    elif way == "file":
        runtime.write_text("")
    else:
        runtime.mkdir(mode=0o700)
    if way == "mode":
        runtime.chmod(0o770)
    if way == "owner":
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        runtime.rename(runtime.with_name(f"zpruner-slots-{mine + 1}"))
    with pytest.raises(ArtifactError, match=r"zpruner-slots-.*Remove it, or set XDG_RUNTIME_DIR"):
        processor_slots(1, "p")
    assert list(victim.iterdir()) == []


def test_a_runtime_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))  # as after `su`
    with pytest.raises(ArtifactError, match=r"gone/zpruner-slots-\d+: got No such file.*Set XDG_RUNTIME_DIR"):
        processor_slots(1, "p")


@pytest.mark.parametrize("how", ["one", "all"])
def test_a_link_in_place_of_a_slot_is_not_followed(runtime: Path, how: str) -> None:
    slots = processor_slots(1, "p")
    victim = runtime.with_name("victim")
    victim.write_text("precious")
    (runtime / "cpu-p-0").symlink_to(victim)
    with pytest.raises(ArtifactError, match=r"cpu-p-0: got .*Remove it"), getattr(slots, how)():
        pass
    assert victim.read_text() == "precious"
    runtime.chmod(0o777)  # opened to others after it was looked at
    with pytest.raises(ArtifactError, match="mode 777"), getattr(slots, how)():
        pass
