"""Two clones that meet in a remote: a folder; an SSH and an S3-compatible server where they are installed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import remotes
import tiny
from dvc.repo import Repo
from remotes import KINDS, S3, SSH, Remote
from toys import Toy, commit, lock

from flows import share
from flows._ending import NotDoneError
from flows.pipeline import pipeline
from zpruner.errors import InvalidSettingError

pytestmark = pytest.mark.usefixtures("quick", "worker")


@pytest.fixture
def remote(toy: Toy, tmp_path: Path) -> Path:
    """A folder that the toy project shares its caches in."""
    share.add(toy.root, "team", str(tmp_path / "remote"))
    return tmp_path / "remote"


@pytest.fixture
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    """A remote of the kind that a test asks for."""
    with remotes.remote(request.param, tmp_path) as found:
        yield found


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


def test_a_target_pulls_and_pushes_what_it_needs_and_no_more(toy: Toy, remote: Path) -> None:
    flow(toy)
    other = clone(toy)
    assert flow(other, targets=["part@p1"])["ran"] == 0
    arrived = sorted(path.name for path in (other.root / "out").rglob("*.txt"))
    assert arrived == ["base.txt", "p1.txt"]
    cached = [path.read_text() for path in (other.root / ".dvc" / "cache" / "files").rglob("*") if path.is_file()]
    assert sorted(text.split()[0] for text in cached) == ["base", "part@p1"]
    other.change("part", "p1", value=8)
    other.change("part", "p2", fail="error: no.", value=8)
    with pytest.raises(NotDoneError):
        flow(other, targets=["part@p1", "part@p2"])
    assert stored(remote, "part@p1 8")  # what was finished


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


def test_a_damaged_entry_of_the_run_cache_is_named_and_never_used(toy: Toy, remote: Path) -> None:
    flow(toy)
    entries = {path: path.read_text() for path in (remote / "runs").rglob("*") if path.is_file()}
    for path, text in entries.items():
        if "--method p1" in text:
            path.write_text(text[: text.index("outs:")])  # still YAML
        elif "--method p2" in text:
            path.write_text("what: [")
    other = clone(toy)
    (other.root / "dvc.lock").unlink()  # all that B knows of the results is in the run cache
    lines: list[str] = []
    share.pull(other.root, lines.append)
    assert sum("is damaged and not used" in line for line in lines) == 2
    flow(other)
    assert sorted(other.runs()) == ["part@p1", "part@p2"]
    assert {path: path.read_text() for path in entries} == entries


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


def test_a_place_that_is_none_is_refused(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy.root)
    before = (toy.root / ".dvc" / "config").read_bytes()
    assert share.main(["add", "s4://bucket/path"]) == 1
    assert "error: remote: got team at s4://bucket/path (" in capsys.readouterr().err
    assert (toy.root / ".dvc" / "config").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "public"),
    [
        (["ssh://me:S3CR3T@host/srv"], ["ssh://me@host/srv"]),
        (["https://S3CR3T@host/srv"], ["https://host/srv"]),
        (
            ["s3://bucket/p", "--endpoint-url", "https://k:S3CR3T@host:1/?t=S3CR3T"],
            ["s3://bucket/p", "https://host:1/"],
        ),
    ],
)
def test_passwords_stay_out_of_git(
    toy: Toy,
    arguments: list[str],
    public: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(toy.root)
    committed, local = toy.root / ".dvc" / "config", toy.root / ".dvc" / "config.local"
    assert share.main(["add", *arguments]) == 0
    said = capsys.readouterr().out
    assert "config.local" in said
    assert "S3CR3T" not in said + committed.read_text()
    assert all(address in committed.read_text() for address in public)
    assert "S3CR3T" in local.read_text()
    assert local.stat().st_mode & 0o077 == 0
    assert ".dvc/config.local" in tiny.run(["git", "status", "--short", "--ignored"], toy.root).stdout
    with Repo(str(toy.root)) as repo:  # what DVC works with
        assert arguments[0] == repo.config["remote"]["team"]["url"]
        assert repo.config["remote"]["team"]["verify"]
    assert share.main(["add", str(toy.root / "other")]) == 0  # and the old address does not win over a new one
    assert capsys.readouterr().out == ""
    with Repo(str(toy.root)) as repo:
        assert repo.config["remote"]["team"]["url"] == str(toy.root / "other")
    assert share.main(["add", "s4://me:S3CR3T@bucket?x=S3CR3T"]) == 1
    assert "S3CR3T" not in capsys.readouterr().err


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


@pytest.mark.parametrize("anywhere", [SSH, S3], indirect=True)
def test_over_a_network(toy: Toy, anywhere: Remote, tmp_path: Path) -> None:
    anywhere.choose(toy.root)
    flow(toy)
    other = clone(toy)
    anywhere.log_in(other.root)
    assert flow(other)["ran"] == 0
    assert tiny.files_of(other.root / "out") == tiny.files_of(toy.root / "out")
    other.change(parts=["p0", "p1", "p2", "p3"])
    other.change("part", p3={"value": 7})
    flow(other)
    assert other.runs() == ["part@p3", "last"]


@pytest.mark.parametrize("anywhere", [SSH], indirect=True)
def test_no_agent_is_handed_on(toy: Toy, anywhere: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        anywhere.choose(toy.root)
        tiny.run(["dvc", "repro", "base"], toy.root)
        share.push(toy.root, print)
    log = (tmp_path / "sshd" / "log").read_text()
    assert "Accepted publickey" in log
    assert "auth-agent-req" not in log


@pytest.mark.slow
@pytest.mark.parametrize("anywhere", KINDS, indirect=True)
def test_pushes_and_pulls_are_killed_and_repeated(toy: Toy, anywhere: Remote) -> None:
    anywhere.choose(toy.root)
    rng = random.Random(7)
    (toy.root / "large").mkdir()
    for number in range(8):
        (toy.root / "large" / f"{number}.bin").write_bytes(rng.randbytes(4 << 20))
    tiny.run(["dvc", "add", "large"], toy.root)
    tiny.run(["dvc", "repro"], toy.root)
    for _ in range(4):
        interrupt(toy.root, "push", rng)
    share.push(toy.root, print)
    other = clone(toy)
    anywhere.log_in(other.root)
    for _ in range(4):
        interrupt(other.root, "pull", rng)
    assert share.pull(other.root, print) == []
    for name in ("large", "out"):
        assert tiny.files_of(other.root / name) == tiny.files_of(toy.root / name)
    assert flow(other)["ran"] == 0


def interrupt(root: Path, step: str, rng: random.Random) -> None:
    """Start a push or pull and kill it, DVC included, at a random moment."""
    command = [sys.executable, "-m", "flows.share", step]
    environment = tiny.environment() | {"PYTHONPATH": str(tiny.REPOSITORY)}
    process = subprocess.Popen(
        command, cwd=root, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(rng.uniform(1.5, 5))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
