"""What fetch writes gives the logits that transformers computes with the source, whatever its layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import families
import layouts
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from zpruner.errors import IncompleteCheckpointError
from zpruner.execution import Skeleton, copy_checkpoint
from zpruner.model import load_model, open_checkpoint

IDS = torch.arange(3, 19).reshape(1, 16)
FAMILIES = ("llama", "gpt2", "opt", "gemma2", "mixtral", "mamba2", "falcon", "phi", "bloom", "qwen3_moe")
PLACES = st.fixed_dictionaries(
    {
        "family": st.sampled_from(FAMILIES),
        "change": st.sampled_from(layouts.TENSORS),
        "shards": st.sampled_from([1, 3]),
        "leftovers": st.booleans(),
        "tied": st.sampled_from(["kept", True]),
        "stored": st.sampled_from(["float32", "bfloat16", "absent"]),
        "dtype": st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
    }
)


def logits(folder: Path, dtype: str = "auto") -> tuple[Tensor, set[str]]:
    """Return transformers' logits, and the names of weights for which it took random numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
            model, loading = loaded
        except NotImplementedError:  # transformers' own, of a tied tensor of another shape
            return torch.empty(0), {"a tied weight"}
    lacking = loading["missing_keys"] | {name for name, *_ in loading["mismatched_keys"]}
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found, lacking


def agrees(
    family: str,
    change: Callable[[layouts.Tensors], layouts.Tensors],
    shards: int,
    leftovers: bool,
    tied: object,
    stored: str,
    dtype: str,
) -> None:
    with TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, out = Path(name) / "in", Path(name) / "out"
        families.build(family).save_pretrained(source)
        config = {"dtype": stored} | ({} if tied == "kept" else {"tie_word_embeddings": tied})
        layouts.rewrite(source, change, shards, **config)
        if leftovers:
            layouts.add_leftovers(source)
        out.mkdir()
        expected, lacking = logits(source, dtype)
        if lacking:
            with pytest.raises(IncompleteCheckpointError):
                copy_checkpoint(source, out, dtype)
            with pytest.raises(IncompleteCheckpointError):
                load_model(source, dtype, "cpu")
            return
        copy_checkpoint(source, out, dtype)
        found, lacking = logits(out)
        assert not lacking
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        skeleton = Skeleton(open_checkpoint(source, dtype), torch.device("cpu"))
        skeleton.put(skeleton.stored)
        whole = load_model(source, dtype, "cpu").state_dict()
        assert all(torch.equal(t, whole[name]) for name, t in skeleton.model.state_dict().items())


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(PLACES)
def test_a_copy_gives_the_logits_that_transformers_gives(place: dict[str, object]) -> None:
    agrees(**place)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=500, deadline=None, suppress_health_check=CHECKS)
@given(PLACES)
def test_it_does_in_hundreds_of_layouts(place: dict[str, object]) -> None:
    agrees(**place)


@pytest.mark.slow
@pytest.mark.parametrize("change", layouts.TENSORS)
@pytest.mark.parametrize("family", families.ALL)
def test_it_does_for_every_family(family: str, change: Callable[[layouts.Tensors], layouts.Tensors]) -> None:
    agrees(family, change, 3, True, "kept", "float32", "auto")
