"""What only Linux has is asked for in few places, each of which does without it elsewhere."""

from __future__ import annotations

import ast
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from warm import _serve, client

ROOT = Path(__file__).parents[1]
LINUX = {"prctl", "mallopt", "posix_fadvise", "posix_fallocate", "splice", "memfd_create", "eventfd", "getrandom"}
LINUX |= {"sched_getaffinity", "sched_setaffinity", "pidfd_open", "copy_file_range", "epoll", "getxattr"}
GUARDED = {
    "warm/_serve.py": {"/proc"},
    "warm/client.py": {"prctl", "/proc"},
    "zpruner/runtime/allocator.py": {"mallopt"},
    "zpruner/runtime/pages.py": {"/proc", "/sys"},
    "zpruner/runtime/machine.py": {"sched_getaffinity"},  # and files below a root that tests replace
}


def used(tree: ast.AST) -> Iterator[str]:
    """Yield the names and paths of Linux's that a module uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LINUX:
            yield node.attr
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(("/proc", "/sys")):
            yield node.value[:5].rstrip("/")


def test_what_only_linux_has_is_used_in_known_places() -> None:
    found = {}
    for package in ("zpruner", "stages", "warm", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if names := set(used(ast.parse(path.read_text(encoding="utf-8")))):
                found[path.relative_to(ROOT).as_posix()] = names
    assert found == GUARDED


def test_the_warm_worker_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AssertionError("not on this system")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(_serve, "Path", lambda _: ROOT / "no-proc")
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    client.die_with_parent()
    assert _serve._other_threads() == []
    monkeypatch.setattr(os, "getppid", lambda: 5_000_000)  # no such process: there is nothing to look it up in
    assert client.is_orphan(4_000_000) is False
