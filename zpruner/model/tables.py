"""The weights of a model of which computing a token reads one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def table_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of the embeddings that are not also the head, of weights in memory or on the meta device."""
    tables = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        tables.pop(id(head.weight), None)
    return sum(table.nbytes for table in tables.values())
