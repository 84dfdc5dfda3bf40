"""Where downloads are kept outside of a project, and texts that are known."""

from pathlib import Path

DOWNLOADS = Path(".zpruner/downloads")

NEWS = "pip:gensim==4.4.0/gensim/test/test_data/lee_background.cor"
"""300 English news articles out of a package on PyPI, 65,536 tokens and more: the text where none is named."""
NEWS_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
ARTICLE = "pip:gensim==4.4.0/gensim/test/test_data/para2para_text1.txt"
"""An encyclopedia's article, some 2,600 tokens: something to measure on that nothing is calibrated with."""
KNOWN_SHA256 = {
    NEWS: NEWS_SHA256,
    ARTICLE: "0679c1cfd5f2e10356ed0fa4074effb0fa34b2129c00a180eb8a954ae0f798ac",
}
"""Files in packages whose hash nobody has to give."""
