"""Layers and blocks that text never reaches: named with what to ignore, and left alone once they are ignored."""

from __future__ import annotations

import ast

import pytest
import tiny
import torch
from torch import Tensor
from transformers import MllamaForCausalLM, PreTrainedModel
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

import zpruner
from zpruner.calibration import Collection, calibrate, check_reached, collect_by_block
from zpruner.errors import ModelStructureError
from zpruner.execution import WholeRunner
from zpruner.model import take_inventory
from zpruner.types import CHANNEL_SUMS

WINDOWS = torch.randint(3, tiny.VOCABULARY, (4, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(6))
FOR_IMAGES = ["model.layers.0.*", "model.layers.2.*"]


@pytest.fixture
def model() -> PreTrainedModel:
    """Four blocks, of which the first and the third read images: without one they are not called."""
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MllamaTextConfig(
        vocab_size=tiny.VOCABULARY, num_hidden_layers=4, cross_attention_layers=[0, 2], pad_token_id=0, **settings
    )
    return MllamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("unreached", "patterns"),
    [
        ([".self_attn."], ["*.self_attn.*"]),
        ([".layers.1.", ".q_proj"], ["*.self_attn.q_proj", "model.layers.1.*"]),
        (["layers.0.mlp.up_proj"], ["model.layers.0.mlp.up_proj"]),
    ],
)
def test_the_patterns_match_what_was_not_reached_and_nothing_else(unreached: list[str], patterns: list[str]) -> None:
    llama = tiny.build("llama")
    inventory = take_inventory(llama)
    reached = [layer.name for layer in inventory.layers if not any(part in layer.name for part in unreached)]
    with pytest.raises(ModelStructureError) as caught:
        check_reached(inventory, reached)
    assert ast.literal_eval(str(caught.value).partition("for example ")[2].rstrip(".")) == patterns
    assert [layer.name for layer in take_inventory(llama, ignore=patterns).layers] == reached


@pytest.mark.parametrize("way", ["whole", "by block", "pruned"])
def test_blocks_for_images_are_named_until_they_are_ignored(model: PreTrainedModel, way: str) -> None:
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def prune(ignore: list[str]) -> None:
        inventory = take_inventory(model, ignore=ignore)
        if way == "whole":
            zpruner.prune(model, calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, ignore=ignore), method="sparsegpt")
        elif way == "pruned":
            zpruner.prune_sequentially(model, WINDOWS, method="best", batch_size=2, ignore=ignore)
        else:
            found: dict[int, Collection] = {}
            collect_by_block(
                WholeRunner(model), inventory, WINDOWS, found.__setitem__, stats=tiny.WITH_GRAM, batch_size=2
            )
            assert list(found) == [1, 3]

    with pytest.raises(ModelStructureError, match=r"layers\.0\.cross_attn.*'model\.layers\.0\.\*', 'model\.layers\.2"):
        prune([])
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.state_dict().items())
    prune(FOR_IMAGES)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, dense[name])}
    expected = {layer.tensor for layer in take_inventory(model, ignore=FOR_IMAGES).layers}
    assert changed == (set() if way == "by block" else expected)


def test_a_block_that_only_some_passes_call_is_refused() -> None:
    model = tiny.build("llama")
    runner = WholeRunner(model)
    decode = model.model.forward

    def now_and_then(input_ids: Tensor, **more: object) -> object:
        model.model.config.num_hidden_layers = 2 if int(input_ids[0, 0]) == int(WINDOWS[0, 0]) else 3
        return decode(input_ids=input_ids, **more)

    model.model.forward = now_and_then  # which slices its blocks by the config
    with pytest.raises(ModelStructureError, match=r"model\.layers\.2: got a call in 1 of 2 forward passes"):
        collect_by_block(runner, take_inventory(model), WINDOWS, lambda *_: None, stats=CHANNEL_SUMS, batch_size=2)


def test_a_block_that_a_pass_calls_twice_is_refused_before_anything_is_handed_on() -> None:
    model, found = tiny.build("llama"), []
    usual = model.model.forward

    def twice(input_ids: Tensor, **more: object) -> object:
        usual(input_ids=input_ids, **more)
        return usual(input_ids=input_ids, **more)

    model.model.forward = twice
    inventory = take_inventory(model)
    with pytest.raises(ModelStructureError, match=r"layers\.0: got more than one call in a forward pass"):
        collect_by_block(
            WholeRunner(model), inventory, WINDOWS, lambda *one: found.append(one), stats=CHANNEL_SUMS, batch_size=2
        )
    assert not found
