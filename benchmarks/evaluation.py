"""Check what we measure against independent measurements of the same.

    python benchmarks/evaluation.py MODEL TEXT [--seqlen 512] [--windows 32] [--task hellaswag_local]

1. Perplexity in float32 against a plain loop over the same tokens, written here with nothing of the library:
   relative difference below 1e-4.
2. Zero-shot scores of the model in memory against the harness's own command line on the saved checkpoint: equal.

MODEL is a checkpoint folder (pruned or not), TEXT a UTF-8 file. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import zpruner
from zpruner.evaluate import ZeroShot
from zpruner.settings.params import ZeroShotSettings
from zpruner.sources import read_text
from zpruner.text import evaluation_windows


def plain_perplexity(folder: Path, text: str, seqlen: int, windows: int) -> float:
    """The published protocol with transformers alone, one window and one position at a time, in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"]
    losses = []
    for start in range(0, len(ids) // seqlen * seqlen, seqlen)[:windows]:
        window = torch.tensor([ids[start : start + seqlen]])
        with torch.no_grad():
            logits = model(window, use_cache=False).logits[0].double()
        nll = [float(torch.logsumexp(logits[i], 0) - logits[i, window[0, i + 1]]) for i in range(seqlen - 1)]
        losses.append(math.fsum(nll) / len(nll))
    return math.exp(math.fsum(losses) / len(losses))


def check_perplexity(folder: Path, text: Path, seqlen: int, windows: int) -> bool:
    model, tokenizer = zpruner.load(folder, dtype="float32")
    vocabulary = model.config.get_text_config().vocab_size
    chosen = evaluation_windows(
        read_text(str(text), None, Path()),
        tokenizer,
        seqlen=seqlen,
        vocab_size=vocabulary,
        windows=windows,
        bos="published",
    )
    ours = zpruner.perplexity(model, chosen)
    document = text.read_bytes().decode("utf-8")  # line ends as they are: with others it would be another text
    plain = plain_perplexity(folder, document, seqlen, len(chosen))
    difference = abs(ours / plain - 1)
    print(f"perplexity   ours {ours:.8f}   plain loop {plain:.8f}   relative difference {difference:.1e}")
    return difference < 1e-4


def check_task(folder: Path, task: str, root: Path, limit: int | None, batch_size: int) -> bool:
    model, tokenizer = zpruner.load(folder)
    settings = ZeroShotSettings(tasks=(task,), include_path="tasks", limit=limit, batch_size=batch_size)
    ours = ZeroShot(model, tokenizer, settings, root).run(task)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", task, "--include_path", "tasks"]
        command += ["--model_args", f"pretrained={folder.resolve()},dtype=auto", "--batch_size", str(batch_size)]
        command += ["--device", str(model.device), "--output_path", out]
        command += [] if limit is None else ["--limit", str(limit)]
        done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr[-2000:])
            return False
        results = json.loads(next(Path(out).rglob("results_*.json")).read_text())["results"]
    equal = True
    for name, scores in ours.items():
        for key, value in scores.items():
            theirs = results[name].get(f"{key},none")
            if theirs is not None and theirs != "N/A":
                print(f"{name:<20} {key:<16} ours {value:.10f}   lm_eval {theirs:.10f}")
                equal &= value == theirs
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--task", default="hellaswag_local")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    root = Path(__file__).parent.parent
    checks = {
        "perplexity": check_perplexity(options.model, options.text, options.seqlen, options.windows),
        "zero-shot": check_task(options.model, options.task, root, options.limit, options.batch_size),
    }
    for name, passed in checks.items():
        print(f"{name}: {'as it should be' if passed else 'DIFFERENT'}")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
