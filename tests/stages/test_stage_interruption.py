"""kill -9 at many moments of every stage: run again, it continues where it was and ends with the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

HERE = Path(__file__).parent
QUICK = ["fetch-model", "fetch-calibration", "fetch-evaluation", "calibrate", "score", "mask", "apply"]
QUICK += ["pack", "evaluate_dense", "evaluate", "gradients-wanted", "mask-propagated", "apply-propagated"]
# ADMM, least squares and the dense model's outputs; the same with blocks tuned; the model's own text
SOLVED = ["mask-best", "apply-best", "mask-tuned", "generate-mixed"]


def killed(folder, points, stages):
    environment = tiny.environment() | {
        "PYTHONPATH": f"{HERE.parent}:{HERE}:{tiny.REPOSITORY}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(HERE / "kill_driver.py"), str(folder), str(points), *stages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["stage"] for result in results] == [stage.partition(":")[0] for stage in stages]
    for result, stage in zip(results, stages, strict=True):
        assert result["tried"] == min(int(stage.partition(":")[2] or points), result["moments"])
        if result["calls"]:
            assert result["saved"] == result["calls"]  # killed near its end, a stage computes nothing again
    return results


def test_a_stage_killed_at_any_moment_ends_with_the_same_bytes(tmp_path):
    killed(tmp_path, 3, [*QUICK[:10], "report:2", *QUICK[10:]])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_moments(tmp_path):
    killed(tmp_path, 60, [*QUICK[:10], "report", *QUICK[10:], *SOLVED])
