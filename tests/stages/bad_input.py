"""A complete project, and a stage that must refuse."""

import re
import shutil

import pytest
import staged
from staged import METHOD, SPARSITY

OUTPUTS = {
    "fetch-model": "models/dense",
    "fetch-calibration": "calibration/tokens.arrow",
    "fetch-evaluation": "evaluation/tokens.arrow",
    "calibrate": "activations/dense",
    "score": f"scores/{METHOD}",
    "mask": f"masks/{METHOD}/{SPARSITY}",
    "apply": f"pruned/{METHOD}/{SPARSITY}",
    "evaluate_dense": "evaluation/dense.json",
    "evaluate": f"evaluation/{METHOD}/{SPARSITY}.json",
}


def remove(root, stage):
    path = root / "data" / OUTPUTS[stage]
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def refused(root, stage, error, message):
    """Run a stage that must fail with one sentence, and change no artifact."""
    before = staged.artifacts(root)
    with pytest.raises(error) as caught:
        staged.INSTANCES[stage](root)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert staged.artifacts(root) == before
    return str(caught.value)


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
