import pytest
import tiny
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from zpruner.errors import InvalidSettingError, ModelStructureError
from zpruner.model import find_blocks, get_weight, set_weight, take_inventory


class Twin(LlamaForCausalLM):
    """A Llama with a second list of blocks of the same size."""

    def __init__(self, config):
        super().__init__(config)
        self.twin = nn.ModuleList(type(layer)(config, i) for i, layer in enumerate(self.model.layers))


def config(**changes):
    return tiny.llama(**changes).config


@pytest.mark.parametrize(
    ("family", "path"), [("llama", "model.layers"), ("opt", "model.decoder.layers"), ("gpt2", "transformer.h")]
)
def test_blocks_are_found_by_structure(family, path):
    model = tiny.build(family)
    assert find_blocks(model) == path
    assert find_blocks(model, path) == path


def test_blocks_are_the_heaviest_list_of_the_right_length():
    model = tiny.llama()
    model.adapters = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    model.experts = nn.ModuleList(nn.Linear(200, 200) for _ in range(7))
    assert find_blocks(model) == "model.layers"


def test_several_candidates_are_listed():
    model = Twin(config())
    with pytest.raises(
        ModelStructureError, match=r"Twin: got 2 candidates.*model\.layers \(3 entr.*twin \(3.*model\.blocks"
    ):
        find_blocks(model)
    assert find_blocks(model, "twin") == "twin"
    assert {layer.name.split(".")[0] for layer in take_inventory(model, "twin").layers} == {"twin"}


def test_a_block_may_count_as_several_layers():
    model = tiny.llama()
    model.config.num_hidden_layers = 6
    model.adapters = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    assert find_blocks(model) == "model.layers"


def test_an_encoder_decoder_is_refused():
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    with pytest.raises(ModelStructureError, match=r"T5For.*got an encoder-decoder \(t5\).*decoder-only"):
        take_inventory(T5ForConditionalGeneration(config))


def test_no_candidate():
    model = tiny.llama()
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelStructureError, match=r"0 candidates .*model\.layers \(3 entries\).*one module list of 5"):
        find_blocks(model)
    model.model.layers = nn.Identity()
    with pytest.raises(ModelStructureError, match="module lists: none"):
        find_blocks(model)


@pytest.mark.parametrize("path", ["model.layer", "layers", "model", ""])
def test_a_path_that_is_no_module_list(path):
    with pytest.raises(ModelStructureError, match=rf"model\.blocks: got '{path}'.*model\.layers"):
        find_blocks(tiny.llama(), path)


def test_inventory_of_a_llama():
    model = tiny.build("llama")
    found = take_inventory(model)
    assert (found.blocks, found.n_blocks, found.skipped) == ("model.layers", 3, ())
    shapes = {layer.kind: (layer.out_features, layer.in_features) for layer in found.layers if layer.block == 1}
    assert shapes == {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
    }
    assert [layer.block for layer in found.layers] == [0] * 7 + [1] * 7 + [2] * 7
    assert all(layer.tensor == f"{layer.name}.weight" and not layer.transposed for layer in found.layers)


def test_stored_transposed_weights_are_seen_as_out_in():
    model = tiny.build("gpt2")
    found = take_inventory(model)
    shapes = {layer.kind: (layer.out_features, layer.in_features) for layer in found.layers if layer.block == 0}
    assert shapes == {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
    layer = found.layers[0]
    stored = model.get_parameter(layer.tensor)
    assert (layer.transposed, tuple(stored.shape)) == (True, (32, 96))
    assert torch.equal(get_weight(model, layer), stored.T)
    set_weight(model, layer, torch.arange(96.0 * 32).reshape(96, 32))
    assert torch.equal(stored[:, 5], torch.arange(5 * 32.0, 6 * 32.0))


def test_every_weight_is_listed_once():
    for family in tiny.FAMILIES:
        model = tiny.build(family)
        found = take_inventory(model)
        inside = [n for n, p in model.named_parameters() if n.startswith(f"{found.blocks}.") and p.ndim >= 2]
        assert sorted(inside) == sorted([layer.tensor for layer in found.layers] + [name for name, _ in found.skipped])


def test_ignored_layers_are_skipped_with_the_reason():
    for ignore in (["*.0.mlp.*", "*.v_proj"], iter(["*.0.mlp.*", "*.v_proj"])):
        found = take_inventory(tiny.build("llama"), ignore=ignore)
        assert len(found.layers) == 21 - 3 - 3
        skipped = dict(found.skipped)
        assert skipped["model.layers.0.mlp.up_proj.weight"] == "listed under model.ignore (*.0.mlp.*)"
        assert skipped["model.layers.2.self_attn.v_proj.weight"] == "listed under model.ignore (*.v_proj)"


def test_a_pattern_that_matches_nothing():
    message = (
        "model.ignore: got .*'model.layers.1.mlp.dwn_proj', which matches no layer.*mean 'model.layers.1.mlp.down_proj'"
    )
    with pytest.raises(InvalidSettingError, match=message):
        take_inventory(tiny.build("llama"), ignore=["*.v_proj", "model.layers.1.mlp.dwn_proj"])
    with pytest.raises(InvalidSettingError) as caught:
        take_inventory(tiny.llama(num_hidden_layers=30), ignore=["lm_head"])
    assert len(str(caught.value)) < 2000


def test_nothing_left_to_prune():
    with pytest.raises(ModelStructureError, match=r"no prunable weight in model\.layers"):
        take_inventory(tiny.build("llama"), ignore=["*"])


def test_tied_weights_are_seen_once():
    model = tiny.build("llama")
    blocks = model.model.layers
    blocks[1].mlp.up_proj.weight = blocks[0].mlp.up_proj.weight
    model.model.outside = nn.Linear(32, 16, bias=False)
    blocks[2].self_attn.k_proj.weight = model.model.outside.weight
    found = take_inventory(model)
    assert dict(found.skipped) == {
        "model.layers.1.mlp.up_proj.weight": "tied to a weight listed before",
        "model.layers.2.self_attn.k_proj.weight": "tied to a weight outside the decoder blocks",
    }
    assert len(found.layers) == 19


def test_weights_that_multiply_nothing_are_skipped():
    model = tiny.build("llama")
    model.model.layers[0].table = nn.Embedding(5, 7)
    model.model.layers[0].register_parameter("free", nn.Parameter(torch.ones(2, 3)))
    assert dict(take_inventory(model).skipped) == {
        "model.layers.0.table.weight": "Embedding of shape (5, 7) is not a linear layer",
        "model.layers.0.free": "LlamaDecoderLayer of shape (2, 3) is not a linear layer",
    }


def test_meta_tensors_will_do():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config().to_dict()))
    assert take_inventory(model) == take_inventory(tiny.build("llama"))
