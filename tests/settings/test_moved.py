"""Old layouts of params.yaml: still read, with a sentence that says what to move."""

import copy
import json

import pytest
import tiny

from zpruner.errors import InvalidSettingError
from zpruner.settings.reading import read_params, read_params_with_advice


def write(folder, **model):
    params = copy.deepcopy(tiny.PARAMS)
    params["model"] |= model
    del params["machine"]
    path = folder / "params.yaml"
    path.write_text(json.dumps(params), encoding="utf-8")
    return path


def test_todays_layout_needs_no_advice(tmp_path):
    tiny.write_params(tmp_path, tiny.PARAMS)
    params, advice = read_params_with_advice(tmp_path / "params.yaml")
    assert (params.machine.device, advice) == ("auto", "")


def test_the_machine_may_be_left_out(tmp_path):
    params, advice = read_params_with_advice(write(tmp_path))
    assert (params.machine.streaming, advice) == ("auto", "")


def test_keys_of_the_machine_are_read_below_the_model_with_a_word(tmp_path):
    path = write(tmp_path, device="cpu", streaming="always", memory=2.5)
    params, advice = read_params_with_advice(path)
    assert (params.machine.device, params.machine.streaming, params.machine.memory) == ("cpu", "always", 2.5)
    wanted = "move model.device, model.streaming, model.memory to a section `machine:` of their own."
    assert advice == f"{path}: {wanted}"
    assert read_params(path) == params


def test_a_key_in_both_places_is_refused(tmp_path):
    path = write(tmp_path, memory=2.5)
    params = json.loads(path.read_text()) | {"machine": {"memory": 3.0}}
    path.write_text(json.dumps(params))
    with pytest.raises(InvalidSettingError, match=r"model\.memory beside `machine:`.*Delete model\.memory"):
        read_params(path)


@pytest.mark.parametrize(
    ("part", "changes", "seen"),
    [
        ([0.25, 0.75], {}, True),
        ([0.5, 1.0], {}, False),
        ([0.25, 0.75], {"source": "./source/text.txt"}, True),
        ([0.25, 0.75], {"source": "elsewhere.txt"}, False),
        ([0.25, 0.75], {"source": "a copy.txt", "sha256": "a" * 64}, True),
    ],
)
def test_an_evaluation_of_text_that_calibration_has_seen_is_told(part, changes, seen, tmp_path):
    params = copy.deepcopy(tiny.PARAMS)
    params["calibration"]["sha256"] = "a" * 64
    params["evaluation"]["perplexity"] |= {"part": part, **changes}
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(params))
    advice = read_params_with_advice(path)[1]
    assert ("perplexities are of text that pruning has seen" in advice) == seen
