"""A head for labels that have an order."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad, softplus

from probgen.core import checks
from probgen.heads import distributions
from probgen.heads.base import Head

LARGEST = 40.0  # a threshold in place of infinity: its sigmoid is one in double precision


class Ordinal(Head):
    r"""Independent labels 0, 1, ..., L - 1 that have an order: cumulative logits.

    .. math:: p(x_d \le l) = \sigma(c_l - r_d), \qquad c_0 < c_1 < \dots < c_{L-2}

    The network gives one location r per variable; the thresholds c are parameters of the head,
    shared by all rows and by all variables of the head (proportional odds). So a label costs one
    raw value instead of the L of :class:`Categorical`, and a large r means high labels. At first
    all labels are equally likely where r = 0.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    levels : int
        Number L of labels.

    References
    ----------
    McCullagh (1980), Regression models for ordinal data,
    https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    >>> import torch
    >>> head = Ordinal(levels=4)
    >>> head(torch.zeros(1)).log_prob(torch.tensor([3.0])).exp()
    tensor(0.2500, grad_fn=<ExpBackward0>)
    >>> head.thresholds
    tensor([-1.0986,  0.0000,  1.0986], grad_fn=<CumsumBackward0>)
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        levels: int,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.at_least(2, "a single label leaves nothing to model", levels=levels)
        super().__init__(net, ("location",), event_ndim, context_ndim)
        self.levels = levels
        even = (torch.arange(1.0, levels) / levels).logit()
        self.first = nn.Parameter(even[:1].clone())
        self.gaps = nn.Parameter(even.diff().expm1().log())  # before softplus

    @property
    def thresholds(self) -> Tensor:
        """The thresholds in their order, ``(L - 1,)``."""
        return torch.cat((self.first, softplus(self.gaps))).cumsum(0)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        return distributions.Categorical(self._log_masses(raw.squeeze(0)))

    def _log_masses(self, location: Tensor) -> Tensor:
        r"""Log masses of the labels, ``(*batch, L)``.

        :math:`\sigma(a) - \sigma(b) = \sigma(a)\, \sigma(-b)\, (1 - e^{b - a})`, which does not
        cancel.
        """
        ends = self.thresholds - location.unsqueeze(-1)
        below = pad(logsigmoid(ends), (0, 1))
        above = pad(logsigmoid(-ends), (1, 0))
        between = pad((-torch.expm1(-softplus(self.gaps))).log(), (1, 1))
        return below + above + between
