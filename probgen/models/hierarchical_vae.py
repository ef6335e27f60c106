"""Hierarchical variational autoencoders: several levels of latents, inferred from the top down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.contexts import all_beside, distribution_given, received
from probgen.core.foreign import row_by_row
from probgen.core.missing import fill_missing
from probgen.core.module import (
    DistributionModule,
    LatentVariableModel,
    data_plate,
    standard_normal,
)
from probgen.heads import Gaussian
from probgen.nn import MLP, SkipConnection

Combination = Callable[[Any, Any], dist.TorchDistribution]


class Level(Recorded, nn.Module):
    r"""One level of a :class:`HierarchicalVAE`: a latent :math:`z_l`, its prior and its posterior.

    Parameters
    ----------
    prior : DistributionModule
        :math:`p(z_l \mid h_l)`; that of the top level takes no input (or the context).
    posterior : DistributionModule
        :math:`q(z_l \mid h_l, d_l)` with exact density, of the state from above and the features
        from below side by side (along channels for images, else along the last dim); that of the
        top level takes :math:`d_l` alone. With ``combine``, of :math:`d_l` alone at all levels.
    features : nn.Module
        Bottom-up network, :math:`d_{l+1} \mapsto d_l`; that of the lowest level takes x.
    step : nn.Module
        Top-down network, :math:`(h_l, z_l) \mapsto h_{l+1}` side by side; that of the top level
        takes :math:`z_l` alone.
    combine : callable, optional
        ``combine(prior, evidence)`` makes the posterior of the prior's distribution at this level
        and what ``posterior`` gives for the features alone: :func:`precision_weighted` is the
        ladder VAE, :func:`relative_mean` keeps its scale apart.
    """

    def __init__(
        self,
        prior: DistributionModule,
        posterior: DistributionModule,
        features: nn.Module,
        step: nn.Module,
        combine: Combination | None = None,
    ):
        checks.generative(prior=prior, posterior=posterior)
        checks.network(features=features, step=step)
        checks.function(**checks.given(combine=combine))
        super().__init__()
        self.prior = prior
        self.posterior = posterior
        self.features = features
        self.step = step
        self.combine = combine

    @staticmethod
    def dense(
        inputs: int,
        latents: Sequence[int],
        width: int = 256,
        *,
        context: int = 0,
        combine: Combination | None = None,
    ) -> list[Level]:
        """Levels of vectors, with networks of two hidden layers.

        The last entries of each state are the latent itself, so that priors and posteriors below,
        and the decoder, see it undamped from the first step on. Through untrained layers alone its
        signal is so weak that training gives it up.

        Parameters
        ----------
        inputs : int
            Length of the rows.
        latents : sequence of int
            Sizes of the latents, from the top to the bottom.
        width : int
            Size of the hidden layers, the features and the states, larger than any latent; the
            decoder takes a vector of this length (and the context).
        context : int
            Length of contexts.
        combine : callable, optional
            As for :class:`Level`.

        Raises
        ------
        ValueError
            If a latent leaves no room in the state.

        >>> len(Level.dense(64, [4, 16], width=32))
        2
        """
        checks.at_least(1, inputs=inputs, width=width)
        checks.sizes(1, 1, latents=latents)
        checks.at_least(0, context=context)
        if max(latents) >= width:
            raise ValueError(
                f"expected states wider than each latent, got width={width} and "
                f"latents={list(latents)}; give width={2 * max(latents)}"
            )

        def net(before: int, after: int) -> MLP:
            return MLP(before, [width, width], after, residual=True)

        levels = []
        for number, size in enumerate(latents):
            top = number == 0
            lowest = number == len(latents) - 1
            above = 0 if top else width
            prior: DistributionModule = standard_normal(size)
            if not top or context:
                prior = Gaussian(net(above + context, 2 * size))
            shown = width + context + (0 if combine else above)
            posterior = Gaussian(net(shown, 2 * size))
            features = net(inputs if lowest else width, width)
            step = SkipConnection(net(above + size, width - size), kept=size)
            levels.append(Level(prior, posterior, features, step, combine))
        return levels


class HierarchicalVAE(LatentVariableModel):
    r"""Hierarchical variational autoencoder with top-down inference.

    .. math:: p(x, z_{1:L}) = p(z_1) \prod_{l=2}^L p(z_l \mid z_{<l})\; p(x \mid z_{1:L}), \qquad
              q(z_{1:L} \mid x) = q(z_1 \mid x) \prod_{l=2}^L q(z_l \mid z_{<l}, x)

    with level 1 at the top. A deterministic path from below makes features :math:`d_L, \dots, d_1`
    of x, one from above makes states :math:`h_2, \dots, h_{L+1}` of the latents; generation and
    inference share the one from above. The decoder is given :math:`h_{L+1}`.

    Sites: latents ``"z1"`` (top) to ``"zL"``, observed ``"x"``, all in plate ``"data"``. Missing
    entries of x (NaN) are integrated out by a decoder that does so, and enter the features as 0.
    With a context c, the prior and posterior of every level and the decoder are given c beside
    their own input. Levels that would switch off are kept by a
    warm-up, ``ELBO(beta=linear_warmup(...))``, and by ``ELBO(free_bits={"z1": 0.1})``.

    Parameters
    ----------
    levels : sequence of Level
        From the top to the bottom; their latents may be vectors or images.
    decoder : DistributionModule
        :math:`p(x \mid h)`.
    context : int
        Length of contexts, 0 for none.

    Raises
    ------
    ValueError
        If there is no level.

    References
    ----------
    Sønderby, Raiko, Maaløe, Sønderby, Winther (2016), Ladder variational autoencoders,
    https://arxiv.org/abs/1602.02282; Kingma et al. (2016), Improved variational inference with
    inverse autoregressive flow, https://arxiv.org/abs/1606.04934; Child (2021), Very deep VAEs,
    https://arxiv.org/abs/2011.10650

    >>> import torch
    >>> from probgen.heads import Bernoulli
    >>> levels = Level.dense(9, [2, 4], width=16, combine=precision_weighted)
    >>> gen = HierarchicalVAE(levels, Bernoulli(MLP(16, [16], 9)))
    >>> gen().sample((5,)).shape, gen.encode(torch.ones(5, 9))["z2"].mean.shape
    (torch.Size([5, 9]), torch.Size([5, 4]))
    """

    unknown_contexts = False
    context_hint = "build it with context={size}, and its networks for {size} more inputs"

    def __init__(self, levels: Sequence[Level], decoder: DistributionModule, *, context: int = 0):
        checks.instances(Level, "pass a list of Level", levels=levels)
        checks.generative(decoder=decoder)
        checks.at_least(0, context=context)
        super().__init__()
        if not len(levels):
            raise ValueError("expected one level or more, got none; pass Level.dense(D, [16, 32])")
        self.levels: Any = nn.ModuleList(levels)
        self.decoder = decoder
        self.context_size = context

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        context = received(self, context)
        with data_plate(x, context):
            state = None
            for name, level in self._named():
                prior = _prior(level, state, context)
                state = _next(level, state, pyro.sample(name, prior), prior)
            shown = all_beside((state, self.decoder.context_ndim), (context, 1))
            return pyro.sample("x", self.decoder(shown), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        if x is None:  # all latents belong to rows: no globals to draw
            return
        context = received(self, context)
        with data_plate(x, context):
            self._inferred(x, context, lambda name, q: pyro.sample(name, q))

    def encode(self, x: Tensor, context: Tensor | None = None) -> dict[str, Any]:
        """The posterior of each level, by its site, given the means of those above.

        ``(*batch, *event)`` -> distributions of batch shape ``(*batch,)``.
        """
        return self._inferred(x, received(self, context), lambda name, q: q.mean)

    def _named(self) -> list[tuple[str, Level]]:
        """The levels with their sites, from the top."""
        return [(f"z{number}", level) for number, level in enumerate(self.levels, 1)]

    def _inferred(
        self, x: Tensor, context: Tensor | None, choose: Callable[[str, Any], Tensor]
    ) -> dict[str, Any]:
        """The posteriors from the top down, each given what is chosen of those above."""
        features = [fill_missing(x)]
        for level in reversed(self.levels):
            features.append(level.features(features[-1]))
        state = None
        found = {}
        for name, level in self._named():
            posterior = _posterior(level, state, features.pop(), context)
            found[name] = posterior
            z = choose(name, posterior)
            if level is not self.levels[-1]:  # nothing is inferred below the lowest one
                state = _next(level, state, z, posterior)
        return found


def precision_weighted(prior: Any, evidence: Any) -> dist.TorchDistribution:
    r"""The product of two independent normal distributions, renormalized: the ladder VAE's posterior.

    .. math:: \sigma^{-2} = \sigma_p^{-2} + \sigma_e^{-2}, \qquad
              \mu = \sigma^2 \left( \mu_p \sigma_p^{-2} + \mu_e \sigma_e^{-2} \right)

    Distributions of events ``(*event)`` of independent normal entries, batch shapes that broadcast.
    Sønderby et al. (2016), https://arxiv.org/abs/1602.02282, equation 7

    >>> import torch
    >>> prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    >>> half = precision_weighted(prior, dist.Normal(torch.full([1], 2.0), 1.0).to_event(1))
    >>> half.mean, half.variance
    (tensor([1.]), tensor([0.5000]))
    """
    precision = prior.variance.reciprocal() + evidence.variance.reciprocal()
    weighted = prior.mean / prior.variance + evidence.mean / evidence.variance
    combined = dist.Normal(weighted / precision, precision.rsqrt())
    return combined.to_event(len(evidence.event_shape))


def relative_mean(prior: Any, evidence: Any) -> dist.TorchDistribution:
    r"""A normal posterior whose mean is told relative to the prior's, with a scale of its own.

    .. math:: q = \mathcal N\left( \mu_p + \mu_e,\ \sigma_e^2 \right)

    Unlike in :func:`precision_weighted` the scale of the posterior is not bound to that of the
    prior, which training may else make so narrow that nothing from below is heard.

    Distributions of events ``(*event)`` of independent normal entries, batch shapes that broadcast.
    Means as in Vahdat, Kautz (2020), NVAE, https://arxiv.org/abs/2007.03898, section 3.2

    >>> import torch
    >>> prior = dist.Normal(torch.ones(1), 3.0).to_event(1)
    >>> posterior = relative_mean(prior, dist.Normal(torch.full([1], 2.0), 0.5).to_event(1))
    >>> posterior.mean, posterior.stddev
    (tensor([3.]), tensor([0.5000]))
    """
    moved = dist.Normal(prior.mean + evidence.mean, evidence.stddev)
    return moved.to_event(len(evidence.event_shape))


def _prior(level: Level, state: Tensor | None, context: Tensor | None) -> Any:
    """p(z_l | h_l, c); that of the top is given the context, if it takes one."""
    if state is None:
        return distribution_given(level.prior, context)
    ndim = level.prior.context_ndim
    return level.prior(all_beside((state, ndim), (context, 1)))


def _posterior(level: Level, state: Tensor | None, features: Tensor, context: Tensor | None) -> Any:
    """q(z_l | h_l, d_l, c)."""
    ndim = level.posterior.context_ndim
    if level.combine is not None:
        evidence = level.posterior(all_beside((features, ndim), (context, 1)))
        return level.combine(_prior(level, state, context), evidence)
    return level.posterior(all_beside((state, ndim), (features, ndim), (context, 1)))


def _next(level: Level, state: Tensor | None, z: Tensor, distribution: Any) -> Tensor:
    """The state below a level."""
    own = len(distribution.event_shape)
    ndim = level.posterior.context_ndim
    shown = all_beside((state, ndim), (z, own))
    return row_by_row(level.step, shown, ndims=[own if state is None else max(ndim, own)])
