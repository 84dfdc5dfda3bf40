"""The model that a config describes, without its weights: on the meta device, in bounded time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.modules import module as torch_module

from zpruner.errors import SourceError
from zpruner.model.config import one_sentence, quiet_transformers, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EMPTY = torch.device("meta")
MOST = 1_000_000
"""Modules and parameters of a model of which nothing but the config is at hand."""


def empty_model(folder: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model that a checkpoint folder's config describes, on the meta device.

    Raises:
        SourceError, ModelStructureError: as `read_config`; a config from which no model can be built.
    """
    config = read_config(folder, trust_remote_code=trust_remote_code)
    return build(folder, config, dtype, trust_remote_code, MOST)


def build(
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
        EMPTY,
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
