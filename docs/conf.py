"""The documentation site: `make docs` builds it, and fails on a broken link or reference."""

import re
from importlib import metadata
from typing import Any

import zpruner

# Imported before autodoc does it with typing.TYPE_CHECKING set, in which pydantic cannot build its models.
PUBLIC = {name: getattr(zpruner, name) for name in zpruner.__all__}

project = "zpruner"
author = copyright = "the zpruner maintainers"  # noqa: A001 - Sphinx's name
release = metadata.version("zpruner")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!zpruner\.).*")]  # types of other libraries, and Python's own spellings of them

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/docs/test_doc_runs.py runs it

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say it, with shapes

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = f"zpruner {release}"
html_static_path = ["_static"]
html_css_files = ["zpruner.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def as_restructured_text(
    _app: object, what: str, _name: str, _found: object, _options: object, lines: list[str]
) -> None:
    """Turn the code spans of a docstring into reStructuredText's; what is left are words, bars included."""
    for index, line in enumerate(lines):
        spans = re.split(r"(`[^`]+`)", line)
        lines[index] = "".join(f"`{span}`" if span.startswith("`") else span.replace("|", r"\|") for span in spans)
    if what == "attribute":
        lines.insert(0, "")  # else napoleon takes what stands before a colon for a type


def setup(app: Any) -> None:
    """Register it before napoleon, which has 500."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
