"""Damages a project's artifacts at random and has DVC or a flow run what reads them: refused, then mended as it says.

`pipeline_damage_driver.py FOLDER dvc|flow COUNT` prints a JSON object with the outcomes. A file of `data/` shares its
bytes with DVC's cache: what is damaged in place is damaged there, too. After a refusal `zpruner doctor --mend` and
`dvc repro` must give back every byte.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import tiny
from damage_driver import DAMAGES, edit_and_seal

VARIANT = "wanda-s50"
READERS = {
    "plan/fetch/model": ["fetch@model"],
    "plan/fetch/calibration": ["fetch@calibration"],
    "plan/fetch/evaluation": ["fetch@evaluation"],
    "plan/generate": ["generate"],
    "plan/calibrate": ["calibrate"],
    "plan/gradients": ["gradients"],
    "plan/score": ["score@wanda"],
    "plan/mask": [f"mask@{VARIANT}"],
    "plan/apply": [f"apply@{VARIANT}"],
    "plan/pack": [f"pack@{VARIANT}"],
    "plan/evaluate/dense": ["evaluate_dense"],
    "plan/evaluate": [f"evaluate@{VARIANT}"],
    "plan/sources": ["calibrate", "score@wanda"],
    "generated": ["fetch@calibration"],
    "models/dense": ["fetch@calibration", "calibrate", "score@wanda", f"apply@{VARIANT}", "evaluate_dense"],
    "calibration": ["calibrate"],
    "evaluation/tokens.arrow": ["evaluate_dense", f"evaluate@{VARIANT}"],
    "activations/dense": ["score@wanda", f"apply@{VARIANT}", f"evaluate@{VARIANT}"],
    "scores/wanda": [f"mask@{VARIANT}"],
    "masks/wanda/s50": [f"apply@{VARIANT}", f"pack@{VARIANT}"],
    "solved/wanda/s50": [f"apply@{VARIANT}"],
    "pruned/wanda/s50": [f"evaluate@{VARIANT}", f"pack@{VARIANT}"],
    "evaluation": ["report"],
    "costs": ["report"],
}
"""What a file lies in -> the instances that read it; the first that fits."""
KINDS = ("dense", "pruned")
"""Propagation of the projects."""


def make(root: Path, propagation: str) -> Path:
    """Make a project of one variant after `dvc repro`, whose data and cache share their files."""
    tiny.make_project(root)
    params = tiny.read_params(root)
    params["methods"] = {"wanda": {"score": "wanda", "group": "row"}}
    params["sparsities"] = {"s50": 0.5}
    params["packed"] = {"variants": ["wanda/s50"], "rounds": 0}
    params["calibration"]["propagation"] = propagation
    tiny.write_params(root, params)
    tiny.repro(root)
    return root


def outputs(root: Path) -> dict[str, bytes]:
    """Return every artifact but costs and the report, which hold timings."""
    found = tiny.files_of(root / "data", leave_out=(".work", ".downloads", "sources"))
    return {name: data for name, data in found.items() if "costs" not in name and "report" not in name}


def readers_of(root: Path, path: Path) -> list[str]:
    name = path.relative_to(root / "data").as_posix()
    return next((found for start, found in READERS.items() if name.startswith(start)), [])


def run_anew(root: Path, how: str, instance: str) -> subprocess.CompletedProcess[str]:
    if how == "dvc":
        return warm(root, "dvc", "repro", "--single-item", "--force", instance)
    return warm(root, sys.executable, "-m", "flows.pipeline", "--force", instance, instance)


def warm(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return tiny.run([*command], root, check=False, PATH=tiny.warm_path())


def trial(root: Path, how: str, rng: random.Random, expected: dict[str, bytes]) -> tuple[str, str, float]:
    """Damage a file, run a reader of it, mend; returns what was done, `refused` or `harmless`, and seconds."""
    files = [path for path in sorted((root / "data").rglob("*")) if path.is_file() and not path.is_symlink()]
    path = rng.choice([path for path in files if readers_of(root, path)])
    instance, damage = rng.choice(readers_of(root, path)), rng.choice([one for one in DAMAGES if one != edit_and_seal])
    where = f"{damage.__name__} of {path.relative_to(root)}, read by {instance}"
    before = path.stat()
    shared = {str(one.relative_to(root / "data")): b"" for one in files if one.samefile(path)}  # DVC links equal files
    path.chmod(0o644)
    damage(path, rng, files)
    if path.is_file() and not path.is_symlink() and rng.random() < 0.5:  # as a bad disk does it: DVC sees no change
        path.chmod(before.st_mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    started = time.perf_counter()
    done = run_anew(root, how, instance)
    seconds, said = time.perf_counter() - started, done.stdout + done.stderr
    assert "Traceback" not in said, (where, said)
    if done.returncode:
        assert "zpruner doctor --mend" in said or "dvc repro" in said or "missing" in said, (where, said)
    else:
        print(where, file=sys.stderr)
        assert outputs(root) | shared == expected | shared, (where, said)
    warm(root, sys.executable, "-m", "zpruner", "doctor", "--mend")
    mended = warm(root, "dvc", "repro")
    assert mended.returncode == 0, (where, said, mended.stdout + mended.stderr)
    assert outputs(root) == expected, (where, said)
    return damage.__name__, "refused" if done.returncode else "harmless", seconds


def main(folder: Path, how: str, count: int, seed: int = 0) -> None:
    rng, started = random.Random(f"{how} {seed}"), time.perf_counter()
    outcomes: Counter[str] = Counter()
    by_damage: Counter[str] = Counter()
    longest = 0.0
    for number, kind in enumerate(KINDS):
        root = make(folder / kind, kind)
        expected = outputs(root)
        for _ in range(count * (number + 1) // len(KINDS) - count * number // len(KINDS)):
            damage, found, seconds = trial(root, how, rng, expected)
            longest = max(longest, seconds)
            outcomes[found] += 1
            by_damage[f"{damage}: {found}"] += 1
            print(f"{sum(outcomes.values())} {damage}: {found}", file=sys.stderr, flush=True)
    spent = {"longest": round(longest, 1), "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps({"how": how, "outcomes": outcomes, "damages": by_damage, **spent}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
