"""Sequential propagation: replay, statistics of a half-pruned model, stages that reproduce, and resuming."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

import zpruner
from stages import apply, calibrate, fetch, mask, score
from zpruner.calibrate import Activations, BlockReplay, Collection
from zpruner.composition import Composition, compose
from zpruner.errors import ModelStructureError, NonFiniteError
from zpruner.model import PrunableLayer, get_weight, load_model, set_weight, take_inventory
from zpruner.params import MethodSettings
from zpruner.sequential import SolvedLayer, prune_blocks
from zpruner.store import ArtifactReader
from zpruner.types import LayerStats, Mask, SparsityPattern
from zpruner.updates import Correction

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


def last_hidden(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """What the last decoder block puts out, by a forward pass of the whole model."""
    inventory = take_inventory(model)
    found: list[Tensor] = []
    block = model.get_submodule(f"{inventory.blocks}.{inventory.n_blocks - 1}")

    def keep(_module: object, _args: object, result: Tensor | tuple[Tensor, ...]) -> None:
        found.append(result if isinstance(result, Tensor) else result[0])

    handle = block.register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=windows.long(), use_cache=False)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_replaying_all_blocks_is_the_forward_pass(family: str) -> None:
    model = build(family)
    inventory = take_inventory(model)
    replay = BlockReplay(model, inventory, WINDOWS, batch_size=2)
    for block in range(inventory.n_blocks):
        replay.advance(block)
    expected = torch.cat([last_hidden(model, batch) for batch in WINDOWS.split(2)])
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
    assert torch.equal(last_hidden(model, WINDOWS), last_hidden(reference, WINDOWS))


def test_statistics_are_let_go_with_the_last_layer_that_reads_them() -> None:
    model = tiny.build("llama")
    inventory = take_inventory(model)
    composition = compose(MethodSettings(score="sparsegpt", update={"name": "obs"}))
    patterns = {layer.name: SparsityPattern.parse(0.5) for layer in inventory.layers}
    collections: list[Collection] = []
    alive: dict[str, set[str]] = {}

    def solved(found: SolvedLayer) -> None:
        alive[found.mask.layer] = set(collections[-1].accumulators)

    blocks = prune_blocks(
        model,
        inventory,
        WINDOWS,
        composition,
        patterns,
        batch_size=2,
        measured=collections.append,
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
    calibration = zpruner.calibrate(model, WINDOWS, gram=True)
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


METHODS = {
    "wanda": {"score": "wanda", "group": "row"},
    "best": {"score": "alps", "update": "least_squares"},
    "swapped": {"score": "wanda", "group": "row", "refine": "swaps", "update": "obs", "correct": {}},
}


@pytest.fixture(scope="module")
def sequential_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with pruned propagation, up to its scores."""
    root = tmp_path_factory.mktemp("sequential")
    tiny.make_sources(root)
    params = tiny.read_params(root)
    params["calibration"]["propagation"] = "pruned"
    params["methods"] = METHODS
    tiny.write_params(root, params)
    for what in (fetch.What.model, fetch.What.calibration):
        fetch.run(what, root=root)
    calibrate.run(root=root)
    for method in METHODS:
        score.run(method, root=root)
    return root


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("sparsity", ["s50", "s24"])
def test_stored_statistics_give_the_same_masks_and_weights_again(
    sequential_project: Path, method: str, sparsity: str
) -> None:
    root = sequential_project
    mask.run(method, sparsity, root=root)
    apply.run(method, sparsity, root=root)
    data = root / "data"
    # In memory, from the same windows.
    model = load_model(data / "models" / "dense", "auto", "cpu")
    windows = _windows(root)
    pattern = {"s50": 0.5, "s24": "2:4"}[sparsity]
    layers = zpruner.prune_sequentially(model, windows, method=METHODS[method], sparsity=pattern, batch_size=2)
    # From the stored statistics, scores and masks once more.
    stored = Activations(data / "activations" / "pruned" / method / sparsity)
    masks = ArtifactReader(data / "masks" / method / sparsity, "masks")
    dense = load_model(data / "models" / "dense", "auto", "cpu")
    written = load_model(data / "pruned" / method / sparsity, "auto", "cpu")
    composition = compose(MethodSettings(**METHODS[method]))
    parsed = zpruner.SparsityPattern.parse(pattern)
    for layer, result in zip(stored.layers, layers, strict=True):
        stats, weight = stored.stats(layer.name), get_weight(dense, layer)
        weight = composition.correct(weight, stats)
        again = composition.mask(composition.score(weight, stats, parsed), weight, stats, parsed)
        kept = masks.read(layer.name)["keep"]
        assert torch.equal(again.keep, kept), layer.name
        assert torch.equal(result.mask.keep, kept), layer.name
        assert torch.equal(get_weight(written, layer), get_weight(model, layer)), layer.name
        assert torch.equal(get_weight(written, layer), composition.apply(weight, again, stats)), layer.name
        assert (stats.cross is not None) == (method == "swapped")


def _windows(root: Path) -> Tensor:
    from zpruner.calibrate import read_windows

    return read_windows(root / "data" / "calibration" / "tokens.arrow")[0]


@pytest.fixture
def two_projects(sequential_project: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return two copies of the project before its masks; in the first they have been made."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for root in (undisturbed, killed):
        shutil.copytree(sequential_project, root)
        for name in ("masks", "activations/pruned", ".work"):
            shutil.rmtree(root / "data" / name, ignore_errors=True)
    mask.run("swapped", "s50", root=undisturbed)
    return undisturbed, killed


def goes_on(undisturbed: Path, killed: Path) -> None:
    """Interrupt a run that is about to be, run it again, and compare."""
    with pytest.raises(KeyboardInterrupt):
        mask.run("swapped", "s50", root=killed)
    assert not (killed / "data" / "masks").exists()
    assert not (killed / "data" / "activations" / "pruned").exists()
    mask.run("swapped", "s50", root=killed)
    for name in ("masks", "activations/pruned"):
        assert tiny.files_of(killed / "data" / name) == tiny.files_of(undisturbed / "data" / name)


def test_an_interrupted_run_goes_on_at_its_first_unfinished_block(
    two_projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = BlockReplay.measure
    measured: list[int] = []

    def die_at_block_2(self: BlockReplay, block: int, gram: bool, min_expert_tokens: int) -> object:
        measured.append(block)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, block, gram, min_expert_tokens)

    monkeypatch.setattr(BlockReplay, "measure", die_at_block_2)
    goes_on(*two_projects)
    assert measured == [0, 1, 2, 2]


def test_within_a_block_it_goes_on_at_the_first_unfinished_layer(
    two_projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Composition.apply
    pruned: list[str] = []

    def die_at_the_twelfth(self: Composition, weight: Tensor, keep: Mask, stats: LayerStats | None) -> Tensor:
        pruned.append(keep.layer)
        if len(pruned) == 12:
            raise KeyboardInterrupt
        return apply(self, weight, keep, stats)

    monkeypatch.setattr(Composition, "apply", die_at_the_twelfth)
    goes_on(*two_projects)
    assert len(pruned) == 22
    assert pruned[11] == pruned[12]


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


class TestCorrection:
    """Aiming at the dense model's outputs: the statistic, the algebra, and that it helps."""

    def test_cross_is_the_product_of_dense_and_pruned_inputs(self) -> None:
        model, dense, pruned = (tiny.build("llama") for _ in range(3))
        inventory = take_inventory(model)
        method = {"score": "wanda", "group": "row", "correct": {"share": 0.0}}
        layers = zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=0.7, batch_size=2)
        found = {}
        replay = BlockReplay(pruned, inventory, WINDOWS, 2, follow_dense=True)
        by_name = {layer.name: layer for layer in layers}
        for block in range(inventory.n_blocks):
            collection = replay.measure(block, gram=True)
            for layer in (entry for entry in inventory.layers if entry.block == block):
                found[layer.name] = collection.stats(layer.name).cross
                set_weight(pruned, layer, get_weight(pruned, layer) * by_name[layer.name].mask.keep)
            replay.advance(block)
        for layer in inventory.layers:  # `model` is pruned now; `dense` is not
            expected = _inputs(dense, layer.name).T @ _inputs_with_block_dense(model, dense, layer)
            assert torch.allclose(
                found[layer.name].double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
            )

    def test_a_linear_change_of_the_input_is_undone(self) -> None:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(5, 8, generator=generator)
        inputs = torch.randn(8, 400, generator=generator)
        change = torch.eye(8) + 0.3 * torch.randn(8, 8, generator=generator)
        unpruned = change @ inputs
        stats = zpruner.LayerStats("l", 400, 4, gram=inputs @ inputs.T, cross=unpruned @ inputs.T)
        whole = Correction(share=1.0, damping=1e-6).correct(weight, stats)
        assert torch.allclose(whole, weight @ change, atol=1e-3)
        half = Correction(share=0.5, damping=1e-6).correct(weight, stats)
        assert torch.allclose(half, (weight + weight @ change) / 2, atol=1e-3)

    def test_an_input_that_is_always_zero_needs_none(self) -> None:
        weight = torch.ones(2, 4)
        stats = zpruner.LayerStats("l", 8, 1, gram=torch.zeros(4, 4), cross=torch.zeros(4, 4))
        assert torch.equal(Correction().correct(weight, stats), weight)

    def test_it_brings_the_pruned_model_nearer_to_the_dense_one(self) -> None:
        base = {"score": "wanda", "group": "row", "update": "least_squares"}
        dense = last_hidden(tiny.build("llama"), WINDOWS)
        away = []
        for method in (base, {**base, "correct": {}}):
            model = tiny.build("llama")
            zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=0.6)
            away.append(float((last_hidden(model, WINDOWS) - dense).norm()))
        assert away[1] < 0.98 * away[0]


def _inputs(model: PreTrainedModel, name: str) -> Tensor:
    """What a linear layer reads in a forward pass, float64 (tokens, in)."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    with torch.no_grad():
        model(input_ids=WINDOWS.long(), use_cache=False)
    handle.remove()
    return found[0].double().reshape(-1, found[0].shape[-1])


def _inputs_with_block_dense(model: PreTrainedModel, dense: PreTrainedModel, layer: PrunableLayer) -> Tensor:
    """What a layer reads with the earlier blocks pruned and its own block dense."""
    mixed = tiny.build("llama")
    for other in take_inventory(mixed).layers:
        set_weight(mixed, other, get_weight(model if other.block < layer.block else dense, other))
    return _inputs(mixed, layer.name)
