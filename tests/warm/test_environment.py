"""Every variable that the libraries of stages read on import is known to matter, or here to be harmless."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny

from warm._environment import APPLIED, matters
from warm.libraries import DVC, LIBRARIES

NOTE = """
import os, sys
from importlib import import_module

read = set()
real = os._Environ.__getitem__

def noting(self, name):
    read.add(name)
    return real(self, name)

os._Environ.__getitem__ = noting
for library in sys.argv[1:]:
    import_module(library)
print(*sorted(read), sep="\\n", file=sys.__stdout__)
"""
HARMLESS = {"PATH"}
"""Where programs are looked for, which no library does while it is imported."""


@pytest.mark.parametrize("libraries", [pytest.param(LIBRARIES, marks=pytest.mark.slow), DVC])
def test_what_libraries_read_on_import_matters(libraries: tuple[str, ...]) -> None:
    environment = {name: value for name, value in tiny.environment().items() if name in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        [sys.executable, "-c", NOTE, *libraries], env=environment, capture_output=True, text=True, check=True
    )
    read = {name for name in done.stdout.split() if not name.endswith("_CONFIG_DIR")}  # another program's settings
    assert len(read) > 5
    assert {name for name in read if not matters(name)} <= HARMLESS | APPLIED


def test_what_a_child_applies_or_nobody_reads_does_not_matter() -> None:
    harmless = ("PS1", "PWD", "OLDPWD", "SHLVL", "_", "PATH", "DVC_STAGE", "PREFECT_API_URL")
    assert not any(matters(name) for name in (*APPLIED, *harmless))
    some = ("PYTHONHASHSEED", "HF_HUB_OFFLINE", "OMP_PROC_BIND", "LC_ALL", "HOME", "CUDA_LAUNCH_BLOCKING")
    assert all(matters(name) for name in some)
