"""What settings are called by who does not write them into params.yaml, whose keys the library's errors name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from zpruner.errors import ZprunerError

F = TypeVar("F", bound=Callable[..., Any])

_NAME_IT = "name the method in `for_methods`, or put"
_GRAM = "set calibration.gram: true or auto in params.yaml (in python: gram among `stats`)"

ARGUMENTS: Mapping[str, str] = {
    "model.blocks": "`blocks`",
    "model.dtype": "`dtype`",
    "model.ignore": "`ignore`",
    "set model.trust_remote_code to true": "pass trust_remote_code=True",
    "machine.device": "`device`",
    "set source in params.yaml to its local path": "pass its local path",
    "calibration.batch_size": "`batch_size`",
    _GRAM: f"{_NAME_IT} gram among `stats`,",
    "list the method in params.yaml (in python: grad_sq among `stats`)": f"{_NAME_IT} grad_sq among `stats`,",
    "list the method in params.yaml (in python: effect among `stats`)": f"{_NAME_IT} effect among `stats`,",
    "calibration.min_expert_tokens": "`min_expert_tokens`",
    "set calibration.propagation to dense": "use calibrate and prune",
    "set calibration.propagation to pruned": "use prune_sequentially",
    "calibration.nsamples": "`nsamples`",
}
"""The arguments of the functions that `zpruner` offers."""

OPTIONS: Mapping[str, str] = {
    "model.blocks": "--blocks",
    "model.dtype": "--dtype",
    "model.ignore": "--ignore",
    "set model.trust_remote_code to true": "add --trust-remote-code",
    "machine.device": "--device",
    "set source in params.yaml to its local path": "give its local path",
    "calibration.batch_size": "--batch-size",
    "set calibration.propagation to dense": "leave out --propagation",
    "evaluation.zero_shot.tasks": "--tasks",
    "evaluation.zero_shot.include_path": "--include-path",
    "evaluation.zero_shot": "--tasks",
    "set calibration.propagation to pruned": "add --propagation pruned",
    "calibration.nsamples": "--nsamples",
    "score": "--method",
    "refine": "--refine",
    "update": "--update",
    "group": "--group",
    "the options: group": "--group",
    "batch_size": "--batch-size",
    "nsamples": "--nsamples",
    "seqlen": "--seqlen",
    "seed": "--seed",
    "bos": "--bos",
}
"""The options of `zpruner prune` and `zpruner evaluate`."""


def speaks_of_arguments(function: F) -> F:
    """Let the errors of a function that `zpruner` offers name its arguments in place of keys of params.yaml."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ZprunerError as error:
            error.wording = ARGUMENTS
            raise

    return cast(F, wrapped)
