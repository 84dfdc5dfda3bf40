import copy

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

import zpruner
from zpruner.artifacts.work import Work
from zpruner.calibration import GradientSnapshots, GradientSums, calibrate, collect_gradients, gradients, gradients_of
from zpruner.errors import MissingStatisticError, ModelStructureError, NonFiniteError
from zpruner.model import take_inventory

WINDOWS = torch.randint(0, tiny.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def reference(family):
    """Return by parameter the sum over windows of the squared gradient, float64, by autograd on the plain model."""
    model, sums = tiny.build(family).double(), {}
    for window in WINDOWS.long():
        model.zero_grad()
        cross_entropy(model(window[None]).logits[0, :-1], window[1:]).backward()
        for name, parameter in model.named_parameters():
            sums[name] = sums.get(name, 0) + parameter.grad.square()
    return sums


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_squares_are_summed_over_windows_one_backward_pass_each(family):
    model, expected = tiny.build(family), reference(family)
    model.get_parameter("lm_head.weight").requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    calibration = calibrate(model, WINDOWS, stats=tiny.WITH_GRADIENTS, batch_size=2)
    for layer in calibration.inventory.layers:
        got = calibration.stats(layer.name).grad_sq
        assert (got.shape, got.dtype) == ((layer.out_features, layer.in_features), torch.float32)
        torch.testing.assert_close(got.double(), layer.view(expected[layer.tensor]), rtol=1e-3, atol=1e-14)
        # Neither one pass over all windows together, nor the sum over windows squared.
        assert not torch.allclose(got.double() / 5, layer.view(expected[layer.tensor]), rtol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in model.get_submodule(f"{calibration.inventory.blocks}.0").__dict__


def test_gradients_are_freed_one_by_one_and_blocks_recomputed(monkeypatch):
    model = tiny.build("llama")
    inventory = take_inventory(model)
    alive: list[int] = []
    runs: list[object] = []
    add = torch.Tensor.square_

    def watched(self):
        alive.append(sum(p.grad is not None for p in model.parameters()))
        return add(self)

    monkeypatch.setattr(torch.Tensor, "square_", watched)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    inner = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append("mlp"))
    gradients_of(model, inventory, WINDOWS[:2])
    hook.remove()
    inner.remove()
    assert alive == [1] * (2 * len(inventory.layers))  # never two gradients at a time
    assert runs == [True, "mlp", "mlp"] * 2  # the block is called once and its inside run twice, per window


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_snapshot_goes_on_to_identical_sums(tmp_path, dtype):
    model = tiny.build("llama").to(dtype)
    inventory, whole = take_inventory(model), GradientSums()
    list(collect_gradients(model, inventory, WINDOWS, whole))
    with Work(tmp_path, "gradients", "key") as work:
        snapshots = GradientSnapshots(work, 0.0)
        sums = snapshots.restore(torch.device("cpu"))
        for windows in collect_gradients(model, inventory, WINDOWS, sums):
            snapshots.save(sums)
            if windows == 3:
                break
        assert [p.name for p in work.scratch.iterdir()] == ["snapshot-000003-0.safetensors"]
    with Work(tmp_path, "gradients", "key") as work:
        restored = GradientSnapshots(work, 0.0).restore(torch.device("cpu"))
    assert restored.windows == 3
    assert list(collect_gradients(model, inventory, WINDOWS, restored)) == [4, 5]
    for name, total in whole.sums.items():
        assert total.dtype == torch.float32
        assert torch.equal(total, restored.sums[name])


def test_the_scale_of_the_loss_keeps_small_gradients_from_underflow(monkeypatch):
    model = tiny.build("llama").half()
    inventory = take_inventory(model)
    scaled = gradients_of(model, inventory, WINDOWS[:1])
    monkeypatch.setattr(gradients, "LOSS_SCALE", 1e-5)
    plain = gradients_of(model, inventory, WINDOWS[:1])
    lost = sum(int(((scaled[name] > 0) & (plain[name] == 0)).sum()) for name in scaled)
    assert lost > 100
    name = inventory.layers[-1].name
    assert float(plain[name].sum()) == pytest.approx(float(scaled[name].sum()), rel=0.2)  # the scale is taken out


def test_nan_names_the_layer_after_the_first_window():
    model = tiny.build("llama")
    inventory, sums = take_inventory(model), GradientSums()
    model.model.layers[0].mlp.down_proj.weight.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(NonFiniteError, match=r"gradient of layer model\.layers\.0\.mlp\.down_proj: .*after 1 windows"):
        list(collect_gradients(model, inventory, WINDOWS, sums))
    assert sums.windows == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_zero_gradient_names_the_layer():
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()  # nothing before it in the branch can matter
    with pytest.raises(ModelStructureError, match=r"layers\.1\.mlp\.gate_proj: got zero for every weight over 5"):
        calibrate(model, WINDOWS, stats=tiny.WITH_GRADIENTS)


def test_pruner_zero_in_memory_uses_them():
    model, expected = tiny.build("llama"), reference("llama")
    calibration = calibrate(model, WINDOWS, stats=tiny.WITH_GRADIENTS)
    layer = calibration.inventory.layers[-1]
    weight = model.get_parameter(layer.tensor).detach().double().clone()
    pruned = {p.name: p for p in zpruner.prune(model, calibration, method="pruner_zero", sparsity=0.5)}
    g = expected[layer.tensor].sqrt()
    score = weight.square() * (g - g.min())
    keep = score > score.sort(dim=1).values[:, layer.in_features // 2 - 1 : layer.in_features // 2]
    assert (pruned[layer.name].mask.keep != keep).sum() <= 2  # float32 against float64


def test_without_gradients_the_error_says_how_to_get_them():
    model = tiny.build("llama")
    with pytest.raises(MissingStatisticError, match=r"grad_sq.*`stats`"):
        zpruner.prune(model, calibrate(model, WINDOWS), method="pruner_zero")
