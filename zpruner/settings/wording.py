"""What settings are called by who does not write them into params.yaml, whose keys the library's errors name."""

from __future__ import annotations

from collections.abc import Mapping

ARGUMENTS: Mapping[str, str] = {
    "model.blocks": "`blocks`",
    "model.dtype": "`dtype`",
    "model.ignore": "`ignore`",
    "set model.trust_remote_code to true": "pass trust_remote_code=True",
    "machine.device": "`device`",
    "calibration.batch_size": "`batch_size`",
    "set calibration.gram: true": "pass gram=True",
    "calibration.min_expert_tokens": "`min_expert_tokens`",
    "set calibration.propagation to dense": "use calibrate and prune",
}
"""The arguments of the functions that `zpruner` offers."""

OPTIONS: Mapping[str, str] = {
    "model.blocks": "--blocks",
    "model.dtype": "--dtype",
    "model.ignore": "--ignore",
    "set model.trust_remote_code to true": "add --trust-remote-code",
    "machine.device": "--device",
    "calibration.batch_size": "--batch-size",
    "set calibration.propagation to dense": "leave out --propagation",
    "batch_size": "--batch-size",
    "nsamples": "--nsamples",
    "seqlen": "--seqlen",
    "seed": "--seed",
}
"""The options of `zpruner prune` and `zpruner evaluate`."""
