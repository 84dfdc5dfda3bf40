"""Experts of a mixture: whose tokens count, and what becomes of those that met few."""

import families
import pytest
import tiny
import torch
from torch import nn

import zpruner
from zpruner.calibration import BlockReplay, Collection, check_reached, collect, fill_experts, warning
from zpruner.calibration.accumulate import InputAccumulator
from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer, get_weight, take_inventory
from zpruner.types import CHANNEL_SUMS

WINDOWS = torch.randint(3, families.VOCABULARY, (4, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(5))


def routed(model, experts):
    """Return what every expert reads at both of its matrices, in float64, from the arguments of the experts' module."""
    calls = []
    handle = experts.register_forward_pre_hook(lambda _, args: calls.append([x.detach().double() for x in args[:2]]))
    with torch.no_grad():
        for window in WINDOWS:
            model(window[None].long())
    handle.remove()
    hidden = torch.cat([states.reshape(-1, states.shape[-1]) for states, _ in calls])
    chosen = torch.cat([index.reshape(hidden.shape[0] // len(calls), -1) for _, index in calls])
    return hidden, chosen


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("how", ["eager", "grouped_mm"])
def test_an_experts_statistics_are_those_of_its_tokens(family, how):
    model = families.build(family)
    model.set_experts_implementation(how)
    experts = model.model.layers[1].mlp.experts
    hidden, chosen = routed(model, experts)
    calibration = zpruner.calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=2, min_expert_tokens=0)
    layers = {layer.name: layer for layer in calibration.inventory.layers}
    for expert in range(4):
        X = hidden[(chosen == expert).any(dim=1)]
        name = f"model.layers.1.mlp.experts.gate_up_proj.{expert}"
        stats = calibration.stats(name)
        assert stats.tokens == len(X) < len(hidden)
        torch.testing.assert_close(stats.sq_sum, X.square().sum(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(stats.gram.double(), X.T @ X, rtol=1e-3, atol=1e-3)
        weight = get_weight(model, layers[name]).double()
        stored = experts.gate_up_proj[expert].double()
        assert torch.equal(weight, stored.T if family == "gpt_oss" else stored)
        if family != "gpt_oss":  # its activation is its own
            gate, up = (X @ weight.T).chunk(2, dim=-1)
            inner = nn.functional.silu(gate) * up
            below = calibration.stats(f"model.layers.1.mlp.experts.down_proj.{expert}")
            torch.testing.assert_close(below.sq_sum, inner.square().sum(0), rtol=1e-3, atol=1e-12)


def test_batched_experts_count_the_tokens_that_are_theirs():
    model = families.build("llama4_text")
    calibration = zpruner.calibrate(model, WINDOWS, batch_size=4, min_expert_tokens=0)
    names = [f"model.layers.0.feed_forward.experts.gate_up_proj.{expert}" for expert in range(4)]
    assert sum(calibration.stats(name).tokens for name in names) == 2 * WINDOWS.numel()  # two experts for each token
    assert calibration.stats("model.layers.0.self_attn.q_proj").tokens == WINDOWS.numel()


def test_the_way_of_multiplying_changes_nothing_but_rounding():
    found = {}
    for how in ("eager", "grouped_mm"):
        model = families.build("mixtral")
        model.set_experts_implementation(how)
        found[how] = zpruner.calibrate(model, WINDOWS, batch_size=2)
    for layer in found["eager"].inventory.layers:
        a, b = (found[how].stats(layer.name) for how in found)
        assert a.tokens == b.tokens
        torch.testing.assert_close(a.sq_sum, b.sq_sum, rtol=1e-4, atol=1e-9)


def test_a_copied_weight_is_not_passed_over():
    model = families.build("mixtral")
    model.set_experts_implementation("batched_mm")  # gathers a copy of the weights for every token
    with pytest.raises(ModelStructureError, match=r"experts\.gate_up_proj: got code that copies.*grouped_mm"):
        zpruner.calibrate(model, WINDOWS)


def layer(name, pool, block=0):
    return PrunableLayer(name, f"{name}.weight", block, 3, 2, False, pool=pool)


def sums(rows):
    found = InputAccumulator(2, tiny.WITH_GRAM, torch.device("cpu"))
    found.add(torch.tensor(rows))
    return found


def mixture(few):
    """Attention sees 8 tokens; expert 0 sees 6, expert 1 sees 2, expert 2 none. Two layers share an expert's input."""
    names = {"a": None, "e.0.up": "e.*.up", "e.0.gate": "e.*.gate", "e.1.up": "e.*.up", "e.1.gate": "e.*.gate"}
    names |= {"e.2.up": "e.*.up", "e.2.gate": "e.*.gate"}
    inventory = Inventory("b", 1, tuple(layer(name, pool) for name, pool in names.items()), ())
    collection = Collection(windows=2)
    collection.accumulators = {
        "a": sums([[9.0, 9.0]] * 8),
        "e.0.up": sums([[1.0, 2.0]] * 6),
        "e.1.up": sums([[3.0, -4.0], [5.0, 0.0]]),
    }
    collection.owner = {"a": "a", "e.0.up": "e.0.up", "e.0.gate": "e.0.up", "e.1.up": "e.1.up", "e.1.gate": "e.1.up"}
    fill_experts(inventory, collection, few)
    return inventory, collection


def test_few_tokens_are_filled_up_with_the_average_expert():
    inventory, collection = mixture(4)
    assert collection.few == {"e.1.up": 2, "e.1.gate": 2, "e.2.up": 0, "e.2.gate": 0}
    enough, some, none = (collection.stats(f"e.{expert}.gate") for expert in range(3))
    assert (enough.tokens, some.tokens, none.tokens) == (6, 4, 4)
    total = torch.tensor([6 + 9 + 25, 24 + 16], dtype=torch.float64)  # of all 8 tokens that met an expert
    torch.testing.assert_close(enough.sq_sum, torch.tensor([6.0, 24.0], dtype=torch.float64))
    torch.testing.assert_close(some.sq_sum, torch.tensor([34.0, 16.0], dtype=torch.float64) + total * 2 / 8)
    torch.testing.assert_close(none.sq_sum, total * 4 / 8)
    torch.testing.assert_close(none.gram, torch.tensor([[40.0, 0.0], [0.0, 40.0]]) / 2)
    assert none.max_abs.tolist() == [5.0, 4.0]
    assert collection.owner["e.2.gate"] == "e.2.up"  # as in the other experts
    text = warning(collection.few, inventory, 4)
    assert text is not None
    assert text.startswith("4 of 6 weights of experts met fewer than 4 calibration tokens (the fewest: e.2.gate, 0)")


def test_experts_that_share_an_input_in_part_are_filled_up_with_all_of_them():
    inventory, collection = mixture(0)
    collection.separate("e.1.gate")
    fill_experts(inventory, collection, 4)
    assert collection.few == {"e.1.up": 2, "e.1.gate": 2, "e.2.up": 0, "e.2.gate": 0}
    for expert in range(3):
        up, gate = (collection.stats(f"e.{expert}.{name}") for name in ("up", "gate"))
        torch.testing.assert_close(gate.sq_sum, up.sq_sum)
        assert gate.tokens == up.tokens


def test_no_more_tokens_are_asked_for_than_there_are():
    inventory, collection = mixture(1000)
    assert collection.stats("e.0.up").tokens == 8
    assert collection.few["e.0.up"] == 6
    assert warning({}, inventory, 4) is None


def test_nothing_changes_where_all_met_enough():
    _, collection = mixture(0)
    assert collection.few == {}
    assert "e.2.up" not in collection.owner or collection.stats("e.2.up").tokens == 0


def test_a_whole_mixture_without_a_token_is_an_error():
    inventory, collection = mixture(4)
    collection.owner = {"a": "a"}
    collection.accumulators = {"a": sums([[1.0, 1.0]])}
    fill_experts(inventory, collection, 4)
    with pytest.raises(ModelStructureError, match=r"e\.0\.up and 5 more of 7 layers: got no token"):
        check_reached(inventory, collection.owner)


def test_pruned_propagation_fills_up_too():
    model = families.build("mixtral")
    inventory = take_inventory(model)
    raw = Collection()
    for _ in collect(model, inventory, WINDOWS, raw, stats=tiny.WITH_GRAM, batch_size=2):
        pass
    measured = BlockReplay(model, inventory, WINDOWS, 2).measure(0, stats=tiny.WITH_GRAM, min_expert_tokens=60)
    few = {name: n for name, n in ((n, s.tokens) for n, s in raw.accumulators.items()) if ".0.mlp" in name and n < 60}
    assert measured.few == few != {}
    name = min(few)
    assert measured.stats(name).tokens == pytest.approx(60, abs=1)


def test_an_expert_that_no_token_met_is_pruned_block_after_block():
    model = families.build("deepseek_v4")  # whose table sends every token to the same experts
    layers = zpruner.prune_sequentially(model, WINDOWS, method="sparsegpt", sparsity=0.5)
    inventory = take_inventory(model)
    met = BlockReplay(model, inventory, WINDOWS, 4).measure(0, stats=CHANNEL_SUMS, min_expert_tokens=10)
    assert met.few["model.layers.0.mlp.experts.gate_up_proj.1"] == 0
    assert {layer.sparsity for layer in layers} == {0.5}


@pytest.mark.parametrize("method", ["wanda", {"score": "sparsegpt", "correct": {}, "update": "obs"}])
def test_experts_are_pruned_block_after_block(method):
    model = families.build("qwen3_moe")
    done = zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity="2:4", batch_size=2)
    assert {layer.sparsity for layer in done} == {0.5}
    assert sum(".experts." in layer.name for layer in done) == 2 * 2 * 4
    assert torch.isfinite(torch.tensor(zpruner.perplexity(model, WINDOWS)))
