"""The distribution of a diffusion model.

Scored by a variational bound, sampled by taking noise away.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.core.truncation import Truncated, using
from probgen.distributions.diffusion.bound import (
    divergences,
    integrated_error,
    prior_divergence,
    summed_divergence,
)
from probgen.distributions.diffusion.process import Network, Process
from probgen.distributions.diffusion.reconstruction import GaussianReconstruction, Reconstruction
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler
from probgen.distributions.diffusion.thresholds import Limit
from probgen.distributions.diffusion.times import NoiseSchedule, Times, UniformTimes, uniform_steps
from probgen.distributions.gibbs import gibbs
from probgen.samplers.inpainting import repaint


class Diffused(dist.TorchDistribution):
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
    process : Process
        Network (context bound), schedule, prediction and variance.
    noise : TorchDistribution
        Independent standard normals of the batch shape and the events ``(*event)`` of the
        distribution.
    steps : int, optional
        Number T of steps of the chain that is scored; ``None``: continuous time.
    sampler : Sampler
        How ``sample`` takes noise away.
    times : callable
        Where the simple loss is evaluated: ``UniformTimes()`` or ``LogNormalTimes()``.
    reconstruction : Reconstruction
        The distribution of the data given the least noisy state.
    unconditional : callable, optional
        The network without a context, for guidance.
    limit : Limit, optional
        Bounds what the network says of the data in ``sample`` and ``completed``; it is shown the
        data in training. Scores, ``encode`` and ``decode`` never use it.
    guidance : float
        Factor w of classifier-free guidance in ``sample``, :math:`\hat x = \hat x_\varnothing + w
        (\hat x_c - \hat x_\varnothing)`; 1: none. Scores never use it.

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

    arg_constraints: dict = {}
    has_rsample = False
    density_kind = "bound"

    def __init__(
        self,
        process: Process,
        noise: dist.TorchDistribution,
        *,
        steps: int | None = None,
        sampler: Sampler = Ancestral(),  # noqa: B008 (immutable)
        times: Times = UniformTimes(),  # noqa: B008
        reconstruction: Reconstruction = GaussianReconstruction(),  # noqa: B008
        unconditional: Network | None = None,
        guidance: float = 1.0,
        limit: Limit | None = None,
    ):
        self.process = process
        self.noise = noise
        self.steps = steps
        self.sampler = sampler
        self.times = times
        self.reconstruction = reconstruction
        self.unconditional = unconditional
        self.guidance = guidance
        self.limit = limit
        super().__init__(noise.batch_shape, noise.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.reconstruction.support, len(self.event_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        return sum(self.bound_terms(x).values())

    def bound_terms(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of ``log_prob``, by name: ``(*batch, *event) -> (*batch,)`` each."""
        x = self._complete(x)
        y = self._shown(self.reconstruction.embed(x))
        end = torch.zeros_like(x[(0,) * x.ndim])
        kept = self.process.total(
            self.reconstruction.expected_log_prob(x, *self.process.levels(end))
        )
        prior = prior_divergence(self.process, y)
        return {"reconstruction": kept, "prior": -prior, "diffusion": -self._lost(y)}

    def denoising_loss(self, x: Tensor) -> Tensor:
        r"""The simple loss at random times, a weighted squared error of the data.

        ``(*batch, *event) -> (*batch,)``.

        .. math:: w(\alpha_t, \sigma_t)\, |x - \hat x(z_t, t)|^2

        with the weight under which errors of the network's output count alike. Learned variances
        add a share of the bound in which the mean has no gradient. The schedule is taken as it is:
        it gets no gradient.
        """
        y = self._shown(self.reconstruction.embed(self._complete(x)))
        t = self.times(y.shape[: y.ndim - len(self.event_shape)], self.process.schedule, y).detach()
        process = replace(self.process, schedule=_Frozen(self.process.schedule))
        if self.process.variance.learned:
            t = self._step(t) / self.steps
        guess, raw = process.outputs(process.noised(y, torch.randn_like(y), t), t)
        loss = process.prediction.weight(*process.schedule(t)) * process.total((y - guess).square())
        if raw is None:
            return loss
        s = ((t * self.steps).round() - 1) / self.steps
        bound = process.total(divergences(process, y, guess.detach(), raw, t, s))
        return loss + process.variance.share * self.steps * bound

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        z = self._noisiest(self.noise.sample(torch.Size(sample_shape)))
        z, levels = self.sampler(self._limited(), z), self._end(z)
        if self.sampler.stochastic:
            return self.reconstruction.distribution(z, *levels).sample().to(z.dtype)
        return self.reconstruction.mode(z, *levels)

    @torch.no_grad()
    def encode(self, x: Tensor, sampler: DDIM | Heun | DPMSolver = Heun(50)) -> Tensor:  # noqa: B008
        """The standard normal noise from which the probability-flow equation leads to x.

        Of the shape of x.
        """
        y = self.reconstruction.embed(self._complete(x))
        z = sampler.encode(self._guided(), self._end(y)[0] * y)
        return z / self.process.prior_scale(z[(0,) * z.ndim])

    @torch.no_grad()
    def decode(self, z: Tensor, sampler: Sampler = Heun(50)) -> Tensor:  # noqa: B008
        """The data to which standard normal noise ``(*batch, *event)`` leads.

        With the same sampler, undoes encode.
        """
        z = sampler(self._guided(), self._noisiest(z))
        return self.reconstruction.mode(z, *self._end(z))

    def using(self, sampler: Sampler | None = None, guidance: float | None = None) -> Diffused:
        """The same distribution sampled in another way, or with another strength of guidance."""
        if isinstance(sampler, Truncated):
            return using(self, sampler)
        new = copy.copy(self)
        new.sampler = self.sampler if sampler is None else sampler
        new.guidance = self.guidance if guidance is None else guidance
        return new

    @torch.no_grad()
    def completed(
        self, x: Tensor, mask: Tensor, steps: int, repeats: int = 10, jump: int = 10
    ) -> Tensor:
        """Draws of the entries that are not observed, by about ``steps`` calls of the network.

        RePaint.
        """
        process = self._limited()
        shape = torch.broadcast_shapes(x.shape, self.shape())
        y = self.reconstruction.embed(x.nan_to_num()).expand(shape)
        mask = mask.expand(shape)
        times = uniform_steps(max(2, steps // repeats), process.schedule, y)
        z = self._noisiest(torch.randn_like(y))

        def step(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
            mean, scale = process.reverse(z, t, s)
            return mean + scale * torch.randn_like(z)

        observed = lambda s: process.noised(y, torch.randn_like(y), s)  # noqa: E731
        z = repaint(step, process.forward_step, observed, z, times, mask, repeats, jump)
        drawn = self.reconstruction.distribution(z, *self._end(z)).sample().to(z.dtype)
        return torch.where(mask, x, drawn)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Diffused:
        new = copy.copy(self)
        new.noise = self.noise.expand(batch_shape)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _lost(self, y: Tensor) -> Tensor:
        """L(x) at one random level of noise."""
        shares = UniformTimes()(y.shape[: y.ndim - len(self.event_shape)], self.process.schedule, y)
        if self.steps is None:
            return integrated_error(self.process, y, shares, self.reconstruction.resolved)
        return summed_divergence(self.process, y, self.steps, shares, self.reconstruction.resolved)

    def _step(self, t: Tensor) -> Tensor:
        """Numbers 1, ..., T of steps from uniform times."""
        return (t * self.steps).floor().clamp(max=self.steps - 1) + 1

    def _shown(self, y: Tensor) -> Tensor:
        if self.limit is not None:
            self.limit.show(y)
        return y

    def _limited(self) -> Process:
        process = self._guided()
        if self.limit is None or self.limit.threshold is None:
            return process
        least = getattr(process.prediction, "least_signal", 0.0)
        start = math.log(least / max(1, self.event_shape.numel())) if least else -math.inf
        return replace(process, limit=self.limit, start=start)

    def _guided(self) -> Process:
        if self.guidance == 1.0:
            return self.process
        if self.unconditional is None:
            raise ValueError(
                f"expected no guidance without a context, got guidance={self.guidance}; give a "
                "context, and train with "
                "Diffusion(..., context_dropout=0.1)"
            )
        known = self.process.net
        unknown = self.unconditional
        weight = self.guidance

        def net(z: Tensor, t: Tensor) -> Tensor:
            without = unknown(z, t)
            return without + weight * (known(z, t) - without)

        return replace(self.process, net=net)

    def _noisiest(self, noise: Tensor) -> Tensor:
        return noise * self.process.prior_scale(noise[(0,) * noise.ndim])

    def _end(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.levels(torch.zeros_like(like[(0,) * like.ndim]))

    def _complete(self, x: Tensor) -> Tensor:
        """x with the dims of the batch.

        Refuses missing entries, which in a recorded graph give NaN.
        """
        check_event(x, self.event_shape)
        if values_are_known() and has_missing(x):
            raise ValueError(
                "expected complete events, got NaN (missing): the bound of a diffusion does not "
                "integrate them out; "
                "draw them by probgen.impute(gen, x), or fit a family that does (a mixture, factor "
                "analysis, a VAE)"
            )
        return x.expand(torch.broadcast_shapes(x.shape, self.shape()))


class _Frozen:
    """A schedule without gradients."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        return alpha.detach(), sigma.detach()

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t).detach()

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr).detach()


@gibbs.register(Diffused)
def _(distribution: Diffused, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    checks.at_least(1, steps=steps)
    return distribution.completed(x, mask, steps)
