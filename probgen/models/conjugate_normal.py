"""A normal distribution whose mean and covariance have their conjugate prior."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.entry import as_rows
from probgen.core.given_weights import weights_from
from probgen.core.missing import has_missing
from probgen.core.module import LatentVariableModel, data_plate
from probgen.core.normal import MultivariateNormal
from probgen.distributions.cholesky import split_tril, tril_of
from probgen.distributions.frozen import kept
from probgen.distributions.inverse_wishart import InverseWishart, half_log_det, log_gamma
from probgen.distributions.student import MultivariateStudentT

_LOST = ("lost_mean", "lost_rows", "lost_df", "lost_scale_tril")  # by the precision of parameters


class Hyperparameters(NamedTuple):
    """What a normal-inverse-Wishart distribution is told by.

    Attributes
    ----------
    mean : Tensor
        m, ``(D,)``.
    rows : Tensor
        kappa: how many rows the mean is worth.
    df : Tensor
        nu > D - 1.
    scale_tril : Tensor
        Cholesky factor of the scale matrix, ``(D, D)``.
    """

    mean: Tensor
    rows: Tensor
    df: Tensor
    scale_tril: Tensor


class ConjugateNormal(LatentVariableModel):
    r"""Normal vectors with an unknown mean and covariance, and the conjugate prior of both.

    .. math:: \Sigma \sim \mathrm{IW}(\nu, \Psi), \quad \mu \mid \Sigma \sim N(m, \Sigma / \kappa),
              \qquad x_b \sim N(\mu, \Sigma)

    After N rows of mean :math:`\bar x` and scatter S about it: :math:`\kappa' = \kappa + N`,
    :math:`\nu' = \nu + N`, :math:`m' = (\kappa m + N \bar x) / \kappa'`, :math:`\Psi' = \Psi + S +
    \frac{\kappa N}{\kappa'} (\bar x - m)(\bar x - m)^\top`. Posterior, predictive distribution
    (Student t) and evidence are exact: :meth:`posterior`, :meth:`predictive`, :meth:`log_evidence`.
    Sites ``"covariance"`` (D, D), ``"mean"`` (D,), ``"x"`` (B, D).

    Parameters
    ----------
    dims : int
        Number D of variables.
    loc : float
        m, the same for all variables, in the unit of x.
    rows : float
        :math:`\kappa`: how many rows the prior of the mean is worth.
    df : float, optional
        :math:`\nu > D - 1`; default: D + 2, with which the covariance has a mean.
    scale : float
        The expected covariance is so many times the identity, in the squared unit of x, where
        :math:`\nu > D + 1`: :math:`\Psi = \text{scale}\, \max(\nu - D - 1, 1)\, I`.

    Raises
    ------
    ValueError
        If there are too few degrees of freedom; from the updates, if entries are missing.

    References
    ----------
    Gelman et al. (2013), Bayesian data analysis, section 3.6; Murphy (2007), Conjugate Bayesian
    analysis of the Gaussian distribution, https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf

    >>> gen = ConjugateNormal(2).update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]]))
    >>> gen.posterior().mean, gen.predictive().mean
    (tensor([1.5000, 0.7500]), tensor([1.5000, 0.7500]))
    """

    context_size = 0
    context_hint = WITHOUT
    prior_mean: Tensor
    prior_scale_tril: Tensor
    prior_rows: Tensor
    prior_df: Tensor

    def __init__(
        self,
        dims: int,
        *,
        loc: float = 0.0,
        rows: float = 1.0,
        df: float | None = None,
        scale: float = 1.0,
    ):
        checks.at_least(1, dims=dims)
        checks.finite(loc=loc)
        checks.positive(rows=rows, scale=scale, **checks.given(df=df))
        if df is not None and df <= dims - 1:
            raise ValueError(
                f"expected df > {dims - 1}, dims - 1, got {df}; give dims + 2, or more"
            )
        super().__init__()
        self.dims = dims
        df = dims + 2.0 if df is None else float(df)
        root = math.sqrt(scale * max(df - dims - 1, 1.0))
        self.register_buffer("prior_mean", torch.full((dims,), float(loc)))
        self.register_buffer("prior_rows", torch.tensor(float(rows)))
        self.register_buffer("prior_df", torch.tensor(df))
        self.register_buffer("prior_scale_tril", root * torch.eye(dims))
        self.loc = nn.Parameter(torch.zeros(dims))
        self.log_rows = nn.Parameter(torch.zeros(()))
        self.log_df = nn.Parameter(torch.zeros(()))  # of what exceeds D - 1
        self.log_scale = nn.Parameter(torch.zeros(1, dims))
        self.lower = nn.Parameter(torch.zeros(1, dims * (dims - 1) // 2))
        for name, shape in zip(_LOST, ((dims,), (), (), (dims, dims)), strict=True):
            self.register_buffer(name, torch.zeros(shape))
        self.reset()

    @property
    def prior(self) -> Hyperparameters:
        """The hyperparameters before any rows."""
        return Hyperparameters(
            self.prior_mean, self.prior_rows, self.prior_df, self.prior_scale_tril
        )

    @property
    def _present(self) -> Hyperparameters:
        df = self.log_df.exp() + self.dims - 1
        return Hyperparameters(
            self.loc, self.log_rows.exp(), df, tril_of(self.log_scale, self.lower)[0]
        )

    def posterior(self) -> Hyperparameters:
        """The hyperparameters after the rows that were added."""
        return Hyperparameters(*(value.detach() for value in self._present))

    def _sampled(self, given: Hyperparameters) -> tuple[Tensor, Tensor]:
        """Sites of the mean and of the Cholesky factor of the covariance."""
        covariance = pyro.sample("covariance", InverseWishart(given.df, given.scale_tril))
        tril = torch.linalg.cholesky(covariance)
        mean = pyro.sample(
            "mean", dist.MultivariateNormal(given.mean, scale_tril=tril / given.rows.sqrt())
        )
        return mean, tril

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        mean, tril = self._sampled(self.prior)
        with data_plate(x, context):
            return pyro.sample("x", MultivariateNormal(mean, scale_tril=tril), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        self._sampled(self._present)

    def predictive(self) -> MultivariateStudentT:
        r"""The exact distribution of the next row, mean and covariance integrated out.

        .. math:: t_{\nu - D + 1}\Bigl(m, \tfrac{\kappa + 1}{\kappa (\nu - D + 1)} \Psi\Bigr)
        """
        mean, rows, df, tril = self.posterior()
        df = df - self.dims + 1
        return MultivariateStudentT(df, mean, tril * ((rows + 1) / (rows * df)).sqrt())

    @torch.no_grad()
    def update(self, x: Any, *, weights: Any = None) -> Self:
        """Adds rows ``(N, D)`` to the posterior, in place, in closed form; returns itself.

        The posterior so far is the prior of what comes: block after block gives what all rows at
        once give. ``weights`` say how often each row counts, ``(N,)``.

        Raises
        ------
        ValueError
            If entries are missing, of which the posterior is of no known form.
        """
        self._put(self._updated(*self._rows(x, weights)))
        return self

    @torch.no_grad()
    def reset(self) -> Self:
        """Forgets the rows that were added: the posterior is the prior again; returns itself."""
        self._put(self.prior)
        return self

    @torch.no_grad()
    def log_evidence(self, x: Any, *, weights: Any = None) -> Tensor:
        """Exact log evidence of rows ``(N, D)`` in nats, a scalar in float64.

        Mean and covariance integrated out of all of them together. After :meth:`update` it is that
        of these rows given those that were added. It is not the sum of densities of single rows:
        rows tell of each other.
        """
        rows, counts = self._rows(x, weights)
        before = self._exact
        after = self._updated(rows, counts)
        constant = 0.5 * self.dims * math.log(math.pi) * counts.sum()
        return _log_normalizer(after) - _log_normalizer(before) - constant

    def _updated(self, x: Tensor, weights: Tensor) -> Hyperparameters:
        mean, rows, df, tril = self._exact
        total = weights.sum()
        center = weights @ x / total
        apart = center - mean
        scatter = ((x - center).mT * weights) @ (x - center)
        scale = tril @ tril.mT + scatter + rows * total / (rows + total) * apart.outer(apart)
        new = mean + total / (rows + total) * apart
        return Hyperparameters(new, rows + total, df + total, torch.linalg.cholesky(scale))

    def _put(self, given: Hyperparameters) -> None:
        log_scale, lower = split_tril(given.scale_tril[None])
        found = (given.mean, given.rows.log(), (given.df - self.dims + 1).log(), log_scale, lower)
        own = (self.loc, self.log_rows, self.log_df, self.log_scale, self.lower)
        for parameter, value in zip(own, found, strict=True):
            parameter.data.copy_(value)
        for name, value, stored in zip(_LOST, given, self._stored, strict=True):
            getattr(self, name).copy_(value.double() - stored)

    @property
    def _stored(self) -> Hyperparameters:
        """What the parameters say, in double precision."""
        logs = (part.detach().double() for part in (self.log_scale, self.lower))
        rows, above = (part.detach().double().exp() for part in (self.log_rows, self.log_df))
        return Hyperparameters(
            self.loc.detach().double(), rows, above + self.dims - 1, tril_of(*logs)[0]
        )

    @property
    def _exact(self) -> Hyperparameters:
        """The hyperparameters with what their precision lost: one row more of many millions counts."""
        lost = (getattr(self, name) for name in _LOST)
        return Hyperparameters(*(kept(*each) for each in zip(self._stored, lost, strict=True)))

    def _rows(self, x: Any, weights: Any) -> tuple[Tensor, Tensor]:
        (rows,) = as_rows(self, x)
        if has_missing(rows):
            raise ValueError(
                "expected complete rows, got NaN in x: given incomplete rows the posterior has no "
                "closed form; leave them out, or take probgen.fit or probgen.mcmc"
            )
        rows = rows.double()
        if weights is None:
            return rows, rows.new_ones(len(rows))
        return rows, weights_from(weights, len(rows), torch.float64).to(rows.device)


def _log_normalizer(given: Hyperparameters) -> Tensor:
    """Logarithm of what the density is divided by, but for constants that do not change."""
    dims = len(given.mean)
    return (
        log_gamma(given.df / 2, dims)
        - given.df * half_log_det(given.scale_tril)
        - 0.5 * dims * given.rows.log()
    )
