"""Calibration windows of several sources, or of the model's own text, for a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.execution import WholeRunner
from zpruner.model import check_in_memory, evaluating, limits_of
from zpruner.runtime.progress import counter
from zpruner.settings.texts import CalibrationSettings, MixedSettings
from zpruner.sources import Documents, TokenTable, resolve_source, text_of
from zpruner.text import check_room, kept_windows, mixed_windows, writing_of, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def mixture(settings: CalibrationSettings, model: PreTrainedModel, tokenizer: Any, downloads: Path) -> Tensor:
    """Return the windows of a calibration, int32 (nsamples, seqlen), as the stages make them.

    Args:
        settings: of the calibration; what is done with its windows is not read.
        model: in memory; writes its own text where that is asked for.
        tokenizer: the model's.
        downloads: where downloads are kept.

    Raises:
        InvalidSettingError, SourceError, TextTooShortError: as `mixed_windows` and `writing_of`.
        ModelStructureError: weights that are not in memory, or a model that cannot continue a text.
    """
    vocab_size, longest = limits_of(model.config)

    def read(source: MixedSettings) -> Documents | TokenTable:
        return text_of(source, resolve_source(source.source, "dataset"), downloads)

    def write(source: MixedSettings, count: int) -> Tensor:
        check_in_memory(model)
        writing = writing_of(source, count, tokenizer, seqlen=settings.seqlen, seed=settings.seed, bos=settings.bos)
        check_room(writing, longest)
        batches = writing.batches()
        with evaluating(model), counter("generate", writing.tokens * len(batches), "step") as step:
            found = list(written(WholeRunner(model), writing, batches, step=step))
        ids, losses = torch.cat([ids for _, ids, _ in found]), torch.cat([losses for _, _, losses in found])
        return kept_windows(writing, ids, losses, count)

    return mixed_windows(settings, tokenizer, vocab_size=vocab_size, longest=longest, read=read, write=write)[0]
