"""Run a model, whole or block by block from its checkpoint."""

from zpruner.execution.choose import LoadPlan, choose, load_whole, memory_limit, open_runner
from zpruner.execution.copy import copy_checkpoint
from zpruner.execution.runner import Runner, StreamedRunner, WholeRunner
from zpruner.execution.skeleton import Skeleton
from zpruner.execution.spill import Spill

__all__ = [
    "LoadPlan",
    "Runner",
    "Skeleton",
    "Spill",
    "StreamedRunner",
    "WholeRunner",
    "choose",
    "copy_checkpoint",
    "load_whole",
    "memory_limit",
    "open_runner",
]
