"""The distribution of a Gaussian diffusion.

Scored by a variational bound, sampled by taking noise away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.distributions.denoised import ConsistencyPair, DenoisedPair, NoiseLevels
from probgen.distributions.diffusion.bound import (
    divergences,
    integrated_error,
    prior_divergence,
    summed_divergence,
)
from probgen.distributions.diffusion.diffused import Diffused
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.neighbors import (
    check_same_levels,
    neighbors,
    step_between,
    two_steps,
)
from probgen.distributions.diffusion.process import Denoiser, NoiseNetwork, refuse_missing
from probgen.distributions.diffusion.reconstruction import GaussianReconstruction, Reconstruction
from probgen.distributions.diffusion.samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    Heun,
    ReverseSampler,
)
from probgen.distributions.diffusion.thresholds import Limit
from probgen.distributions.diffusion.times import NoiseSchedule, Times, UniformTimes, uniform_steps
from probgen.distributions.gibbs import gibbs
from probgen.samplers.inpainting import repaint
from probgen.samplers.reverse import Denoise, heun


class GaussianDiffused(Diffused):
    r"""The distribution of data from which a network has learned to take Gaussian noise away.

    .. math:: q(z_t \mid x) = N(\alpha_t x, \sigma_t^2), \qquad
              \log p(x) \ge E_q \log p(x \mid z_0) - \mathrm{KL}\big(q(z_1 \mid x) \,\|\,
              p(z_1)\big) - L(x)

    where :math:`L` is, of a chain of T steps, the sum of its T divergences :math:`\mathrm{KL}(q(z_s
    \mid z_t, x) \| p(z_s \mid z_t))`, and in continuous time :math:`\frac12 \int e^\lambda\, E |x -
    \hat x|^2\, d\lambda` over all log signal-to-noise ratios. ``log_prob`` estimates it at one
    random level of noise: its kind is *bound*.

    Parameters
    ----------
    net : callable
        The network, ``net(inputs, time)`` without a context and ``net(inputs, time, context)`` with
        one.
    process : GaussianNoise
        Schedule, prediction and variance; the number T of times of the chain that is scored, or
        continuous time.
    noise : TorchDistribution
        Independent standard normals, one event.
    batch_shape : sequence of int
        The batch shape of the distribution.
    sampler : ReverseSampler
        How ``sample`` takes noise away.
    times : callable
        Where the simple loss is evaluated: ``UniformTimes()`` or ``LogNormalTimes()``.
    reconstruction : Reconstruction
        The distribution of the data given the least noisy state.
    context, context_ndim
        As for :class:`Diffused <probgen.distributions.diffusion.diffused.Diffused>`.
    limit : Limit, optional
        Bounds what the network says of the data in ``sample`` and ``completed``; it is shown the
        data in training. Scores, ``encode`` and ``decode`` never use it.

    Raises
    ------
    ValueError
        From ``log_prob``: if an entry is missing (NaN), or the rightmost dims of x are not
        ``event_shape``.

    References
    ----------
    Sohl-Dickstein et al. (2015), https://arxiv.org/abs/1503.03585; Ho, Jain, Abbeel (2020),
    https://arxiv.org/abs/2006.11239; Kingma, Salimans, Poole, Ho (2021),
    https://arxiv.org/abs/2107.00630; Ho, Salimans (2021), https://arxiv.org/abs/2207.12598
    (guidance)
    """

    def __init__(
        self,
        net: NoiseNetwork,
        process: GaussianNoise,
        noise: dist.TorchDistribution,
        batch_shape: Sequence[int] = (),
        *,
        sampler: ReverseSampler = Ancestral(),  # noqa: B008 (immutable)
        times: Times = UniformTimes(),  # noqa: B008
        reconstruction: Reconstruction = GaussianReconstruction(),  # noqa: B008
        context: Any = None,
        context_ndim: int = 1,
        limit: Limit | None = None,
    ):
        super().__init__(
            net,
            process,
            noise.event_shape,
            batch_shape,
            sampler=sampler,
            context=context,
            context_ndim=context_ndim,
        )
        self.noise = noise
        self.times = times
        self.reconstruction = reconstruction
        self.limit = limit

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.reconstruction.support, len(self.event_shape))

    def bound_terms(self, x: Tensor) -> dict[str, Tensor]:
        x = self.complete(x)
        y = self._shown(self.reconstruction.embed(x))
        prior = prior_divergence(self.process, y)
        kept = self.process.total(self._kept(x, y))
        return {"reconstruction": kept, "prior": -prior, "diffusion": -self._lost(y)}

    def denoising_loss(self, x: Tensor) -> Tensor:
        r"""The simple loss at random times, a weighted squared error of the data.

        ``(*batch, *event) -> (*batch,)``.

        .. math:: w(\alpha_t, \sigma_t)\, |x - \hat x(z_t, t)|^2

        with the weight under which errors of the network's output count alike. Learned variances
        add a share of the bound in which the mean has no gradient. The schedule is taken as it is:
        it gets no gradient.
        """
        return self._denoised(x).loss

    def denoised_pair(self, x: Tensor, other: GaussianDiffused) -> DenoisedPair:
        """What this distribution and another one of the same process say of the same noised rows.

        The loss is :meth:`denoising_loss`, with the same noise.
        """
        seen = self._denoised(x)
        guess = replace(other.denoiser, process=seen.process).denoise(seen.z, seen.t)
        unit = seen.process.wide(seen.weight.sqrt())
        known = self.denoiser.known & other.denoiser.known
        return DenoisedPair(seen.loss, unit * seen.guess, unit * guess, seen.t, known)

    def consistency_pair(
        self,
        x: Tensor,
        levels: tuple,
        teacher: GaussianDiffused | None = None,
        target: GaussianDiffused | None = None,
    ) -> ConsistencyPair:
        """What the network says of the data at neighboring states of one path.

        The later state is noised data. The earlier one has the same noise, or, with a ``teacher``
        (another such distribution), is where a step of Heun's method for its probability-flow
        equation leads. There ``target``, or this distribution itself, is asked, without gradient;
        at time 0 the state itself is the answer. ``levels`` are the fields of a :class:`NoiseLevels
        <probgen.distributions.denoised.NoiseLevels>`.
        """
        y, process, lead = self._placed(x)
        t, s, least = neighbors(process.schedule, lead, NoiseLevels(*levels), y)
        noise = torch.randn_like(y)
        z = process.noised(y, noise, t)
        own = replace(self.denoiser, process=process).denoise(z, t)
        with torch.no_grad():
            if teacher is None:
                earlier = process.noised(y, noise, s)
            else:
                led = self._asked(teacher, process)
                earlier = heun(led, z, step_between(process, t, s), correct_last=True)
            asked = self.denoiser if target is None else self._shown_too(target.denoiser)
            other = replace(asked, process=process).denoise(earlier, s)
            other = torch.where(process.wide(least), earlier / process.levels(s)[0], other)
        gap = process.noise_to_signal(t) - process.noise_to_signal(s)
        return ConsistencyPair(own, other, gap)

    def halved_pair(self, x: Tensor, num_steps: int, teacher: GaussianDiffused) -> DenoisedPair:
        """What the network says of the data, and what it would have to say.

        So that one of ``num_steps`` even steps of DDIM leads where two steps of half the size by
        the ``teacher``, another such distribution, lead. In the unit of the simple loss.
        """
        y, process, lead = self._placed(x)
        t = (UniformTimes()(lead, process.schedule, y) * num_steps).ceil().clamp(min=1) / num_steps
        z = process.noised(y, torch.randn_like(y), t)
        guess = replace(self.denoiser, process=process).denoise(z, t)
        with torch.no_grad():
            wanted = two_steps(self._asked(teacher, process), process, z, t, t - 1 / num_steps)
        weight = process.prediction.weight(*process.schedule(t))
        unit = process.wide(weight.sqrt())
        loss = weight * process.total((wanted - guess).square())
        return DenoisedPair(loss, unit * guess, unit * wanted, t, self.denoiser.known)

    def prior(self) -> dist.TorchDistribution:
        return self.process.prior(self.noise.mean)

    def states(self) -> list[Tensor]:
        like = self.noise.mean
        count = self.process.num_times
        return list(torch.arange(count, -1, -1, dtype=like.dtype, device=like.device) / count)

    def embed(self, x: Tensor) -> Tensor:
        refuse_missing(x)
        return self.reconstruction.embed(x)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        return self._reconstructed(z, self.denoiser).to_event(len(self.event_shape))

    def sampled(self) -> Denoiser:
        denoiser = self.guided()
        if self.limit is None or self.limit.threshold is None:
            return denoiser
        least = getattr(self.process.prediction, "least_signal", 0.0)
        start = math.log(least / max(1, self.event_shape.numel())) if least else -math.inf
        return replace(denoiser, process=replace(self.process, limit=self.limit, start=start))

    def ended(self, z: Tensor, denoiser: Denoiser) -> Tensor:
        if self.sampler.stochastic:
            return self._reconstructed(z, denoiser).sample().to(z.dtype)
        return self.reconstruction.mode(self._clean(z, denoiser), *self._end(z))

    @torch.no_grad()
    def encode(self, x: Tensor, sampler: DDIM | Heun | DPMSolver = Heun(50)) -> Tensor:  # noqa: B008
        """The standard normal noise from which the probability-flow equation leads to x.

        Of the shape of x.
        """
        y = self.reconstruction.embed(self.complete(x))
        z = sampler.encode(self.guided(), self._end(y)[0] * y)
        return z / self.process.prior_scale(z[(0,) * z.ndim])

    @torch.no_grad()
    def decode(self, z: Tensor, sampler: ReverseSampler = Heun(50)) -> Tensor:  # noqa: B008
        """The data to which standard normal noise ``(*batch, *event)`` leads.

        With the same sampler, undoes encode.
        """
        z = sampler(self.guided(), z * self.process.prior_scale(z[(0,) * z.ndim]))
        return self.reconstruction.mode(z, *self._end(z))

    @torch.no_grad()
    def completed(
        self, x: Tensor, mask: Tensor, num_steps: int, repeats: int = 10, jump: int = 10
    ) -> Tensor:
        """Draws of the entries that are not observed, by about ``num_steps`` calls of the network.

        RePaint.
        """
        denoiser = self.sampled()
        process = denoiser.process
        shape = torch.broadcast_shapes(x.shape, self.shape())
        y = self.reconstruction.embed(x.nan_to_num()).expand(shape)
        mask = mask.expand(shape)
        times = uniform_steps(max(2, num_steps // repeats), process.schedule, y)
        z = self.prior().sample(shape[: len(shape) - len(self.event_shape)])
        step = lambda z, t, s: denoiser.reverse(z, t, s).sample()  # noqa: E731
        observed = lambda s: process.noised(y, torch.randn_like(y), s)  # noqa: E731
        z = repaint(step, process.forward_step, observed, z, times, mask, repeats, jump)
        drawn = self._reconstructed(z, denoiser).sample().to(z.dtype)
        return torch.where(mask, x, drawn)

    def _denoised(self, x: Tensor) -> _Denoised:
        """Rows with noise of random times, what the network makes of them, and the simple loss."""
        y = self._shown(self.reconstruction.embed(self.complete(x)))
        t = self.times(y.shape[: y.ndim - len(self.event_shape)], self.process.schedule, y).detach()
        process = replace(self.process, schedule=_Frozen(self.process.schedule))
        num_times = process.num_times
        if process.variance.learned:
            t = ((t * num_times).floor().clamp(max=num_times - 1) + 1) / num_times
        z = process.noised(y, torch.randn_like(y), t)
        output = replace(self.denoiser, process=process).predict(z, t)
        guess, raw = process.read(z, output, t)
        weight = process.prediction.weight(*process.schedule(t))
        loss = weight * process.total((y - guess).square())
        if raw is not None:
            s = ((t * num_times).round() - 1) / num_times
            bound = process.total(divergences(process, y, guess.detach(), raw, t, s))
            loss = loss + process.variance.share * num_times * bound
        return _Denoised(process, z, t, guess, weight, loss)

    def _placed(self, x: Tensor) -> tuple[Tensor, GaussianNoise, torch.Size]:
        """Embedded rows, the process without gradients to its schedule, and the leading dims."""
        y = self._shown(self.reconstruction.embed(self.complete(x)))
        process = replace(self.process, schedule=_Frozen(self.process.schedule))
        return y, process, y.shape[: y.ndim - len(self.event_shape)]

    def _asked(self, teacher: GaussianDiffused, process: GaussianNoise) -> Denoise:
        """What a teacher expects of states of this process."""
        check_same_levels(process.schedule, teacher.process.schedule, self.noise.mean)
        return self._shown_too(teacher.sampled()).denoise

    def _shown_too(self, denoiser: Denoiser) -> Denoiser:
        """Another network that is shown the contexts that this one is shown: some are dropped."""
        return replace(denoiser, context=self.denoiser.context)

    def _kept(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | z_0), expected or at one draw of z_0, variable by variable."""
        end = torch.zeros_like(x[(0,) * x.ndim])
        if not self.reconstruction.denoised:
            return self.reconstruction.expected_log_prob(x, *self.process.levels(end))
        z = self.process.noised(y, torch.randn_like(y), end)
        return self._reconstructed(z, self.denoiser).log_prob(x)

    def _reconstructed(self, z: Tensor, denoiser: Denoiser) -> dist.TorchDistribution:
        """p(x | z_0) of single variables."""
        return self.reconstruction.distribution(self._clean(z, denoiser), *self._end(z))

    def _clean(self, z: Tensor, denoiser: Denoiser) -> Tensor:
        """The least noisy state, with the noise that the network sees in it taken away if asked."""
        if not self.reconstruction.denoised:
            return z
        alpha, _ = self._end(z)
        return alpha * denoiser.denoise(z, torch.zeros_like(z[(0,) * z.ndim]))

    def _lost(self, y: Tensor) -> Tensor:
        """L(x) at one random level of noise."""
        shares = UniformTimes()(y.shape[: y.ndim - len(self.event_shape)], self.process.schedule, y)
        estimate = integrated_error if self.process.num_times is None else summed_divergence
        return estimate(self.denoiser, y, shares, self.reconstruction.resolved)

    def _shown(self, y: Tensor) -> Tensor:
        if self.limit is not None:
            self.limit.show(y)
        return y

    def _end(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.levels(torch.zeros_like(like[(0,) * like.ndim]))


class _Denoised(NamedTuple):
    """One evaluation of the simple loss."""

    process: GaussianNoise  # its schedule without gradients
    z: Tensor
    t: Tensor
    guess: Tensor
    weight: Tensor
    loss: Tensor


class _Frozen:
    """A schedule without gradients, which keeps its levels at the times that it was asked for last.

    Noise, network and weight of one loss all ask for the same.
    """

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule
        self.last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.last is None or self.last[0] is not t:
            alpha, sigma = self.schedule(t)
            self.last = t, (alpha.detach(), sigma.detach())
        return self.last[1]

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t).detach()

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr).detach()


@gibbs.register(GaussianDiffused)
def _(distribution: GaussianDiffused, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return distribution.completed(x, mask, num_steps)
