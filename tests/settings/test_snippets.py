"""What README and docs say of params.yaml can be run as it stands."""

import re
from pathlib import Path

import pytest
import tiny
import yaml_params
from ruamel.yaml import YAML

from zpruner.pruning.compose import compose_all
from zpruner.settings.reading import check_params

PAGES = [tiny.REPOSITORY / "README.md", tiny.REPOSITORY / "CONTRIBUTING.md", *(tiny.REPOSITORY / "docs").rglob("*.md")]
SECTIONS = {"model", "machine", "calibration", "methods", "sparsities", "evaluation", "search", "packed"}
FOUND = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in sorted(PAGES)
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]


def merged(onto: dict, snippet: dict) -> dict:
    """Return settings with those of a snippet in their place; a list of methods or sparsities replaces the whole."""
    result = dict(onto)
    for key, value in snippet.items():
        nested = isinstance(value, dict) and isinstance(onto.get(key), dict) and key not in ("methods", "sparsities")
        result[key] = merged(onto[key], value) if nested else value
    return result


@pytest.mark.parametrize("text", FOUND)
def test_a_snippet_of_params_passes_the_checks(text: str) -> None:
    snippet = YAML(typ="safe", pure=True).load(text.replace("hf:ORG/NAME@COMMIT", f"hf:ORG/NAME@{'0' * 40}"))
    if not isinstance(snippet, dict):
        pytest.skip("no mapping")
    if not snippet.keys() <= SECTIONS:
        compositions = {key: value for key, value in snippet.items() if isinstance(value, dict) and "score" in value}
        if not compositions:
            pytest.skip("not of params.yaml")
        snippet = {"methods": compositions}
    shipped = yaml_params.shipped()
    if "methods" in snippet:  # solvers and refinements choose single weights
        single = {
            label: value for label, value in shipped["sparsities"].items() if not str(value).startswith("neurons")
        }
        shipped["sparsities"] = single
    params = merged(shipped, snippet)
    if "methods" in snippet or "sparsities" in snippet:
        params["evaluation"] = {**params["evaluation"], "checkpoints": "all"}
        params.pop("packed", None)
    compose_all(check_params(params, "the snippet"))


def test_there_are_snippets() -> None:
    assert len(FOUND) >= 4
    assert Path(yaml_params.__file__).is_file()
