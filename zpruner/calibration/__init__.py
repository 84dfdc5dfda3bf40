"""Calibration: streaming statistics, dense collection, and their artifacts."""

from zpruner.calibration.artifact import (
    EFFECTS,
    Activations,
    Gradients,
    finish_activations,
    layer_from_json,
    write_effects,
    write_inputs,
)
from zpruner.calibration.by_block import collect_by_block
from zpruner.calibration.collection import Collection
from zpruner.calibration.contributions import expert_contributions
from zpruner.calibration.dense import (
    Calibration,
    calibrate,
    collect,
    gradients_of,
    known_statistics,
)
from zpruner.calibration.distances import BlockDistances
from zpruner.calibration.effects import collect_effects
from zpruner.calibration.experts import MIN_EXPERT_TOKENS, fill_experts, warning
from zpruner.calibration.functional import BlockFunction
from zpruner.calibration.gradients import GradientSums, check_gradients, collect_gradients
from zpruner.calibration.order import together
from zpruner.calibration.reached import check_reached
from zpruner.calibration.recall import RECALLED
from zpruner.calibration.replay import BlockReplay
from zpruner.calibration.snapshots import GradientSnapshots, Snapshots

__all__ = [
    "EFFECTS",
    "MIN_EXPERT_TOKENS",
    "RECALLED",
    "Activations",
    "BlockDistances",
    "BlockFunction",
    "BlockReplay",
    "Calibration",
    "Collection",
    "GradientSnapshots",
    "GradientSums",
    "Gradients",
    "Snapshots",
    "calibrate",
    "check_gradients",
    "check_reached",
    "collect",
    "collect_by_block",
    "collect_effects",
    "collect_gradients",
    "expert_contributions",
    "fill_experts",
    "finish_activations",
    "gradients_of",
    "known_statistics",
    "layer_from_json",
    "together",
    "warning",
    "write_effects",
    "write_inputs",
]
