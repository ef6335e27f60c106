"""One good call of every public family."""

from __future__ import annotations

import pandas
import pyro.distributions as dist
import torch
from torch import nn

import probgen as pg
from asked.parts import (
    SCHEDULE,
    diffusion,
    gaussian,
    given,
    labels,
    normal,
    rows,
    vae,
)

FLOW = {"dims": 2, "layers": 1, "hidden": (4,)}


def table() -> pg.Table:
    """Of a column of numbers and one of labels."""
    frame = pandas.DataFrame({"a": [0.1, -0.7, 2.2], "b": ["u", "v", "w"]})
    return pg.Table.read(frame)


def heads() -> list[pg.heads.Head]:
    """For its columns."""
    return table().heads()


def _letters() -> pg.Transformer:
    head, embed = pg.heads.Categorical(levels=3), pg.nn.Tokens(3, 4)
    return pg.Transformer((3,), head, embed, layers=1, heads=1)


def _deep_markov() -> pg.DeepMarkovModel:
    return pg.DeepMarkovModel(
        pg.heads.Gaussian(pg.nn.GatedTransition(2, 4)),
        given(2, 3),
        pg.nn.RNN(3, 4),
        pg.heads.Gaussian(pg.nn.Combiner(2, 4)),
        (5, 2),
    )


def _image_head() -> pg.heads.Categorical:
    return pg.heads.Categorical(levels=2, event_ndim=3, context_ndim=3)


# arguments by name; those of a star under "*name"
GOOD = {
    "AutoregressiveFlow": lambda: {**FLOW, "univariate": pg.flows.Affine()},
    "MAF": lambda: dict(FLOW),
    "VariableLength": lambda: {"family": pg.MarkovChain(3), "most": 3},
    "VariableLengthLatents": lambda: {"family": _deep_markov(), "most": 5, "padding": -1.0},
    "EndToken": lambda: {"family": _letters(), "end": 2.0, "padding": 2.0},
    "StopOr": lambda: {"emission": pg.heads.Bernoulli(nn.Linear(4, 3)), "stop": nn.Linear(4, 1)},
    "EndingHiddenMarkovModel": lambda: {
        "family": pg.HiddenMarkovModel(2, 3, pg.sequences.GaussianEmission(2, 1))
    },
    "IAF": lambda: dict(FLOW),
    "NSF": lambda: dict(FLOW),
    "NAF": lambda: dict(FLOW),
    "UNAF": lambda: dict(FLOW),
    "SOSPF": lambda: dict(FLOW),
    "BPF": lambda: dict(FLOW),
    "CouplingFlow": lambda: {**FLOW, "univariate": pg.flows.Affine()},
    "RealNVP": lambda: dict(FLOW),
    "CouplingNSF": lambda: dict(FLOW),
    "ContinuousFlow": lambda: {"dims": 2, "hidden": (4,)},
    "FFJORD": lambda: {"dims": 2, "hidden": (4,)},
    "CircularFlow": lambda: {"dims": 2, "hidden": (4,)},
    "SphereFlow": lambda: {"transforms": 1, "hidden": (4,)},
    "Glow": lambda: {"shape": (1, 4, 4), "scales": 1, "flow_steps": 1},
    "IntegerFlow": lambda: {"shape": (1, 4, 4), "levels": 4, "scales": 1, "flow_steps": 1},
    "BayesianGaussianMixture": lambda: {"components": 2, "dims": 2},
    "BayesianHiddenMarkovModel": lambda: {
        "states": 2,
        "length": 3,
        "emission": pg.sequences.poisson_emission,
        "priors": {"rates": pg.Fixed(dist.Gamma, 1, concentration=torch.ones(2), rate=1.0)},
    },
    "BayesianNetwork": lambda: {"conditionals": labels(), "parents": {"b": ("a",)}},
    "BayesianGPLVM": lambda: {"dims": 2, "encoder": given(2, 1), "latents": 1, "inducing": 3},
    "BayesianPPCA": lambda: {"dims": 3, "factors": 1},
    "PPCA": lambda: {"dims": 3, "factors": 1},
    "FactorAnalysis": lambda: {"dims": 3, "factors": 1},
    "ChowLiu": lambda: {"levels": (2, 2, 3)},
    "MixtureOfTrees": lambda: {"components": 2, "levels": (2, 2, 3)},
    "HiddenChowLiu": lambda: {"states": 2, "levels": (2, 2, 3)},
    "CorrectedTree": lambda: {"tree": pg.HiddenChowLiu(2, (2, 2, 3)), "hidden": [4]},
    "Factorized": lambda: {"dims": 3},
    "JointTable": lambda: {"dims": 3},
    "MarkovChain": lambda: {"dims": 3},
    "MarkovRandomField": lambda: {"shape": (2, 2), "edges": pg.graphical.grid_edges(2, 2)},
    "Codes": lambda: {"categories": (3,), "continuous": 1},
    "InfoGAN": lambda: {
        "generator": pg.GAN(pg.nn.SideBySide(pg.nn.MLP(6, [4], 2)), normal(2), (2,)),
        "codes": pg.Codes((3,), 1),
        "recognizer": pg.Codes((3,), 1, pg.nn.MLP(2, [4], 5)),
    },
    "CycleGAN": lambda: {"to_b": nn.Linear(2, 3), "to_a": nn.Linear(3, 2)},
    "StarGAN": lambda: {
        "generator": pg.nn.SideBySide(pg.nn.MLP(5, [4], 2)),
        "attributes": pg.Codes((3,)),
    },
    "GAN": lambda: {"generator": pg.nn.MLP(2, [4], 2), "base": normal(2)},
    "DeepBoltzmannMachine": lambda: {"visible": pg.energy.BernoulliUnits(3), "hidden": (2, 2)},
    "GFlowNet": lambda: {"environment": pg.energy.AnyOrder(3), "net": pg.nn.MLP(6, [4], 6)},
    "HyperGrid": lambda: {"dims": 2, "levels": 3},
    "AnyOrder": lambda: {"*shape": (3,), "levels": 2},
    "RBM": lambda: {"visible": pg.energy.BernoulliUnits(3), "hidden": 2},
    "EnergyBasedModel": lambda: {"net": pg.nn.MLP(2, [4], 1), "shape": (2,)},
    "JointEnergyModel": lambda: {"net": pg.nn.MLP(2, [4], 3), "shape": (2,)},
    "DeepMarkovModel": lambda: {
        "transition": pg.heads.Gaussian(pg.nn.GatedTransition(2, 4)),
        "emission": given(2, 3),
        "network": pg.nn.RNN(3, 4),
        "combiner": pg.heads.Gaussian(pg.nn.Combiner(2, 4)),
        "shape": (5, 2),
    },
    "NADE": lambda: {"dims": 3, "hidden": 4, "head": pg.heads.Bernoulli()},
    "DeepNADE": lambda: {"dims": 3, "hidden": (4,), "head": pg.heads.Bernoulli()},
    "AutoregressiveTable": lambda: {"heads": heads(), "hidden": (4,)},
    "MADE": lambda: {"dims": 3, "hidden": (4,), "head": pg.heads.Bernoulli()},
    "PixelCNN": lambda: {
        "shape": (1, 3, 3),
        "head": _image_head(),
        "embed": pg.nn.Levels(2),
        "width": 4,
        "layers": 1,
    },
    "PixelRNN": lambda: {
        "shape": (1, 3, 3),
        "head": _image_head(),
        "embed": pg.nn.Levels(2),
        "width": 4,
        "layers": 1,
    },
    "Transformer": lambda: {
        "shape": (4,),
        "head": pg.heads.Categorical(levels=3),
        "embed": pg.nn.Tokens(3, 8),
        "layers": 1,
    },
    "SequenceModel": lambda: {
        "network": pg.nn.RNN(2, 4),
        "emission": given(4, 2),
        "shape": (5, 2),
    },
    "Diffusion": lambda: {"net": pg.nn.TimeMLP(2, [4]), "shape": (2,), "num_times": 4},
    "DiffusionChain": lambda: {"diffusion": diffusion()},
    "ProbabilityFlow": lambda: {"diffusion": diffusion()},
    "FlowMatching": lambda: {"net": pg.nn.TimeMLP(2, [4]), "shape": (2,)},
    "RiemannianFlowMatching": lambda: {
        "net": pg.nn.TimeMLP(3, [4]),
        "manifold": pg.flows.Sphere(2),
    },
    "CenteredNormal": lambda: {"points": 3, "dims": 2},
    "NonGaussianDiffusion": lambda: {
        "net": pg.nn.TimeMLP(2, [4]),
        "shape": (2,),
        "process": pg.diffusion.GammaNoise(SCHEDULE),
    },
    "CategoricalDiffusion": lambda: {
        "net": pg.nn.TimeMLP(6, [4]),
        "shape": (2,),
        "process": pg.diffusion.UniformNoise(3, SCHEDULE),
    },
    "Empirical": lambda: {"rows": rows(2)},
    "GaussianMixture": lambda: {"components": 2, "dims": 2},
    "GenerativeClassifier": lambda: {
        "models": {"a": gaussian(), "b": gaussian()},
        "priors": {"a": 0.2, "b": 0.8},
        "temperature": 2.0,
        "usual": rows(count=9),
    },
    "AnomalyDetector": lambda: {"gen": gaussian(), "calibration": rows(2)},
    "LogLikelihood": lambda: {"particles": 2, "seed": 1},
    "Typicality": lambda: {"particles": 2, "seed": 1},
    "LikelihoodRatio": lambda: {"background": gaussian(), "particles": 2, "seed": 1},
    "StudentTMixture": lambda: {"components": 2, "dims": 2},
    "ICA": lambda: {"dims": 2},
    "BetaBinomial": lambda: {"dims": 2, "trials": 3, "a": 0.5, "b": 2.0},
    "GammaPoisson": lambda: {"dims": 2, "a": 0.5, "b": 2.0},
    "DirichletCategorical": lambda: {"levels": 3, "dims": 2, "concentration": 0.5},
    "ConjugateNormal": lambda: {"dims": 2, "loc": 1.0, "rows": 2.0, "df": 5.0},
    "LatentDirichletAllocation": lambda: {
        "topics": 2,
        "words": 5,
        "weights_prior": 0.5,
        "topics_prior": 0.1,
    },
    "Copula": lambda: {"margins": gaussian()},
    "CorrelatedNormal": lambda: {"dims": 2},
    "Mixture": lambda: {"components": [gaussian(), gaussian()]},
    "HiddenMarkovModel": lambda: {
        "states": 2,
        "length": 3,
        "emission": pg.sequences.GaussianEmission(2, 2),
    },
    "GaussianEmission": lambda: {"states": 2, "dims": 2},
    "GaussianMixtureEmission": lambda: {"states": 2, "components": 2, "dims": 2},
    "CategoricalEmission": lambda: {"states": 2, "levels": 3},
    "PoissonEmission": lambda: {"states": 2},
    "LinearGaussianStateSpace": lambda: {"states": 2, "dims": 2, "length": 3},
    "StructuralTimeSeries": lambda: {
        "components": [pg.sequences.LocalLevel()],
        "length": 3,
        "initial_scale": 1.0,
    },
    "HawkesProcess": lambda: {"marks": 1, "horizon": 5.0, "most": 9},
    "SwitchingAutoregression": lambda: {"states": 2, "order": 1, "length": 3},
    "LocalLevel": dict,
    "LocalTrend": dict,
    "Seasonal": lambda: {"period": 3},
    "Cycle": dict,
    "Autoregression": dict,
    "Regression": lambda: {"covariates": rows(2)},
    "Normalized": lambda: {"gen": gaussian(), "log_z": 0.0},
    "Quantized": lambda: {"family": gaussian()},
    "BinNoise": lambda: {"net": pg.nn.MLP(2, [4], 4)},
    "Standardized": lambda: {"family": gaussian()},
    "Transformed": lambda: {"family": gaussian(), "*layers": (nn.Identity(),)},
    "ExemplarPrior": lambda: {"encoder": given(2, 1), "exemplars": rows(2)},
    "VampPrior": lambda: {"encoder": given(2, 1), "pseudo_inputs": rows(2)},
    "HierarchicalVAE": lambda: {
        "levels": pg.latents.Level.dense(2, [1, 2], 4),
        "decoder": given(4, 2),
    },
    "VQVAE": lambda: {
        "encoder": nn.Sequential(nn.Linear(6, 4), nn.Unflatten(-1, (2, 2))),
        "decoder": pg.heads.Bernoulli(
            nn.Sequential(nn.Flatten(-2), nn.Linear(4, 6)), context_ndim=2
        ),
        "quantizer": pg.nn.Codebook(5, 2),
        "prior": pg.Fixed(dist.Categorical, logits=torch.zeros(2, 5)),
    },
    "VAE": lambda: {"prior": normal(1), "decoder": given(1, 2), "encoder": given(2, 1)},
    "SemiSupervisedVAE": lambda: {
        "prior": normal(1),
        "decoder": given(3, 2),
        "encoder": given(4, 1),
        "classifier": nn.Linear(2, 2),
        "classes": 2,
    },
    "Fixed": lambda: {"family": dist.Normal, "loc": torch.zeros(2), "scale": 1.0},
    "Independent": lambda: {"module": gaussian()},
    "Marginal": lambda: {"gen": vae()},
    "Program": lambda: {"model": lambda: None},
    "Gaussian": lambda: {"net": pg.nn.Constant(4)},
    "StudentT": lambda: {"net": pg.nn.Constant(6)},
    "Point": lambda: {"net": pg.nn.Constant(5)},
    "FullGaussian": lambda: {"net": pg.nn.Constant(5)},
    "Bernoulli": lambda: {"net": pg.nn.Constant(2)},
    "Categorical": lambda: {"net": pg.nn.Constant(6), "levels": 3},
    "DiscretizedLogisticMixture": lambda: {"net": pg.nn.Constant(60), "levels": 4},
    "Poisson": lambda: {"net": pg.nn.Constant(2)},
    "NegativeBinomial": lambda: {"net": pg.nn.Constant(4)},
    "Mixed": lambda: {
        "net": pg.nn.Constant(3),
        "columns": [pg.heads.Gaussian(), pg.heads.Bernoulli()],
    },
    "LogNormal": lambda: {"net": pg.nn.Constant(4)},
    "Gamma": lambda: {"net": pg.nn.Constant(4)},
    "Beta": lambda: {"net": pg.nn.Constant(4)},
    "TruncatedGaussian": lambda: {"net": pg.nn.Constant(4), "low": 0.0},
    "Ordinal": lambda: {"net": pg.nn.Constant(2), "levels": 3},
    "ZeroInflated": lambda: {"net": pg.nn.Constant(4), "head": pg.heads.Poisson()},
    "MixtureOfGaussians": lambda: {"components": 2, "net": pg.nn.Constant(12)},
    "ProbabilityTable": lambda: {"levels": 2},
    "Tabular": lambda: {"table": table(), "family": pg.heads.Mixed(pg.nn.Constant(5), heads())},
    "Continuous": lambda: {"low": 0.0, "high": 1.0, "step": 0.5},
    "Count": dict,
    "Date": lambda: {"step": 1.0},
    "Flag": lambda: {"levels": ("no", "yes")},
    "Label": lambda: {"levels": ("a", "b")},
    "LinearGaussian": lambda: {"parents": 1},
    "standard_normal": lambda: {"*shape": (2,)},
    "Pushforward": lambda: {
        "base_dist": normal()(),
        "transform": torch.distributions.transforms.ExpTransform(),
    },
    "Autoregressive": lambda: {
        "distributions": lambda x: dist.Normal(x, 1.0),
        "conditionals": lambda shape: iter(()),
        "event_shape": (2,),
    },
    "StickBreaking": lambda: {"concentration": torch.ones(3)},
    "Gaussianized": lambda: {"weights": torch.ones(2, 4), "low": -1.0, "high": 1.0},
    "Score": lambda: {"value": torch.zeros(3), "kind": "exact"},
    "Truncation": lambda: {"temperature": 0.5},
    "Nutpie": dict,
}
