import json
import random
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.artifacts.arrow import read_file, write_file
from zpruner.artifacts.files import write_sealed_json
from zpruner.artifacts.store import ArtifactReader, Provenance, artifact_writer
from zpruner.artifacts.work import Work
from zpruner.errors import ArtifactError, DiskFullError
from zpruner.text import WindowsOrigin, read_windows, write_windows

PROVENANCE = Provenance("m", "hash", "calibration", "float32", 6, 192, "wanda", '{"a": 1}', "2:4")
COLUMNS = {
    "model.layers.0.q": {"keep": torch.arange(21).reshape(3, 7) % 3 == 0},
    "model.layers.1.q": {"sq_sum": torch.arange(5).double() / 3, "gram": torch.arange(25.0).reshape(5, 5)},
}


def write(root, columns=COLUMNS, provenance=PROVENANCE, out="out", kind="masks"):
    with artifact_writer(Work(root / "work", out, "key"), kind, provenance) as writer:
        for name, tensors in columns.items():
            writer.write(name, tensors, tokens=192)
        writer.finish(root / out, layers={name: {"block": 0} for name in columns})
    return root / out


def read(folder, kind="masks", expected=None):
    reader = ArtifactReader(folder, kind, expected)
    return {name: reader.read(name) for name in reader.files}


def equal(left, right):
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys()
        and all(
            torch.equal(left[name][key], value) and left[name][key].dtype == value.dtype for key, value in t.items()
        )
        for name, t in right.items()
    )


dtypes = st.sampled_from([torch.bool, torch.float32, torch.float64, torch.int32, torch.int64])


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 13), width=st.integers(0, 19), dtype=dtypes, seed=st.integers(0, 99))
def test_columns_come_back_as_they_were(tmp_path_factory, rows, width, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, width) if width else (rows,)
    values = torch.randint(-(2**40), 2**40, shape, generator=generator)
    tensor = (
        values % 2 == 0 if dtype == torch.bool else (values if not dtype.is_floating_point else values / 7).to(dtype)
    )
    path = tmp_path_factory.mktemp("store") / "x.arrow"
    write_file(path, {"x": tensor, "rows": torch.arange(rows, dtype=torch.int32)}, "tokens", {"a": [1, None]})
    columns, facts = read_file(path, "tokens")
    assert torch.equal(columns["x"], tensor)
    assert columns["x"].dtype == dtype
    assert torch.equal(columns["rows"], torch.arange(rows, dtype=torch.int32))
    assert facts["a"] == [1, None]


def test_tensors_that_are_not_contiguous(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    columns = {"a": {"x": matrix.T}, "b": {"x": matrix[:, 1:3]}, "c": {"x": (matrix > 4).T}}
    assert equal(read(write(tmp_path, columns)), columns)


def test_an_artifact_comes_back(tmp_path):
    folder = write(tmp_path)
    assert equal(read(folder, expected=PROVENANCE), COLUMNS)
    reader = ArtifactReader(folder, "masks")
    assert reader.provenance == PROVENANCE
    assert reader.index["layers"] == {name: {"block": 0} for name in COLUMNS}
    assert reader.files["model.layers.0.q"]["tokens"] == 192


def test_results_may_be_changed_in_place_without_touching_the_file(tmp_path):
    folder = write(tmp_path)
    first = read(folder)
    for tensors in first.values():
        for tensor in tensors.values():
            tensor.zero_()
    assert equal(read(folder), COLUMNS)


def test_the_same_content_gives_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "1"), write(tmp_path / "2")
    files = {p.name: p.read_bytes() for p in one.iterdir()}
    assert files == {p.name: p.read_bytes() for p in two.iterdir()}
    assert sorted(files) == ["index.json", "model.layers.0.q.arrow", "model.layers.1.q.arrow"]
    other = write(tmp_path / "3", provenance=replace(PROVENANCE, windows=7))
    assert ArtifactReader(one, "masks").digest == ArtifactReader(two, "masks").digest
    assert ArtifactReader(one, "masks").digest != ArtifactReader(other, "masks").digest


def test_plain_arrow_maps_the_files(tmp_path):
    folder = write(tmp_path)
    with pa.memory_map(str(folder / "model.layers.0.q.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema.field("keep").type == pa.list_(pa.bool_(), 7)
    assert table["keep"].to_pylist() == COLUMNS["model.layers.0.q"]["keep"].tolist()
    facts = json.loads(table.schema.metadata[b"zpruner"])
    assert facts["format"] == 1
    assert (facts["kind"], facts["name"]) == ("masks", "model.layers.0.q")
    assert {key: facts[key] for key in asdict(PROVENANCE)} == asdict(PROVENANCE)
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(folder / "model.layers.1.q.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert pa.total_allocated_bytes() == before  # mapped, not copied
        gram = table["gram"].chunk(0).flatten().to_numpy(zero_copy_only=True)
        assert np.array_equal(gram, np.arange(25, dtype=np.float32))
    assert table.num_rows == 5


@pytest.mark.parametrize("file", ["index.json", "model.layers.0.q.arrow", "model.layers.1.q.arrow"])
def test_damage_is_an_error_that_names_the_file(tmp_path, file):
    folder = write(tmp_path)
    path = folder / file
    good = path.read_bytes()
    rng = random.Random(0)

    def refused():
        with pytest.raises(ArtifactError) as caught:
            read(folder)
        assert str(path) in str(caught.value)
        assert "dvc" in caught.value.action

    for length in {0, 1, 8, len(good) // 2, *rng.sample(range(len(good) - 1), 20)}:
        path.write_bytes(good[:length])
        refused()
    for position in rng.sample(range(len(good)), 150):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << rng.randrange(8)]) + good[position + 1 :])
        if file == "index.json" and good[position : position + 1].isspace():
            continue  # other white space says the same
        refused()
    path.write_bytes(good + b"\0")
    refused()
    path.unlink()
    refused()
    path.write_bytes(good)
    assert equal(read(folder), COLUMNS)


@pytest.mark.parametrize("text", ["[]", "null", "1", "{}", '{"format": 1}', "\udcff", "[" * 100_000])
def test_an_index_of_another_shape(tmp_path, text):
    folder = write(tmp_path)
    (folder / "index.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ArtifactError, match=r"index\.json"):
        ArtifactReader(folder, "masks")


@pytest.mark.parametrize("change", [{"format": 2}, {"kind": "scores"}, {"format": "1"}])
def test_another_format_or_kind(tmp_path, change):
    folder = write(tmp_path)
    index = ArtifactReader(folder, "masks").index
    write_sealed_json(folder / "index.json", index | change)
    with pytest.raises(
        ArtifactError, match=r"index\.json: got format .* of kind .*, expected format 1 of kind 'masks'"
    ):
        ArtifactReader(folder, "masks")


@pytest.mark.parametrize("field", ["model_hash", "calibration_hash", "method", "settings", "pattern", "windows"])
def test_an_artifact_made_from_something_else(tmp_path, field):
    folder = write(tmp_path)
    value: Any = 7 if field == "windows" else "other"
    with pytest.raises(ArtifactError, match=rf"{field} .*, expected .*{value}.*another model"):
        ArtifactReader(folder, "masks", Provenance(**{field: value}))


def test_files_of_another_artifact_are_refused_even_with_their_checksums(tmp_path):
    folder, other = write(tmp_path), write(tmp_path, provenance=replace(PROVENANCE, model_hash="else"), out="other")
    index = ArtifactReader(folder, "masks").index
    index["files"] = ArtifactReader(other, "masks").files
    for name in COLUMNS:
        (folder / f"{name}.arrow").write_bytes((other / f"{name}.arrow").read_bytes())
    write_sealed_json(folder / "index.json", index)
    with pytest.raises(ArtifactError, match=r"model\.layers\.0\.q\.arrow: got model_hash 'else', expected 'hash'"):
        read(folder)


def test_an_unknown_layer(tmp_path):
    with pytest.raises(ArtifactError, match=r"no entry for 'model\.layers\.9'"):
        ArtifactReader(write(tmp_path), "masks").read("model.layers.9")


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(ArtifactError, match=r"no file, expected the index of masks\. Run `dvc repro` first"):
        ArtifactReader(tmp_path, "masks")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError):
        ArtifactReader(tmp_path / "file", "masks")


def test_damaged_token_windows_are_never_read_as_others(tmp_path):
    path = tmp_path / "tokens.arrow"
    windows = torch.arange(60, dtype=torch.int32).reshape(4, 15)
    write_windows(path, windows, "source", WindowsOrigin("calibration", "{}", "model", "tokenizer"))
    good = path.read_bytes()
    assert torch.equal(read_windows(path)[0], windows)
    refused = 0
    for position in range(len(good)):
        bit = random.Random(position).randrange(8)
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
        try:  # padding and the name of the source are not checked
            assert torch.equal(read_windows(path)[0], windows)
        except ArtifactError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 4 * 60
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(ArtifactError, match=r"tokens\.arrow"):
            read_windows(path)


def test_token_windows_of_another_shape(tmp_path):
    path = tmp_path / "tokens.arrow"
    for columns in (
        {"input_ids": torch.arange(3, dtype=torch.int32)},
        {"input_ids": torch.ones(2, 3)},
        {"x": torch.ones(2)},
    ):
        write_file(path, columns, "tokens", {"windows_hash": "x"})
        with pytest.raises(ArtifactError, match="expected int32 lists `input_ids`"):
            read_windows(path)
    write_file(path, {"input_ids": torch.ones(2, 3)}, "scores", {})
    with pytest.raises(ArtifactError, match="got kind 'scores', expected kind 'tokens'"):
        read_windows(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([1.0, None]), "1 nulls"),
        (pa.array(["a", "b"]), "a column of string"),
        (pa.array([[1.0], [2.0, 3.0]]), "a column of list"),
        (pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float32(), 2)), "1 nulls"),
    ],
)
def test_columns_that_are_no_numbers(tmp_path, array, message):
    metadata = {b"zpruner": json.dumps({"format": 1, "kind": "tokens"}).encode()}
    table = pa.table({"x": array}).replace_schema_metadata(metadata)
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    with pytest.raises(ArtifactError, match=rf"x\.arrow: got {message}"):
        read_file(path, "tokens")


def test_sliced_columns_of_another_writer(tmp_path):
    flat = pa.array([bool(i % 3) for i in range(40)])
    lists = pa.FixedSizeListArray.from_arrays(flat, 5)[2:6]
    metadata = {b"zpruner": json.dumps({"format": 1, "kind": "tokens"}).encode()}
    table = pa.table({"keep": lists, "x": pa.array(range(6), pa.int32())[1:5]}).replace_schema_metadata(metadata)
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    columns, _ = read_file(path, "tokens")
    assert columns["keep"].tolist() == [[bool(i % 3) for i in range(5 * row, 5 * row + 5)] for row in range(2, 6)]
    assert columns["x"].tolist() == [1, 2, 3, 4]


def test_a_failed_write_reaches_the_caller_and_publishes_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zpruner.artifacts.files.HashingFile.write", full)
    with pytest.raises(DiskFullError, match=r"model\.layers\.0\.q\.arrow: got no space left"):
        write(tmp_path)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "work" / "out" / "key" / "files").iterdir()) == []


def test_a_resumed_artifact_has_the_same_bytes(tmp_path):
    whole = {p.name: p.read_bytes() for p in write(tmp_path / "whole").iterdir()}
    first, second = COLUMNS
    with artifact_writer(Work(tmp_path / "work", "out", "key"), "masks", PROVENANCE) as writer:
        writer.write(first, COLUMNS[first], tokens=192)
        writer.drain()
    work = Work(tmp_path / "work", "out", "key")
    with artifact_writer(work, "masks", PROVENANCE) as writer:
        assert list(work.items()) == [first]
        writer.write(second, COLUMNS[second], tokens=192)
        writer.finish(tmp_path / "out", layers={name: {"block": 0} for name in COLUMNS})
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == whole
