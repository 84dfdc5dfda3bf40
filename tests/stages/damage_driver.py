"""Damages artifacts at random and runs the stages that read them: what is damaged is refused, or nothing changes.

`damage_driver.py FOLDER COUNT` prints a JSON object: how many trials were refused and how many harmless, by stage and
by damage; the first trial that used damage or ended with a traceback stops it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from opened import opened
from trials import INSTANCES, PROJECTS, READING, make, runs, untimed

from zpruner.artifacts.files import write_sealed_json
from zpruner.errors import ZprunerError

Damage = Callable[[Path, random.Random, list[Path]], None]


def flip_a_bit(path: Path, rng: random.Random, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def change_a_digit(path: Path, rng: random.Random, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57] or [0]
    data[rng.choice(digits)] = rng.choice(b"0123456789")
    path.write_bytes(data)


def overwrite_a_page(path: Path, rng: random.Random, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at : at + 4096] = rng.randbytes(min(4096, len(data) - at))
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random, _: list[Path]) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def append(path: Path, rng: random.Random, _: list[Path]) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 100)))


def delete(path: Path, _: random.Random, __: list[Path]) -> None:
    path.unlink()


def put_a_folder(path: Path, _: random.Random, __: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def put_another_file(path: Path, rng: random.Random, others: list[Path]) -> None:
    alike = [other for other in others if other.suffix == path.suffix and other != path] or [path]
    path.write_bytes(rng.choice(alike).read_bytes())


def put_a_link(path: Path, rng: random.Random, others: list[Path]) -> None:
    target = rng.choice([other for other in others if other != path])
    path.unlink()
    path.symlink_to(target)


def edit_and_seal(path: Path, rng: random.Random, others: list[Path]) -> None:
    """Drop or replace an entry of a sealed file, and seal it again; other files get one bit altered."""
    try:
        value = json.loads(path.read_bytes())
        value.pop("content_checksum")
    except (ValueError, KeyError, AttributeError):
        flip_a_bit(path, rng, others)
        return
    key = rng.choice(sorted(value))
    if rng.random() < 0.5:
        del value[key]
    else:
        value[key] = rng.choice([None, "x", -1, [], {}, True])
    write_sealed_json(path, value)


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    flip_a_bit,
    change_a_digit,
    overwrite_a_page,
    truncate,
    append,
    delete,
    put_a_folder,
    put_another_file,
    put_a_link,
    edit_and_seal,
)


def trial(root: Path, stage: str, path: Path, damage: Damage, rng: random.Random, others: list[Path]) -> str:
    """Damage a file, run a stage, put the file back; returns `refused` or `harmless`, or what went wrong."""
    if stage == "report":  # of the costs that the trial before this one left
        INSTANCES[stage](root)
        shutil.rmtree(root / "data" / ".work", ignore_errors=True)
    good, before = path.read_bytes(), untimed(root)
    damage(path, rng, others)
    if path.is_file() and path.read_bytes() == good and not path.is_symlink():
        return "harmless"  # the same bytes
    started = time.perf_counter()
    try:
        INSTANCES[stage](root)
        found = "harmless"
    except ZprunerError as error:
        found = "refused" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if time.perf_counter() - started > 10:
        found = "more than 10 s"
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    shutil.rmtree(root / "data" / ".work", ignore_errors=True)
    if damage is edit_and_seal and found == "harmless":  # an artifact in its own right
        INSTANCES[stage](root)
        shutil.rmtree(root / "data" / ".work", ignore_errors=True)
    after = untimed(root)
    if after != before and found in ("refused", "harmless"):
        found = f"other artifacts: {sorted(name for name in before if after.get(name) != before[name])}"
    return found


def main(folder: Path, count: int, seed: int = 0) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    started = time.perf_counter()
    outcomes: Counter[str] = Counter()
    by_stage: Counter[str] = Counter()
    by_damage: Counter[str] = Counter()
    for number, kind in enumerate(PROJECTS):
        root = make(folder / f"project-{number}", kind)
        reads: dict[str, list[Path]] = {}
        for stage in READING:
            if runs(kind, stage):
                with opened(root / "data") as files:
                    INSTANCES[stage](root)
                reads[stage] = sorted(files)
                shutil.rmtree(root / "data" / ".work", ignore_errors=True)
        others = sorted({path for files in reads.values() for path in files})
        share = count * (number + 1) // len(PROJECTS) - count * number // len(PROJECTS)
        for _ in range(share):
            stage = rng.choice(sorted(reads))
            path, damage = rng.choice(reads[stage]), rng.choice(DAMAGES)
            found = trial(root, stage, path, damage, rng, others)
            assert found in ("refused", "harmless"), f"{kind}, {stage}, {path}, {damage.__name__}: {found}"
            outcomes[found] += 1
            by_stage[stage] += 1
            by_damage[f"{damage.__name__}: {found}"] += 1
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"outcomes": outcomes, "stages": by_stage, "damages": by_damage, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))
