"""What lies in the wild, kind by kind: read as transformers reads it, or refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import families
import layouts
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from zpruner.errors import IncompleteCheckpointError, SourceError, ZprunerError, ZprunerWarning
from zpruner.execution import Skeleton, copy_checkpoint
from zpruner.model import load_model, open_checkpoint

IDS = torch.arange(3, 19).reshape(1, 16)
UP = "model.layers.0.mlp.up_proj"
ACCEPTED = ("compressed-tensors", "fp8", "mxfp8", "mxfp4", "metal", "zpruner")  # here, or with a library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families.build("llama").save_pretrained(tmp_path / "in")
    return tmp_path / "in"


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS, use_cache=False).logits
    return found


def copied(folder: Path, dtype: str = "auto") -> Path:
    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    copy_checkpoint(folder, out, dtype)
    return out


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path) -> str:
    """Return the sentence with which a copy and a load are refused."""
    said = []
    for read in (copied, load_model):
        with pytest.raises(ZprunerError) as error:
            read(folder)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    return said[0]


def to_fp8(folder: Path, scale: str = "_scale_inv") -> None:
    """Store the projections and experts of a model as fp8 with a scale for every quarter of a matrix."""
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        parts = ("layers" in name, weight.ndim == 2, "norm" not in name, "gate.weight" not in name)
        if not all(parts):
            tensors[name] = weight
            continue
        rows, columns = (size // 2 for size in weight.shape)
        blocks = weight.float().reshape(2, rows, 2, columns)
        scales = blocks.abs().amax((1, 3), keepdim=True) / 448
        tensors[name] = (blocks / scales).reshape(weight.shape).to(torch.float8_e4m3fn)
        tensors[name + scale] = scales.reshape(2, 2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3"])
def test_fp8_is_dequantised_as_transformers_does(family: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    families.build(family).bfloat16().save_pretrained(source)
    dense = logits(source)
    to_fp8(source)
    configure(source, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    expected = logits(source)
    assert 0 < float((expected - dense).abs().max()) < 0.1
    assert torch.equal(logits(copied(source)), expected)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    model = load_model(source, device="cpu")
    assert torch.allclose(model(input_ids=IDS).logits, expected, atol=0.01)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again"), expected)
    assert logits(copied(source, "float32")).dtype == torch.float32


def test_mxfp4_experts_are_dequantised_as_transformers_does(tmp_path: Path) -> None:
    source = tmp_path / "in"
    families.build("gpt_oss").bfloat16().save_pretrained(source)
    tensors, chance = load_file(source / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=chance, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 122, shape, generator=chance, dtype=torch.uint8)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    configure(source, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": kept})
    assert torch.equal(logits(copied(source)), logits(source))


@pytest.mark.parametrize("method", [*AUTO_QUANTIZATION_CONFIG_MAPPING, "unheard-of", None, 5, []])
def test_other_quantised_weights_are_refused_by_name(method: object, folder: Path) -> None:
    if method not in ACCEPTED:
        configure(folder, quantization_config={"quant_method": method, "bits": 4})
        assert str(method) in refused(folder)
        assert "Give the original model" in refused(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int16, torch.complex64])
def test_numbers_that_are_no_weights_never_pass_for_them(kind: torch.dtype, folder: Path) -> None:
    def cast(tensors: layouts.Tensors) -> layouts.Tensors:
        return tensors | {f"{UP}.weight": (tensors[f"{UP}.weight"] * 100).to(kind)}

    layouts.rewrite(folder, cast, 1)
    assert f"quantised weights ('{UP}.weight' of type" in refused(folder)
    configure(folder, quantization_config={"quant_method": "fp8"})  # says how, but there is no scale
    assert f"quantised weights ('{UP}.weight' of type" in refused(folder)


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "SCB", "weight_zero_point", "g_idx"])
def test_a_scale_that_no_config_explains_is_named(name: str, folder: Path) -> None:
    layouts.rewrite(folder, lambda tensors: tensors | {f"{UP}.{name}": torch.ones(1)}, 1)
    assert f"'{UP}.{name}' beside a weight" in refused(folder)


def test_packed_weights_without_a_config_are_named(folder: Path) -> None:
    def packed(tensors: layouts.Tensors) -> layouts.Tensors:
        return {name.replace("up_proj.weight", "up_proj.qweight"): t for name, t in tensors.items()}

    layouts.rewrite(folder, packed, 1)
    assert f"quantised weights ('{UP}.qweight')" in refused(folder)


def test_tensors_that_the_model_does_not_use_are_named(folder: Path) -> None:
    expected = logits(folder)
    layouts.rewrite(folder, layouts.with_others, 1)
    for read in (copied, lambda place: load_model(place, device="cpu"), open_checkpoint):
        with pytest.warns(ZprunerWarning, match=r"1 tensors .* such as 'v_head\.summary\.weight', are left out"):
            read(folder)
    assert torch.equal(logits(folder.parent / "out"), expected)


def test_files_that_transformers_does_not_read_are_left_alone(folder: Path) -> None:
    expected = logits(folder)
    layouts.add_leftovers(folder)
    (folder / "model.safetensors.index.json").write_text("not read beside model.safetensors")
    assert torch.equal(logits(copied(folder)), expected)
    assert {path.name for path in (folder.parent / "out").glob("*.safetensors")} == {"model.safetensors"}


def test_a_head_of_its_own_is_kept_and_the_config_says_so(folder: Path) -> None:
    layouts.rewrite(folder, layouts.with_a_head, 1, tie_word_embeddings=True)
    expected, out = logits(folder), copied(folder)
    assert torch.equal(logits(out), expected)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    model = load_model(folder, device="cpu")
    assert model.config.tie_word_embeddings is False
    layouts.rewrite(folder, layouts.with_the_embedding_as_head, 1, tie_word_embeddings=True)
    out = copied(folder)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_in_parts_a_head_of_its_own_is_another_tensor(folder: Path) -> None:
    layouts.rewrite(folder, layouts.with_a_head, 1, tie_word_embeddings=True)
    skeleton = Skeleton(open_checkpoint(folder), torch.device("cpu"))
    assert skeleton.tied["lm_head.weight"] == ("lm_head.weight",)
    skeleton.put(["lm_head.weight"])
    assert tiny.in_memory(skeleton.model) == {"lm_head.weight"}


INDEXES: dict[str, object] = {
    "no file": {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}},
    "a file outside the folder: '../x.safetensors'": {"metadata": {}, "weight_map": {"a": "../x.safetensors"}},
    "a file outside the folder: '/x.safetensors'": {"metadata": {}, "weight_map": {"a": "/x.safetensors"}},
    "not safetensors: 'x.bin'": {"metadata": {}, "weight_map": {"a": "x.bin"}},
    "'metadata'": {"weight_map": {}},
    "TypeError": [],
    "no tensor": {"metadata": {}, "weight_map": {}},
}


@pytest.mark.parametrize("said", INDEXES)
def test_an_index_that_leads_nowhere(said: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEXES[said]))
    assert said in refused(folder)


def test_what_is_no_whole_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "an adapter (adapter_config.json)" in refused(folder)
    (folder / "adapter_config.json").unlink()
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    assert "distributed" in refused(folder)


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("value", ["flash_attention_2", "org/kernel", "flex_attention"])
def test_attention_that_needs_more_than_torch_is_replaced_and_said(name: str, value: str, folder: Path) -> None:
    expected = logits(folder)
    configure(folder, **{name: value})
    with pytest.warns(ZprunerWarning, match=f"asks for the attention '{value}'; torch's own is used instead"):
        out = copied(folder)
    assert torch.equal(logits(out), expected)
    with pytest.warns(ZprunerWarning, match=value):
        assert torch.equal(load_model(folder, device="cpu")(input_ids=IDS).logits, expected)


def test_a_header_of_any_length(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    for length in (0, 1, 2**20, 2**25 + 1, 2**62, 2**64 - 1):
        (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
        assert "a checkpoint that cannot be read" in refused(folder)


def test_a_config_that_asks_for_more_than_is_stored_takes_no_time(folder: Path) -> None:
    changes: list[Callable[[], None]] = [
        lambda: configure(folder, num_labels=10**9),
        lambda: configure(folder, num_labels=2, num_hidden_layers=500_000),
        lambda: configure(folder, num_hidden_layers=2, vocab_size=10**12),
        lambda: configure(folder, vocab_size=160, hidden_size=10**9, num_attention_heads=4),
    ]
    for change in changes:
        change()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert refused(folder)


def test_both_words_for_a_weight_that_is_missing() -> None:
    assert issubclass(IncompleteCheckpointError, SourceError)
