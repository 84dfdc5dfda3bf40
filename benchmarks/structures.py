"""The table of docs/structures.md: what can be cut out of tiny random models of many families, made anew.

    python benchmarks/structures.py > docs/structures.md

Nothing in the library names a family; this table says what its probe comes to.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import families

from zpruner.patterns import StructureKind
from zpruner.structures import Couplings, find_couplings

HEAD = """\
# Structures

A pattern such as `neurons:0.25` removes whole structures, and an ordinary smaller model is left: its config says the
new sizes, and `AutoModelForCausalLM.from_pretrained` loads it with nothing of zpruner's.

| kind | what goes together |
|---|---|
| `neurons` | a hidden channel of an MLP or an expert: the rows that make it, their biases, the column that reads it |
| `groups` | a key-value head with the query heads that read it; where all heads read one, a query head |
| `blocks` | a decoder block |
| `experts` | an expert and its output of the router; as many go from each part that a router chooses among first |

## How they are found
By structure, in three steps, on the config alone: no weight is read, and the memory is that of a block of each kind.

1. A block is run on a few random tokens with random weights. Gradients of the channels that a layer reads say which
   rows make each of them: whatever is fused, interleaved or shared comes out as it is. A norm over all channels, which
   ties them to each other, shows as well.
2. Numbers of the config are changed, alone and together, and the empty model is built: those that resize these rows and
   columns, and nothing else, count the structures.
3. The smaller model is run beside the whole one, in which nothing reads what is cut. Both must put out the same, for
   structures from either end and from everywhere, others in each block. A position bias that depends on the head, keys
   that blocks share, or a factor that depends on a block's index fail here.

What does not pass is refused in one sentence before anything runs. All blocks keep as many structures, since a config
has one number for all. Widths of stacked experts go in steps of 16 bytes (8 numbers in bfloat16), since transformers
multiplies by several experts at once only then.

## GGUF
llama.cpp's own converter reads such a checkpoint as any other. No package of it on the index is kept by its authors,
so zpruner does not run it: it lies in the source archive of `llama-cpp-python`. These steps were run once (0.3.36, a
SmolLM2-135M with 1,408 of its 1,536 neurons, text generated with `xllamacpp` 2026.10):

```
pip download --no-deps --no-build-isolation --no-binary llama-cpp-python llama-cpp-python   # needs scikit-build-core
tar xzf llama_cpp_python-*.tar.gz && cd llama_cpp_python-*/vendor/llama.cpp
PYTHONPATH=gguf-py python convert_hf_to_gguf.py PATH/data/pruned/METHOD/SPARSITY --outfile model.gguf --outtype bf16
```

K-quants want rows of 256: `multiple:256` beside `neurons`.

## Families
`python benchmarks/structures.py > docs/structures.md` makes this table from tiny random models: what of the config says
how many there are, or why none can be cut. `pytest -m slow tests/structures` cuts each and compares the logits.

| family | neurons | groups | blocks | experts |
|---|---|---|---|---|"""


def main() -> None:
    """Print the page."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(HEAD)
    counts: Counter[StructureKind] = Counter()
    for family in families.ALL:
        couplings = find_couplings(families.build(family))
        counts.update(kind for kind in StructureKind if couplings.why_not(kind) is None)
        print(f"| {family} | {' | '.join(cell(couplings, kind) for kind in StructureKind)} |", flush=True)
    total = ", ".join(f"{kind.value} of {counts[kind]}" for kind in StructureKind)
    print(f"\nOf {len(families.ALL)}: {total}.")


def cell(couplings: Couplings, kind: StructureKind) -> str:
    """Return what counts the structures of a kind, or why there are none."""
    if (why := couplings.why_not(kind)) is not None:
        return f"- ({why})"
    sizes = dict.fromkeys(coupling.size for coupling in couplings.of(kind))
    some = any(coupling.removable is not None for coupling in couplings.of(kind))
    return ", ".join(f"`{size}`" for size in sizes) + (" (not every one)" if some else "")


if __name__ == "__main__":
    main()
