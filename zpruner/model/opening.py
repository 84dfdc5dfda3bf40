"""A checkpoint opened without its weights: the empty model that transformers would load it into, checked against it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from zpruner.errors import ArtifactError, IncompleteCheckpointError, SourceError
from zpruner.model.config import one_sentence, quantised, quiet_transformers, read_config, tell
from zpruner.model.loader import Later, Loader, assign, find
from zpruner.model.stored import TensorFiles, Tensors
from zpruner.model.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SCALES = re.compile(r"weight_scale|scb$|absmax|zero_point|qzeros|g_idx|quant_state|quant_map", re.IGNORECASE)
"""Names of tensors without which the weight beside them means something else."""
_EMPTY = torch.device("meta")
_PER_TENSOR, _LEAST = 16, 4000
"""Modules and parameters that a model may have: so many for every stored tensor, and so many at least."""
_TABLES = 1 << 28
"""Bytes that a model may compute beside its weights (rotary tables, masks), where it has fewer bytes of weights."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint as transformers reads it, before any weight is read.

    Attributes:
        folder: of the checkpoint.
        config: of the model, as it is read for loading.
        model: on the meta device.
        dtype: that transformers would load it in.
        quantizer: transformers', which dequantises the weights; None where they are not quantised.
        uniform: see `Loader`.
        tensors: what is stored.
        found: names of the model's parameters and buffers that are stored, tied ones under each name that is.
    """

    folder: Path
    config: PretrainedConfig
    model: PreTrainedModel
    dtype: torch.dtype
    quantizer: Any
    uniform: bool
    tensors: Tensors
    found: frozenset[str]

    def loader(self, device: torch.device) -> Loader:
        """Return what puts stored tensors into the model, on a device."""
        return Loader(self.model, self.dtype, device, self.quantizer, self.uniform)


def empty_model(folder: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model that a checkpoint folder's config describes, on the meta device.

    Raises:
        SourceError, ModelStructureError: as `read_config`; a config from which no model can be built.
    """
    config = read_config(folder, trust_remote_code=trust_remote_code)
    return _build(folder, config, dtype, trust_remote_code, limit=1_000_000)


def open_checkpoint(
    folder: Path, dtype: str = "auto", tensors: Tensors | None = None, *, trust_remote_code: bool = False
) -> Opened:
    """Read what a checkpoint folder says of its model, and check that every weight is there, as transformers does.

    Tensors that the model does not use are named in a warning.

    Args:
        folder: config.json, and the weights unless `tensors` has them.
        dtype: `bfloat16`, `float16`, `float32`, or `auto` for that of the checkpoint.
        tensors: the stored tensors; None: those of the files that transformers reads (`weight_files`).
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError: as `read_config` and `weight_files`; files that are not safetensors; quantised weights that cannot
            be dequantised.
        ModelStructureError: not a causal language model.
        IncompleteCheckpointError: a weight that is missing or of another shape.
    """
    from transformers.modeling_utils import _get_dtype
    from transformers.quantizers.auto import get_hf_quantizer

    config = read_config(folder, trust_remote_code=trust_remote_code)
    files, metadata = weight_files(folder, config) if tensors is None else ([], None)
    if tensors is None:
        try:
            tensors = TensorFiles(files)
        except ArtifactError as error:
            raise SourceError(
                str(folder), f"a checkpoint that cannot be read ({error.got})", error.expected, "Get it again."
            ) from None
    built = deepcopy(config)
    with one_sentence(folder), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantizer, built, _ = get_hf_quantizer(built, None, None, True, {})
        except ImportError as error:
            raise quantised(folder, str(error).splitlines()[0].rstrip(".:")[:200]) from None
        names = [str(file) for file in files] or None
        built, chosen = _get_dtype(dtype, names, built, metadata, None, True, quantizer)
    if not (isinstance(chosen, torch.dtype) and _wide(chosen)):
        raise SourceError(
            str(folder), f"dtype {chosen}", "floating-point numbers of 16 bits or more", "Choose a dtype."
        )
    model = _build(folder, built, chosen, trust_remote_code, _LEAST + _PER_TENSOR * len(tensors.names()))
    with one_sentence(folder), quiet_transformers():
        if quantizer is not None:
            quantizer.preprocess_model(model=model, dtype=chosen, device_map=None, checkpoint_files=names)
    uniform = quantizer is not None and dtype != "auto"
    found = _check(folder, Loader(model, chosen, _EMPTY, quantizer, uniform), tensors)
    return Opened(folder, config, model, chosen, quantizer, uniform, tensors, found)


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


def _build(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype | None, trust_remote_code: bool, limit: int
) -> PreTrainedModel:
    """Return the model that a config describes, on the meta device; no more than `limit` modules and parameters."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import meta_device_safe_creation_ops

    with (
        one_sentence(folder),
        quiet_transformers(),
        warnings.catch_warnings(),
        _at_most(folder, limit),
        _EMPTY,
        meta_device_safe_creation_ops(),
    ):
        warnings.simplefilter("ignore")
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=config.dtype if dtype is None else dtype, trust_remote_code=trust_remote_code
        )
    return model.eval()


@contextmanager
def _at_most(folder: Path, limit: int) -> Iterator[None]:
    """Stop building a model that has more than `limit` modules and parameters: no memory is too large for a config."""
    left = limit

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SourceError(
                str(folder / "config.json"),
                f"a model of more than {limit:,} modules and weights",
                "the model whose weights are stored",
                "Correct config.json.",
            )

    hooks = [
        torch_module.register_module_module_registration_hook(count),
        torch_module.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check(folder: Path, loader: Loader, tensors: Tensors) -> frozenset[str]:
    """Load everything as empty tensors, which takes no memory, and return the names that are stored.

    Raises:
        SourceError, ModelStructureError: see `open_checkpoint`.
    """
    model, quantizer = loader.model, loader.quantizer
    before = model.state_dict(keep_vars=True)
    _check_tables(folder, model, tensors)
    stored = {name: tensors.facts(name) for name in tensors.names()}
    later = {
        name: Later(facts.kind, partial(torch.empty, facts.shape, dtype=facts.dtype or torch.uint8, device=_EMPTY))
        for name, facts in stored.items()
    }
    with one_sentence(folder):
        account = loader.load(later)
        found = frozenset(before.keys() - account.missing_keys)
        # A tied weight is there where one of its names is.
        names_of: dict[int, list[str]] = {}
        for name, tensor in before.items():
            names_of.setdefault(id(tensor), []).append(name)
        tied = {name for names in names_of.values() if not found.isdisjoint(names) for name in names}
        account.missing_keys -= tied
        model._adjust_missing_and_unexpected_keys(account)
        _tie(model, names_of.values(), found)
    unused = sorted(account.unexpected_keys)
    odd = [
        name
        for name, facts in stored.items()
        if later[name].wanted and not _wide(facts.dtype) and _wide_in_model(before.get(loader.target(name)))
    ]
    narrow = [name for name in odd if quantizer is None or not _has_scale(name, later)]
    if narrow:
        raise quantised(folder, f"'{narrow[0]}' of type {stored[narrow[0]].kind}")
    if quantizer is None and (scales := [name for name in unused if _belongs_to_weight(name, before)]):
        raise quantised(folder, f"'{scales[0]}' beside a weight")
    if account.conversion_errors:
        name, text = min(account.conversion_errors.items())
        raise IncompleteCheckpointError(
            str(folder),
            f"'{name}', which cannot be converted ({text.strip().splitlines()[0][:200]})",
            "a whole checkpoint",
            "Check that the folder is whole.",
        )
    packed = [name for name in unused if name.endswith(("qweight", "weight_packed", "_blocks"))]
    if account.missing_keys and packed:
        raise quantised(folder, f"'{packed[0]}'")
    check_loaded(folder, account.missing_keys, account.mismatched_keys)
    if unused:
        tell(f"{folder}: {len(unused)} tensors that the model does not use, such as '{unused[0]}', are left out.")
    return found


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


def _wide(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point and dtype.itemsize > 1


def _wide_in_model(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.is_floating_point()


def _has_scale(name: str, later: Mapping[str, Later]) -> bool:
    """Return whether a stored tensor is a scale, or one is read beside it."""
    module, _, leaf = name.rpartition(".")
    beside = (other.rpartition(".") for other, tensor in later.items() if tensor.wanted)
    return "scale" in leaf or any("scale" in other for owner, _, other in beside if owner == module)


def _belongs_to_weight(name: str, model: Mapping[str, Tensor]) -> bool:
    module, _, leaf = name.rpartition(".")
    return _SCALES.search(leaf) is not None and f"{module}.weight" in model
