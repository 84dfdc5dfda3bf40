"""Mixture of experts, found by structure: groups of experts, and the routers that choose among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn


def expert_lists(model: nn.Module, blocks: str) -> dict[str, int]:
    """Return the path and length of every list of like modules inside a decoder block.

    Experts that are modules of their own lie in such a list. Lists within another one are left out.
    """
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = name.startswith(f"{blocks}.") and not any(name.startswith(f"{other}.") for other in found)
        if not inside or not isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        entries = list(module.children())
        shapes = {tuple((n, tuple(p.shape)) for n, p in entry.named_parameters()) for entry in entries}
        if len(entries) > 1 and len(shapes) == 1 and shapes != {()}:
            found[name] = len(entries)
    return found


def find_routers(
    blocks: str, groups: Mapping[str, int], weights: Mapping[str, int], hidden: int | None = None
) -> dict[str, str]:
    """Return the weights that route tokens to experts, each with the path of the experts.

    A router has as many outputs as there are experts. It is looked for beside them: in the module that holds the
    experts, where it may also have some more outputs (for experts that are always met, or for none), then in the one
    that holds that, up to the decoder block. All weights of the part of that module that holds it belong to it. A part
    that writes a hidden state (attention, a shared expert) is none, unless it has a router's outputs right beside the
    experts.

    Args:
        blocks: path of the decoder blocks.
        groups: path of the experts (a list of modules, or the module that holds stacked weights) -> their number.
        weights: name of every matrix -> its number of outputs.
        hidden: width of a hidden state, where it is known.
    """
    routers: dict[str, str] = {}
    for group, count in groups.items():
        outside = {name: out for name, out in weights.items() if not name.startswith(f"{group}.")}
        level = holder = group.rpartition(".")[0]
        while level.startswith(f"{blocks}."):
            outputs: dict[str, set[int]] = {}
            for name, out in outside.items():
                if _inside(name, level):
                    outputs.setdefault(_part(name, level), set()).add(out)
            for part in list(outputs):
                if any(_inside(other, part) for other in groups):
                    del outputs[part]
            parts = {part for part, outs in outputs.items() if count in outs}
            writing = {part for part, outs in outputs.items() if hidden in outs}
            if level != holder:
                parts -= writing
            elif not parts:
                parts = {
                    part for part, outs in outputs.items() if any(count <= out < 2 * count for out in outs)
                } - writing
            if parts:
                routers |= {name: group for name in outside if any(_inside(name, part) for part in parts)}
                break
            level = level.rpartition(".")[0]
    return routers


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _part(name: str, level: str) -> str:
    """Return the path of the child of `level` that holds `name`."""
    return f"{level}.{name.removeprefix(f'{level}.').split('.')[0]}"


def pools(names: Iterable[str], groups: Iterable[str]) -> dict[str, str]:
    """Return, for every layer of an expert in one of the lists `groups`, a name that its counterparts share."""
    found = {}
    for name in names:
        for group in groups:
            if name.startswith(f"{group}."):
                _, _, rest = name.removeprefix(f"{group}.").partition(".")
                found[name] = f"{group}.*.{rest}"
    return found
