"""probgen: generative models on Pyro and PyTorch.

A model is a distribution, told as a Pyro program; ``fit`` trains any of them, and every score says
what kind of number it is. Start with the README and ``tutorials/01_quickstart.py``.
"""

from probgen import libraries as libraries  # before all others: their imports are not interrupted
from probgen.bif import format_bif, parse_bif, read_bif, write_bif
from probgen.core import (
    KINDS,
    DistributionModule,
    Fixed,
    GenerativeModel,
    Independent,
    Keywords,
    LatentVariableModel,
    Marginal,
    Program,
    Truncated,
    data_plate,
    density,
    log_likelihood,
    log_weights,
    sample,
    standard_normal,
    truncated,
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
from probgen.core.ragged import pad
from probgen.core.score import Score
from probgen.core.turns import turn
from probgen.datasets import load_digits, load_mnist
from probgen.diagnostics import active_units, khat, loo, predictive_check, to_arviz, verdict
from probgen.diagnostics.calibration import simulation_based_calibration
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.conditional import conditional
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.diffusion.predictions import (
    EDM,
    Epsilon,
    LevelPrediction,
    Original,
    Velocity,
)
from probgen.distributions.diffusion.reconstruction import (
    GaussianReconstruction,
    LevelReconstruction,
)
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun
from probgen.distributions.diffusion.thresholds import DynamicThreshold, StaticThreshold
from probgen.distributions.diffusion.times import (
    KarrasSteps,
    LogNormalTimes,
    UniformTimes,
    log_snr_steps,
    quadratic_steps,
    uniform_steps,
)
from probgen.distributions.diffusion.variances import (
    ForwardVariance,
    LearnedVariance,
    PosteriorVariance,
)
from probgen.distributions.energy.visible import BernoulliUnits, CategoricalUnits, GaussianUnits
from probgen.distributions.flows.couplings import (
    EntropicTransport,
    IndependentCoupling,
    OptimalTransport,
)
from probgen.distributions.flows.fixed_steps import Euler, Midpoint, Trapezoid
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.marginal_transform import Gaussianised
from probgen.distributions.flows.matching import StraightPath, TrigonometricPath
from probgen.distributions.flows.ode import Adaptive, RungeKutta
from probgen.distributions.flows.univariate import Affine, Spline
from probgen.distributions.gibbs import gibbs
from probgen.distributions.noising.additive import GaussianNoise
from probgen.distributions.noising.chain import deterministic, with_own_noise
from probgen.distributions.noising.gamma import GammaNoise
from probgen.distributions.noising.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.noising.mixture import MixtureNoise
from probgen.distributions.noising.schedules import (
    cosine_steps,
    even_steps,
    from_betas,
    linear_steps,
)
from probgen.distributions.orderings import random_orders
from probgen.distributions.sequences.emission import Emission
from probgen.distributions.stick_breaking import StickBreaking
from probgen.evaluate.two_sample import (
    ClassifierFeatures,
    GaussianKernel,
    PolynomialKernel,
    RandomFeatures,
    SampleReport,
    TwoSample,
    classifier_features,
    classifier_two_sample_test,
    copying_test,
    density_coverage,
    energy_test,
    frechet_distance,
    gaussian_frechet,
    kernel_distance,
    mmd_test,
    precision_recall,
    sample_report,
    sliced_wasserstein,
    wasserstein,
)
from probgen.infer.ais import LogZ, annealed_importance, reverse_annealing
from probgen.infer.draws import as_chains
from probgen.infer.em import em
from probgen.infer.impute import Imputation, impute
from probgen.infer.mcmc import Chains, mcmc
from probgen.infer.nuts import PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie
from probgen.infer.posterior import posterior, predictive, prior_predictive
from probgen.infer.relabel import relabel
from probgen.models.autoregressive_flow import (
    BPF,
    IAF,
    MAF,
    NAF,
    NSF,
    SOSPF,
    UNAF,
    AutoregressiveFlow,
)
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
from probgen.models.deep_boltzmann import DeepBoltzmannMachine
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.deep_nade import DeepNADE
from probgen.models.diffusion import Diffusion, DiffusionChain, ProbabilityFlow
from probgen.models.emissions import (
    CategoricalEmission,
    GaussianEmission,
    GaussianMixtureEmission,
    PoissonEmission,
)
from probgen.models.empirical import Empirical
from probgen.models.end_token import EndToken, StopOr
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.energy import EnergyBasedModel
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.models.factorised import Factorised
from probgen.models.flow_matching import FlowMatching
from probgen.models.gan import GAN
from probgen.models.glow import Glow
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.info_gan import Codes, InfoGAN
from probgen.models.integer_flow import IntegerFlow
from probgen.models.joint_energy import JointEnergyModel
from probgen.models.joint_table import JointTable
from probgen.models.made import MADE
from probgen.models.markov_chain import MarkovChain
from probgen.models.markov_random_field import MarkovRandomField, grid_edges
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.models.nade import NADE
from probgen.models.noising_diffusion import (
    CategoricalDiffusion,
    NoisingDiffusion,
    UnrolledDiffusion,
)
from probgen.models.normalised import Normalised
from probgen.models.pixel_cnn import PixelCNN
from probgen.models.pixel_rnn import PixelRNN
from probgen.models.preprocessed import Preprocessed
from probgen.models.quantised import BinNoise, Quantised
from probgen.models.rbm import RBM
from probgen.models.sequence import SequenceModel
from probgen.models.sphere_flow import SphereFlow
from probgen.models.standardised import Standardised
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.transformed import Transformed
from probgen.models.transformer import Transformer
from probgen.models.vae import VAE
from probgen.models.variable_length import VariableLength, VariableLengthLatents
from probgen.nn import (
    MLP,
    RNN,
    Combiner,
    Constant,
    ConvDecoder,
    ConvEncoder,
    CouplingNet,
    DCGANCritic,
    DCGANGenerator,
    DiT,
    GatedTransition,
    Levels,
    OneHot,
    SideBySide,
    TemporalConvolution,
    TimeMLP,
    Tokens,
    UNet,
)
from probgen.nn.augment import Colour, Cutout, Jitter, RandomAffine, Thickness, Translation
from probgen.nn.schedules import (
    CosineSchedule,
    EDMSchedule,
    LearnedSchedule,
    LinearSchedule,
    VarianceExploding,
)
from probgen.nn.tabulated import TabulatedSchedule
from probgen.objectives import (
    ELBO,
    IWAE,
    MMD,
    R1,
    R2,
    RBF,
    Adversarial,
    Adversary,
    ContrastiveDivergence,
    Denoising,
    DenoisingScoreMatching,
    Discrepancy,
    DReG,
    EnergyDistance,
    EnumeratedELBO,
    FDivergence,
    GradientPenalty,
    Hinge,
    Hybrid,
    InvariantInformation,
    InverseMultiquadric,
    LeastSquares,
    MatchedLatents,
    NoiseContrastive,
    NonSaturating,
    Objective,
    PseudoLikelihood,
    Relativistic,
    Renyi,
    ScoreMatching,
    SlicedScoreMatching,
    SlicedWasserstein,
    WakeSleep,
    Wasserstein,
    cyclical,
    linear_warmup,
)
from probgen.samplers.hmc import HMC, MALA
from probgen.samplers.langevin import Langevin
from probgen.testing import check_generative
from probgen.train import (
    CheckpointError,
    FitWarning,
    History,
    NonFiniteLoss,
    Run,
    adam,
    fit,
    load,
    save,
)

__version__ = "0.1.0"

__all__ = [
    "BPF",
    "DDIM",
    "EDM",
    "ELBO",
    "FFJORD",
    "GAN",
    "HMC",
    "IAF",
    "IWAE",
    "KINDS",
    "MADE",
    "MAF",
    "MALA",
    "MLP",
    "MMD",
    "NADE",
    "NAF",
    "NSF",
    "PPCA",
    "R1",
    "R2",
    "RBF",
    "RBM",
    "RNN",
    "SOSPF",
    "UNAF",
    "VAE",
    "AbsorbingNoise",
    "Adaptive",
    "Adversarial",
    "Adversary",
    "Affine",
    "Ancestral",
    "Autoregressive",
    "AutoregressiveFlow",
    "BayesianGaussianMixture",
    "BayesianHiddenMarkovModel",
    "BayesianNetwork",
    "BayesianPPCA",
    "Bernoulli",
    "BernoulliUnits",
    "BinNoise",
    "Categorical",
    "CategoricalDiffusion",
    "CategoricalEmission",
    "CategoricalUnits",
    "Chains",
    "CheckpointError",
    "ChowLiu",
    "CircularFlow",
    "ClassifierFeatures",
    "Codes",
    "Colour",
    "Combiner",
    "CompileWarning",
    "Constant",
    "ContinuousFlow",
    "ContrastiveDivergence",
    "ConvDecoder",
    "ConvEncoder",
    "CosineSchedule",
    "CouplingFlow",
    "CouplingNSF",
    "CouplingNet",
    "Cutout",
    "DCGANCritic",
    "DCGANGenerator",
    "DPMSolver",
    "DReG",
    "DeepBoltzmannMachine",
    "DeepMarkovModel",
    "DeepNADE",
    "Denoising",
    "DenoisingScoreMatching",
    "DiT",
    "Diagonal",
    "Diffusion",
    "DiffusionChain",
    "Discrepancy",
    "DiscretizedLogisticMixture",
    "DistributionModule",
    "DynamicThreshold",
    "EDMSchedule",
    "Emission",
    "Empirical",
    "EndToken",
    "EndingHiddenMarkovModel",
    "EnergyBasedModel",
    "EnergyDistance",
    "EntropicTransport",
    "EnumeratedELBO",
    "Epsilon",
    "Euler",
    "FDivergence",
    "FactorAnalysis",
    "Factorised",
    "FitWarning",
    "Fixed",
    "FlowMatching",
    "ForwardVariance",
    "Full",
    "FullGaussian",
    "GammaNoise",
    "GatedTransition",
    "Gaussian",
    "GaussianEmission",
    "GaussianKernel",
    "GaussianMixture",
    "GaussianMixtureEmission",
    "GaussianNoise",
    "GaussianReconstruction",
    "GaussianUnits",
    "Gaussianised",
    "GenerativeModel",
    "Glow",
    "GradientPenalty",
    "Heun",
    "HiddenMarkovModel",
    "Hinge",
    "History",
    "Hybrid",
    "Imputation",
    "Independent",
    "IndependentCoupling",
    "InfoGAN",
    "IntegerFlow",
    "InvariantInformation",
    "InverseMultiquadric",
    "Jitter",
    "JointEnergyModel",
    "JointTable",
    "KarrasSteps",
    "Keywords",
    "Langevin",
    "LatentVariableModel",
    "LearnedSchedule",
    "LearnedVariance",
    "LeastSquares",
    "LevelPrediction",
    "LevelReconstruction",
    "Levels",
    "LinearGaussian",
    "LinearGaussianStateSpace",
    "LinearSchedule",
    "LogNormalTimes",
    "LogZ",
    "Marginal",
    "MarkovChain",
    "MarkovRandomField",
    "MatchedLatents",
    "Midpoint",
    "Mixed",
    "Mixture",
    "MixtureNoise",
    "MixtureOfGaussians",
    "MixtureOfTrees",
    "NegativeBinomial",
    "NoiseContrastive",
    "NoisingDiffusion",
    "NonFiniteLoss",
    "NonSaturating",
    "Normalised",
    "NotCompilable",
    "Nutpie",
    "Objective",
    "OneHot",
    "OptimalTransport",
    "Original",
    "PixelCNN",
    "PixelRNN",
    "Poisson",
    "PoissonEmission",
    "PolynomialKernel",
    "PosteriorVariance",
    "Preprocessed",
    "ProbabilityFlow",
    "Program",
    "PseudoLikelihood",
    "Pushforward",
    "PyroNUTS",
    "Quantised",
    "RandomAffine",
    "RandomFeatures",
    "RealNVP",
    "Relativistic",
    "Renyi",
    "Run",
    "RungeKutta",
    "SampleReport",
    "Score",
    "ScoreMatching",
    "SequenceModel",
    "SideBySide",
    "SlicedScoreMatching",
    "SlicedWasserstein",
    "SphereFlow",
    "Spherical",
    "Spline",
    "Standardised",
    "StaticThreshold",
    "StickBreaking",
    "StopOr",
    "StraightPath",
    "StudentT",
    "Table",
    "TabulatedSchedule",
    "TemporalConvolution",
    "Thickness",
    "Tied",
    "TimeMLP",
    "Tokens",
    "Transformed",
    "Transformer",
    "Translation",
    "Trapezoid",
    "TrigonometricPath",
    "Truncated",
    "TwoSample",
    "UNet",
    "UniformNoise",
    "UniformTimes",
    "UnrolledDiffusion",
    "VariableLength",
    "VariableLengthLatents",
    "VarianceExploding",
    "Velocity",
    "WakeSleep",
    "Wasserstein",
    "active_units",
    "adam",
    "annealed_importance",
    "as_chains",
    "categorical_emission",
    "check_generative",
    "classifier_features",
    "classifier_two_sample_test",
    "conditional",
    "copying_test",
    "cosine_steps",
    "cyclical",
    "data_plate",
    "density",
    "density_coverage",
    "deterministic",
    "em",
    "energy_test",
    "even_steps",
    "fit",
    "format_bif",
    "frechet_distance",
    "from_betas",
    "gaussian_frechet",
    "gibbs",
    "grid_edges",
    "impute",
    "kernel_distance",
    "khat",
    "linear_steps",
    "linear_warmup",
    "load",
    "load_digits",
    "load_mnist",
    "log_likelihood",
    "log_snr_steps",
    "log_weights",
    "loo",
    "mcmc",
    "mmd_test",
    "normal_emission",
    "pad",
    "parse_bif",
    "poisson_emission",
    "posterior",
    "precision_recall",
    "predictive",
    "predictive_check",
    "prior_predictive",
    "quadratic_steps",
    "random_orders",
    "read_bif",
    "relabel",
    "reverse_annealing",
    "sample",
    "sample_report",
    "save",
    "simulation_based_calibration",
    "sliced_wasserstein",
    "standard_normal",
    "to_arviz",
    "truncated",
    "turn",
    "uniform_steps",
    "verdict",
    "wasserstein",
    "with_own_noise",
    "write_bif",
]
