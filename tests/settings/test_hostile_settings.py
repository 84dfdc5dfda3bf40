"""Random damage to settings: each is read, or refused in one short line; nothing hangs."""

import random
import string
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from zpruner.errors import ZprunerError
from zpruner.formula import parse_formula
from zpruner.patterns import SparsityPattern
from zpruner.pruning.compose import compose_all
from zpruner.settings.base import canonical_json
from zpruner.settings.reading import read_params

HOW_MANY = [
    pytest.param(150, id="few"),
    pytest.param(5000, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
]
SHIPPED = (tiny.REPOSITORY / "params.yaml").read_text(encoding="utf-8")
PIECES = [
    *(
        "2001-01-01",
        "2001-13-45",
        "!!int x",
        "!!float",
        "!!bool maybe",
        "!!timestamp 1",
        "!!set {a}",
        "!!binary 5",
        "!x y",
    ),
    *("9" * 400, "9" * 5000, "-1", "1e999", ".nan", "-.inf", "0x", "0o9", "1_000", "=", "<<", "~", "null", "on"),
    *(
        "[" * 60,
        "{a: " * 40,
        "- " * 50,
        "]",
        "}",
        "&a",
        "*a",
        "&a [*a]",
        "[*a, *a]",
        "|",
        ">",
        "? ",
        ": ",
        "%",
        "@",
        "`",
    ),
    *(
        "'",
        '"',
        '"\\ud800"',
        '"\\0"',
        "\t",
        "\n",
        "\n\n",
        " ",
        "#",
        ",",
        "---",
        "...",
        "2:4",
        "4:2",
        "\u2028",
        "\ufeff",
        "é",
    ),
    *(
        "{file: x}",
        "{file: ../../etc/passwd}",
        "{file: [1]}",
        "[]",
        "{}",
        "[0.5, 0.1]",
        "a" * 3000,
        "methods:",
        "wanda",
    ),
]
WHOLE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**18,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "2:4",
    [],
    {},
    [None],
    {"": None},
    "~x",
    "*" * 99,
]


def answer(call: Any, *given: Any) -> bool:
    """Call; return whether it accepts, after checking that a refusal is short and comes soon."""
    start = time.process_time()
    try:
        call(*given)
        refusal = ""
    except ZprunerError as error:
        refusal = str(error)
    assert time.process_time() - start < 10
    assert len(refusal.partition("\n")[0]) < 2000, refusal
    return not refusal


def damaged(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text))
        line = text.rfind("\n", 0, start) + 1
        match chance.randrange(5):
            case 0:  # a value
                colon = text.find(":", line)
                end = text.find("\n", colon)
                text = f"{text[: colon + 1]} {chance.choice(PIECES)}{text[end:]}"
            case 1:
                text = f"{text[:start]}{chance.choice(PIECES)}{text[start:]}"
            case 2:
                text = text[:start] + text[start + chance.randint(1, 40) :]
            case 3:
                text = text[:start] + text[line : start + 200] + text[start:]
            case _:
                entry = f"{' ' * chance.randint(0, 4)}{chance.choice(PIECES)}: {chance.choice(PIECES)}"
                text = f"{text[:line]}{entry}\n{text[line:]}"
    return text


def use(path: Path) -> None:
    params = read_params(path)
    compose_all(params)
    for label in params.methods:
        canonical_json(params.method(label))


@pytest.mark.parametrize("count", HOW_MANY)
def test_params(tmp_path, count):
    chance, accepted = random.Random(count), 0
    path = tmp_path / "params.yaml"
    for _ in range(count):
        path.write_text(damaged(SHIPPED, chance), encoding="utf-8", errors="surrogatepass")
        accepted += answer(use, path)
    assert 0 < accepted < count  # neither all nor none: the damage reaches every reader


@pytest.mark.parametrize("count", HOW_MANY)
def test_sparsities(count):
    chance = random.Random(count)
    letters = string.digits * 2 + ".:eE+-_ naif٣²\0\n" + "\ud800"
    accepted = sum(
        answer(SparsityPattern.parse, chance.choice([*WHOLE, 10**400, "9" * 5000 + ":4", b"1", 1j, object()]))
        if chance.random() < 0.1
        else answer(SparsityPattern.parse, "".join(chance.choices(letters, k=chance.randint(0, 9))))
        for _ in range(count)
    )
    assert 0 < accepted < count


@pytest.mark.parametrize("count", HOW_MANY)
def test_formulas(count):
    chance, accepted = random.Random(count), 0
    known = [
        "mul(W, sqrt(X))",
        '{"data": "mul", "left": {"data": "W"}, "right": {"data": "mms", "left": {"data": "G"}}}',
    ]
    pieces = [
        *("W", "X", "sqrt(", "mul(", "div(", ")", ",", "(", "é", "1", "9" * 5000, "NaN", "[" * 5000, '{"data":' * 500)
    ]
    pieces += ['"left"', '"data": "W", ', "null", '"\\ud800"', "abs(" * 70, "\0", "{", "}", " " * 500, "w" * 5000]
    for _ in range(count):
        text = chance.choice(known)
        for _ in range(chance.randint(0, 3)):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(["", chance.choice(pieces)]) + text[at + chance.choice([0, 0, 1, 5]) :]
        accepted += answer(parse_formula, text)
    assert 0 < accepted < count


def test_formulas_of_many_keys_and_nodes_take_no_time():
    nodes = "mul(" * 60 + "W" + ",W)" * 60
    wide = "W"
    for _ in range(13):
        wide = f"add({wide}, {wide})"
    keys = "{" + ", ".join(f'"k{i}": 1' for i in range(6000)) + "}"
    twice = "{" + ", ".join(['"data": "W"'] * 5000) + "}"
    assert answer(parse_formula, nodes)
    assert not any(answer(parse_formula, text) for text in (wide, keys, twice, "W" * 100_000))
