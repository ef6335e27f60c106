"""A generative objective for rows together with a discriminative one for their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note, note_whole, noted_parts
from probgen.objectives.base import Objective, Prepared, distribution_of_x


@runtime_checkable
class HasLabels(Protocol):
    """A distribution of rows that classifies them."""

    def label_log_prob(self, x: Tensor) -> Tensor:
        """log p(y | x) of the labels that it was given: ``(*batch, *event) -> (*batch,)``."""


class Hybrid(Objective):
    r"""A generative objective of the marginal distribution of rows.

    Plus the cross entropy of their labels.

    .. math:: L(x) - \lambda \sum_b \log p(y_b \mid x_b)

    The labels are the context; the generative objective sees the rows without it.

    Parameters
    ----------
    generative : Objective
        L: ``ContrastiveDivergence(...)`` for a joint energy model.
    weight : float
        :math:`\lambda`.

    Raises
    ------
    TypeError
        At the call, if the distribution of x has no ``label_log_prob``.

    References
    ----------
    Grathwohl et al. (2020), https://arxiv.org/abs/1912.03263; Lasserre, Bishop, Minka (2006),
    Principled hybrids of generative and discriminative models,
    https://doi.org/10.1109/CVPR.2006.227

    >>> import torch
    >>> from probgen.models.joint_energy import JointEnergyModel
    >>> from probgen.objectives.contrastive import ContrastiveDivergence
    >>> gen = JointEnergyModel(torch.nn.Linear(2, 3), (2,))
    >>> loss = Hybrid(ContrastiveDivergence(5))(gen.model, gen.guide)(torch.zeros(4, 2), torch.ones(4))
    >>> loss.shape
    torch.Size([])
    """

    descends = False

    def __init__(self, generative: Objective, weight: float = 1.0):
        checks.instance(Objective, generative=generative)
        checks.not_negative(weight=weight)
        super().__init__()
        self.generative = generative
        self.weight = weight
        self.weighs_rows = generative.weighs_rows
        self.ignores_constants = generative.ignores_constants

    def prepare(self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> None:
        """Prepares the generative objective."""
        if isinstance(self.generative, Prepared):
            self.generative.prepare(model, guide, *batch[:1])

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(
            model, guide, batch, HasLabels, self, "use the generative objective alone"
        )
        labels = scale_and_mask(
            site["fn"].label_log_prob(site["value"]), site["scale"], site["mask"]
        )
        with noted_parts() as parts:
            generative = self.generative.differentiable_loss(model, guide, batch[0])
        note_whole("generative", generative, parts)
        discriminative = labels.sum()
        note("discriminative", -discriminative, self.weight)
        return generative - self.weight * discriminative
