"""`zpruner kernels`."""

from __future__ import annotations

import typer


def kernels() -> None:
    """Tell what multiplies by packed weights on this machine, and why."""
    import torch

    from zpruner.kernels import choose
    from zpruner.kernels.library import KERNEL_ROWS, LARGE_KERNEL_ROWS, Isa
    from zpruner.runtime.pages import huge_pages

    found = choose()
    typer.echo(f"runs       {found.name}: {found.why}")
    if found.library is not None:
        able = [isa.name.lower() for isa in Isa if found.library.zp_supports(isa)]
        typer.echo(f"could run  {', '.join(able)}, torch (set ZPRUNER_KERNEL)")
        most = f"up to {KERNEL_ROWS} at once, of large weights {LARGE_KERNEL_ROWS}"
        typer.echo(f"rows       {most}; more are multiplied by torch, the weights expanded piecewise")
    where = "2 MB" if huge_pages() else "the system's size: it gives no huge ones, with which decoding is faster"
    typer.echo(f"pages      {where}")
    typer.echo(f"threads    {torch.get_num_threads()}")
