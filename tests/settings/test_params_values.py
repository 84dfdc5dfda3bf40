"""Values of params.yaml that cannot be: the key, what was got and what may be."""

import pytest
from settings_cases import changed, refused

from zpruner.errors import InvalidPatternError
from zpruner.settings.reading import check_params


@pytest.mark.parametrize(
    ("where", "values"),
    [
        ("model", {"dtype": "bf16"}),
        ("model", {"source": None}),
        ("model", {"trust_remote_code": "perhaps"}),
        ("model", {"ignore": "*.mlp.*"}),
        ("calibration", {"nsamples": 0}),
        ("calibration", {"nsamples": 1.5}),
        ("calibration", {"seqlen": 1}),
        ("calibration", {"seed": -1}),
        ("calibration", {"batch_size": 0}),
        ("calibration", {"part": [0.5, 0.5]}),
        ("calibration", {"part": [-0.1, 0.5]}),
        ("calibration", {"part": [0.0, 1.1]}),
        ("calibration", {"sampling": "random"}),
        ("calibration", {"documents": "words"}),
        ("calibration", {"propagation": "sparse"}),
        ("methods.wanda", {"group": "rows"}),
        ("methods.wanda", {"update": 3}),
        ("methods.wanda", {"settings": [1]}),
        ("evaluation.perplexity", {"windows": 0}),
        ("", {"methods": None}),
        ("", {"sparsities": [0.5]}),
    ],
)
def test_values_out_of_range_name_the_key(where, values):
    (key,) = values
    path = f"{where}.{key}" if where else key
    message = refused(changed(where, **values))
    assert message.startswith(f"params.yaml: {path}: got ")
    assert "\n" not in message


@pytest.mark.parametrize("value", [1.0, 1, -0.1, "1.0", "4:2", "2:2", "0:4", "2/4", "half", float("nan"), True])
def test_sparsities_out_of_range(value):
    message = refused(changed("sparsities", bad=value), InvalidPatternError)
    assert message.startswith("sparsities.bad: got ")
    assert "expected a ratio in [0, 1)" in message


@pytest.mark.parametrize(
    ("label", "better"),
    [
        ("a-b", "a_b"),
        ("a@b", "a_b"),
        ("a b", "a_b"),
        ("", "label"),
        ("a/b", "a_b"),
        ("ä", "label"),
        ("dense", "dense_"),
        ("..", "label"),
        (".work", "work"),
        ("s50.layers", "s50_layers"),
        ("s0.5", "s0_5"),
        ("x;touch F;#", "x_touch_F"),
        ("$(touch F)", "touch_F"),
        ("a" * 101, "a" * 100),
    ],
)
@pytest.mark.parametrize("kind", ["methods", "sparsities"])
def test_labels_that_are_no_file_or_stage_names(kind, label, better):
    value = {"score": "wanda"} if kind == "methods" else 0.5
    message = refused(changed(kind, **{label: value}))
    assert message.startswith(f"params.yaml: {kind}: got the label {label!r}, expected at most 100 letters, digits")
    assert f"Name it e.g. {better}: " in message


def test_more_variants_than_a_graph_can_hold():
    many = {f"m{i}": {"score": "wanda"} for i in range(101)}
    message = refused(changed(methods=many, sparsities={f"s{i}": 0.5 for i in range(100)}))
    assert message == "params.yaml: got 10,100 variants (methods x sparsities), expected at most 10,000. List fewer."


@pytest.mark.parametrize("label", ["s50", "A_1", "v0_5", "_x", "0"])
def test_labels(label):
    assert str(check_params(changed("sparsities", **{label: "1:4"}), "p").pattern(label)) == "1:4"


@pytest.mark.parametrize(
    ("where", "values", "message"),
    [
        ("calibration", {"seed": -1}, "calibration.seed: got -1, expected greater than or equal to 0. "),
        ("calibration", {"seed": 1 << 70}, f"calibration.seed: got {1 << 70}, expected less than {1 << 63}. "),
        ("calibration", {"part": [0.5, 0.2]}, "calibration.part: got [0.5, 0.2], expected 0 <= start < stop <= 1. "),
        ("calibration", {"part": [0.5]}, "calibration.part: got [0.5], expected two numbers, 0 <= start < stop <= 1. "),
        ("sparsities", {"s50": None}, "sparsities.s50: got None, expected a ratio in [0, 1) such as 0.5, or N:M"),
    ],
)
def test_values_out_of_range_are_told_in_plain_words(where, values, message):
    assert refused(changed(where, **values)).startswith(f"params.yaml: {message}")


def test_keys_that_are_no_text():
    params = changed()
    params["methods"][1] = {"score": "wanda"}
    assert "methods.1" in refused(params)
    assert "1" in refused({**changed(), 1: 2})
