"""Where downloads are kept outside of a project."""

from pathlib import Path

DOWNLOADS = Path(".zpruner/downloads")
