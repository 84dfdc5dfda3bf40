"""Named compositions: the published methods as their papers compose them, and our best one.

In params.yaml write the composition itself (it is the DVC stages' contract); `zpruner methods` prints each preset in
that form. In Python and on the command line a preset's name is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Ours: the support by ADMM, the weights by joint least squares, both on a Hessian regularised enough for other text,
# and more where two halves of the calibration demand it; under pruned propagation, aimed in part at the dense model's
# outputs, and every sub-module of a block measured with those before it pruned. Rows of a layer compete by how much
# they count in what their block puts out.
_BEST: Mapping[str, Any] = {
    "score": "admm",
    "settings": {"damping": 0.1, "shrinkage": "auto", "effect": 0.5},
    "update": {"name": "least_squares", "settings": {"damping": 0.1, "shrinkage": "auto"}},
    "correct": {},
    "measure": "submodule",
    # The mean of what is lost goes into biases, where there are some.
    "correct_bias": True,
    # Of structures those that the rest can make up for least, on a Hessian regularised as much.
    "structures": {"neurons": "obs", "groups": "obs", "blocks": "cosine", "experts": "reap"},
}

# One backward pass more: rows compete by what the loss of the unpruned model says of them (arXiv 2505.07004).
_GUIDED: Mapping[str, Any] = {**_BEST, "settings": {"damping": 0.1, "shrinkage": "auto", "sensitivity": 0.5}}
_ORDERS = ["neurons", "heads", "stream"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Han et al. 2015
    "magnitude": {"score": "magnitude", "group": "layer"},
    # arXiv 2306.11695
    "wanda": {"score": "wanda", "group": "row"},
    # ICLR 2024
    "ria": {"score": "ria", "group": "layer"},
    # arXiv 2508.15828, without and with its weight reconstruction
    "zpruner": {"score": "zpruner", "group": "layer"},
    "zpruner_reconstructed": {"score": "zpruner", "group": "layer", "update": "obs"},
    # arXiv 2301.00774
    "sparsegpt": {"score": "sparsegpt", "update": "obs"},
    # arXiv 2410.15567: the mask by single (S) or multiple (M) removal, joint compensation (M)
    "apt_sm": {"score": "apt", "settings": {"mask": "S"}, "update": "least_squares"},
    "apt_mm": {"score": "apt", "settings": {"mask": "M"}, "update": "least_squares"},
    # arXiv 2512.10922: Wanda's mask, improved by 1-swaps
    "sparseswaps": {"score": "wanda", "group": "row", "refine": "swaps"},
    # arXiv 2406.07831
    "alps": {"score": "alps", "update": "least_squares"},
    # arXiv 2406.02924
    "pruner_zero": {"score": "pruner_zero", "group": "row"},
    # arXiv 2312.11983: its score and its biases where a model has some, as many structures in every block
    "flap": {"score": "wanda", "structures": {"neurons": "flap", "groups": "flap"}, "correct_bias": True},
    "best": _BEST,
    "best_guided": _GUIDED,
    # The same, and layers, too, lose what the loss lets them: for ratios, since N:M fixes every layer's sparsity.
    "best_allocated": {**_GUIDED, "allocate": {"name": "sensitivity"}},
    # `best`, for N:M: neurons, value dimensions and the residual stream in an order in which more can stay.
    "best_permuted": {**_BEST, "permute": _ORDERS},
    # `best_guided`, at N:M in that order, after which gradients of each block's outputs tune what was kept; under
    # pruned propagation only.
    "best_tuned": {**_GUIDED, "permute": _ORDERS, "tune": {}},
}
