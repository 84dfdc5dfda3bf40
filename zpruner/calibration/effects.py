"""How much each output of a layer counts in what its decoder block puts out, by random projections of that.

With `y_t` a layer's output for a token, `h` the block's for all tokens and v random signs, the mean over v of
`(v^T dh / dy_tj)^2` is `||dh / dy_tj||^2` (Hutchinson 1989): one pass back through one block at a time. Every token's
`dh` is relative to the size of its `h`, as the next norm divides it. To weigh the rows of a layer by it is ours;
GuidedQuant (arXiv 2505.07004) weighs them by gradients of the loss, which pass back through the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from zpruner.calibration.calls import called_instead, hidden_of
from zpruner.calibration.capture import sloping
from zpruner.calibration.gradients import check_differentiable
from zpruner.errors import ModelStructureError, NonFiniteError, one_line
from zpruner.execution import Runner
from zpruner.model import Inventory, PrunableLayer
from zpruner.runtime.progress import progress
from zpruner.types import all_finite

EFFECT_WINDOWS = 4
"""Calibration windows that it is taken from, the first: every token is a sample."""
_SCALE = 100.0
"""Projections are multiplied by this against underflow in float16, and what comes of them divided."""


def collect_effects(runner: Runner, inventory: Inventory, windows: Tensor) -> dict[str, Tensor]:
    """Return how much each output of every layer counts, float32 (out,) on the host, by the layer's name.

    It is the sum over tokens of the squared derivative; zero for an expert that no token was routed to.

    Args:
        runner: of the unpruned model; its weights may be read block by block.
        inventory: of the model.
        windows: int (windows, seqlen) token ids, of which the first few are read.

    Raises:
        ModelStructureError: a block that gradients do not pass.
        NonFiniteError: NaN or infinity in a layer's derivative.
    """
    sums = {layer.name: torch.zeros(layer.out_features, dtype=torch.float64) for layer in inventory.layers}

    def decode(window: Tensor) -> None:
        runner.model.base_model(input_ids=window[None].to(runner.device, torch.long), use_cache=False)

    def add(layer: PrunableLayer, slope: Tensor) -> None:
        squares = (slope.float() / _SCALE).square_().reshape(-1, layer.out_features).sum(0, dtype=torch.float64)
        sums[layer.name] += squares.cpu()

    some = windows[:EFFECT_WINDOWS]
    with _differentiated(runner, inventory, add):
        calls = runner.run([partial(decode, window) for window in some])
        for _ in progress(calls, "effects", len(some), "window"):
            pass
    found = {name: total.float() for name, total in sums.items()}
    for name, total in found.items():
        if not all_finite(total):
            raise NonFiniteError(
                f"effect of layer {name}",
                "NaN or infinity",
                "finite derivatives of what its block puts out",
                "Check the checkpoint's weights, or load it in another dtype (model.dtype in params.yaml).",
            )
    return found


@contextmanager
def _differentiated(
    runner: Runner, inventory: Inventory, add: Callable[[PrunableLayer, Tensor], None]
) -> Iterator[None]:
    """Let every block, when it has run, be differentiated at once; what it returns is the same."""
    blocks = [runner.model.get_submodule(f"{inventory.blocks}.{index}") for index in range(inventory.n_blocks)]
    layers = [[layer for layer in inventory.layers if layer.block == index] for index in range(inventory.n_blocks)]

    def run(index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for name, parameter in blocks[index].named_parameters():
            check_differentiable(f"{inventory.blocks}.{index}.{name}", parameter)
        with torch.inference_mode(False), torch.enable_grad():
            given = _Given(args, kwargs)
            with sloping(runner.model, inventory, layers[index], add):
                result = forward(*given.args, **given.kwargs)
                try:
                    _back(hidden_of(result), given.leaf, index)
                except RuntimeError as error:
                    if "memory" in str(error).lower():
                        raise
                    raise ModelStructureError(
                        f"{inventory.blocks}.{index}",
                        f"a block that gradients do not pass ({one_line(str(error))})",
                        "one that they do, to tell how much each row of its weights counts",
                        "Set the score's `effect` to 0, with which there is no need of them.",
                    ) from error
        return _mapped(result, Tensor.detach)

    with called_instead(blocks, {i: partial(run, i, blocks[i].forward) for i in range(len(blocks)) if layers[i]}):
        yield


class _Given:
    """What a block is called with, its hidden state in place of `leaf`, which gradients are taken for."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(v for v in chain(args, kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point())
        self.leaf = given.detach().clone().requires_grad_()
        hidden = self.leaf.clone()  # which the block's code may change in place

        def ordinary(value: Any) -> Any:
            if value is given:
                return hidden
            return _mapped(value, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

        self.args = tuple(map(ordinary, args))
        self.kwargs = {key: ordinary(value) for key, value in kwargs.items()}


def _back(hidden: Tensor, leaf: Tensor, seed: int) -> None:
    """Pass random signs, each token's over the size of what the block puts out, back through the block."""
    found = hidden.detach().float()
    size = found.square().mean(-1, keepdim=True).sqrt_().clamp_min_(torch.finfo(torch.float32).tiny)
    projection = _signs(hidden.shape, seed).to(hidden.device) * (_SCALE / size)
    torch.autograd.grad(hidden, leaf, projection.to(hidden.dtype))


def _signs(shape: torch.Size, seed: int) -> Tensor:
    """Return random signs, float32, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(0, 2, shape, generator=generator).float() - 1.0


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with every tensor in it, and in plain lists and tuples in it, changed."""
    match value:
        case Tensor():
            return change(value)
        case list() | tuple() if type(value) in (list, tuple):
            return type(value)(_mapped(each, change) for each in value)
    return value
