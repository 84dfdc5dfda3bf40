"""Checkpoints on disk: their files, tensors and card, and how transformers' names become the model's."""

from zpruner.checkpoint.conversion import empty_model, find_converted
from zpruner.checkpoint.files import Checkpoint, write_pruned
from zpruner.checkpoint.manifest import MANIFEST, write_manifest
from zpruner.checkpoint.tensors import Stored, write_tensors

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "Stored",
    "empty_model",
    "find_converted",
    "write_manifest",
    "write_pruned",
    "write_tensors",
]
