"""Which code multiplies by packed matrices on this machine, and why."""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import dataclass
from functools import cache

from zpruner.errors import InvalidSettingError, did_you_mean
from zpruner.kernels.build import BuildError, library_file
from zpruner.kernels.library import Isa, open_library

VARIABLE = "ZPRUNER_KERNEL"
TORCH = "torch"
AUTO = "auto"


@dataclass(frozen=True)
class Kernels:
    """What multiplies: a C library with one of its instruction sets, or torch after expanding the weights.

    Attributes:
        library: the C library, or None for torch.
        isa: the instruction set.
        why: one line for people.
    """

    library: ctypes.CDLL | None
    isa: Isa
    why: str

    @property
    def name(self) -> str:
        """The name that `ZPRUNER_KERNEL` has for it."""
        return TORCH if self.library is None else self.isa.name.lower()


def names() -> list[str]:
    """Return what `ZPRUNER_KERNEL` may be."""
    return [AUTO, TORCH, *(isa.name.lower() for isa in Isa)]


def choose() -> Kernels:
    """Return the kernels that `ZPRUNER_KERNEL` names: `auto` is the fastest that this machine has.

    Without a compiler `auto` is torch, which expands the weights for every product; a warning says so once.

    Raises:
        InvalidSettingError: an unknown name, or a kernel that this machine cannot run.
    """
    return _choose(os.environ.get(VARIABLE, AUTO) or AUTO)


@cache
def _choose(wanted: str) -> Kernels:
    if wanted not in names():
        raise InvalidSettingError(VARIABLE, f"'{wanted}'", "the name of a kernel", did_you_mean(wanted, names()))
    if wanted == TORCH:
        return Kernels(None, Isa.PORTABLE, f"torch expands the weights for every product ({VARIABLE}={TORCH})")
    try:
        file = library_file()
        library = open_library(file)
    except (BuildError, OSError) as error:
        if wanted != AUTO:
            raise InvalidSettingError(
                VARIABLE, f"'{wanted}', but {error}", "a kernel that can be built here", f"Set it to '{TORCH}'."
            ) from None
        why = f"torch expands the weights for every product: {error}"
        warnings.warn(f"zpruner.kernels: {why}", stacklevel=3)
        return Kernels(None, Isa.PORTABLE, why)
    able = [isa for isa in Isa if library.zp_supports(isa)]
    isa = able[-1] if wanted == AUTO else Isa[wanted.upper()]
    if isa not in able:
        raise InvalidSettingError(
            VARIABLE,
            f"'{wanted}'",
            f"a kernel that this processor can run ({', '.join(found.name.lower() for found in able)})",
            f"Unset it, or set it to '{AUTO}'.",
        )
    threads = "with OpenMP" if library.zp_openmp() else "on one thread (no OpenMP)"
    return Kernels(library, isa, f"{isa.name.lower()} kernels {threads}, from {file}")
