import time

import pytest

from zpruner.errors import InvalidSettingError
from zpruner.settings.plain_yaml import parse_yaml, read_yaml


def refused(text: str) -> str:
    with pytest.raises(InvalidSettingError) as caught:
        parse_yaml(text, "p")
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_are_those_of_json():
    text = "a: {b: [1, -2, 0x1F, 1.5, 1e3, true, null, ~, 'x', 2:4, on, 1_0]}\nc: &c {d: 1}\ne: *c\nf: {<<: *c, g: 2}"
    found = parse_yaml(text, "p")
    assert found["a"]["b"] == [1, -2, 31, 1.5, 1000.0, True, None, None, "x", "2:4", "on", 10]
    assert found["e"] == {"d": 1}
    assert found["f"] == {"d": 1, "g": 2}
    assert found["e"] is not found["c"]  # an alias shares nothing


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "p.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 2001-01-01", "p: a: got '2001-01-01', expected text, a number, true or false. Put a date in quotes."),
        ("a: [2001-01-01 10:00:00]", "p: a[0]: got '2001-01-01 10:00:00'"),
        ("a: 2001-99-01", "not YAML ('month must be in 1..12')"),
        ("x: 1\na: !!int x", "p, line 2: got the tag 'tag:yaml.org,2002:int'"),
        ("a: !!float 1", "the tag"),
        ("a: !!bool x", "the tag"),
        ("a: !!python/object:os.system {}", "the tag"),
        ("a: " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("a: {b: " + "9" * 20 + "}", "p: a.b: got 99999999999999999999, expected a number of 64 bits"),
        ("5: 1", "p: got the key 5, expected text as keys. Put it in quotes."),
        ("a: {true: 1}", "p: a: got the key True"),
        ("? [a]\n: 1", "got the key ('a',)"),
        ("a: &a [*a]", "p, line 1: got *a, expected the name of a value that is complete"),
        ("[" * 1000, "nested deeper, expected at most 48 levels"),
        ("- " * 1000, "nested deeper"),
        ("a: 1\na: 2", "line 2 (found duplicate key"),
        ("a: 1\n---\nb: 1", "line 2 (but found another document)"),
        ('a: "\\ud800"', "lone surrogates"),
        ('a: "\\0"', "NUL"),
    ],
)
def test_what_no_settings_are_is_refused_in_one_line(text, words):
    assert words in refused(text)


@pytest.mark.parametrize("step", ["[{0}]", "{{<<: [{0}]}}", "{{a: [{0}], b: [{0}]}}"])
def test_aliases_of_aliases_take_neither_time_nor_memory(step):
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {step.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12))]
    start = time.process_time()
    assert "more values, expected at most 65,536, aliases written out" in refused("\n".join(lines))
    assert time.process_time() - start < 1


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_yaml(tmp_path)
    (tmp_path / "long").write_bytes(b"#" * 2_000_000)
    with pytest.raises(InvalidSettingError, match=r"2,000,000 bytes, expected at most 262,144 characters"):
        read_yaml(tmp_path / "long")


def test_an_anchor_that_is_given_twice_stands_for_the_last_value() -> None:
    assert parse_yaml("{a: &x 1, b: *x, c: &x 2, d: *x}", "text") == {"a": 1, "b": 1, "c": 2, "d": 2}
