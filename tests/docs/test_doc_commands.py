"""Every command on every page is one: its program, sub-command and options exist, and its arguments can be read."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PAGES, ROOT, blocks, shell_commands

FOUND = sorted({(page, tuple(words)) for page, words in shell_commands()})
OTHERS = {"pip", "source", "cd", "git", "hf", "apt-get", "export", "prefect", "pytest", "ssh", "aws", "brew", "rsync"}


@cache
def zpruner() -> Any:
    import typer

    from zpruner.cli import app

    return typer.main.get_command(app)


@cache
def dvc() -> Any:
    from dvc.cli.parser import get_main_parser

    return get_main_parser()


def check_zpruner(words: list[str]) -> None:
    import typer

    group = zpruner()
    try:
        context = group.make_context("zpruner", words)
        _, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(command.name, rest, parent=context)
    except typer.Exit:
        pass  # --version


def check_module(path: Path, words: list[str]) -> None:
    """Check that a program is there, and that its folder knows the options."""
    assert path.is_file(), f"{path} is not there"
    sources = [*path.parent.glob("*.py")] if path.parent != ROOT / "benchmarks" else [path]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--"):
            names = (option, f'"{option[2:]}"', f"{option[2:].replace('-', '_')}:")
            assert any(name in text for name in names), f"{path.relative_to(ROOT)} knows no {option}"


def check_python(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        if words[1] in ("venv", "pip", "http.server", "pytest"):
            return
        path = ROOT / words[1].replace(".", "/")
        if path.is_dir():
            assert (path / "__main__.py").is_file()
            check(words[2:])
        else:
            check_module(path.with_suffix(".py"), words[2:])
    elif words[:1] == ["-c"]:
        compile(words[1], "command", "exec")
    else:
        check_module(ROOT / words[0], words[1:])


def check(words: list[str]) -> None:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, rest = words[0], [re.sub(r"^\[(.*)\]$", r"\1", word) for word in words[1:]]
    if program == "zpruner":
        check_zpruner(rest)
    elif program in ("python", "python3", ".venv/bin/python"):
        check_python(rest)
    elif program == "dvc":
        dvc().parse_args(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert {word for word in rest if "=" not in word} <= {*targets}
    elif program == "cp":
        assert not rest[0].startswith("docs/") or (ROOT / rest[0]).is_file()
    else:
        assert program in OTHERS, f"{program} is no command that a page explains"


@pytest.mark.parametrize(("page", "words"), FOUND, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in FOUND])
def test_a_command_can_be_read(page: str, words: tuple[str, ...]) -> None:
    check(list(words))


def test_no_page_puts_into_braces_what_needs_quotes() -> None:
    """`dvc exp run -S` writes params.yaml without quotes: in braces a colon then cannot be read."""
    found = [block.text for page in PAGES for block in blocks(page) if block.language == "yaml"]
    assert found
    assert not [text for text in found if re.search(r'\{[^{}]*"[^"]*:[^"]*"[^{}]*\}', text)]


def test_there_are_commands() -> None:
    assert len(FOUND) > 40
