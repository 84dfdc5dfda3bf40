"""Which code a method's scores come from."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

from zpruner.artifacts.work import digest_of
from zpruner.pruning.composition import Composition


def source_digest(composition: Composition) -> str:
    """Return a digest of a method's source and of what it imports from its room.

    It makes the method's stages run again when the method changes, whichever package it comes from.
    """
    module = inspect.getmodule(type(composition.method))
    assert module is not None
    return digest_of([inspect.getsource(found) for found in _with_helpers(module)])


def _with_helpers(module: ModuleType) -> list[ModuleType]:
    """Return a method's module and those of `zpruner.methods` that its functions and classes come from, by name."""
    found: dict[str, ModuleType] = {}
    waiting = [module]
    while waiting:
        here = waiting.pop()
        if here.__name__ not in found:
            found[here.__name__] = here
            owners = {getattr(value, "__module__", None) or "" for value in vars(here).values()}
            waiting += [
                sys.modules[name] for name in owners if name.startswith(("zpruner.methods.", "zpruner.formula."))
            ]
    return [found[name] for name in sorted(found)]
