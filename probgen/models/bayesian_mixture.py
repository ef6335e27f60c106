"""Gaussian mixtures with priors on weights, means, scales and correlations.

Truncated Dirichlet process mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import biject_to

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.entry import as_rows
from probgen.core.missing import MissingAware, fill_missing
from probgen.core.module import DistributionModule, Fixed, LatentVariableModel, data_plate
from probgen.core.normal import MultivariateNormal
from probgen.distributions.mean_field import mean_field_parameters, sample_mean_field
from probgen.distributions.support import check_columns, responsibilities


class BayesianGaussianMixture(LatentVariableModel):
    r"""Gaussian mixture with priors on all that a maximum-likelihood mixture estimates.

    .. math::
        w \sim p(w), \quad \mu_k \sim p(\mu), \quad \sigma_k \sim p(\sigma), \quad L_k \sim p(L),
        \qquad x_b \mid w, \mu, \sigma, L \sim \sum_k w_k\, N(\mu_k, S_k L_k L_k^\top S_k), \quad
        S_k = \mathrm{diag}(\sigma_k)

    The component of each row is summed out exactly, and so are missing entries (NaN) of x. The
    guide is independent over the globals, normal in their unconstrained space. Sites: ``"weights"``
    (K,), ``"means"`` (K, D), ``"scales"`` (K, D), ``"correlations"`` (K, D, D) if given,
    ``"component"`` (local), ``"x"`` (B, D).

    Parameters
    ----------
    components : int
        Number K of components, or their upper limit under a stick-breaking prior.
    dims : int
        Number D of variables.
    weights : DistributionModule, optional
        Prior on the weights, events (K,); default: ``Fixed(dist.Dirichlet,
        concentration=torch.ones(K))``. A truncated Dirichlet process is ``Fixed(StickBreaking,
        concentration=torch.ones(K - 1))``.
    means, scales : DistributionModule, optional
        Priors on mean and standard deviations of one component, events (D,), in the unit of x. The
        defaults, N(0, 3²) and LogNormal(-0.5, 1), suit standardized data.
    correlations : DistributionModule, optional
        Prior on the Cholesky factor of the correlations of one component, events (D, D), for
        instance ``Fixed(partial(dist.LKJCholesky, D), event_ndim=2, concentration=2.0)``; default:
        no correlations.

    Raises
    ------
    ValueError
        If a prior has events of another shape.

    References
    ----------
    Bishop (2006), Pattern recognition and machine learning, section 10.2; Blei, Jordan (2006),
    Variational inference for Dirichlet process mixtures, https://doi.org/10.1214/06-BA104

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(100, 2) + 4 * torch.randint(2, (100, 1))
    >>> gen = BayesianGaussianMixture(components=2, dims=2)
    >>> gen.initialize(x)
    >>> gen.responsibilities(x).shape
    torch.Size([100, 2])
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(
        self,
        components: int,
        dims: int,
        weights: DistributionModule | None = None,
        means: DistributionModule | None = None,
        scales: DistributionModule | None = None,
        correlations: DistributionModule | None = None,
    ):
        checks.at_least(1, components=components, dims=dims)
        checks.generative(
            **checks.given(weights=weights, means=means, scales=scales, correlations=correlations)
        )
        super().__init__()
        self.components = int(components)
        self.dims = int(dims)
        zeros = torch.zeros(dims)
        self.priors = nn.ModuleDict(
            {
                "weights": weights or Fixed(dist.Dirichlet, concentration=torch.ones(components)),
                "means": means or Fixed(dist.Normal, loc=zeros, scale=3.0),
                "scales": scales or Fixed(dist.LogNormal, loc=zeros - 0.5, scale=1.0),
            }
        )
        if correlations is not None:
            self.priors["correlations"] = correlations
        self.locs, self.log_scales = mean_field_parameters(self._prior_distributions(), 1.0)

    def _prior_distributions(self) -> dict[str, dist.TorchDistribution]:
        """Distribution of each global site.

        Of the weights, and of K independent copies of the rest.
        """
        events = {"weights": (self.components,), "correlations": (self.dims, self.dims)}
        distributions = {}
        for name, prior in self.priors.items():
            distribution = prior()
            event = events.get(name, (self.dims,))
            if distribution.event_shape != event:
                raise ValueError(
                    f"expected a prior on {name} with events of shape {event}, got "
                    f"{tuple(distribution.event_shape)}; give "
                    "parameters of that shape, or the right event_ndim"
                )
            distributions[name] = (
                distribution
                if name == "weights"
                else distribution.expand((self.components,)).to_event(1)
            )
        return distributions

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        distributions = self._prior_distributions()
        drawn = {
            name: pyro.sample(name, distribution) for name, distribution in distributions.items()
        }
        with data_plate(x, context):
            distribution = dist.Categorical(drawn.pop("weights"))
            component = pyro.sample("component", distribution, infer={"enumerate": "parallel"})
            chosen = {
                name: _select(value, component, distributions[name].event_dim - 1)
                for name, value in drawn.items()
            }
            return pyro.sample("x", _gaussian(**chosen), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        sample_mean_field(self._prior_distributions(), self.locs, self.log_scales)

    @torch.no_grad()
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Sets the guide, in place, from k-means clusters of ``x`` (B, D), NaN = missing.

        The largest comes first.

        Needs scikit-learn, whose random starts are seeded from ``generator`` (the global one when
        ``None``).

        Raises
        ------
        ValueError
            If a cluster's moments lie outside the support of a prior.
        """
        (x,) = as_rows(self, x)
        check_columns(x, constant=True)
        if len(x) < self.components:
            raise ValueError(
                f"expected at least as many rows as components ({self.components}), got {len(x)}; "
                "give more rows"
            )
        from sklearn.cluster import KMeans

        filled = fill_missing(x, x.nanmean(0)).detach()
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        labels = KMeans(self.components, n_init=4, random_state=seed).fit_predict(
            filled.cpu().numpy()
        )
        member = nn.functional.one_hot(torch.as_tensor(labels).long(), self.components).to(filled)
        member = member[
            :, member.sum(0).argsort(descending=True)
        ]  # stick-breaking priors expect the largest first
        counts = member.sum(0).clamp(min=1)
        means = member.T @ filled / counts[:, None]
        spread = (member.T @ filled.square() / counts[:, None] - means.square()).clamp(min=0).sqrt()
        scales = torch.maximum(spread, 0.05 * filled.std(0))
        identity = torch.eye(self.dims).to(filled).expand(self.components, -1, -1)
        start = {"weights": (counts + 1) / (counts + 1).sum(), "means": means, "scales": scales}
        for name, distribution in self._prior_distributions().items():
            self._start_at(name, distribution, start.get(name, identity), counts)
        self.log_scales["means"].add_(scales.log())

    def _start_at(
        self, name: str, distribution: dist.TorchDistribution, value: Tensor, counts: Tensor
    ) -> None:
        """Guide of one site.

        Median at ``value``, relative error that of an estimate from ``counts`` rows.
        """
        support: Any = distribution.support
        if not support.check(value).all():
            raise ValueError(
                f"expected {name} in the prior's support {support}, clusters of the "
                f"data have {value.tolist()}; "
                "choose a wider prior, or standardize the data"
            )
        loc = biject_to(distribution.support).inv(value)
        self.locs[name].copy_(loc)
        self.log_scales[name].copy_(
            -0.5 * counts[: len(loc)].log().reshape(-1, *(1,) * (loc.ndim - 1))
        )

    @torch.no_grad()
    def responsibilities(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None, draws: int = 100
    ) -> Tensor:
        r"""Posterior probability that each row came from each component.

        Averaged over draws of the globals.

        .. math:: \frac1S \sum_s \frac{w^{(s)}_k N(x_b; \mu^{(s)}_k, \Sigma^{(s)}_k)}
            {\sum_j w^{(s)}_j N(x_b; \mu^{(s)}_j, \Sigma^{(s)}_j)}

        Parameters
        ----------
        x : Tensor
            ``(B, D)``, NaN = missing.
        given : mapping of str to Tensor, optional
            Draws ``(S, ...)`` of the globals, for instance from MCMC and with components aligned;
            default: ``draws`` from the guide.
        draws : int
            Number S of draws from the guide.

        Returns
        -------
        Tensor
            ``(B, K)``, rows sum to 1.
        """
        if given is None:
            with pyro.plate("draws", draws, dim=-1):
                sites: Mapping[str, Any] = poutine.trace(self.guide).get_trace().nodes
            given = {name: sites[name]["value"] for name in self.priors}
        (x,) = as_rows(self, x)
        total = torch.zeros(len(x), self.components).to(x)
        for draw in range(len(given["weights"])):
            values = {name: given[name][draw] for name in self.priors}
            log_weights = values.pop("weights").log()
            total += responsibilities(log_weights + _gaussian(**values).log_prob(x[:, None]))
        return total / len(given["weights"])


def _select(value: Tensor, component: Tensor, ndim: int) -> Tensor:
    """Entry of each row's component.

    ``(*batch, K, *event)`` indexed by ``(*batch)`` gives ``(*batch, *event)``.
    """
    return Vindex(value)[(..., component, *(slice(None),) * ndim)]


def _gaussian(
    means: Tensor, scales: Tensor, correlations: Tensor | None = None
) -> dist.TorchDistribution:
    """Normal distribution ``(*batch, D)`` with standard deviations ``scales`` and Cholesky factor ``correlations``."""
    if correlations is None:
        return MissingAware(dist.Normal(means, scales), 1)
    return MultivariateNormal(means, scale_tril=scales[..., None] * correlations)
