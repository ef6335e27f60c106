"""The distribution of rows and labels that a classifier's logits give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.given_labels import check_classes
from probgen.distributions.energy.continuous import EnergyDistribution, TransitionKernel
from probgen.distributions.gibbs import gibbs


class LabeledEnergy(EnergyDistribution):
    r"""Rows of a joint distribution with labels.

    :math:`p(x, y) \propto e^{f_y(x)}`, or its marginal where y is not known.

    ``log_prob`` is :math:`f_y(x)`, of the marginal :math:`\log \sum_y e^{f_y(x)}`; both lack the
    constant log Z of the joint distribution, and as a distribution of x given y the first one lacks
    log p(y), too.

    Parameters
    ----------
    logits : callable
        f, ``(*lead, *event) -> (*lead, K)``.
    label : Tensor or None
        y: ``(*batch,)`` numbers 0, ..., K - 1, NaN = not known; ``None``: none is.
    start, kernel, num_steps, options
        As in :class:`EnergyDistribution`.

    >>> from probgen.samplers.hmc import MALA
    >>> start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> distribution = LabeledEnergy(lambda x: x, torch.tensor([1.0]), start, MALA(0.5), 20)
    >>> distribution.log_prob(torch.tensor([[2.0, 3.0]])), distribution.label_log_prob(torch.tensor([[2.0, 2.0]])).exp()
    (tensor([3.]), tensor([0.5000]))
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        label: Tensor | None,
        start: dist.TorchDistribution,
        kernel: TransitionKernel,
        num_steps: int,
        **options: Any,
    ):
        def energy(x: Tensor) -> Tensor:
            values = logits(x)
            return (
                -values.logsumexp(-1)
                if label is None
                else -_chosen(values, label, values.logsumexp(-1))
            )

        self.logits = logits
        self.label = label
        batch = torch.Size() if label is None else label.shape
        super().__init__(energy, start, kernel, num_steps, batch_shape=batch, **options)

    def label_log_prob(self, x: Tensor) -> Tensor:
        """log p(y | x) of the labels, 0 where they are not known: ``(*batch, *event) -> (*batch,)``."""
        if self.label is None:
            raise ValueError(
                "expected labels as the context of the rows, got None; pass (x, labels)"
            )
        values = self.logits(x).log_softmax(-1)
        return _chosen(values, self.label, torch.zeros_like(values[..., 0]))


def _chosen(values: Tensor, label: Tensor, otherwise: Tensor) -> Tensor:
    """The values ``(*lead, K)`` of labels ``(*batch,)``, something else where these are NaN.

    ``(*lead,)``.
    """
    check_classes(label, values.shape[-1])
    label = label.expand(torch.broadcast_shapes(values.shape[:-1], label.shape))
    index = label.nan_to_num().long().unsqueeze(-1)
    return torch.where(
        label.isnan(), otherwise, values.expand(*label.shape, -1).gather(-1, index).squeeze(-1)
    )


@gibbs.register(LabeledEnergy)
def _(distribution: LabeledEnergy, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return distribution.completed(torch.where(mask, x, torch.nan), num_steps)
