"""Progress on a terminal, in a notebook, and in a log."""

from __future__ import annotations

import io
import sys
import types
from threading import Event

import pytest

from zpruner.runtime.progress import counter, draws_bars, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Log(io.StringIO):
    """A stream that tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = Event()

    def write(self, text: str) -> int:
        found = super().write(text)
        self.heard.set()
        return found


def test_a_bar_on_a_terminal_counts_what_an_earlier_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(["a", "b"], "mask", 5, "layer", done=3)) == ["a", "b"]
    assert "mask:" in sys.stderr.getvalue()
    assert "5/5" in sys.stderr.getvalue()


def test_what_is_done_within_a_step_stands_at_the_end_of_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that is drawn over, in a notebook that cannot move up as on a terminal."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with counter("sweep", 2, "variant") as step:
        for _ in range(2):
            monkeypatch.setattr("zpruner.runtime.progress.monotonic", iter(range(100)).__next__)
            assert list(progress("abc", "prune", 3, "layer")) == ["a", "b", "c"]
            step()
    said = sys.stderr.getvalue()
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert [f"prune {n}/3" in said for n in range(4)] == [False, True, True, True]
    assert said.splitlines()[-1].rpartition("\r")[2].startswith("sweep: 100%")
    assert "prune" not in said.rpartition("\r")[2]
    assert list(progress("ab", "mask", 2, "layer")) == ["a", "b"], "the next bar is one again"
    assert "mask: 100%" in sys.stderr.getvalue()


def test_a_bar_that_an_error_ended_takes_no_counts_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, which keeps what an error went through: generators that it left are not closed."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    held = progress(["a", "b"], "prune", 2, "layer")
    next(held)
    with pytest.raises(ValueError, match="x"), counter("sweep", 2, "variant"):
        raise ValueError("x")
    assert list(progress("ab", "mask", 2, "layer")) == ["a", "b"]
    assert "mask: 100%" in sys.stderr.getvalue()


def test_a_log_stays_empty_while_work_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Log())
    assert list(progress(range(3), "mask", 3, "layer")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""


def test_a_long_step_is_heard_of_though_none_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with counter("evaluate wanda s50", 8, "batch", done=2, every=0.01) as step:
        step()
        assert log.heard.wait(10)
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("evaluate wanda s50: ")
    assert lines[0].endswith(" of 8 batches after 0 s")
    with counter("search", 0, "formula", every=0.01):
        log.heard.clear()
        assert log.heard.wait(10)
    assert log.getvalue().splitlines()[-1].startswith("search: 0 formulas after 0 s")


@pytest.mark.parametrize(("config", "drawn"), [({"IPKernelApp": {}}, True), ({"TerminalApp": {}}, False)])
def test_a_notebook_draws_bars(config: dict[str, object], drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shell = types.SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert draws_bars() is drawn
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not draws_bars()
