"""What a model says: at the end of the first window, and after the prompt of params.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages._project import Project
from zpruner.artifacts.results import Continuation, Sample
from zpruner.artifacts.work import Work
from zpruner.evaluate import continuation
from zpruner.execution import Runner, choose
from zpruner.model import load_model
from zpruner.sources import load_tokenizer


def sample(tokenizer: Any, windows: Tensor, choices: list[float]) -> Sample | None:
    """Return the end of the first window beside the model's choices, None where there is no tokenizer."""
    if tokenizer is None:
        return None
    text, chosen = windows[0, -len(choices) :].tolist(), [int(choice) for choice in choices]
    words = [tuple(str(tokenizer.decode([token])) for token in tokens) for tokens in (text, chosen)]
    return Sample(text=words[0], choices=words[1])


def continued(work: Work, project: Project, tokenizer: Any, runner: Runner) -> Continuation | None:
    """Return what a model in memory says after the prompt; None as `Details` says."""
    if runner.streamed:  # every token would read all weights
        return None
    return _continued(work, project, tokenizer, lambda: (runner.model, runner.device))


def packed_continued(work: Work, project: Project, folder: Path) -> Continuation | None:
    """Return what a packed checkpoint says after the prompt, loaded as a user loads it; None as `Details` says."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if project.params.evaluation.continuation is None or choose(project.params.machine, size).streamed:
        return None
    trust = project.params.model.trust_remote_code
    return _continued(
        work,
        project,
        tokenizer_of(project),
        lambda: (load_model(folder, device="cpu", trust_remote_code=trust), torch.device("cpu")),
    )


def _continued(
    work: Work, project: Project, tokenizer: Any, open_model: Callable[[], tuple[Any, torch.device]]
) -> Continuation | None:
    settings, item = project.params.evaluation.continuation, "continuation"
    if settings is None or tokenizer is None:
        return None
    entry = work.done(item)
    if entry is None:
        model, device = open_model()
        entry = continuation(model, tokenizer, settings.prompt, settings.new_tokens, device).model_dump()
        work.record(item, entry)
    return Continuation.model_validate(entry)


def tokenizer_of(project: Project) -> Any:
    """Return the unpruned model's tokenizer, None where it has none."""
    return load_tokenizer(project.dense, trust_remote_code=project.params.model.trust_remote_code)
