"""Generate: text that the unpruned model writes itself, where the calibration lists `self` among its sources."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stages._deciding import deciding, own_source
from stages._project import Project, Root, batch_divisor, main, say
from zpruner.artifacts.store import ArtifactReader, Provenance, artifact_writer
from zpruner.checkpoint import Checkpoint
from zpruner.execution import choose, memory_limit, open_runner
from zpruner.model import empty_model, limits_of
from zpruner.runtime.progress import counter
from zpruner.settings.base import canonical_json
from zpruner.settings.texts import MixedSettings
from zpruner.sources import load_tokenizer
from zpruner.text import TOGETHER, Writing, cache_bytes, check_room, kept_windows, writing_of, written

KIND = "generated"
_CACHES = 0.3
"""Share of the memory that keys and values may take where weights are read block by block."""


def run(root: Root = Path()) -> None:
    """Write data/generated; an index without files where the calibration lists no text of the model's own.

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    found = own_source(project.params)
    if found is None:
        with artifact_writer(project.work("generate"), KIND, Provenance()) as writer:
            writer.finish(project.generated)
            project.write_cost("generate", seconds=0.0, layers=0)
        return
    dense, model, machine = project.open_dense(), project.params.model, project.params.machine
    writing = writing_for(project, dense, *found)
    empty = empty_model(dense.folder, trust_remote_code=model.trust_remote_code)
    check_room(writing, limits_of(empty.config)[1])
    together = max(1, TOGETHER // batch_divisor())
    cache = cache_bytes(empty, writing, together)
    choice = choose(machine, dense.tensor_bytes + cache)
    say(f"generate: {choice.words}" + ("; every token needs all of it" if choice.streamed else ""))
    work, provenance = project.work("generate", dense=dense.model_hash), written_by(project, dense, writing)
    with artifact_writer(work, KIND, provenance) as writer:
        batches = writing.batches(together)
        todo = [batch for batch in batches if work.done(file_of(batch)) is None]
        done = writing.tokens * (len(batches) - len(todo))
        with counter("generate", writing.tokens * len(batches), "step", done) as step:
            if todo:
                runner = open_runner(dense, model, machine, choice.streamed, work.scratch / "hidden")
                # Read block by block, the weights serve as many batches at a time as there is room for.
                room = int(_CACHES * memory_limit(machine)) // max(cache, 1) if choice.streamed else 1
                for batch, ids, losses in written(runner, writing, todo, together, step, max(1, room)):
                    writer.write(file_of(batch), {"ids": ids, "loss": losses})
                    writer.drain()
        writer.finish(project.generated)
        project.write_cost("generate", seconds=work.seconds, layers=0, streamed=choice.streamed)


def writing_for(project: Project, dense: Checkpoint, source: MixedSettings, count: int) -> Writing:
    """Return what has the unpruned model write the windows of a source."""
    settings = project.params.calibration
    tokenizer = load_tokenizer(dense.folder, trust_remote_code=project.params.model.trust_remote_code)
    return writing_of(source, count, tokenizer, seqlen=settings.seqlen, seed=settings.seed, bos=settings.bos)


def written_by(project: Project, dense: Checkpoint, writing: Writing) -> Provenance:
    """Return what written windows were made from."""
    return Provenance(
        model=dense.model,
        model_hash=dense.model_hash,
        dtype=dense.dtype,
        windows=writing.windows,
        tokens=writing.windows * writing.tokens,
        settings=canonical_json(deciding(project.params, ("generate",))),
    )


def read_generated(project: Project, dense: Checkpoint, source: MixedSettings, count: int) -> Tensor:
    """Return the windows that the unpruned model has written, int32 (count, seqlen).

    Raises:
        ArtifactError: missing, damaged, or written by another model or with other settings.
    """
    writing = writing_for(project, dense, source, count)
    reader = ArtifactReader(project.generated, KIND, written_by(project, dense, writing))
    files = [reader.read(name) for name in sorted(reader.files)]
    ids, losses = (torch.cat([file[column] for file in files]) for column in ("ids", "loss"))
    return kept_windows(writing, ids, losses, count)


def file_of(batch: range) -> str:
    """Return the name of a batch's file."""
    return f"windows-{batch.start:06}"


if __name__ == "__main__":
    main(run)
