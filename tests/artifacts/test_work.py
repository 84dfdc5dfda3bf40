import errno
import os
import re
import subprocess
import sys

import pytest

from zpruner.artifacts.files import atomic_file, checksum, digest_of, read_sealed_json, write_json, write_sealed_json
from zpruner.artifacts.work import JOURNAL, Work, sweep
from zpruner.errors import ArtifactError, DiskFullError, LockedError


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def add(work, name, data=b"data", **payload):
    with atomic_file(work.files / name) as file:
        file.write(data)
    work.record(name, payload, work.files / name, file.checksum)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_atomic_file_appears_whole_and_knows_its_checksum(tmp_path):
    path = tmp_path / "a" / "b.bin"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(memoryview(b"two"))
    assert (path.read_bytes(), file.bytes, file.checksum) == (b"onetwo", 6, checksum(path))
    assert names(tmp_path) == ["a", "a/b.bin"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:  # noqa: PT012
        file.write(b"new")
        raise ZeroDivisionError
    assert (names(tmp_path), path.read_bytes()) == (["b.bin"], b"old")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("zpruner.artifacts.files.os.fsync", no_space)
    with pytest.raises(DiskFullError, match=r"b\.json: got no space left .* GB free.*Free some space"):
        write_json(tmp_path / "b.json", {"a": 1})
    assert names(tmp_path) == []


def test_the_next_writer_deletes_what_a_killed_one_left(tmp_path):
    for name in (".b.json.tmp-1", ".b[.json.tmp-1", ".c.json.tmp-1"):
        (tmp_path / name).write_bytes(b"torn")
    write_json(tmp_path / "b.json", {})
    assert names(tmp_path) == [".b[.json.tmp-1", ".c.json.tmp-1", "b.json"]


def test_finished_items_survive_the_process(tmp_path):
    with Work(tmp_path, "mask-a", "key") as work:
        add(work, "one", layers=1)
        work.record("two", {"x": 0.1})
    with Work(tmp_path, "mask-a", "key") as again:
        assert list(again.items().items()) == [("one", {"layers": 1}), ("two", {"x": 0.1})]
        assert (again.done("one"), again.done("three")) == ({"layers": 1}, None)


def test_seconds_include_those_of_interrupted_runs(tmp_path, monkeypatch):
    clock = [5.0]
    monkeypatch.setattr("zpruner.artifacts.work.perf_counter", lambda: clock[0])
    with Work(tmp_path, "s", "key") as work:
        clock[0] += 1000.0
        work.record("one", {})
    with Work(tmp_path, "s", "key") as again:
        clock[0] += 20.0
        assert again.seconds == 1020.0


@pytest.mark.parametrize("position", [0, 9, 40, 75, -3, -40])
def test_an_altered_line_and_all_after_it_are_not_done(tmp_path, position):
    with Work(tmp_path, "s", "key") as work:
        for number in range(4):
            work.record(f"item-{number}", {"losses": [1.5, 2.25]})
    journal = work.folder / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    changed = bytearray(lines[2])
    changed[position] ^= 1
    journal.write_bytes(b"".join([*lines[:2], bytes(changed), lines[3]]))
    with Work(tmp_path, "s", "key") as again:
        assert list(again.items()) == ["item-0", "item-1"]
        assert journal.read_bytes() == b"".join(lines[:2])


@pytest.mark.parametrize("order", [(1,), (0, 2), (1, 0), (0, 0, 1)])
def test_lines_left_out_moved_or_repeated_are_not_done(tmp_path, order):
    with Work(tmp_path, "s", "key") as work:
        for number in range(3):
            work.record(f"item-{number}", {})
    journal = work.folder / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[number] for number in order))
    kept = 1 if order[0] == 0 else 0
    with Work(tmp_path, "s", "key") as again:
        assert list(again.items()) == [f"item-{number}" for number in range(kept)]


def test_the_journal_of_another_key_is_not_taken_over(tmp_path):
    with Work(tmp_path, "s", "one") as work:
        work.record("item", {"perplexity": 3.0})
    line = (work.folder / JOURNAL).read_bytes()
    with Work(tmp_path, "s", "two") as other:
        pass
    (other.folder / JOURNAL).write_bytes(line)
    with Work(tmp_path, "s", "two") as other:
        assert not other.items()


@pytest.mark.parametrize("torn", ['{"item": "tw', '{"item": "two"}', "\0\0\0\n", "\xff\n", "{\n"])
def test_a_torn_last_line_is_dropped_and_writing_goes_on(tmp_path, torn):
    with Work(tmp_path, "s", "key") as work:
        add(work, "one")
    journal = work.folder / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn.encode("latin-1"))
    with Work(tmp_path, "s", "key") as again:
        assert list(again.items()) == ["one"]
        assert journal.read_bytes() == whole
        add(again, "two")
    with Work(tmp_path, "s", "key") as third:
        assert list(third.items()) == ["one", "two"]


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"dat."), lambda p: p.write_bytes(b"dat"), os.unlink])
def test_an_item_whose_file_changed_is_not_done(tmp_path, change):
    with Work(tmp_path, "s", "key") as work:
        add(work, "one")
        add(work, "two")
    change(work.files / "one")
    with Work(tmp_path, "s", "key") as again:
        assert list(again.items()) == ["two"]
        add(again, "one")
    with Work(tmp_path, "s", "key") as third:
        assert sorted(third.items()) == ["one", "two"]


def test_temporary_files_of_a_killed_run_are_deleted(tmp_path):
    with Work(tmp_path, "s", "key") as work:
        add(work, "one")
        (work.files / ".two.tmp-99").write_bytes(b"torn")
        (work.scratch / ".three.tmp-99").write_bytes(b"torn")
    with Work(tmp_path, "s", "key") as again:
        again.publish(tmp_path / "out")
    assert names(again.folder) == ["files", "files/one", JOURNAL, "scratch"]
    assert names(tmp_path / "out") == ["one"]


def test_another_key_starts_anew(tmp_path):
    with Work(tmp_path, "s", "old") as work:
        add(work, "one")
    with Work(tmp_path, "s", "new") as work:
        assert not work.items()
    assert names(tmp_path / "s") == ["lock", "new", "new/files", "new/scratch"]


def test_one_process_at_a_time(tmp_path):
    script = (
        "import sys, pathlib; from zpruner.artifacts.work import Work\n"
        f"with Work(pathlib.Path({str(tmp_path)!r}), 'mask-a', 'key'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=r"mask-a: got a lock held by another process"):
            Work(tmp_path, "mask-a", "key").__enter__()
        with Work(tmp_path, "mask-b", "key"):
            pass
        sweep(tmp_path)
        assert names(tmp_path) == ["mask-a", "mask-a/key", "mask-a/key/files", "mask-a/key/scratch", "mask-a/lock"]
    finally:
        holder.kill()
        holder.communicate()
    with Work(tmp_path, "mask-a", "key"):
        pass


def test_publishing_replaces_the_folder_and_may_be_repeated(tmp_path):
    out = tmp_path / "data" / "masks"
    (out / "stale").mkdir(parents=True)
    (out / "stale" / "x").write_bytes(b"")
    (out.parent / ".masks.tmp-1").mkdir()
    (out.parent / ".masks.tmp-1" / "y").write_bytes(b"of a killed run")
    with Work(tmp_path / "work", "s", "key") as work:
        (work.files / "sub").mkdir()
        add(work, "sub/one", b"1")
        add(work, "two", b"2")
        for _ in range(2):
            work.publish(out)
            assert names(out.parent) == ["masks", "masks/sub", "masks/sub/one", "masks/two"]
            assert (out / "sub" / "one").read_bytes() == b"1"
    with Work(tmp_path / "work", "s", "key") as again:
        assert sorted(again.items()) == ["sub/one", "two"]


def test_a_full_disk_while_publishing_leaves_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"")
    with Work(tmp_path / "work", "s", "key") as work:
        add(work, "one")
        monkeypatch.setattr("zpruner.artifacts.work.Path.hardlink_to", no_space)
        with pytest.raises(DiskFullError, match="out: got no space left"):
            work.publish(out)
    assert names(out) == ["old"]


def test_another_file_system_gets_copies(tmp_path, monkeypatch):
    def other_device(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("zpruner.artifacts.work.Path.hardlink_to", other_device)
    with Work(tmp_path / "work", "s", "key") as work:
        add(work, "one")
        work.publish(tmp_path / "out")
    assert (tmp_path / "out" / "one").read_bytes() == b"data"
    assert (tmp_path / "out" / "one").stat().st_ino != (work.files / "one").stat().st_ino


def test_sweep_deletes_everything_unused(tmp_path):
    sweep(tmp_path / "missing")
    for name in ("a", "b"):
        with Work(tmp_path / "work", name, "key") as work:
            add(work, "one")
    sweep(tmp_path / "work")
    assert names(tmp_path / "work") == []


def test_digest_ignores_the_order_of_keys_only():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert len({digest_of(x) for x in ({"a": 1}, {"a": 2}, {"b": 1}, [1, 2], [2, 1], {"a": None}, {})}) == 7


def test_every_altered_byte_of_a_sealed_file_is_noticed(tmp_path):
    path = tmp_path / "index.json"
    value = {"files": {"ä": {"tokens": 192, "x": 1.5}}, "blocks": "model.layers", "none": None}
    write_sealed_json(path, value)
    assert read_sealed_json(path, "an index") == value
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in (0, 4, 7):
            path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
            try:
                assert read_sealed_json(path, "an index") == value  # other white space says the same
            except ArtifactError as error:
                assert re.search(r"index\.json: got an altered .*, expected an index", str(error))  # noqa: PT017
    for length in range(len(good) - 2):
        path.write_bytes(good[:length])
        with pytest.raises(ArtifactError, match="altered or truncated"):
            read_sealed_json(path, "an index")
