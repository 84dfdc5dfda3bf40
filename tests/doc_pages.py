"""The pages that people read, and the blocks in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tiny

ROOT = tiny.REPOSITORY
GENERATED = ROOT / "docs/reference/commands.md"
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "data/README.md"}
    | {page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts} - {GENERATED}
)
SHELL = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block: the language behind its fence, and its text without common indentation."""

    page: Path
    language: str
    text: str

    @property
    def name(self) -> str:
        """The page, for the id of a test."""
        return str(self.page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```([\w{}-]*)[^\n]*\n(.*?)^\1```", text, re.M | re.S):
        indent = len(found[1])
        yield Block(page, found[2], "".join(line[indent:] for line in found[3].splitlines(keepends=True)))


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words; of a console block those behind `$`, not what they print."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        for part in re.split(r"\s&&\s", line):
            if words := shlex.split(part, comments=True):
                yield words


def shell_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield page and words of every command on every page."""
    for page in PAGES:
        for block in blocks(page):
            if block.language in SHELL:
                for words in commands(block):
                    yield block.name, words


def prose(page: Path) -> str:
    """Return a page without its fenced blocks and code spans."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", "", text)
