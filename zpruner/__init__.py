"""Post-training pruning of large language models.

>>> import zpruner
>>> model, tokenizer = zpruner.load("data/models/dense")
>>> windows = zpruner.load_windows(zpruner.NEWS, model, tokenizer, part=(0.0, 0.5))
>>> held_out = zpruner.load_windows(zpruner.NEWS, model, tokenizer, part=(0.5, 1.0), nsamples=8)
>>> calibration = zpruner.calibrate(model, windows, for_methods=["best"])
>>> layers = zpruner.prune(model, calibration, method="best", sparsity=0.5)
>>> zpruner.perplexity(model, held_out)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from zpruner.packed.hook import register_with_transformers

if TYPE_CHECKING:
    __version__: str
    from zpruner.calibration import Calibration as Calibration
    from zpruner.errors import ZprunerError as ZprunerError
    from zpruner.evaluate import layer_error as layer_error
    from zpruner.evaluate import perplexity as perplexity
    from zpruner.masks import REFINEMENTS as REFINEMENTS
    from zpruner.masks import MaskRefinement as MaskRefinement
    from zpruner.masks import select as select
    from zpruner.methods import METHODS as METHODS
    from zpruner.methods import MaskSolver as MaskSolver
    from zpruner.methods import PruningMethod as PruningMethod
    from zpruner.packed.pack import pack as pack
    from zpruner.packed.unpack import unpack as unpack
    from zpruner.pruning.compose import compose as compose
    from zpruner.pruning.composition import Composition as Composition
    from zpruner.pruning.in_memory import calibrate as calibrate
    from zpruner.pruning.in_memory import needs as needs
    from zpruner.pruning.in_memory import prune as prune
    from zpruner.pruning.in_memory import prune_sequentially as prune_sequentially
    from zpruner.pruning.loading import load as load
    from zpruner.pruning.loading import load_windows as load_windows
    from zpruner.pruning.permuting import permute_heads as permute_heads
    from zpruner.pruning.permuting import permute_neurons as permute_neurons
    from zpruner.pruning.permuting import permute_stream as permute_stream
    from zpruner.pruning.results import PrunedLayer as PrunedLayer
    from zpruner.pruning.results import PrunedLayers as PrunedLayers
    from zpruner.pruning.sweep import Sweep as Sweep
    from zpruner.pruning.sweep import SweepRow as SweepRow
    from zpruner.pruning.sweep import sweep as sweep
    from zpruner.runtime.downloads import NEWS as NEWS
    from zpruner.types import ComparisonGroup as ComparisonGroup
    from zpruner.types import LayerStats as LayerStats
    from zpruner.types import Mask as Mask
    from zpruner.types import ScoreMatrix as ScoreMatrix
    from zpruner.types import SparsityPattern as SparsityPattern
    from zpruner.types import Stat as Stat
    from zpruner.updates import UPDATES as UPDATES
    from zpruner.updates import WeightUpdate as WeightUpdate

_ROOMS = {
    "calibration": ("Calibration",),
    "pruning.compose": ("compose",),
    "pruning.composition": ("Composition",),
    "errors": ("ZprunerError",),
    "evaluate": ("layer_error", "perplexity"),
    "masks": ("REFINEMENTS", "MaskRefinement", "select"),
    "methods": ("METHODS", "MaskSolver", "PruningMethod"),
    "packed.pack": ("pack",),
    "packed.unpack": ("unpack",),
    "pruning.in_memory": ("calibrate", "needs", "prune", "prune_sequentially"),
    "pruning.permuting": ("permute_heads", "permute_neurons", "permute_stream"),
    "pruning.results": ("PrunedLayer", "PrunedLayers"),
    "pruning.sweep": ("Sweep", "SweepRow", "sweep"),
    "runtime.downloads": ("NEWS",),
    "pruning.loading": ("load", "load_windows"),
    "types": ("ComparisonGroup", "LayerStats", "Mask", "ScoreMatrix", "SparsityPattern", "Stat"),
    "updates": ("UPDATES", "WeightUpdate"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)  # noqa: PLE0605 - mypy reads the imports above

register_with_transformers()


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: `zpruner --help` need not wait for torch."""
    if name == "__version__":
        return version("zpruner")
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'zpruner' has no attribute '{name}'")
    value: object = getattr(import_module(f"zpruner.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
