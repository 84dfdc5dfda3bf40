"""Which numbers of a config say how many channels there are: found by changing them and looking at every shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from zpruner.structures.channels import Channels
from zpruner.structures.sizes import (
    Lengths,
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
    """Numbers of a config, the channels that they count, and a share of which a model can be built."""

    size: Size
    channels: tuple[Channels, ...]
    share: float

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
        self._tried: dict[tuple[tuple[Where, Any], ...], Shapes | None] = {}

    def alone(self, count: int) -> Iterator[Resized]:
        """Yield what single numbers resize channels of which there are `count`, or a multiple or a part of that."""
        for where, value in self._single(count):
            yield from self._try({where: value}, {}, count)
        widths = {each.count for each in self._channels if each.count == each.layer.in_features}
        if count in widths:
            for where in self._unset:
                yield from self._try({where: count}, {}, count)

    def together(self, count: int) -> Iterator[Resized]:
        """Yield what several numbers, changed in the same proportion, resize.

        Of those that alone change no shape, one may be among them, if it is the count itself: key-value heads where
        keys are made for every head.
        """
        plausible: dict[Where, Numbers] = {}
        silent: dict[Where, Numbers] = {}
        for where, value in self._single(count):
            found = self._alone(where, value, count)
            if found is None or (found and found.keys() <= self._cuttable):
                if all(number % count == 0 for number in entries(value)):
                    plausible[where] = value
            elif not found and value == count:
                silent[where] = value
        fixings: list[dict[Where, int]] = [{}]
        if not isinstance(self._numbers.get(HEAD_DIM), int):
            heads = {number for value in plausible.values() for number in entries(value)}
            widths = {each.layer.in_features for each in self._channels if each.count == count}
            fixings += [{HEAD_DIM: w // h} for w in sorted(widths) for h in sorted(heads) if w % h == 0 and w > h]
        chosen = [dict(some) for n in range(1, _TOGETHER + 1) for some in combinations(plausible.items(), n)]
        chosen += [{**some, where: value} for some in chosen for where, value in silent.items()]
        for values in chosen:
            for fixed in fixings:
                if len(values) > 1 or fixed:
                    yield from self._try(values, fixed, count)

    def _single(self, count: int) -> Iterator[tuple[Where, Numbers]]:
        for where, value in self._numbers.items():
            if all(number % count == 0 or count % number == 0 for number in entries(value)):
                yield where, value

    def _alone(self, where: Where, value: Numbers, count: int) -> Lengths | None:
        """Return what is resized by one number that is halved; None where it makes no model alone, or a larger one."""
        size = Size({where: value})
        units = math.gcd(count, size.units)
        after = self._shapes(size.at((units + 1) // 2, units))
        return None if after is None else resized(self._before, after)

    def _try(self, values: Mapping[Where, Numbers], fixed: Mapping[Where, int], count: int) -> Iterator[Resized]:
        """Yield what the values resize, if they do so in proportion: at half of them, and at three quarters.

        Of the two one may be refused by the config: many want numbers that divide each other.
        """
        size = Size(values, fixed)
        units = math.gcd(count, size.units)
        found: dict[int, tuple[Channels, ...]] = {}
        for kept in sorted({math.ceil(units * share) for share in (0.5, 0.75)} - {units}):
            after = self._shapes(size.at(kept, units))
            if after is not None:
                found[kept] = self._explained(after, kept, units)
        if found and all(found.values()) and len(set(found.values())) == 1:
            yield Resized(size, next(iter(found.values())), next(iter(found)) / units)

    def _explained(self, after: Shapes, kept: int, units: int) -> tuple[Channels, ...]:
        """Return the channels that are resized in the proportion kept / units; none where anything else is."""
        lengths = resized(self._before, after)
        channels = explained(lengths, self._channels, self._before) if lengths else None
        if channels is None or any(stay * units != each.count * kept for each, stay in channels.items()):
            return ()
        return tuple(channels)

    def _shapes(self, values: Mapping[Where, Any]) -> Shapes | None:
        """Return the shapes of the model with other values; None where none can be built of them."""
        key = tuple(sorted(values.items()))
        if key not in self._tried:
            model = empty_with(self._config, values)
            self._tried[key] = None if model is None else shapes_of(model)
        return self._tried[key]

    def _key(self, slices: Any) -> tuple[str, int]:
        return slices.tensor, lies_at(slices, len(self._before[slices.tensor]))[0]


def explained(found: Lengths, channels: Iterable[Channels], before: Shapes) -> dict[Channels, int] | None:
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


def _kept(channels: Channels, found: Lengths, before: Shapes) -> tuple[int | None, set[tuple[str, int]]]:
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
