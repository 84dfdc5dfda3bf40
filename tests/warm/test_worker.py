"""The warm worker: a child of it is to its caller what a new interpreter would have been."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from warm import _environment
from warm.client import Job, Refused
from warm.worker import Worker

FACTS = """
import atexit, json, os, sys, warnings
import colorsys  # what the worker imported beforehand
print(json.dumps({
    "argv": sys.argv[1:], "cwd": os.getcwd(), "name": __name__, "package": __package__, "file": __file__,
    "umask": os.umask(0o022), "path0": sys.path[0], "warm": "warm" in sys.modules,
    "environment": {k: v for k, v in os.environ.items() if k not in ("_", "SHLVL", "PWD", "OLDPWD")},
    "tty": sys.stdout.isatty(), "encoding": sys.stdout.encoding, "input": sys.stdin.read(),
    "leak": hasattr(colorsys, "leak"), "sigint": str(__import__("signal").getsignal(2)),
}))
colorsys.leak = True
print("to stderr", file=sys.stderr)
atexit.register(print, "at exit")
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
"""
SLEEP = """
import os, sys, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""
OWNER = """
import subprocess, sys
from pathlib import Path
from warm.worker import Worker
with Worker(Path.cwd(), ()) as worker:
    subprocess.run(sys.argv[1:], env=worker.environment)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worker")
    (root / "stages").mkdir()
    (root / "stages" / "__init__.py").write_text("")
    (root / "stages" / "facts.py").write_text(FACTS)
    (root / "stages" / "sleep.py").write_text(SLEEP)
    (root / "stages" / "tidy.py").write_text("import tempfile; kept = tempfile.TemporaryDirectory(); print(kept.name)")
    (root / "stages" / "text.py").write_text("import sys; sys.exit('a sentence')")
    (root / "stages" / "fail.py").write_text("def f():\n    return 1 // 0\nf()")
    return root


@pytest.fixture(scope="module")
def worker(root: Path) -> Iterator[Worker]:
    with Worker(root, ("colorsys",)) as worker:
        yield worker


def run(worker: Worker, root: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` as a shell under the worker does."""
    command = ["/bin/sh", "-c", '"$0" "$@"', "python", *arguments]
    environment = worker.environment | changes
    return subprocess.run(command, cwd=root, env=environment, input="typed", capture_output=True, text=True, timeout=60)


def plain(worker: Worker, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the same without the worker."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=root, env=worker.environment, input="typed", capture_output=True, text=True, timeout=60
    )


def started(worker: Worker, root: Path) -> tuple[subprocess.Popen[str], int]:
    """Start the sleeping stage; returns the launcher and the pid of the child."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", "exec python -m stages.sleep"], cwd=root, env=worker.environment, stdout=-1, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def ends(pid: int) -> bool:
    """Wait until a process that is no child of ours is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 20)[0])
    finally:
        os.close(handle)


def test_a_child_is_like_a_new_interpreter(worker: Worker, root: Path) -> None:
    for status in ("0", "7"):
        warm, cold = (way(worker, root, "-m", "stages.facts", status, "--a b") for way in (run, plain))
        assert json.loads(warm.stdout.splitlines()[0]) == json.loads(cold.stdout.splitlines()[0])
        assert (warm.stdout.splitlines()[1:], warm.stderr) == (cold.stdout.splitlines()[1:], cold.stderr)
        assert warm.returncode == cold.returncode == int(status)
        assert "typed" in warm.stdout


def test_umask_folder_and_variables_are_the_callers(worker: Worker, root: Path) -> None:
    script = f"cd {root}/stages/.. && umask 077 && DVC_STAGE=here OMP_NUM_THREADS=3 python -m stages.facts"
    done = subprocess.run(["/bin/sh", "-c", script], env=worker.environment, input="", capture_output=True, text=True)
    facts = json.loads(done.stdout.splitlines()[0])
    assert facts["umask"] == 0o077
    assert facts["environment"]["DVC_STAGE"] == "here"
    assert facts["environment"]["OMP_NUM_THREADS"] == "3"
    assert done.stderr == "to stderr\n"


def test_nothing_passes_from_child_to_child(worker: Worker, root: Path) -> None:
    for _ in range(3):
        assert json.loads(run(worker, root, "-m", "stages.facts").stdout.splitlines()[0])["leak"] is False


def test_a_child_tidies_up_after_itself(root: Path) -> None:
    """What libraries want done at the end is dropped in the worker; what a child has begun is not."""
    with Worker(root, ("tempfile", "logging")) as worker:
        done = run(worker, root, "-m", "stages.tidy")
    assert done.returncode == 0
    assert not Path(done.stdout.strip()).exists()


def test_changed_code_counts_at_once(worker: Worker, root: Path) -> None:
    module = root / "stages" / "changing.py"
    for text in ("first", "second"):
        module.write_text(f"print({text!r})")
        assert run(worker, root, "-m", "stages.changing").stdout == f"{text}\n"


def test_failures_look_the_same(worker: Worker, root: Path) -> None:
    for module in ("stages.text", "stages.fail", "stages.missing"):
        warm, cold = (way(worker, root, "-m", module) for way in (run, plain))
        assert warm.returncode == cold.returncode == 1
        assert warm.stderr.splitlines()[-1].split(": ", 1)[-1] == cold.stderr.splitlines()[-1].split(": ", 1)[-1]


def test_other_commands_go_to_python_itself(worker: Worker, root: Path) -> None:
    done = run(worker, root, "-c", "import sys; print('colorsys' in sys.modules, sys.argv)", "x")
    assert done.stdout == "False ['-c', 'x']\n"


def test_another_environment_means_a_plain_start(worker: Worker, root: Path) -> None:
    done = run(worker, root, "-m", "stages.facts", HF_HUB_OFFLINE="0", PYTHONHASHSEED="1")
    assert "plain start-up of Python: HF_HUB_OFFLINE, PYTHONHASHSEED not as when the worker started" in done.stderr
    assert json.loads(done.stdout.splitlines()[0])["environment"]["PYTHONHASHSEED"] == "1"


@pytest.mark.parametrize("name", ["PS1", "VIRTUAL_ENV_PROMPT", "MAKEFLAGS", "SSH_TTY", "ANYTHING_ELSE"])
def test_what_no_library_reads_is_passed_on(worker: Worker, root: Path, name: str) -> None:
    """`source .venv/bin/activate` exports PS1, and a shell that runs a command removes it."""
    for before, after in (({}, {name: "(x) $ "}), ({name: "(x) $ "}, {})):
        assert _environment.matters(name) is False
        done = run(worker, root, "-m", "stages.facts", **(before | after))
        assert done.stderr == "to stderr\n"
        assert json.loads(done.stdout.splitlines()[0])["environment"].get(name) == "(x) $ "


def test_interrupts_reach_the_child(worker: Worker, root: Path) -> None:
    process, _ = started(worker, root)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("interrupted\n", 130)


def test_what_the_caller_ignores_the_child_ignores(worker: Worker, root: Path) -> None:
    script = "trap '' HUP INT; exec python -m stages.facts"
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=root, env=worker.environment, input="", capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[0])["sigint"] == str(int(signal.SIG_IGN))


def test_termination_is_seen_as_such(worker: Worker, root: Path) -> None:
    process, pid = started(worker, root)
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL


def test_a_child_dies_with_its_caller(worker: Worker, root: Path) -> None:
    process, pid = started(worker, root)
    process.kill()
    process.communicate(timeout=20)
    assert ends(pid)


def test_a_child_dies_with_the_worker(root: Path) -> None:
    with Worker(root, ()) as worker:
        process, pid = started(worker, root)
        worker._process.kill()
        process.communicate(timeout=20)
        assert process.returncode == 1
        assert ends(pid)
        with pytest.raises(Refused):
            Job(worker.socket, ["-m", "stages.facts"], worker.environment, (0, 1, 2), str(root))
        done = run(worker, root, "-m", "stages.facts")  # still works, only slower
        assert "plain start-up of Python: no worker" in done.stderr
        assert done.returncode == 0


def test_everything_dies_with_the_owner(root: Path) -> None:
    command = [sys.executable, "-c", OWNER, "/bin/sh", "-c", "python -m stages.sleep; true"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    owner = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.communicate(timeout=20)
    assert ends(pid)


def test_closing_kills_what_runs_and_removes_the_socket(root: Path) -> None:
    begun = time.monotonic()
    with Worker(root, ()) as worker:
        process, pid = started(worker, root)
    process.communicate(timeout=20)
    assert ends(pid)
    assert not Path(worker.socket).parent.exists()
    assert time.monotonic() - begun < 20


def test_a_stage_whose_run_was_killed_does_not_start_on_its_own(root: Path, tmp_path: Path) -> None:
    """Whoever kills the worker may do so while the shell that DVC runs a stage with is coming up."""
    dvc = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"  # it dies with the worker; the shell does not
    shell = ["/bin/sh", "-c", "read go; exec python -m stages.facts </dev/null"]
    hold, go = os.pipe()
    with Worker(root, ()) as worker, (tmp_path / "log").open("w+") as log:
        command = [sys.executable, "-c", dvc, *shell]
        subprocess.run(command, cwd=root, env=worker.environment, stdin=hold, stdout=log, stderr=log)
        worker._process.kill()
        worker._process.wait()
        [waiting] = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == shell]
        os.write(go, b"\n")
        assert ends(waiting.pid)
        text = (tmp_path / "log").read_text()
    for end in (hold, go):
        os.close(end)
    assert "not started: the run that it belongs to has ended" in text
    assert "argv" not in text
