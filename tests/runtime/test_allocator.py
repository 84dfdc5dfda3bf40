"""Freed memory is used again: counted by the pages that the system has to hand out."""

import platform
import subprocess
import sys

import pytest
import tiny

PROGRAM = """
import resource, sys
from zpruner.runtime.allocator import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        kept = [bytearray(4 << 20) for _ in range(4)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_used_again():
    environment = tiny.environment() | {"PYTHONPATH": str(tiny.REPOSITORY)}
    default, kept = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], env=environment, text=True))
        for how in ("default", "keep")
    )
    assert kept < 2000 < default
