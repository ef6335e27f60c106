"""Chains of labels that are masked, or replaced at random, until nothing of the data is left."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.missing import values_are_known
from probgen.distributions.diffusion.process import at, independent, refuse_missing, table_path
from probgen.distributions.diffusion.tables import Shares, signal_shares, uniform_probabilities
from probgen.distributions.diffusion.times import NoiseSchedule
from probgen.heads import distributions
from probgen.samplers.reverse import Grid

TINY = 1e-30


class LabelDistribution(distributions.Categorical):
    """Categorical distribution of float labels from masses ``(*batch, levels)`` that may be zero.

    >>> LabelDistribution(torch.tensor([0.0, 1.0])).log_prob(torch.tensor([0.0, 1.0]))
    tensor([-inf, 0.])
    """

    def __init__(self, masses: Tensor):
        known = masses.clamp(min=TINY).log()  # no infinite gradient at a mass of zero
        super().__init__(torch.where(masses > 0, known, -math.inf), validate_args=False)

    def expand(
        self, batch_shape: Sequence[int], _instance: object = None
    ) -> distributions.Categorical:
        new = self.__new__(LabelDistribution)
        distributions.Categorical.__init__(
            new, self.logits.expand(*batch_shape, -1), validate_args=False
        )
        return new


@register_kl(LabelDistribution, LabelDistribution)
def _kl_of_labels(q: LabelDistribution, p: LabelDistribution) -> Tensor:
    """Nats; impossible labels of q cost nothing, whatever p says of them."""
    log_q, log_p = torch.broadcast_tensors(q.logits, p.logits)
    possible = log_q > -math.inf
    gap = torch.where(possible, log_q, 0.0) - torch.where(possible, log_p, 0.0)
    return (log_q.exp() * gap).sum(-1)


class LabelNoise(Recorded, nn.Module, ABC):
    r"""Labels 0., ..., K - 1 of which the share :math:`\bar\alpha_t = \alpha_t^2` is left alone.

    Entries change independently, at the times 1 / T, ..., 1; time 0 is the datum itself. The output
    of a network, called with :math:`z_t` and t, is the logits of :math:`\tilde p(x \mid z_t)` of
    every entry, ``(*batch, *event, K)``; the model's distribution is the mixture of posteriors

    .. math:: p(z_s \mid z_t) = \sum_{j} \tilde p(x = j \mid z_t)\, q(z_s \mid z_t, x = j)

    which is exact for each entry if the prediction is, at s = 0 the prediction itself.

    Parameters
    ----------
    levels : int
        Number K of labels.
    schedule : Schedule, or sequence of float or Tensor
        A schedule that keeps the variance, as :class:`CosineSchedule
        <probgen.distributions.diffusion.schedules.CosineSchedule>`; or the numbers :math:`1 >
        \bar\alpha_1 > \dots > \bar\alpha_T \ge 0`, or :math:`\beta_t` that rise, shape ``(T,)``.
    num_times : int, optional
        The number T of times; with numbers, what they say.

    Raises
    ------
    ValueError
        If there are less than 2 levels, or the schedule does not fall within [0, 1).

    References
    ----------
    Austin, Johnson, Ho, Tarlow, van den Berg (2021), Structured denoising diffusion models in
    discrete state-spaces, https://arxiv.org/abs/2107.03006
    """

    continuous = False
    signal: Tensor
    time_probabilities: Tensor

    def __init__(self, levels: int, schedule: NoiseSchedule | Shares, num_times: int | None = None):
        checks.at_least(2, "a single level leaves nothing to model", levels=levels)
        super().__init__()
        left = signal_shares(schedule, num_times)
        signal = torch.cat((left.new_ones(1), left)).to(torch.get_default_dtype())
        self.register_buffer("signal", signal)
        self.register_buffer("time_probabilities", uniform_probabilities(len(left), signal))
        self.levels = levels
        self.num_times = len(left)

    @property
    @abstractmethod
    def states(self) -> int:
        """How many values the noised labels have."""

    @abstractmethod
    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        """The distribution of z_t given the datum.

        ``(*batch, *event)``, ``(*batch,)`` to events of that shape.
        """

    @abstractmethod
    def mixed(self, z: Tensor, masses: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """Posteriors of z_s mixed by masses of the datum, ``(*batch, *event, K)``."""

    @abstractmethod
    def prior(self, like: Tensor) -> dist.TorchDistribution:
        """The distribution of z_1, events of the shape of a tensor."""

    @abstractmethod
    def counted(self, z: Tensor) -> Tensor:
        """Which entries the simple loss counts."""

    def posterior(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The distribution of z_s given z_t and the datum."""
        return self.mixed(z, one_hot(x, self.levels), t, s)

    def reverse(self, z: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The model's distribution of z_s given z_t and logits of the datum."""
        return self.mixed(z, output.softmax(-1), t, s)

    def inputs(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return z, t.to(z.dtype)

    def path(self, times: Callable, num_steps: int, like: Tensor) -> Grid:
        path = table_path(times, num_steps, self.num_times, _NoRatio(), like)
        signal = at(self.signal, path, path)
        return Grid(path, signal.sqrt(), (1 - signal).sqrt())

    def loss(self, output: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        r"""The cross-entropy :math:`-\sum \log \tilde p(x \mid z_t)` of entries that are noised.

        One number a row.
        """
        log_masses = output.log_softmax(-1).take_along_dim(x.long().unsqueeze(-1), -1).squeeze(-1)
        losses = torch.where(self.counted(z), -log_masses, 0.0)
        return losses.flatten(t.ndim).sum(-1) if losses.ndim > t.ndim else losses

    def support(self, event_ndim: int) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), event_ndim)

    def check(self, x: Tensor) -> None:
        """Refuses missing entries, and what is no label."""
        refuse_missing(x)
        if values_are_known() and not self.support(0).check(x).all():
            raise ValueError(
                f"expected labels 0, 1, ..., {self.levels - 1}, got {x.min().item():g} to "
                f"{x.max().item():g}; recode "
                "x, or raise levels"
            )


class _NoRatio:
    """What times of samplers find that ask labels for their ratio of signal to noise."""

    def log_snr(self, t: Tensor) -> Tensor:
        raise TypeError(
            "expected times that do not depend on the ratio of signal to noise, which labels have "
            "not; take times=uniform_steps or quadratic_steps"
        )


class UniformNoise(LabelNoise):
    r"""Labels replaced by uniform ones.

    .. math:: q(z_t = j \mid x) = \bar\alpha_t [j = x] + \frac{1 - \bar\alpha_t}{K}, \qquad p(z_1 = j) = \frac1K

    Every label that a network sees may be wrong, and may still be changed.

    Parameters
    ----------
    levels, schedule, num_times
        As in :class:`LabelNoise`.

    References
    ----------
    Hoogeboom, Nielsen, Jaini, Forré, Welling (2021), Argmax flows and multinomial diffusion,
    https://arxiv.org/abs/2102.05379

    >>> from probgen.distributions.diffusion.schedules import CosineSchedule
    >>> process = UniformNoise(4, CosineSchedule(), num_times=10)
    >>> process.marginal(torch.tensor([2.0]), torch.tensor(0.5)).base_dist.probs
    tensor([[0.1250, 0.1250, 0.6250, 0.1250]])
    """

    @property
    def states(self) -> int:
        return self.levels

    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        return independent(
            LabelDistribution(self._spread(one_hot(x, self.levels), at(self.signal, t, x))), t.ndim
        )

    def mixed(self, z: Tensor, masses: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        signal = at(self.signal, t, z)
        signal_s = at(self.signal, s, z)
        seen = one_hot(z, self.levels)
        weights = masses / self._spread(seen, signal)
        before = signal_s.unsqueeze(-1) * weights
        before = before + ((1 - signal_s) / self.levels).unsqueeze(-1) * weights.sum(
            -1, keepdim=True
        )
        joint = self._spread(seen, signal / signal_s) * before
        return independent(LabelDistribution(joint / joint.sum(-1, keepdim=True)), t.ndim)

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        masses = like.new_full((*like.shape, self.levels), 1 / self.levels)
        return independent(LabelDistribution(masses), 0)

    def counted(self, z: Tensor) -> Tensor:
        return torch.ones_like(z, dtype=torch.bool)

    def _spread(self, indicators: Tensor, kept: Tensor) -> Tensor:
        return kept.unsqueeze(-1) * indicators + ((1 - kept) / self.levels).unsqueeze(-1)


class AbsorbingNoise(LabelNoise):
    r"""Labels masked one after the other: the value K stands for a masked label.

    .. math:: q(z_t \mid x) = \bar\alpha_t [z_t = x] + (1 - \bar\alpha_t) [z_t = K], \qquad \bar\alpha_1 = 0

    Backwards masked labels are revealed, each once, and no revealed label changes. The bound is a
    weighted cross-entropy of masked labels, that of autoregressive models over random orders.
    Missing entries are labels not revealed yet: :func:`probgen.impute` starts where as large a
    share is masked as is missing, and reveals them. Completions are *heuristic*: draws from the
    distribution of the missing entries as far as the network's predictions given any set of entries
    are conditionals of one distribution.

    Parameters
    ----------
    levels : int
        Number K of labels.
    schedule : Schedule, or sequence of float or Tensor
        One that ends without signal: :class:`EvenSchedule
        <probgen.distributions.diffusion.schedules.EvenSchedule>`, or numbers that fall to 0, or
        :math:`\beta_t` that rise to 1.
    num_times : int, optional
        The number T of times; with numbers, what they say.

    Raises
    ------
    ValueError
        If signal is left at the last step.

    References
    ----------
    Austin et al. (2021), https://arxiv.org/abs/2107.03006; Hoogeboom et al. (2022), Autoregressive
    diffusion models, https://arxiv.org/abs/2110.02037 (the bound as that of autoregressive models
    over random orders)

    >>> from probgen.distributions.diffusion.schedules import EvenSchedule
    >>> process = AbsorbingNoise(2, EvenSchedule(), num_times=10)
    >>> process.marginal(torch.tensor([1.0]), torch.tensor(0.4)).base_dist.probs
    tensor([[0.0000, 0.6000, 0.4000]])
    """

    def __init__(self, levels: int, schedule: NoiseSchedule | Shares, num_times: int | None = None):
        super().__init__(levels, schedule, num_times)
        if self.signal[-1] != 0:
            raise ValueError(
                f"expected a schedule that ends at 0, got {self.signal[-1].item():g}: labels left "
                "at the last time would have no mass under its distribution; take EvenSchedule()"
            )

    @property
    def states(self) -> int:
        return self.levels + 1

    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        return independent(self._masked(one_hot(x, self.levels), at(self.signal, t, x)), t.ndim)

    def mixed(self, z: Tensor, masses: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        signal = at(self.signal, t, z)
        signal_s = at(self.signal, s, z)
        revealed = ((signal_s - signal) / (1 - signal).clamp(min=TINY)).expand(z.shape)
        masked = z == self.levels
        masses = torch.where(masked.unsqueeze(-1), masses, one_hot(z, self.levels))
        return independent(self._masked(masses, torch.where(masked, revealed, 1.0)), t.ndim)

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        return independent(
            self._masked(like.new_zeros(*like.shape, self.levels), torch.zeros_like(like)), 0
        )

    def counted(self, z: Tensor) -> Tensor:
        return z == self.levels

    def incomplete(self, x: Tensor, event_ndim: int) -> tuple[Tensor, Tensor]:
        """Missing entries (NaN) masked.

        And the numbers of the times ``(*batch,)`` at which as large a share is masked.
        """
        missing = x.isnan()
        share = (
            missing.flatten(-event_ndim).to(x.dtype).mean(-1) if event_ndim else missing.to(x.dtype)
        )
        t = torch.searchsorted(1 - self.signal, share.contiguous()).clamp(1, self.num_times)
        return torch.where(missing, float(self.levels), x), t

    def _masked(self, masses: Tensor, kept: Tensor) -> LabelDistribution:
        kept = kept.unsqueeze(-1).expand(*masses.shape[:-1], 1)
        return LabelDistribution(torch.cat((kept * masses, 1 - kept), -1))


def one_hot(x: Tensor, levels: int) -> Tensor:
    """Indicators ``(*shape, levels)`` of float labels; zeros for other values.

    >>> one_hot(torch.tensor([1.0, 2.0]), 2)
    tensor([[0., 1.],
            [0., 0.]])
    """
    return (x.unsqueeze(-1) == torch.arange(levels, device=x.device)).to(x.dtype)
