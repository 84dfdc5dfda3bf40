"""Replays of decoder blocks: they follow what earlier blocks put out, and refuse what they cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

import zpruner
from zpruner.calibration import BlockReplay
from zpruner.errors import ModelStructureError
from zpruner.model import get_weight, set_weight, take_inventory

WINDOWS = torch.randint(3, families.VOCABULARY, (2, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(7))


def replayed_with_changed_weights(model: PreTrainedModel) -> BlockReplay:
    """Replay the model with other weights than those that were recorded; it must equal the forward pass."""
    inventory = take_inventory(model)
    replay, outputs = BlockReplay(model, inventory, WINDOWS, batch_size=1), []
    for block in range(inventory.n_blocks):
        for layer in (layer for layer in inventory.layers if layer.block == block):
            set_weight(model, layer, get_weight(model, layer).flip(0))
        replay.advance(block)
    last = model.get_submodule(f"{inventory.blocks}.{inventory.n_blocks - 1}")
    last.register_forward_hook(lambda _m, _a, out: outputs.append(out if isinstance(out, Tensor) else out[0]))
    with torch.no_grad():
        for window in WINDOWS:
            model.base_model(input_ids=window[None].long(), use_cache=False)
    assert all(torch.equal(a, b) for a, b in zip(replay.hidden, outputs, strict=True))
    return replay


@pytest.mark.parametrize("family", ["llama", "zaya", "glm_moe_dsa", "hy_v4", "gemma3n, shared keys"])
def test_changed_blocks_replay_as_the_model_runs(family: str) -> None:
    """Some blocks hand on more than a hidden state: what a router or an indexer chose, keys and values."""
    replay = replayed_with_changed_weights(families.build(family))
    assert not any(replay._returned), "kept after the last block that reads it"


def test_keys_that_blocks_share_cannot_be_followed_for_two_models_at_once() -> None:
    model = families.build("gemma3n, shared keys")
    with pytest.raises(ModelStructureError, match="blocks that read what earlier ones left in an argument"):
        zpruner.prune_sequentially(model, WINDOWS, method="best")


def test_what_the_decoder_makes_of_earlier_blocks_is_refused() -> None:
    model = families.build("inkling2_text")
    with pytest.raises(ModelStructureError, match=r"layers\.2: got an argument \(0\) that changes with what earlier"):
        BlockReplay(model, take_inventory(model), WINDOWS, batch_size=2)


def handing_on(through: Callable[[Tensor], object]) -> PreTrainedModel:
    """A model whose blocks are given, besides the hidden state, what the decoder makes of the last one's mean."""
    model = tiny.build("llama")

    def forward(self: PreTrainedModel, input_ids: Tensor, **_: object) -> BaseModelOutputWithPast:
        hidden, extra = self.embed_tokens(input_ids), None
        positions = torch.arange(hidden.shape[1])[None]
        for layer in self.layers:
            hidden, mean = layer(hidden, extra, position_embeddings=self.rotary_emb(hidden, position_ids=positions))
            extra = through(mean)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))

    for layer in model.model.layers:
        usual = layer.forward

        def block(_: object, hidden: Tensor, extra: Any, usual: Callable[..., Tensor] = usual, **more: object):
            out = usual(hidden, **more)
            tensor = getattr(extra, "tensor", extra)
            return (out if tensor is None else out + tensor), out.mean(-1, keepdim=True)

        layer.forward = MethodType(block, layer)
    model.model.forward = MethodType(forward, model.model)
    return model


def test_what_blocks_hand_on_themselves_is_followed() -> None:
    replayed_with_changed_weights(handing_on(lambda mean: mean))


@pytest.mark.parametrize("through", [torch.sigmoid, lambda mean: SimpleNamespace(tensor=mean)])
def test_what_is_made_of_it_or_hidden_in_an_object_is_refused(through: Callable[[Tensor], object]) -> None:
    model = handing_on(through)
    with pytest.raises(ModelStructureError, match=r"layers\.1: got an argument \(0\) that changes with what earlier"):
        BlockReplay(model, take_inventory(model), WINDOWS, batch_size=2)
