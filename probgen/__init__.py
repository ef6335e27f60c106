"""probgen: generative models on Pyro and PyTorch.

A model is a distribution, defined by a Pyro program; ``fit`` trains any of them, and every score
says what kind of number it is. Start with the README and ``tutorials/01_quickstart.py``.
"""

import probgen.libraries  # noqa: F401 - before all others: their imports are not interrupted
from probgen import (
    core,
    datasets,
    decisions,
    diagnostics,
    diffusion,
    distributions,
    energy,
    evaluate,
    flows,
    graphical,
    guidance,
    heads,
    hub,
    latents,
    nn,
    objectives,
    plot,
    samplers,
    sequences,
    streams,
    table,
    testing,
    text,
    train,
)
from probgen.comparing import ModelComparison, compare
from probgen.compile.scheduling import CompileWarning
from probgen.compile.tracing import NotCompilable
from probgen.compression import CompressionError, compress, decompress
from probgen.core import (
    DistributionModule,
    Fixed,
    GenerativeModel,
    Independent,
    LatentVariableModel,
    Marginal,
    Program,
    Truncation,
    data_plate,
    density_kind,
    observe,
    standard_normal,
    truncated,
)
from probgen.core.by_blocks import by_blocks
from probgen.core.ragged import pad
from probgen.core.score import MeanScore, Score
from probgen.core.turns import turn
from probgen.decisions import (
    AnomalyDetector,
    GenerativeClassifier,
    cluster,
    encode,
    interpolate,
    reconstruct,
)
from probgen.diagnostics import khat, loo, predictive_check, to_arviz, verdict
from probgen.distributions.conditional import conditional
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.distributions.gibbs import gibbs
from probgen.evaluate.divergence import divergence
from probgen.evaluate.report import sample_report
from probgen.exporting import (
    Exported,
    NotExportable,
    export_density,
    export_sampler,
    load_exported,
)
from probgen.infer.draws import as_chains
from probgen.infer.em import em
from probgen.infer.forecast import SeriesForecast, forecast_series
from probgen.infer.impute import Imputation, impute
from probgen.infer.maximum_likelihood import MaximumLikelihoodResult, maximum_likelihood
from probgen.infer.mcmc import Chains, mcmc
from probgen.infer.nuts import PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie
from probgen.infer.partitions import (
    NormalInverseWishart,
    PartitionPosterior,
    dirichlet_process_mixture,
)
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
from probgen.models.autoregressive_table import AutoregressiveTable
from probgen.models.bayesian_gplvm import BayesianGPLVM
from probgen.models.bayesian_hidden_markov import BayesianHiddenMarkovModel
from probgen.models.bayesian_mixture import BayesianGaussianMixture
from probgen.models.bayesian_network import BayesianNetwork
from probgen.models.bayesian_ppca import BayesianPPCA
from probgen.models.centered_normal import CenteredNormal
from probgen.models.chow_liu import ChowLiu
from probgen.models.circular_flow import CircularFlow
from probgen.models.conjugate import BetaBinomial, DirichletCategorical, GammaPoisson
from probgen.models.conjugate_normal import ConjugateNormal
from probgen.models.continuous_flow import FFJORD, ContinuousFlow
from probgen.models.copula import Copula, CorrelatedNormal
from probgen.models.corrected_tree import CorrectedTree
from probgen.models.coupling_flow import CouplingFlow, CouplingNSF, RealNVP
from probgen.models.cycle_gan import CycleGAN
from probgen.models.deep_boltzmann import DeepBoltzmannMachine
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.deep_nade import DeepNADE
from probgen.models.diffusion import Diffusion, ProbabilityFlow
from probgen.models.diffusion_chain import DiffusionChain
from probgen.models.discrete_diffusion import CategoricalDiffusion, NonGaussianDiffusion
from probgen.models.empirical import Empirical
from probgen.models.end_token import EndToken, StopOr
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.energy import EnergyBasedModel
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.models.factorized import Factorized
from probgen.models.flow_matching import FlowMatching
from probgen.models.gan import GAN
from probgen.models.gflownet import GFlowNet
from probgen.models.glow import Glow
from probgen.models.hidden_chow_liu import HiddenChowLiu
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.hierarchical_vae import HierarchicalVAE
from probgen.models.ica import ICA
from probgen.models.info_gan import Codes, InfoGAN
from probgen.models.integer_flow import IntegerFlow
from probgen.models.joint_energy import JointEnergyModel
from probgen.models.joint_table import JointTable
from probgen.models.latent_dirichlet import LatentDirichletAllocation
from probgen.models.made import MADE
from probgen.models.markov_chain import MarkovChain
from probgen.models.markov_random_field import MarkovRandomField
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.models.nade import NADE
from probgen.models.normalized import Normalized
from probgen.models.pixel_cnn import PixelCNN
from probgen.models.pixel_rnn import PixelRNN
from probgen.models.preprocessed import Preprocessed
from probgen.models.quantized import Quantized
from probgen.models.rbm import RBM
from probgen.models.riemannian_flow_matching import RiemannianFlowMatching
from probgen.models.semi_supervised import SemiSupervisedVAE
from probgen.models.sequence import SequenceModel
from probgen.models.sphere_flow import SphereFlow
from probgen.models.standardized import Standardized
from probgen.models.star_gan import StarGAN
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.student_mixture import StudentTMixture
from probgen.models.tabular import Tabular
from probgen.models.transformed import Transformed
from probgen.models.transformer import Transformer
from probgen.models.vae import VAE
from probgen.models.variable_length import VariableLength, VariableLengthLatents
from probgen.models.vector_quantized import VQVAE
from probgen.objectives import ELBO
from probgen.reporting.report import report
from probgen.sampling import sample
from probgen.scoring import log_likelihood
from probgen.searching import Candidate, SearchResult, portfolio, search
from probgen.table.schema import Table
from probgen.train import CheckpointError, FitWarning, History, NonFiniteLoss, fit, load, save

__version__ = "0.1.0"

__all__ = [
    "BPF",
    "ELBO",
    "FFJORD",
    "GAN",
    "IAF",
    "ICA",
    "MADE",
    "MAF",
    "NADE",
    "NAF",
    "NSF",
    "PPCA",
    "RBM",
    "SOSPF",
    "UNAF",
    "VAE",
    "VQVAE",
    "AnomalyDetector",
    "AutoregressiveFlow",
    "AutoregressiveTable",
    "BayesianGPLVM",
    "BayesianGaussianMixture",
    "BayesianHiddenMarkovModel",
    "BayesianNetwork",
    "BayesianPPCA",
    "BetaBinomial",
    "Candidate",
    "CategoricalDiffusion",
    "CenteredNormal",
    "Chains",
    "CheckpointError",
    "ChowLiu",
    "CircularFlow",
    "Codes",
    "CompileWarning",
    "CompressionError",
    "ConjugateNormal",
    "ContinuousFlow",
    "Copula",
    "CorrectedTree",
    "CorrelatedNormal",
    "CouplingFlow",
    "CouplingNSF",
    "CycleGAN",
    "DeepBoltzmannMachine",
    "DeepMarkovModel",
    "DeepNADE",
    "Diffusion",
    "DiffusionChain",
    "DirichletCategorical",
    "DistributionModule",
    "Empirical",
    "EndToken",
    "EndingHiddenMarkovModel",
    "EnergyBasedModel",
    "Exported",
    "FactorAnalysis",
    "Factorized",
    "FitWarning",
    "Fixed",
    "FlowMatching",
    "GFlowNet",
    "GammaPoisson",
    "GaussianMixture",
    "Gaussianized",
    "GenerativeClassifier",
    "GenerativeModel",
    "Glow",
    "HiddenChowLiu",
    "HiddenMarkovModel",
    "HierarchicalVAE",
    "History",
    "Imputation",
    "Independent",
    "InfoGAN",
    "IntegerFlow",
    "JointEnergyModel",
    "JointTable",
    "LatentDirichletAllocation",
    "LatentVariableModel",
    "LinearGaussianStateSpace",
    "Marginal",
    "MarkovChain",
    "MarkovRandomField",
    "MaximumLikelihoodResult",
    "MeanScore",
    "Mixture",
    "MixtureOfTrees",
    "ModelComparison",
    "NonFiniteLoss",
    "NonGaussianDiffusion",
    "NormalInverseWishart",
    "Normalized",
    "NotCompilable",
    "NotExportable",
    "Nutpie",
    "PartitionPosterior",
    "PixelCNN",
    "PixelRNN",
    "Preprocessed",
    "ProbabilityFlow",
    "Program",
    "PyroNUTS",
    "Quantized",
    "RealNVP",
    "RiemannianFlowMatching",
    "Score",
    "SearchResult",
    "SemiSupervisedVAE",
    "SequenceModel",
    "SeriesForecast",
    "SphereFlow",
    "Standardized",
    "StarGAN",
    "StopOr",
    "StudentTMixture",
    "Table",
    "Tabular",
    "Transformed",
    "Transformer",
    "Truncation",
    "VariableLength",
    "VariableLengthLatents",
    "as_chains",
    "by_blocks",
    "cluster",
    "compare",
    "compress",
    "conditional",
    "core",
    "data_plate",
    "datasets",
    "decisions",
    "decompress",
    "density_kind",
    "diagnostics",
    "diffusion",
    "dirichlet_process_mixture",
    "distributions",
    "divergence",
    "em",
    "encode",
    "energy",
    "evaluate",
    "export_density",
    "export_sampler",
    "fit",
    "flows",
    "forecast_series",
    "gibbs",
    "graphical",
    "guidance",
    "heads",
    "hub",
    "impute",
    "interpolate",
    "khat",
    "latents",
    "load",
    "load_exported",
    "log_likelihood",
    "loo",
    "maximum_likelihood",
    "mcmc",
    "nn",
    "objectives",
    "observe",
    "pad",
    "plot",
    "portfolio",
    "posterior",
    "predictive",
    "predictive_check",
    "prior_predictive",
    "reconstruct",
    "relabel",
    "report",
    "sample",
    "sample_report",
    "samplers",
    "save",
    "search",
    "sequences",
    "standard_normal",
    "streams",
    "table",
    "testing",
    "text",
    "to_arviz",
    "train",
    "truncated",
    "turn",
    "verdict",
]


def __dir__() -> list[str]:
    return sorted(__all__)
