"""How much each row of a layer counts in what its block puts out, against Jacobians written out."""

import families
import pytest
import tiny
import torch
from torch.autograd.functional import jacobian

import zpruner
from zpruner.calibration import collect_effects, effects
from zpruner.errors import ModelStructureError, NonFiniteError
from zpruner.execution import WholeRunner
from zpruner.model import get_weight, take_inventory
from zpruner.model.products import Products, memory_of

TOKENS = 3
WINDOWS = torch.randint(3, tiny.VOCABULARY, (6, TOKENS), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def collected(model, windows=WINDOWS[:1]):
    return collect_effects(WholeRunner(model), take_inventory(model), windows)


def by_jacobian(model, block, modules):
    """Return by module `sum_t ||dh / dy_tj||^2`, float64, every token's h relative to its size."""
    inventory, calls = take_inventory(model), []
    network = model.get_submodule(f"{inventory.blocks}.{block}")
    handle = network.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=WINDOWS[:1].long(), use_cache=False)
    handle.remove()
    (args, kwargs), found = calls[0], {}
    with torch.no_grad():
        plain = network(*args, **kwargs)
    plain = plain if isinstance(plain, torch.Tensor) else plain[0]
    size = plain.square().mean(-1, keepdim=True).sqrt()
    for name in modules:
        module = network.get_submodule(name)

        def moved(by, module=module):
            hook = module.register_forward_hook(lambda _module, _args, put_out: put_out + by)
            result = network(*args, **kwargs)
            hook.remove()
            return (result if isinstance(result, torch.Tensor) else result[0]) / size

        width = module(torch.zeros(1, module.weight.shape[module.__class__.__name__ != "Conv1D"]).double()).shape[-1]
        found[name] = jacobian(moved, torch.zeros(1, TOKENS, width).double()).square().sum((0, 1, 2, 3, 4))
    return found


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("llama", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"]),
        ("gpt2", ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_projections_on_every_coordinate_add_up_to_the_jacobian(monkeypatch, family, modules):
    model = tiny.build(family).double()
    inventory = take_inventory(model)
    expected = by_jacobian(model, 1, modules)
    shape = tiny.last_hidden(model, WINDOWS[:1]).shape
    names = {name: f"{inventory.blocks}.1.{name}" for name in modules}
    total = dict.fromkeys(modules, torch.zeros(()))
    for place in range(shape.numel()):
        monkeypatch.setattr(effects, "_signs", lambda shape, _, at=place: torch.eye(shape.numel())[at].view(shape))
        found = collected(model)
        total = {name: total[name] + found[full].double() for name, full in names.items()}
    for name in modules:
        torch.testing.assert_close(total[name], expected[name], rtol=1e-4, atol=0.0)
    assert float(total[modules[0]].max() / total[modules[0]].min()) > 3  # rows that do differ


def test_random_signs_estimate_it(monkeypatch):
    model = tiny.build("llama").double()
    expected = by_jacobian(model, 1, ["mlp.up_proj"])["mlp.up_proj"]
    signs, runs = effects._signs, 100
    total = torch.zeros_like(expected)
    for run in range(runs):
        monkeypatch.setattr(effects, "_signs", lambda shape, seed, run=run: signs(shape, seed + 1000 * run))
        total += collected(model)["model.layers.1.mlp.up_proj"]
    assert float(((total / runs) / expected).log().abs().max()) < 0.7
    assert float((total.sum() / runs) / expected.sum()) == pytest.approx(1.0, rel=0.1)
    assert set(signs(torch.Size([64]), 0).tolist()) == {-1.0, 1.0}


def test_the_model_is_left_as_it_was_and_the_first_windows_are_read():
    model = tiny.build("llama")
    inventory, before = take_inventory(model), {name: value.clone() for name, value in model.state_dict().items()}
    shown = []
    hook = model.model.layers[2].register_forward_hook(lambda _, args, out: shown.append((args[0], out)))
    found = collected(model, WINDOWS)
    hook.remove()
    assert len(shown) == effects.EFFECT_WINDOWS
    assert not any(value.requires_grad for call in shown for value in call)
    with torch.no_grad():
        expected = [model.model(input_ids=w[None].long(), output_hidden_states=True).hidden_states[2] for w in WINDOWS]
    assert all(torch.equal(call[0], hidden) for call, hidden in zip(shown, expected, strict=False))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any("forward" in block.__dict__ for block in model.model.layers)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        layer.name: (layer.out_features,) for layer in inventory.layers
    }
    assert all(torch.equal(value, collected(model, WINDOWS[:4])[name]) for name, value in found.items())


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "falcon", "mamba", "gpt_neox", "phi3"])
def test_every_layout_of_weights_is_followed(family):
    model = families.build(family)
    windows = torch.randint(3, families.VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    found = collected(model, windows)
    for layer in take_inventory(model).layers:
        assert layer.pool is not None or bool((found[layer.name] > 0).all()), layer.name


def test_experts_count_by_the_tokens_that_are_routed_to_them():
    model = families.build("mixtral")
    windows = torch.randint(3, families.VOCABULARY, (1, 8), generator=torch.Generator().manual_seed(1))
    met = zpruner.calibrate(model, windows, min_expert_tokens=0).collection
    found = collected(model, windows)
    for layer in take_inventory(model).layers:
        if layer.pool is not None:
            assert bool(found[layer.name].any()) == (met.stats(layer.name).tokens > 0), layer.name


@pytest.mark.parametrize("upright", [False, True])
def test_slopes_of_products_of_either_order(upright):
    weight, inputs = torch.randn(3, 5), torch.randn(4, 5, requires_grad=True)
    seen = []
    with Products([memory_of(weight)], lambda *_: None, slope=lambda *found: seen.append(found)):
        result = (weight @ inputs.T).T if upright else inputs @ weight.T
    slope = torch.randn(4, 3)
    torch.autograd.grad(result, inputs, slope)
    assert torch.equal(seen[0][0], weight)
    assert torch.equal(seen[0][1], slope)


def test_slopes_of_a_stack_are_told_apart():
    stack, inputs = torch.randn(2, 3, 5), torch.randn(2, 4, 5, requires_grad=True)
    seen = []
    with Products([memory_of(stack)], lambda *_: None, slope=lambda *found: seen.append(found)):
        result = torch.bmm(inputs, stack.mT)
    slope = torch.randn(2, 4, 3)
    torch.autograd.grad(result, inputs, slope)
    assert [found[0].data_ptr() for found in seen] == [matrix.data_ptr() for matrix in stack]
    assert all(torch.equal(found[1], part) for found, part in zip(seen, slope, strict=True))


def test_a_block_that_gradients_do_not_pass_is_named(monkeypatch):
    model = tiny.build("llama")
    inner = model.model.layers[1].mlp.forward
    monkeypatch.setattr(model.model.layers[1], "forward", lambda hidden, **_: inner(hidden.detach()).detach())
    with pytest.raises(ModelStructureError, match=r"model\.layers\.1: .*gradients do not pass.*effect"):
        collected(model)
    assert "forward" not in model.model.layers[0].__dict__


def test_nan_names_the_layer():
    model = tiny.build("llama")
    layer = take_inventory(model).layers[-1]
    with torch.no_grad():
        get_weight(model, layer)[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"effect of layer model\.layers\.2"):
        collected(model)


def test_calibration_has_it_for_methods_that_ask():
    model = tiny.build("llama")
    with_it = zpruner.calibrate(model, WINDOWS, for_methods="best")
    name = with_it.inventory.layers[0].name
    assert torch.equal(with_it.stats(name).effect, collected(model, WINDOWS)[name])
    assert zpruner.calibrate(model, WINDOWS, for_methods="wanda").stats(name).effect is None
