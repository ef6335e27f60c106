"""The Bayesian Gaussian process latent variable model: nonlinear PCA with a posterior."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.entry import as_rows
from probgen.core.missing import MissingAware, fill_missing
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate, standard_normal
from probgen.distributions.expected_normal import ExpectedNormal
from probgen.distributions.frozen import put
from probgen.distributions.support import check_columns
from probgen.nn.kernels import RBFKernel


class BayesianGPLVM(LatentVariableModel):
    r"""Bayesian Gaussian process latent variable model (GPLVM), with inducing points and an encoder.

    Each column is a smooth function of a few latents, drawn from a Gaussian process.

    .. math::
        z_b \sim p(z), \quad f_d \sim \mathrm{GP}(0, k), \quad x_{bd} \sim N(\mu_d + f_d(z_b),
        \sigma^2)

    Values of the functions at M inducing inputs :math:`\tilde z` tell the rows apart from each
    other: with :math:`K = k(\tilde z, \tilde z) = L L^\top` and :math:`a_b = L^{-1} k(\tilde z,
    z_b)`,

    .. math::
        u_d \sim N(0, I_M), \qquad f_d(z_b) \mid u_d \sim N(a_b^\top u_d, v_b), \quad
        v_b = k(z_b, z_b) - a_b^\top a_b

    Sites ``"u"`` ``(D, M)``, for all rows, and ``"z"`` ``(Q,)`` and ``"x"`` ``(D,)`` in plate
    ``"data"``. The guide draws each :math:`u_d` from a normal distribution, whose covariance is the
    same for all columns (as that of the best one is, without missing entries), and z from the
    encoder, so that it trains on mini-batches and scores new rows.

    Rows share the functions. In training mode the density of x is therefore the bound
    :math:`\sum_d \log N(x_{bd}; \mu_d + a_b^\top u_d, \sigma^2) - v_b / 2 \sigma^2` on all rows
    together. In eval mode each row is scored by itself, given u, and its density
    :math:`\prod_d N(x_{bd}; \mu_d + a_b^\top u_d, v_b + \sigma^2)` is that of the Gaussian
    process: ``log_likelihood`` is *unbiased*. Missing coordinates (NaN) are integrated out exactly,
    and shown to the encoder as 0.

    Parameters
    ----------
    dims : int
        Length D of an event.
    encoder : DistributionModule
        q(z | x) with exact density, events ``(Q,)``: ``Gaussian(MLP(D, [64], 2 * Q))``.
    latents : int
        Number Q of latents.
    inducing : int
        Number M of inducing inputs. A step costs :math:`M^3 + B M (M + D)`.
    prior : DistributionModule, optional
        p(z), events ``(Q,)``; default: independent standard normals.
    kernel : nn.Module, optional
        Covariance function: ``kernel(a, b)`` of ``(*batch, Q)`` and ``(M, Q)`` gives ``(*batch,
        M)``, ``kernel.diagonal(a)`` the variances. Default: ``RBFKernel(Q)``, for columns with
        variances near one: standardize the data. With ``LinearKernel(Q)`` the model is
        probabilistic PCA.
    jitter : float
        Added to the diagonal of K, whose inducing values are then noisy ones; the bound stays one.

    Raises
    ------
    ValueError
        If the prior or the encoder has other events.

    References
    ----------
    Titsias, Lawrence (2010), Bayesian Gaussian process latent variable model,
    https://proceedings.mlr.press/v9/titsias10a.html; Lawrence (2005), Probabilistic non-linear
    principal component analysis with Gaussian process latent variable models,
    https://jmlr.org/papers/v6/lawrence05a.html; with an encoder and mini-batches: Lalchand,
    Ravuri, Lawrence (2022), Generalised Gaussian process latent variable models,
    https://arxiv.org/abs/2202.12979

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import MLP
    >>> gen = BayesianGPLVM(5, Gaussian(MLP(5, [16], 4)), latents=2, inducing=8)
    >>> gen.initialize(torch.randn(20, 5))
    >>> gen().sample((4,)).shape, gen.encode(torch.zeros(3, 5)).mean.shape
    (torch.Size([4, 5]), torch.Size([3, 2]))
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(
        self,
        dims: int,
        encoder: DistributionModule,
        *,
        latents: int,
        inducing: int = 50,
        prior: DistributionModule | None = None,
        kernel: nn.Module | None = None,
        jitter: float = 1e-4,
    ):
        checks.at_least(1, dims=dims, latents=latents, inducing=inducing)
        checks.generative(encoder=encoder, **checks.given(prior=prior))
        checks.has(("diagonal",), "pass RBFKernel(latents)", **checks.given(kernel=kernel))
        checks.positive(jitter=jitter)
        super().__init__()
        self.latents = latents
        self.prior = standard_normal(latents) if prior is None else prior
        if self.prior().event_shape != (latents,):
            raise ValueError(
                f"expected a prior of events ({latents},), got {tuple(self.prior().event_shape)}; "
                "give it as many entries as latents="
            )
        self.encoder = encoder
        self.kernel: Any = RBFKernel(latents) if kernel is None else kernel
        self.jitter = jitter
        self.inducing = nn.Parameter(torch.randn(inducing, latents))
        self.mean = nn.Parameter(torch.zeros(dims))
        self.log_noise = nn.Parameter(torch.tensor(0.1).log())
        self.u_loc = nn.Parameter(0.1 * torch.randn(dims, inducing))
        self.u_tril = nn.Parameter(torch.zeros(inducing, inducing))
        self.u_log_scale = nn.Parameter(torch.full((inducing,), -2.0))

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        zeros = torch.zeros_like(self.u_loc)
        identity = torch.eye(zeros.shape[-1]).to(zeros)
        u = pyro.sample("u", dist.MultivariateNormal(zeros, scale_tril=identity).to_event(1))
        with data_plate(x, context):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z, u), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        tril = self.u_tril.tril(-1) + self.u_log_scale.exp().diag()
        pyro.sample("u", dist.MultivariateNormal(self.u_loc, scale_tril=tril).to_event(1))
        if x is None:
            return
        with data_plate(x, context):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """The approximate posterior q(z | x): ``(*batch, D) -> batch_shape (*batch,)``; NaN enters as 0."""
        found = self.encoder(fill_missing(x))
        if found.event_shape != (self.latents,):
            raise ValueError(
                f"expected an encoder of events ({self.latents},), got {tuple(found.event_shape)}; "
                "give it as many entries as latents="
            )
        return found

    def decode(self, z: Tensor, u: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z, u), in training mode its bound: ``(*batch, Q) -> batch_shape (*batch,)``.

        ``u`` has shape ``(D, M)`` or ``(*batch, D, M)``, with 1 in the place of the rows; default:
        the mean of the guide.
        """
        u = self.u_loc if u is None else u
        features = self.features(z)
        loc = self.mean + features @ (u if u.ndim == 2 else u.squeeze(-3)).mT
        spread = (self.kernel.diagonal(z) - features.square().sum(-1)).clamp(min=0)
        noise = self.log_noise.exp()
        if self.training:
            return ExpectedNormal(loc, spread, noise)
        return MissingAware(dist.Normal(loc, (spread + noise).sqrt().unsqueeze(-1)), 1)

    def features(self, z: Tensor) -> Tensor:
        r""":math:`a = L^{-1} k(\tilde z, z)`: ``(*batch, Q) -> (*batch, M)``."""
        identity = torch.eye(len(self.inducing)).to(self.inducing)
        covariance = self.kernel(self.inducing, self.inducing) + self.jitter * identity
        inverse = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), identity, upper=False
        )
        return self.kernel(z, self.inducing) @ inverse.mT

    @torch.no_grad()
    def regress(self, x: Any, z: Tensor) -> None:
        r"""Sets q(u), in place, to the best one where rows ``(N, D)`` have latents z ``(N, Q)``.

        .. math::
            q(u_d) = N\bigl(P^{-1} \textstyle\sum_b a_b (x_{bd} - \mu_d) / \sigma^2, P^{-1}\bigr),
            \qquad P = I + \textstyle\sum_b a_b a_b^\top / \sigma^2

        This is Gaussian process regression (Titsias 2009). Missing entries (NaN) count as the mean.
        """
        (x,) = as_rows(self, x)
        features = self.features(z) / (self.log_noise / 2).exp()
        error = fill_missing(x - self.mean) / (self.log_noise / 2).exp()
        precision = torch.eye(len(self.inducing)).to(features) + features.mT @ features
        tril = torch.linalg.cholesky(precision)
        put(self.u_loc, torch.cholesky_solve(features.mT @ error, tril).mT)
        covariance = torch.linalg.cholesky(torch.cholesky_inverse(tril))
        put(self.u_log_scale, covariance.diagonal().log())
        put(self.u_tril, covariance.tril(-1))

    @torch.no_grad()
    def initialize(self, x: Any, generator: torch.Generator | None = None) -> None:
        """Starts, in place, from what the encoder makes of rows ``(N, D)``, NaN = missing.

        The mean is that of the columns, inducing inputs are latents of rows chosen at random (by
        ``generator``, the global one when ``None``), the noise is half of the mean variance, and
        q(u) the best one for these (:meth:`regress`).
        """
        (x,) = as_rows(self, x)
        check_columns(x, constant=True)
        put(self.mean, x.nanmean(0))
        variance = (x - self.mean).square().nanmean()
        put(self.log_noise, (variance / 2).clamp(min=1e-6).log())
        z = self.encode(x).sample()
        chosen = torch.randint(len(x), (len(self.inducing),), generator=generator).to(x.device)
        put(self.inducing, z[chosen])
        self.regress(x, z)
