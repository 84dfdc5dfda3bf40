"""Load models, find what can be pruned in them, read and write their weights. The only room that writes weights."""

from zpruner.model.checkpoint import MANIFEST, Checkpoint, write_manifest, write_pruned
from zpruner.model.choose import Choice, choose, memory_limit, open_runner
from zpruner.model.conversion import empty_model, find_converted
from zpruner.model.copy import copy_checkpoint
from zpruner.model.inventory import TIED_BEFORE, take_inventory
from zpruner.model.layers import Inventory, PrunableLayer, find_blocks
from zpruner.model.limits import check_windows, limits_of
from zpruner.model.load import load_model, quiet_transformers, resolve_device, resolve_devices
from zpruner.model.runner import Runner, StreamedRunner, WholeRunner
from zpruner.model.skeleton import Skeleton
from zpruner.model.spill import Spill
from zpruner.model.tensors import Stored, write_tensors
from zpruner.model.weights import get_weight, set_weight

__all__ = [
    "MANIFEST",
    "TIED_BEFORE",
    "Checkpoint",
    "Choice",
    "Inventory",
    "PrunableLayer",
    "Runner",
    "Skeleton",
    "Spill",
    "Stored",
    "StreamedRunner",
    "WholeRunner",
    "check_windows",
    "choose",
    "copy_checkpoint",
    "empty_model",
    "find_blocks",
    "find_converted",
    "get_weight",
    "limits_of",
    "load_model",
    "memory_limit",
    "open_runner",
    "quiet_transformers",
    "resolve_device",
    "resolve_devices",
    "set_weight",
    "take_inventory",
    "write_manifest",
    "write_pruned",
    "write_tensors",
]
