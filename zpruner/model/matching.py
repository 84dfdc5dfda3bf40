"""Whether the tensors of a checkpoint are those of its model: found by loading them as empty ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.errors import IncompleteCheckpointError, SourceError, one_line
from zpruner.model.config import one_sentence, quantised, tell
from zpruner.model.empty import EMPTY
from zpruner.model.loader import Later, Loader, assign, find
from zpruner.model.stored import Facts, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALES = re.compile(r"weight_scale|scb$|absmax|zero_point|qzeros|g_idx|quant_state|quant_map", re.IGNORECASE)
"""Names of tensors without which the weight beside them means something else."""
_TABLES = 1 << 28
"""Bytes that a model may compute beside its weights (rotary tables, masks), where it has fewer bytes of weights."""


def check_tensors(folder: Path, loader: Loader, tensors: Tensors) -> frozenset[str]:
    """Load everything as empty tensors, which takes no memory; return the names of the model's that are stored.

    The model's tensors then have the types that loading gives.

    Raises:
        SourceError: quantised weights that are not dequantised.
        IncompleteCheckpointError: a weight that is missing or of another shape.
    """
    model = loader.model
    before = model.state_dict(keep_vars=True)
    _check_tables(folder, model, tensors)
    stored = {name: tensors.facts(name) for name in tensors.names()}
    later = {
        name: Later(facts.kind, partial(torch.empty, facts.shape, dtype=facts.dtype or torch.uint8, device=EMPTY))
        for name, facts in stored.items()
    }
    with one_sentence(folder):
        account = loader.load(later)
        found = frozenset(before.keys() - account.missing_keys)
        # A tied weight is there where one of its names is.
        names_of: dict[int, list[str]] = {}
        for name, tensor in before.items():
            names_of.setdefault(id(tensor), []).append(name)
        account.missing_keys -= {n for names in names_of.values() if not found.isdisjoint(names) for n in names}
        model._adjust_missing_and_unexpected_keys(account)
        _tie(model, names_of.values(), found)
    unused = sorted(account.unexpected_keys)
    _check_dense(folder, loader, before, {name: facts for name, facts in stored.items() if later[name].wanted})
    if loader.quantizer is None and (scales := [name for name in unused if _belongs_to_weight(name, before)]):
        raise quantised(folder, f"'{scales[0]}' beside a weight")
    packed = [name for name in unused if name.endswith(("qweight", "weight_packed", "_blocks"))]
    if account.missing_keys and packed:
        raise quantised(folder, f"'{packed[0]}'")
    check_converted(folder, account.conversion_errors)
    check_loaded(folder, account.missing_keys, account.mismatched_keys)
    if unused:
        first = one_line(unused[0])
        tell(f"{folder}: {len(unused)} tensors that the model does not use, such as '{first}', are left out.")
    return found


def check_converted(folder: Path, errors: Mapping[str, str]) -> None:
    """Raise IncompleteCheckpointError where transformers could not make a weight of what is stored: name -> why."""
    if errors:
        name, text = min(errors.items())
        raise IncompleteCheckpointError(
            str(folder),
            f"'{name}', which cannot be converted ({text.strip().partition(chr(10))[0]})",
            "a whole checkpoint",
            "Check that the folder is whole.",
        )


def check_loaded(folder: Path, missing: set[str], mismatched: set[tuple[str, Any, Any]]) -> None:
    """Raise IncompleteCheckpointError where no stored tensor became a weight: transformers takes random numbers.

    Args:
        folder: the checkpoint.
        missing: names.
        mismatched: name, stored shape, expected shape.
    """
    bad = [f"no tensor '{name}'" for name in sorted(missing)]
    bad += [f"'{name}' of shape {tuple(got)} for {tuple(want)}" for name, got, want in sorted(mismatched)]
    if bad:
        raise IncompleteCheckpointError(
            str(folder),
            bad[0] + (f", and {len(bad) - 1} more" if len(bad) > 1 else ""),
            "every weight of the model that config.json describes",
            "Check that the folder is whole.",
        )


def wide(dtype: torch.dtype | None) -> bool:
    """Return whether numbers of a type can be weights as they are: floating-point, of 16 bits or more."""
    return dtype is not None and dtype.is_floating_point and dtype.itemsize > 1


def _check_dense(folder: Path, loader: Loader, model: Mapping[str, Tensor], used: Mapping[str, Facts]) -> None:
    """Raise SourceError where numbers that are no weights would be taken for weights, without a scale beside them."""
    scaled = {module for module, _, leaf in (name.rpartition(".") for name in used) if "scale" in leaf}
    for name, facts in used.items():
        if wide(facts.dtype) or (loader.quantizer is not None and name.rpartition(".")[0] in scaled):
            continue
        tensor = model.get(loader.target(name, model))
        if tensor is None or tensor.is_floating_point():
            raise quantised(folder, f"'{name}' of type {facts.kind}")


def _tie(model: PreTrainedModel, groups: Iterable[list[str]], found: frozenset[str]) -> None:
    """Make tied tensors one again, after each was put in by itself. Types and shapes stay those that loading gives."""
    for names in groups:
        loaded = next((name for name in names if name in found), names[0])
        for name in names:
            assign(model, name, find(model, loaded))


def _check_tables(folder: Path, model: PreTrainedModel, tensors: Tensors) -> None:
    """Raise SourceError if what the model computes beside its weights takes more memory than they do."""
    stored = model.state_dict(keep_vars=True)
    tables = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in stored)
    weights = sum(torch.Size(tensors.facts(name).shape).numel() * 2 for name in tensors.names())
    if tables > max(_TABLES, weights):
        raise SourceError(
            str(folder / "config.json"),
            f"tables of {tables / 1e9:.1f} GB beside the weights",
            "less than the weights take",
            "Correct the number of positions in config.json.",
        )


def _belongs_to_weight(name: str, model: Mapping[str, Tensor]) -> bool:
    module, _, leaf = name.rpartition(".")
    return _SCALES.search(leaf) is not None and f"{module}.weight" in model
