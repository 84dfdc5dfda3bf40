"""Models and token windows for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zpruner.errors import InvalidSettingError, shown, whole_number
from zpruner.model import check_model, limits_of
from zpruner.pruning.mixing import mixture
from zpruner.pruning.opening import open_source
from zpruner.pruning.semi_structured import PATTERN, use_semi_structured
from zpruner.runtime.downloads import DOWNLOADS
from zpruner.settings.mixture import mixture_of
from zpruner.settings.texts import SELF
from zpruner.settings.wording import speaks_of_arguments
from zpruner.sources import read_text, resolve_source
from zpruner.text import Bos, calibration_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO = "auto"


@speaks_of_arguments
def load(
    source: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    *,
    sha256: str | None = None,
    downloads: str | Path = DOWNLOADS,
    trust_remote_code: bool = False,
    kernel: str = AUTO,
) -> tuple[PreTrainedModel, Any]:
    """Return model and tokenizer (None where there is none) of any source, ready for inference.

    Args:
        source: a checkpoint folder or .gguf file; `ORG/NAME` on the hub, whose commit is printed, or
            `hf:ORG/NAME@REVISION`; `pip:NAME==VERSION/FILE`.
        dtype: `bfloat16`, `float16`, `float32`, or `auto` for the checkpoint's own.
        device: `auto` is the accelerator where there is one, else the CPU.
        sha256: of the file or folder, checked when given; required for `pip:`.
        downloads: where downloads, and what they are made into, are kept.
        trust_remote_code: whether Python code that comes with the model may run.
        kernel: `2:4` hands layers that keep 2 of every 4 weights to torch's semi-structured kernels on an NVIDIA GPU,
            for large batches; `auto` leaves layers as they are.

    Raises:
        SourceError: it cannot be obtained or read.
        InvalidSettingError: a malformed source, hash, dtype or device; a kernel that is unknown or cannot run here.
        ModelStructureError: it is no causal language model.
    """
    if kernel not in (AUTO, PATTERN):
        raise InvalidSettingError("kernel", shown(kernel), f"'{AUTO}' or '{PATTERN}'", "Leave it out.")
    opened = open_source(
        str(source),
        dtype,
        device,
        sha256=sha256,
        downloads=Path(downloads),
        trust_remote_code=trust_remote_code,
    )
    if kernel == PATTERN:
        use_semi_structured(opened.model)
    return opened.model, opened.tokenizer


@speaks_of_arguments
def load_windows(
    source: str | Path | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    nsamples: int = 32,
    seqlen: int = 512,
    seed: int = 0,
    part: tuple[float, float] = (0.0, 1.0),
    bos: Bos = "auto",
    sha256: str | None = None,
    downloads: str | Path = DOWNLOADS,
) -> Tensor:
    """Return token windows of a text, int32 (nsamples, seqlen), chosen at random with `seed`.

    Args:
        source: `zpruner.NEWS`, a local file, `hf:ORG/NAME@REVISION`, or `pip:NAME==VERSION/FILE`; `self` for text that
            the model writes itself; or several of these as in params.yaml, e.g.
            `[{"source": zpruner.NEWS, "part": [0, 0.5], "share": 0.75}, {"source": "self", "share": 0.25}]`, each with
            its part and hash.
        model: whose vocabulary the ids must fit.
        tokenizer: the model's.
        nsamples: number of windows.
        seqlen: tokens per window, a BOS included.
        seed: of the choice of windows.
        part: (start, stop), shares of the text to take the windows from: disjoint parts share no window.
        bos: `auto`: every window begins with what the tokenizer puts before a text by itself; `always`: with its BOS;
            `never`: with neither.
        sha256: of the file, checked when given.
        downloads: where downloads are kept.

    Raises:
        InvalidSettingError: an argument out of range; sources whose settings or shares do not belong together; `self`,
            and a tokenizer without a BOS.
        SourceError, TextTooShortError: a text that cannot be obtained or read, or is too short.
    """
    nsamples, seqlen = whole_number("nsamples", nsamples, 1), whole_number("seqlen", seqlen, 2)
    seed, part = whole_number("seed", seed, 0), _part(part)
    check_model(model)
    _check_tokenizer(tokenizer)
    if not isinstance(source, str | Path) or source == SELF:
        given = {"sha256": sha256, "part": part}
        sources = [dict(source)] if isinstance(source, Mapping) else source
        size = {"nsamples": nsamples, "seqlen": seqlen, "seed": seed, "bos": bos}
        settings = mixture_of({"source": sources, **given, **size}, "load_windows", "`source`")
        return mixture(settings, model, tokenizer, Path(downloads))
    text = read_text(resolve_source(str(source), "dataset"), sha256, Path(downloads))
    vocab_size, longest = limits_of(model.config)
    return calibration_windows(
        text,
        tokenizer,
        nsamples=nsamples,
        seqlen=seqlen,
        seed=seed,
        vocab_size=vocab_size,
        longest=longest,
        part=part,
        bos=bos,
    )


def _check_tokenizer(tokenizer: object) -> None:
    """Raise InvalidSettingError for what cannot tokenise, such as the name of a tokenizer."""
    if tokenizer is None:  # a table of token ids needs none
        return
    if isinstance(tokenizer, str | Path | nn.Module) or not callable(tokenizer):
        got = shown(tokenizer) if isinstance(tokenizer, str | Path) else type(tokenizer).__name__
        action = "Pass what zpruner.load returns beside the model, or AutoTokenizer.from_pretrained."
        raise InvalidSettingError("tokenizer", got, "the model's tokenizer itself", action)


def _part(part: Sequence[float]) -> tuple[float, float]:
    try:
        start, stop = (float(share) for share in part)
    except (TypeError, ValueError):
        raise InvalidSettingError(
            "part", shown(part), "two numbers, 0 <= start < stop <= 1", "Write part=(0.0, 0.5), say."
        ) from None
    return start, stop
