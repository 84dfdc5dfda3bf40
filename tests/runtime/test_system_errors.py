"""What the system refuses, refused by the system itself: every trial is a child that lost rights or has limits."""

import errno
import os
import resource
import signal
import tempfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from zpruner.artifacts.files import read_artifact, write_json
from zpruner.artifacts.work import Work
from zpruner.errors import AccessError, DiskFullError, ZprunerError
from zpruner.runtime.system_errors import system_errors_named

NOBODY = 65534


def in_a_child(call):
    """Return the error that `call` ends with, as text, in a forked child."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing"
        try:
            call()
        except ZprunerError as error:
            text = f"{type(error).__name__}: {error}"
        except BaseException as error:
            text = f"unexpected {error!r}"
        finally:
            os.write(into, text.encode())
            os._exit(0)
    os.close(into)
    with open(out) as lines:  # noqa: PTH123
        text = lines.read()
    assert os.waitpid(child, 0)[1] == 0
    assert "\n" not in text
    return text


def unprivileged(call):
    def run():
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        call()

    return in_a_child(run)


def work_in(folder):
    with Work(folder, "mask-a", "key") as work:
        work.record("one", {})


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")


@needs_root
def test_no_permission(tmp_path):
    shared = Path(tempfile.gettempdir())
    for folder in (tmp_path, *(parent for parent in tmp_path.parents if parent.is_relative_to(shared))):
        folder.chmod(folder.stat().st_mode | 0o055)
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0o600)
    words = "AccessError: .*no permission.* Give it to this user"
    for call in (lambda: write_json(tmp_path / "b.json", {}), lambda: work_in(tmp_path / "work")):
        assert_words(unprivileged(call), words)
    assert_words(unprivileged(lambda: read_artifact(path, "an index")), rf"{words}.*")
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def assert_words(text, words):
    import re

    assert re.match(words, text), text


def test_a_limit_on_the_size_of_files(tmp_path):
    def limited():
        assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        write_json(tmp_path / "b.json", {"a": "x" * 1000})

    assert_words(
        in_a_child(limited), r"DiskFullError: .*b\.json: got a file that grew to the limit of 100 bytes.*ulimit"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "b.json").mkdir()
    with pytest.raises(AccessError, match=r"b\.json.*: got a folder, expected a file\. Delete the folder"):
        write_json(tmp_path / "b.json", {})
    (tmp_path / "file").write_text("")
    for call in (lambda: write_json(tmp_path / "file" / "b.json", {}), lambda: work_in(tmp_path / "file")):
        with pytest.raises(AccessError, match=r"got a file, expected a folder\. Delete the file"):
            call()


def test_a_lock_that_is_a_folder(tmp_path):
    (tmp_path / "mask-a" / "lock").mkdir(parents=True)
    with pytest.raises(AccessError, match=r"mask-a/lock: got a folder, expected a file"):
        work_in(tmp_path)


@pytest.mark.parametrize("there", ["file", "link", "folder"])
def test_publishing_replaces_whatever_is_there(tmp_path, there):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    {"file": out.touch, "link": lambda: out.symlink_to(elsewhere), "folder": out.mkdir}[there]()
    with Work(tmp_path / "work", "a", "key") as work:
        (work.files / "one").write_text("1")
        work.publish(out)
    assert [path.name for path in out.iterdir()] == ["one"]
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.EROFS, "Read-only file system"), AccessError, "a read-only file system.*Mount it writable"),
        (OSError(errno.EIO, "Input/output error"), AccessError, "an error of the disk.*Check the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFullError, "no space left"),
        (SafetensorError("I/O error: File too large (os error 27)"), DiskFullError, "grew to the limit"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), DiskFullError, "no space left"),
        (RuntimeError("Os: No space left on device"), DiskFullError, "no space left"),
    ],
)
def test_errors_by_number_and_in_words(tmp_path, error, kind, words):
    with pytest.raises(kind, match=rf"x\.bin: got .*{words}.*run again"), system_errors_named(tmp_path / "x.bin"):
        raise error


def test_what_is_no_error_of_the_system_passes(tmp_path):
    for error in (ValueError("x"), OSError("no number"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, system_errors_named(tmp_path / "x.bin"):
            raise error
        assert caught.value is error
