"""What a model says after a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from zpruner.artifacts.results import Continuation
from zpruner.runtime.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def continuation(
    model: PreTrainedModel, tokenizer: Any, prompt: str, new_tokens: int, device: torch.device
) -> Continuation:
    """Return the most likely next tokens, one after another, as text.

    Args:
        model: its weights in memory.
        tokenizer: the model's.
        prompt: what is continued.
        new_tokens: how many tokens at most; the model may end before.
        device: where the model computes.
    """
    given = tokenizer(prompt, return_tensors="pt").to(device)
    ids = given["input_ids"]
    with torch.no_grad(), quiet():  # its advice on sampling does not apply
        generator: Any = model
        found = generator.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
    text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
    return Continuation(prompt=prompt, text=str(text))
