"""Find what can be pruned in a model, load it, read and write its weights."""

from zpruner.model.config import quiet_transformers
from zpruner.model.empty import empty_model
from zpruner.model.given import as_windows
from zpruner.model.inventory import TIED_BEFORE, ignoring, take_inventory
from zpruner.model.layers import Inventory, PrunableLayer, find_blocks
from zpruner.model.limits import check_windows, limits_of, reading
from zpruner.model.load import load_model, resolve_device, resolve_devices
from zpruner.model.opening import open_checkpoint
from zpruner.model.tables import table_bytes
from zpruner.model.undisturbed import check_model, evaluating, undisturbed
from zpruner.model.weights import (
    Parameters,
    check_in_memory,
    get_parameters,
    get_weight,
    set_parameters,
    set_weight,
    shifted,
)

__all__ = [
    "TIED_BEFORE",
    "Inventory",
    "Parameters",
    "PrunableLayer",
    "as_windows",
    "check_in_memory",
    "check_model",
    "check_windows",
    "empty_model",
    "evaluating",
    "find_blocks",
    "get_parameters",
    "get_weight",
    "ignoring",
    "limits_of",
    "load_model",
    "open_checkpoint",
    "quiet_transformers",
    "reading",
    "resolve_device",
    "resolve_devices",
    "set_parameters",
    "set_weight",
    "shifted",
    "table_bytes",
    "take_inventory",
    "undisturbed",
]
