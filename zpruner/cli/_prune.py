"""`zpruner prune`."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpruner.cli import _options as option
from zpruner.cli._composition import checked, composition_settings, pattern_of
from zpruner.cli._early import check_names, local_path
from zpruner.cli._output import ORDERS, check_apart, check_output, save
from zpruner.cli._texts import OPTION, is_plain, local_paths, sources_of
from zpruner.errors import InvalidSettingError
from zpruner.patterns import Pattern, Permutation, SparsityPattern, parse_pattern
from zpruner.pruning.presets import PRESETS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from zpruner.model import Inventory
    from zpruner.pruning.results import PrunedLayers


_PERMUTED = {
    "--permute": Permutation.NEURONS,
    "--permute-heads": Permutation.HEADS,
    "--permute-stream": Permutation.STREAM,
}


class Propagation(StrEnum):
    """Whose activations the statistics come from."""

    dense = "dense"
    pruned = "pruned"


def prune(
    model: option.Model,
    output: option.Output,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE[,KEY=VALUE...]",
            help=f"The calibration text: {option.SOURCES}; self: what the model writes itself. May be repeated, with "
            "share=0.5 and other keys of calibration.source in params.yaml.  [default: 300 English news articles]",
        ),
    ] = None,
    calibration_sha256: Annotated[str | None, typer.Option(help="SHA-256 that the text must have.")] = None,
    method: Annotated[str, typer.Option(help="See `zpruner methods`.")] = "zpruner",
    sparsity: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Share of weights removed, N:M (N of every M are kept), or structures such as neurons:0.25.  "
            "[default: 0.5]",
        ),
    ] = None,
    sparsity_ratio: Annotated[str | None, typer.Option(metavar="RATIO", help="Share of weights removed.")] = None,
    sparsity_type: Annotated[
        str,
        typer.Option(
            help="unstructured; N:M such as 2:4 (N of every M are kept); or neurons, groups, blocks or experts, which "
            "go whole."
        ),
    ] = "unstructured",
    group: Annotated[
        str | None, typer.Option(help="row or layer: which weights compete.  [default: the method's]")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter; may be repeated.")
    ] = None,
    refine: Annotated[str | None, typer.Option(help="Mask refinement, see `zpruner methods`.")] = None,
    update: Annotated[str | None, typer.Option(help="Weight update, see `zpruner methods`.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="BITS", help="Round what stays to 8, 4 or 3 bits; bits=4,group=128,rounding=nearest says more."
        ),
    ] = None,
    permute: Annotated[
        bool, typer.Option("--permute", help="With N:M: put MLP neurons into an order in which more can stay, first.")
    ] = False,
    permute_heads: Annotated[
        bool, typer.Option("--permute-heads", help="The same of the value dimensions of every attention head.")
    ] = False,
    permute_stream: Annotated[
        bool,
        typer.Option("--permute-stream", help="The same of the channels of the residual stream, all layers' alike."),
    ] = False,
    propagation: Annotated[
        Propagation, typer.Option(help="pruned: calibrate each block with the earlier ones already pruned.")
    ] = Propagation.dense,
    nsamples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 128,
    seqlen: option.Seqlen = 512,
    bos: option.Bos = option.BosName.auto,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of windows.")] = 0,
    batch_size: option.BatchSize = 8,
    evaluate: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Measure perplexity on this text before and after.")
    ] = None,
    evaluate_sha256: Annotated[str | None, typer.Option(help="SHA-256 that this text must have.")] = None,
    evaluate_windows: Annotated[int | None, typer.Option(min=1, help="Its first windows.  [default: all]")] = None,
    blocks: option.Blocks = None,
    ignore: option.Ignore = None,
    sha256: option.Sha256 = None,
    dtype: option.Dtype = option.DtypeName.auto,
    device: option.Device = "auto",
    downloads: option.Downloads = option.DOWNLOADS,
    trust_remote_code: option.TrustRemoteCode = False,
    force: option.Force = False,
    log: option.Log = None,
) -> None:
    """Prune one model and write an ordinary checkpoint with a model card: zeros in place, or smaller."""
    if not calibration:
        calibration, calibration_sha256 = [option.NEWS], option.NEWS_SHA256
    # What can be told at once is: torch takes seconds to import, a model minutes to load.
    pattern = parse_pattern(pattern_of(sparsity_ratio, sparsity_type, sparsity, quantize is not None))
    permuted = {"--permute": permute, "--permute-heads": permute_heads, "--permute-stream": permute_stream}
    for name in (name for name, given in permuted.items() if given):
        if not (isinstance(pattern, SparsityPattern) and pattern.is_nm):
            raise InvalidSettingError(name, f"the pattern {pattern}", "N:M such as 2:4", f"Leave {name} out.")
    from zpruner.settings.mixture import mixture_of

    check_names({"score": method, "refine": refine, "update": update}, also=PRESETS)
    settings = composition_settings(method, group, setting or [], refine, update, quantize)
    if any(permuted.values()):
        settings["permute"] = [_PERMUTED[name] for name, given in permuted.items() if given]
    parts = checked(settings)
    sources = sources_of(calibration, calibration_sha256)
    size = {"nsamples": nsamples, "seqlen": seqlen, "seed": seed, "bos": bos.value}
    calibrated = mixture_of({"source": sources, **size}, "the options", OPTION)
    read = {
        **local_paths(sources),
        "the text to evaluate on": local_path("--evaluate", evaluate, evaluate_sha256),
        "the downloads": downloads,
    }
    check_apart(output, local_path("MODEL", model, sha256), **read)
    check_output(output, force)

    from zpruner.evaluate import perplexity
    from zpruner.model import resolve_device, take_inventory
    from zpruner.pruning.compose import compose
    from zpruner.pruning.fitting import check_fit, check_moved
    from zpruner.pruning.loading import load_windows
    from zpruner.settings.mixture import described
    from zpruner.settings.texts import PerplexitySettings
    from zpruner.types import Stat

    composition = compose(parts)
    composition.check_propagation(propagation.value)
    composition.check(pattern)
    resolve_device(device)
    opened = option.open_model(model, sha256, dtype, device, downloads, trust_remote_code, only_dense=True)
    network, tokenizer = opened.model, opened.tokenizer
    # What cannot be pruned is told before anything is downloaded or measured.
    inventory = take_inventory(network, blocks, ignore or ())
    stays = check_fit({"--sparsity": pattern}, network, inventory)
    check_moved({f"--method {method}": composition}, {"--sparsity": pattern}, network, inventory)
    plain = sources[0] if is_plain(sources) else {}
    windows = load_windows(
        plain.get("source", sources),
        network,
        tokenizer,
        nsamples=nsamples,
        seqlen=seqlen,
        seed=seed,
        bos=bos.value,
        sha256=plain.get("sha256"),
        downloads=downloads,
    )
    results: dict[str, tuple[float, float]] = {}
    text = None
    if evaluate is not None:
        measured = PerplexitySettings(
            source=evaluate, sha256=evaluate_sha256, seqlen=seqlen, windows=evaluate_windows, bos=bos.value
        )
        text, counted = option.read_evaluation_windows(measured, downloads, network, tokenizer)
        before = perplexity(network, text, batch_size, counted)
    layers = _prune(network, inventory, ignore or [], windows, settings, pattern, propagation, batch_size)
    weights, achieved, error = sum(layer.mask.keep.numel() for layer in layers), layers.sparsity, layers.layer_error
    zeros = sum(layer.zeros_before * layer.mask.keep.numel() for layer in layers) / weights
    pruned_before = f"{zeros:.2%} of MODEL's weights were zero before" if math.isnan(error) else ""
    if text is not None:
        name = f"perplexity ({evaluate}, {len(text)} windows of {seqlen}{pruned_before and f'; {pruned_before}'})"
        results[name] = (before, perplexity(network, text, batch_size, counted))

    from zpruner.checkpoint.card import PruningFacts, model_card, reordered

    facts = PruningFacts(
        base=opened.source,
        origin=opened.origin,
        method=method,
        pattern=str(pattern),
        settings=settings,
        calibration={
            **(plain or described(calibrated)),
            **size,
            "propagation": propagation.value,
        },
        sparsity=achieved,
        layer_error=None if pruned_before else error,
        layer_error_from="gram" if Stat.GRAM in composition.needs else "diagonal",
        results=results,
        note=reordered(sorted(composition.moved(pattern)), ORDERS) if layers.orders else "",
    )
    save(network, tokenizer, output, model_card(opened.folder, facts), opened.origin, force, layers.orders)
    lost = f"layer error unknown: {pruned_before}" if pruned_before else f"mean layer error {error:.3g}"
    typer.echo(f"{len(layers)} layers, {achieved:.2%} of their weights removed, {lost}")
    for words in stays.values():
        typer.echo(words)
    for name, (dense, pruned) in results.items():
        typer.echo(f"{name}: {dense:.4f} {'before' if pruned_before else 'dense'}, {pruned:.4f} pruned")
    typer.echo(str(output))


def _prune(
    model: PreTrainedModel,
    inventory: Inventory,
    ignore: list[str],
    windows: Tensor,
    settings: dict[str, Any],
    pattern: Pattern,
    propagation: Propagation,
    batch_size: int,
) -> PrunedLayers:
    from zpruner.pruning.in_memory import calibrate, prune_sequentially
    from zpruner.pruning.in_memory import prune as prune_in_memory

    if propagation is Propagation.pruned:
        return prune_sequentially(
            model,
            windows,
            method=settings,
            sparsity=str(pattern),
            batch_size=batch_size,
            blocks=inventory.blocks,
            ignore=ignore,
        )
    calibration = calibrate(
        model, windows, for_methods=settings, stats=(), batch_size=batch_size, blocks=inventory.blocks, ignore=ignore
    )
    return prune_in_memory(model, calibration, method=settings, sparsity=str(pattern))
