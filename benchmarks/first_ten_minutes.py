"""The first ten minutes of a new user: a fresh clone, the installation, the default job, and every way in.

    python benchmarks/first_ten_minutes.py FOLDER [--write] [--only-job]

Clones this commit into FOLDER (which must not exist) and types there, word for word, what README, the tutorial and
docs/flows.md say. Ends at the first command that fails. What was printed and how long it took goes to standard output;
--write puts it into benchmarks/results/first_ten_minutes.md, the table and the time into README.md, what commands print
into the tutorial, and takes the pictures of the report (which needs chromium). Some fifteen minutes on a quiet machine;
--only-job ends after the default job, and takes five beside the installation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from doc_pages import Block, blocks

from stages._project import Project
from stages.report import read
from zpruner.report import format as fmt
from zpruner.report.offers import offers
from zpruner.report.ranking import Report

ROOT = Path(__file__).parent.parent
README, TUTORIAL, FLOWS = ROOT / "README.md", ROOT / "docs/start/tutorial.md", ROOT / "docs/flows.md"
RECORD = ROOT / "benchmarks/results/first_ten_minutes.md"
INSTALL, JOB = "make .venv/.installed", "make repro"
SHELL = ("bash", "console")
SHOWN = 60
"""Lines of a command's output that the record keeps: the last ones."""


@dataclass(frozen=True)
class Typed:
    """A command, how long it took, what it printed, and what it said on standard error."""

    command: str
    seconds: float
    printed: str
    said: str


def type_in(command: str, folder: Path) -> Typed:
    """Run a command as a user does who has activated the environment; a failure ends all."""
    path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    start = perf_counter()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=outside | {"PATH": path, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = Typed(command, perf_counter() - start, *(anywhere(text, folder) for text in (done.stdout, done.stderr)))
    print(f"$ {found.command}    # {took(found.seconds)}\n{found.said}\n{found.printed}\n", flush=True)
    if done.returncode:
        sys.exit(f"error: `{command}` ended with {done.returncode}.")
    return found


def anywhere(text: str, folder: Path) -> str:
    """Return what was printed without what only this machine has: its folders, and its package index."""
    for place, name in ((folder, "~/zpruner"), (Path.home(), "~"), (Path(tempfile.gettempdir()), "/tmp")):
        text = text.replace(str(place.resolve()), name)
    kept = (line for line in text.splitlines() if "file:///" not in line)
    return "\n".join(kept).rstrip()


def took(seconds: float) -> str:
    """Return a time for a reader: `2 m 05 s`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds // 60:.0f} m {seconds % 60:02.0f} s"


def typed_in(block: Block) -> Iterator[str]:
    """Yield the commands of a block as they stand, without comments; Python is one command."""
    if block.language == "python":
        yield f"python - <<'END'\n{block.text}END"
    for line in block.text.splitlines() if block.language in SHELL else ():
        command = line.removeprefix("$ ") if block.language == "console" else line
        if command != line or block.language == "bash":
            yield re.sub(r"\s+#.*", "", command)


def follow(page: Path, folder: Path) -> list[Typed]:
    """Type what a page says, block by block; what it writes is new for every page.

    The settings in the tutorial's YAML go into params.yaml; README's are an example.
    """
    done = []
    for name in ("OUT", "SMALL", "RELEASE"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for block in blocks(page):
        if block.language == "yaml" and page == TUTORIAL:
            change(folder / "params.yaml", block.text)
        done += [type_in(command, folder) for command in typed_in(block) if not command.startswith(("make", "source"))]
    return done


def change(path: Path, snippet: str) -> None:
    """Put the sections of a snippet in the place of those of params.yaml."""
    yaml = YAML()
    yaml.preserve_quotes = True  # "2:4" is a number without
    params = yaml.load(path)
    params.update(yaml.load(snippet))
    yaml.dump(params, path)


def table(folder: Path) -> str:
    """Return perplexities by method and sparsity in Markdown, the lowest of a sparsity bold, and what remains in MB."""
    data = read(Project.open(folder))
    report, found = Report.of(data), {offer.variant: offer for offer in offers(data)}
    patterns = {standing.variant.spec.sparsity: standing.variant.spec for standing in report.standings}
    dense = found["dense"]
    lines = [["dense", *[fmt.perplexity(dense.perplexity)] * len(patterns)]]
    cells = {
        standing.variant.spec.name: f"{'**' * standing.best}{fmt.perplexity(standing.perplexity)}{'**' * standing.best}"
        for standing in report.standings
    }
    lines += [[f"`{method}`", *(cells[f"{method}-{sparsity}"] for sparsity in patterns)] for method in data.methods]
    smallest = {
        sparsity: min(o.disk for o in found.values() if o.variant.endswith(f"-{sparsity}")) for sparsity in patterns
    }
    sizes = (fmt.megabytes(size) for size in smallest.values())
    lines.append([f"MB of {fmt.megabytes(dense.disk)}, packed or smaller", *sizes])
    head = f"| | {' | '.join(spec.pattern_text for spec in patterns.values())} |\n|---|{'--:|' * len(patterns)}\n"
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the comments `name` and `/name` of a page."""
    page = path.read_text(encoding="utf-8")
    found = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.S)
    assert len(found.findall(page)) == 1, f"{path}: no place for {name}"
    path.write_text(found.sub(lambda match: f"{match[1]}{text}{match[2]}", page), encoding="utf-8")


def put_printed(page: Path, done: list[Typed]) -> None:
    """Replace what a page shows that its commands print."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        lines, fresh = block.text.splitlines(), []
        printed = {one.command: one.printed for one in done}
        for index, line in enumerate(lines):
            if line.startswith("$ "):
                fresh.append(line)
                command = re.sub(r"\s+#.*", "", line.removeprefix("$ "))
                shows = index + 1 < len(lines) and not lines[index + 1].startswith("$ ")
                fresh += printed[command].splitlines() if shows else []
        if block.language == "console":
            text = text.replace(block.text, "\n".join(fresh) + "\n")
    page.write_text(text, encoding="utf-8")


def record(done: list[Typed], machine: str, commit: str) -> str:
    """Return the run for a reader: times, then what was printed."""
    rows = [f"| {index} | `{name(one)}` | {took(one.seconds)} |\n" for index, one in enumerate(done, 1)]
    text = (
        "# The first ten minutes\n\n"
        f"`python benchmarks/first_ten_minutes.py FOLDER --write` on {machine}, commit {commit}: a fresh\n"
        "clone, and what README, the tutorial and docs/flows.md say to type, word for word.\n\n"
        f"| | command | time |\n|--:|---|--:|\n{''.join(rows)}"
    )
    for index, one in enumerate(done, 1):
        lines = [*one.said.splitlines(), *one.printed.splitlines()]
        cut = [f"({len(lines) - SHOWN} lines before)"] * (len(lines) > SHOWN)
        shown = "\n".join([*(f"$ {line}" if not i else line for i, line in enumerate(one.command.splitlines())), *cut])
        text += f"\n## {index}\n```text\n{shown}\n{chr(10).join(lines[-SHOWN:])}\n```\n"
    return text


def name(one: Typed) -> str:
    """Return a command in one line."""
    return "python, README's lines" if "\n" in one.command else one.command


def machine() -> str:
    """Return what this runs on."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    assert cpu is not None
    return f"{os.cpu_count()} cores of an {cpu[1]}"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main(
    folder: Annotated[Path, typer.Argument(help="Where to clone to.")],
    write: Annotated[bool, typer.Option("--write", help="Put what was found into the pages.")] = False,
    only_job: Annotated[bool, typer.Option("--only-job", help="End after the default job.")] = False,
) -> None:
    """Type it all."""
    folder = folder.resolve()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    done = [type_in(command, folder) for command in (INSTALL, JOB)]
    if write:
        put(README, "table", f"\n{table(folder)}")
        put(README, "time", f"{took(done[1].seconds)} on {machine()}")
        screenshots = [sys.executable, ROOT / "benchmarks/screenshots.py", folder / "data/report/report.html"]
        subprocess.run(screenshots, check=True)
    if only_job:
        return
    tutorial = follow(TUTORIAL, folder)
    flow = next(command for block in blocks(FLOWS) for command in typed_in(block))
    done += [*tutorial, *follow(README, folder), type_in(flow, folder)]
    if write:
        put_printed(TUTORIAL, tutorial)
        RECORD.write_text(record(done, machine(), git("rev-parse", "--short", "HEAD")), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
