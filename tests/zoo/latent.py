"""Heads, mixtures, factor models, variational autoencoders and stories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from probgen import heads
from probgen.core.module import Fixed, Independent, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.models.autoregressive_flow import MAF
from probgen.models.bayesian_gplvm import BayesianGPLVM
from probgen.models.bayesian_mixture import BayesianGaussianMixture
from probgen.models.bayesian_ppca import BayesianPPCA
from probgen.models.conjugate import BetaBinomial, DirichletCategorical, GammaPoisson
from probgen.models.conjugate_normal import ConjugateNormal
from probgen.models.copula import Copula
from probgen.models.exemplar_prior import ExemplarPrior
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.models.hierarchical_vae import HierarchicalVAE, Level, precision_weighted
from probgen.models.ica import ICA
from probgen.models.latent_dirichlet import LatentDirichletAllocation
from probgen.models.mixture import GaussianMixture
from probgen.models.quantized import Quantized
from probgen.models.semi_supervised import SemiSupervisedVAE
from probgen.models.student_mixture import StudentTMixture
from probgen.models.vae import VAE
from probgen.models.vamp_prior import VampPrior
from probgen.models.vector_quantized import VQVAE
from probgen.nn import MLP, Codebook, Constant, ConvDecoder, ConvEncoder
from zoo.member import Member, constant, levels, normal, rows


class Story(LatentVariableModel):
    """Two levels, a global and a local Gaussian latent, with a free guide."""

    context_size = 0

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.encoder, self.decoder = heads.Gaussian(nn.Linear(3, 4)), nn.Linear(2, 3)

    def model(self, x=None, context=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        if x is not None:
            with data_plate(x, context):
                pyro.sample("z", self.encoder(x))


class Enumerated(LatentVariableModel):
    """A mixture told as a story: the component of each row is summed out."""

    context_size = 0

    def __init__(self, components: int, dims: int):
        super().__init__()
        self.logits, self.loc = (
            nn.Parameter(torch.zeros(components)),
            nn.Parameter(torch.randn(components, dims)),
        )

    def model(self, x=None, context=None):
        with data_plate(x, context):
            k = pyro.sample(
                "k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"}
            )
            return pyro.sample("x", dist.Normal(self.loc[k], 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        pass


def plain_model(x=None, context=None):
    """A user's own function with a parameter statement."""
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(scale), 1.0))
    with data_plate(x, context):
        return pyro.sample("x", dist.Normal(mu, scale).expand([2]).to_event(1), obs=x)


def plain_guide(x=None, context=None):
    """Its mean-field guide."""
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample(
        "mu",
        dist.Normal(loc, pyro.param("width", torch.ones(()), constraint=dist.constraints.positive)),
    )


def vae(prior: Any = None, dims: int = 3) -> VAE:
    """Events (dims,), two latents."""
    return VAE(
        prior or normal(2), heads.Gaussian(MLP(2, [8], 2 * dims)), heads.Gaussian(MLP(dims, [8], 4))
    )


def mixed_posteriors(prior: Callable[..., Any]) -> VAE:
    """A VAE whose prior is made of its encoder, at four rows."""
    gen = vae()
    return VAE(prior(gen.encoder, torch.randn(4, 3)), gen.decoder, gen.encoder)


def hierarchical_vae(context: int = 0, **options: Any) -> HierarchicalVAE:
    """Events (3,), latents of 2 and 4 entries."""
    levels = Level.dense(3, [2, 4], width=8, context=context, **options)
    return HierarchicalVAE(levels, heads.Gaussian(MLP(8 + context, [8], 6)), context=context)


def vqvae() -> VQVAE:
    """Events (4,) of 2 levels, two tokens of three values."""
    encoder = nn.Sequential(MLP(4, [8], 4), nn.Unflatten(-1, (2, 2)))
    decoder = nn.Sequential(nn.Flatten(-2), MLP(4, [8], 4))
    prior = heads.Categorical(constant(6), levels=3)
    return VQVAE(encoder, heads.Bernoulli(decoder, context_ndim=2), Codebook(3, 2), prior)


def semi_supervised_vae(prior: Any) -> SemiSupervisedVAE:
    """Events (4,) of 2 levels, three classes."""
    decoder = heads.Bernoulli(MLP(2 + 3, [8], 4))
    encoder = heads.Gaussian(MLP(4 + 3, [8], 4))
    return SemiSupervisedVAE(prior, decoder, encoder, MLP(4, [8], 3), 3)


def partly_labeled() -> tuple:
    """Rows of that, and their labels, some unknown."""
    return *levels(2, 4)(), torch.tensor([0.0, torch.nan, 2.0, 1.0, torch.nan, 2.0])


def image_vae() -> VAE:
    """Events (1, 8, 8) of 4 levels."""
    decoder = heads.DiscretizedLogisticMixture(
        ConvDecoder(2, (6, 8, 8), hidden=(4,)), levels=4, components=2, event_ndim=3
    )
    return VAE(
        normal(2), decoder, heads.Gaussian(ConvEncoder((1, 8, 8), 4, hidden=(4,)), context_ndim=3)
    )


def table() -> heads.Mixed:
    """Two numbers, a flag and a label of three levels."""
    columns = [heads.Gaussian()] * 2 + [heads.Bernoulli(), heads.Categorical(levels=3)]
    return heads.Mixed(Constant(8, initial=torch.randn(8)), columns)


def table_rows() -> tuple:
    """Rows of that table, some values missing."""
    x = torch.cat([torch.randn(6, 2), torch.randint(2, (6, 1)), torch.randint(3, (6, 1))], 1)
    return (x.masked_fill(torch.rand(6, 4) < 0.2, torch.nan),)


CORE = [
    Member("Fixed", lambda: Fixed(dist.Laplace, loc=torch.zeros(3), scale=1.0), rows(3)),
    Member("Fixed given a context", lambda: normal(3), rows(3, context=(2,))),
    Member(
        "Independent",
        lambda: Independent(heads.Gaussian(nn.Linear(2, 6))),
        rows(4, 3, context=(4, 2)),
    ),
    Member("Independent Fixed", lambda: Independent(normal(3)), rows(4, 3, context=(4, 2))),
    Member("story", Story, rows(3)),
    Member("enumerated story", lambda: Enumerated(3, 2), rows(2)),
    Member("Program", lambda: Program(plain_model, plain_guide), rows(2)),
    Member(
        "Program with an AutoGuide", lambda: Program(plain_model, AutoNormal(plain_model)), rows(2)
    ),
]


def amounts() -> tuple[torch.Tensor]:
    """Positive numbers."""
    return (torch.rand(6, 3) + 0.1,)


HEADS = [
    Member("Gaussian", lambda: heads.Gaussian(constant(6)), rows(3)),
    Member(
        "Gaussian given a context", lambda: heads.Gaussian(MLP(2, [8], 6)), rows(3, context=(2,))
    ),
    Member(
        "Gaussian of one scale",
        lambda: heads.Gaussian(constant(3), scale=nn.Parameter(torch.ones(()))),
        rows(3),
    ),
    Member("FullGaussian", lambda: heads.FullGaussian(constant(9)), rows(3)),
    Member(
        "FullGaussian given a context",
        lambda: heads.FullGaussian(MLP(2, [8], 9)),
        rows(3, context=(2,)),
    ),
    Member("StudentT", lambda: heads.StudentT(constant(9)), rows(3)),
    Member("Bernoulli", lambda: heads.Bernoulli(constant(4)), levels(2, 4)),
    Member(
        "Bernoulli given a context",
        lambda: heads.Bernoulli(MLP(2, [8], 4)),
        levels(2, 4, context=(2,)),
    ),
    Member("Categorical", lambda: heads.Categorical(constant(12), levels=4), levels(4, 3)),
    Member("Poisson", lambda: heads.Poisson(constant(3)), levels(5, 3)),
    Member("NegativeBinomial", lambda: heads.NegativeBinomial(constant(6)), levels(5, 3)),
    Member(
        "DiscretizedLogisticMixture",
        lambda: heads.DiscretizedLogisticMixture(constant(18), levels=8, components=2),
        levels(8, 3),
    ),
    Member("Mixed", table, table_rows),
    Member("LogNormal", lambda: heads.LogNormal(constant(6)), amounts),
    Member("Gamma", lambda: heads.Gamma(constant(6)), amounts),
    Member("Beta", lambda: heads.Beta(constant(6)), lambda: (torch.rand(6, 3),)),
    Member("TruncatedGaussian", lambda: heads.TruncatedGaussian(constant(6), low=0.0), amounts),
    Member("Ordinal", lambda: heads.Ordinal(constant(3), levels=4), levels(4, 3)),
    Member(
        "ZeroInflated",
        lambda: heads.ZeroInflated(constant(9), head=heads.Gamma()),
        lambda: (amounts()[0] * (torch.rand(6, 3) < 0.5),),
    ),
]
FAMILIES = [
    *(
        Member(
            f"GaussianMixture {kind.__name__}",
            lambda kind=kind: GaussianMixture(3, 2, kind),
            rows(2),
        )
        for kind in (Full, Tied, Diagonal, Spherical)
    ),
    *(
        Member(
            f"StudentTMixture {kind.__name__}",
            lambda kind=kind: StudentTMixture(3, 2, kind),
            rows(2),
        )
        for kind in (Full, Diagonal)
    ),
    Member("FactorAnalysis", lambda: FactorAnalysis(4, factors=2), rows(4)),
    Member("PPCA", lambda: PPCA(4, factors=2), rows(4)),
    Member("BetaBinomial", lambda: BetaBinomial(3, 4), levels(5, 3)),
    Member("GammaPoisson", lambda: GammaPoisson(3), levels(5, 3)),
    Member("DirichletCategorical", lambda: DirichletCategorical(4, 3), levels(4, 3)),
    Member("ConjugateNormal", lambda: ConjugateNormal(3), rows(3)),
    Member("LatentDirichletAllocation", lambda: LatentDirichletAllocation(2, 4), levels(5, 4)),
    Member("Copula", lambda: Copula(heads.Gaussian(constant(6))), rows(3)),
    Member(
        "Copula of t margins and a flow",
        lambda: Copula(heads.StudentT(constant(9)), MAF(3, layers=1, hidden=[8])),
        rows(3),
    ),
    Member("ICA", lambda: ICA(3), rows(3)),
    Member("ICA of t sources", lambda: ICA(3, heads.StudentT(constant(9))), rows(3)),
    Member("Quantized", lambda: Quantized(FactorAnalysis(4, factors=2)), levels(5, 4)),
    Member("BayesianGaussianMixture", lambda: BayesianGaussianMixture(3, 2), rows(2)),
    Member("BayesianPPCA", lambda: BayesianPPCA(4, factors=2), rows(4)),
    Member(
        "BayesianGPLVM",
        lambda: BayesianGPLVM(4, heads.Gaussian(MLP(4, [8], 4)), latents=2, inducing=5),
        rows(4),
    ),
    Member("VAE", vae, rows(3)),
    Member("VAE of images", image_vae, levels(4, 1, 8, 8)),
    Member(
        "VAE given a context",
        lambda: VAE(
            heads.Gaussian(MLP(2, [8], 4)),
            heads.Bernoulli(MLP(4, [8], 5)),
            heads.Gaussian(MLP(7, [8], 4)),
        ),
        levels(2, 5, context=(2,)),
    ),
    Member("VAE with a VAE as prior", lambda: vae(vae(dims=2)), rows(3)),
    Member("VAE with a VampPrior", lambda: mixed_posteriors(VampPrior), rows(3)),
    Member("VAE with an exemplar prior", lambda: mixed_posteriors(ExemplarPrior), rows(3)),
    Member("HierarchicalVAE", hierarchical_vae, rows(3)),
    Member(
        "ladder VAE given a context",
        lambda: hierarchical_vae(context=2, combine=precision_weighted),
        rows(3, context=(2,)),
    ),
    Member("VQVAE", vqvae, levels(2, 4)),
    Member("SemiSupervisedVAE", lambda: semi_supervised_vae(normal(2)), partly_labeled),
    Member(
        "SemiSupervisedVAE with a prior of labels",
        lambda: semi_supervised_vae(heads.Gaussian(nn.Linear(3, 4))),
        partly_labeled,
    ),
    Member("VAE with a mixture as prior", lambda: vae(GaussianMixture(3, 2)), rows(3)),
    Member("VAE with factor analysis as prior", lambda: vae(FactorAnalysis(2, factors=1)), rows(3)),
]
