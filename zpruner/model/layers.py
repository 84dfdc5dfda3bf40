"""Which weights of a model can be pruned, found by structure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zpruner.errors import InvalidSettingError, ModelStructureError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrunableLayer:
    """One weight matrix that multiplies activations.

    `name` is the module's path, `tensor` the parameter's name in the checkpoint, `block` the index of its decoder
    block; `transposed` says that it is stored as (in, out).
    """

    name: str
    tensor: str
    block: int
    out_features: int
    in_features: int
    transposed: bool

    def view(self, tensor: Tensor) -> Tensor:
        """Return a stored weight as (out, in), sharing its memory."""
        return tensor.T if self.transposed else tensor

    @property
    def kind(self) -> str:
        """The name within the block, e.g. `mlp.down_proj`: everything after the block's index."""
        parts = self.name.split(".")
        index = next((i for i, part in enumerate(parts) if part == str(self.block)), -1)
        return ".".join(parts[index + 1 :])

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Inventory:
    """What of a model is pruned: its decoder blocks' path, the layers, and the skipped weights with the reason."""

    blocks: str
    n_blocks: int
    layers: tuple[PrunableLayer, ...]
    skipped: tuple[tuple[str, str], ...]


def find_blocks(model: PreTrainedModel, blocks: str | None = None) -> str:
    """Return the path of the module list of decoder blocks.

    Of the lists with as many entries as the text config has hidden layers, it is the one that holds most of the
    parameters of two or more dimensions.

    Args:
        model: any causal language model.
        blocks: the path, where the caller knows it (`model.blocks` in params.yaml).

    Raises:
        ModelStructureError: none, or several that hold the same number; lists the candidates.
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    if blocks is not None:
        if blocks not in lists:
            raise ModelStructureError(
                "model.blocks", f"'{blocks}'", "the path of a module list", did_you_mean(blocks, lists)
            )
        return blocks
    depth = model.config.get_text_config().num_hidden_layers
    sizes = {
        name: sum(p.numel() for p in module.parameters() if p.ndim >= 2)
        for name, module in lists.items()
        if len(module) == depth
    }
    most = max(sizes.values(), default=0)
    best = [name for name, size in sizes.items() if size == most]
    if most == 0 or len(best) > 1:
        found = ", ".join(f"{name} ({len(module)} entries)" for name, module in lists.items())
        raise ModelStructureError(
            f"model {type(model).__name__}",
            f"{len(best) if most else 0} candidates for its decoder blocks (module lists: {found or 'none'})",
            f"one module list of {depth} entries (config.num_hidden_layers) that holds most weights",
            "Name it in params.yaml under model.blocks.",
        )
    return best[0]


def take_inventory(model: PreTrainedModel, blocks: str | None = None, ignore: Iterable[str] = ()) -> Inventory:
    """List every weight of two or more dimensions inside the decoder blocks as prunable or as skipped.

    Args:
        model: any causal language model; meta tensors will do.
        blocks: path of the decoder blocks where it cannot be found by structure.
        ignore: shell-style patterns of layer names to leave dense.

    Raises:
        ModelStructureError: blocks not found, or nothing prunable in them.
        InvalidSettingError: a pattern of `ignore` that matches nothing.
    """
    patterns = tuple(ignore)
    path = find_blocks(model, blocks)
    prefix = f"{path}."
    modules = dict(model.named_modules())
    outside = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if not name.startswith(prefix)}
    seen: set[int] = set()
    layers: list[PrunableLayer] = []
    skipped: list[tuple[str, str]] = []
    unmatched = set(patterns)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(prefix) or parameter.ndim < 2:
            continue
        owner, _, leaf = name.rpartition(".")
        matches = {pattern for pattern in patterns if fnmatchcase(owner, pattern)}
        unmatched -= matches
        layer = _as_layer(owner, leaf, modules[owner], parameter, int(name.removeprefix(prefix).split(".")[0]))
        if matches:
            skipped.append((name, f"listed under model.ignore ({min(matches)})"))
        elif id(parameter) in outside:
            skipped.append((name, "tied to a weight outside the decoder blocks"))
        elif id(parameter) in seen:
            skipped.append((name, "tied to a weight listed before"))
        elif layer is None:
            shape = tuple(parameter.shape)
            skipped.append((name, f"{type(modules[owner]).__name__} of shape {shape} is not a linear layer"))
        else:
            seen.add(id(parameter))
            layers.append(layer)
    if unmatched:
        pattern = min(unmatched)
        raise InvalidSettingError(
            "model.ignore",
            f"'{pattern}', which matches no layer",
            "patterns of layer names",
            did_you_mean(pattern, [layer.name for layer in layers]),
        )
    if not layers:
        raise ModelStructureError(
            f"model {type(model).__name__}",
            f"no prunable weight in {path}",
            "linear layers in its decoder blocks",
            "Name other blocks in params.yaml under model.blocks, or ignore less.",
        )
    return Inventory(path, len(modules[path]), tuple(layers), tuple(skipped))


def _as_layer(owner: str, leaf: str, module: nn.Module, weight: Tensor, block: int) -> PrunableLayer | None:
    from transformers.pytorch_utils import Conv1D

    if leaf != "weight" or not isinstance(module, nn.Linear | Conv1D):
        return None
    transposed = isinstance(module, Conv1D)
    out_features, in_features = (weight.shape[1], weight.shape[0]) if transposed else tuple(weight.shape)
    return PrunableLayer(owner, f"{owner}.{leaf}", block, out_features, in_features, transposed)
