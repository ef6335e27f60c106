"""The process of a diffusion: how data turn into noise, and how a prediction leads back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.contexts import known_rows
from probgen.core.missing import has_missing, values_are_known
from probgen.distributions.guidance.rule import Rule, prediction_of
from probgen.samplers.reverse import Grid

NoiseNetwork = Callable[..., Tensor]


class Process(Protocol):
    r"""Data that turn into noise from time 0 to time 1, all distributions in closed form.

    .. math:: q(z_t \mid x), \qquad q(z_s \mid z_t, x), \qquad p(z_1), \qquad p(z_s \mid z_t),
              \qquad 0 \le s < t \le 1

    The last one is the model's: it is made of what a network predicts at :math:`z_t`. Times are
    0-dim or ``(*batch,)``, states and data ``(*batch, *event)``. In discrete time they are
    multiples of 1 / T.

    Attributes
    ----------
    num_times : int or None
        Number T of times at which a chain calls the network, 1 / T, ..., 1; ``None``: continuous
        time.
    continuous : bool
        Whether states are real numbers: a :class:`RealProcess`.
    """

    @property
    def num_times(self) -> int | None: ...

    @property
    def continuous(self) -> bool: ...

    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        """The forward kernel q(z_t | x)."""

    def posterior(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The posterior q(z_s | z_t, x)."""

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        """The noise p(z_1) that the model starts from, events of the shape of a tensor."""

    def inputs(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown of a state and of its time."""

    def reverse(self, z: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The model's p(z_s | z_t), given the prediction of the network."""

    def path(self, times: Callable, num_steps: int, like: Tensor) -> Grid:
        """The times, from 1 to 0, that a sampler visits, with their levels of signal and noise."""


class RealProcess(Process, Protocol):
    """A process of real numbers, which solvers of differential equations can lead back.

    Attributes
    ----------
    start : float
        Log signal-to-noise ratio from which deterministic samplers start, where the schedule's lies
        below.
    """

    start: float

    def estimate(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The expected data, given the prediction of the network."""

    def noise(self, z: Tensor, t: Tensor) -> Tensor:
        """Noise of mean 0 and variance 1, distributed as that in the state at a time."""

    def original(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The expected data that an output tells, without bounds."""

    def retold(self, z: Tensor, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """An output that tells other expected data x, and all else that it told."""

    def shifted(self, z: Tensor, output: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        """The output that tells a score larger by a slope, if the noise is Gaussian."""

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """The ratio of noise to signal at a time."""


class DiscreteProcess(Process, Protocol):
    """A process in discrete time, whose state at time 0 are the data themselves.

    Attributes
    ----------
    time_probabilities : Tensor
        Probabilities of the times 0, 1 / T, ..., 1 at which the bound is estimated, ``(T + 1,)``.
    """

    time_probabilities: Tensor

    def loss(self, output: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The simple loss of a prediction, one number a row."""

    def support(self, event_ndim: int) -> constraints.Constraint:
        """Where data lie."""

    def check(self, x: Tensor) -> None:
        """Raises ``ValueError`` for data that the process cannot take."""


@dataclass(frozen=True)
class DiffusionPredictor:
    """The network of a diffusion, asked for states of its process and any context.

    Attributes
    ----------
    net : callable
        ``net(inputs, time)`` and, given a context, ``net(inputs, time, context)``.
    process : Process
        What it leads back.
    event_ndim, context_ndim : int
        Number of event dims of a state, and of a context.
    """

    net: NoiseNetwork
    process: Any  # a Process, with more where it is a RealProcess or a DiscreteProcess
    event_ndim: int
    context_ndim: int

    @property
    def terms(self) -> Any:
        """What the network predicts."""
        return self.process.prediction if self.process.continuous else self.process.levels

    def __call__(self, z: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """What the network predicts at a state; without a context, as where it was dropped."""
        inputs, time = self.process.inputs(z, t)
        time = time.expand(z.shape[: z.ndim - self.event_ndim])
        if context is None:
            return self.net(inputs, time)
        return self.net(inputs, time, context)

    def original(self, z: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The expected data that a prediction tells."""
        return self._real().original(z, prediction, t)

    def retold(self, z: Tensor, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """A prediction with other expected data."""
        return self._real().retold(z, prediction, x, t)

    def shifted(self, z: Tensor, prediction: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        """The prediction whose score is larger by a slope."""
        return self._real().shifted(z, prediction, slope, t)

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """The ratio of noise to signal at a time."""
        return self._real().noise_to_signal(t)

    def _real(self) -> Any:
        if not self.process.continuous:
            raise TypeError(
                "expected a diffusion of real data for a rule that reads the expected data, their "
                f"score or the ratio of noise to signal, got {type(self.process).__name__}; guide "
                "labels by ClassifierFree, Interval of times, CADS, Negative or Autoguidance"
            )
        return self.process


@dataclass(frozen=True)
class Denoiser:
    """A network and the process that it leads back: what bounds and samplers ask.

    Attributes
    ----------
    net : callable
        ``net(inputs, time)`` and, given a context, ``net(inputs, time, context)``.
    process : Process
        Its distributions.
    event_ndim : int
        Number of event dims.
    context : optional
        What the network is given.
    context_ndim : int
        Number of event dims of a context.
    guidance : Rule, optional
        What is said in place of the network's prediction.
    """

    net: NoiseNetwork
    process: Any  # a Process, with more where it is a RealProcess or a DiscreteProcess
    event_ndim: int
    context: Any = None
    context_ndim: int = 1
    guidance: Rule | None = None

    @property
    def predictor(self) -> DiffusionPredictor:
        """The network alone, as rules are shown it."""
        return DiffusionPredictor(self.net, self.process, self.event_ndim, self.context_ndim)

    def guided(self, rule: Rule | None) -> Denoiser:
        """The same network, guided by a rule."""
        return replace(self, guidance=rule)

    @property
    def known(self) -> Tensor:
        """Of which rows the network is shown the context: ``(*batch,)``, or () for all."""
        return known_rows(self.context, self.context_ndim)

    def predict(self, z: Tensor, t: Tensor) -> Tensor:
        """The prediction at a state: every bound and every sampler asks here."""
        if self.guidance is None:
            return self.predictor(z, t, self.context)
        return prediction_of(self.guidance, self.predictor, z, t, self.context)

    def denoise(self, z: Tensor, t: Tensor) -> Tensor:
        """The expected data, of a process of real numbers."""
        return self.process.estimate(z, self.predict(z, t), t)

    def reverse(self, z: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The model's p(z_s | z_t) for times s < t."""
        return self.process.reverse(z, self.predict(z, t), t, s)


def at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Entries of a table ``(T + 1,)`` of the times 0, 1 / T, ..., 1, with as many dims as ``x``.

    >>> at(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.5]), torch.zeros(2, 4, 4)).shape
    torch.Size([2, 1, 1])
    """
    return wide(table[(t * (len(table) - 1)).round().long()], x)


def wide(value: Tensor, x: Tensor) -> Tensor:
    """A value of each row with as many dims as ``x``.

    >>> wide(torch.zeros(2), torch.zeros(2, 4, 4)).shape
    torch.Size([2, 1, 1])
    """
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def independent(distribution: dist.TorchDistribution, batch_ndim: int) -> dist.TorchDistribution:
    """The distribution with all but the first dims made event dims."""
    return distribution.to_event(len(distribution.batch_shape) - batch_ndim)


def normal(mean: Tensor, scale: Tensor, batch_ndim: int) -> dist.TorchDistribution:
    """Independent normal variables, all but the first dims made event dims."""
    return independent(dist.Normal(mean, scale, validate_args=False), batch_ndim)


def refuse_missing(x: Tensor) -> None:
    """Raises ``ValueError`` if an entry is NaN; in a recorded graph NaN gives NaN."""
    if values_are_known() and has_missing(x):
        raise ValueError(
            "expected complete events, got NaN (missing): the bound of a diffusion does not "
            "integrate them out; draw them by probgen.impute(gen, x), which Diffusion and "
            "AbsorbingNoise can, or fit a family that does (a mixture, factor analysis, a VAE)"
        )


def table_path(
    times: Callable, num_steps: int, num_times: int, schedule: Any, like: Tensor
) -> Tensor:
    r"""Times from 1 to 0 in steps of 1 / T at most ``num_steps`` calls of the network apart.

    The sampler's own times lie between the noisiest state and the least noisy one, at 1 / T, from
    which the last step leads to the data.

    >>> from probgen.distributions.diffusion.times import uniform_steps
    >>> 10 * table_path(uniform_steps, 4, 10, None, torch.zeros(()))
    tensor([10.,  7.,  4.,  1.,  0.])
    """
    if not 1 <= num_steps <= num_times:
        raise ValueError(
            f"expected 1 to {num_times} steps, the times of the process, got num_steps={num_steps}"
        )
    one = torch.ones(1, dtype=torch.float64, device=like.device)
    if num_steps == 1:
        return torch.cat((one, 0 * one)).to(like)
    places = times(num_steps - 1, schedule, one[0])
    numbers = 1 + ((num_times - 1) * places + 1e-9).floor()  # rounding never takes a time away
    return torch.cat((torch.unique_consecutive(numbers) / num_times, 0 * one)).to(like)
