"""transformers learns of packed checkpoints as soon as both it and zpruner are imported, in whichever order."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_WATCHED = "transformers.quantizers.auto"
"""Where transformers keeps its quantizers: imported by whatever can load a model."""
_REGISTERS = "zpruner.packed.quantizer"


def register_with_transformers() -> None:
    """Register the packed format, now if transformers can load models already, else once it can.

    Neither transformers nor torch is imported here: `import zpruner` takes no time.
    """
    if _WATCHED in sys.modules:
        import_module(_REGISTERS)
    else:
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Finds the watched module as everybody else does, and registers once it has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the watched module with a loader that registers; None for any other."""
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Loads a module as `loader` does, and registers afterwards."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the loader creates."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        self._loader.exec_module(module)
        import_module(_REGISTERS)
