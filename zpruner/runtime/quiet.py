"""Other libraries kept off the user's terminal, and their errors in one line."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of transformers, and its progress bars where standard error is no terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    # Some of its bars heed no switch of transformers, but all go to standard error.
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with warnings.catch_warnings(), bars:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def first_line(error: Exception) -> str:
    """Return the first line of another library's error, shortened, for use inside a sentence; two, after a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line.rstrip(".:") if len(line) <= 200 else f"{line[:197]}..."
