"""How the tensors of a packed checkpoint become a model's: which stay packed, and how the others are expanded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
)

from zpruner.checkpoint.conversion import Conversion
from zpruner.kernels import Parts, check_packed
from zpruner.kernels.expand import expand_rows
from zpruner.packed.layout import PackedTensor
from zpruner.packed.stack import PackedStack
from zpruner.packed.structure import linear_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zpruner.packed.reader import PackedFile

_PATTERN = "zpruner-packed"


def simple_tensors(model: PreTrainedModel, files: Iterable[PackedFile]) -> dict[str, str]:
    """Return the packed tensors that a linear layer of the model can use as they are: stored name -> its weight.

    Others are expanded: what is converted on loading, shared between modules, or used by something else.
    """
    conversion = Conversion(model)
    linear = linear_modules(model)
    modules = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    parameters = [id(found) for _, found in model.named_parameters(remove_duplicate=False)]
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    found = {}
    for file in files:
        for name, tensor in file.packed.items():
            weight = conversion.renamed(name)
            if weight is None or weight not in linear or weight in tied or not weight.endswith(".weight"):
                continue
            module, transposed = linear[weight]
            parameter = model.get_parameter(weight)
            alone = modules.count(id(module)) == 1 and parameters.count(id(parameter)) == 1
            fits = transposed == tensor.transposed and tuple(parameter.shape) == tensor.shape
            suffixes = tuple(f"_{part}" for part in tensor.layout.names)
            if alone and fits and conversion.renames_alike(name, weight, suffixes):
                found[name] = weight
    return found


class Expansion(WeightConverter):
    """Collects the parts of packed tensors and makes the model's parameters of them.

    It stands before the model's own converters, and applies these itself once the tensors are expanded.

    Args:
        conversion: of the model that is loaded.
        packed: stored name -> packed tensor.
        members: key as transformers asks for it (after renaming) -> (first parameter of its group, stored name).
        order: first parameter -> stored names that make it, in their order.
    """

    def __init__(
        self,
        conversion: Conversion,
        packed: Mapping[str, PackedTensor],
        members: Mapping[str, tuple[str, str]],
        order: Mapping[str, list[str]],
    ) -> None:
        super().__init__(_PATTERN, _PATTERN, [_Nothing()])
        self._conversion, self._packed, self._members, self._order = conversion, packed, members, order

    @classmethod
    def of(
        cls, model: PreTrainedModel, files: Iterable[PackedFile], simple: Mapping[str, str], conversions: list[Any]
    ) -> Expansion | None:
        """Return what expands the packed tensors that no layer uses as they are; None where there are none."""
        packed = {name: tensor for file in files for name, tensor in file.packed.items() if name not in simple}
        if not packed:
            return None
        conversion = Conversion(model)
        dense = [name for file in files for name in file.dense]
        groups = conversion.group([*dense, *packed])
        order = {target: names for target, names in groups.items() if any(name in packed for name in names)}
        renamings = deepcopy([entry for entry in conversions if isinstance(entry, WeightRenaming)])
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        target_of: dict[str, str] = {}
        for target, names in order.items():
            for name in names:
                target_of |= dict.fromkeys(packed[name].parts.values() if name in packed else (name,), target)
        members = {}
        for key in sorted(
            [*dense, *(part for file in files for t in file.packed.values() for part in t.parts.values())],
            key=dot_natural_key,
        ):
            renamed = apply_renamings(key, renamings)
            if key in target_of:
                members[renamed] = (target_of[key], key)
        for names in order.values():
            for name in names:  # or saving would not undo what was done here
                apply_converters(apply_renamings(name, renamings), converters)
        return cls(conversion, packed, members, order)

    def __deepcopy__(self, memo: dict[int, Any]) -> Expansion:
        """Return an empty one: transformers takes a copy per parameter."""
        return type(self)(self._conversion, self._packed, self._members, self._order)

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Return the parameter that a key is part of, with this converter's pattern; or the key itself, and None."""
        found = self._members.get(source_key)
        return (source_key, None) if found is None else (found[0], _PATTERN)

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        """Take in a stored tensor, under its own name."""
        super().add_tensor(target_key, source_key, source_key, future)

    def convert(
        self, layer_name: str, model: Any = None, config: Any = None, hf_quantizer: Any = None, loading_info: Any = None
    ) -> dict[str, Tensor]:
        """Return the parameters of a group, expanded and converted, in the dtype that the model has them in.

        Stacks of experts are packed again at once, one by one.

        Raises:
            ArtifactError: the parts of a tensor are not a packed matrix.
        """
        collected = {name: tensors[0] for name, tensors in self.materialize_tensors().items()}
        stored = {}
        for name in self._order[layer_name]:
            tensor = self._packed.get(name)
            if tensor is None:
                stored[name] = collected[name]
                continue
            parts = Parts(**{part: collected.pop(stored_as) for part, stored_as in tensor.parts.items()})
            check_packed(name, tensor.layout, parts)
            stored[name] = tensor.restored(expand_rows(tensor.layout, parts, 0, tensor.rows))
        known = self._conversion.model.state_dict()
        made = self._conversion.to_parameters(stored)
        cast = {name: value.to(known[name].dtype) if name in known else value for name, value in made.items()}
        return {name: PackedStack.of(value) for name, value in cast.items()}


class _Nothing(ConversionOps):
    """The operation that a converter must have; `Expansion.convert` does the work."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what is given."""
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        """Itself."""
        return self
