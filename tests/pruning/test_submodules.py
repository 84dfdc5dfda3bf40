"""Sequential pruning that measures every sub-module of a block with those before it pruned."""

import families
import more_families
import pytest
import tiny
import torch

import zpruner
from zpruner.calibration.order import submodules
from zpruner.model import PrunableLayer, get_weight, set_weight, take_inventory
from zpruner.pruning.compose import compose
from zpruner.pruning.sequential import SolvedLayer, layer_patterns, prune_blocks
from zpruner.settings.params import MethodSettings
from zpruner.types import SparsityPattern

WINDOWS = torch.randint(3, tiny.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
HALF = SparsityPattern(ratio=0.5)
CORRECTED = {"score": "sparsegpt", "update": "obs", "correct": {"share": 0.4}, "measure": "submodule"}


def solved(model, method, windows=WINDOWS, finished=None, stop=None):
    """Prune `model`; return every layer as it is solved, until `stop` of them are."""
    inventory, found = take_inventory(model), {}
    composition = compose(MethodSettings(**method))

    class StopError(Exception):
        pass

    def note(layer: SolvedLayer) -> None:
        found[layer.mask.layer] = layer
        if len(found) == stop:
            raise StopError

    patterns = layer_patterns(composition, HALF, inventory, lambda _: pytest.fail("no allocation"))
    try:
        for _ in prune_blocks(
            model, inventory, windows, composition, patterns, batch_size=2, solved=note, finished=finished
        ):
            pass
    except StopError:
        pass
    return found


def layer(name, pool=None):
    return PrunableLayer(name, f"{name}.weight", 0, 3, 2, False, pool=pool)


def names(parts):
    return [[layer.name for layer in part.layers] for part in parts]


def test_layers_that_read_one_input_belong_together_in_the_order_of_the_calls():
    layers = [layer(name) for name in ("down", "gate", "k", "o", "q", "up")]
    reads = [("q", 1), ("k", 1), ("o", 2), ("up", 3), ("gate", 3), ("down", 4)]
    found = submodules(layers, reads)
    assert names(found) == [["k", "q"], ["o"], ["gate", "up"], ["down"]]
    assert [part.reads for part in found][2] == {"up": 1, "gate": 1}


def test_experts_of_a_mixture_wait_for_each_other():
    layers = [layer(f"e.{expert}.{kind}", f"e.*.{kind}") for expert in range(3) for kind in ("up", "gate", "down")]
    # Expert 2 meets no token of this batch; expert 1 comes first.
    reads = [(f"e.{expert}.{kind}", (expert, kind == "down")) for expert in (1, 0) for kind in ("gate", "up", "down")]
    found = submodules([layer("o"), *layers], [("o", "x"), *reads])
    assert [len(part.layers) for part in found] == [1, 6, 3]
    assert [part.reads is None for part in found] == [False, True, True]


def test_statistics_are_those_of_the_model_with_what_comes_before_pruned():
    found = solved(tiny.build("llama"), CORRECTED)
    model, dense = tiny.build("llama"), tiny.build("llama")
    layers = {entry.name: entry for entry in take_inventory(model).layers}
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    waits = {"o_proj": order[:3], "gate_proj": order[:4], "up_proj": order[:4], "down_proj": order[:6]}
    for block in range(3):
        for kind in order:
            name = next(name for name in layers if f".{block}." in name and name.endswith(kind))
            partly = tiny.build("llama")
            for other, entry in layers.items():
                number, part = int(other.split(".")[2]), other.rpartition(".")[2]
                if number < block or (number == block and part in waits.get(kind, ())):
                    set_weight(partly, entry, found[other].weight)
            inputs, unpruned = (
                torch.cat([tiny_input(m, name, batch) for batch in WINDOWS.split(2)]).double() for m in (partly, dense)
            )
            stats = found[name].stats
            for value, expected in ((stats.gram, inputs.T @ inputs), (stats.cross, unpruned.T @ inputs)):
                torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def tiny_input(model, name, batch):
    kept = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: kept.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=batch.long(), use_cache=False)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_other_masks_than_block_by_block_and_the_first_sub_module_the_same(family):
    method = {**CORRECTED, "correct": None}
    parts = solved(tiny.build(family), method)
    whole = solved(tiny.build(family), {**method, "measure": "block"})
    same = [name for name in whole if torch.equal(whole[name].weight, parts[name].weight)]
    assert same
    assert all(".0." in name for name in same)
    assert not any(name.endswith(("down_proj", "fc2", "mlp.c_proj")) for name in same)


@pytest.mark.parametrize("stop", [1, 4, 5, 9, 14])
def test_goes_on_within_a_block_to_the_same_weights(stop):
    whole = solved(tiny.build("llama"), CORRECTED)
    first = solved(tiny.build("llama"), CORRECTED, stop=stop)
    finished = {name: (lambda found=layer.parameters: found) for name, layer in first.items()}
    model = tiny.build("llama")
    rest = solved(model, CORRECTED, finished=finished)
    assert len(rest) == len(whole) - stop
    for name, layer in rest.items():
        assert torch.equal(layer.weight, whole[name].weight), name
        assert torch.equal(layer.mask.keep, whole[name].mask.keep)
    inventory = take_inventory(model)
    assert all(torch.equal(get_weight(model, entry), whole[entry.name].weight) for entry in inventory.layers)


def test_the_pass_ends_where_the_last_input_is_known(monkeypatch):
    """q, k, v and o of a block are measured without its MLP."""
    model, calls = tiny.build("llama"), []
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: calls.append(0))
    solved(model, {"score": "wanda", "measure": "submodule"})
    record = 2 + 2 + 2  # batches, the first one's replay, and few tokens twice, of which one is disturbed
    assert len(calls) <= record + 1 + 2 + 2 + 2  # order, down_proj, and the way on


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixtures_of_experts(family):
    model = families.build(family)
    method = {"score": "wanda", "group": "row", "measure": "submodule"}
    layers = zpruner.prune_sequentially(model, WINDOWS, method=method, min_expert_tokens=4)
    assert len(layers) == len(take_inventory(model).layers)
    assert all(0.4 < layer.sparsity < 0.6 for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*families.FAMILIES, *more_families.MORE])
def test_every_family(family):
    windows = WINDOWS[:2, :16] % 57
    method = {"score": "wanda", "group": "row", "measure": "submodule"}
    model = families.build(family)
    layers = zpruner.prune_sequentially(model, windows, method=method, min_expert_tokens=2)
    assert len(layers) == len(take_inventory(model).layers)
