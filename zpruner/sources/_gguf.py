"""GGUF files, parsed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let transformers parse the header of a GGUF file once, and list the names of its tensors once.

    It does the former for the config, the weights and the tokenizer, in pure Python, and the latter for every module
    of the model: most of the time that the default model took.
    """
    try:
        import gguf
    except ImportError:  # which transformers reports
        yield
        return
    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)
