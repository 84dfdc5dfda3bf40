"""Which results were computed for a report, and which came from a cache."""

from __future__ import annotations

from pathlib import Path

from stages._ran import LEDGER, computed, note_run


def run(root: Path, name: str, seconds: float) -> None:
    path = root / "costs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(seconds))
    note_run(root / "work", path)


def ask(root: Path) -> set[str]:
    return set(computed(root / "work", root / "costs"))


def test_the_first_report_counts_what_ran_here(tmp_path: Path) -> None:
    run(tmp_path, "mask/wanda/s50", 1.0)
    (tmp_path / "costs/calibrate.json").write_text("9.0")  # pulled from a colleague's cache
    assert ask(tmp_path) == {"mask/wanda/s50.json"}
    assert ask(tmp_path) == {"mask/wanda/s50.json"}, "a report made again says the same"


def test_later_reports_count_what_ran_since(tmp_path: Path) -> None:
    run(tmp_path, "mask/wanda/s50", 1.0)
    ask(tmp_path)
    run(tmp_path, "mask/wanda/s60", 2.0)
    assert ask(tmp_path) == {"mask/wanda/s60.json"}
    (tmp_path / "costs/mask/wanda/s60.json").unlink()  # the sparsity is taken out again ...
    assert ask(tmp_path) == set()
    (tmp_path / "costs/mask/wanda/s60.json").write_text("2.0")  # ... and restored by DVC
    assert ask(tmp_path) == set()


def test_a_torn_or_missing_ledger_claims_nothing_computed(tmp_path: Path) -> None:
    run(tmp_path, "calibrate", 1.0)
    ledger = tmp_path / "work" / LEDGER
    ledger.write_text(ledger.read_text() + '{"cost": "torn\n[1]\n')
    assert ask(tmp_path) == {"calibrate.json"}
    ledger.unlink()
    assert ask(tmp_path) == set()
