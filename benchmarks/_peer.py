"""llm-compressor's pruning of a checkpoint, for benchmarks/sequential.py; run by a Python that has llm-compressor.

It takes no transformers as new as the library's, so that both cannot be in one environment. Reads a line of JSON per
request from standard input, {"method": ..., "out": ...}, prunes, and answers with the processor seconds.
"""

from __future__ import annotations

import json
import sys
from time import process_time
from typing import Any


def main(checkpoint: str, windows: str, sparsity: float) -> None:
    """Answer requests until the input ends."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    kinds: dict[str, Any] = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = load_file(windows)["ids"]
    for line in sys.stdin:
        asked = json.loads(line)
        start = process_time()
        oneshot(
            model=model,
            dataset=Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}),
            recipe=[
                kinds[asked["method"]](
                    sparsity=sparsity, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"]
                )
            ],
            max_seq_length=ids.shape[1],
            num_calibration_samples=len(ids),
            batch_size=8,
            shuffle_calibration_samples=False,
        )
        seconds = process_time() - start
        pruned = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.layers.")}
        save_file(pruned, asked["out"])
        with torch.no_grad():
            model.load_state_dict(state)
        print(f"\nseconds {seconds}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
