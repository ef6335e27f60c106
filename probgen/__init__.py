"""probgen: generative models on Pyro and PyTorch.

A model is a distribution, told as a Pyro program; ``fit`` trains any of them, and every score says what kind of number
it is. Start with the README and ``tutorials/01_quickstart.py``.
"""

import pyro

from probgen.core import (
    KINDS,
    DistributionModule,
    Fixed,
    GenerativeModel,
    Independent,
    LatentVariableModel,
    Marginal,
    Program,
    data_plate,
    density,
    log_likelihood,
    log_weights,
    sample,
    standard_normal,
)
from probgen.core.graphs.graph import NotCompilable
from probgen.core.graphs.repeat import CompileWarning
from probgen.core.heads import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    FullGaussian,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
    StudentT,
)
from probgen.core.score import Score
from probgen.datasets import load_digits, load_mnist
from probgen.diagnostics import active_units, khat, loo, predictive_check, to_arviz, verdict
from probgen.diagnostics.calibration import simulation_based_calibration
from probgen.distributions.conditional import conditional
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.stick_breaking import StickBreaking
from probgen.infer.em import em
from probgen.infer.impute import Imputation, impute
from probgen.infer.mcmc import Chains, mcmc
from probgen.infer.nuts import PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie
from probgen.infer.posterior import posterior, predictive, prior_predictive
from probgen.infer.relabel import relabel
from probgen.models.bayesian_mixture import BayesianGaussianMixture
from probgen.models.bayesian_ppca import BayesianPPCA
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.models.mixture import GaussianMixture
from probgen.models.quantised import Quantised
from probgen.models.vae import VAE
from probgen.nn import MLP, Constant, ConvDecoder, ConvEncoder
from probgen.objectives import ELBO, IWAE, DReG, EnumeratedELBO, Objective, Renyi, WakeSleep, cyclical, linear_warmup
from probgen.testing import check_generative
from probgen.train import CheckpointError, FitWarning, History, NonFiniteLoss, Run, adam, fit, load, save

pyro.settings.set(module_local_params=True)

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "IWAE",
    "KINDS",
    "MLP",
    "PPCA",
    "VAE",
    "BayesianGaussianMixture",
    "BayesianPPCA",
    "Bernoulli",
    "Categorical",
    "Chains",
    "CheckpointError",
    "CompileWarning",
    "Constant",
    "ConvDecoder",
    "ConvEncoder",
    "DReG",
    "Diagonal",
    "DiscretizedLogisticMixture",
    "DistributionModule",
    "EnumeratedELBO",
    "FactorAnalysis",
    "FitWarning",
    "Fixed",
    "Full",
    "FullGaussian",
    "Gaussian",
    "GaussianMixture",
    "GenerativeModel",
    "History",
    "Imputation",
    "Independent",
    "LatentVariableModel",
    "Marginal",
    "Mixed",
    "NegativeBinomial",
    "NonFiniteLoss",
    "NotCompilable",
    "Nutpie",
    "Objective",
    "Poisson",
    "Program",
    "PyroNUTS",
    "Quantised",
    "Renyi",
    "Run",
    "Score",
    "Spherical",
    "StickBreaking",
    "StudentT",
    "Tied",
    "WakeSleep",
    "active_units",
    "adam",
    "check_generative",
    "conditional",
    "cyclical",
    "data_plate",
    "density",
    "em",
    "fit",
    "impute",
    "khat",
    "linear_warmup",
    "load",
    "load_digits",
    "load_mnist",
    "log_likelihood",
    "log_weights",
    "loo",
    "mcmc",
    "posterior",
    "predictive",
    "predictive_check",
    "prior_predictive",
    "relabel",
    "sample",
    "save",
    "simulation_based_calibration",
    "standard_normal",
    "to_arviz",
    "verdict",
]
