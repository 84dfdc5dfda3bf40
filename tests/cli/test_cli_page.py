"""The public names of the library, and what every command shares."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint

import pytest
import tiny
from ruamel.yaml import YAML

import zpruner

Command = Callable[..., tuple[int, str, str]]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom zpruner.cli import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'pyarrow', 'datasets', 'lm_eval', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("prune", "evaluate", "export", "inspect", "methods", "validate"):
        assert f"\n  {name} " in done.stdout


def test_the_public_page_is_lazy_and_complete() -> None:
    assert set(zpruner.__all__) <= set(dir(zpruner))
    for name in zpruner.__all__:
        assert getattr(zpruner, name) is not None
    assert callable(zpruner.calibrate)
    with pytest.raises(AttributeError, match="no attribute 'prume'"):
        zpruner.prume  # noqa: B018


def test_wrong_usage_exits_with_2(command: Command) -> None:
    code, _, err = command("prune", "model")
    assert code == 2
    assert "--output" in err


def test_arguments_that_are_no_text_are_one_sentence(command: Command) -> None:
    code, _, err = command("inspect", "model\udcff")
    assert code == 1
    assert err == (
        "error: the command line: got 'model\\udcff', expected arguments in UTF-8. Rename the file, or link to it.\n"
    )


def test_methods_lists_names_defaults_and_papers(command: Command) -> None:
    code, out, _ = command("methods")
    assert code == 0
    text = " ".join(out.split())
    for expected in (
        "2306.11695",
        "row_weight: 0.7",
        "sq_sum",
        "max_swaps: 100",
        "least_squares",
        '"score": "wanda"',
        "share: 0.3",
    ):
        assert expected in text
    assert "OWL: blocks with more outliers keep more (Yin et al. 2023, arXiv 2310.05175)." in text


def test_the_version_is_that_of_the_package_everywhere(command: Command) -> None:
    settings = tomllib.loads((tiny.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    expected = settings["project"]["version"]
    assert zpruner.__version__ == expected
    assert command("--version") == (0, f"zpruner {expected}\n", "")
    citation = YAML(typ="safe", pure=True).load((tiny.REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == expected
    changes = (tiny.REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{expected}] - {citation['date-released']}\n" in changes


def test_the_command_that_is_installed_ends_as_the_module_does() -> None:
    """`zpruner` and `python -m zpruner` are one: Ctrl-C is told to the end of the process under both."""
    scripts = tomllib.loads((tiny.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    command = EntryPoint("zpruner", scripts["zpruner"], "console_scripts").load()
    assert command is import_module("zpruner.__main__").main
