"""Models read block by block: the same bits as whole ones, one unit of weights in memory at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import families
import pytest
import tiny
import torch
from streams import WINDOWS, forwards, save
from torch import Tensor, nn

import zpruner
from zpruner.calibration import BlockReplay, Collection, collect_by_block
from zpruner.checkpoint import Checkpoint
from zpruner.errors import ModelStructureError, SourceError
from zpruner.evaluate import Predictor, batch_losses
from zpruner.execution import Runner, Skeleton, Spill, StreamedRunner, WholeRunner
from zpruner.model import get_weight, load_model, open_checkpoint, set_weight, take_inventory
from zpruner.model.stored import Facts


class Counting(StreamedRunner):
    """Notes every unit that is brought, and checks that nothing else has memory but what always stays.

    What comes next is read ahead.
    """

    def __init__(self, skeleton: Skeleton, spill: Spill) -> None:
        self.brought: list[str] = []
        super().__init__(skeleton, None, spill, small=0, room=1 << 30)
        self.always = tiny.in_memory(skeleton.model)

    def _bring(self, unit: str) -> None:
        super()._bring(unit)
        self.brought.append(unit)
        tied = {other for name in self.units[unit] for other in self.skeleton.tied[name]}
        assert tiny.in_memory(self.model) - self.always == tied - self.always, unit


def streamed(checkpoint: Checkpoint, spill: Spill | None = None) -> Counting:
    opened = open_checkpoint(checkpoint.folder, checkpoint.manifest["dtype"], checkpoint)
    return Counting(Skeleton(opened, torch.device("cpu")), spill or Spill())


def losses(runner: Runner) -> list[list[float]]:
    batches = WINDOWS.split(2)
    with Predictor(runner) as predictor:
        return list(predictor.run(batches, lambda index, logits: batch_losses(logits, batches[index])))


UNUSUAL = ("llama4_text", "xlstm", "zamba")
"""Code that follows an absent weight's device; that does not run in bfloat16; blocks that share weights."""


@pytest.mark.parametrize(
    "family",
    [
        *(family for family in families.FAMILIES if family not in UNUSUAL),
        *(pytest.param(family, marks=pytest.mark.slow) for family in families.OTHERS if family not in UNUSUAL),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_family_in_parts_is_the_whole_model(family: str, tmp_path: Path) -> None:
    checkpoint = save(families.build(family).bfloat16(), tmp_path)
    model = load_model(tmp_path, device="cpu")
    spill = Spill(tmp_path / "hidden", limit=4000)
    runner = streamed(checkpoint, spill)
    for name, buffer in model.named_buffers():
        if name not in runner.skeleton.stored:
            assert torch.equal(buffer, runner.model.get_buffer(name)), name
    expected = list(WholeRunner(model).run(forwards(model)))
    found = list(runner.run(forwards(runner.model)))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert sorted(runner.brought) == sorted(runner.units)  # each once, for all batches
    assert not list((tmp_path / "hidden").iterdir())  # a folder that is made when it is written to
    runner.release()
    assert tiny.in_memory(runner.model) == runner.always

    inventory = take_inventory(runner.model)
    assert inventory == take_inventory(model)
    sums = zpruner.calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=2, min_expert_tokens=0)
    seen: list[int] = []

    def done(block: int, collection: Collection) -> None:
        seen.append(block)
        for layer in (layer for layer in inventory.layers if layer.block == block):
            owner = sums.collection.owner.get(layer.name)
            if owner is None or sums.collection.accumulators[owner].tokens == 0:  # an expert that no token met
                assert layer.name not in collection.owner
                continue
            assert collection.owner[layer.name] == sums.collection.owner[layer.name]
            state = collection.accumulators[collection.owner[layer.name]].state()
            same = sums.collection.accumulators[collection.owner[layer.name]].state()
            assert all(torch.equal(state[key], same[key]) for key in same), layer.name

    collect_by_block(runner, inventory, WINDOWS, done, stats=tiny.WITH_GRAM, batch_size=2)
    assert seen == list(range(inventory.n_blocks))
    assert losses(runner) == losses(WholeRunner(model))


def test_code_that_follows_an_absent_weights_device_is_refused(tmp_path: Path) -> None:
    runner = streamed(save(families.build("llama4_text"), tmp_path))  # ids.to(embedding.weight.device)
    with pytest.raises(ModelStructureError, match=r"embed_tokens: got an input without values.*streaming to never"):
        list(runner.run(forwards(runner.model)))


@pytest.mark.parametrize("family", ["llama", "mamba", "gpt2", "falcon_new", "mixtral"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_replaying_in_parts_is_replaying_the_whole_model(family: str, tmp_path: Path) -> None:
    checkpoint = save(families.build(family), tmp_path)
    model, runner = load_model(tmp_path, device="cpu"), streamed(checkpoint, Spill(tmp_path / "hidden", limit=4000))
    inventory = take_inventory(model)
    whole = BlockReplay(model, inventory, WINDOWS, 2)
    parts = BlockReplay(runner.model, inventory, WINDOWS, 2, runner=runner)
    for block in range(inventory.n_blocks):
        expected = whole.measure(block, stats=tiny.WITH_GRAM)
        with parts.holding(block):
            found = parts.measure(block, stats=tiny.WITH_GRAM)
            for name, sums in expected.accumulators.items():
                state = found.accumulators[name].state()
                assert all(torch.equal(value, state[key]) for key, value in sums.state().items()), name
            for layer in (layer for layer in inventory.layers if layer.block == block):
                set_weight(model, layer, get_weight(model, layer) * 0.5)
                set_weight(runner.model, layer, get_weight(runner.model, layer) * 0.5)
            parts.advance(block)
        whole.advance(block)
    for index, hidden in enumerate(parts.hidden):
        runner.bring_back(index, hidden)
        assert torch.equal(hidden, whole.hidden[index])


def test_weights_are_changed_whenever_they_are_read(tmp_path: Path) -> None:
    checkpoint = save(tiny.build("llama"), tmp_path)
    model, runner = WholeRunner(load_model(tmp_path, device="cpu")), streamed(checkpoint)
    layers = take_inventory(model.model).layers

    def halve(found: Runner, block: int) -> None:
        for layer in layers:
            if layer.block == block:
                set_weight(found.model, layer, get_weight(found.model, layer) * 0.5)

    before = losses(runner)
    for found in (model, runner):
        found.change(3, partial(halve, found))
    assert losses(runner) == losses(runner) == losses(model) != before
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(runner.weights(layers), model.weights(layers), strict=True))


def test_an_error_in_one_forward_ends_all(tmp_path: Path) -> None:
    runner = streamed(save(tiny.build("llama"), tmp_path))
    ended: list[int] = []

    def call(index: int) -> None:
        try:
            runner.model(input_ids=WINDOWS[:1].long())
            if index == 1:
                raise ValueError("one of them")
        finally:
            ended.append(index)

    with pytest.raises(ValueError, match="one of them"):
        list(runner.run([partial(call, index) for index in range(3)]))
    assert sorted(ended) == [0, 1, 2]


def test_what_needs_weights_between_two_blocks_still_runs(tmp_path: Path) -> None:
    """Nothing is assumed about what happens between blocks: here every block's input is doubled."""
    checkpoint = save(tiny.build("llama"), tmp_path)
    model, runner = load_model(tmp_path, device="cpu"), streamed(checkpoint)
    for found in (model, runner.model):
        block = found.get_submodule("model.layers.2")
        block.register_forward_pre_hook(lambda _module, args: (args[0] * 2, *args[1:]))
    expected = list(WholeRunner(model).run(forwards(model)))
    assert all(torch.equal(a, b) for a, b in zip(expected, runner.run(forwards(runner.model)), strict=True))


def test_a_head_that_cannot_be_run_apart(tmp_path: Path) -> None:
    checkpoint = save(tiny.build("llama"), tmp_path)
    model, runner = load_model(tmp_path, device="cpu"), streamed(checkpoint)

    def scaled(_module: nn.Module, _args: object, kwargs: dict[str, Tensor], result: dict[str, Tensor]) -> None:
        result["logits"] *= 1 + kwargs["input_ids"].float().mean()  # what a head knows nothing of

    for found in (model, runner.model):
        found.register_forward_hook(scaled, with_kwargs=True)
    whole = [float(loss) for loss in losses(WholeRunner(model))[0]]
    logits = next(WholeRunner(model).run(forwards(model)))
    expected = [float(nn.functional.cross_entropy(a[:-1], b[1:].long())) for a, b in zip(logits, WINDOWS, strict=False)]
    assert whole == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ModelStructureError, match=r"head that can be run apart.*machine\.streaming to never"):
        losses(runner)


def test_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    checkpoint = save(tiny.build("llama"), tmp_path / "good")
    names = [name for name in checkpoint.names() if name != "model.layers.1.mlp.up_proj.weight"]

    class Lacking:
        def names(self) -> list[str]:
            return names

        def facts(self, name: str) -> Facts:
            return checkpoint.facts(name)

        def read(self, name: str) -> Tensor:
            tensor = checkpoint.read(name)
            return tensor[:-1] if "layers.2.mlp.up_proj" in name else tensor

    folder, cpu = tmp_path / "good", torch.device("cpu")
    with pytest.raises(ModelStructureError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        open_checkpoint(folder, "float32", Lacking())
    names.append("model.layers.1.mlp.up_proj.weight")
    skeleton = Skeleton(open_checkpoint(folder, "float32", Lacking()), cpu)
    with pytest.raises(ModelStructureError, match=r"layers\.2\.mlp\.up_proj\.weight' of shape \(47, 32\) for \(48, 32"):
        skeleton.put(["model.layers.2.mlp.up_proj.weight"])
    with pytest.raises(SourceError, match=r"no readable config\.json"):
        open_checkpoint(tmp_path, "float32", Lacking())
