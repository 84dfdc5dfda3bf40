"""The table of docs/models.md: what is found and pruned in tiny random models of many families, made anew.

    python benchmarks/families.py > docs/models.md

Nothing in the library names a family; this table says what its structural rules come to.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import families  # type: ignore[import-not-found]

import zpruner
from zpruner.calibration import BlockReplay
from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, load_model, take_inventory
from zpruner.types import CHANNEL_SUMS, Stat

HEAD = """\
# Models

Decoder blocks and prunable weights are found by structure, so that a family needs no code. Prunable is what multiplies
activations inside the blocks; experts of a mixture are separate layers, with the tokens routed to each. Embeddings,
head, norms, biases, convolutions, state matrices and routers stay dense. Where text never reaches a layer (a block for
images, say), calibration stops with the patterns that `model.ignore` should list.

`python benchmarks/families.py > docs/models.md` makes this table from tiny random models (two blocks each): *pruned* is
the share of the blocks' weights of two or more dimensions; *dense* and *sequential* say that calibrating, pruning to
2:4 with SparseGPT, saving, loading and measuring worked under that propagation; *replay* that running the blocks one
by one gave the forward pass bit for bit. `pytest -m slow tests/test_families.py tests/execution/test_stream.py` tries
every registered method on each, unstructured and 2:4, and reading it block by block (llama4_text cannot be read so,
since its code asks where the embedding lies, nor zamba, whose blocks share weights; xlstm's code does not run in
bfloat16).
Encoder-decoders are refused.

An expert that met t < T tokens (T: `calibration.min_expert_tokens`, 128) is reported, and its statistics are filled up
with T - t tokens' worth of the average over all experts of its mixture; one that met none has the average alone. With
magnitude nothing is filled up, since it needs no statistics.

| family | blocks | layers | pruned | skipped | dense | sequential | replay |
|---|---|--:|--:|---|---|---|---|"""
WINDOWS = torch.randint(3, families.VOCABULARY, (4, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(2))


def main() -> None:
    """Print the page."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(HEAD)
    for family in families.ALL:
        print(row(family), flush=True)


def row(family: str) -> str:
    """Return the row of one family."""
    model = families.build(family)
    inventory = take_inventory(model)
    skipped = {name: model.get_parameter(name).numel() for name, _ in inventory.skipped}
    pruned = sum(layer.out_features * layer.in_features for layer in inventory.layers)
    cells = [
        family,
        f"`{inventory.blocks}`",
        str(len(inventory.layers)),
        f"{100 * pruned / (pruned + sum(skipped.values())):.1f} %",
        reasons(inventory) or "-",
        outcome(family, sequential=False),
        outcome(family, sequential=True),
        replay(family),
    ]
    return f"| {' | '.join(cells)} |"


def reasons(inventory: Inventory) -> str:
    """Return what is skipped, counted by kind, with the reason."""
    counts = Counter(
        (".".join(name.split(".")[-2:]), re.split(" of shape| in ", reason)[0]) for name, reason in inventory.skipped
    )
    return "; ".join(f"{count} x `{kind}` ({reason})" for (kind, reason), count in counts.items())


def outcome(family: str, *, sequential: bool) -> str:
    """Prune, save, load and measure; return `yes` or why not."""
    model = families.build(family)
    try:
        if sequential:
            zpruner.prune_sequentially(model, WINDOWS, method="sparsegpt", sparsity="2:4", batch_size=2)
        else:
            calibration = zpruner.calibrate(model, WINDOWS, stats=CHANNEL_SUMS | {Stat.GRAM}, batch_size=2)
            zpruner.prune(model, calibration, method="sparsegpt", sparsity="2:4")
    except ModelStructureError as error:
        return f"refused: {error}"
    pruned = zpruner.perplexity(model, WINDOWS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = zpruner.perplexity(load_model(Path(folder), device="cpu"), WINDOWS)
    return "yes" if abs(again / pruned - 1) < 1e-6 else f"perplexity {pruned:.6g}, loaded again {again:.6g}"


def replay(family: str) -> str:
    """Return whether the blocks can be run one by one with the same result."""
    model = families.build(family)
    try:
        BlockReplay(model, take_inventory(model), WINDOWS, batch_size=2)
    except ModelStructureError as error:
        return f"refused: {error}"
    return "equal"


if __name__ == "__main__":
    main()
