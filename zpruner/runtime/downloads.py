"""Where downloads are kept outside of a project, and texts that are known."""

from pathlib import Path

DOWNLOADS = Path(".zpruner/downloads")

NEWS = "pip:gensim==4.4.0/gensim/test/test_data/lee_background.cor"
"""300 English news articles out of a package on PyPI, 65,536 tokens and more: the text where none is named."""
NEWS_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
MORE_NEWS = "pip:gensim==4.4.0/gensim/test/test_data/lee.cor"
"""50 more, some 5,500 tokens: something to measure on that nothing is calibrated with."""
KNOWN_SHA256 = {
    NEWS: NEWS_SHA256,
    MORE_NEWS: "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
}
"""Files in packages whose hash nobody has to give."""
