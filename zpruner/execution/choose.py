"""Whether a model is loaded whole or read block by block: by what is asked for, or by what fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zpruner.execution.runner import Runner, StreamedRunner, WholeRunner
from zpruner.execution.skeleton import Skeleton
from zpruner.execution.spill import Spill
from zpruner.model.load import load_model, resolve_device
from zpruner.model.opening import open_checkpoint
from zpruner.runtime.machine import free_memory
from zpruner.structures.reordering import Reordering

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zpruner.checkpoint.files import Checkpoint
    from zpruner.settings.params import MachineSettings, ModelSettings

_SHARE = 0.6
"""Share of the memory available that weights and statistics may take: the rest is for activations and temporaries."""
_SPILL_SHARE = 0.1
"""Share of it that waiting hidden states may take before they go to disk."""
_AHEAD_SHARE = 0.1
"""Share of it that a block may take that is read before it is needed."""


@dataclass(frozen=True)
class LoadPlan:
    """Whether weights are read block by block, and why, in words."""

    streamed: bool
    reason: str

    @property
    def words(self) -> str:
        """One line for the user."""
        return f"{'block by block' if self.streamed else 'whole model in memory'}: {self.reason}"


def choose(settings: MachineSettings, needed: int) -> LoadPlan:
    """Return how a model is run: the numbers are the same either way.

    Args:
        settings: `streaming` decides; `auto` compares `needed` with `memory`, or with what is available.
        needed: bytes of all that would lie in memory at once with the model loaded whole.
    """
    if settings.streaming != "auto":
        return LoadPlan(settings.streaming == "always", f"machine.streaming is {settings.streaming}")
    available = memory_limit(settings)
    streamed = needed > _SHARE * available
    relation = "more than" if streamed else "at most"
    return LoadPlan(
        streamed,
        f"whole it takes {needed / 1e9:.2f} GB, {relation} {_SHARE:.0%} of the {available / 1e9:.2f} GB available",
    )


def memory_limit(settings: MachineSettings) -> int:
    """Return the bytes of memory that may be used, on the device that computes."""
    if settings.memory is not None:
        return int(settings.memory * 1e9)
    return available_memory(resolve_device(settings.device))


def available_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    if device.type != "cpu":
        free, _ = torch.get_device_module(device).mem_get_info(device)
        return int(free)
    return free_memory()


def open_runner(
    checkpoint: Checkpoint,
    settings: ModelSettings,
    machine: MachineSettings,
    streamed: bool,
    scratch: Path,
    order: Reordering | None = None,
) -> Runner:
    """Return a runner of a checkpoint's model.

    Args:
        checkpoint: of the model.
        settings: of the model.
        machine: where it is loaded, and into how much memory.
        streamed: as `choose` says.
        scratch: a folder for hidden states that memory has no room for.
        order: in which its parameters are put when they are read; None: they stay as they are.
    """
    trust, order = settings.trust_remote_code, order or Reordering()
    if not streamed:
        model = load_whole(checkpoint, machine.device, trust_remote_code=trust)
        order.move(order.moves, model.get_parameter)
        return WholeRunner(model)
    opened = open_checkpoint(checkpoint.folder, checkpoint.dtype, checkpoint, trust_remote_code=trust)
    skeleton = Skeleton(opened, resolve_device(machine.device), order)
    limit = memory_limit(machine)
    spill = Spill(scratch, int(_SPILL_SHARE * limit))
    return StreamedRunner(skeleton, settings.blocks, spill, room=int(_AHEAD_SHARE * limit))


def load_whole(checkpoint: Checkpoint, device: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """Return a checkpoint's model, every byte of it verified.

    Raises:
        ArtifactError: an altered file.
        InvalidSettingError, SourceError, ModelStructureError: as `load_model`.
    """
    with checkpoint.verifying():
        return load_model(checkpoint.folder, device=device, trust_remote_code=trust_remote_code)
