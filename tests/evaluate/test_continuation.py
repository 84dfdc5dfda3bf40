"""The most likely tokens after a prompt, against the logits of whole passes."""

from __future__ import annotations

import tiny
import torch

from zpruner.evaluate import continuation

CPU = torch.device("cpu")


def test_every_token_is_the_most_likely_one_and_settings_stay() -> None:
    model, tokenizer = tiny.build("llama").eval(), tiny.tokenizer()
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    before = model.generation_config.to_dict()
    found = continuation(model, tokenizer, "the quick brown", 5, CPU)
    ids = tokenizer("the quick brown")["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert found.prompt == "the quick brown"
    assert found.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert model.generation_config.to_dict() == before
