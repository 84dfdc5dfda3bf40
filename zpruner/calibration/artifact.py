"""Activation statistics on disk: written from a collection, read layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from zpruner.artifacts.store import ArtifactReader, ArtifactWriter, Provenance
from zpruner.calibration.collection import Collection
from zpruner.errors import MEND, ArtifactError
from zpruner.linalg import output_energy
from zpruner.model import Inventory, PrunableLayer
from zpruner.types import DERIVATIVES, SQUARES, LayerStats, Stat


@dataclass(frozen=True)
class _Statistics:
    """What the index of activation statistics has besides what every index has."""

    blocks: str
    n_blocks: int
    layers: list[dict[str, Any]]
    skipped: tuple[tuple[str, str], ...]


_STATISTICS, _LAYER = TypeAdapter(_Statistics), TypeAdapter(PrunableLayer)
EFFECTS = "effects"
"""What the file of all layers' effects is called; the others bear names of layers, which have dots."""
_SHAPES = {stat.value: 2 if stat in SQUARES else 1 for stat in Stat if stat not in DERIVATIVES | {Stat.DRIFT}}
"""Dimensions of each statistic, each as long as the layer has inputs."""


def write_inputs(writer: ArtifactWriter, collection: Collection, weight: Callable[[str], Tensor] | None = None) -> None:
    """Write one file per captured input, with the names of the layers that read it; finished ones are kept.

    Args:
        writer: of the artifact.
        collection: statistics, complete.
        weight: gives a layer's weight, float (out, in), for the energy of its output; None: energies are left out.
    """
    for owner, sums in collection.accumulators.items():
        if writer.work.done(owner) is not None:
            continue
        readers = [layer for layer, found in collection.owner.items() if found == owner]
        facts: dict[str, Any] = {"tokens": sums.tokens, "readers": readers}
        if few := {layer: collection.few[layer] for layer in readers if layer in collection.few}:
            facts["few"] = few
        if weight is not None:
            facts["energy"] = {layer: output_energy(weight(layer), collection.stats(layer)) for layer in readers}
        writer.write(owner, sums.state(), **facts)


def write_effects(writer: ArtifactWriter, inventory: Inventory, effects: Mapping[str, Tensor]) -> None:
    """Write how much each output of every layer counts: one column, the layers one after another.

    Args:
        writer: of the artifact.
        inventory: of the model.
        effects: as `collect_effects` returns them.
    """
    writer.write(EFFECTS, {Stat.EFFECT.value: torch.cat([effects[layer.name] for layer in inventory.layers])})


def finish_activations(writer: ArtifactWriter, out: Path, inventory: Inventory) -> None:
    """Write the index that maps every layer to the file of its input, and publish the artifact as `out`.

    An artifact without files says that its statistics are those of the dense model.
    """
    writer.drain()
    owner = {
        layer: name
        for name, facts in writer.work.items().items()
        for layer in facts.get("readers", ())
        if "file" in facts
    }
    writer.finish(
        out,
        layers=[{**layer.to_json(), "input": owner.get(layer.name)} for layer in inventory.layers],
        skipped=[list(entry) for entry in inventory.skipped],
        blocks=inventory.blocks,
        n_blocks=inventory.n_blocks,
    )


class Gradients:
    """Gradient statistics of a model, read layer by layer.

    Args:
        folder: written by the gradients stage.
        expected: provenance that it must have; empty fields are not compared.

    Raises:
        ArtifactError: missing, damaged, of another model or calibration, or not collected.
    """

    def __init__(self, folder: Path, expected: Provenance) -> None:
        self.reader = ArtifactReader(folder, "gradients")
        if not self.reader.files:
            raise ArtifactError(
                str(folder), "no gradients: no method needed them", "those of every layer", "Run `dvc repro`."
            )
        expected.require(asdict(self.reader.provenance), folder)
        self.layers = tuple(layer_from_json(facts, folder) for facts in self.reader.index["layers"])

    def grad_sq(self, layer: PrunableLayer) -> Tensor:
        """Return a layer's sum over windows of the squared gradient, float32 (out, in), on the CPU."""
        return self.reader.read_matrix(layer.name, "grad_sq", torch.float32, layer.shape)


class Activations:
    """Activation statistics of a model, read layer by layer.

    Args:
        folder: written by the calibrate stage, or by the mask stage.
        expected: provenance that it must have; empty fields are not compared.

    Raises:
        ArtifactError: missing, damaged, or of another model or calibration.
    """

    def __init__(self, folder: Path, expected: Provenance | None = None) -> None:
        self.reader = ArtifactReader(folder, "activations", expected)
        try:
            found = _STATISTICS.validate_json(json.dumps(self.reader.index), strict=True)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ArtifactError(str(folder), f"an index with another '{where}'", "that of statistics", MEND) from None
        layers = tuple(layer_from_json(facts, folder) for facts in found.layers)
        self.inventory = Inventory(found.blocks, found.n_blocks, layers, found.skipped)
        self._input = {layer.name: facts.get("input") for layer, facts in zip(layers, found.layers, strict=True)}
        self._cached: tuple[str, dict[str, Tensor]] | None = None
        self._effects: dict[str, Tensor] | None = None

    @property
    def layers(self) -> tuple[PrunableLayer, ...]:
        """The prunable layers, in the model's order."""
        return self.inventory.layers

    @property
    def provenance(self) -> Provenance:
        """What the statistics were taken from."""
        return self.reader.provenance

    @property
    def few(self) -> dict[str, int]:
        """Experts that met fewer tokens than calibration.min_expert_tokens, with their number."""
        return {layer: met for facts in self.reader.files.values() for layer, met in facts.get("few", {}).items()}

    def stats(self, layer: str) -> LayerStats:
        """Return the statistics of a layer's input, on the CPU."""
        owner = self._input[layer]
        if owner is None:
            raise ArtifactError(
                str(self.reader.folder), f"no statistics of {layer}", "those of its input", "Run `dvc repro`."
            )
        if self._cached is None or self._cached[0] != owner:  # layers that share an input follow each other
            self._cached = (owner, self.reader.read(owner))
        facts, columns = self.reader.files[owner], self._cached[1]
        width = next(found.in_features for found in self.layers if found.name == layer)
        for name, tensor in columns.items():
            if name not in _SHAPES or tuple(tensor.shape) != (width,) * _SHAPES[name]:
                got = f"'{name}' of shape {tuple(tensor.shape)}"
                where = str(self.reader.folder / facts["file"])
                raise ArtifactError(where, got, f"statistics of the {width} inputs of {layer}", MEND)
        energy: float | None = facts.get("energy", {}).get(layer)
        effect = self.effect(layer)
        return LayerStats(layer, facts["tokens"], self.provenance.windows, **columns, effect=effect, energy=energy)

    def effect(self, layer: str) -> Tensor | None:
        """Return how much each output of a layer counts, float32 (out,); None where that was not collected."""
        if EFFECTS not in self.reader.files:
            return None
        if self._effects is None:
            sizes = [found.out_features for found in self.layers]
            every = self.reader.read_matrix(EFFECTS, Stat.EFFECT.value, torch.float32, (sum(sizes),))
            self._effects = dict(zip((found.name for found in self.layers), every.split(sizes), strict=True))
        return self._effects[layer]


def layer_from_json(facts: dict[str, Any], folder: Path) -> PrunableLayer:
    """Return the layer that an index entry of the artifact at `folder` describes.

    Raises:
        ArtifactError: keys missing or too many, or of another type.
    """
    known = sorted(asdict(PrunableLayer("", "", 0, 0, 0, False)))
    try:
        if facts.keys() - {*known, "input"}:
            raise ValueError
        return _LAYER.validate_json(json.dumps(facts), strict=True)
    except ValueError:
        raise ArtifactError(str(folder), f"a layer entry with {sorted(facts)}", f"the keys {known}", MEND) from None
