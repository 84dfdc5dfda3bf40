"""A model's decoder blocks run on a few random tokens with random weights, of which most are shared by the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.model.buffers import compute_buffers
from zpruner.model.empty import EMPTY
from zpruner.model.layers import PrunableLayer
from zpruner.model.products import Products, memory_of
from zpruner.model.usage import hollow_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 32
"""Of a probe: enough for a ReLU to let every channel pass once, and for most experts to be met."""
_ROWS = 64
"""Of an embedding that get values; the others are zeros that occupy no memory."""

Observer = Callable[[str, int, Tensor], None]
"""Called with a parameter's name, the index of the matrix in it, and what the matrix multiplies, (..., in)."""


class _Reached(Exception):  # noqa: N818 - not an error: ends the forward pass
    pass


@dataclass(frozen=True)
class Probe:
    """An empty model with its buffers, and the path of its blocks.

    Attributes:
        model: on the meta device; buffers that no checkpoint stores lie on the CPU.
        blocks: path of its decoder blocks.
    """

    model: PreTrainedModel
    blocks: str

    @classmethod
    def of(cls, empty: PreTrainedModel, blocks: str) -> Probe:
        """Return the probe of an empty model, whose buffers are computed in place."""
        compute_buffers(empty, empty.state_dict(keep_vars=True), torch.device("cpu"))
        return cls(empty.eval(), blocks)

    @contextmanager
    def attending(self, implementation: str) -> Iterator[None]:
        """Let the model attend by another of transformers' implementations for the time being."""
        config = self.model.config
        before = config._attn_implementation
        config._attn_implementation = implementation
        try:
            yield
        finally:
            config._attn_implementation = before

    def signatures(self) -> list[tuple[Any, ...]]:
        """Return what each block is made of: blocks of one signature have the same structures."""
        return [
            tuple(
                (name, type(module).__name__, _shapes(module), _flags(module)) for name, module in block.named_modules()
            )
            for block in self.model.get_submodule(self.blocks).children()
        ]

    def owners(self) -> list[int]:
        """Return for each block the first one of its signature."""
        first: dict[tuple[Any, ...], int] = {}
        return [first.setdefault(signature, index) for index, signature in enumerate(self.signatures())]

    def last(self) -> int:
        """Return the first block after which every signature has had its turn."""
        return max(self.owners())

    def random_weights(self, layers: tuple[PrunableLayer, ...], seed: int) -> dict[str, Tensor]:
        """Return a tensor for every parameter and stored buffer, by name.

        Blocks of one signature share theirs, as do the experts of a stack, whose tensor repeats one matrix.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = {layer.tensor: layer.in_features for layer in layers}
        stacks = {layer.tensor for layer in layers if layer.parts > 1}
        embeddings = {f"{n}.weight" for n, m in self.model.named_modules() if isinstance(m, nn.Embedding)}
        owner = self.owners()
        made: dict[str, Tensor] = {}
        tied: dict[int, Tensor] = {}
        for name, empty in self.model.state_dict(keep_vars=True).items():
            block = self.block_of(name)
            source = name if block is None else self.moved(name, owner[block])
            if source in made:
                made[name] = made[source]
            elif id(empty) in tied:
                made[name] = tied[id(empty)]
            else:
                rows = _ROWS if name in embeddings or block is None else None
                single = empty[:1] if name in stacks and empty.ndim > 2 else empty
                made[name] = _random(name, single, inputs.get(name), rows, generator).expand(empty.shape)
                tied[id(empty)] = made[name]
        return made

    def hollow_weights(self) -> dict[str, Tensor]:
        """Return zeros that occupy no memory for every parameter and stored buffer, by name."""
        made: dict[int, Tensor] = {}
        for tensor in (state := self.model.state_dict(keep_vars=True)).values():
            if id(tensor) not in made:
                made[id(tensor)] = hollow_like(tensor) if tensor.device == EMPTY else tensor.detach().float()
        return {name: made[id(tensor)] for name, tensor in state.items()}

    def block_of(self, name: str) -> int | None:
        """Return the index of the block that holds a parameter; None for one outside the blocks."""
        prefix = f"{self.blocks}."
        return int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else None

    def moved(self, name: str, block: int) -> str:
        """Return a parameter's counterpart in another block."""
        rest = name.removeprefix(f"{self.blocks}.").partition(".")[2]
        return f"{self.blocks}.{block}.{rest}"

    def run(
        self,
        weights: Mapping[str, Tensor],
        last: int,
        observe: Observer | None = None,
        scale: Callable[[str], Tensor] | None = None,
        hooks: Mapping[str, Callable[..., Any]] | None = None,
        tokens: int = TOKENS,
    ) -> Tensor:
        """Run the model up to the end of a block; return the hidden state that the block puts out.

        Args:
            weights: for every parameter and stored buffer.
            last: index of that block.
            observe: told of every product with a parameter inside the blocks.
            scale: given a parameter's name, returns what the outputs of a product with it are multiplied by.
            hooks: forward hooks of modules, by path, called with keywords too.
            tokens: how many.
        """
        found: list[Tensor] = []

        def stop(_: nn.Module, __: object, result: Any) -> None:
            found.append(result if isinstance(result, Tensor) else next(r for r in result if isinstance(r, Tensor)))
            raise _Reached

        addresses: dict[int, str] = {}
        for name, tensor in weights.items():
            if self.block_of(name) is not None:
                addresses.setdefault(memory_of(tensor), name)

        def seen(matrix: Tensor, inputs: Tensor) -> None:
            assert observe is not None
            name = addresses[memory_of(matrix)]
            observe(name, int(matrix.storage_offset()) // matrix.numel(), inputs)

        embeddings: Any = self.model.get_input_embeddings()
        ids = torch.arange(3, 3 + tokens)[None] % min(_ROWS, int(embeddings.weight.shape[0]))
        with ExitStack() as stack:
            for path, hook in (hooks or {}).items():
                stack.callback(self.model.get_submodule(path).register_forward_hook(hook, with_kwargs=True).remove)
            block = self.model.get_submodule(f"{self.blocks}.{last}")
            stack.callback(block.register_forward_hook(stop).remove)
            if observe is not None:
                named = None if scale is None else lambda weight: scale(addresses[memory_of(weight)])
                stack.enter_context(Products(addresses, seen, scale=named))
            with suppress(_Reached):
                torch.func.functional_call(
                    self.model, dict(weights), (), {"input_ids": ids, "use_cache": False}, tie_weights=False
                )
        return found[0]


def is_repeated(tensor: Tensor) -> bool:
    """Return whether a tensor is a stack of one matrix, which lies in memory once."""
    return tensor.ndim > 2 and tensor.stride(0) == 0


def _shapes(module: nn.Module) -> tuple[Any, ...]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return tuple((name, tuple(tensor.shape)) for name, tensor in own)


def _flags(module: nn.Module) -> tuple[Any, ...]:
    """Return what says how a module computes: numbers are left out, since many have their block's index."""
    return tuple((name, value) for name, value in sorted(vars(module).items()) if isinstance(value, bool | str))


def _random(name: str, like: Tensor, inputs: int | None, rows: int | None, generator: torch.Generator) -> Tensor:
    """Return numbers of the size that those of a trained model have, float32 on the CPU.

    Args:
        name: of the tensor; of a bias they are small, lest channels be on or off for all tokens.
        like: a tensor on the meta device.
        inputs: of the matrix, where it is one.
        rows: how many get values; None: all.
        generator: of the values.
    """
    if not like.is_floating_point():
        return torch.zeros_like(like, device="cpu")
    if like.device != EMPTY:
        return like.detach().float()
    made = torch.zeros(like.shape)
    part = made if rows is None else made[:rows]
    if name.endswith("bias"):
        part.normal_(std=0.1, generator=generator)
    elif like.ndim < 2:
        part.uniform_(0.5, 1.5, generator=generator)
    else:
        part.normal_(std=(inputs or 4) ** -0.5, generator=generator)
    return made
