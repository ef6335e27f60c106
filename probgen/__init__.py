"""probgen: generative models on Pyro and PyTorch.

A model is a distribution, told as a Pyro program; ``fit`` trains any of them, and every score says what kind of number
it is. Start with the README and ``tutorials/01_quickstart.py``.
"""

import pyro

from probgen.bif import format_bif, parse_bif, read_bif, write_bif
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
    MixtureOfGaussians,
    NegativeBinomial,
    Poisson,
    StudentT,
)
from probgen.core.score import Score
from probgen.datasets import load_digits, load_mnist
from probgen.diagnostics import active_units, khat, loo, predictive_check, to_arviz, verdict
from probgen.diagnostics.calibration import simulation_based_calibration
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.conditional import conditional
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.marginal_transform import Gaussianised
from probgen.distributions.flows.ode import Adaptive, RungeKutta
from probgen.distributions.flows.univariate import Affine, Spline
from probgen.distributions.gibbs import gibbs
from probgen.distributions.orderings import random_orders
from probgen.distributions.sequences.emission import Emission
from probgen.distributions.stick_breaking import StickBreaking
from probgen.infer.em import em
from probgen.infer.impute import Imputation, impute
from probgen.infer.mcmc import Chains, mcmc
from probgen.infer.nuts import PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie
from probgen.infer.posterior import posterior, predictive, prior_predictive
from probgen.infer.relabel import relabel
from probgen.models.autoregressive_flow import BPF, IAF, MAF, NAF, NSF, SOSPF, UNAF, AutoregressiveFlow
from probgen.models.bayesian_hidden_markov import (
    BayesianHiddenMarkovModel,
    categorical_emission,
    normal_emission,
    poisson_emission,
)
from probgen.models.bayesian_mixture import BayesianGaussianMixture
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, Table
from probgen.models.bayesian_ppca import BayesianPPCA
from probgen.models.chow_liu import ChowLiu
from probgen.models.circular_flow import CircularFlow
from probgen.models.continuous_flow import FFJORD, ContinuousFlow
from probgen.models.coupling_flow import CouplingFlow, CouplingNSF, RealNVP
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.deep_nade import DeepNADE
from probgen.models.emissions import CategoricalEmission, GaussianEmission, GaussianMixtureEmission, PoissonEmission
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.models.factorised import Factorised
from probgen.models.glow import Glow
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.integer_flow import IntegerFlow
from probgen.models.joint_table import JointTable
from probgen.models.made import MADE
from probgen.models.markov_chain import MarkovChain
from probgen.models.markov_random_field import MarkovRandomField, grid_edges
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.models.nade import NADE
from probgen.models.pixel_cnn import PixelCNN
from probgen.models.pixel_rnn import PixelRNN
from probgen.models.quantised import BinNoise, Quantised
from probgen.models.sequence import SequenceModel
from probgen.models.sphere_flow import SphereFlow
from probgen.models.standardised import Standardised
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.transformed import Transformed
from probgen.models.transformer import Transformer
from probgen.models.vae import VAE
from probgen.nn import (
    MLP,
    RNN,
    Combiner,
    Constant,
    ConvDecoder,
    ConvEncoder,
    CouplingNet,
    GatedTransition,
    Levels,
    OneHot,
    TemporalConvolution,
    Tokens,
)
from probgen.objectives import (
    ELBO,
    IWAE,
    DReG,
    EnumeratedELBO,
    Objective,
    PseudoLikelihood,
    Renyi,
    WakeSleep,
    cyclical,
    linear_warmup,
)
from probgen.testing import check_generative
from probgen.train import CheckpointError, FitWarning, History, NonFiniteLoss, Run, adam, fit, load, save

pyro.settings.set(module_local_params=True)

__version__ = "0.1.0"

__all__ = [
    "BPF",
    "ELBO",
    "FFJORD",
    "IAF",
    "IWAE",
    "KINDS",
    "MADE",
    "MAF",
    "MLP",
    "NADE",
    "NAF",
    "NSF",
    "PPCA",
    "RNN",
    "SOSPF",
    "UNAF",
    "VAE",
    "Adaptive",
    "Affine",
    "Autoregressive",
    "AutoregressiveFlow",
    "BayesianGaussianMixture",
    "BayesianHiddenMarkovModel",
    "BayesianNetwork",
    "BayesianPPCA",
    "Bernoulli",
    "BinNoise",
    "Categorical",
    "CategoricalEmission",
    "Chains",
    "CheckpointError",
    "ChowLiu",
    "CircularFlow",
    "Combiner",
    "CompileWarning",
    "Constant",
    "ContinuousFlow",
    "ConvDecoder",
    "ConvEncoder",
    "CouplingFlow",
    "CouplingNSF",
    "CouplingNet",
    "DReG",
    "DeepMarkovModel",
    "DeepNADE",
    "Diagonal",
    "DiscretizedLogisticMixture",
    "DistributionModule",
    "Emission",
    "EnumeratedELBO",
    "FactorAnalysis",
    "Factorised",
    "FitWarning",
    "Fixed",
    "Full",
    "FullGaussian",
    "GatedTransition",
    "Gaussian",
    "GaussianEmission",
    "GaussianMixture",
    "GaussianMixtureEmission",
    "Gaussianised",
    "GenerativeModel",
    "Glow",
    "HiddenMarkovModel",
    "History",
    "Imputation",
    "Independent",
    "IntegerFlow",
    "JointTable",
    "LatentVariableModel",
    "Levels",
    "LinearGaussian",
    "LinearGaussianStateSpace",
    "Marginal",
    "MarkovChain",
    "MarkovRandomField",
    "Mixed",
    "Mixture",
    "MixtureOfGaussians",
    "MixtureOfTrees",
    "NegativeBinomial",
    "NonFiniteLoss",
    "NotCompilable",
    "Nutpie",
    "Objective",
    "OneHot",
    "PixelCNN",
    "PixelRNN",
    "Poisson",
    "PoissonEmission",
    "Program",
    "PseudoLikelihood",
    "Pushforward",
    "PyroNUTS",
    "Quantised",
    "RealNVP",
    "Renyi",
    "Run",
    "RungeKutta",
    "Score",
    "SequenceModel",
    "SphereFlow",
    "Spherical",
    "Spline",
    "Standardised",
    "StickBreaking",
    "StudentT",
    "Table",
    "TemporalConvolution",
    "Tied",
    "Tokens",
    "Transformed",
    "Transformer",
    "WakeSleep",
    "active_units",
    "adam",
    "categorical_emission",
    "check_generative",
    "conditional",
    "cyclical",
    "data_plate",
    "density",
    "em",
    "fit",
    "format_bif",
    "gibbs",
    "grid_edges",
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
    "normal_emission",
    "parse_bif",
    "poisson_emission",
    "posterior",
    "predictive",
    "predictive_check",
    "prior_predictive",
    "random_orders",
    "read_bif",
    "relabel",
    "sample",
    "save",
    "simulation_based_calibration",
    "standard_normal",
    "to_arviz",
    "verdict",
    "write_bif",
]
