"""Conjugate models of columns: rates and probabilities whose posterior is updated in closed form."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.entry import as_rows
from probgen.core.given_weights import weights_from
from probgen.core.missing import MissingAware, fill_missing
from probgen.core.module import LatentVariableModel, data_plate
from probgen.distributions.frozen import kept
from probgen.distributions.tables import weighted_sum
from probgen.heads import distributions


class _Conjugate(LatentVariableModel):
    """What the conjugate models share: a prior and a posterior of one kind, with two parameters.

    A subclass says what distribution they parameterize, and what rows add to them. The guide is the
    posterior: the prior, until rows are added.
    """

    context_size = 0
    context_hint = WITHOUT
    site: str  # of the parameter that has the prior
    prior: Tensor
    remainder: Tensor  # of the pseudo-counts: one row more is nothing to a logarithm of 10 million

    def __init__(self, prior: Tensor):
        super().__init__()
        self.register_buffer("prior", prior)
        self.register_buffer("remainder", torch.zeros_like(prior))
        self.log_posterior = nn.Parameter(prior.log())

    @abstractmethod
    def _parameter(self, pseudo_counts: Tensor) -> dist.TorchDistribution:
        """Distribution of the parameter, given prior or posterior pseudo-counts."""

    @abstractmethod
    def _likelihood(self, parameter: Tensor) -> dist.TorchDistribution:
        """Distribution of a row given the parameter."""

    @abstractmethod
    def _added(self, x: Tensor, weights: Tensor) -> Tensor:
        """What rows add to the pseudo-counts, in float64."""

    @abstractmethod
    def _log_normalizer(self, pseudo_counts: Tensor) -> Tensor:
        """Logarithm of what the density of the parameter is divided by, summed over columns."""

    @abstractmethod
    def _log_base(self, x: Tensor) -> Tensor:
        """What of the log-likelihood of rows does not depend on the parameter: ``(N,)``."""

    @abstractmethod
    def predictive(self) -> dist.TorchDistribution:
        """The exact distribution of the next row, the parameter integrated out: events ``(D,)``."""

    def posterior(self) -> dist.TorchDistribution:
        """The distribution of the parameter given the rows that were added."""
        return self._parameter(self.log_posterior.detach().exp())

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        parameter = pyro.sample(self.site, self._parameter(self.prior))
        with data_plate(x, context):
            return pyro.sample("x", self._likelihood(parameter), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        pyro.sample(self.site, self._parameter(self.log_posterior.exp()))

    @torch.no_grad()
    def update(self, x: Any, *, weights: Any = None) -> Self:
        """Adds rows ``(N, D)`` to the posterior, in place, in closed form; returns itself.

        The posterior so far is the prior of what comes: block after block gives what all rows at
        once give. ``weights`` say how often each row counts, ``(N,)``. Missing entries (NaN) add
        nothing.
        """
        rows, counts = self._rows(x, weights)
        posterior = self._counts + self._added(rows, counts)
        self.log_posterior.copy_(posterior.log())
        self.remainder.copy_(posterior - self.log_posterior.double().exp())
        return self

    @torch.no_grad()
    def reset(self) -> Self:
        """Forgets the rows that were added: the posterior is the prior again; returns itself."""
        self.log_posterior.copy_(self.prior.log())
        self.remainder.zero_()
        return self

    @property
    def _counts(self) -> Tensor:
        return kept(self.log_posterior.detach().double().exp(), self.remainder)

    @torch.no_grad()
    def log_evidence(self, x: Any, *, weights: Any = None) -> Tensor:
        r"""Exact log evidence of rows ``(N, D)`` in nats, a scalar in float64.

        The parameter integrated out of all of them together, :math:`\log \int p(\theta) \prod_b
        p(x_b \mid \theta)\, d\theta`. After :meth:`update` it is that of these rows given those that
        were added. It is not the sum of densities of single rows: rows tell of each other.
        """
        rows, counts = self._rows(x, weights)
        before = self._counts
        after = before + self._added(rows, counts)
        base = weighted_sum(self._log_base(rows), counts)
        return base + self._log_normalizer(after) - self._log_normalizer(before)

    def _rows(self, x: Any, weights: Any) -> tuple[Tensor, Tensor]:
        (rows,) = as_rows(self, x)
        if weights is None:
            return rows.double(), torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        return rows.double(), weights_from(weights, len(rows), torch.float64).to(rows.device)


def _sums(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of what was observed, and how often that was: ``(D,)`` each."""
    return weights @ fill_missing(x), weights @ (~x.isnan()).to(weights)


class BetaBinomial(_Conjugate):
    r"""Counts of successes in n trials, with a Beta prior on the probability of each column.

    .. math:: p_d \sim \mathrm{Beta}(a, b), \quad x_{bd} \sim \mathrm{Binomial}(n, p_d), \qquad
              p_d \mid x \sim \mathrm{Beta}\Bigl(a + \sum_b x_{bd},\; b + \sum_b (n - x_{bd})\Bigr)

    Posterior, predictive distribution (beta-binomial) and evidence are exact: :meth:`posterior`,
    :meth:`predictive`, :meth:`log_evidence`. Sites ``"probability"`` (D,) and ``"x"`` (B, D). With
    one trial, a model of flags.

    Parameters
    ----------
    dims : int
        Number D of columns.
    trials : int
        Number n of trials of each entry.
    a, b : float
        Of the prior; both 1 is uniform.

    References
    ----------
    Gelman et al. (2013), Bayesian data analysis, section 2.4

    >>> gen = BetaBinomial(1).update(torch.tensor([[1.0], [1.0], [0.0]]))
    >>> gen.posterior().mean, gen.predictive().log_prob(torch.ones(1)).exp()
    (tensor([0.6000]), tensor(0.6000))
    """

    site = "probability"

    def __init__(self, dims: int, trials: int = 1, *, a: float = 1.0, b: float = 1.0):
        checks.at_least(1, dims=dims, trials=trials)
        checks.positive(a=a, b=b)
        super().__init__(torch.tensor([[a], [b]]).expand(2, dims).clone())
        self.dims = dims
        self.trials = trials

    def _parameter(self, pseudo_counts: Tensor) -> dist.TorchDistribution:
        return dist.Beta(*pseudo_counts).to_event(1)

    def _likelihood(self, parameter: Tensor) -> dist.TorchDistribution:
        return MissingAware(distributions.Binomial(self.trials, parameter), 1)

    def _added(self, x: Tensor, weights: Tensor) -> Tensor:
        successes, seen = _sums(x, weights)
        return torch.stack([successes, self.trials * seen - successes])

    def _log_normalizer(self, pseudo_counts: Tensor) -> Tensor:
        return (pseudo_counts.lgamma().sum(0) - pseudo_counts.sum(0).lgamma()).sum()

    def _log_base(self, x: Tensor) -> Tensor:
        chosen = (1 + x).lgamma() + (1 + self.trials - x).lgamma()
        every = torch.lgamma(torch.tensor(1.0 + self.trials).to(x))
        return torch.where(x.isnan(), 0.0, every - chosen).sum(-1)

    def predictive(self) -> dist.TorchDistribution:
        a, b = self.log_posterior.detach().exp()
        return MissingAware(distributions.BetaBinomialCounts(a, b, total_count=self.trials), 1)


class GammaPoisson(_Conjugate):
    r"""Counts, with a Gamma prior on the rate of each column.

    .. math:: \lambda_d \sim \mathrm{Gamma}(a, b), \quad x_{bd} \sim \mathrm{Poisson}(\lambda_d),
              \qquad \lambda_d \mid x \sim \mathrm{Gamma}\Bigl(a + \sum_b x_{bd},\; b + N\Bigr)

    Posterior, predictive distribution (negative binomial) and evidence are exact:
    :meth:`posterior`, :meth:`predictive`, :meth:`log_evidence`. Sites ``"rate"`` (D,) and ``"x"``
    (B, D).

    Parameters
    ----------
    dims : int
        Number D of columns.
    a, b : float
        Shape and rate of the prior: its mean is a / b, in counts, and it weighs as much as b rows.

    References
    ----------
    Gelman et al. (2013), Bayesian data analysis, section 2.6

    >>> gen = GammaPoisson(1, a=2.0, b=1.0).update(torch.tensor([[3.0], [5.0], [6.0]]))
    >>> gen.posterior().mean, gen.predictive().mean
    (tensor([4.]), tensor([4.]))
    """

    site = "rate"

    def __init__(self, dims: int, *, a: float = 1.0, b: float = 1.0):
        checks.at_least(1, dims=dims)
        checks.positive(a=a, b=b)
        super().__init__(torch.tensor([[a], [b]]).expand(2, dims).clone())
        self.dims = dims

    def _parameter(self, pseudo_counts: Tensor) -> dist.TorchDistribution:
        return dist.Gamma(*pseudo_counts).to_event(1)

    def _likelihood(self, parameter: Tensor) -> dist.TorchDistribution:
        return MissingAware(distributions.Poisson(parameter.log()), 1)

    def _added(self, x: Tensor, weights: Tensor) -> Tensor:
        return torch.stack(_sums(x, weights))

    def _log_normalizer(self, pseudo_counts: Tensor) -> Tensor:
        a, b = pseudo_counts
        return (a.lgamma() - a * b.log()).sum()

    def _log_base(self, x: Tensor) -> Tensor:
        return -torch.where(x.isnan(), 0.0, (1 + x).lgamma()).sum(-1)

    def predictive(self) -> dist.TorchDistribution:
        log_a, log_b = self.log_posterior.detach()
        return MissingAware(distributions.NegativeBinomial(log_a.exp(), logits=-log_b), 1)


class DirichletCategorical(_Conjugate):
    r"""Labels, with a Dirichlet prior on the probabilities of each column.

    .. math:: p_d \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha), \quad P(x_{bd} = k) = p_{dk},
              \qquad p_d \mid x \sim \mathrm{Dirichlet}(\alpha + n_{d1}, \dots, \alpha + n_{dL})

    with the number :math:`n_{dk}` of rows whose label is k. Posterior, predictive distribution and
    evidence are exact: :meth:`posterior`, :meth:`predictive`, :meth:`log_evidence`. Sites
    ``"probabilities"`` (D, L) and ``"x"`` (B, D).

    Parameters
    ----------
    levels : int
        Number L of labels 0., 1., ..., L - 1.
    dims : int
        Number D of columns.
    concentration : float
        Pseudo-count :math:`\alpha` of each label; 1 is uniform, 1/2 is Jeffreys' prior.

    References
    ----------
    Gelman et al. (2013), Bayesian data analysis, section 3.4

    >>> gen = DirichletCategorical(3).update(torch.tensor([[0.0], [0.0], [2.0]]))
    >>> gen.posterior().mean
    tensor([[0.5000, 0.1667, 0.3333]])
    """

    site = "probabilities"

    def __init__(self, levels: int, dims: int = 1, *, concentration: float = 1.0):
        checks.at_least(1, levels=levels, dims=dims)
        checks.positive(concentration=concentration)
        super().__init__(torch.full((dims, levels), float(concentration)))
        self.levels = levels
        self.dims = dims

    def _parameter(self, pseudo_counts: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(pseudo_counts).to_event(1)

    def _likelihood(self, parameter: Tensor) -> dist.TorchDistribution:
        return MissingAware(distributions.Categorical(parameter.log()), 1)

    def _added(self, x: Tensor, weights: Tensor) -> Tensor:
        labels = torch.arange(self.levels, device=x.device)
        return torch.einsum("n,ndk->dk", weights, (x[..., None] == labels).to(weights))

    def _log_normalizer(self, pseudo_counts: Tensor) -> Tensor:
        return (pseudo_counts.lgamma().sum(-1) - pseudo_counts.sum(-1).lgamma()).sum()

    def _log_base(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, 0])

    def predictive(self) -> dist.TorchDistribution:
        return self._likelihood(self.posterior().mean)
