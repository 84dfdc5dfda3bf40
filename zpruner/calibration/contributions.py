"""What every expert of a mixture adds to the tokens that are routed to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zpruner.errors import ModelStructureError
from zpruner.execution import Runner


def expert_contributions(
    runner: Runner, mixtures: Mapping[str, int], windows: Tensor, batch_size: int
) -> dict[str, Tensor]:
    """Return the mean over each expert's tokens of `||gate f(x)||`: path -> float64 (experts,).

    A mixture is called again with the tokens of one expert at a time, so that every token meets each of its experts
    once more. An expert that met no token has 0.

    Args:
        runner: of the unpruned model.
        mixtures: path of the module that holds the experts -> how many there are.
        windows: int (windows, seqlen) token ids.
        batch_size: windows per call.

    Raises:
        ModelStructureError: a mixture that is not called with hidden states, each token's experts and their gates.
    """
    sums = {path: torch.zeros(count, dtype=torch.float64) for path, count in mixtures.items()}
    met = {path: torch.zeros(count, dtype=torch.float64) for path, count in mixtures.items()}

    def decode(batch: Tensor) -> None:
        runner.model.base_model(input_ids=batch.to(runner.device, torch.long), use_cache=False)

    def after(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _result: Any) -> None:
        hidden, chosen, gates = _routing(path, (*args, *kwargs.values()))
        for expert in torch.unique(chosen).tolist():
            if expert >= len(sums[path]):  # some models' word for no expert
                continue
            tokens, places = torch.where(chosen == expert)
            instead = {
                id(hidden): hidden[tokens],
                id(chosen): chosen[tokens, places].unsqueeze(1),
                id(gates): gates[tokens, places].unsqueeze(1),
            }
            given = [instead.get(id(value), value) for value in args]
            named = {key: instead.get(id(value), value) for key, value in kwargs.items()}
            added = module.forward(*given, **named)  # not its hooks
            sums[path][expert] += added.float().norm(dim=-1).sum(dtype=torch.float64).cpu()
            met[path][expert] += len(tokens)

    handles = [
        runner.model.get_submodule(path).register_forward_hook(partial(after, path), with_kwargs=True)
        for path in mixtures
    ]
    try:
        for _ in runner.run([partial(decode, batch) for batch in windows.split(batch_size)]):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return {path: sums[path] / met[path].clamp_min(1) for path in mixtures}


def _routing(path: str, given: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states (tokens, width), and each token's experts and gates (tokens, chosen), among arguments."""
    tensors = [value for value in given if isinstance(value, Tensor) and value.ndim == 2]
    chosen = next((value for value in tensors if not value.is_floating_point()), None)
    floats = [value for value in tensors if value.is_floating_point()]
    gates = next((value for value in floats if chosen is not None and value.shape == chosen.shape), None)
    hidden = next(
        (value for value in floats if value is not gates and chosen is not None and len(value) == len(chosen)), None
    )
    if hidden is None or chosen is None or gates is None:
        raise ModelStructureError(
            path,
            "a mixture that is not called with hidden states, experts and gates, one row a token",
            "one that is, for the ranking `reap`",
            "Rank experts by a score: structures: {experts: wanda}.",
        )
    return hidden, chosen, gates
