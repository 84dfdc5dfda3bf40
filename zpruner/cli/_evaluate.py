"""`zpruner evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zpruner.cli import _options as option
from zpruner.cli._early import local_path
from zpruner.errors import InvalidSettingError

if TYPE_CHECKING:
    from zpruner.settings.texts import PerplexitySettings


def evaluate(
    model: option.Model,
    text: Annotated[
        str | None, typer.Option(metavar="SOURCE", help=f"The text to measure on: {option.SOURCES}.")
    ] = None,
    text_sha256: Annotated[str | None, typer.Option(help="SHA-256 that the text must have.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="wikitext2, ptb or c4, exactly as published; --text then names a copy of its data."),
    ] = None,
    seqlen: Annotated[
        int | None, typer.Option(min=2, help="Tokens per window.  [default: 512, or the protocol's]")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens from one window to the next, of which the last count.  [default: seqlen]"),
    ] = None,
    bos: option.Bos = option.BosName.auto,
    windows: Annotated[int | None, typer.Option(min=1, help="The first so many windows.  [default: all]")] = None,
    batch_size: option.BatchSize = 8,
    blocks: option.Blocks = None,
    ignore: option.Ignore = None,
    sha256: option.Sha256 = None,
    dtype: option.Dtype = option.DtypeName.auto,
    device: option.Device = "auto",
    downloads: option.Downloads = option.DOWNLOADS,
    trust_remote_code: option.TrustRemoteCode = False,
) -> None:
    """Measure a model's perplexity on a text, with a 95 % interval, and count its zeros."""
    local_path("MODEL", model, sha256)
    local_path("--text", text, text_sha256)
    settings = _settings(text, protocol, sha256=text_sha256, seqlen=seqlen, stride=stride, windows=windows, bos=bos)

    from zpruner.evaluate import achieved_sparsity, perplexity_interval, perplexity_of, window_losses
    from zpruner.model import resolve_device, take_inventory
    from zpruner.packed.linear import restore_dense
    from zpruner.runtime.progress import counter
    from zpruner.text import windows_hash

    resolve_device(device)
    opened = option.open_model(model, sha256, dtype, device, downloads, trust_remote_code)
    network = opened.model
    ids, counted = option.read_evaluation_windows(settings, downloads, network, opened.tokenizer)
    losses: list[float] = []
    with counter("evaluate", len(ids), "window") as step:
        for batch in window_losses(network, ids, batch_size, counted):
            losses += batch
            for _ in batch:
                step()
    interval = perplexity_interval(losses)
    noise = f"  (95 % interval {interval.low:.4f} to {interval.high:.4f})" if interval else ""
    typer.echo(f"perplexity  {perplexity_of(losses):.4f}{noise}")
    typer.echo(f"windows     {len(ids)} of {ids.shape[1]} tokens, hash {windows_hash(ids)[:16]}, BOS {settings.begin}")
    restore_dense(network)  # a packed model's zeros are counted as any other's
    sparsity = achieved_sparsity(network, take_inventory(network, blocks, ignore or ()).layers)
    typer.echo(f"sparsity    {sparsity:.2%} of the prunable weights are zero")


def _settings(text: str | None, protocol: str | None, **given: str | int | None) -> PerplexitySettings:
    """Return what is measured, from a protocol, a text, or both."""
    from pydantic import ValidationError

    from zpruner.evaluate import protocol as published
    from zpruner.settings.explain import explain
    from zpruner.settings.texts import PerplexitySettings

    changes = {key: value for key, value in {"source": text, **given}.items() if value is not None}
    if text is None and protocol is None:
        raise InvalidSettingError("evaluate", "neither --text nor --protocol", "one of them", "Name a text.")
    try:
        if protocol is not None:
            return published(protocol, **changes)
        return PerplexitySettings.model_validate({"seqlen": 512, **changes})
    except ValidationError as error:
        raise explain(error, "evaluate", PerplexitySettings) from None
