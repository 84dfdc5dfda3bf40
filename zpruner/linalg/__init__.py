"""Linear algebra of layer-wise pruning: one copy of each algorithm, on plain tensors."""

from zpruner.linalg._centred import centred
from zpruner.linalg._conjugate_gradients import Solution, masked_cg
from zpruner.linalg._elimination import Elimination
from zpruner.linalg._energy import output_energy
from zpruner.linalg._hessian import DampedHessian, checked_cholesky, damped_hessian, inverse, inverse_factor
from zpruner.linalg._least_squares import Solver, choose_solver, least_squares
from zpruner.linalg._masked_cholesky import masked_cholesky
from zpruner.linalg._obs import ChooseMask, ColumnGrid, obs_sweep
from zpruner.linalg._shrinkage import (
    Damping,
    Shrinkage,
    choose_regularisation,
    chosen,
    shrunk_hessian,
    statistics_for,
)

__all__ = [
    "ChooseMask",
    "ColumnGrid",
    "DampedHessian",
    "Damping",
    "Elimination",
    "Shrinkage",
    "Solution",
    "Solver",
    "centred",
    "checked_cholesky",
    "choose_regularisation",
    "choose_solver",
    "chosen",
    "damped_hessian",
    "inverse",
    "inverse_factor",
    "least_squares",
    "masked_cg",
    "masked_cholesky",
    "obs_sweep",
    "output_energy",
    "shrunk_hessian",
    "statistics_for",
]
