"""Run in a copy of the project with every addition pasted in: each of them does what its page says."""

from __future__ import annotations

import json
import math
import sys
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import tiny
import torch

import zpruner
from stages import fetch
from stages._deciding import deciding, instances
from zpruner.artifacts.results import Metrics
from zpruner.report.contents import CONTENTS
from zpruner.settings.reading import read_params
from zpruner.sources import parse_source, read_text
from zpruner.types import Stat

root = Path(sys.argv[1])
tiny.make_sources(root)
windows = torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(1))

for method in ("peak", "one_shot", {"score": "wanda", "update": "row_by_row"}):
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, windows, for_methods=method)
    layers = zpruner.prune(model, calibration, method=method, sparsity="2:4")
    assert math.isclose(layers.sparsity, 0.5), method

found = zpruner.calibrate(tiny.build("llama"), windows, stats=[Stat("cube_sum"), Stat.SQ_SUM])
cubes = found.stats("model.layers.0.mlp.up_proj").require(Stat("cube_sum"))
assert bool((cubes > 0).all())

assert "bits" in Metrics.model_fields
assert "Tokens" in [title for title, _ in CONTENTS]

text = root / "source/text.txt"
source = f"file://{text.resolve()}"
assert "on this machine" in getattr(parse_source(source), "origin", "")
digest = sha256(text.read_bytes()).hexdigest()
assert read_text(source, digest, root).texts[0] == text.read_text(encoding="utf-8")

params = read_params(root / "params.yaml")
assert ("norms",) in list(instances(params))
assert "ignore" in deciding(params, ("norms",))
tiny.plan(root)
fetch.run(fetch.What.model, root)
import_module("stages.norms").run(root)
assert json.loads((root / "data/norms.json").read_text())["model.layers.0.mlp.up_proj"] > 0
