"""KL divergence and top-1 agreement against the dense model."""

from __future__ import annotations

import pytest
import tiny
import torch
from comparing import compare
from transformers import PreTrainedModel

from zpruner.errors import ShapeMismatchError
from zpruner.evaluate import window_losses

WINDOWS = torch.randint(0, tiny.VOCABULARY, (3, 140), generator=torch.Generator().manual_seed(2), dtype=torch.int32)


def damaged(family: str = "llama") -> PreTrainedModel:
    model = tiny.build(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (".layers." in name or ".h." in name):
                parameter.mul_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)) > 0.3)
    return model


def reference(model: PreTrainedModel, dense: PreTrainedModel, window: torch.Tensor) -> tuple[float, float]:
    """The definition in float64: sum p (log p - log q) over the vocabulary, mean over predicted tokens."""
    with torch.no_grad():
        p = dense(input_ids=window[None].long()).logits[0, :-1].double().softmax(-1)
        q = model(input_ids=window[None].long()).logits[0, :-1].double().softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1).mean()
    return float(kl), float((p.argmax(-1) == q.argmax(-1)).double().mean())


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    return damaged(), tiny.build("llama").eval()


def test_against_the_definition(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    windows = WINDOWS[:, :128]
    found = compare(*pair, windows)
    for window, kl, agreement in zip(windows, found.kl, found.agreement, strict=True):
        expected, same = reference(*pair, window)
        assert kl == pytest.approx(expected, rel=1e-4)
        assert agreement == same
        assert 0.0 < agreement < 1.0


def test_of_overlapping_windows_the_last_tokens_count(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    pruned, dense = pair
    window = WINDOWS[0, :100].long()
    with torch.no_grad():
        p, q = (m(input_ids=window[None]).logits[0, -31:-1].double().softmax(-1) for m in (dense, pruned))
    found = compare(pruned, dense, WINDOWS[:1, :100], stride=30)
    assert found.kl[0] == pytest.approx(float((p * (p.log() - q.log())).sum(-1).mean()), rel=1e-4)
    assert found.agreement[0] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_the_direction_is_dense_to_pruned(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    pruned, dense = pair
    there, back = compare(pruned, dense, WINDOWS[:1, :64]), compare(dense, pruned, WINDOWS[:1, :64])
    assert there.kl[0] == pytest.approx(reference(pruned, dense, WINDOWS[0, :64])[0], rel=1e-4)
    assert abs(there.kl[0] / back.kl[0] - 1) > 0.002, "both directions agree by chance: choose other weights"
    assert there.agreement == back.agreement


def test_a_model_does_not_diverge_from_itself() -> None:
    model = tiny.build("gpt2")
    found = compare(model, model, WINDOWS[:2, :40])
    assert found.kl == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found.agreement == [1.0, 1.0]


def test_losses_are_those_of_perplexity(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    windows = WINDOWS[:, :100]
    assert compare(*pair, windows).losses == next(iter(window_losses(pair[0], windows, 3)))


def test_windows_longer_than_a_chunk_of_positions(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    pruned, dense = pair
    long = WINDOWS[:1, :128].repeat(1, 2)[:, :200]
    whole = compare(pruned, dense, long)
    expected, same = reference(pruned, dense, long[0])
    assert whole.kl[0] == pytest.approx(expected, rel=1e-4)
    assert whole.agreement[0] == pytest.approx(same)


def test_both_models_are_timed(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    found = compare(*pair, WINDOWS[:, :32])
    assert found.seconds > 0
    assert found.dense_seconds > 0


def test_another_vocabulary_is_refused() -> None:
    other = tiny.llama(vocab_size=tiny.VOCABULARY + 8).eval()
    with pytest.raises(ShapeMismatchError, match="one vocabulary"):
        compare(other, tiny.build("llama"), WINDOWS[:1, :16])
