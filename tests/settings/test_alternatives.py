"""A setting that takes a number or a word: what is neither gets one sentence that names the key and both forms."""

from __future__ import annotations

import pytest

from zpruner.errors import InvalidSettingError
from zpruner.pruning.compose import compose
from zpruner.settings.params import MethodSettings


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            {"score": "admm", "settings": {"damping": "aut"}},
            "pruning method 'admm': damping: got 'aut', expected a valid number or 'auto'. Correct the value.",
        ),
        (
            {"score": "sparsegpt", "settings": {"shrinkage": -1}},
            "pruning method 'sparsegpt': shrinkage: got -1, expected greater than or equal to 0 or 'auto'. "
            "Correct the value.",
        ),
        (
            {"score": "wanda", "correct": {"share": 2}},
            "correction 'qep': share: got 2, expected less than or equal to 1 or 'auto'. Correct the value.",
        ),
    ],
)
def test_both_forms_are_named(method: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidSettingError) as raised:
        compose(MethodSettings.model_validate(method))
    assert str(raised.value) == sentence
