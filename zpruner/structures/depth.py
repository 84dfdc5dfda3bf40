"""Decoder blocks: which settings of a config count and describe them, and which of them the config can be without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zpruner.structures.sizes import Size, Where, numbers

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def depths(config: PretrainedConfig, count: int) -> Iterator[Size]:
    """Yield settings that may say how many decoder blocks there are, with what may describe each of them.

    Args:
        config: of the model.
        count: of its blocks.
    """
    raw = config.to_dict()
    lists = dict(_lists(raw, ()))
    indices = tuple(where for where, value in lists.items() if _are_indices(value, count))
    per_block = tuple(where for where, value in lists.items() if len(value) == count and where not in indices)
    for where, value in numbers(config).items():
        if value == count:
            yield Size({where: value}, per_block=per_block, indices=indices)


def at_blocks(size: Size, values: Mapping[Where, Any], kept: Tensor) -> dict[Where, Any]:
    """Return a config's values when blocks go.

    Args:
        size: from `depths`.
        values: of the lists that it names, before.
        kept: bool (count,).
    """
    places = kept.nonzero().flatten().tolist()
    made: dict[Where, Any] = dict.fromkeys(size.values, len(places))
    for where in size.per_block:
        made[where] = [values[where][place] for place in places]
    for where in size.indices:
        made[where] = [places.index(block) for block in values[where] if block in places]
    return made


def alike(before: nn.Module, after: nn.Module, index: tuple[int, int]) -> bool:
    """Return whether two blocks compute alike, as far as their modules' classes, shapes and settings say.

    Args:
        before: a block on the meta device.
        after: another one.
        index: of the two, which settings may name.
    """
    pairs = list(zip(before.named_modules(), after.named_modules(), strict=False))
    if len(pairs) != len(list(before.named_modules())) or len(pairs) != len(list(after.named_modules())):
        return False
    for (name, one), (other_name, other) in pairs:
        if name != other_name or type(one) is not type(other) or _settings(one).keys() != _settings(other).keys():
            return False
        for key, value in _settings(one).items():
            if value != _settings(other)[key] and (value, _settings(other)[key]) != index:
                return False
    return True


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if value is None or isinstance(value, bool | int | float | str | tuple)
    }


def _lists(value: Mapping[str, Any], above: Where) -> Iterator[tuple[Where, list[Any]]]:
    for name, entry in value.items():
        if isinstance(entry, dict) and all(isinstance(key, str) for key in entry):
            yield from _lists(entry, (*above, name))
        elif isinstance(entry, list | tuple) and len(entry) > 0:
            yield (*above, name), list(entry)


def _are_indices(value: list[Any], count: int) -> bool:
    """Return whether a list names decoder blocks by their number."""
    numbers = [entry for entry in value if isinstance(entry, int) and not isinstance(entry, bool)]
    return len(numbers) == len(value) and numbers == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < count
