"""Which weights of a model can be pruned, found by structure and by how the model's code uses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from zpruner.errors import InvalidSettingError, ModelStructureError, did_you_mean, shown
from zpruner.model.bfloat16 import WideLinear
from zpruner.model.computed import computed_weights
from zpruner.model.experts import expert_lists, find_routers, pools
from zpruner.model.layers import Inventory, PrunableLayer, find_blocks
from zpruner.model.usage import Use, kind_of, observe_use

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIED_BEFORE = "tied to a weight listed before"


def take_inventory(model: PreTrainedModel, blocks: str | None = None, ignore: Iterable[str] = ()) -> Inventory:
    """List every weight of two or more dimensions inside the decoder blocks as prunable or as skipped.

    Linear layers are prunable; so are weights that no standard layer holds if the model's code multiplies by them, as
    a matrix or as a stack of matrices (experts of a mixture), each of which is its own layer. Routers are
    skipped: with a few outputs each, they decide which expert a token meets.

    Args:
        model: any causal language model; meta tensors will do.
        blocks: path of the decoder blocks where it cannot be found by structure.
        ignore: shell-style patterns of layer names to leave dense; one may stand alone.

    Raises:
        ModelStructureError: blocks not found, or nothing prunable in them; a weight that is computed from others.
        InvalidSettingError: a pattern of `ignore` that matches nothing.
    """
    path = find_blocks(model, blocks)
    ignored = _patterns(ignore)
    layers: list[PrunableLayer] = []
    computed = computed_weights(model, path, ignored)
    skipped = [(f"{module}.{weight}", "computed from other parameters") for module, weight in computed.items()]
    tied = _tied(model, path)
    for name, matrices, reason in _weights(model, path, computed):
        if name in tied:
            skipped.append((name, tied[name]))
        elif not matrices:
            skipped.append((name, reason))
        else:
            layers += matrices
    layers = _without_routers(model, path, layers, skipped)
    layers = _without_ignored(ignored, layers, skipped)
    if not layers:
        raise ModelStructureError(
            f"model {type(model).__name__}",
            f"no prunable weight in {path}",
            "linear layers in its decoder blocks",
            "Name other blocks in params.yaml under model.blocks, or ignore less.",
        )
    return Inventory(path, len(model.get_submodule(path)._modules), tuple(layers), tuple(skipped))


def ignoring(inventory: Inventory, ignore: Iterable[str]) -> Inventory:
    """Return an inventory without the layers that patterns of `ignore` name: they are skipped, and stay dense.

    Raises:
        InvalidSettingError: a pattern that matches nothing.
    """
    skipped = list(inventory.skipped)
    kept = _without_ignored(_patterns(ignore), list(inventory.layers), skipped)
    return replace(inventory, layers=tuple(kept), skipped=tuple(skipped))


def _patterns(ignore: Iterable[str]) -> tuple[str, ...]:
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidSettingError("model.ignore", shown(pattern), "patterns of layer names", "Write them as text.")
    return patterns


def _weights(
    model: PreTrainedModel, path: str, computed: Iterable[str]
) -> Iterator[tuple[str, list[PrunableLayer], str]]:
    """Yield every weight in the blocks: its name, its matrices (out, in), and why it has none where it has none.

    The parameters of modules that compute their weight are left out.
    """
    passed = tuple(f"{module}." for module in computed)
    modules = dict(model.named_modules())
    inside = {
        name: p
        for name, p in model.named_parameters(remove_duplicate=False)
        if name.startswith(f"{path}.") and p.ndim >= 2 and not name.startswith(passed)
    }
    standard = {name: _standard(name, modules) for name in inside}
    unknown = [name for name, use in standard.items() if use is None and not _never_a_matrix(name, modules)]
    observed = observe_use(model, path, unknown) if unknown else {}
    for name, parameter in inside.items():
        use = standard[name] or observed.get(kind_of(modules, name))
        owner = type(modules[name.rpartition(".")[0]]).__name__
        if use is None:
            yield name, [], f"{owner} of shape {tuple(parameter.shape)} is not a linear layer"
        else:
            layers = _matrices(name, tuple(parameter.shape), path, use, standard[name] is None)
            yield name, [_with_bias(layer, modules, standard[name] is not None) for layer in layers], ""


def _standard(name: str, modules: dict[str, nn.Module]) -> Use | None:
    """Return how a weight is used if a standard linear layer holds it."""
    from transformers.pytorch_utils import Conv1D

    owner, _, leaf = name.rpartition(".")
    forward = type(modules[owner]).forward
    if leaf != "weight" or forward not in (nn.Linear.forward, WideLinear.forward, Conv1D.forward):
        return None
    return Use(1, transposed=forward is Conv1D.forward)


def _never_a_matrix(name: str, modules: dict[str, nn.Module]) -> bool:
    from torch.nn.modules.conv import _ConvNd

    return isinstance(modules[name.rpartition(".")[0]], _ConvNd | nn.Embedding)


def _matrices(name: str, shape: tuple[int, ...], path: str, use: Use, named_by_leaf: bool) -> Iterator[PrunableLayer]:
    owner, _, leaf = name.rpartition(".")
    columns = shape[-1]
    rows = _product(shape) // columns // use.parts
    out_features, in_features = (columns, rows) if use.transposed else (rows, columns)
    layer = PrunableLayer(
        name=name if named_by_leaf and leaf != "weight" else owner,
        tensor=name,
        block=int(name.removeprefix(f"{path}.").split(".")[0]),
        out_features=out_features,
        in_features=in_features,
        transposed=use.transposed,
    )
    if use.parts == 1:
        yield layer
    else:
        for part in range(use.parts):
            yield replace(layer, name=f"{layer.name}.{part}", part=part, parts=use.parts, pool=name)


def _with_bias(layer: PrunableLayer, modules: dict[str, nn.Module], standard: bool) -> PrunableLayer:
    """Return a layer with the bias that a standard layer adds, or that lies beside a stack, a row for each matrix."""
    owner, _, leaf = layer.tensor.rpartition(".")
    own = dict(modules[owner].named_parameters(recurse=False))
    bias = "bias" if standard else f"{leaf}_bias"
    shape = (layer.out_features,) if standard else (layer.parts, layer.out_features)
    found = (standard or layer.parts > 1) and bias in own and own[bias].shape == shape
    return replace(layer, bias=f"{owner}.{bias}") if found else layer


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _tied(model: PreTrainedModel, path: str) -> dict[str, str]:
    """Return the weights in the blocks that are the same as another one, with the reason to skip them."""
    prefix = f"{path}."
    named = list(model.named_parameters(remove_duplicate=False))
    outside = {id(p) for name, p in named if not name.startswith(prefix)}
    seen: set[int] = set()
    tied = {}
    for name, parameter in named:
        if name.startswith(prefix):
            if id(parameter) in outside:
                tied[name] = "tied to a weight outside the decoder blocks"
            elif id(parameter) in seen:
                tied[name] = TIED_BEFORE
            seen.add(id(parameter))
    return tied


def _without_routers(
    model: PreTrainedModel, path: str, layers: list[PrunableLayer], skipped: list[tuple[str, str]]
) -> list[PrunableLayer]:
    """Move routers from `layers` to `skipped`, and say of layers in lists of experts which are counterparts."""
    lists = expert_lists(model, path)
    pooled = pools([layer.name for layer in layers], lists)
    groups = {**lists, **{layer.tensor.rpartition(".")[0]: 0 for layer in layers if layer.pool}}
    for layer in layers:
        if layer.pool:
            holder = layer.tensor.rpartition(".")[0]
            groups[holder] = max(groups[holder], layer.part + 1)
    hidden = getattr(model.config.get_text_config(), "hidden_size", None)
    outputs = {layer.tensor: layer.out_features for layer in layers if not layer.pool}
    routers = find_routers(path, groups, outputs, hidden)
    kept = []
    for layer in layers:
        if layer.tensor in routers:
            skipped.append((layer.tensor, f"chooses among the experts in {routers[layer.tensor]}"))
        else:
            kept.append(replace(layer, pool=layer.pool or pooled.get(layer.name)))
    return kept


def _without_ignored(
    patterns: tuple[str, ...], layers: list[PrunableLayer], skipped: list[tuple[str, str]]
) -> list[PrunableLayer]:
    """Move layers that a pattern matches from `layers` to `skipped`."""
    unmatched = set(patterns)
    owners = [name.rpartition(".")[0] for name, _ in skipped]
    unmatched -= {pattern for pattern in patterns if any(fnmatchcase(owner, pattern) for owner in owners)}
    kept = []
    for layer in layers:
        paths = (layer.name, layer.tensor.rpartition(".")[0])
        matches = {pattern for pattern in patterns if any(fnmatchcase(path, pattern) for path in paths)}
        unmatched -= matches
        if matches:
            skipped.append(
                (layer.tensor if layer.pool is None else layer.name, f"listed under model.ignore ({min(matches)})")
            )
        else:
            kept.append(layer)
    if unmatched:
        pattern = min(unmatched)
        raise InvalidSettingError(
            "model.ignore",
            f"'{pattern}', which matches no layer",
            "patterns of layer names",
            did_you_mean(pattern, [layer.name for layer in layers]),
        )
    return kept
