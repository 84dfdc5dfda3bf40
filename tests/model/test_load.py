import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from zpruner.errors import InvalidSettingError, ModelStructureError, SourceError
from zpruner.model import load_model, resolve_device, resolve_devices


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_checkpoint_loads_ready_for_inference(checkpoint, dtype, expected):
    model = load_model(checkpoint, dtype, "cpu")
    assert (model.dtype, model.training, model.device.type) == (expected, False, "cpu")
    weight = tiny.build("llama").model.layers[1].mlp.down_proj.weight
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, weight.to(expected))


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_other_families_load(tmp_path, family):
    model = load_model(tiny.save_checkpoint(tmp_path, family))
    expected = tiny.build(family).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_dtype_that_is_none_of_the_four(checkpoint):
    with pytest.raises(
        InvalidSettingError, match=r"dtype: got 'float8', expected one of auto, bfloat16.*mean 'float32'"
    ):
        load_model(checkpoint, "float8")


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(SourceError, match=r"no readable config\.json"):
        load_model(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"no readable config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(SourceError, match="expected a causal language model"):
        load_model(tmp_path)


def test_an_encoder_decoder_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True, "model_type": "t5"}))
    with pytest.raises(ModelStructureError, match=r"an encoder-decoder model \(model_type t5\)"):
        load_model(copy)


def test_pickled_weights_are_not_read(copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"copy: got .*safetensors"):
        load_model(copy)


def test_a_missing_tensor_is_not_replaced_by_a_random_one(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelStructureError, match=r"no tensor 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        load_model(copy)


def test_a_tensor_of_another_shape(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.ones(48, 32)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelStructureError, match=r"copy: got .*down_proj.weight. of shape \(48, 32\) for \(32, 48\)"):
        load_model(copy)


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights(copy, damage):
    path = copy / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match="copy: got "):
        load_model(copy)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    for name in ("gpu", "cuda:99", "cpu0", ""):
        with pytest.raises(
            InvalidSettingError, match=rf"machine\.device: got '{name}', expected a device of this machine"
        ):
            resolve_device(name)


def test_auto_stands_for_every_accelerator(monkeypatch):
    assert resolve_devices("cpu") == ["cpu"]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    assert resolve_devices("auto") == ["meta:0", "meta:1", "meta:2"]
    assert resolve_devices("cpu") == ["cpu"]


def test_loading_leaves_transformers_as_it_was(checkpoint):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(checkpoint)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_no_fault_of_the_checkpoint(checkpoint, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(type(error)) as raised:
        load_model(checkpoint)
    assert raised.value is error
