"""Calibration: token windows, streaming statistics, dense collection, and their artifacts."""

from zpruner.calibrate.artifact import Activations, Gradients, finish_activations, layer_from_json, write_inputs
from zpruner.calibrate.dense import (
    Calibration,
    Collection,
    calibrate,
    collect,
    collect_by_block,
    gradients_of,
)
from zpruner.calibrate.experts import MIN_EXPERT_TOKENS, fill_experts, warning
from zpruner.calibrate.gradients import GradientSums, check_gradients, collect_gradients
from zpruner.calibrate.reached import check_reached
from zpruner.calibrate.replay import BlockReplay
from zpruner.calibrate.snapshots import GradientSnapshots, Snapshots
from zpruner.calibrate.tokens import read_windows, write_windows
from zpruner.calibrate.windows import calibration_windows, check_length, evaluation_windows, windows_hash

__all__ = [
    "MIN_EXPERT_TOKENS",
    "Activations",
    "BlockReplay",
    "Calibration",
    "Collection",
    "GradientSnapshots",
    "GradientSums",
    "Gradients",
    "Snapshots",
    "calibrate",
    "calibration_windows",
    "check_gradients",
    "check_length",
    "check_reached",
    "collect",
    "collect_by_block",
    "collect_gradients",
    "evaluation_windows",
    "fill_experts",
    "finish_activations",
    "gradients_of",
    "layer_from_json",
    "read_windows",
    "warning",
    "windows_hash",
    "write_inputs",
    "write_windows",
]
