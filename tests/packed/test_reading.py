"""Damaged packed files are refused, whatever the damage, before a kernel sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_cases import packed, save, zero_half
from safetensors.torch import load_file, save_file

import zpruner
from zpruner.artifacts.files import read_sealed_json, write_sealed_json
from zpruner.errors import ArtifactError, ZprunerError
from zpruner.packed.reader import PackedFile
from zpruner.packed.unpack import unpack

Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    packed(save(zero_half(tiny.build("llama")), folder / "dense"), folder / "packed")
    return folder / "packed"


def changed(whole: Path, folder: Path, change: Change) -> Path:
    """A copy with other tensors or another description, and no manifest, as a stranger could make it."""
    shutil.copytree(whole, folder)
    (folder / "zpruner.json").unlink()
    path = folder / "zpruner.safetensors"
    tensors = load_file(path)
    with path.open("rb") as raw:
        header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    described = json.loads(header["__metadata__"]["zpruner"])
    change(tensors, described)
    save_file(tensors, path, metadata={"format": "pt", "zpruner": json.dumps(described)})
    return folder


def described(**facts: object) -> Change:
    return lambda _, found: found["tensors"][NAME].update(facts)


def tensor(part: str, new: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda found, _: found.update({f"{NAME}_{part}": new(found[f"{NAME}_{part}"]).contiguous()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (described(shape=[48, 10**12]), "up_proj.weight_bitmask"),
        (described(shape=[10**12, 32]), "up_proj.weight_bitmask"),
        (described(shape=[32, 48]), "up_proj.weight_bitmask"),
        (described(shape=[-48, 32]), "metadata that cannot be read"),
        (described(shape=[48]), "metadata that cannot be read"),
        (described(shape=[True, 32]), "metadata that cannot be read"),
        (described(transposed=1), "metadata that cannot be read"),
        (described(transposed=True), "up_proj.weight_bitmask"),
        (described(dtype="Tensor"), "metadata that cannot be read"),
        (described(dtype="bfloat16"), "BF16 of one dimension"),
        (lambda _, found: found.update(version=3), "zpruner-bitmask of version 3"),
        (described(bits=8), "metadata that cannot be read"),
        (described(bits=3, group=0, masked=True), "3 bits in groups of 0"),
        (described(bits=8, group=0, masked=True), "no 'model.layers.0.mlp.up_proj.weight_scales'"),
        (lambda _, found: found.update(tensors=[]), "metadata that cannot be read"),
        (lambda _, found: found["tensors"].pop(NAME), "parts of a tensor"),
        (lambda tensors, _: tensors.pop(f"{NAME}_offsets"), "no 'model.layers.0.mlp.up_proj.weight_offsets'"),
        (lambda tensors, _: tensors.update({NAME: torch.ones(48, 32)}), "both a packed tensor and a dense one"),
        (tensor("offsets", lambda t: t.flip(0)), "first offset"),
        (tensor("offsets", lambda t: t[:-1]), "up_proj.weight_offsets"),
        (tensor("offsets", lambda t: t.float()), "up_proj.weight_offsets"),
        (tensor("offsets", lambda t: t * 2), "offsets that give row"),
        (tensor("bitmask", lambda t: t & 254), "offsets that give row"),
        (tensor("bitmask", lambda t: t | 128), "beyond column 32"),
        (tensor("values", lambda t: t[: t.numel() // 2]), "those of the mask"),
        (tensor("values", lambda t: t.view(2, -1) if t.numel() % 2 == 0 else t.view(1, -1)), "F32 of one dimension"),
    ],
)
def test_a_strangers_file_is_refused(change: Change, said: str, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "copy", change)
    (tmp_path / "out").mkdir()
    for read in (lambda: zpruner.load(folder, device="cpu"), lambda: unpack(folder, tmp_path / "out")):
        with pytest.raises(ZprunerError) as error:
            read()
        assert said in str(error.value)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damage_anywhere_is_found(data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    raw = (whole / "zpruner.safetensors").read_bytes()
    kind = data.draw(st.sampled_from(["cut", "bit", "swap", "header"]))
    place = data.draw(st.integers(0, len(raw) - 1))
    broken = bytearray(raw)
    if kind == "cut":
        del broken[place:]
    elif kind == "bit":
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "swap":
        broken[place : place + 8] = broken[place : place + 8][::-1]
    else:
        broken[place % 4096] = data.draw(st.integers(0, 255))
    if broken == raw:
        return
    path = tmp_path / "zpruner.safetensors"
    path.write_bytes(broken)
    shutil.copyfile(whole / "zpruner.json", tmp_path / "zpruner.json")
    with pytest.raises(ArtifactError):
        PackedFile(path).verify()
    (tmp_path / "zpruner.json").unlink()
    try:
        found = PackedFile(path)
        for name in found.packed:
            found.read(name)
    except ZprunerError:
        pass


def test_an_original_that_cannot_be_restored_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    manifest = read_sealed_json(tmp_path / "copy" / "zpruner.json", "a manifest")
    manifest["packed"]["files"]["model.safetensors"]["checksum"] = "0" * 32
    write_sealed_json(tmp_path / "copy" / "zpruner.json", manifest)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="what unpacks to checksum"):
        unpack(tmp_path / "copy", tmp_path / "out")


@pytest.mark.parametrize(
    "index",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"weight_map": {"a": "../x.safetensors"}}',
        b'{"weight_map": {"a": "no.safetensors"}}',
    ],
)
def test_an_index_of_what_is_not_there_is_named(index: bytes, tmp_path: Path) -> None:
    (tmp_path / "zpruner.safetensors.index.json").write_bytes(index)
    with pytest.raises(ArtifactError, match=r"no file|neither zpruner.safetensors"):
        unpack(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("config", [b"{", b"[" * 100_000, b"[1]", b"null", b"\xe9", b"{}"])
def test_a_config_of_another_kind_is_named_where_no_original_is_known(
    config: bytes, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "zpruner.json").unlink()
    (tmp_path / "copy" / "config.json").write_bytes(config)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"copy: got a config\.json that is not of a packed checkpoint"):
        unpack(tmp_path / "copy", tmp_path / "out")


@pytest.mark.parametrize("name", ["../stray.safetensors", "/tmp/stray.safetensors", "a/../../stray", ""])
@pytest.mark.parametrize("kind", ["files", "texts"])
def test_no_name_leads_out_of_the_folder(name: str, kind: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    manifest = read_sealed_json(tmp_path / "copy" / "zpruner.json", "a manifest")
    manifest["packed"][kind] = {name: next(iter(manifest["packed"][kind].values()))}
    write_sealed_json(tmp_path / "copy" / "zpruner.json", manifest)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="no description of the original"):
        unpack(tmp_path / "copy", tmp_path / "out")
