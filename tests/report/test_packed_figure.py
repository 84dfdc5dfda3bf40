"""The report shows packed variants, and nothing where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_tree import METHODS, edit, make_tree, read

from zpruner.artifacts.results import Packed, PackedSpeed
from zpruner.report import write

ONE, HALF = {"wanda": METHODS["wanda"]}, {"s50": "0.5"}


def page(data: Path, out: Path) -> str:
    write(read(data, ONE, HALF), out)
    return (out / "report.html").read_text()


@pytest.mark.parametrize("measured", [True, False])
def test_a_packed_variant_is_shown_with_its_pairs(measured: bool, tmp_path: Path) -> None:
    data = make_tree(tmp_path, ONE, HALF)
    assert "Packed variants" not in page(data, tmp_path / "before")
    speed = PackedSpeed(
        kernels="avx2 kernels with OpenMP, from x.so",
        threads=2,
        decode=(20.0, 9.0, 33.0),
        control_decode=(10.0, 9.0, 11.0),
        torch_decode=(5.0, 3.0, 10.0),
        prefill=(99.0, 97.0, 98.0),
        control_prefill=(1.0, 1.0, 1.0),
        torch_prefill=(100.0, 100.0, 100.0),
    )
    found = Packed(dense=269_000_000, packed=176_000_000, speed=speed if measured else None)
    path = data / "costs/pack/wanda/s50.json"
    make_tree(tmp_path / "other", ONE, HALF)
    path.parent.mkdir(parents=True)
    path.write_bytes((data / "costs/apply/wanda/s50.json").read_bytes())
    edit(path, stage="pack", packed=found.model_dump(mode="json", exclude_none=True))
    text = page(data, tmp_path / "after")
    assert "Packed variants" in text
    assert "176.0 MB (65%)" in text
    assert ("avx2 kernels with OpenMP, 2 threads" in text) == measured
    for ratio in ("2.00", "3.30", "0.98"):  # medians of pairs, not pairs of medians
        assert (f">{ratio}<" in text) == measured
    variant = read(data, ONE, HALF).variants[0]
    assert variant.packed == found
    assert "pack" not in [
        cost.stage for cost in read(make_tree(tmp_path / "x", ONE, HALF), ONE, HALF).variants[0].costs
    ]
