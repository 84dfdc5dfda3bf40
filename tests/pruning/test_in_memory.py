import copy
import json
from pathlib import Path

import pytest
import tiny
import torch

import zpruner
from zpruner.artifacts.store import ArtifactReader
from zpruner.checkpoint import Checkpoint
from zpruner.errors import (
    InvalidPatternError,
    InvalidSettingError,
    MissingStatisticError,
    NonFiniteError,
    ShapeMismatchError,
    TextTooShortError,
    UnknownNameError,
)
from zpruner.model import get_weight
from zpruner.text import read_windows
from zpruner.types import CHANNEL_SUMS

WINDOWS = torch.randint(0, tiny.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def build(family="llama", stats=CHANNEL_SUMS, **changes):
    model = tiny.build(family)
    return model, zpruner.calibrate(model, WINDOWS, stats=stats, **changes)


def state(model):
    return copy.deepcopy(model.state_dict())


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("sparsity", [0.3, "2:4"])
def test_every_layer_loses_what_was_asked_and_nothing_else_changes(family, sparsity):
    model, calibration = build(family)
    before = state(model)
    layers = zpruner.prune(model, calibration, method="wanda", sparsity=sparsity)
    assert [layer.name for layer in layers] == [layer.name for layer in calibration.inventory.layers]
    tensors = {layer.tensor: layer for layer in calibration.inventory.layers}
    kept = {layer.name: layer.mask.keep for layer in layers}
    for name, value in model.state_dict().items():
        layer = tensors.get(name)
        if layer is None:
            assert torch.equal(value, before[name])
            continue
        old, new, keep = layer.view(before[name]), layer.view(value), kept[layer.name]
        assert torch.equal(new, torch.where(keep, old, 0))
        if sparsity == 0.3:
            assert (~keep).sum(1).unique().tolist() == [int(layer.in_features * 0.3)]
        else:
            assert keep.reshape(layer.out_features, -1, 4).sum(2).unique().tolist() == [2]
    for layer in layers:
        assert layer.sparsity == pytest.approx(1 - float(layer.mask.keep.double().mean()))
        assert 0 < layer.layer_error < 1


def test_stored_transposed_weights_lose_n_of_m_along_their_inputs():
    model, calibration = build("gpt2")
    zpruner.prune(model, calibration, method="wanda", sparsity="1:4")
    stored = model.transformer.h[1].mlp.c_fc.weight  # (in, out)
    assert stored.shape == (32, 128)
    assert (stored != 0).reshape(8, 4, 128).sum(1).unique().tolist() == [1]
    assert (stored != 0).reshape(32, 32, 4).sum(2).unique().numel() > 1


def test_the_scores_are_those_of_the_layers_own_input():
    model, calibration = build()
    W = model.model.layers[1].mlp.down_proj.weight.detach().clone()
    (layer,) = [
        x for x in zpruner.prune(model, calibration, method="wanda") if x.name == "model.layers.1.mlp.down_proj"
    ]
    score = W.double().abs() * calibration.stats(layer.name).sq_sum.sqrt()
    assert torch.equal(layer.mask.keep, score > score.sort(dim=1).values[:, 23:24])


def test_layer_errors_are_over_the_calibration_inputs():
    model, calibration = build(stats=tiny.WITH_GRAM)
    dense = {layer.name: get_weight(model, layer).clone().double() for layer in calibration.inventory.layers}
    for method in ("magnitude", {"score": "wanda", "update": "least_squares"}):
        pruned = copy.deepcopy(model)
        for layer, found in zip(
            calibration.inventory.layers, zpruner.prune(pruned, calibration, method=method), strict=True
        ):
            G, W = calibration.stats(layer.name).gram.double(), dense[layer.name]
            D = W - get_weight(pruned, layer).double()
            assert found.layer_error == pytest.approx(
                float(((D @ G) * D).sum() / ((W @ G) * W).sum()), rel=1e-3, abs=1e-6
            )


def test_an_update_loses_less_with_the_same_mask():
    model, calibration = build(stats=tiny.WITH_GRAM)
    plain = zpruner.prune(copy.deepcopy(model), calibration, method="wanda", sparsity="2:4")
    updated = zpruner.prune(model, calibration, method={"score": "wanda", "update": "least_squares"}, sparsity="2:4")
    for one, two in zip(plain, updated, strict=True):
        assert torch.equal(one.mask.keep, two.mask.keep)
        assert two.layer_error <= one.layer_error * (1 + 1e-6)


def test_ignored_layers_stay_dense():
    model, calibration = build(ignore=["*.0.*", "*.v_proj"])
    before = state(model)
    names = {layer.name for layer in zpruner.prune(model, calibration)}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name.removesuffix(".weight") not in names)
    assert not any(".0." in name or "v_proj" in name for name in names)


def test_half_precision_weights_keep_their_dtype():
    model = tiny.build("llama").bfloat16()
    before = state(model)
    zpruner.prune(model, zpruner.calibrate(model, WINDOWS))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    old = before["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(weight, torch.where(weight != 0, old, 0))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sparsity": "3:5"}, InvalidPatternError, r"layer model\.layers\.0\.self_attn\.q_proj: got 32 inputs"),
        ({"sparsity": "8:48"}, InvalidPatternError, r"layer model\.layers\.0\.self_attn\.q_proj: got 32 inputs"),
        ({"sparsity": 1.0}, InvalidPatternError, "got 1.0"),
        ({"sparsity": "4:2"}, InvalidPatternError, "'4:2'"),
        ({"method": "wandaa"}, (UnknownNameError, InvalidSettingError), "Did you mean 'wanda'"),
        ({"method": {"score": "wanda", "grup": "row"}}, InvalidSettingError, "Did you mean 'group'"),
        ({"method": {"score": "wanda", "update": "obs"}}, MissingStatisticError, "q_proj: got statistics without gram"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(settings, error, message):
    model, calibration = build()
    before = state(model)
    with pytest.raises(error, match=message):
        zpruner.prune(model, calibration, **settings)
    assert unchanged(model, before)


def test_a_weight_that_is_not_finite_leaves_the_others_as_they_were():
    model, calibration = build()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 3] = torch.inf
    before = state(model)
    with pytest.raises(NonFiniteError, match=r"weight of layer model\.layers\.2\.mlp\.down_proj"):
        zpruner.prune(model, calibration)
    assert unchanged(model, before)


def test_another_model_than_the_calibrated():
    _, calibration = build()
    other = tiny.llama(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64)
    before = state(other)
    with pytest.raises(ShapeMismatchError, match="q_proj"):
        zpruner.prune(other, calibration)
    assert unchanged(other, before)


def test_the_five_lines_of_the_readme(tmp_path):
    tiny.make_sources(tmp_path)
    model, tokenizer = zpruner.load(tmp_path / "source" / "model")
    text = str(tmp_path / "source" / "text.txt")
    windows = zpruner.load_windows(text, model, tokenizer, nsamples=4, seqlen=32, downloads=tmp_path)
    assert (windows.shape, windows.dtype) == ((4, 32), torch.int32)
    calibration = zpruner.calibrate(model, windows)
    dense = zpruner.perplexity(model, windows)
    layers = zpruner.prune(model, calibration, method="zpruner", sparsity=0.5)
    assert sum(layer.sparsity for layer in layers) / len(layers) == pytest.approx(0.5, abs=0.01)
    assert zpruner.perplexity(model, windows) != dense
    with pytest.raises(TextTooShortError, match=r"text\.txt"):
        zpruner.load_windows(text, model, tokenizer, nsamples=4000, seqlen=32, downloads=tmp_path)


@pytest.mark.xdist_group("finished_project")
@pytest.mark.parametrize("label", ["wanda", "zpruner"])
@pytest.mark.parametrize("sparsity", ["s50", "s24"])
def test_in_memory_and_by_stages_the_result_is_the_same(finished_project: Path, label, sparsity):
    data = finished_project / "data"
    params = tiny.read_params(finished_project)
    model, _ = zpruner.load(data / "models" / "dense")
    windows, _ = read_windows(data / "calibration" / "tokens.arrow")
    calibration = zpruner.calibrate(
        model, windows, stats=tiny.WITH_GRAM, batch_size=params["calibration"]["batch_size"]
    )
    found = zpruner.prune(model, calibration, method=params["methods"][label], sparsity=params["sparsities"][sparsity])
    masks = ArtifactReader(data / "masks" / label / sparsity, "masks")
    pruned = Checkpoint(data / "pruned" / label / sparsity)
    evaluation = {e["layer"]: e for e in _details(data / "evaluation" / label / f"{sparsity}.layers.json")["layers"]}
    for layer, result in zip(calibration.inventory.layers, found, strict=True):
        assert torch.equal(masks.read(layer.name)["keep"], result.mask.keep)
        assert torch.equal(pruned.read_weight(layer), get_weight(model, layer))
        assert evaluation[layer.name]["sparsity"] == pytest.approx(result.sparsity)
        assert evaluation[layer.name]["layer_error"] == pytest.approx(result.layer_error, rel=1e-5)
    for name in pruned.names():
        assert torch.equal(pruned.read(name), model.get_parameter(name))
    text, _ = read_windows(data / "evaluation" / "tokens.arrow")
    metrics = _details(data / "evaluation" / label / f"{sparsity}.json")
    assert metrics["perplexity"] == pytest.approx(zpruner.perplexity(model, text, 2), rel=1e-6)


def _details(path):
    return json.loads(path.read_text(encoding="utf-8"))
