"""Tiny models on disk, and forward passes side by side, for what reads them block by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import families
import torch
from torch import Tensor
from transformers import PreTrainedModel

from zpruner.checkpoint import Checkpoint, write_manifest

WINDOWS = torch.randint(3, families.VOCABULARY, (5, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(4))


def save(model: PreTrainedModel, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    write_manifest(folder, "tiny", dtype=str(model.dtype).removeprefix("torch."))
    return Checkpoint(folder)


def forwards(model: PreTrainedModel) -> list[Callable[[], Tensor]]:
    def logits(batch: Tensor) -> Tensor:
        found: Tensor = model(input_ids=batch.long(), use_cache=False).logits
        return found

    return [partial(logits, batch) for batch in WINDOWS.split(2)]
