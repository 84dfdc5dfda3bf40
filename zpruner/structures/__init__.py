"""Structures that can be cut out of a model or put into another order, found by probing it.

The interface::

    couplings = find_couplings(model)            # a model in memory, or empty (on the meta device): its config is read
    couplings.why_not(StructureKind.EXPERTS)     # None, or why there are none in a few words
    couplings.of(StructureKind.NEURONS)          # tuple[Coupling, ...], or InvalidPatternError with that reason
    couplings.kept(pattern)                      # StructuredPattern -> name: how many each coupling keeps

    keep: Mapping[str, Tensor]                   # coupling's name -> bool (count,); couplings left out keep all
    couplings.check(keep)                        # equal shares where one number of the config says how many
    config = cut_config(model.config, couplings, keep)   # compared with every shape; refuses what it cannot say
    smaller = cut(model, couplings, keep)        # in memory
    write_cut(dense, inventory, couplings, keep, ...)    # a checkpoint, block by block

    symmetries = find_symmetries(model, kinds)   # what changes places without a change of what the model computes
    symmetries.of(Permutation.HEADS)             # tuple[Symmetry, ...], or InvalidPatternError with the reason
    moved = Reordering(symmetries.found, orders) # name -> int64 (count,), the old place of each
    moved.move(names, find), moved.weight(layer, weight), moved.stats(layer, stats)

A `Coupling` has `writes` and `reads`, each a tuple of `Slices`: a parameter's name (and the `PrunableLayer` whose
weight it is), an axis of its logical (out, in) weight, and for structure i the places `index[i]` on that axis. Where
all `reads` columns of a structure are zero, cutting it changes no logit. Experts have no `reads`: cutting one is the
model whose router never chooses it; blocks have neither, and cutting one is the model in which it does nothing.
"""

from zpruner.structures.coupling import Coupling, Couplings, Slices
from zpruner.structures.cut import cut, cut_config
from zpruner.structures.find import find_couplings
from zpruner.structures.reordering import Reordering
from zpruner.structures.slicing import cut_tensor, cuts_of
from zpruner.structures.symmetries import MOVABLE, Symmetries, Symmetry, check_order, find_symmetries
from zpruner.structures.writing import write_cut

__all__ = [
    "MOVABLE",
    "Coupling",
    "Couplings",
    "Reordering",
    "Slices",
    "Symmetries",
    "Symmetry",
    "check_order",
    "cut",
    "cut_config",
    "cut_tensor",
    "cuts_of",
    "find_couplings",
    "find_symmetries",
    "write_cut",
]
