"""Token windows that a model cannot read."""

import pytest
import torch
from transformers import LlamaConfig

from zpruner.errors import InvalidSettingError, ShapeMismatchError
from zpruner.model import check_windows


@pytest.mark.parametrize(
    ("windows", "least", "error", "message"),
    [
        (torch.zeros(0, 8, dtype=torch.int32), 1, ShapeMismatchError, r"torch.int32 of shape \(0, 8\)"),
        (torch.zeros(8, dtype=torch.int32), 1, ShapeMismatchError, r"shape \(8,\)"),
        (torch.zeros(2, 8), 1, ShapeMismatchError, "torch.float32"),
        (torch.zeros(2, 1, dtype=torch.int32), 2, ShapeMismatchError, r"at least \(1, 2\)"),
        (torch.full((2, 8), 100), 1, InvalidSettingError, "token id 100, expected ids from 0 to 99"),
        (torch.full((2, 8), -1), 1, InvalidSettingError, "token id -1"),
        (torch.zeros(2, 9, dtype=torch.int32), 1, InvalidSettingError, "9 tokens each, expected at most 8, the most"),
    ],
)
def test_windows_that_a_model_cannot_read(windows, least, error, message):
    with pytest.raises(error, match=message):
        check_windows(windows, LlamaConfig(vocab_size=100, max_position_embeddings=8), least)
