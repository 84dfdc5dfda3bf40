"""How the kernels are found: compiled once, into a folder that is this user's alone, or replaced by torch aloud."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import ISAS, LIBRARY, random_weight

from zpruner.errors import InvalidSettingError
from zpruner.kernels import Layout, PackedMatrix, build, choice
from zpruner.kernels.library import Isa
from zpruner.packed.encode import parts_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZPRUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_choose", choice._choose.__wrapped__)
    monkeypatch.setattr(build, "compile_library", lambda _compiler, output, *_flags: output.write_bytes(b"library"))
    return tmp_path / "cache"


def test_the_library_is_compiled_once_into_a_private_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = build.library_file()
    assert file.parent == cache
    assert (cache.stat().st_mode & 0o777, file.stat().st_mode & 0o222) == (0o700, 0)
    monkeypatch.setattr(build, "compile_library", None)  # not called again
    assert build.library_file() == file
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_another_source_or_compiler_is_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = build._key(("cc",))
    assert build._key(("gcc",)) != key
    shutil.copytree(build.FOLDER, tmp_path / "c")
    monkeypatch.setattr(build, "FOLDER", tmp_path / "c")
    assert build._key(("cc",)) == key
    header = tmp_path / "c" / "avx2.h"
    header.write_text(header.read_text() + "\n")
    assert build._key(("cc",)) != key


def test_a_library_that_others_could_have_written_is_made_again(cache: Path) -> None:
    file = build.library_file()
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert build.library_file().read_bytes() == b"library"
    file.chmod(0o722)
    build.library_file()
    assert not file.stat().st_mode & 0o022


def test_a_folder_that_others_can_write_to_is_refused(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    cache.chmod(0o770)
    with pytest.raises(build.BuildError, match="others can write to"):
        build.library_file()


def test_another_users_folder_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    monkeypatch.setattr("os.getuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(build.BuildError, match="belongs to another user"):
        build.library_file()


def test_a_killed_compiler_leaves_no_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "compile_library", killed)
    with pytest.raises(KeyboardInterrupt):
        build.library_file()
    assert list(cache.iterdir()) == []


def test_without_a_compiler_torch_multiplies_and_one_line_says_why(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match="torch expands the weights for every product: CC names 'no-such-compiler'"):
        kernels = choice.choose()
    assert kernels.name == "torch"
    weight = random_weight(6, 70, 0.5, torch.bfloat16)
    matrix = PackedMatrix(kernels, "w", Layout(6, 70, torch.bfloat16), parts_of(weight, weight != 0))
    x = torch.randn(3, 70).bfloat16()
    assert torch.equal(matrix.multiply(x), torch.nn.functional.linear(x, weight))
    assert torch.equal(matrix.expanded(2, 5), weight[2:5])
    monkeypatch.setenv("ZPRUNER_KERNEL", "portable")
    with pytest.raises(InvalidSettingError, match="a kernel that can be built here"):
        choice.choose()


@pytest.mark.parametrize("name", [isa.name.lower() for isa in ISAS])
def test_the_variable_forces_a_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZPRUNER_KERNEL", name)
    kernels = choice.choose()
    assert kernels.name == name
    assert f"{name} kernels" in kernels.why


def test_what_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [isa for isa in Isa if not LIBRARY.zp_supports(isa)]
    for name, said in [(isa.name.lower(), "can run") for isa in missing] + [("axv2", "Did you mean 'avx2'?")]:
        monkeypatch.setenv("ZPRUNER_KERNEL", name)
        with pytest.raises(InvalidSettingError) as error:
            choice.choose()
        assert said in str(error.value)


def test_one_pool_of_threads_is_shared_with_torch() -> None:
    script = (
        "import torch; from zpruner.kernels import choose; print(choose().why); print(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    runtimes = {line.split()[-1] for line in done.stdout.splitlines() if "libgomp" in line}
    assert len(runtimes) == ("with OpenMP" in done.stdout)
