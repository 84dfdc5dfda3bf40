"""config.json with anything in it: read, or refused in one sentence, in bounded time and memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import families
import pytest

from zpruner.errors import ZprunerError
from zpruner.execution import copy_checkpoint
from zpruner.model import load_model

FAMILIES = ("llama", "gpt2", "mixtral", "mamba2", "gemma2", "falcon")
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 7, 10**5, 10**6, 10**9, 10**12, 2**63, 2**64, 10**40),
    *(0.0, -1.5, 1e308, float("nan"), float("inf"), "", "x", "auto", "torch.bfloat16", "\0", "é" * 50, "a" * 10000),
    *([], {}, [1], [[[]]], {"a": 1}, {"type": "foo"}, ["full_attention"] * 3, [None], [1.5] * 10, [0] * 1000),
    *({"rope_type": "yarn"}, {"rope_type": "dynamic", "factor": 0}, {"quant_method": "gptq"}, {"load_in_4bit": True}),
]
NAMES = (
    *("quantization_config", "rope_scaling", "rope_theta", "rope_parameters", "head_dim", "layer_types", "dtype"),
    *("_attn_implementation", "attn_implementation", "_experts_implementation", "torch_dtype", "auto_map"),
    *("text_config", "is_encoder_decoder", "is_decoder", "tie_word_embeddings", "transformers_weights", "id2label"),
    *("per_layer_config", "architectures", "model_type", "fusion_config", "num_labels", "vocab_size", "problem_type"),
    *("output_attentions", "configuration_files", "sliding_window", "num_experts", "pruned_heads", "use_cache"),
)
SECONDS, BYTES = 10.0, 10**9


def broken(good: bytes, chance: random.Random) -> bytes:
    """Return a config with values, bytes or its whole form changed."""
    config: dict[str, Any] = json.loads(good)
    match chance.choice(["values"] * 8 + ["bytes", "form"]):
        case "values":
            for _ in range(chance.choice([1, 1, 2, 3])):
                name = chance.choice([*config, *NAMES])
                old = config.get(name)
                config[name] = chance.choice(VALUES)
                if isinstance(old, int) and chance.random() < 0.3:
                    config[name] = old * chance.choice([0, -1, 2, 1000, 10**6]) + chance.choice([0, 1, -1])
                elif old is not None and chance.random() < 0.1:
                    del config[name]
            return json.dumps(config).encode()
        case "bytes":
            data = bytearray(good)
            for _ in range(chance.randint(1, 5)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            return bytes(data)
        case _:
            deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
            forms = [b"", b"[]", b"null", b'"x"', b"{}", b"[" * 100000, deep, good[: len(good) // 2]]
            forms += [b"\xff\xfe" + good, b"\xef\xbb\xbf" + good, good.replace(b"{", b'{"vocab_size": 3,', 1)]
            forms += [b'{"hidden_size":' + b"9" * digits + b"}" for digits in (4000, 100000)]
            return chance.choice(forms)


def outcome(read: Callable[[], object]) -> str:
    """Return `read`, or the one sentence with which it was refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except ZprunerError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize(
    "seeds", [range(25), pytest.param(range(25, 525), marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_any_config_is_read_or_refused_in_one_sentence(seeds: range, tmp_path: Path) -> None:
    for family in FAMILIES:
        families.build(family).save_pretrained(tmp_path / family)
    said: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for seed in seeds:
        chance = random.Random(seed)
        folder, out = tmp_path / chance.choice(FAMILIES), tmp_path / "out"
        good = (folder / "config.json").read_bytes()
        (folder / "config.json").write_bytes(broken(good, chance))
        out.mkdir()
        start = time.monotonic()
        said.append(outcome(partial(load_model, folder, "auto", "cpu")))
        assert outcome(partial(copy_checkpoint, folder, out, "auto")) == said[-1], seed
        assert time.monotonic() - start < 2 * SECONDS, seed
        assert "\n" not in said[-1], seed
        assert len(said[-1]) < 1000, seed
        shutil.rmtree(out)
        (folder / "config.json").write_bytes(good)
    assert 0 < said.count("read") < len(said)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < BYTES
