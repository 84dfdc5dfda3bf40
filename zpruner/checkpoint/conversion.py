"""Between the tensors of a checkpoint and the parameters of the model that is built from it.

Some families are stored in another form than they have in memory: every expert by itself on disk, all of them stacked
in memory. transformers converts on loading and back on saving; here the same conversions act on single tensors, so
that no model need be loaded. Only this file and `skeleton.py` call the inside of transformers' loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.model.loader import by_kind, renamed
from zpruner.model.opening import open_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Converted:
    """Parameters of the model, by name, and the stored tensors that they are made of and made into."""

    parameters: tuple[str, ...]
    stored: tuple[str, ...]


class Conversion:
    """The conversions of one model's family.

    Args:
        model: meta tensors will do.
        quantizer: transformers', where the stored tensors are quantised: what they make is dense, and is stored dense.
    """

    def __init__(self, model: PreTrainedModel, quantizer: Any = None) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model = model
        transforms = get_model_conversion_mapping(model, None, quantizer)
        self._renamings, self._converters = by_kind(transforms)
        self._undone = transforms if quantizer is None else get_model_conversion_mapping(model)
        self._dense = ([], []) if quantizer is None else by_kind(self._undone)
        self._by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}
        self._known = model.state_dict()

    def converted(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Converted, ...]:
        """Return what is stored under other names or in another form than the model has it.

        Args:
            shapes: name of every stored tensor -> its shape.
        """
        found = []
        for target, stored in self._groups(shapes).items():
            if stored != [target] or self._target(stored[0])[1] is not None:
                tensors = {name: torch.empty(shapes[name], device="meta") for name in stored}
                found.append(Converted(tuple(self.to_parameters(tensors)), tuple(stored)))
        return tuple(found)

    def to_parameters(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters, by name, that stored tensors make; all that make up one of them must be given."""
        parameters: dict[str, Tensor] = {}
        for target, names in self._groups(stored).items():
            pattern = self._target(names[0])[1]
            if pattern is None:
                parameters[target] = stored[names[0]]
                continue
            converter = deepcopy(self._by_pattern[pattern])
            for name in names:
                converter.add_tensor(target, name, self._target(name)[1], stored[name])
            made = converter.convert(target, model=self.model, config=self.model.config)
            parameters |= {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}
        return parameters

    def to_stored(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters as a checkpoint stores them, undoing the conversions that matched a stored tensor."""
        from transformers.core_model_loading import revert_weight_conversion

        undone: Any = [entry for entry in self._undone if entry.was_used()]
        self.model._weight_conversions = undone
        found: dict[str, Tensor] = revert_weight_conversion(self.model, dict(parameters))
        return found

    def targets(self, source: str) -> list[str]:
        """Return the model's names that the stored tensor `source` is part of; none if the model has no such."""
        name, pattern = self._target(source)
        if name not in self._known:
            return []
        if pattern is None:
            return [name]
        patterns = self._by_pattern[pattern].target_patterns
        others = [name.replace(patterns[0], other) for other in patterns]
        return [other for other in others if other in self._known] or [name]

    def renamed(self, source: str) -> str | None:
        """Return the parameter that a stored tensor is, under whatever name; None where it is converted into one."""
        name, pattern = self._target(source)
        return name if pattern is None and name in self._known else None

    def renames_alike(self, source: str, name: str, suffixes: Iterable[str]) -> bool:
        """Whether `source` with each of the suffixes is renamed to `name` with it."""
        from transformers.core_model_loading import rename_source_key

        prefix, suffixes = self.model.base_model_prefix, tuple(suffixes)
        known = {**self._known, **dict.fromkeys((name + suffix for suffix in suffixes), True)}
        asked = (rename_source_key(source + s, self._renamings, self._converters, prefix, known) for s in suffixes)
        return all(found == (name + s, None) for found, s in zip(asked, suffixes, strict=True))

    def group(self, stored: Iterable[str]) -> dict[str, list[str]]:
        """Return the first parameter that each group of stored tensors makes, and the group in its order."""
        return self._groups(stored)

    def _target(self, source: str) -> tuple[str, str | None]:
        """Return the first parameter that a stored tensor becomes (part of), and the pattern of its converter."""
        prefix = self.model.base_model_prefix
        if any(self._dense):  # notes which conversions match, of those that are undone
            renamed(source, prefix, self._known, *self._dense)
        return renamed(source, prefix, self._known, self._renamings, self._converters)

    def _groups(self, stored: Iterable[str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in sorted(stored, key=_natural):
            groups.setdefault(self._target(name)[0], []).append(name)
        return groups


def _natural(name: str) -> Any:
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(name)


def find_converted(folder: Path, *, trust_remote_code: bool = False) -> list[list[list[str]]]:
    """Return what of a checkpoint folder is converted on loading, as JSON: [[parameters, stored tensors], ...]."""
    opened = open_checkpoint(folder, trust_remote_code=trust_remote_code)
    tensors = opened.tensors
    converted = Conversion(opened.model).converted({name: tensors.facts(name).shape for name in tensors.names()})
    return [[list(entry.parameters), list(entry.stored)] for entry in converted]
