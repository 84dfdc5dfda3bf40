"""`zpruner kernels`."""

from __future__ import annotations

import typer


def kernels() -> None:
    """Tell what multiplies by packed weights on this machine, and why."""
    import torch

    from zpruner.kernels import choose
    from zpruner.kernels.library import KERNEL_ROWS, Isa

    found = choose()
    typer.echo(f"runs       {found.name}: {found.why}")
    if found.library is not None:
        able = [isa.name.lower() for isa in Isa if found.library.zp_supports(isa)]
        typer.echo(f"could run  {', '.join(able)}, torch (set ZPRUNER_KERNEL)")
        typer.echo(
            f"rows       up to {KERNEL_ROWS} at once; more are multiplied by torch, the weights expanded piecewise"
        )
    typer.echo(f"threads    {torch.get_num_threads()}")
