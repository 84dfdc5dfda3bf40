"""Perplexity, divergence from the dense model, zero-shot tasks, achieved sparsity, layer error, size and speed."""

from zpruner.evaluate.bootstrap import Bootstrap, Interval
from zpruner.evaluate.divergence import Comparison, compare
from zpruner.evaluate.layer_error import error_basis, layer_error
from zpruner.evaluate.masks import jaccard, sample_mask, score_histogram
from zpruner.evaluate.perplexity import perplexity, perplexity_of, window_losses
from zpruner.evaluate.protocols import PROTOCOLS, check_protocol, evaluation_text, protocol
from zpruner.evaluate.storage import Storage, achieved_sparsity, storage, stored_bytes
from zpruner.evaluate.zero_shot import ZeroShot

__all__ = [
    "PROTOCOLS",
    "Bootstrap",
    "Comparison",
    "Interval",
    "Storage",
    "ZeroShot",
    "achieved_sparsity",
    "check_protocol",
    "compare",
    "error_basis",
    "evaluation_text",
    "jaccard",
    "layer_error",
    "perplexity",
    "perplexity_of",
    "protocol",
    "sample_mask",
    "score_histogram",
    "storage",
    "stored_bytes",
    "window_losses",
]
