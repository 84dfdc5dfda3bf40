"""Predictions of a model over token windows: the decoder once per batch, the head over a few positions at a time.

Logits of a whole batch can take more memory than the model; here they never exist. The head is run apart from the
decoder by the model's own code, which may scale or cap the logits: its decoder is told to return what it has returned
before. Where a model does not allow that, its whole forward pass is run instead, with all logits in memory.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from zpruner.errors import ModelStructureError
from zpruner.execution import Runner, WholeRunner

if TYPE_CHECKING:
    from types import TracebackType

    from transformers import PreTrainedModel

T = TypeVar("T")
_LOGITS = 1 << 25
"""Logits held at once: 128 MiB in float32."""
_PROBE = 8
"""Tokens on which the head run apart is compared with the whole forward pass."""


class Predictor:
    """Runs a model over batches of windows; use as a context manager.

    Args:
        model: any causal language model in memory, or a runner of one.
    """

    def __init__(self, model: PreTrainedModel | Runner) -> None:
        from transformers import PreTrainedModel as Family

        self.runner = model if isinstance(model, Runner) else WholeRunner(model)
        self.model: Any = self.runner.model
        # The head's code may call the decoder itself or the model around it.
        self._inner = [found for found in self.model.modules() if isinstance(found, Family) and found is not self.model]
        self._given = threading.local()  # one forward pass per thread
        self._apart: bool | None = None if self._inner else False

    def __enter__(self) -> Self:
        self._before = [vars(module).get("forward") for module in self._inner]
        for module in self._inner:
            vars(module)["forward"] = partial(self._decode, module.forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, before in zip(self._inner, self._before, strict=True):
            if before is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = before

    def run(self, batches: Sequence[Tensor], call: Callable[[int, Logits], T]) -> Iterator[T]:
        """Yield, batch by batch, what `call` makes of a batch's index and predictions.

        Args:
            batches: each int (windows, seqlen) token ids, one pass of the decoder.
            call: may run while other batches wait.

        Raises:
            ModelStructureError: a model that is streamed and whose head cannot be run apart.
        """
        ids = [batch.to(self.runner.device, torch.long) for batch in batches]
        if not ids:
            return
        calls: list[Callable[[], T | None]] = []
        if self._apart is None:
            calls.append(partial(self._probe, ids[0][:1, :_PROBE]))
        calls += [partial(self._predict, index, batch, call) for index, batch in enumerate(ids)]
        results = self.runner.run(calls)
        if len(calls) > len(ids):
            next(results)
        yield from results  # type: ignore[misc]

    def _predict(self, index: int, ids: Tensor, call: Callable[[int, Logits], T]) -> T:
        device = self.runner.device
        start = _now(device)
        if self._apart is False:
            whole = self.model(input_ids=ids, use_cache=False).logits
            return call(index, Logits(lambda w, a, b: whole[w, a:b], self._step, device, _now(device) - start))
        output = self.model.base_model(input_ids=ids, use_cache=False)
        return call(index, Logits(partial(self._head, output), self._step, device, _now(device) - start))

    @property
    def _step(self) -> int:
        return max(1, _LOGITS // int(self.model.config.get_text_config().vocab_size))

    def _probe(self, ids: Tensor) -> None:
        """Find out on a few tokens whether the head can be run apart."""
        expected = self.model(input_ids=ids, use_cache=False).logits
        try:
            # Of a part: a head may read more than the hidden state, which does not show where that is whole.
            found = self._head(self.model.base_model(input_ids=ids, use_cache=False), 0, 1, ids.shape[1])
            self._apart = torch.equal(found, expected[0, 1:])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            self._apart = False
        if not self._apart and self.runner.streamed:
            raise ModelStructureError(
                f"model {type(self.model).__name__}",
                "logits that depend on more than the decoder's last hidden state",
                "a head that can be run apart, where the model is read block by block",
                "Set machine.streaming to never in params.yaml.",
            )

    def _decode(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = getattr(self._given, "output", None)
        return forward(*args, **kwargs) if given is None else given

    def _head(self, output: Any, window: int, start: int, stop: int) -> Tensor:
        """Return the logits of some positions of the decoder's output, (positions, vocabulary)."""
        part = copy.copy(output)
        part["last_hidden_state"] = output.last_hidden_state[window : window + 1, start:stop]
        self._given.output = part
        try:
            ids = torch.zeros(1, stop - start, dtype=torch.long, device=self.runner.device)
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._given.output = None
        return logits


class Logits:
    """The logits of one batch, a few positions at a time.

    Args:
        rows: given a window, a first position and the one after the last, the logits (positions, vocabulary).
        step: positions at a time.
        device: where they are computed.
        seconds: of the decoder's pass.

    Attributes:
        seconds: of the decoder's pass and of all logits asked for so far.
    """

    def __init__(
        self, rows: Callable[[int, int, int], Tensor], step: int, device: torch.device, seconds: float
    ) -> None:
        self._rows, self._step, self._device, self.seconds = rows, step, device, seconds

    def spans(self, positions: slice) -> Iterator[slice]:
        """Yield the positions, a bounded number at a time."""
        for start in range(positions.start, positions.stop, self._step):
            yield slice(start, min(start + self._step, positions.stop))

    def rows(self, window: int, at: slice) -> Tensor:
        """Return the logits of some positions of a window, (positions, vocabulary)."""
        start = _now(self._device)
        found = self._rows(window, at.start, at.stop)
        self.seconds += _now(self._device) - start
        return found


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()
