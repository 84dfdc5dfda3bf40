"""Which numbers of a config say how many channels there are: found by changing them and looking at every shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from zpruner.structures.channels import Channels
from zpruner.structures.sizes import (
    Numbers,
    Shapes,
    Size,
    Where,
    empty_with,
    entries,
    numbers,
    resized,
    shapes_of,
    unset,
)
from zpruner.structures.slicing import lies_at

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOGETHER = 3
"""Numbers that are changed together, at most: query heads, key-value heads, and one more."""
HEAD_DIM = ("head_dim",)
"""What many families read though their config need not have it: the width of a head, no longer hidden size / heads."""


@dataclass(frozen=True)
class Resized:
    """Numbers of a config, and the channels that they count."""

    size: Size
    channels: tuple[Channels, ...]

    @property
    def units(self) -> int:
        """The largest number of equal shares that every number and every count can be divided into."""
        return math.gcd(self.size.units, *(channels.count for channels in self.channels))


def sizes_of(config: PretrainedConfig) -> set[int]:
    """Return every number that may count groups of channels."""
    return {number for value in numbers(config).values() for number in entries(value)}


class Sizes:
    """Looks for the numbers of a config that resize given channels, and nothing else.

    Args:
        config: of the model.
        before: its shapes.
        channels: that may be resized.
    """

    def __init__(self, config: PretrainedConfig, before: Shapes, channels: Sequence[Channels]) -> None:
        self._config, self._before, self._channels = config, before, channels
        self._numbers, self._unset = numbers(config), unset(config)
        self._cuttable = {self._key(slices) for each in channels for slices in each.slices}
        self._tried: dict[tuple[tuple[Where, Any], ...], dict[tuple[str, int], tuple[int, int]] | None] = {}

    def alone(self, count: int) -> Iterator[Resized]:
        """Yield what single numbers resize channels of which there are `count`, or a multiple or a part of that."""
        for values in self._single(count):
            yield from self._try(values, {}, count)
        widths = {each.count for each in self._channels if each.count == each.layer.in_features}
        if count in widths:
            for where in self._unset:
                yield from self._try({where: count}, {}, count)

    def together(self, count: int) -> Iterator[Resized]:
        """Yield what several numbers, changed in the same proportion, resize."""
        plausible = [values for values in self._single(count) if self._plausible(values, count)]
        merged = [{key: value for entry in plausible for key, value in entry.items()}]
        fixings: list[dict[Where, int]] = [{}]
        if not isinstance(self._numbers.get(HEAD_DIM), int):
            heads = {number for value in merged[0].values() for number in entries(value)}
            widths = {each.layer.in_features for each in self._channels if each.count == count}
            fixings += [{HEAD_DIM: w // h} for w in sorted(widths) for h in sorted(heads) if w % h == 0 and w > h]
        for number in range(1, _TOGETHER + 1):
            for chosen in combinations(merged[0].items(), number):
                for fixed in fixings:
                    if number > 1 or fixed:
                        yield from self._try(dict(chosen), fixed, count)

    def _single(self, count: int) -> Iterator[dict[Where, Numbers]]:
        for where, value in self._numbers.items():
            if all(number % count == 0 or count % number == 0 for number in entries(value)):
                yield {where: value}

    def _plausible(self, values: Mapping[Where, Numbers], count: int) -> bool:
        """Return whether changing a number may be part of what resizes the channels: it touches nothing else."""
        if not all(number % count == 0 for value in values.values() for number in entries(value)):
            return False
        size = Size(values)
        units = math.gcd(count, size.units)
        found = self._resized(size.at((units + 1) // 2, units))
        return found is None or (bool(found) and found.keys() <= self._cuttable)

    def _try(self, values: Mapping[Where, Numbers], fixed: Mapping[Where, int], count: int) -> Iterator[Resized]:
        """Yield what the values resize, if they do so in proportion: at half of them, and at three quarters."""
        size = Size(values, fixed)
        units = math.gcd(count, size.units)
        some = sorted({math.ceil(units * share) for share in (0.5, 0.75)} - {units})
        found = [self._explained(size, kept, units) for kept in some]
        if found and found[0] and all(other == found[0] for other in found):
            yield Resized(size, found[0])

    def _explained(self, size: Size, kept: int, units: int) -> tuple[Channels, ...] | None:
        """Return the channels that are resized in the proportion kept / units, where nothing else is."""
        found = self._resized(size.at(kept, units))
        channels = explained(found, self._channels, self._before) if found else None
        if channels is None or any(stay * units != each.count * kept for each, stay in channels.items()):
            return None
        return tuple(channels)

    def _resized(self, values: Mapping[Where, Any]) -> dict[tuple[str, int], tuple[int, int]] | None:
        """Return what is resized by other values; None where they make no model, or one with other parameters."""
        key = tuple(sorted(values.items()))
        if key not in self._tried:
            made = None
            if any(self._numbers.get(where) != value for where, value in values.items()):
                model = empty_with(self._config, values)
                made = None if model is None else resized(self._before, shapes_of(model))
            self._tried[key] = made
        return self._tried[key]

    def _key(self, slices: Any) -> tuple[str, int]:
        return slices.tensor, lies_at(slices, len(self._before[slices.tensor]))[0]


def explained(
    found: Mapping[tuple[str, int], tuple[int, int]], channels: Iterable[Channels], before: Shapes
) -> dict[Channels, int] | None:
    """Return which channels get fewer, and how many stay, if that is all that was resized; else None.

    Args:
        found: (parameter, axis) -> (length before, after).
        channels: that may have become fewer.
        before: shapes of all parameters.
    """
    best: dict[str, tuple[int, Channels, int, set[tuple[str, int]]]] = {}
    for each in channels:
        kept, covered = _kept(each, found, before)
        if kept is not None and len(covered) > best.get(each.layer.name, (0,))[0]:
            best[each.layer.name] = (len(covered), each, kept, covered)
    covered = set().union(*(entry[3] for entry in best.values()))
    return {entry[1]: entry[2] for entry in best.values()} if covered == set(found) else None


def _kept(
    channels: Channels, found: Mapping[tuple[str, int], tuple[int, int]], before: Shapes
) -> tuple[int | None, set[tuple[str, int]]]:
    """Return how many of the channels stay, and what that resizes; None where the lengths do not agree on it."""
    gone: set[int] = set()
    covered: dict[tuple[str, int], int] = {}
    for slices in channels.slices:
        axis, times = lies_at(slices, len(before[slices.tensor]))
        covered[slices.tensor, axis] = covered.get((slices.tensor, axis), 0) + slices.index.shape[1] * times
    for key, width in covered.items():
        if key not in found or (found[key][0] - found[key][1]) % width:
            return None, set()
        gone.add((found[key][0] - found[key][1]) // width)
    if len(gone) != 1 or not 0 < (number := gone.pop()) < channels.count:
        return None, set()
    return channels.count - number, set(covered)
