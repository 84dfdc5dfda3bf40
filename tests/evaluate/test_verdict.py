"""What is out of all range is said; what is merely worse is not."""

import math

import pytest

from zpruner.evaluate import verdict

VOCABULARY = 1000  # ln 1000 = 6.91


@pytest.mark.parametrize(
    ("losses", "kl", "words"),
    [
        ([3.0, 4.0], [], None),
        ([6.5, 6.8], [2.2, 2.3], None),  # much worse, but no worse than chance and under ten times
        ([6.9, 7.0], [], "collapsed: 6.95 nats per token, where drawing any of 1,000 tokens costs 6.91"),
        ([3.0, math.nan, math.inf], [], "NaN or infinite in 2 of 3 windows"),
        ([3.0, 3.0], [0.5, math.nan], "divergence from the dense model is NaN or infinite in 1 of 2"),
        ([5.0, 5.0], [2.3, 2.4], "out of range: 2.35 nats per token from the dense model, more than 2.30"),
        ([7.5, 7.5], [9.0], "collapsed: 7.50"),
    ],
)
def test_verdict(losses, kl, words):
    found = verdict(losses, kl, VOCABULARY)
    assert (found is None) == (words is None)
    assert words is None or words in str(found)
