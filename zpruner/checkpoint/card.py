"""The model card of a pruned checkpoint: README.md with YAML metadata in Hugging Face's format."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from zpruner.errors import InvalidSettingError
from zpruner.patterns import Pattern, StructuredPattern, parse_pattern
from zpruner.settings.plain_yaml import parse_yaml

_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)@[\w.-]+")
_LABELS = {"source": "text", "sha256": "SHA-256 of the text", "nsamples": "windows", "seqlen": "tokens per window"}
HONESTY = (
    "Pruned weights are zeros in an ordinary checkpoint: by itself it is neither smaller nor faster than the dense "
    "model. Savings need a sparse file format and kernels for the pattern."
)
SMALLER = (
    "Whole structures were removed: this is an ordinary dense checkpoint, smaller and faster than the dense model "
    "wherever that runs."
)
PACKED = (
    "The zeros are left out: this checkpoint is smaller than the dense model on disk and in memory. `pip install "
    "zpruner` and `import zpruner`, and transformers loads it; without that it refuses. At equal bytes 4-bit "
    "quantisation usually loses less quality: compare before you choose."
)
LATER = (
    "Perplexity and task scores against the dense model are measured after this card is written: `zpruner export` "
    "copies the checkpoint with them in it."
)


GATHERED = (
    "Its zeros are N:M in an order of each layer's inputs that the checkpoint does not have: kernels for N:M need "
    "inputs that are gathered in that order at run time."
)


def reordered(kinds: Iterable[str], file: str = "") -> str:
    """Return what a card says of a model whose neurons, say, are in another order; `file` has the order."""
    has = f": {file} has the old place of each" if file else ""
    return f"The {' and '.join(kinds)} are in another order than the dense model's, in which N:M keeps more{has}."


_ORIGINAL = ("license", "license_name", "license_link", "language", "model_name", "model_creator")
"""What holds of the pruned model, too."""
_METADATA = 1 << 18
"""Bytes of a card in which its metadata ends."""
_CALIBRATION = "## Calibration\n"
_HEAD = "| | |\n|---|---|\n"


@dataclass(frozen=True)
class PruningFacts:
    """What a card says about a pruned model; what is not known is left out.

    Attributes:
        base: source of the dense model, as params.yaml names it.
        method: the method's label.
        pattern: a ratio such as `0.5`, `N:M`, or structures.
        settings: the composition, as in params.yaml.
        calibration: name -> value, such as source, nsamples, seqlen, seed and propagation.
        sparsity: achieved share of zeros among the prunable weights.
        layer_error: mean over layers of ||(W - W') X||^2 / ||W X||^2.
        layer_error_from: `gram` (exact) or `diagonal` (inputs taken as uncorrelated).
        results: metric -> (dense, pruned).
        note: a sentence below them.
        origin: where `base` came from, where that is known and something else.
    """

    base: str
    method: str
    pattern: str
    settings: Mapping[str, Any]
    calibration: Mapping[str, Any]
    sparsity: float | None = None
    layer_error: float | None = None
    layer_error_from: str = "gram"
    results: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""
    origin: str = ""


def model_card(dense: Path, facts: PruningFacts) -> str:
    """Return the text of README.md: equal facts give equal text.

    Args:
        dense: the unpruned checkpoint's folder; licence and languages are taken from its README.md where it has one.
        facts: what is known about the pruned model.
    """
    known = read_metadata(dense / "README.md")
    hub = _HUB.fullmatch(facts.origin or facts.base)
    base = hub[1] if hub else known.get("base_model")
    metadata: dict[str, Any] = {"base_model": base} if base else {}
    metadata |= {key: known[key] for key in _ORIGINAL if known.get(key)}
    metadata |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    pattern = parse_pattern(facts.pattern)
    structured = isinstance(pattern, StructuredPattern)
    about, removed = _about(pattern)
    metadata["tags"] = list(dict.fromkeys(["zpruner", "pruned", *about, facts.method]))
    name = base if isinstance(base, str) else facts.base.rstrip("/").rsplit("/", 1)[-1]
    parts = [
        f"---\n{_yaml(metadata)}---\n",
        f"# {_line(name)}, pruned with {_line(facts.method)} ({removed})\n",
        f"Pruned after training, without retraining, from {_from(facts)}{_original(known)}.{_licence(known)}\n",
        f"**{SMALLER if structured else HONESTY}**\n",
        "## Pruning\n",
        _table([("method", facts.method), ("pattern", _pattern(pattern)), *_flat("", facts.settings)]),
    ]
    achieved = []
    if facts.sparsity is not None:
        what = "prunable weights removed" if structured else "zeros among the prunable weights"
        achieved.append((what, f"{facts.sparsity:.4%}"))
    if facts.layer_error is not None:
        basis = "" if facts.layer_error_from == "gram" else ", inputs taken as uncorrelated"
        achieved.append((f"mean layer error{basis}", f"{facts.layer_error:.4g}"))
    parts += ["## Result\n", _table(achieved)] if achieved else []
    parts += [_results(facts.results)] if facts.results else []
    parts += [f"{facts.note}\n"] if facts.note else []
    parts += [_CALIBRATION, _table([(_LABELS.get(k, k), v) for k, v in _flat("", facts.calibration)])]
    parts += ["## Use\n", _USE]
    return "\n".join(parts)


def _from(facts: PruningFacts) -> str:
    made = f", made from {_code(facts.origin)}" if facts.origin not in ("", facts.base) else ""
    return f"{_code(facts.base)}{made}"


def _original(known: Mapping[str, Any]) -> str:
    """Return whose model it is, where its card says so."""
    if not known.get("model_creator"):
        return ""
    return f", a model by {_line(known['model_creator'])} ({_line(known.get('model_name', 'without a name'))})"


def _licence(known: Mapping[str, Any]) -> str:
    if not known.get("license"):
        return " Its licence is not recorded in the dense checkpoint: look it up there."
    return f" Licence of the original: {_line(known.get('license_name') or known['license'])}."


_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH/OF/THIS/FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH/OF/THIS/FOLDER")
```
"""


def with_results(
    card: str, results: Mapping[str, tuple[float, float]], calibration: Mapping[str, Any] | None = None
) -> str:
    """Return a card that `model_card` wrote with what is known later.

    Args:
        card: the text.
        results: metric -> (dense, pruned), added in front of the calibration.
        calibration: name -> value, put first in the calibration's table.
    """
    before, heading, after = card.partition(_CALIBRATION)
    before = before.replace(f"{LATER}\n\n", "")
    rows = [(_LABELS.get(key, key), value) for key, value in _flat("", calibration or {})]
    return f"{before}{_results(results)}\n{heading}{after.replace(_HEAD, _table(rows), 1)}"


def tells(card: str, key: str) -> bool:
    """Return whether a table of a card has a row for `key`."""
    return f"| {_line(_LABELS.get(key, key))} |" in card


def _results(results: Mapping[str, tuple[float, float]]) -> str:
    rows = [f"| {_line(key)} | {dense:.6g} | {pruned:.6g} |\n" for key, (dense, pruned) in results.items()]
    return "| metric | dense | pruned |\n|---|--:|--:|\n" + "".join(rows)


def packed_card(text: str) -> str:
    """Return the card of a pruned checkpoint as that of the same checkpoint packed."""
    return text.replace(HONESTY, PACKED)


def read_metadata(card: Path) -> dict[str, Any]:
    """Return the YAML metadata of a model card, empty where there is no readable one."""
    try:
        with card.open("rb") as file:
            match = re.match(rb"---\r?\n(.*?)\r?\n---\r?\n", file.read(_METADATA), re.DOTALL)
        found = parse_yaml(match[1].decode(), str(card)) if match else {}
    except (OSError, UnicodeDecodeError, InvalidSettingError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(metadata: dict[str, Any]) -> str:
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(metadata, out)
    return out.getvalue()


def _about(pattern: Pattern) -> tuple[list[str], str]:
    """Return tags, and what was removed in a few words."""
    if isinstance(pattern, StructuredPattern):
        return ["structured"], f"{pattern} removed"
    if pattern.is_nm:
        return ["sparse", f"sparsity-{pattern.kept}-{pattern.group_size}"], f"{pattern} sparsity"
    return ["sparse", "sparsity-unstructured"], f"{pattern.sparsity:.4g} of the weights removed"


def _pattern(pattern: Pattern) -> str:
    if isinstance(pattern, StructuredPattern):
        return f"structured, {pattern}"
    if pattern.is_nm:
        return f"{pattern} ({pattern.kept} of every {pattern.group_size} inputs kept)"
    return f"unstructured, ratio {pattern}"


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(f"{prefix}{key}.", value)
        elif value is not None and value != []:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    return _HEAD + "".join(f"| {_line(key)} | {_code(value)} |\n" for key, value in rows)


def _line(text: object) -> str:
    return re.sub(r"([\\`*_\[\]|<>#])", r"\\\1", " ".join(str(text).split()))


def _code(text: object) -> str:
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "\\|") + "`"
