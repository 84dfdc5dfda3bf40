"""The rendered table, Markdown, HTML and plots."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_tree import METHODS, SPARSITIES, edit, make_tree, put, read

from zpruner.errors import InvalidPatternError
from zpruner.report import render_table, write
from zpruner.report.figures import blocks
from zpruner.report.ranking import Report

HOSTILE = "<script>alert(1)</script>\"'&|`*]]>"
FILES = ("report.html", "report.md", "summary.json", "plots/perplexity.json", "plots/layers.json")


class Page(HTMLParser):
    """Collects tags, attributes and text; notices tags that close what is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.styles.append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write(read(make_tree(root)), root / "out")
    return root / "out"


def test_the_numbers_of_every_variant_appear(rendered: Path, tmp_path: Path) -> None:
    page = Page((rendered / "report.html").read_text())
    markdown = (rendered / "report.md").read_text()
    data = read(make_tree(tmp_path))
    table = render_table(data, width=80, color=False)
    for variant in data.variants:
        metrics = variant.evaluation.metrics
        number = f"{metrics.perplexity:.2f}" if metrics.perplexity < 100 else f"{metrics.perplexity:,.1f}"
        change = (metrics.perplexity / data.dense.metrics.perplexity - 1) * 100
        for text in (page.text, markdown, table):
            assert number in text
            assert (f"{change:+,.0f}" if change >= 1000 else f"{change:+.1f}") in text
            assert f"{metrics.layer_error:#.3g}" in text
        assert f"dvc repro evaluate@{variant.spec.name}" in page.text
        assert f"data/pruned/{variant.spec.method}/{variant.spec.sparsity}" in markdown
    for text in (page.text, markdown):
        assert "by itself neither smaller nor faster" in text
    assert "1f4e9a7" in page.text
    assert "c0ffee12" in page.text


def test_html_is_well_formed_and_every_label_has_its_input(rendered: Path) -> None:
    page = Page((rendered / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    targets = [value for _, key, value in page.attributes if key in ("for", "aria-labelledby")]
    targets += [value[1:] for tag, key, value in page.attributes if tag == "a" and key == "href" and value[0] == "#"]
    assert targets
    assert set(targets) <= set(page.ids)
    assert page.tags.count("h1") == 1
    charts = [value for tag, key, value in page.attributes if tag == "svg" and (key, value) == ("role", "img")]
    labels = [value for tag, key, value in page.attributes if tag == "svg" and key == "aria-label"]
    assert len(charts) == len(labels) == 3 + 3, "change and layer error at each sparsity"


def test_html_asks_nothing_of_the_outside(rendered: Path) -> None:
    text = (rendered / "report.html").read_text()
    page = Page(text)
    fetching = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "formaction"}
    references = {value for _, key, value in page.attributes if key in fetching}
    assert all(value.startswith(("#", "data:,", "../")) for value in references), references
    assert "../pruned/wanda/s50/" in references, "checkpoints are linked"
    assert not set(page.tags) & {"iframe", "object", "embed", "base", "img", "video", "audio"}
    code = "\n".join(page.styles)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|//[a-z]+\.", code)
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text, "the browser itself refuses every request"
    assert len(text.encode()) < 500_000


def test_hostile_labels_are_text(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("/", ":")  # labels name folders
    methods: dict[str, Any] = {hostile: {"score": HOSTILE}, "wanda": METHODS["wanda"]}
    tree = make_tree(tmp_path, methods, SPARSITIES)
    for path in tree.glob("evaluation/*/*.layers.json"):
        details = json.loads(path.read_text())
        details["layers"][0]["kind"] = HOSTILE
        details["provenance"][HOSTILE] = path.parent.name + path.name
        put(path, details)
    data = read(tree, methods, SPARSITIES, model={"name": HOSTILE}, provenance={HOSTILE: HOSTILE})
    write(data, tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "alert(1)</script>" not in text
    assert HOSTILE in page.text
    assert any(HOSTILE in value or hostile in value for _, key, value in page.attributes if key == "data-t")
    markdown = (tmp_path / "out/report.md").read_text()
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown.replace("\\`", ""))
    assert "<script" not in outside
    rows = [line for line in markdown.splitlines() if line.startswith("| \\<") or line.startswith("| &lt;")]
    assert rows
    tables = 3  # results, offers, commands
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == tables
    assert "\x1b" not in render_table(data, width=80, color=False)


def test_equal_data_gives_equal_bytes(rendered: Path, tmp_path: Path) -> None:
    write(read(make_tree(tmp_path)), tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (rendered / name).read_bytes(), name
    assert sorted(p.name for p in rendered.rglob("*")) == sorted(["plots", *(Path(n).name for n in FILES)])


def test_only_dense(tmp_path: Path) -> None:
    data = read(make_tree(tmp_path, {}, {}), {}, {})
    write(data, tmp_path / "out")
    page = Page((tmp_path / "out/report.html").read_text())
    assert "Only the dense model has been evaluated so far: perplexity" in page.text
    assert not {"perplexity", "layers", "masks", "filters"} & set(page.ids)
    assert "dense" in render_table(data, width=80, color=False)
    assert json.loads((tmp_path / "out/plots/layers.json").read_text()) == []
    assert len(json.loads((tmp_path / "out/plots/perplexity.json").read_text())) == 1


def test_broken_models_are_shown_and_not_drawn(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    for label, value in (("s50", math.inf), ("s60", math.nan)):
        edit(tree / f"evaluation/magnitude/{label}.json", perplexity=value, loss=value)
        edit(tree / f"evaluation/magnitude/{label}.layers.json", window_losses=[value] * 16)
    data = read(tree)
    write(data, tmp_path / "out")
    page = Page((tmp_path / "out/report.html").read_text())
    assert "magnitude 2:4" in page.text
    assert "magnitude 50 %" not in page.text.replace("\u202f", " "), "no offer"
    table = render_table(data, width=80, color=False)
    assert re.search(r"magnitude \| 50 % \(s50\) \| +inf +\| +inf", table)
    assert re.search(r"magnitude \| 60 % \(s60\) \| +NaN +\| +NaN", table)
    points = json.loads((tmp_path / "out/plots/perplexity.json").read_text(), parse_constant=pytest.fail)
    assert points[1] == {"method": "magnitude", "pattern": "0.5", "sparsity": 0.5, "perplexity": None}


@pytest.mark.parametrize("broken", ["dense", "all"])
def test_nothing_finite_to_compare(tmp_path: Path, broken: str) -> None:
    tree = make_tree(tmp_path, METHODS, {"s50": "0.5"})
    for path in tree.glob("evaluation/**/*.json"):
        if path.name == "dense.json" or (broken == "all" and not path.name.endswith("layers.json")):
            edit(path, perplexity=math.nan)
        elif path.name == "dense.layers.json" or broken == "all":
            edit(path, window_losses=[math.nan] * 16)
    write(read(tree, METHODS, {"s50": "0.5"}), tmp_path / "out")
    page = Page((tmp_path / "out/report.html").read_text())
    assert "perplexity" not in page.ids
    assert ("No pruned variant has a finite perplexity" in page.text) == (broken == "all")


def test_table_fits_80_columns_and_is_ascii(tmp_path: Path) -> None:
    table = render_table(read(make_tree(tmp_path)), width=80, color=False)
    assert table.isascii()
    assert max(len(line) for line in table.splitlines()) <= 80
    lines = [line for line in table.splitlines() if "*" in line and "|" in line]
    assert len(lines) == len(SPARSITIES)
    assert all(line.startswith("zpruner") for line in lines)
    assert "\x1b[" in render_table(read(tmp_path / "data"), width=80, color=True)


def test_table_is_plain_when_stdout_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table = render_table(read(make_tree(tmp_path)))
    assert "\x1b" not in table
    assert max(len(line) for line in table.splitlines()) <= 60


def test_layer_plot_has_one_point_per_variant_and_block(rendered: Path) -> None:
    points = json.loads((rendered / "plots/layers.json").read_text())
    assert len(points) == len(METHODS) * len(SPARSITIES) * 4
    assert points[0].keys() == {"method_sparsity", "block", "layer_error", "sparsity"}


def test_nothing_is_replaced_when_rendering_fails(rendered: Path, tmp_path: Path) -> None:
    data = read(make_tree(tmp_path, METHODS, {"s50": "0.5"}), METHODS, {"s50": "0.5"})
    write(data, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    broken = read(tmp_path / "data", METHODS, {"s50": "not a ratio"})
    with pytest.raises(InvalidPatternError, match="not a ratio"):
        write(broken, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before


def test_sparsity_per_block_is_drawn_where_it_differs_with_ticks_of_its_own(tmp_path: Path) -> None:
    methods, sparsities = {"wanda": METHODS["wanda"]}, {"s24": "2:4"}
    data = make_tree(tmp_path, methods, sparsities)
    assert blocks.sparsity(Report.of(read(data, methods, sparsities))) is None, "every block stands at 50 %"
    path = data / "evaluation" / "wanda" / "s24.layers.json"
    layers = json.loads(path.read_text())["layers"]
    edit(path, layers=[{**layer, "sparsity": 0.5 + 1e-3 * layer["block"]} for layer in layers])
    figure = blocks.sparsity(Report.of(read(data, methods, sparsities)))
    assert figure is not None
    labels = re.findall(r">([\d.]+%)<", figure.body)
    assert len(labels) == len(set(labels)) >= 2


def test_one_sparsity_leaves_no_empty_frame(tmp_path: Path) -> None:
    two = {"s50": "0.5", "s24": "2:4"}
    write(read(make_tree(tmp_path, METHODS, two), METHODS, two), tmp_path / "out")
    text = Page((tmp_path / "out/report.html").read_text()).text
    assert "Perplexity against cost" not in text
    assert "Change against dense" in text


def test_markdown_holds_headline_table_and_commands(rendered: Path) -> None:
    text = (rendered / "report.md").read_text()
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == [
        "# Pruning report: SmolLM2-135M-Instruct",
        "## Results",
        "## Bytes and speed",
        "## Provenance",
    ]
    assert "In order: zpruner " in text
    assert "| wanda | 50 % (s50) | " in text
    assert "| wanda-s50 | `data/pruned/wanda/s50` | `dvc repro evaluate@wanda-s50` |" in text


def test_the_summary_has_few_numbers_of_every_variant(rendered: Path, tmp_path: Path) -> None:
    found = json.loads((rendered / "summary.json").read_text())
    data = read(make_tree(tmp_path))
    assert list(found) == sorted(["dense", *(v.spec.name for v in data.variants)])
    assert found["dense"] == {"perplexity": data.dense.metrics.perplexity, "sparsity": 0.0, "MB": 269.0}
    wanda = data.variants[3]
    assert found["wanda-s50"] == {
        "perplexity": wanda.metrics.perplexity,
        "change": pytest.approx(wanda.metrics.perplexity / data.dense.metrics.perplexity - 1),
        "sparsity": 0.5,
        "MB": 269.0,
    }
