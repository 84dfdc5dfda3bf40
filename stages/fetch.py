"""Fetch: the model as an ordinary checkpoint, and the texts as token windows."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

from stages._deciding import text_of
from stages._project import Project, Root, main
from stages.sources import content_of, fetched_source
from zpruner.checkpoint import Checkpoint, find_converted, write_manifest
from zpruner.errors import ArtifactError
from zpruner.evaluate import evaluation_text
from zpruner.execution import copy_checkpoint
from zpruner.model import limits_of
from zpruner.runtime.progress import counter
from zpruner.settings.texts import TextSettings
from zpruner.sources import (
    FETCH_STEPS,
    Documents,
    TokenTable,
    fetch_model,
    load_tokenizer,
    read_text,
)
from zpruner.text import calibration_windows, encoding_of, evaluation_windows, write_windows


class What(StrEnum):
    """What can be fetched."""

    model = "model"
    calibration = "calibration"
    evaluation = "evaluation"
    search = "search"


def run(what: What, root: Root = Path()) -> None:
    """Write data/models/dense, or the tokens.arrow of data/calibration, data/evaluation or data/search.

    Args:
        what: the model, or one of the texts.
        root: the project folder.
    """
    project = Project.open(root)
    match what:
        case What.model:
            _fetch_model(project)
        case _:
            _fetch_tokens(project, what)


def _fetch_model(project: Project) -> None:
    settings = project.params.model
    source, content = fetched_source(project, "model"), content_of(project, "model")
    with project.work("fetch", "model", fetched=content or source) as work:
        if work.done("model") is None or not _whole(work.files):
            shutil.rmtree(work.files)
            with counter(f"fetch model ({', '.join(FETCH_STEPS)})", len(FETCH_STEPS), "step") as step:
                fetch_model(
                    source,
                    settings.sha256,
                    work.files,
                    project.downloads,
                    settings.dtype,
                    trust_remote_code=settings.trust_remote_code,
                    step=step,
                    copy=copy_checkpoint,
                )
            config = json.loads((work.files / "config.json").read_text(encoding="utf-8"))
            dtype = config.get("dtype") or config.get("torch_dtype") or settings.dtype
            converted = find_converted(work.files, trust_remote_code=settings.trust_remote_code)
            facts: dict[str, Any] = {"converted": converted} if converted else {}
            if source != settings.source and not content:  # a name on the hub, with its commit
                facts["fetched"] = source
            write_manifest(work.files, settings.source, role="dense", dtype=dtype, **facts)
            work.record("model", {})
        work.publish(project.dense)
        project.write_cost("fetch", "model", seconds=work.seconds, layers=0, source=content)


def _whole(folder: Path) -> bool:
    """Return whether a fetched checkpoint is what it was: a published one shares its files with the work folder."""
    try:
        Checkpoint(folder).verify_all()
    except ArtifactError:
        return False
    return True


def _fetch_tokens(project: Project, what: What) -> None:
    params = project.params
    settings = text_of(params, what.value)
    with project.work("fetch", what.value) as work, counter(f"fetch {what.value} text", 2, "step") as step:
        content = content_of(project, what.value)
        text = _read(settings, fetched_source(project, what.value), project)
        step()
        dense = project.open_dense()
        tokenizer = load_tokenizer(dense.folder, trust_remote_code=params.model.trust_remote_code)
        vocab_size, longest = _limits(dense.folder, params.model.trust_remote_code)
        if what is What.calibration:
            chosen = params.calibration
            windows = calibration_windows(
                text,
                tokenizer,
                nsamples=chosen.nsamples,
                seqlen=chosen.seqlen,
                seed=chosen.seed,
                vocab_size=vocab_size,
                longest=longest,
                sampling=chosen.sampling,
                part=chosen.part,
                bos=settings.begin,
            )
        elif what is What.search:
            windows = evaluation_windows(
                text,
                tokenizer,
                seqlen=settings.seqlen,
                vocab_size=vocab_size,
                longest=longest,
                windows=params.the_search().rungs[-1],
                part=settings.part,
                bos=settings.begin,
            )
        else:
            measured = params.evaluation.perplexity
            windows = evaluation_windows(
                evaluation_text(text, measured),
                tokenizer,
                seqlen=measured.seqlen,
                vocab_size=vocab_size,
                longest=longest,
                windows=measured.windows,
                part=measured.part,
                stride=measured.stride,
                bos=settings.begin,
            )
        begin = encoding_of(text, tokenizer, settings.begin).begin
        origin = project.windows_origin(what.value, dense)
        write_windows(project.tokens(what.value), windows, settings.source, origin, settings.begin, begin)
        step()
        project.write_cost("fetch", what.value, seconds=work.seconds, layers=0, source=content)


def _read(settings: TextSettings, source: str, project: Project) -> Documents | TokenTable:
    return read_text(
        source,
        settings.sha256,
        project.downloads,
        column=settings.column,
        config=settings.config,
        split=settings.split,
        documents=settings.documents,
    )


def _limits(folder: Path, trust_remote_code: bool) -> tuple[int, int | None]:
    """Return the size of the model's vocabulary and the most tokens that it takes at once."""
    from transformers import AutoConfig

    try:
        return limits_of(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
    except (AttributeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            str(folder / "config.json"), reason, "a language model's config, with vocab_size", "Check the model."
        ) from None


if __name__ == "__main__":
    main(run)
