"""Fetch: the model as an ordinary checkpoint, and the texts as token windows."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

from stages._deciding import sources_of
from stages._project import Project, Root, main
from stages.generate import read_generated
from stages.sources import content_of, fetched_source, local_path
from zpruner.checkpoint import Checkpoint, find_converted, write_manifest
from zpruner.errors import ArtifactError
from zpruner.evaluate import evaluation_text
from zpruner.execution import copy_checkpoint
from zpruner.model import limits_of
from zpruner.runtime.progress import counter
from zpruner.settings.mixture import window_counts
from zpruner.settings.texts import MixedSettings
from zpruner.sources import (
    FETCH_STEPS,
    fetch_model,
    load_tokenizer,
    text_of,
)
from zpruner.text import encoding_of, evaluation_windows, mixed_windows, write_windows


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
    source = fetched_source(project, "model", settings.source)
    content = content_of(project, settings.source)
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
    with project.work("fetch", what.value) as work, counter(f"fetch {what.value} text", 2, "step") as step:
        content = " ".join(filter(None, (content_of(project, source) for source in sources_of(params, what.value))))
        dense = project.open_dense()
        tokenizer = load_tokenizer(dense.folder, trust_remote_code=params.model.trust_remote_code)
        limits = _limits(dense.folder, params.model.trust_remote_code)
        step()
        if what is What.calibration:
            _calibration_tokens(project, dense, tokenizer, *limits)
        else:
            _evaluation_tokens(project, what, dense, tokenizer, *limits)
        step()
        project.write_cost("fetch", what.value, seconds=work.seconds, layers=0, source=content)


def _calibration_tokens(
    project: Project, dense: Checkpoint, tokenizer: Any, vocab_size: int, longest: int | None
) -> None:
    settings, name = project.params.calibration, What.calibration.value
    windows, begin = mixed_windows(
        settings,
        tokenizer,
        vocab_size=vocab_size,
        longest=longest,
        read=lambda source: text_of(source, fetched_source(project, name, source.source), project.downloads),
        write=lambda source, count: read_generated(project, dense, source, count),
    )
    counted = zip(settings.sources, window_counts(settings), strict=True)
    known = [_known(project, source, count) for source, count in counted] if settings.mixed else []
    source = " + ".join(source.source for source in settings.sources)
    origin = project.windows_origin(name, dense)
    write_windows(project.tokens(name), windows, source, origin, settings.bos, begin, known)


def _known(project: Project, source: MixedSettings, count: int) -> dict[str, Any]:
    """Return what is known of one of several sources: its settings, commit or hash, and number of windows."""
    given = source.source
    here = local_path(project, given) is not None
    return {
        **source.model_dump(mode="json", exclude_defaults=True),
        "source": given if here else fetched_source(project, What.calibration.value, given),
        "sha256": source.sha256 or content_of(project, given) or None,
        "windows": count,
    }


def _evaluation_tokens(
    project: Project, what: What, dense: Checkpoint, tokenizer: Any, vocab_size: int, longest: int | None
) -> None:
    measured = project.params.evaluation.perplexity
    settings = measured if what is What.evaluation else project.params.the_search().text
    text = text_of(settings, fetched_source(project, what.value, settings.source), project.downloads)
    windows = evaluation_windows(
        evaluation_text(text, measured) if what is What.evaluation else text,
        tokenizer,
        seqlen=settings.seqlen,
        vocab_size=vocab_size,
        longest=longest,
        windows=measured.windows if what is What.evaluation else project.params.the_search().rungs[-1],
        part=settings.part,
        stride=measured.stride if what is What.evaluation else None,
        bos=settings.begin,
    )
    begin = encoding_of(text, tokenizer, settings.begin).begin
    origin = project.windows_origin(what.value, dense)
    write_windows(project.tokens(what.value), windows, settings.source, origin, settings.begin, begin)


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
