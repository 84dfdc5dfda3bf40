"""Numbers that depend on a model's weights alone, whatever the program around them has switched on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from zpruner.errors import ModelStructureError
from zpruner.settings.wording import speaks_of_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

F = TypeVar("F", bound=Callable[..., Any])


def undisturbed(function: F) -> F:
    """Let a function of a model, called from anybody's program, run with `evaluating`; errors name its arguments."""

    @speaks_of_arguments
    @wraps(function)
    def wrapped(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        check_model(model)
        with evaluating(model):
            return function(model, *args, **kwargs)

    return cast(F, wrapped)


def check_model(model: object) -> None:
    """Raise ModelStructureError unless this is a transformers model itself: no wrapper around one, nor its path."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return
    inner = model.named_modules() if isinstance(model, nn.Module) else ()
    name = next((name for name, module in inner if isinstance(module, PreTrainedModel)), None)
    raise ModelStructureError(
        "model",
        f"{type(model).__module__}.{type(model).__name__}",
        "a transformers model",
        "Load it with zpruner.load." if name is None else f"Pass the model that it wraps: model.{name}",
    )


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Run a block with a model in evaluation mode and torch as it is after its import; both are restored.

    Training mode (dropout), inference mode and the lack of gradients, autocast, compiled code, and a configuration that
    asks for tuples instead of named results are left for the time being.
    """
    from transformers import PreTrainedModel

    training = {module: module.training for module in model.modules()}
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    tuples = [config for config in configs.values() if not config.return_dict]
    with ExitStack() as stack:
        stack.callback(_restore, training)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        for config in tuples:
            config.return_dict = True
            stack.callback(setattr, config, "return_dict", False)
        model.eval()
        yield


def _restore(training: dict[nn.Module, bool]) -> None:
    for module, mode in training.items():
        module.training = mode
