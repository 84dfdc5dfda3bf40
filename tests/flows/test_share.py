"""Two clones that meet in a remote: a folder, and an SSH server on loopback where one is installed."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from toys import Toy, commit, lock

from flows import share
from flows.pipeline import pipeline
from zpruner.errors import InvalidSettingError

pytestmark = pytest.mark.usefixtures("quick", "worker")
SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]))


@pytest.fixture
def remote(toy: Toy, tmp_path: Path) -> Path:
    """A folder that the toy project shares its caches in."""
    share.add(toy.root, "team", str(tmp_path / "remote"))
    return tmp_path / "remote"


def flow(toy: Toy, **options: Any) -> dict[str, int]:
    return pipeline(str(toy.root), share=True, **options)


def clone(toy: Toy, name: str = "clone") -> Toy:
    commit(toy.root)
    other = toy.root.with_name(name)
    tiny.run(["git", "clone", "-q", str(toy.root), str(other)], toy.root)
    return Toy(other)


def stored(remote: Path, text: str) -> list[Path]:
    """Return the objects of the remote that begin with `text`."""
    return [
        path for path in (remote / "files").rglob("*") if path.is_file() and path.read_bytes().startswith(text.encode())
    ]


def test_another_clone_computes_nothing_and_only_what_is_new(toy: Toy, remote: Path) -> None:
    flow(toy)
    other = clone(toy)
    assert flow(other)["ran"] == 0
    assert tiny.files_of(other.root / "out") == tiny.files_of(toy.root / "out")
    other.change(parts=["p0", "p1", "p2", "p3"])
    other.change("part", p3={"value": 7})
    flow(other)
    assert other.runs() == ["part@p3", "last"]
    toy.change(parts=["p0", "p1", "p2", "p3"])  # what B made reaches A, whose dvc.lock knows nothing of it
    toy.change("part", p3={"value": 7})
    before = toy.runs()
    assert flow(toy)["restored from the cache"] == 2
    assert toy.runs() == before
    assert lock(toy.root) == lock(other.root)


@pytest.mark.slow
def test_what_is_finished_is_pushed_even_after_a_failure(toy: Toy, remote: Path) -> None:
    toy.change("part", "p2", fail="error: no.")
    with pytest.raises(RuntimeError, match=r"part@p2"):
        flow(toy)
    other = clone(toy)
    other.change("part", "p2", times=0)
    flow(other)
    assert other.runs() == ["part@p2", "last"]


def test_a_damaged_object_is_named_and_never_used(toy: Toy, remote: Path, caplog: pytest.LogCaptureFixture) -> None:
    flow(toy)
    [damaged] = stored(remote, "part@p1")
    whole = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(b"part@p1 and something else")
    other = clone(toy)
    with caplog.at_level("INFO"):
        flow(other)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("prefect.")]
    assert any(line.startswith("out/part/p1.txt did not arrive: part@p1 will run") for line in lines)
    assert other.runs() == ["part@p1"]  # and from its bytes it is known that the rest needs no run
    assert tiny.files_of(other.root / "out") == tiny.files_of(toy.root / "out")
    assert damaged.read_bytes() == whole


def test_a_push_or_pull_cut_short_is_completed_by_a_repeat(toy: Toy, remote: Path) -> None:
    tiny.run(["dvc", "repro"], toy.root)
    share.push(toy.root, print)
    for path in [*stored(remote, "part@p1"), *stored(remote, "base")]:  # as if it had stopped before these
        path.unlink()
    half = next(path for path in (remote / "runs").rglob("*") if path.is_file())
    half.unlink()
    share.push(toy.root, print)
    other = clone(toy)
    pulled = share.pull(other.root, print)
    assert pulled == []
    (other.root / "out" / "part" / "p0.txt").unlink()
    assert share.pull(other.root, print) == []
    assert flow(other)["ran"] == 0
    assert half.exists()


def test_a_remote_that_does_not_verify_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"no default remote.*flows.share add"):
        flow(toy)
    tiny.run(["dvc", "remote", "add", "-d", "plain", str(tmp_path / "plain")], toy.root)
    with pytest.raises(InvalidSettingError, match=r"remote plain: got verify off.*dvc remote modify plain verify true"):
        flow(toy)
    assert toy.runs() == []


def test_a_remote_that_cannot_be_reached_is_named(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(share, "RETRY_SECONDS", ())
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        share.add(toy.root, "team", f"ssh://127.0.0.1:{nobody.getsockname()[1]}/nowhere")
        monkeypatch.chdir(toy.root)
        assert share.main(["pull"]) == 1
    assert "error: dvc pull --run-cache --allow-missing: got exit status" in capsys.readouterr().err


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[str]:
    """The address of an OpenSSH server on loopback with keys of its own."""
    assert SSHD is not None
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where its service is not running, nobody else has made it
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    assert any("listening" in line for line in iter(server.stderr.readline, ""))
    yield f"127.0.0.1:{port}"
    server.terminate()
    server.communicate()


@pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd: apt-get install openssh-server")
def test_over_ssh(toy: Toy, ssh_server: str, tmp_path: Path) -> None:
    share.add(toy.root, "team", f"ssh://{getpass.getuser()}@{ssh_server}{tmp_path}/remote")
    tiny.run(["dvc", "remote", "modify", "team", "keyfile", str(tmp_path / "sshd" / "user")], toy.root)
    flow(toy)
    other = clone(toy)
    assert flow(other)["ran"] == 0
    assert tiny.files_of(other.root / "out") == tiny.files_of(toy.root / "out")
