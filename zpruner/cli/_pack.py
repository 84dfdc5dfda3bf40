"""`zpruner pack` and `zpruner unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpruner.cli import _options as option
from zpruner.cli._early import local_path
from zpruner.cli._output import check_apart, check_output, place

if TYPE_CHECKING:
    from zpruner.packed.pack import Savings


def pack(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=option.folder, help="A checkpoint with zeros, whoever pruned it."),
    ],
    output: option.Output,
    trust_remote_code: option.TrustRemoteCode = False,
    force: option.Force = False,
    log: option.Log = None,
) -> None:
    """Write a checkpoint without its zeros: smaller on disk and in memory, and faster where a few tokens are computed.

    `import zpruner` lets transformers load it; `zpruner unpack` gives back the very files.
    """
    check_apart(output, local_path("FOLDER", str(folder)))
    check_output(output, force)

    from zpruner.packed.content import Known
    from zpruner.packed.pack import pack
    from zpruner.packed.structure import transposed_tensors

    with place(output, force) as staging:
        names = transposed_tensors(folder, trust_remote_code=trust_remote_code)
        saved = pack(folder, staging, Known(names), trust_remote_code=trust_remote_code)
    typer.echo(saved_line(output, saved))


def unpack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=option.folder, help="A packed checkpoint.")],
    output: option.Output,
    force: option.Force = False,
    log: option.Log = None,
) -> None:
    """Write the checkpoint that was packed, byte for byte."""
    check_apart(output, local_path("FOLDER", str(folder)))
    check_output(output, force)

    from zpruner.packed.unpack import unpack

    with place(output, force) as staging:
        unpack(folder, staging)
    typer.echo(f"{output}: the checkpoint that was packed")


def saved_line(output: Path, saved: Savings) -> str:
    """Return one line about what packing saved."""
    line = (
        f"{output}: {saved.packed / 1e6:.1f} MB of weights instead of {saved.dense / 1e6:.1f} ({saved.share:.2f} x); "
    )
    line += f"{saved.tensors} packed tensors hold {saved.kept / saved.weights:.1%} of their numbers"
    if saved.negative_zeros:
        line += f"; {saved.negative_zeros} zeros are negative, which takes a bitmask"
    return line
