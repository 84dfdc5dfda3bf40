"""Structures that can be cut out of a model, found by probing it, and the ordinary smaller model without them.

The interface::

    couplings = find_couplings(model)            # a model in memory, or empty (on the meta device): structure only
    couplings.why_not(StructureKind.EXPERTS)     # None, or one clause such as "every token meets the same MLP"
    couplings.of(StructureKind.NEURONS)          # tuple[Coupling, ...], or InvalidPatternError with that clause
    couplings.kept(StructureKind.NEURONS, 0.25)  # name -> how many to keep, in the steps that the config allows

    keep: Mapping[str, Tensor]                   # coupling's name -> bool (count,); couplings left out keep all
    couplings.check(keep)                        # equal shares where one number of the config says how many
    smaller = cut(model, couplings, keep)        # in memory
    config = cut_config(model.config, couplings, keep)   # checked against the shapes; refuses what it cannot say
    write_cut(dense, couplings, keep, change, work, facts, on_shard, card)   # a checkpoint, one block in memory

A `Coupling` has `writes` and `reads`, each a tuple of `Slices`: a parameter's name (and the `PrunableLayer` whose
weight it is), an axis of its logical (out, in) weight, and for structure i the places `index[i]` on that axis. Where
all `reads` columns of a structure are zero, cutting it changes no logit (of experts: where the router never chooses
it).
"""

from zpruner.structures.coupling import Coupling, Couplings, Slices

__all__ = ["Coupling", "Couplings", "Slices"]
