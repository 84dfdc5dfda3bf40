"""Checkpoints on disk: their files, tensors and card, and how transformers' names become the model's."""

from zpruner.checkpoint.conversion import find_converted
from zpruner.checkpoint.files import Change, Checkpoint, write_pruned
from zpruner.checkpoint.manifest import MANIFEST, write_manifest
from zpruner.checkpoint.solved import SolvedWeights, SolvedWriter
from zpruner.checkpoint.tensors import write_tensors
from zpruner.model.stored import Stored

__all__ = [
    "MANIFEST",
    "Change",
    "Checkpoint",
    "SolvedWeights",
    "SolvedWriter",
    "Stored",
    "find_converted",
    "write_manifest",
    "write_pruned",
    "write_tensors",
]
