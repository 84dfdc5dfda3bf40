"""Perplexity, divergence from the dense model, zero-shot tasks, achieved sparsity, layer error, size and speed."""

from zpruner.evaluate.continuation import continuation
from zpruner.evaluate.divergence import Comparison, compare_batches
from zpruner.evaluate.flops import flops_per_token
from zpruner.evaluate.intervals import mean_interval, perplexity_interval, ratio_interval
from zpruner.evaluate.layer_error import error_basis, layer_error
from zpruner.evaluate.masks import jaccard, pack_sample, sample_bits, score_histogram
from zpruner.evaluate.perplexity import CHOICES, batch_losses, first_choices, perplexity, perplexity_of, window_losses
from zpruner.evaluate.predict import Logits, Predictor
from zpruner.evaluate.protocols import PROTOCOLS, check_protocol, evaluation_text, protocol
from zpruner.evaluate.storage import achieved_sparsity, share_of_zeros, storage, stored_bytes
from zpruner.evaluate.verdict import verdict
from zpruner.evaluate.zero_shot import ZeroShot, find_tasks

__all__ = [
    "CHOICES",
    "PROTOCOLS",
    "Comparison",
    "Logits",
    "Predictor",
    "ZeroShot",
    "achieved_sparsity",
    "batch_losses",
    "check_protocol",
    "compare_batches",
    "continuation",
    "error_basis",
    "evaluation_text",
    "find_tasks",
    "first_choices",
    "flops_per_token",
    "jaccard",
    "layer_error",
    "mean_interval",
    "pack_sample",
    "perplexity",
    "perplexity_interval",
    "perplexity_of",
    "protocol",
    "ratio_interval",
    "sample_bits",
    "score_histogram",
    "share_of_zeros",
    "storage",
    "stored_bytes",
    "verdict",
    "window_losses",
]
