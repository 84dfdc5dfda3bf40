"""The default job's model and texts, which grids of variants are measured on."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

import zpruner
from zpruner.sources import read_text
from zpruner.text import evaluation_windows, read_windows

MODEL = Path("data/models/dense")
WINDOWS = Path("data/calibration/tokens.arrow")


def model_and_windows(text: Path | None, windows: int, seqlen: int) -> tuple[PreTrainedModel, Tensor, Tensor]:
    """Return the dense model, the calibration's windows and those of `text`; None: of the default evaluation."""
    model, tokenizer = zpruner.load(MODEL)
    calibration, _ = read_windows(WINDOWS)
    if text is None:
        evaluation, _ = read_windows(Path("data/evaluation/tokens.arrow"))
    else:
        vocab_size = model.config.vocab_size
        documents = read_text(str(text), None, Path("data/.downloads"))
        evaluation = evaluation_windows(documents, tokenizer, seqlen=seqlen, vocab_size=vocab_size, windows=windows)
    return model, calibration, evaluation
