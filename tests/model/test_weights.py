"""Weights that are not in memory: every entry point says so, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import zpruner
from zpruner.errors import ModelStructureError

WINDOWS = torch.randint(3, tiny.VOCABULARY, (2, 16), dtype=torch.int32, generator=torch.Generator().manual_seed(1))


def _on_disk(checkpoint: Path, folder: Path) -> PreTrainedModel:
    places = dict.fromkeys(["model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"], "cpu")
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint, device_map=places, offload_folder=str(folder)
    )
    return model


def _offloaded(checkpoint: Path, folder: Path) -> PreTrainedModel:
    model = zpruner.load(checkpoint, device="cpu")[0]
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def _empty(checkpoint: Path, folder: Path) -> PreTrainedModel:
    with torch.device("meta"):
        return tiny.build("llama")


@pytest.mark.parametrize("make", [_on_disk, _offloaded, _empty])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_are_not_in_memory_are_named(
    make: Callable[[Path, Path], PreTrainedModel], checkpoint: Path, tmp_path: Path
) -> None:
    model = make(checkpoint, tmp_path)
    calibration = zpruner.calibrate(zpruner.load(checkpoint, device="cpu")[0], WINDOWS)
    for use in (
        lambda: zpruner.calibrate(model, WINDOWS),
        lambda: zpruner.prune(model, calibration, method="wanda"),
        lambda: zpruner.prune_sequentially(model, WINDOWS, method="wanda"),
        lambda: zpruner.perplexity(model, WINDOWS),
    ):
        with pytest.raises(ModelStructureError, match=r"not in memory \(offloaded, or on the meta device\), such as"):
            use()
