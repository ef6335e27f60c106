"""The distribution of a diffusion in discrete time, with noise of any closed distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from probgen.core import checks
from probgen.distributions.diffusion.diffused import Diffused
from probgen.distributions.diffusion.process import Denoiser, DiscreteProcess, NoiseNetwork
from probgen.distributions.diffusion.samplers import Ancestral, ReverseSampler
from probgen.distributions.diffusion.tables import uniform_probabilities
from probgen.distributions.gibbs import gibbs
from probgen.samplers.reverse import ancestral


class DiscreteDiffused(Diffused):
    r"""The distribution of data that a network finds behind noise, in T steps.

    .. math:: p(x) = \int p(z_1)\, p(x \mid z_{1/T}) \prod_{i=2}^T p(z_{(i-1)/T} \mid z_{i/T})\, dz

    ``log_prob`` is an estimate of its variational bound at one random time t per row, s = t - 1 / T:

    .. math:: \log p(x \mid z_{1/T}) - \frac1{\pi_t} \mathrm{KL}\big(q(z_s \mid z_t, x) \|
              p(z_s \mid z_t)\big) - \mathrm{KL}\big(q(z_1 \mid x) \| p(z_1)\big)

    with :math:`z_{1/T} \sim q(z_{1/T} \mid x)` and :math:`z_t \sim q(z_t \mid x)`: two calls of the
    network. The probabilities :math:`\pi_t` of times are those of the process; additive noise takes them
    from the log signal-to-noise ratio, to which divergences are about proportional. Labels, whose divergence
    at t = 1 / T is :math:`-\log p(x \mid z_t)` itself, take one call, t uniform. Divergences are in
    closed form, or, where there is none, the log-ratio of one draw. The times of the rows of one
    call are spread evenly (Kingma et al. 2021).

    Parameters
    ----------
    net : callable
        What a network says of a state: ``(*batch, *event)``, times ``(*batch,)`` and, with one, the
        context, to what the process reads.
    process : DiscreteProcess
        ``GammaNoise``, ``MixtureNoise``, ``AbsorbingNoise`` or ``UniformNoise``.
    event_shape, batch_shape : sequence of int
        Shapes of the distribution.
    sampler : ReverseSampler, optional
        How ``sample`` takes noise away; default: the chain, all T steps of it. Fewer have another
        distribution, near it.
    context, context_ndim
        As for :class:`Diffused <probgen.distributions.diffusion.diffused.Diffused>`.

    Raises
    ------
    ValueError
        From ``sample``, if there are more steps than times of the process.

    References
    ----------
    Sohl-Dickstein et al. (2015), Deep unsupervised learning using nonequilibrium thermodynamics,
    https://arxiv.org/abs/1503.03585; Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239;
    Kingma, Salimans, Poole, Ho (2021), Variational diffusion models,
    https://arxiv.org/abs/2107.00630 (evenly spread steps)

    >>> from probgen.distributions.diffusion.mixture import MixtureNoise
    >>> from probgen.distributions.diffusion.schedules import LinearSchedule
    >>> process = MixtureNoise(LinearSchedule(), [1], [0], [1], num_times=1000)  # Gaussian noise
    >>> def exact(z, t):  # of standard normal data
    ...     return process.levels(t, z)[1] * z
    >>> distribution = DiscreteDiffused(exact, process, (1,))
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(200000, 1)
    >>> dist.Normal(0.0, 1.0).log_prob(x).mean(), distribution.log_prob(x).mean()  # the gap is that of the step size
    (tensor(-1.4...), tensor(-1.6...))
    """

    def __init__(
        self,
        net: NoiseNetwork,
        process: DiscreteProcess,
        event_shape: Sequence[int],
        batch_shape: Sequence[int] = (),
        *,
        sampler: ReverseSampler | None = None,
        context: Any = None,
        context_ndim: int = 1,
    ):
        times: Any = process.num_times  # a number: discrete states have discrete times
        super().__init__(
            net,
            process,
            event_shape,
            batch_shape,
            sampler=Ancestral(times) if sampler is None else sampler,
            context=context,
            context_ndim=context_ndim,
        )

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.process.support(len(self.event_shape))

    def bound_terms(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of ``log_prob``, by name: ``(*batch, *event) -> (*batch,)`` each.

        Of labels, the first step of the chain is the reconstruction and stands among the others.
        """
        process = self.process
        x = self._checked(x)
        number = self._numbers(x, process.time_probabilities)
        t = self._time(number)
        s = self._time(number - 1)
        z = _drawn(process.marginal(x, t))
        term = _divergence(process.posterior(z, x, t, s), self.denoiser.reverse(z, t, s))
        last = process.marginal(x, torch.ones_like(t))
        prior = _divergence(last, self.prior().expand(t.shape))
        terms = {"diffusion": -term / process.time_probabilities[number], "prior": -prior}
        if process.continuous:
            first = self._time(torch.ones_like(number))
            z = _drawn(process.marginal(x, first))
            terms["reconstruction"] = self._likelihood(z, first).log_prob(x)
        return terms

    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss at one random time per row: ``(*batch, *event) -> (*batch,)``.

        The squared error of what the network predicts, summed over the entries; of labels the
        cross-entropy in nats.
        """
        x = self._checked(x)
        t = self._time(self._numbers(x, uniform_probabilities(self.process.num_times, x)))
        z = _drawn(self.process.marginal(x, t))
        return self.process.loss(self.denoiser.predict(z, t), x, z, t)

    def prior(self) -> dist.TorchDistribution:
        return self.process.prior(self.process.time_probabilities.new_zeros(self.event_shape))

    def states(self) -> list[Tensor]:
        count = self.process.num_times
        return list(
            torch.arange(count, 0, -1, device=self.process.time_probabilities.device) / count
        )

    def embed(self, x: Tensor) -> Tensor:
        self.process.check(x)
        return x

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        lead = z.shape[: z.ndim - len(self.event_shape)]
        return self._likelihood(z, self._time(torch.ones(lead, device=z.device)))

    def sampled(self) -> Denoiser:
        return self.guided()

    def ended(self, z: Tensor, denoiser: Denoiser) -> Tensor:
        return z

    @torch.no_grad()
    def completed(self, x: Tensor, num_steps: int) -> Tensor:
        """Missing entries (NaN) drawn given the others in at most so many steps.

        If the process can: as ``x``.
        """
        if not isinstance(self.process, MissingAsNoise):
            raise NotImplementedError(
                f"expected a process that takes missing entries (NaN) for noised ones, got "
                f"{type(self.process).__name__}; use AbsorbingNoise, or impute with a mixture, "
                "factor analysis or a VAE"
            )
        denoiser = self.guided()
        z, start = self.process.incomplete(x, len(self.event_shape))
        count = min(num_steps, self.process.num_times)
        numbers = [_spread(start, left, count) for left in range(count, -1, -1)]
        draw = lambda z, t, s: denoiser.reverse(z, t, s).sample()  # noqa: E731
        return ancestral(draw, z, self._time(torch.stack(numbers)))

    def _likelihood(self, z: Tensor, t: Tensor) -> dist.TorchDistribution:
        """p(x | z_t)."""
        return self.denoiser.reverse(z, t, torch.zeros_like(t))

    def _checked(self, x: Tensor) -> Tensor:
        """Checked x, a row of its own for each entry of the batch."""
        x = self.complete(x)
        self.process.check(x)
        return x

    def _time(self, number: Tensor) -> Tensor:
        """The times of numbers 0, ..., T."""
        return number / self.process.num_times

    def _numbers(self, x: Tensor, time_probabilities: Tensor) -> Tensor:
        """The number of a random time for each row, those of all rows spread evenly."""
        lead = x.shape[: x.ndim - len(self.event_shape)]
        place = torch.arange(lead.numel(), device=x.device, dtype=torch.float64) / max(
            1, lead.numel()
        )
        share = (torch.rand((), device=x.device, dtype=torch.float64) + place) % 1
        number = torch.searchsorted(time_probabilities.double().cumsum(0), share, right=True)
        return number.clamp(max=self.process.num_times).reshape(lead)


@runtime_checkable
class MissingAsNoise(Protocol):
    """A process for which a missing entry is a noised one."""

    num_times: int

    def incomplete(self, x: Tensor, event_ndim: int) -> tuple[Tensor, Tensor]:
        """A state ``(*batch, *event)`` and the numbers of its times ``(*batch,)``."""


@gibbs.register(DiscreteDiffused)
def _(distribution: DiscreteDiffused, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return distribution.completed(torch.where(mask, x, torch.nan), num_steps)


def _spread(start: Tensor, left: int, count: int) -> Tensor:
    """Number of the time from which so many of all steps are left, from ``start`` down to 0."""
    if left == 0:
        return torch.zeros_like(start)
    if left == count:
        return start
    return 1 + ((start - 1) * (left - 1)).div(count - 1, rounding_mode="floor")


def _drawn(distribution: dist.TorchDistribution) -> Tensor:
    return distribution.rsample() if distribution.has_rsample else distribution.sample()


def _divergence(q: dist.TorchDistribution, p: dist.TorchDistribution) -> Tensor:
    """KL(q || p) in closed form, or the log-ratio of a draw."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        x = _drawn(q)
        return q.log_prob(x) - p.log_prob(x)
