"""What the stages share: where artifacts lie, the settings, work folders and costs."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from stages._deciding import search_instances
from stages._plan import Planned, read_planned
from stages._ran import note_run
from zpruner.artifacts.costs import Cost
from zpruner.artifacts.files import digest_of
from zpruner.artifacts.layout import Layout
from zpruner.artifacts.store import Provenance
from zpruner.artifacts.work import Work
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.errors import MEND, ArtifactError, InvalidSettingError
from zpruner.runtime.allocator import keep_freed_memory
from zpruner.runtime.command import run_command
from zpruner.runtime.progress import draws_bars
from zpruner.settings.base import canonical_json
from zpruner.settings.params import Params
from zpruner.settings.reading import read_params
from zpruner.text import WindowsOrigin, read_windows

SEARCH_STAGES = tuple(search_instances())
Method = Annotated[str, typer.Option(help="A label under `methods` in params.yaml.")]
Sparsity = Annotated[str, typer.Option(help="A label under `sparsities` in params.yaml.")]
Root = Annotated[Path, typer.Option(help="The project folder.")]
BATCH_DIVISOR = "ZPRUNER_BATCH_DIVISOR"
"""The environment variable by which a flow has a stage that ran out of memory repeated in smaller batches.

How, not what, as `machine.device` is: sums and losses agree up to rounding, and no setting that DVC knows changes.
"""


@dataclass(frozen=True)
class Project(Layout):
    """A project folder: its settings, where its artifacts lie, and how stages open them.

    `written` has params.yaml as it is written; `params` the batch sizes that this process takes besides.
    """

    params: Params
    written: Params

    @classmethod
    def open(cls, root: Path) -> Project:
        """Read and check the settings of the project at `root`; the plan checks every method besides."""
        written = read_params(root / "params.yaml")
        return cls(root, in_smaller_batches(written, batch_divisor()), written)

    def open_dense(self) -> Checkpoint:
        """Open the unpruned checkpoint as the one that params.yaml names: stages open it in no other way."""
        settings = self.params.model
        expected = {"role": "dense", "model": settings.source}
        return Checkpoint(self.dense, expected | ({} if settings.dtype == "auto" else {"dtype": settings.dtype}))

    def open_pruned(self, method: str, sparsity: str, dense_hash: str = "") -> Checkpoint:
        """Open the checkpoint of a variant as the one that params.yaml describes: stages open it in no other way.

        Args:
            method: a label under `methods` in params.yaml.
            sparsity: a label under `sparsities`.
            dense_hash: of the unpruned checkpoint that it must be made from; empty: any of the same source.
        """
        expected = {"role": "pruned", "model": self.params.model.source}
        checkpoint = Checkpoint(self.pruned(method, sparsity), expected)
        variant = replace(self.variant(method, sparsity), model_hash=dense_hash)
        variant.require({**checkpoint.manifest, "model_hash": checkpoint.manifest.get("dense")}, checkpoint.folder)
        return checkpoint

    def variant(self, method: str, sparsity: str) -> Provenance:
        """Return what every artifact of a variant says of it, whatever it was made from."""
        return Provenance(
            method=method,
            settings=canonical_json(self.params.method(method)),
            pattern=str(self.params.pattern(sparsity)),
            propagation=self.params.calibration.propagation,
        )

    def open_activations(self, dense: Checkpoint, calibration_hash: str = "") -> Activations:
        """Return the activation statistics of the unpruned model: stages open them in no other way.

        Args:
            dense: the unpruned checkpoint.
            calibration_hash: of the windows that they must be taken over; empty: any.

        Raises:
            ArtifactError: missing, damaged, of another model or calibration, or taken with blocks pruned.
        """
        expected = Provenance(model_hash=dense.model_hash, calibration_hash=calibration_hash)
        found = Activations(self.activations, expected)
        if found.provenance.method:
            got = f"statistics taken with blocks pruned by {found.provenance.method!r}"
            raise ArtifactError(str(self.activations), got, "those of the unpruned model", MEND)
        return found

    def open_windows(self, role: str, dense: Checkpoint) -> tuple[Tensor, str]:
        """Return the windows of a text and their hash: stages read them in no other way.

        Args:
            role: `calibration`, `evaluation` or `search`.
            dense: the unpruned checkpoint.

        Raises:
            ArtifactError: missing, damaged, of another role, or made with other settings, model or tokenizer.
        """
        return read_windows(self.tokens(role), self.windows_origin(role, dense))

    def open_calibration(self, dense: Checkpoint) -> tuple[Tensor, Provenance]:
        """Return the calibration windows, and what statistics of the unpruned model over them are made from.

        Raises:
            ArtifactError: as `open_windows`.
        """
        windows, found = self.open_windows("calibration", dense)
        made_from = Provenance(
            model=dense.model,
            model_hash=dense.model_hash,
            calibration_hash=found,
            dtype=dense.dtype,
            windows=windows.shape[0],
            tokens=windows.numel(),
        )
        return windows, made_from

    def windows_origin(self, role: str, dense: Checkpoint) -> WindowsOrigin:
        """Return what the windows of a text are for and made with."""
        match role:
            case "calibration":
                settings = self.params.calibration.windows_settings()
            case "evaluation":
                settings = self.params.evaluation.perplexity.windows_settings()
            case _:
                settings = self.params.the_search().text.windows_settings()
        return WindowsOrigin(role, settings, dense.model_hash, dense.tokenizer_hash)

    def planned(self, *instance: str) -> Planned:
        """Return what the plan says of a stage instance (stage and labels)."""
        return read_planned(self.plan(instance in SEARCH_STAGES), self.written, instance)

    def work(self, *instance: str, part: str = "", **inputs: Any) -> Work:
        """Return the work folder of a stage instance, keyed by its plan and by the digests of what it reads.

        `part` names one of several folders of the same instance.
        """
        planned = self.planned(*instance).model_dump(mode="json")
        key = digest_of({"plan": planned, "batch_divisor": batch_divisor(), **inputs})
        return Work(self.work_root, "-".join((*filter(None, [part]), *instance)), key)

    def write_cost(self, stage: str, *labels: str, seconds: float, **facts: Any) -> None:
        """Write what a stage instance cost: seconds of work (start-up apart) and peak resident memory in bytes."""
        searching = (stage, *labels) in SEARCH_STAGES
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = usage if sys.platform == "darwin" else usage * 1024
        divisor = batch_divisor()
        cost = Cost(
            stage=stage,
            seconds=round(seconds, 3),
            peak_memory_bytes=peak,
            batch_divisor=None if divisor == 1 else divisor,
            **facts,
        )
        file = self.cost_file(stage, *labels, search=searching)
        cost.write(file)
        if not draws_bars():
            say(f"{' '.join((stage, *labels))}: {cost.seconds:,.1f} s")
        if not searching:
            note_run(self.work_root, file)


def say(text: str) -> None:
    """Tell the user which way a stage takes."""
    typer.echo(text, err=True)


def batch_divisor() -> int:
    """Return by what batch sizes are to be divided in this process: ZPRUNER_BATCH_DIVISOR, or 1.

    Raises:
        InvalidSettingError: it is no whole number above 0.
    """
    text = os.environ.get(BATCH_DIVISOR, "1")
    if not (text.isdecimal() and int(text)):
        raise InvalidSettingError(BATCH_DIVISOR, repr(text), "a whole number above 0", f"Unset {BATCH_DIVISOR}.")
    return int(text)


def in_smaller_batches(params: Params, divisor: int) -> Params:
    """Return `params` with every batch size divided by `divisor`, rounded down, at least 1."""
    if divisor == 1:
        return params

    def smaller(settings: Any) -> Any:
        return settings.model_copy(update={"batch_size": max(1, settings.batch_size // divisor)})

    evaluation = params.evaluation
    tasks = None if evaluation.zero_shot is None else smaller(evaluation.zero_shot)
    texts = {"perplexity": smaller(evaluation.perplexity), "zero_shot": tasks}
    changed = {"calibration": smaller(params.calibration), "evaluation": evaluation.model_copy(update=texts)}
    if params.search is not None:
        changed["search"] = params.search.model_copy(update={"text": smaller(params.search.text)})
    return params.model_copy(update=changed)


def main(run: Callable[..., None]) -> None:
    """Run a stage's function as a command: its parameters become options, an error becomes one sentence."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(run)
    keep_freed_memory()
    run_command(app, sys.argv[1:], interrupted="Interrupted. Finished parts are kept: run again to continue.")
