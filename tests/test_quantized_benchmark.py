"""The page of benchmarks/quantized.py: what is committed, as a table, a chart and sentences."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_row_is_told_and_what_follows(tmp_path: Path) -> None:
    rows: Any = import_module("_quantized_rows")
    page: Any = import_module("_quantized_page")
    begin, end = page.BEGIN, page.END
    found = rows.read(BENCHMARKS / "results/quantized.jsonl")
    keys = [variant.key for variant in rows.variants()]
    assert len(set(keys)) == len(keys)
    assert set(found) <= set(keys)
    path = tmp_path / "page.md"
    path.write_text(f"before\n{begin}\n{end}\nafter\n", encoding="utf-8")
    for _ in range(2):  # written over, it is the same
        page.write_docs(path, found)
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{begin}\n![")
        assert text.endswith(f"{end}\nafter\n")
        assert text.count("\n| ") == 1 + len(found)
        assert "Smallest at no worse than" in text
        assert "sparsegpt 0.5 with int4 (0.414 bytes a weight) does not beat unpruned int3" in text
    assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<svg")
