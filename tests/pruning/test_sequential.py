"""Sequential propagation: replay, statistics of a half-pruned model, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from allocations import peak_bytes
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

import zpruner
from zpruner.calibration import BlockReplay, Collection
from zpruner.errors import ModelStructureError, NonFiniteError
from zpruner.model import get_weight, set_weight, take_inventory
from zpruner.pruning.compose import compose
from zpruner.pruning.memory import workspace_bytes
from zpruner.pruning.presets import PRESETS
from zpruner.pruning.sequential import SolvedLayer, prune_blocks
from zpruner.settings.params import Choice, MethodSettings
from zpruner.types import SparsityPattern

WINDOWS = torch.randint(0, tiny.VOCABULARY, (6, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(1))


def mamba() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=8
    )
    model = MambaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


def build(family: str) -> PreTrainedModel:
    return mamba() if family == "mamba" else tiny.build(family)


FAMILIES = [*tiny.FAMILIES, "mamba"]


@pytest.mark.parametrize("family", FAMILIES)
def test_replaying_all_blocks_is_the_forward_pass(family: str) -> None:
    model = build(family)
    inventory = take_inventory(model)
    replay = BlockReplay(model, inventory, WINDOWS, batch_size=2)
    for block in range(inventory.n_blocks):
        replay.advance(block)
    expected = torch.cat([tiny.last_hidden(model, batch) for batch in WINDOWS.split(2)])
    assert torch.equal(torch.cat(replay.hidden), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_the_model_with_earlier_blocks_pruned(family: str) -> None:
    model, reference = build(family), build(family)
    inventory = take_inventory(model)
    layers = zpruner.prune_sequentially(model, WINDOWS, method="wanda", sparsity=0.5, batch_size=2)
    by_name = {layer.name: layer for layer in layers}
    for block in range(inventory.n_blocks):
        # The same by hand: a dense calibration of a model whose earlier blocks have been replaced.
        stats = zpruner.calibrate(reference, WINDOWS, batch_size=2)
        for layer in (found for found in inventory.layers if found.block == block):
            weight = get_weight(reference, layer)
            keep = (weight.abs() * stats.stats(layer.name).squared_norm().sqrt()).argsort(dim=1, stable=True)
            expected = torch.ones_like(weight, dtype=torch.bool).scatter_(1, keep[:, : weight.shape[1] // 2], False)
            assert torch.equal(by_name[layer.name].mask.keep, expected), layer.name
            set_weight(reference, layer, weight * expected)
    assert torch.equal(tiny.last_hidden(model, WINDOWS), tiny.last_hidden(reference, WINDOWS))


def test_statistics_are_let_go_with_the_last_layer_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    inventory = take_inventory(model)
    composition = compose(MethodSettings(score="sparsegpt", update=Choice(name="obs")))
    patterns = {layer.name: SparsityPattern.parse(0.5) for layer in inventory.layers}
    collections: list[Collection] = []
    alive: dict[str, set[str]] = {}
    measure = BlockReplay.measure

    def measured(replay: BlockReplay, *arguments: Any) -> Collection:
        collections.append(measure(replay, *arguments))
        return collections[-1]

    monkeypatch.setattr(BlockReplay, "measure", measured)

    def solved(found: SolvedLayer) -> None:
        alive[found.mask.layer] = set(collections[-1].accumulators)

    blocks = prune_blocks(
        model,
        inventory,
        WINDOWS,
        composition,
        patterns,
        batch_size=2,
        solved=solved,
    )
    for block in blocks:
        names = [layer.name for layer in inventory.layers if layer.block == block]
        owner = collections[-1].owner
        assert [alive[name] for name in names] == [{owner[later] for later in names[i:]} for i in range(len(names))]
        assert len(alive[names[0]]) == 4
        assert not collections[-1].accumulators


def test_propagation_matters() -> None:
    sequential, dense = tiny.build("llama"), tiny.build("llama")
    calibration = zpruner.calibrate(dense, WINDOWS)
    one = zpruner.prune_sequentially(sequential, WINDOWS, method="wanda", sparsity=0.5)
    other = zpruner.prune(dense, calibration, method="wanda", sparsity=0.5)
    same = [torch.equal(a.mask.keep, b.mask.keep) for a, b in zip(one, other, strict=True)]
    assert same[:4] == [True] * 4  # the first block's attention sees the same inputs
    assert not all(same)


@pytest.mark.parametrize("preset", ["apt_mm", "apt_sm", "sparsegpt", "best"])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_solvers_prune_mamba(preset: str, sparsity: float | str) -> None:
    model = mamba()
    kinds = {layer.kind for layer in take_inventory(model).layers}
    assert kinds == {"mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"}
    calibration = zpruner.calibrate(model, WINDOWS, stats=zpruner.needs(preset))
    plain = mamba()
    masked = zpruner.prune(plain, zpruner.calibrate(plain, WINDOWS), method="wanda", sparsity=sparsity)
    layers = zpruner.prune(model, calibration, method=preset, sparsity=sparsity)
    assert {layer.sparsity for layer in layers} == {0.5}
    assert sum(a.layer_error for a in layers) < sum(b.layer_error for b in masked)


class TestRefusal:
    """A block that is no function of its input and recorded arguments must not be replayed silently."""

    def test_a_block_that_counts_its_calls(self) -> None:
        model = tiny.build("llama")
        block = model.get_submodule("model.layers.1")
        calls: list[int] = []

        def drift(_module: object, _args: object, result: Tensor) -> Tensor:
            calls.append(1)
            return result + 0.01 * len(calls)

        block.register_forward_hook(drift)
        with pytest.raises(ModelStructureError, match=r"model\.layers\.1: got a replay that differs.*propagation"):
            BlockReplay(model, take_inventory(model), WINDOWS, batch_size=2)

    def test_something_between_two_blocks(self) -> None:
        model = tiny.build("llama")
        block = model.get_submodule("model.layers.2")
        block.register_forward_pre_hook(lambda _module, args: (args[0] * 2, *args[1:]))
        with pytest.raises(ModelStructureError, match="previous block's output"):
            BlockReplay(model, take_inventory(model), WINDOWS, batch_size=2)


class TestBadModels:
    """What is wrong with a model is said by layer, before anything has been pruned."""

    def test_a_weight_that_is_not_finite(self) -> None:
        model = tiny.build("llama")
        with torch.no_grad():
            model.model.layers[2].mlp.up_proj.weight[3, 4] = torch.nan
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(NonFiniteError, match=r"weight of layer model\.layers\.2\.mlp\.up_proj: got NaN"):
            zpruner.prune_sequentially(model, WINDOWS, method="wanda")
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, model.parameters(), strict=True))

    def test_a_layer_that_is_never_called(self) -> None:
        model = tiny.build("llama")
        model.model.layers[0].extra = torch.nn.Linear(16, 16)
        with pytest.raises(ModelStructureError, match=r"layer model\.layers\.0\.extra: got no token"):
            zpruner.prune_sequentially(model, WINDOWS, method="wanda")


def test_the_requested_sparsity_is_met_exactly_whatever_the_allocation() -> None:
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS)
    uniform = zpruner.prune(model, calibration, method="wanda", sparsity=0.6)
    assert {round(layer.sparsity, 3) for layer in uniform} != {0.6}  # floor(32 * 0.6) of every row
    for allocate in ("owl", {"name": "table", "settings": {"sparsities": {"*.down_proj": 0.4}}}):
        model = tiny.build("llama")
        method = {"score": "wanda", "group": "layer", "allocate": allocate}
        layers = zpruner.prune(model, calibration, method=method, sparsity=0.6)
        weights = sum(layer.mask.keep.numel() for layer in layers)
        assert sum(int((~layer.mask.keep).sum()) for layer in layers) == int(weights * 0.6)
        assert len({round(layer.sparsity, 4) for layer in layers}) > 1
    down = [layer.sparsity for layer in layers if layer.name.endswith("down_proj")]
    assert down == pytest.approx([0.4] * 3, abs=1e-3)


def test_a_layer_that_no_token_reaches_is_refused() -> None:
    model = tiny.build("llama")
    model.model.layers[1].mlp.unused = torch.nn.Linear(32, 32)
    with pytest.raises(ModelStructureError, match=r"layers\.1\.mlp\.unused: got no token"):
        zpruner.prune_sequentially(model, WINDOWS, method="wanda", sparsity=0.5)


@pytest.mark.parametrize(
    "method", ["wanda", "sparsegpt", "apt_mm", "alps", "best", pytest.param("best_tuned", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("mixture", [False, True])
def test_what_pruning_takes_beside_the_weights(method: str, mixture: bool, tmp_path: Path) -> None:
    """Whether the model is read block by block hangs on it. (Swaps also take tiles of a size that does not change.)"""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": tiny.VOCABULARY}
    if mixture:
        config = MixtralConfig(intermediate_size=256, num_hidden_layers=1, num_local_experts=4, **sizes)
        model = MixtralForCausalLM(config).eval()
    else:
        model = tiny.llama(intermediate_size=640, num_hidden_layers=1)
    composition, windows = compose(MethodSettings(**PRESETS[method])), WINDOWS[:4]
    expected = workspace_bytes(composition, take_inventory(model), windows, batch_size=1)
    taken = peak_bytes(partial(zpruner.prune_sequentially, model, windows, method=method, batch_size=1), tmp_path)
    if method == "wanda":
        assert expected == 4 * windows.numel() * 32
    else:
        assert 0.85 * taken < expected < 1.15 * taken


def test_matrices_of_inputs_that_layers_share_count_once() -> None:
    inventory = take_inventory(tiny.build("llama"))
    obs = compose(MethodSettings(score="wanda", update=Choice(name="obs")))
    plain = workspace_bytes(compose(MethodSettings(score="wanda")), inventory, WINDOWS)
    # of q, k, v and o two read different inputs; gate and up may; down reads 48 channels, as the solver's two matrices
    assert workspace_bytes(obs, inventory, WINDOWS) == plain + 4 * (4 * 32**2 + 3 * 48**2)
