"""The page in a real browser: it draws, sorts, filters, switches colours and shows tooltips."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import pytest
from report_tree import make_tree, read

from zpruner.report import write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PROBE = """
<script>
{
  const shown = () => [...document.querySelectorAll(".results tbody:not(.fixed) tr:not([hidden])")];
  const names = () => shown().map((row) => row.cells[0].textContent + row.cells[1].textContent);
  const head = document.querySelector(".results thead th:nth-child(3)");
  const log = [];
  head.querySelector("button").click();
  log.push(head.getAttribute("aria-sort"), names()[0]);
  head.querySelector("button").click();
  log.push(head.getAttribute("aria-sort"), names()[0]);
  const list = document.querySelector("select[data-filter=method]");
  list.value = "wanda";
  list.dispatchEvent(new Event("change", { bubbles: true }));
  log.push(names().length, document.getElementById("shown").textContent);
  document.getElementById("theme").click();
  log.push(document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor);
  const unfolded = () => document.querySelectorAll("details[open]").length;
  log.push(unfolded());
  dispatchEvent(new Event("beforeprint"));
  log.push(unfolded());
  const cell = [...document.querySelectorAll(".hm tbody td")].find((c) => c.offsetParent);
  cell.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }));
  log.push(document.getElementById("tip").textContent);
  log.push(document.documentElement.scrollWidth <= innerWidth);
  const map = [...document.querySelectorAll(".hm")].find((t) => t.offsetParent);
  const press = (key) => map.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  map.focus();
  press("ArrowRight");
  press("ArrowDown");
  log.push(document.getElementById("said").textContent);
  const choose = (name, value) => {
    const other = document.querySelector(`select[data-filter=${name}]`);
    other.value = value;
    other.dispatchEvent(new Event("change", { bubbles: true }));
  };
  choose("sparsity", "60\u00a0%".replace("\u00a0", " "));
  log.push(names().length);
  document.querySelector("#filters button[type=reset]").click();
  choose("method", "");
  choose("sparsity", "");
  choose("pattern", "2:4");
  log.push(names().length);
  const copied = [];
  navigator.clipboard.writeText = (text) => { copied.push(text); return Promise.resolve(); };
  for (const button of document.querySelectorAll("#results .copy button")) button.click();
  log.push(...copied.map((text) => text.replaceAll("\\n", "; ")));
  document.body.dataset.log = log.join("~");
}
</script>
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium to look at the report with")


def browse(page: Path, profile: Path, *arguments: str) -> str:
    command = [str(BROWSER), *QUIET, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write(read(make_tree(root)), root / "out")
    return root / "out/report.html"


def test_screenshot_is_not_blank(page: Path, tmp_path: Path) -> None:
    # Charts at the top, in a small window: unpacking the image is what takes the time.
    charts = tmp_path / "charts.html"
    charts.write_text(
        page.read_text().replace("</head>", "<style>.headline, #results { display: none }</style></head>")
    )
    image = tmp_path / "report.png"
    browse(charts, tmp_path / "profile", f"--screenshot={image}", "--window-size=600,800")
    width, height, colours = png_colours(image)
    assert (width, height) == (600, 800)
    assert len(colours) > 100
    for colour in ("#fcfbf8", "#1c2127", "#1f6f8b", "#c4571b", "#7b4fa3", "#3c7f3f"):  # paper, ink, four methods
        assert colours[bytes.fromhex(colour[1:])] > 20, colour


def test_sort_filter_theme_choice_and_tooltip(page: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    document = browse(probe, tmp_path / "profile", "--dump-dom", "--window-size=500,900")
    match = re.search(r'data-log="([^"]*)"', document)
    assert match is not None, "the page's script did not run to its end"
    log = match[1].split("~")
    assert log[:4] == ["ascending", "zpruner50 % (s50)", "descending", "magnitude60 % (s60)"]
    assert log[4:6] == ["3", "3 of 12 variants"]
    assert log[6:8] == ["dark", "rgb(21, 24, 28)"]
    assert log[8:10] == ["1", "3"], "one sparsity's heat maps are open; all are for print"
    assert re.fullmatch(r"magnitude, block 0, self_attn\.q_proj: 0\.\d{3}", log[10])
    assert log[11] == "true", "the page is wider than a narrow window"
    assert re.fullmatch(r"magnitude, block 1, self_attn\.k_proj: 0\.\d{3}", log[12]), "arrow keys move in a heat map"
    assert log[13:15] == ["1", "4"], "filters by sparsity and pattern"
    markdown, table = log[15].split("; "), log[16].split("; ")
    assert markdown[0].startswith("| method | pattern | perplexity | change | 95 % interval | layer error |")
    assert markdown[1] == "|---|---|---|---|---|---|---|---|---|"
    names = [line.split(" |")[0] for line in markdown[2:7]]
    assert names == ["| dense", "| magnitude", "| wanda", "| ria", "| zpruner"], "as sorted and filtered"
    assert table[0] == "method,pattern,perplexity,change,95 % interval,layer error,sparsity,MB,time"
    wanda = r"wanda,2:4 \(s24\),[\d.]+,\+[\d.]+ %,[+-].* to [+-].* %,0\.\d+,50\.00 %,269,[\d.]+ s"
    assert re.fullmatch(wanda, table[3])


def png_colours(path: Path) -> tuple[int, int, Counter[bytes]]:
    """Width, height and pixel counts of an 8-bit RGB(A) image."""
    data, position, packed = path.read_bytes(), 8, b""
    width = height = channels = 0
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, chunk = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", chunk[:10])
            assert depth == 8
            channels = {2: 3, 6: 4}[colour]
        if kind == b"IDAT":
            packed += chunk
        position += 12 + length
    stride = width * channels
    raw, above, colours = zlib.decompress(packed), bytes(stride), Counter[bytes]()
    for y in range(height):
        kind_of_filter = raw[y * (stride + 1)]
        line = bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        unfilter(kind_of_filter, line, above, channels)
        colours.update(bytes(line[x : x + 3]) for x in range(0, stride, channels))
        above = bytes(line)
    return width, height, colours


def unfilter(kind: int, line: bytearray, above: bytes, step: int) -> None:
    """Undo one row filter of the PNG standard in place."""
    if kind == 0:
        return
    for i in range(len(line)):
        left, up = line[i - step] if i >= step else 0, above[i]
        corner = above[i - step] if i >= step else 0
        if kind == 4:
            guess = left + up - corner
            near = sorted(((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner)))
            predicted = near[0][2]
        else:
            predicted = {1: left, 2: up, 3: (left + up) // 2}[kind]
        line[i] = (line[i] + predicted) & 255
