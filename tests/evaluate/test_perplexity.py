import math

import pytest
import tiny
import torch

from zpruner.errors import NonFiniteError
from zpruner.evaluate import perplexity, perplexity_of, window_losses

WINDOWS = torch.randint(0, tiny.VOCABULARY, (5, 20), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def plain(model, windows):
    """The published protocol, written out: exp of the mean over windows of the mean over predicted tokens."""
    total = 0.0
    for window in windows.tolist():
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0].double()
        loss = 0.0
        for position in range(len(window) - 1):
            row = logits[position]
            loss += float(torch.logsumexp(row, 0) - row[window[position + 1]])
        total += loss / (len(window) - 1)
    return math.exp(total / len(windows))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_perplexity_is_that_of_a_plain_loop(family):
    model = tiny.build(family)
    assert perplexity(model, WINDOWS) == pytest.approx(plain(model, WINDOWS), rel=1e-5)


def test_the_batch_size_changes_nothing_beyond_rounding():
    model = tiny.build("llama")
    assert perplexity(model, WINDOWS, 2) == pytest.approx(perplexity(model, WINDOWS, 5), rel=1e-5)
    assert [len(losses) for losses in window_losses(model, WINDOWS, 2)] == [2, 2, 1]


def test_losses_are_computed_in_float32():
    """In bfloat16 the log-softmax alone would be off by about 1 %."""
    model = tiny.build("llama").bfloat16()
    assert perplexity(model, WINDOWS, 1) == pytest.approx(plain(model, WINDOWS), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 7, 19, 20])
def test_of_overlapping_windows_the_last_tokens_count(stride):
    """Slow and plain: every counted token is predicted from its window alone, in float64."""
    model, ids = tiny.build("llama"), WINDOWS.reshape(-1).tolist()
    windows = torch.tensor([ids[start : start + 20] for start in range(0, len(ids) - 19, stride)])
    losses = []
    for window in windows.tolist():
        with torch.no_grad():
            log_p = model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        nll = [-float(log_p[at - 1, window[at]]) for at in range(max(1, 20 - stride), 20)]
        losses.append(sum(nll) / len(nll))
    assert perplexity(model, windows, stride=stride) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert perplexity(model, windows) != pytest.approx(perplexity(model, windows, stride=7), rel=1e-3)


def test_longer_windows_weigh_no_more():
    losses = [1.0, 2.0, 6.0]
    assert perplexity_of(losses) == pytest.approx(math.exp(3.0))


def test_extremes():
    assert perplexity_of([1000.0]) == math.inf
    assert perplexity_of([math.inf, 1.0]) == math.inf
    with pytest.raises(NonFiniteError, match="perplexity: got a NaN loss"):
        perplexity_of([1.0, math.nan])


def test_a_model_that_computes_nan():
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        perplexity(model, WINDOWS)
