"""What of a checkpoint's tensors a model multiplies by, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from zpruner.checkpoint.conversion import Conversion
from zpruner.model.empty import empty_model
from zpruner.model.stored import TensorFiles
from zpruner.model.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def linear_modules(model: PreTrainedModel) -> dict[str, tuple[nn.Module, bool]]:
    """Return the modules whose forward is that of a linear layer, by the name of their weight; True: stored (in, out).

    Args:
        model: meta tensors will do.
    """
    from transformers.pytorch_utils import Conv1D

    found: dict[str, tuple[nn.Module, bool]] = {}
    for name, module in model.named_modules():
        forward = type(module).forward
        if forward in (nn.Linear.forward, Conv1D.forward):
            found[f"{name}.weight"] = (module, forward is Conv1D.forward)
    return found


def transposed_tensors(folder: Path, *, trust_remote_code: bool = False) -> frozenset[str]:
    """Return the names of the stored tensors that the model multiplies by as (in, out).

    Args:
        folder: a checkpoint in safetensors.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError, ModelStructureError: as `empty_model`; no weights in the folder.
    """
    model = empty_model(folder, trust_remote_code=trust_remote_code)
    transposed = {name for name, (_, stored) in linear_modules(model).items() if stored}
    if not transposed:
        return frozenset()
    conversion = Conversion(model)
    names = TensorFiles(weight_files(folder, model.config)[0]).names()
    return frozenset(name for name in names if set(conversion.targets(name)) & transposed)
