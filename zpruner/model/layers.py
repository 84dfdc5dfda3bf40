"""What a prunable layer is, and where a model keeps its decoder blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zpruner.errors import ModelStructureError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrunableLayer:
    """One weight matrix that multiplies activations.

    `name` is the module's path, `tensor` the parameter's name in the model, `block` the index of its decoder block;
    `transposed` says that it is stored as (in, out). A parameter may be a stack of matrices, such as the experts of a
    mixture: then each of its `parts` is a layer, `part` is its index, and the name ends with it. Layers with the same
    `pool` are counterparts in the experts of one mixture. `bias` is the parameter that is added to the outputs, of a
    stack with a row for each part; None where there is none.
    """

    name: str
    tensor: str
    block: int
    out_features: int
    in_features: int
    transposed: bool
    part: int = 0
    parts: int = 1
    pool: str | None = None
    bias: str | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """Return this layer's matrix in a stored tensor as (out, in), sharing its memory."""
        rows, columns = self.out_features, self.in_features
        if self.transposed:
            rows, columns = columns, rows
        whole = self.parts == 1 and tensor.ndim == 2
        matrix = tensor if whole else tensor.view(self.parts, rows, columns)[self.part]
        return matrix.T if self.transposed else matrix

    def view_bias(self, tensor: Tensor) -> Tensor:
        """Return this layer's bias (out,) in a stored tensor, sharing its memory."""
        return tensor if self.parts == 1 else tensor[self.part]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs, the shape of its weight."""
        return self.out_features, self.in_features

    @property
    def kind(self) -> str:
        """The name within the block, e.g. `mlp.down_proj`: everything after the block's index."""
        parts = self.name.split(".")
        index = next((i for i, part in enumerate(parts) if part == str(self.block)), -1)
        return ".".join(parts[index + 1 :])

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Inventory:
    """What of a model is pruned: its decoder blocks' path, the layers, and the skipped weights with the reason."""

    blocks: str
    n_blocks: int
    layers: tuple[PrunableLayer, ...]
    skipped: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        counts = f"{self.n_blocks} blocks, {len(self.layers)} layers, {len(self.skipped)} weights skipped"
        return f"Inventory({self.blocks!r}: {counts})"


def find_blocks(model: PreTrainedModel, blocks: str | None = None) -> str:
    """Return the path of the module list of decoder blocks.

    Of the lists with as many entries as the text config has hidden layers, it is the one that holds most of the
    parameters of two or more dimensions. Where there is no such list, a block may count as several layers: then it is
    one whose length divides that number.

    Args:
        model: any causal language model.
        blocks: the path, where the caller knows it (`model.blocks` in params.yaml).

    Raises:
        ModelStructureError: none, or several that hold the same number; lists the candidates. An encoder-decoder.
    """
    if model.config.is_encoder_decoder:
        raise ModelStructureError(
            f"model {type(model).__name__}",
            f"an encoder-decoder ({model.config.model_type})",
            "a causal (decoder-only) language model",
            "Choose another model: encoder-decoders are not supported.",
        )
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    if blocks is not None:
        if blocks not in lists:
            raise ModelStructureError(
                "model.blocks", f"'{blocks}'", "the path of a module list", did_you_mean(str(blocks), lists)
            )
        return blocks
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    fitting = {name: module for name, module in lists.items() if len(module) == depth}
    fitting = fitting or {
        name: module for name, module in lists.items() if len(module) > 1 and depth and depth % len(module) == 0
    }
    sizes = {name: sum(p.numel() for p in module.parameters() if p.ndim >= 2) for name, module in fitting.items()}
    most = max(sizes.values(), default=0)
    best = [name for name, size in sizes.items() if size == most]
    if most == 0 or len(best) > 1:
        found = ", ".join(f"{name} ({len(module)} entries)" for name, module in lists.items())
        raise ModelStructureError(
            f"model {type(model).__name__}",
            f"{len(best) if most else 0} candidates for its decoder blocks (module lists: {found or 'none'})",
            f"one module list of {depth or '?'} entries (config.num_hidden_layers) that holds most weights",
            "Name it in params.yaml under model.blocks.",
        )
    return best[0]
