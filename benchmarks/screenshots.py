"""Take the README's pictures of the report: `python benchmarks/screenshots.py [data/report/report.html]`.

Writes docs/report.png (light, the top) and docs/report-dark.png (dark, the charts). Needs chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")


def take(page: str, out: Path, *options: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: no chromium. Install it, e.g. with apt-get install chromium.")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--screenshot={out}", "--window-size=1200,1260", *options, page]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(f"{out} ({out.stat().st_size / 1000:.0f} kB)")


def main() -> None:
    report = Path(sys.argv[1] if len(sys.argv) > 1 else "data/report/report.html").resolve()
    if not report.is_file():
        sys.exit(f"error: {report}: no report. Run `make repro` first.")
    take(report.as_uri(), DOCS / "report.png")
    with tempfile.TemporaryDirectory() as folder:
        # A picture starts at the top of the page: what stands above the charts is left out.
        style = "<style>header, .headline, #results { display: none }</style></head>"
        charts = Path(folder) / "charts.html"
        charts.write_text(report.read_text(encoding="utf-8").replace("</head>", style), encoding="utf-8")
        take(charts.as_uri(), DOCS / "report-dark.png", *DARK)


if __name__ == "__main__":
    main()
