"""Chains of labels that are masked, or replaced at random, until nothing of the data is left."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from probgen.core import checks
from probgen.core.missing import values_are_known
from probgen.distributions.noising.additive import at, independent, refuse_missing
from probgen.distributions.noising.schedules import Shares, alphas_bar, even_chances
from probgen.heads import distributions

TINY = 1e-30


class Labels(distributions.Categorical):
    """Categorical distribution of float labels from masses ``(*batch, levels)`` that may be zero.

    >>> Labels(torch.tensor([0.0, 1.0])).log_prob(torch.tensor([0.0, 1.0]))
    tensor([-inf, 0.])
    """

    def __init__(self, masses: Tensor):
        known = masses.clamp(min=TINY).log()  # no infinite gradient at a mass of zero
        super().__init__(torch.where(masses > 0, known, -math.inf), validate_args=False)

    def expand(
        self, batch_shape: torch.Size, _instance: object = None
    ) -> distributions.Categorical:
        new = self.__new__(Labels)
        distributions.Categorical.__init__(
            new, self.logits.expand(*batch_shape, -1), validate_args=False
        )
        return new


@register_kl(Labels, Labels)
def _kl_of_labels(q: Labels, p: Labels) -> Tensor:
    """Nats; impossible labels of q cost nothing, whatever p says of them."""
    log_q, log_p = torch.broadcast_tensors(q.logits, p.logits)
    possible = log_q > -math.inf
    gap = torch.where(possible, log_q, 0.0) - torch.where(possible, log_p, 0.0)
    return (log_q.exp() * gap).sum(-1)


class LabelNoise(nn.Module, ABC):
    r"""A chain from data to noise in which labels 0., ....

    K - 1 are left alone with probability :math:`\bar\alpha_t`.

    Entries change independently. The output of a network, called with x_t and the time t / T, is
    the logits of :math:`\tilde p(x_0 \mid x_t)` of every entry, ``(*batch, *event, K)``; the
    model's distribution is the mixture of posteriors

    .. math:: p(x_s \mid x_t) = \sum_{j} \tilde p(x_0 = j \mid x_t)\, q(x_s \mid x_t, x_0 = j)

    which is exact for each entry if the prediction is, at s = 0 the prediction itself. Steps t and
    s < t are integers ``(*batch,)``.

    Parameters
    ----------
    levels : int
        Number K of labels.
    schedule : sequence of float or Tensor
        :math:`1 > \bar\alpha_1 > \dots > \bar\alpha_T \ge 0`, shape ``(T,)``, or
        :math:`\beta_t` that rise.

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
    chances: Tensor

    def __init__(self, levels: int, schedule: Shares):
        checks.at_least(2, "a single level leaves nothing to model", levels=levels)
        super().__init__()
        schedule = alphas_bar(schedule)
        signal = torch.cat((schedule.new_ones(1), schedule)).to(torch.get_default_dtype())
        self.register_buffer("signal", signal)
        self.register_buffer("chances", even_chances(len(schedule), signal))
        self.levels = levels
        self.steps = len(schedule)

    @property
    @abstractmethod
    def states(self) -> int:
        """How many values the noised labels have."""

    @abstractmethod
    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        """The distribution of x_t given the datum.

        ``(*batch, *event)``, ``(*batch,)`` to events of that shape.
        """

    @abstractmethod
    def mixed(self, x_t: Tensor, masses: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """Posteriors of x_s mixed by masses of the datum, ``(*batch, *event, K)``."""

    @abstractmethod
    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        """The distribution of x_T, events of that shape."""

    @abstractmethod
    def counted(self, x_t: Tensor) -> Tensor:
        """Which entries the simple loss counts."""

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The distribution of x_s given x_t and the datum."""
        return self.mixed(x_t, one_hot(x_0, self.levels), t, s)

    def reverse(self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The model's distribution of x_s given x_t and logits of the datum."""
        return self.mixed(x_t, output.softmax(-1), t, s)

    def loss(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        r"""The cross-entropy :math:`-\sum \log \tilde p(x_0 \mid x_t)` of entries that are noised.

        One number a row.
        """
        log_masses = output.log_softmax(-1).take_along_dim(x_0.long().unsqueeze(-1), -1).squeeze(-1)
        losses = torch.where(self.counted(x_t), -log_masses, 0.0)
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


class UniformNoise(LabelNoise):
    r"""Labels replaced by uniform ones.

    .. math:: q(x_t = j \mid x_0) = \bar\alpha_t [j = x_0] + \frac{1 - \bar\alpha_t}{K}, \qquad p(x_T = j) = \frac1K

    Every label that a network sees may be wrong, and may still be changed.

    Parameters
    ----------
    levels, schedule
        As in :class:`LabelNoise`.

    References
    ----------
    Hoogeboom, Nielsen, Jaini, Forré, Welling (2021), Argmax flows and multinomial diffusion,
    https://arxiv.org/abs/2102.05379

    >>> from probgen.distributions.noising.schedules import cosine_steps
    >>> UniformNoise(4, cosine_steps(10)).marginal(torch.tensor([2.0]), torch.tensor(5)).base_dist.probs
    tensor([[0.1265, 0.1265, 0.6204, 0.1265]])
    """

    @property
    def states(self) -> int:
        return self.levels

    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        return independent(
            Labels(self._spread(one_hot(x_0, self.levels), at(self.signal, t, x_0))), t.ndim
        )

    def mixed(self, x_t: Tensor, masses: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        signal = at(self.signal, t, x_t)
        signal_s = at(self.signal, s, x_t)
        seen = one_hot(x_t, self.levels)
        weights = masses / self._spread(seen, signal)
        before = signal_s.unsqueeze(-1) * weights
        before = before + ((1 - signal_s) / self.levels).unsqueeze(-1) * weights.sum(
            -1, keepdim=True
        )
        joint = self._spread(seen, signal / signal_s) * before
        return independent(Labels(joint / joint.sum(-1, keepdim=True)), t.ndim)

    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        return independent(Labels(self.signal.new_full((*shape, self.levels), 1 / self.levels)), 0)

    def counted(self, x_t: Tensor) -> Tensor:
        return torch.ones_like(x_t, dtype=torch.bool)

    def _spread(self, indicators: Tensor, kept: Tensor) -> Tensor:
        return kept.unsqueeze(-1) * indicators + ((1 - kept) / self.levels).unsqueeze(-1)


class AbsorbingNoise(LabelNoise):
    r"""Labels masked one after the other: the value K stands for a masked label.

    .. math:: q(x_t \mid x_0) = \bar\alpha_t [x_t = x_0] + (1 - \bar\alpha_t) [x_t = K], \qquad \bar\alpha_T = 0

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
    schedule : sequence of float or Tensor
        :math:`1 > \bar\alpha_1 > \dots > \bar\alpha_T = 0`, as
        :func:`even_steps <probgen.distributions.noising.schedules.even_steps>` gives them, or
        :math:`\beta_t` that rise to 1.

    Raises
    ------
    ValueError
        If signal is left at the last step.

    References
    ----------
    Austin et al. (2021), https://arxiv.org/abs/2107.03006; Hoogeboom et al. (2022), Autoregressive
    diffusion models, https://arxiv.org/abs/2110.02037 (the bound as that of autoregressive models
    over random orders)

    >>> from probgen.distributions.noising.schedules import even_steps
    >>> AbsorbingNoise(2, even_steps(10)).marginal(torch.tensor([1.0]), torch.tensor(4)).base_dist.probs
    tensor([[0.0000, 0.6000, 0.4000]])
    """

    def __init__(self, levels: int, schedule: Shares):
        super().__init__(levels, schedule)
        if self.signal[-1] != 0:
            raise ValueError(
                f"expected a schedule that ends at 0, got {self.signal[-1].item():g}: labels left "
                "at the last step "
                "would have no mass under its distribution; take even_steps(T)"
            )

    @property
    def states(self) -> int:
        return self.levels + 1

    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        return independent(self._masked(one_hot(x_0, self.levels), at(self.signal, t, x_0)), t.ndim)

    def mixed(self, x_t: Tensor, masses: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        signal = at(self.signal, t, x_t)
        signal_s = at(self.signal, s, x_t)
        revealed = ((signal_s - signal) / (1 - signal).clamp(min=TINY)).expand(x_t.shape)
        masked = x_t == self.levels
        masses = torch.where(masked.unsqueeze(-1), masses, one_hot(x_t, self.levels))
        return independent(self._masked(masses, torch.where(masked, revealed, 1.0)), t.ndim)

    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        return independent(
            self._masked(self.signal.new_zeros(*shape, self.levels), self.signal.new_zeros(shape)),
            0,
        )

    def counted(self, x_t: Tensor) -> Tensor:
        return x_t == self.levels

    def incomplete(self, x: Tensor, event_ndim: int) -> tuple[Tensor, Tensor]:
        """Missing entries (NaN) masked.

        And the steps ``(*batch,)`` at which as large a share is masked.
        """
        missing = x.isnan()
        share = (
            missing.flatten(-event_ndim).to(x.dtype).mean(-1) if event_ndim else missing.to(x.dtype)
        )
        t = torch.searchsorted(1 - self.signal, share.contiguous())
        return torch.where(missing, float(self.levels), x), t.clamp(min=1, max=self.steps)

    def _masked(self, masses: Tensor, kept: Tensor) -> Labels:
        kept = kept.unsqueeze(-1).expand(*masses.shape[:-1], 1)
        return Labels(torch.cat((kept * masses, 1 - kept), -1))


def one_hot(x: Tensor, levels: int) -> Tensor:
    """Indicators ``(*shape, levels)`` of float labels; zeros for other values.

    >>> one_hot(torch.tensor([1.0, 2.0]), 2)
    tensor([[0., 1.],
            [0., 0.]])
    """
    return (x.unsqueeze(-1) == torch.arange(levels, device=x.device)).to(x.dtype)
