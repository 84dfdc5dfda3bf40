"""`zpruner pack` and `zpruner unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpruner.cli._options import TrustRemoteCode

if TYPE_CHECKING:
    from zpruner.packed.pack import Savings

Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint folder.")]


def pack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint with zeros, whoever pruned it.")],
    output: Output,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
) -> None:
    """Write a checkpoint without its zeros: smaller on disk and in memory, and faster where a few tokens are computed.

    `import zpruner` lets transformers load it; `zpruner unpack` gives back the very files.
    """
    from zpruner.cli._output import check_output, place
    from zpruner.packed.pack import pack
    from zpruner.packed.structure import transposed_tensors

    check_output(output, force)
    with place(output, force) as staging:
        names = transposed_tensors(folder, trust_remote_code=trust_remote_code)
        saved = pack(folder, staging, transposed=names, trust_remote_code=trust_remote_code)
    typer.echo(saved_line(output, saved))


def unpack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A packed checkpoint.")],
    output: Output,
    force: Force = False,
) -> None:
    """Write the checkpoint that was packed, byte for byte."""
    from zpruner.cli._output import check_output, place
    from zpruner.packed.unpack import unpack

    check_output(output, force)
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
