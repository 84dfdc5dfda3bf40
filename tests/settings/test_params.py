"""params.yaml: what is read, unknown and missing keys, and equal settings."""

import json
from pathlib import Path

import pytest
import tiny
from settings_cases import changed, refused

from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.pruning.compose import compose
from zpruner.settings.base import canonical_json
from zpruner.settings.params import Choice, MethodSettings
from zpruner.settings.reading import check_params, read_params
from zpruner.types import ComparisonGroup


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
