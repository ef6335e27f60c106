"""The distribution of data that a diffusion in discrete time gives: a bound of it, and draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from probgen.core import checks
from probgen.core.missing import check_event
from probgen.distributions.gibbs import gibbs
from probgen.distributions.noising.schedules import even_chances

Predict = Callable[[Tensor, Tensor], Tensor]


class Process(Protocol):
    """A chain from data to noise whose distributions are closed, and how a model goes back.

    Steps are integers ``(*batch,)``.
    """

    steps: int
    continuous: bool  # densities: the datum given x_1 has a term of its own
    chances: Tensor  # (T + 1,), of the steps that the bound looks at; 0 for no step

    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        """q(x_t | x_0)."""

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """q(x_s | x_t, x_0), s < t; s > 0 where data are continuous."""

    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        """p(x_T)."""

    def reverse(self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """p(x_s | x_t) given the output of a network, s >= 0."""

    def loss(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The simple loss of a prediction, one number a row."""

    def support(self, event_ndim: int) -> constraints.Constraint:
        """Where data lie."""

    def check(self, x: Tensor) -> None:
        """Raises ``ValueError`` for data that the chain cannot take."""


class NoisingChain(dist.TorchDistribution):
    r"""The distribution of the end of a chain that a network leads back from noise to data.

    Step by step.

    .. math:: p(x_0) = \int p(x_T) \prod_{t=1}^T p(x_{t-1} \mid x_t)\, dx_{1:T}

    ``log_prob`` is an estimate of its variational bound at one random step t per row,

    .. math:: \log p(x_0 \mid x_1) - \frac1{\pi_t} \mathrm{KL}\big(q(x_{t-1} \mid x_t, x_0) \|
              p(x_{t-1} \mid x_t)\big) - \mathrm{KL}\big(q(x_T \mid x_0) \| p(x_T)\big)

    with :math:`x_1 \sim q(x_1 \mid x_0)` and :math:`x_t \sim q(x_t \mid x_0)`: two calls of the
    network. The chances :math:`\pi_t` are those of the process; additive noise takes them from the
    log signal-to-noise ratio, to which divergences are about proportional. Labels, whose divergence
    at t = 1 is :math:`-\log p(x_0 \mid x_1)` itself, take one call, t uniform on 1, ..., T.
    Divergences are in closed form, or, where there is none, the log-ratio of one draw. The steps of
    the rows of one call are spread evenly (Kingma et al. 2021). ``sample`` follows the chain, or a
    shorter one through ``calls`` of its states, whose distribution is another one, near it.

    Parameters
    ----------
    predict : callable
        What a network says of x_t: ``(*batch, *event)`` and the times t / T ``(*batch,)`` to what
        the process reads.
    process : Process
        ``GaussianNoise``, ``GammaNoise``, ``MixtureNoise``, ``AbsorbingNoise`` or ``UniformNoise``.
    event_shape, batch_shape : sequence of int
        Shapes of the distribution.
    calls : int, optional
        Calls of the network for a draw; default: all T.
    step : callable
        How draws go from one state to an earlier one: :func:`ancestral`, :func:`deterministic` or
        :func:`with_own_noise`.

    Raises
    ------
    ValueError
        If ``calls`` is not between 1 and T; from ``log_prob``, if x has missing entries (NaN) or,
        for labels, other values than 0, ..., K - 1.

    References
    ----------
    Sohl-Dickstein et al. (2015), Deep unsupervised learning using nonequilibrium thermodynamics,
    https://arxiv.org/abs/1503.03585; Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239;
    Kingma, Salimans, Poole, Ho (2021), Variational diffusion models,
    https://arxiv.org/abs/2107.00630 (evenly spread steps)

    >>> from probgen.distributions.noising.additive import GaussianNoise
    >>> from probgen.distributions.noising.schedules import linear_steps
    >>> process = GaussianNoise(linear_steps(1000))
    >>> def exact(x, t):  # of standard normal data
    ...     return process.scales((1000 * t).round().long(), x)[1] * x
    >>> distribution = NoisingChain(exact, process, (1,))
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(200000, 1)
    >>> dist.Normal(0.0, 1.0).log_prob(x).mean(), distribution.log_prob(x).mean()  # the gap is that of the step size
    (tensor(-1.4...), tensor(-1.8...))
    """

    arg_constraints: dict = {}
    has_rsample = False
    density_kind = "bound"

    def __init__(
        self,
        predict: Predict,
        process: Process,
        event_shape: Sequence[int],
        batch_shape: Sequence[int] = (),
        *,
        calls: int | None = None,
        step: Step | None = None,
    ):
        self.predict = predict
        self.process = process
        self.step = step or ancestral
        self.calls = process.steps if calls is None else calls
        if not 1 <= self.calls <= process.steps:
            raise ValueError(
                f"expected 1 to {process.steps} calls of the network for a draw, got {calls}"
            )
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.process.support(len(self.event_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        return sum(self.bound_terms(x).values())

    def bound_terms(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of ``log_prob``, by name: ``(*batch, *event) -> (*batch,)`` each.

        Of labels, the first step of the chain is the reconstruction and stands among the others.
        """
        process = self.process
        x = self._whole(x)
        t = self._steps(x, process.chances)
        x_t = _drawn(process.marginal(x, t))
        term = _divergence(process.posterior(x_t, x, t, t - 1), self.reverse(x_t, t, t - 1))
        last = process.marginal(x, torch.full_like(t, process.steps))
        prior = _divergence(last, process.prior(self.event_shape).expand(t.shape))
        terms = {"diffusion": -term / process.chances[t], "prior": -prior}
        if process.continuous:
            terms["reconstruction"] = self._reconstruction(x, torch.ones_like(t))
        return terms

    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss at one random step per row: ``(*batch, *event) -> (*batch,)``.

        The squared error of the predicted noise, summed over the entries; of labels the
        cross-entropy in nats.
        """
        x = self._whole(x)
        t = self._steps(x, even_chances(self.process.steps, x))
        x_t = _drawn(self.process.marginal(x, t))
        return self.process.loss(self.output(x_t, t), x, x_t, t)

    def reverse(self, x_t: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The distribution p(x_s | x_t) of steps s < t, integers ``(*batch,)``."""
        return self.process.reverse(x_t, self.output(x_t, t), t, s)

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network says of a state at step t."""
        return self.predict(x_t, t.to(x_t.dtype) / self.process.steps)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        lead = torch.Size(sample_shape) + self.batch_shape
        x = self.process.prior(self.event_shape).sample(lead)
        return self._descend(x, torch.full(lead, self.process.steps, device=x.device), self.calls)

    @torch.no_grad()
    def completed(self, x: Tensor, calls: int) -> Tensor:
        """Missing entries (NaN) drawn given the others in at most so many steps.

        If the process can: as ``x``.
        """
        if not isinstance(self.process, Completing):
            raise NotImplementedError(
                f"expected a process that takes missing entries (NaN) for noised ones, got "
                f"{type(self.process).__name__}; use AbsorbingNoise, or impute with a mixture, "
                "factor analysis or a VAE"
            )
        x_t, t = self.process.incomplete(x, len(self.event_shape))
        return self._descend(x_t, t, min(calls, self.process.steps))

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> NoisingChain:
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _descend(self, x: Tensor, start: Tensor, calls: int) -> Tensor:
        """From the steps ``(*batch,)`` to the data, through evenly spread states.

        The last but one of them x_1.
        """
        for left in range(calls, 0, -1):
            t, s = (_spread(start, number, calls) for number in (left, left - 1))
            x = self.step(self.process, x, self.output(x, t), t, s)
        return x

    def _reconstruction(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(x_0 | x_t) at a draw of x_t."""
        return self.reverse(_drawn(self.process.marginal(x, t)), t, torch.zeros_like(t)).log_prob(x)

    def _whole(self, x: Tensor) -> Tensor:
        """Checked x, a row of its own for each entry of the batch."""
        check_event(x, self.event_shape)
        self.process.check(x)
        lead = torch.broadcast_shapes(x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        return x.expand(lead + self.event_shape)

    def _steps(self, x: Tensor, chances: Tensor) -> Tensor:
        """A random step for each row, the steps of all rows spread evenly."""
        lead = x.shape[: x.ndim - len(self.event_shape)]
        place = torch.arange(lead.numel(), device=x.device, dtype=torch.float64) / max(
            1, lead.numel()
        )
        share = (torch.rand((), device=x.device, dtype=torch.float64) + place) % 1
        t = torch.searchsorted(chances.double().cumsum(0), share, right=True)
        return t.clamp(max=self.process.steps).reshape(lead)


Step = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]


def ancestral(process: Process, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """A draw from the model's distribution p(x_s | x_t).

    With all T steps draws follow the distribution that the bound scores.
    """
    return process.reverse(x_t, output, t, s).sample()


def deterministic(process: Any, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""The predicted datum with the predicted noise of step s; no chance but in the start.

    .. math:: x_s = \sqrt{\bar\alpha_s}\, \hat x_0 + \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}}\,
              \big(x_t - \sqrt{\bar\alpha_t}\, \hat x_0\big)

    With small steps and right predictions the marginals are kept for every noise whose distribution
    is the same at each step but for its scale (normal, mixtures): the slope is the mean one given
    x_t. Gamma noise, more symmetric the later the step, keeps them nearly. Song, Meng, Ermon
    (2021), https://arxiv.org/abs/2010.02502
    """
    _require_additive(process, "deterministic")
    x_0 = process.estimate(x_t, output, t)
    (signal, noise), (signal_s, noise_s) = process.scales(t, x_t), process.scales(s, x_t)
    return signal_s * x_0 + noise_s / noise * (x_t - signal * x_0)


def with_own_noise(process: Any, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""The mean of the posterior at the predicted datum.

    Plus noise of the process's own distribution.

    .. math:: x_s = m(x_t, \hat x_0) + \sqrt{\tilde\beta}\, \epsilon_s

    with :math:`\tilde\beta` the mean variance of the posterior, and the predicted datum itself at s
    = 0. Draws start from the model's :math:`p(x_T)`. Nachmani, Roman, Wolf (2021),
    https://arxiv.org/abs/2106.07582
    """
    _require_additive(process, "with_own_noise")
    x_0 = process.estimate(x_t, output, t)
    mean, scale = process.mean_and_scale(x_t, x_0, t, s)
    noised = mean + scale * process.noise(x_t, s.clamp(min=1)).sample()
    return torch.where((s > 0).reshape(s.shape + (1,) * (x_t.ndim - s.ndim)), noised, x_0)


@runtime_checkable
class Additive(Protocol):
    """A process that adds noise to a fading datum."""

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The predicted datum."""

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of datum and noise."""


@runtime_checkable
class Completing(Protocol):
    """A process for which a missing entry is a noised one."""

    def incomplete(self, x: Tensor, event_ndim: int) -> tuple[Tensor, Tensor]:
        """A state ``(*batch, *event)`` and its steps ``(*batch,)``, from data with NaN."""


@gibbs.register(NoisingChain)
def _(distribution: NoisingChain, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    checks.at_least(1, steps=steps)
    return distribution.completed(torch.where(mask, x, torch.nan), steps)


def _require_additive(process: Any, name: str) -> None:
    if not isinstance(process, Additive):
        raise TypeError(
            f"{name}: expected a process that adds noise, got {type(process).__name__}; draw "
            "labels by ancestral"
        )


def _spread(start: Tensor, number: int, calls: int) -> Tensor:
    """State of that number among so many between 1 and ``start``; 0 for the data."""
    if number == 0:
        return torch.zeros_like(start)
    if number == calls:
        return start
    return 1 + ((start - 1) * (number - 1)).div(calls - 1, rounding_mode="floor")


def _drawn(distribution: dist.TorchDistribution) -> Tensor:
    return distribution.rsample() if distribution.has_rsample else distribution.sample()


def _divergence(q: dist.TorchDistribution, p: dist.TorchDistribution) -> Tensor:
    """KL(q || p) in closed form, or the log-ratio of a draw."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        x = _drawn(q)
        return q.log_prob(x) - p.log_prob(x)
