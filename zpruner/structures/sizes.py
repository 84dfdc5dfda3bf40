"""The numbers of a config, and what becomes of the model's tensors when some of them change."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zpruner.errors import ZprunerError
from zpruner.model.config import quiet_transformers
from zpruner.model.empty import build

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Where = tuple[str, ...]
"""The way to a value of a config: its name, below the names of the parts that hold it."""
Numbers = int | tuple[int, ...]
"""A size: one for all blocks, or one for each."""
Shapes = Mapping[str, tuple[int, ...]]
Lengths = Mapping[tuple[str, int], tuple[int, int]]
"""(parameter, axis) -> its length before and after."""
_MOST = 1_000_000


@dataclass(frozen=True)
class Size:
    """Numbers of a config that say how many structures there are, all in the same proportion.

    Attributes:
        values: name -> number before.
        fixed: what is written out besides, since it would follow from them otherwise.
        per_block: lists with an entry for each decoder block, of which those of blocks that stay remain.
        indices: lists of indices of decoder blocks, which are counted again.
    """

    values: Mapping[Where, Numbers]
    fixed: Mapping[Where, int] = field(default_factory=dict)
    per_block: tuple[Where, ...] = ()
    indices: tuple[Where, ...] = ()

    @property
    def name(self) -> str:
        """The numbers' names."""
        return " ".join(".".join(where) for where in self.values)

    @property
    def units(self) -> int:
        """The largest number of equal shares that every number can be divided into."""
        return math.gcd(*(number for value in self.values.values() for number in entries(value)))

    def at(self, kept: int, units: int) -> dict[Where, Any]:
        """Return the config's values when `kept` of `units` shares stay."""
        return {**self.fixed, **{where: scaled(value, kept, units) for where, value in self.values.items()}}


def entries(value: Numbers) -> tuple[int, ...]:
    """Return the numbers of a size."""
    return (value,) if isinstance(value, int) else value


def scaled(value: Numbers, kept: int, units: int) -> Numbers:
    """Return a number, or each of several, times kept / units; units divides it."""
    return value * kept // units if isinstance(value, int) else tuple(number * kept // units for number in value)


def numbers(config: PretrainedConfig) -> dict[Where, Numbers]:
    """Return every number above 1 of a config, and every list of such numbers."""
    return {where: value for where, value in _walk(config.to_dict(), ()) if value is not None}


def unset(config: PretrainedConfig) -> list[Where]:
    """Return the settings of a config that are None, which may stand for a size computed from others."""
    return [where for where, value in _walk(config.to_dict(), ()) if value is None]


def changed(config: PretrainedConfig, values: Mapping[Where, Any]) -> PretrainedConfig:
    """Return a config with other values, made as it is read from config.json.

    Raises:
        Exception: of any kind, where the config cannot have these.
    """
    from transformers.utils import logging

    raw = deepcopy(config.to_dict())
    for where, value in values.items():
        part = raw
        for name in where[:-1]:
            part = part[name]
        part[where[-1]] = list(value) if isinstance(value, tuple) else value
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(CRITICAL)  # says with an error what a property without a setter is
        made = type(config).from_dict(raw)
    made._attn_implementation = config._attn_implementation
    return made


def empty_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the model of a config on the meta device.

    Raises:
        SourceError: no model can be built of it.
    """
    own = deepcopy(config)  # what is built notes its dtype there
    return build(Path(str(config.name_or_path or type(config).__name__)), own, dtype, False, _MOST)


def empty_with(config: PretrainedConfig, values: Mapping[Where, Any]) -> PreTrainedModel | None:
    """Return the empty model of a config with other values; None where there is none."""
    try:
        return empty_of(changed(config, values))
    except (ZprunerError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, LookupError, RuntimeError):
        return None
    except Exception as error:  # a strict config has its own class for what it refuses
        if "Validation" in type(error).__name__:
            return None
        raise


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and stored buffer."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}


def resized(before: Shapes, after: Shapes) -> Lengths | None:
    """Return what differs in length.

    None where the two do not have the same parameters with as many axes, or one grew.
    """
    if before.keys() != after.keys():
        return None
    found = {}
    for name, old in before.items():
        new = after[name]
        if len(old) != len(new):
            return None
        for axis, (long, short) in enumerate(zip(old, new, strict=True)):
            if short > long:
                return None
            if short != long:
                found[name, axis] = (long, short)
    return found


def _walk(value: Mapping[str, Any], above: Where) -> Iterator[tuple[Where, Numbers | None]]:
    for name, entry in value.items():
        where = (*above, name)
        if isinstance(entry, dict) and all(isinstance(key, str) for key in entry):
            yield from _walk(entry, where)
        elif entry is None or (_is_number(entry) and entry > 1):
            yield where, entry
        elif isinstance(entry, list | tuple) and entry and all(_is_number(number) and number > 1 for number in entry):
            yield where, tuple(entry)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
