import errno
import json
import random
import shutil
import threading

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from zpruner.artifacts.work import Work
from zpruner.checkpoint import Checkpoint, write_manifest, write_pruned, write_tensors
from zpruner.errors import AccessError, ArtifactError, ModelStructureError
from zpruner.model import PrunableLayer, take_inventory

WEIGHTS = "model.safetensors"


def make(folder, family="llama", dtype=torch.float32):
    tiny.build(family).to(dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    write_manifest(folder, f"tiny {family}", dtype=str(dtype).removeprefix("torch."))
    return folder


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    return make(tmp_path_factory.mktemp("checkpoint") / "dense", dtype=torch.bfloat16)


@pytest.fixture
def copy(dense, tmp_path):
    return shutil.copytree(dense, tmp_path / "copy")


def halve(layer, weight):
    """Set the even columns to zero and shift the rest, so that an axis mistaken would show."""
    pruned = weight.clone() + layer.block
    pruned[:, ::2] = 0
    return pruned


def pruned(root, folder, prune=halve, family="llama", work=None):
    """Write a pruned copy of `folder` below `root`; returns the published folder."""
    layers = take_inventory(tiny.build(family)).layers
    with work or Work(root / "work", "apply", "key") as work:
        write_pruned(Checkpoint(folder), layers, prune, work, {"method": "m", "dtype": "x"}, lambda: None, "# card\n")
        work.publish(root / "out")
    return root / "out"


def test_tensors_are_read_one_by_one(dense):
    checkpoint = Checkpoint(dense)
    expected = {name: p.bfloat16() for name, p in tiny.build("llama").named_parameters()}
    assert sorted(checkpoint.names()) == sorted(expected)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in expected.items())
    assert (checkpoint.model, checkpoint.manifest["dtype"]) == ("tiny llama", "bfloat16")
    checkpoint.verify_all()


def test_the_hash_is_that_of_weights_and_config(dense, copy, tmp_path):
    before = Checkpoint(dense).model_hash
    (copy / "tokenizer.json").write_text("{}")
    write_manifest(copy, "elsewhere", dtype="bfloat16")
    assert Checkpoint(copy).model_hash == before
    for name in (WEIGHTS, "config.json"):
        data = bytearray((dense / name).read_bytes())
        data[-3] ^= 1
        (copy / name).write_bytes(data)
        write_manifest(copy, "tiny llama", dtype="bfloat16")
        assert Checkpoint(copy).model_hash != before
        shutil.copyfile(dense / name, copy / name)


def test_weights_are_seen_as_out_in(tmp_path):
    checkpoint = Checkpoint(make(tmp_path, "gpt2"))
    model = tiny.build("gpt2")
    for layer in take_inventory(model).layers:
        weight = checkpoint.read_weight(layer)
        assert tuple(weight.shape) == (layer.out_features, layer.in_features)
        assert torch.equal(weight, model.get_parameter(layer.tensor).T)


def test_a_missing_tensor_and_another_shape(dense):
    checkpoint = Checkpoint(dense)
    with pytest.raises(ModelStructureError, match=r"no tensor 'model\.layers\.7\.x\.weight'.*model\.ignore"):
        checkpoint.read("model.layers.7.x.weight")
    name = "model.layers.0.mlp.down_proj"
    with pytest.raises(
        ModelStructureError, match=rf"layer {name}: got a stored weight of shape \(32, 48\), expected \(48"
    ):
        checkpoint.read_weight(PrunableLayer(name, f"{name}.weight", 0, 48, 32, False))


def test_every_altered_file_is_named(copy):
    rng = random.Random(0)
    for name in sorted(p.name for p in copy.iterdir()):
        path = copy / name
        good = path.read_bytes()
        for position in [*rng.sample(range(len(good)), 20), 0, len(good) - 1]:
            if name == "zpruner.json" and good[position : position + 1].isspace():
                continue
            path.write_bytes(good[:position] + bytes([good[position] ^ 1 << rng.randrange(7)]) + good[position + 1 :])
            with pytest.raises(ArtifactError) as caught:
                Checkpoint(copy).verify_all()
            assert str(path) in str(caught.value)
        for damage in (good[:-1], good[: len(good) // 2], b"", good + b"\n\n"):
            if name == "zpruner.json" and damage.strip() == good.strip():
                continue
            path.write_bytes(damage)
            with pytest.raises(ArtifactError) as caught:
                Checkpoint(copy)
            assert str(path) in str(caught.value)
        path.unlink()
        with pytest.raises(ArtifactError, match="no file"):
            Checkpoint(copy)
        path.write_bytes(good)
    Checkpoint(copy).verify_all()


def test_an_altered_weight_is_not_read(copy):
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-2] ^= 64
    (copy / WEIGHTS).write_bytes(data)
    checkpoint = Checkpoint(copy)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: got checksum"):
        checkpoint.read(checkpoint.names()[0])


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"files": {}}'])
def test_a_manifest_of_another_shape(copy, text):
    (copy / "zpruner.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"zpruner\.json"):
        Checkpoint(copy)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_the_pruned_checkpoint_loads_with_zeros_in_place(tmp_path, family):
    folder = make(tmp_path / "dense", family)
    out = pruned(tmp_path, folder, family=family)
    model = AutoModelForCausalLM.from_pretrained(out)
    before = tiny.build(family)
    layers = {layer.tensor: layer for layer in take_inventory(before).layers}
    for name, parameter in before.named_parameters():
        got = model.get_parameter(name).detach()
        if name not in layers:
            assert torch.equal(got, parameter)
            continue
        layer = layers[name]
        assert torch.equal(layer.view(got), halve(layer, layer.view(parameter.detach())))
        assert (layer.view(got)[:, ::2] == 0).all()
    from zpruner.sources import load_tokenizer

    assert load_tokenizer(out)("abc", verbose=False) == load_tokenizer(folder)("abc", verbose=False)


def test_dtype_config_and_tokenizer_stay(tmp_path, dense):
    out = pruned(tmp_path, dense)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (dense / name).read_bytes()
    checkpoint = Checkpoint(out)
    assert {checkpoint.read(name).dtype for name in checkpoint.names()} == {torch.bfloat16}
    assert sorted(checkpoint.names()) == sorted(Checkpoint(dense).names())
    assert checkpoint.manifest["method"] == "m"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * p.numel() for p in tiny.build("llama").parameters())
    assert set(index["weight_map"].values()) == {f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)}


def test_what_no_method_changes_is_the_same_file_in_every_variant(tmp_path, dense):
    one = pruned(tmp_path / "1", dense)  # every block
    two = pruned(tmp_path / "2", dense, lambda layer, weight: halve(layer, weight) if layer.block == 1 else weight)
    same = [p.name for p in sorted(one.iterdir()) if p.read_bytes() == (two / p.name).read_bytes()]
    different = {p.name for p in one.iterdir()} - set(same)
    assert different == {"model-00002-of-00004.safetensors", "model-00004-of-00004.safetensors", "zpruner.json"}


def test_a_resumed_copy_has_the_same_bytes_and_repeats_nothing(tmp_path, dense):
    whole = tiny.files_of(pruned(tmp_path / "whole", dense))
    calls = []

    def interrupted(layer, weight):
        if layer.block == 2:
            raise KeyboardInterrupt
        return halve(layer, weight)

    def counted(layer, weight):
        calls.append(layer.block)
        return halve(layer, weight)

    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path, dense, interrupted)
    assert not (tmp_path / "out").exists()
    assert tiny.files_of(pruned(tmp_path, dense, counted)) == whole
    assert calls == [2] * 7


def test_a_background_thread_writes_and_what_stops_it_stops_the_caller(tmp_path, dense, monkeypatch):
    """One block is pruned while the one before it is written; only what is on disk is journalled."""
    whole, real = tiny.files_of(pruned(tmp_path / "whole", dense)), write_tensors
    threads, full = [], OSError(errno.EIO, "the disk is broken")

    def write(file, tensors):
        threads.append(threading.current_thread())
        if len(threads) == 3:
            raise full
        return real(file, tensors)

    monkeypatch.setattr("zpruner.checkpoint.files.write_tensors", write)
    work = Work(tmp_path / "work", "apply", "key")
    with pytest.raises(AccessError, match=r"model-00003-of-00004\.safetensors: got an error of the disk"):
        pruned(tmp_path, dense, work=work)
    assert threading.main_thread() not in threads
    assert list(work.items()) == ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    assert sorted(file.name for file in work.files.iterdir()) == list(work.items())  # nothing half written
    assert tiny.files_of(pruned(tmp_path, dense)) == whole
    assert len(threads) == 5  # shards 3 and 4


def test_a_block_is_pruned_while_the_one_before_it_is_written_and_no_earlier(tmp_path, dense, monkeypatch):
    real, written, begun = write_tensors, [], threading.Event()

    def prune(layer, weight):
        if layer.block == 1:
            begun.set()
        assert layer.block < 2 or len(written) >= 2  # what stays, and block 0
        return halve(layer, weight)

    def write(file, tensors):
        assert len(written) != 1 or begun.wait(timeout=60)
        size = real(file, tensors)
        written.append(size)
        return size

    monkeypatch.setattr("zpruner.checkpoint.files.write_tensors", write)
    pruned(tmp_path, dense, prune)
    assert len(written) == 4


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_nothing_altered_is_copied(tmp_path, copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: got checksum"):
        pruned(tmp_path, copy)
    assert not (tmp_path / "out").exists()
