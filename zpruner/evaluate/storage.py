"""How many bytes a model takes, and how many it would take in formats that leave the zeros out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.artifacts.results import Storage
from zpruner.errors import ArtifactError
from zpruner.kernels.parts import Layout
from zpruner.model import PrunableLayer, get_weight
from zpruner.model.stored import tensor_facts
from zpruner.packed.size import packed_bytes, quantized_bytes
from zpruner.patterns import Pattern, StructuredPattern
from zpruner.quantization import QuantizedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def storage(
    folder: Path, weights: Iterable[tuple[Tensor, QuantizedLayer | None]], pattern: Pattern, tables: int = 0
) -> Storage:
    """Count the bytes of all tensors of a checkpoint folder: zeros included, and in formats without them.

    `bitmask` is what the stage `pack` makes of it (to the byte, where a layer is a stored tensor of its own and no kept
    weight that is not quantised is zero). `packed` takes N values of every M and their positions, ceil(log2 M) bits
    each (2 for 2:4); it is None unless every group of M weights in every layer has at most N that are not zero, and
    where one is quantised.

    Args:
        folder: holds *.safetensors; only their headers are read.
        weights: every prunable weight of it, float (out, in), and the integers and scales that it is made from.
        pattern: N:M to pack by; a ratio gives no packed size. Of structures that went no zeros are stored: of these
            only integers become smaller, and without them neither size is told.
        tables: bytes of them that a token does not read (`zpruner.model.table_bytes`).
    """
    stored = stored_bytes(folder)
    if isinstance(pattern, StructuredPattern):
        saved = sum(_saved_by_integers(quantized, weight.dtype) for weight, quantized in weights)
        return Storage(stored=stored, bitmask=stored - saved if saved else None, read=stored - tables)
    bitmask, packed = stored, stored
    fits = pattern.is_nm
    for weight, quantized in weights:
        dense = weight.numel() * weight.element_size()
        if quantized is not None:
            fits = False
            bitmask += (quantized_bytes(quantized, weight.dtype) or dense) - dense
            continue
        bitmask += (packed_bytes(Layout.of(weight), torch.count_nonzero(weight, dim=1)) or dense) - dense
        if pattern.kept is not None and pattern.group_size is not None:
            fits = fits and satisfies(weight, pattern.kept, pattern.group_size)
            values = weight.numel() * pattern.kept // pattern.group_size
            bits = math.ceil(math.log2(pattern.group_size))
            packed += values * weight.element_size() + math.ceil(values * bits / 8) - dense
    return Storage(stored=stored, bitmask=bitmask, packed=packed if fits else None, read=stored - tables)


def stored_bytes(folder: Path) -> int:
    """Return the bytes that the tensors of all *.safetensors files in a folder occupy.

    Raises:
        ArtifactError: no such file, or one whose header cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(str(folder), "no *.safetensors", "a checkpoint folder", "Give the folder of a checkpoint.")
    return sum(facts.bytes(name) for file in files for name, facts in tensor_facts(file).items())


def satisfies(weight: Tensor, kept: int, group_size: int) -> bool:
    """Return whether of every `group_size` consecutive inputs of a row at most `kept` weights are not zero."""
    if weight.shape[1] % group_size:
        return False
    nonzero = (weight != 0).reshape(-1, group_size).sum(dim=1, dtype=torch.int32)
    return int(nonzero.max()) <= kept


def achieved_sparsity(model: PreTrainedModel, layers: Iterable[PrunableLayer]) -> float:
    """Return the share of zeros among the weights of `layers`, counted in the model in memory."""
    return share_of_zeros(get_weight(model, layer) for layer in layers)


def share_of_zeros(weights: Iterable[Tensor]) -> float:
    """Return the share of zeros among all entries; 0 where there are none."""
    zeros = count = 0
    for weight in weights:
        zeros += weight.numel() - int(torch.count_nonzero(weight))
        count += weight.numel()
    return zeros / count if count else 0.0


def _saved_by_integers(quantized: QuantizedLayer | None, dtype: torch.dtype) -> int:
    """Return how many bytes fewer a layer takes without its structures as integers than as numbers of `dtype`."""
    if quantized is None or not quantized.keep.any():
        return 0
    small = quantized.compact()
    dense = small.integers.numel() * dtype.itemsize
    return dense - (quantized_bytes(small, dtype) or dense)
