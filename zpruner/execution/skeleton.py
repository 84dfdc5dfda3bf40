"""A model without its weights: the structure on the meta device, into which weights are put by name and taken out.

Renaming, fusing and casting of stored tensors is that of transformers' own loader, called for a few tensors at a time,
so that a weight is the same whether the model was loaded whole or in parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from zpruner.checkpoint.conversion import Conversion
from zpruner.execution.read_ahead import ReadAhead
from zpruner.model.bfloat16 import multiplies_bfloat16, widen_products
from zpruner.model.buffers import compute_buffers
from zpruner.model.load import record_untied
from zpruner.model.loader import Later, assign, find
from zpruner.model.matching import check_converted, check_loaded
from zpruner.model.opening import Opened
from zpruner.structures.reordering import Reordering


class Skeleton:
    """A causal language model whose parameters and stored buffers lie on the meta device until they are put in.

    Buffers that no checkpoint stores (such as rotary tables) are computed and stay.

    Args:
        opened: the checkpoint, whose model this is.
        device: where weights are put.
        order: in which they are put there.

    Raises:
        IncompleteCheckpointError: a tensor that cannot be converted.
    """

    def __init__(self, opened: Opened, device: torch.device, order: Reordering | None = None) -> None:
        self._order = order or Reordering()
        self.folder, self.tensors, self.device = opened.folder, opened.tensors, device
        self.model = opened.model
        if self.model.dtype == torch.bfloat16 and not multiplies_bfloat16(device):
            widen_products(self.model)
        self._loader = opened.loader(device)
        self._conversion = Conversion(self.model, opened.quantizer)
        self._ahead = ReadAhead(self.tensors, device)
        stored = self.model.state_dict(keep_vars=True)
        compute_buffers(self.model, stored, device)
        self._stored_as = self._match(stored)
        self._untie(opened.found)
        self._empty = self.model.state_dict(keep_vars=True)
        names_of: dict[int, list[str]] = {}
        for name, tensor in self._empty.items():
            names_of.setdefault(id(tensor), []).append(name)
        self.tied = {name: tuple(names_of[id(tensor)]) for name, tensor in self._empty.items()}
        """Every stored name -> all names of the same tensor, itself included."""

    def put(self, names: Iterable[str]) -> None:
        """Read the tensors `names` and those tied to them, and put them into the model.

        Raises:
            IncompleteCheckpointError: a tensor of another shape, or one that cannot be converted.
        """
        wanted = {tied for name in names for tied in self.tied[name]}
        sources = self._sources(wanted)
        self._ahead.keep(sources)
        self._load(sources)
        there = (name for name in wanted if not find(self.model, name).is_meta)
        self._order.move(there, partial(find, self.model))
        for name in wanted:
            tensor = find(self.model, name)
            if tensor.is_meta:
                tensor = next(t for t in (find(self.model, other) for other in self.tied[name]) if not t.is_meta)
            assign(self.model, name, tensor)

    def announce(self, names: Iterable[str]) -> None:
        """Begin to read what `put` needs for the tensors `names`, which are put in next; none: drop what was begun."""
        self._ahead.announce(self._sources({tied for name in names for tied in self.tied[name]}))

    def to_store(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors `names`, as they are in the model now, in the form and by the names of a checkpoint.

        Of tied tensors there is one. Tensors on the meta device give meta tensors.
        """
        chosen = {self._kept_of_tied(name): None for name in names}
        return self._conversion.to_stored({name: find(self.model, name).detach() for name in chosen})

    def take_out(self, names: Iterable[str]) -> None:
        """Put the tensors `names`, and those tied to them, back on the meta device, which frees their memory."""
        for name in {tied for wanted in names for tied in self.tied[wanted]}:
            assign(self.model, name, self._empty[name])

    def sizes(self, names: Iterable[str]) -> int:
        """Return the bytes of the tensors `names`, tied ones counted once."""
        chosen = {self.tied[name][0]: self._empty[name] for name in names}
        return sum(tensor.numel() * tensor.element_size() for tensor in chosen.values())

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of all parameters and stored buffers."""
        return tuple(self._empty)

    def _kept_of_tied(self, name: str) -> str:
        dropped = self.model.all_tied_weights_keys
        return next((other for other in self.tied[name] if other not in dropped), self.tied[name][0])

    def _sources(self, names: Iterable[str]) -> list[str]:
        """Return the stored tensors that the tensors `names` are made of, each once."""
        return list({source: None for name in names for source in self._stored_as.get(name, ())})

    def _match(self, stored: dict[str, Tensor]) -> dict[str, list[str]]:
        """Return for every name the checkpoint's tensors that it is made of."""
        names: dict[int, list[str]] = {}
        for name, tensor in stored.items():
            names.setdefault(id(tensor), []).append(name)
        found: dict[str, list[str]] = {}
        for source in self.tensors.names():
            for target in self._conversion.targets(source):
                found.setdefault(target, []).append(source)
        check_loaded(
            self.folder,
            {name for name, tensor in stored.items() if not any(tied in found for tied in names[id(tensor)])},
            set(),
        )
        return found

    def _untie(self, found: frozenset[str]) -> None:
        """Part tied tensors that are stored with different values, as transformers does; of equal ones read one."""
        for name, tied_to in list(self.model.all_tied_weights_keys.items()):
            if name not in found or tied_to not in found:
                continue
            if torch.equal(self._value(name), self._value(tied_to)):
                self._stored_as[name] = []
            else:
                empty = find(self.model, name)
                assign(self.model, name, nn.Parameter(empty.detach(), requires_grad=empty.requires_grad))
                self.model.all_tied_weights_keys.pop(name)
        record_untied(self.model)

    def _value(self, name: str) -> Tensor:
        """Return a tensor as it would be put into the model, which is left as it was."""
        empty = find(self.model, name)
        self._load(self._stored_as[name])
        value = find(self.model, name)
        assign(self.model, name, empty)
        return value

    def _load(self, sources: list[str]) -> None:
        """Put stored tensors into the model."""
        later = {name: Later(self.tensors.facts(name).kind, partial(self._ahead.take, name)) for name in sources}
        account = self._loader.load(later)
        check_converted(self.folder, account.conversion_errors)
        check_loaded(self.folder, set(), account.mismatched_keys)
