"""Structures that go: what is chosen, the masks that say so, compensation, and the smaller model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import zpruner
from zpruner.calibration import expert_contributions
from zpruner.errors import InvalidPatternError, InvalidSettingError, UnknownNameError
from zpruner.execution import WholeRunner
from zpruner.model import get_weight, set_weight, take_inventory
from zpruner.patterns import StructuredPattern, StructureKind, parse_pattern
from zpruner.pruning.compose import compose
from zpruner.pruning.structure_plan import StructurePlan
from zpruner.pruning.structured import StructureChoice
from zpruner.settings.params import MethodSettings
from zpruner.structures import Couplings, find_couplings

WINDOWS = torch.randint(0, tiny.VOCABULARY, (6, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
PLAIN = {"score": "wanda"}
SOLVED = {
    "score": "magnitude",
    "structures": {"neurons": "obs", "groups": "flap", "blocks": "cosine"},
    "update": "least_squares",
    "correct": {},
    "measure": "submodule",
}


@pytest.fixture(scope="module")
def couplings() -> Couplings:
    """Of the tiny Llama: finding them takes a while."""
    return find_couplings(tiny.build("llama"))


@pytest.fixture(autouse=True)
def found(couplings: Couplings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpruner.pruning.smaller.find_couplings", lambda model, blocks: couplings)


def pruned(model: Any, method: Any, sparsity: str, propagation: str = "dense") -> Any:
    if propagation == "pruned":
        return zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=sparsity, batch_size=2)
    calibration = zpruner.calibrate(model, WINDOWS, for_methods=method)
    return zpruner.prune(model, calibration, method=method, sparsity=sparsity)


def test_neurons_are_ranked_by_the_summed_scores_of_what_reads_them() -> None:
    model = tiny.build("llama")
    dense = copy.deepcopy(model)
    calibration = zpruner.calibrate(model, WINDOWS)
    layers = {layer.name: layer for layer in calibration.inventory.layers}
    found = {
        each.name: each.mask.keep for each in zpruner.prune(model, calibration, method=PLAIN, sparsity="neurons:0.25")
    }
    for block in range(3):
        down, gate, up = (f"model.layers.{block}.mlp.{name}_proj" for name in ("down", "gate", "up"))
        weight, stats = get_weight(dense, layers[down]), calibration.stats(down)
        scores = (weight.abs() * stats.squared_norm().sqrt()).sum(0)
        stays = torch.zeros(48, dtype=torch.bool)
        stays[scores.topk(36).indices] = True
        assert torch.equal(found[down], stays.expand(32, 48))
        assert torch.equal(found[gate], stays[:, None].expand(48, 32))
        assert torch.equal(found[up], found[gate])
        assert found[f"model.layers.{block}.self_attn.o_proj"].all()


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
@pytest.mark.parametrize(
    ("method", "sparsity", "sizes"),
    [
        (PLAIN, "neurons:0.25 groups:1/2", (36, 2, 1, 3)),
        (PLAIN, "blocks:1/3", (48, 4, 2, 2)),
        (SOLVED, "neurons:0.3 multiple:8 groups:1/2 blocks:1/3", (32, 2, 1, 2)),
    ],
)
def test_the_smaller_model_computes_what_the_masked_one_does(
    method: Any, sparsity: str, sizes: tuple[int, ...], propagation: str
) -> None:
    model = tiny.build("llama")
    masked = copy.deepcopy(model)
    inventory = take_inventory(model)
    results = pruned(model, method, sparsity, propagation)
    config = model.config
    assert sizes == (
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.num_hidden_layers,
    )
    weights = {layer.name: get_weight(model, layer) for layer in take_inventory(model).layers}
    stays = [b for b in range(3) if any(r.mask.keep.any() for r in results if f"layers.{b}." in r.name)]
    for layer, result in zip(inventory.layers, results, strict=True):
        whole = torch.zeros(layer.shape)
        if layer.block in stays:
            small = weights[layer.name.replace(f"layers.{layer.block}.", f"layers.{stays.index(layer.block)}.")]
            whole[result.mask.keep] = small.reshape(-1)
        set_weight(masked, layer, whole)
    with torch.no_grad():
        torch.testing.assert_close(model(WINDOWS.long()).logits, masked(WINDOWS.long()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
@pytest.mark.parametrize("shrinkage", [0.0, 1.0, "auto"])
def test_compensation_never_loses_more_than_none(propagation: str, shrinkage: float | str) -> None:
    """On the tokens that a layer was pruned for: whatever the regularisation, it is where the loss begins or below."""
    update = {"name": "least_squares", "settings": {"shrinkage": shrinkage, "damping": 0.05}}
    rank = {"structures": {"neurons": "obs", "groups": "obs"}}
    with_, without = (
        pruned(tiny.build("llama"), {"score": "magnitude", **rank, **extra}, "neurons:0.5 groups:1/2", propagation)
        for extra in ({"update": update}, {"update": {"name": "least_squares", "settings": {"damping": 1e6}}})
    )
    # Of the first block all inputs are the same, and so are the masks.
    compared = [pair for pair in zip(with_, without, strict=True) if "layers.0." in pair[0].name]
    for one, other in compared:
        assert torch.equal(one.mask.keep, other.mask.keep)
        assert one.layer_error <= other.layer_error * (1 + 1e-5)
    readers = [pair for pair in compared if "down_proj" in pair[0].name or "o_proj" in pair[0].name]
    assert all(one.layer_error < 0.99 * other.layer_error for one, other in readers)


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
def test_what_stays_is_tuned_and_quantised(propagation: str) -> None:
    """With a block that goes whole; integers come last, 4 bits in groups of 32 of the weights that stay."""
    tuned = {"tune": {"epochs": 1}} if propagation == "pruned" else {}
    model = tiny.build("llama")
    results = pruned(model, {**SOLVED, **tuned, "quantize": {"bits": 4}}, "neurons:0.25 blocks:1/3", propagation)
    assert (model.config.intermediate_size, model.config.num_hidden_layers) == (36, 2)
    gone = [result for result in results if not result.mask.keep.any()]
    assert len(gone) == 7
    for layer in take_inventory(model).layers:
        for row in get_weight(model, layer):
            for group in row.split(32):
                assert len(group.unique()) <= 16, layer.name


def test_tuning_without_pruned_propagation_is_refused() -> None:
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS, for_methods=SOLVED)
    with pytest.raises(InvalidSettingError, match="tune: got dense propagation"):
        zpruner.prune(model, calibration, method={**SOLVED, "tune": {}}, sparsity="neurons:0.25")


def mixture() -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config).eval()


def test_experts_go_whole_and_their_routers_with_them() -> None:
    model = mixture()
    plan = StructurePlan.of(pattern("experts:0.5"), find_couplings(model), take_inventory(model).layers)
    weights = {layer.name: get_weight(model, layer).clone() for layer in plan.layers}
    blocks = [[layer for layer in plan.layers if layer.block == block] for block in range(2)]
    keep: dict[str, torch.Tensor] = {}
    for layers in blocks:
        keep |= StructureChoice(plan).keep(
            layers,
            compose(MethodSettings(score="magnitude")),
            lambda layer: (weights[layer.name], zpruner.LayerStats(layer.name, 0, 0)),
            lambda layer: weights[layer.name].abs(),
        )
    masks = {mask.layer: mask.keep for layers in blocks for mask in plan.masks(layers, keep)}
    for coupling in plan.couplings.of(StructureKind.EXPERTS):
        sums = [sum(float(weights[la.name].abs().sum()) for la in each) for each in plan.members(coupling)]
        best = sorted(range(4), key=lambda expert: -sums[expert])[:2]
        assert keep[coupling.name].tolist() == [expert in best for expert in range(4)]
        for expert, each in enumerate(plan.members(coupling)):
            assert len(each) == 2
            assert all(bool(masks[la.name].all()) == bool(masks[la.name].any()) == (expert in best) for la in each)
    found = plan.kept_of(lambda layer: masks[layer.name])
    assert {name: chosen.tolist() for name, chosen in found.items()} == {n: c.tolist() for n, c in keep.items()}


def test_reap_is_the_mean_norm_of_what_an_expert_adds() -> None:
    """Expert by expert and token by token, from the router's own gates."""
    model = mixture()
    path = "model.layers.1.mlp"
    layer = model.model.layers[1].mlp
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, 16)))
    with torch.no_grad():
        for batch in WINDOWS.split(2):
            model.model(input_ids=batch.long(), use_cache=False)
        handle.remove()
        sums, met = torch.zeros(4, dtype=torch.float64), torch.zeros(4)
        for x in torch.cat(seen):
            gates = torch.softmax(layer.gate.weight @ x, 0)
            chosen = gates.topk(2)
            for gate, expert in zip(chosen.values / chosen.values.sum(), chosen.indices.tolist(), strict=True):
                one, other = (layer.experts.gate_up_proj[expert] @ x).chunk(2)
                added = layer.experts.down_proj[expert] @ (torch.nn.functional.silu(one) * other)
                sums[expert] += float((gate * added).norm())
                met[expert] += 1
        found = expert_contributions(WholeRunner(model), {f"{path}.experts": 4}, WINDOWS, 2)
    torch.testing.assert_close(found[f"{path}.experts"], sums / met, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
def test_half_the_experts_is_about_half_the_model(
    propagation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixture()
    couplings = find_couplings(model)
    monkeypatch.setattr("zpruner.pruning.smaller.find_couplings", lambda model, blocks: couplings)
    inside = sum(p.numel() for p in model.model.layers.parameters())
    pruned(model, "best", "experts:0.5", propagation)
    assert model.config.num_local_experts == 2
    assert sum(p.numel() for p in model.model.layers.parameters()) < 0.62 * inside
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(WINDOWS.long()).logits, model(WINDOWS.long()).logits)


def test_a_sweep_leaves_the_model_as_it_was() -> None:
    model = tiny.build("llama")
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    rows = zpruner.sweep(
        model, WINDOWS, methods=["wanda", "best"], sparsities=[0.5, "neurons:0.25 blocks:1/3"], windows=WINDOWS
    )
    assert [row.pattern for row in rows] == ["0.5", "neurons:0.25 blocks:0.3333333333333333"] * 2
    assert rows[1].sparsity == pytest.approx(1 / 3 + 2 / 3 * 0.15)
    assert model.config.to_dict() == config
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def pattern(text: str) -> StructuredPattern:
    found = parse_pattern(text)
    assert isinstance(found, StructuredPattern)
    return found


@pytest.mark.parametrize(
    ("sparsity", "told"),
    [("experts:0.5", "experts"), ("groups:0.1", "got 2 groups"), ("neurons:0.25 multiple:64", "got 48 neurons")],
)
def test_what_the_model_lacks_is_told_before_anything_changes(sparsity: str, told: str) -> None:
    model = tiny.build("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidPatternError, match=told):
        pruned(model, PLAIN, sparsity)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_stays_dense_and_would_be_cut_is_told(couplings: Couplings) -> None:
    layers = take_inventory(tiny.build("llama"), ignore=["*.1.mlp.up_proj"]).layers
    with pytest.raises(InvalidPatternError, match=r"layer model\.layers\.1\.mlp\.up_proj: .*model\.ignore"):
        StructurePlan.of(pattern("neurons:0.25"), couplings, layers)
    StructurePlan.of(pattern("groups:0.5"), couplings, layers)


@pytest.mark.parametrize(
    ("settings", "sparsity", "told"),
    [
        ({"score": "sparsegpt"}, "neurons:0.25", r"structures: got nothing that ranks neurons.*\{neurons: obs\}"),
        ({"score": "wanda", "refine": "swaps"}, "neurons:0.25", "refine: got Swaps for the pattern neurons:0.25"),
        ({"score": "wanda", "allocate": "owl"}, "blocks:0.5", "allocate: got Owl for the pattern blocks:0.5"),
    ],
)
def test_parts_that_make_no_sense_with_structures_are_told(settings: Any, sparsity: str, told: str) -> None:
    with pytest.raises(InvalidSettingError, match=told):
        compose(MethodSettings(**settings)).check(parse_pattern(sparsity))


@pytest.mark.parametrize(
    ("structures", "error", "told"),
    [
        ({"neurons": "cosine"}, InvalidSettingError, "'cosine', which ranks blocks.*Write neurons: obs"),
        ({"neurons": "alps"}, InvalidSettingError, "'alps', which chooses single weights"),
        ({"neurons": "ob"}, UnknownNameError, "structures.neurons: got 'ob'.*Did you mean 'obs'"),
        ({"neurons": {"name": "obs", "settings": {"round": 3}}}, InvalidSettingError, "unknown key 'round'"),
    ],
)
def test_rankings_that_cannot_be_are_told(structures: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        compose(MethodSettings(score="wanda", structures=structures))


def test_a_solver_beside_a_ranking_goes_with_any_pattern() -> None:
    found = compose(MethodSettings(score="alps", structures={"neurons": "obs"}))
    for text in ("0.5", "2:4", "neurons:0.25"):
        found.check(parse_pattern(text))
    with pytest.raises(InvalidSettingError, match="ranks groups"):
        found.check(parse_pattern("neurons:0.25 groups:0.5"))
