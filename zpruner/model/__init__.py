"""Load models, find what can be pruned in them, read and write their weights. The only room that writes weights."""

from zpruner.model.checkpoint import Checkpoint, write_manifest, write_pruned
from zpruner.model.layers import Inventory, PrunableLayer, find_blocks, take_inventory
from zpruner.model.load import load_model, quiet_transformers, resolve_device
from zpruner.model.weights import get_weight, set_weight

__all__ = [
    "Checkpoint",
    "Inventory",
    "PrunableLayer",
    "find_blocks",
    "get_weight",
    "load_model",
    "quiet_transformers",
    "resolve_device",
    "set_weight",
    "take_inventory",
    "write_manifest",
    "write_pruned",
]
