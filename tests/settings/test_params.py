import copy
import json
from pathlib import Path

import pytest
import tiny

from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.pruning.composition import compose
from zpruner.settings.base import canonical_json
from zpruner.settings.params import Choice, MethodSettings
from zpruner.settings.reading import check_params, read_params
from zpruner.types import ComparisonGroup


def changed(where="", **values):
    """Return the tiny settings with `values` set at the dotted path `where`."""
    params = copy.deepcopy(tiny.PARAMS)
    found = params
    for part in where.split(".") if where else ():
        found = found[part]
    found.update(values)
    return params


def refused(params, error=InvalidSettingError):
    with pytest.raises(error) as caught:
        check_params(params, "params.yaml")
    return str(caught.value)


def test_the_shipped_settings_load():
    params = read_params(tiny.REPOSITORY / "params.yaml")
    assert str(params.pattern("s24")) == "2:4"
    assert params.method("wanda").group is ComparisonGroup.ROW
    for label in params.methods:
        params.method(label)


def test_settings_are_frozen():
    params = check_params(changed(), "p")
    with pytest.raises(ValueError, match="frozen"):
        params.calibration.seed = 3


@pytest.mark.parametrize(
    ("where", "key", "known"),
    [
        ("", "metods", "methods"),
        ("machine", "devise", "device"),
        ("calibration", "nsample", "nsamples"),
        ("methods.wanda", "grup", "group"),
        ("evaluation", "perplexities", "perplexity"),
        ("evaluation.perplexity", "sequlen", "seqlen"),
        ("evaluation.perplexity", "window", "windows"),
    ],
)
def test_unknown_keys_are_answered_with_the_nearest(where, key, known):
    path = f"{where}.{key}" if where else key
    message = refused(changed(where, **{key: 1}))
    assert message == f"params.yaml: got unknown key '{path}', expected a known key. Did you mean '{known}'?"


TEXT = {"source": "source/text.txt", "documents": "lines", "part": [0.5, 1.0], "seqlen": 16}


def searching(**values):
    """Return the tiny settings with a search on the last quarter of the text."""
    return changed(search={"text": {**TEXT, "source": "source/other.txt"}, "sparsities": [0.5], **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"poulation": 3}, "unknown key 'search.poulation', expected a known key. Did you mean 'population'?"),
        (
            {"text": {**TEXT, "seqlem": 3}},
            "unknown key 'search.text.seqlem', expected a known key. Did you mean 'seqlen'",
        ),
        ({"tournament": 0}, "search.tournament: got 0"),
        ({"crossover": 0.8}, "crossover and mutation together may be at most 1"),
        ({"max_seconds": 0}, "search.max_seconds: got 0"),
        ({"rungs": [4, 2]}, "rungs must be positive and strictly increasing"),
        ({"terminals": ["W", "Q"]}, "search.terminals.1: got 'Q'"),
        ({"sparsities": []}, "search.sparsities"),
        ({"group": "rows"}, "search.group"),
        ({"text": TEXT}, "search.text.part: got [0.5, 1.0], which overlaps with evaluation.perplexity.part"),
        (
            {"text": {**TEXT, "part": [0.2, 0.3]}},
            "which overlaps with calibration.part, [0.0, 0.5], of the same source",
        ),
    ],
)
def test_settings_of_a_search(values, words):
    assert check_params(searching(), "params.yaml").search.population == 40
    assert words in refused(searching(**values))


def test_sparsities_of_a_search():
    assert "'5:4'" in refused(searching(sparsities=[0.5, "5:4"]), InvalidPatternError)


def test_a_misspelt_key_that_must_be_there_is_called_misspelt_not_missing():
    assert refused(changed("methods", mine={"scor": "wanda"})).endswith("Did you mean 'score'?")


def test_unknown_key_of_a_part():
    for part in ("refine", "update"):
        message = refused(changed("methods.wanda", **{part: {"name": "x", "setings": {}}}))
        assert message.endswith(f"'methods.wanda.{part}.setings', expected a known key. Did you mean 'settings'?")


@pytest.mark.parametrize("label", ["score", "update", "settings", "wanda"])
def test_a_label_may_be_called_like_a_key(label):
    message = refused(changed("methods", **{label: {"score": "wanda", "grup": "row"}}))
    assert message.endswith("Did you mean 'group'?")


def test_an_unknown_key_like_no_other_lists_what_is_known():
    assert "Known: batch_size, bos, column," in refused(changed("calibration", zzz=1))


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ("", "calibration"),
        ("", "methods"),
        ("model", "source"),
        ("calibration", "nsamples"),
        ("calibration", "seqlen"),
        ("methods.wanda", "score"),
        ("evaluation", "perplexity"),
    ],
)
def test_missing_keys(where, key):
    params = changed()
    found = params
    for part in where.split(".") if where else ():
        found = found[part]
    del found[key]
    path = f"{where}.{key}" if where else key
    assert refused(params) == f"params.yaml: got no '{path}', expected a value. Add {path}."


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


def test_unknown_labels():
    params = check_params(changed(), "p")
    with pytest.raises(InvalidSettingError, match=r"methods: got label 'wand'.*Did you mean 'wanda'"):
        params.method("wand")
    with pytest.raises(InvalidSettingError, match=r"sparsities: got label 's5'.*Did you mean 's50'"):
        params.pattern("s5")


def test_parts_as_text_or_as_a_mapping():
    short = MethodSettings.model_validate({"score": "wanda", "refine": "swaps", "update": "obs"})
    long = MethodSettings.model_validate(
        {"score": "wanda", "refine": {"name": "swaps"}, "update": {"name": "obs", "settings": {}}}
    )
    assert short == long
    assert (short.refine, short.update) == (Choice(name="swaps"), Choice(name="obs"))
    assert MethodSettings(score="wanda").update is None
    with_settings = MethodSettings.model_validate(
        {"score": "wanda", "update": {"name": "obs", "settings": {"damping": 0.1}}}
    )
    assert with_settings.update.settings == {"damping": 0.1}


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 1\na: 2\n", "\t- x", "a: 'x", "a: &x\nb: *y", "!!python/object:os.system {}"]
)
def test_text_that_is_not_yaml(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSettingError) as caught:
        read_params(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_settings(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InvalidSettingError, match=r"no file.*holds params\.yaml"):
        read_params(path)
    for text in ("", "[]", "text", "1"):
        path.write_text(text)
        with pytest.raises(InvalidSettingError, match="expected a mapping"):
            read_params(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSettingError, match="not UTF-8"):
        read_params(path)


def test_unquoted_n_of_m_is_text(tmp_path):
    text = json.dumps(changed(sparsities={"x": 0})).replace('"x": 0', '"x": 2:4, y: .5')
    (tmp_path / "params.yaml").write_text(text)
    params = read_params(Path(tmp_path / "params.yaml"))
    assert (str(params.pattern("x")), params.pattern("y").ratio) == ("2:4", 0.5)


def test_equal_settings_have_equal_text():
    one = MethodSettings.model_validate(
        {"score": "wanda", "settings": {"a": 1, "b": 2}, "group": "row", "update": "obs"}
    )
    two = MethodSettings(update=Choice(name="obs"), group=ComparisonGroup.ROW, settings={"b": 2, "a": 1}, score="wanda")
    assert canonical_json(one) == canonical_json(two)
    other = MethodSettings(score="wanda", settings={"a": 1, "b": 3}, group=ComparisonGroup.ROW)
    assert canonical_json(one) != canonical_json(other)
    assert canonical_json({"b": 1, "a": 2}) == '{"a": 2, "b": 1}'


@pytest.mark.parametrize(
    "profile", sorted((tiny.REPOSITORY / "docs" / "profiles").glob("*.yaml")), ids=lambda p: p.stem
)
def test_profiles_in_the_docs_load_and_compose(profile):
    params = read_params(profile)
    for method in params.methods.values():
        compose(method)


def test_one_pattern_of_checkpoints_needs_no_list():
    data = changed("evaluation", checkpoints="wanda/*")
    assert check_params(data, "params.yaml").evaluation.checkpoints == ("wanda/*",)
