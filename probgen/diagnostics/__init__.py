"""Diagnostics of fitted models.

ArviZ, leave-one-out, predictive checks, quality of the guide, the verdict.
"""

from probgen.diagnostics.bootstrapped import BootstrapResult, bootstrap
from probgen.diagnostics.calibration import simulation_based_calibration
from probgen.diagnostics.checks import PredictiveCheck, predictive_check
from probgen.diagnostics.convert import to_arviz
from probgen.diagnostics.guide_quality import active_units, ess, khat
from probgen.diagnostics.leave_one_out import LooResult, loo
from probgen.diagnostics.psis import effective_sample_size, pareto_khat, pareto_smooth
from probgen.diagnostics.refits import kfold, reloo
from probgen.diagnostics.settled import settled
from probgen.diagnostics.total_correlation import Decomposition, total_correlation
from probgen.diagnostics.verdict import FitVerdict, verdict

__all__ = [
    "BootstrapResult",
    "Decomposition",
    "FitVerdict",
    "LooResult",
    "PredictiveCheck",
    "active_units",
    "bootstrap",
    "effective_sample_size",
    "ess",
    "kfold",
    "khat",
    "loo",
    "pareto_khat",
    "pareto_smooth",
    "predictive_check",
    "reloo",
    "settled",
    "simulation_based_calibration",
    "to_arviz",
    "total_correlation",
    "verdict",
]
