"""Tensors in huge pages: the same numbers, the same sharing, and files whose pages are let go."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from zpruner.runtime import pages

linux = pytest.mark.skipif(not pages.huge_pages(), reason="no huge pages here")


def mapped(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name)[...] for name in file.keys()}  # noqa: SIM118 - no mapping


def resident(path):
    """Bytes of a file that this process holds in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@linux
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_what_is_mapped_from_the_file_is_moved_and_the_file_let_go(tmp_path, dtype):
    path = tmp_path / "one file.safetensors"
    stored = {f"t{i}": torch.randint(-99, 99, (1500, 2700 + i)).to(dtype) for i in range(5)}
    save_file({**stored, "empty": torch.empty(0, 3)}, path)
    loaded = mapped(path)
    aside = torch.arange(5)
    parameter, same = torch.nn.Parameter(loaded["t0"], requires_grad=False), loaded["t0"]
    before = {name: tensor.data_ptr() for name, tensor in loaded.items()}
    pages.move([parameter, *loaded.values(), aside], [path])
    assert resident(path) < path.stat().st_size / 10  # the system may map some pages around those that are read
    for name, value in stored.items():
        assert torch.equal(loaded[name], value)
        assert loaded[name].data_ptr() != before[name]
        assert loaded[name].untyped_storage().nbytes() == value.nbytes
    assert parameter.data_ptr() == same.data_ptr()
    assert torch.equal(parameter, stored["t0"])
    loaded["t1"].add_(1)
    assert torch.equal(loaded["t2"], stored["t2"])
    assert torch.equal(mapped(path)["t1"], stored["t1"])


@linux
def test_regions_are_freed_with_their_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_REGION", 1 << 20)
    path = tmp_path / "x.safetensors"
    save_file({str(i): torch.full((1 << 18,), float(i)) for i in range(4)}, path)
    loaded = mapped(path)
    pages.move(loaded.values(), [path])
    addresses = {name: tensor.data_ptr() for name, tensor in loaded.items()}
    lines = len(Path("/proc/self/maps").read_text().splitlines())
    del loaded["0"]
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= lines
    assert all(torch.equal(loaded[str(i)], torch.full((1 << 18,), float(i))) for i in range(1, 4))
    assert len(set(addresses.values())) == 4


@pytest.mark.parametrize(
    "offered", [pytest.param("always [madvise] never", marks=linux), "always madvise [never]", None]
)
def test_without_huge_pages_nothing_moves(tmp_path, monkeypatch, offered):
    setting = tmp_path / "enabled"
    if offered is not None:
        setting.write_text(offered)
    monkeypatch.setattr(pages, "_SETTING", setting)
    assert pages.huge_pages() is (offered is not None and "[madvise]" in offered)
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(100_000)}, path)
    loaded = mapped(path)
    before = loaded["a"].data_ptr()
    pages.move(loaded.values(), [path])
    assert (loaded["a"].data_ptr() == before) is not pages.huge_pages()
    copy = pages.copied(loaded["a"].view(100, 1000).T)
    assert copy.is_contiguous()
    assert torch.equal(copy, loaded["a"].view(100, 1000).T)
    assert pages.empty(0).shape == (0,)
