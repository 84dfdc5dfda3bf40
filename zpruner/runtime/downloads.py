"""Where downloads are kept outside of a project."""

from pathlib import Path

DOWNLOADS = Path(".zpruner/downloads")

NEWS = "pip:gensim==4.4.0/gensim/test/test_data/lee_background.cor"
"""300 English news articles out of a package on PyPI, 65,536 tokens and more: the text where none is named."""
NEWS_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
