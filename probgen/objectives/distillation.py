"""Distillation: a student learns the conditional distributions of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from probgen.core import checks
from probgen.objectives.base import Objective, contexts_beside, distribution_of_x
from probgen.objectives.parts import held_teacher

BY_DRAWS = (
    "learn from its draws instead: fit(student, probgen.train.Pairs(lambda n: "
    "(probgen.sample(teacher, n),)))"
)
BY_DRAWS_GIVEN = (
    "learn from its draws instead: x = probgen.sample(teacher, 1, context)[0], then fit(student, "
    "(x, context))"
)


@runtime_checkable
class HasConditionals(Protocol):
    """A distribution that is a product of conditionals in an order."""

    def divergence_terms(self, other: Any, x: Tensor) -> Tensor:
        """Divergence of every conditional from that of another distribution, along events.

        ``(*batch, *event) -> (*batch, T)``.
        """


class SoftTargets(Objective):
    r"""Distillation of an autoregressive teacher by its conditionals, the soft targets.

    .. math:: L = \sum_b \sum_t \mathrm{KL}\big(p_T(x_t \mid x_{b, <t}) \,\big\|\, p_S(x_t \mid x_{b, <t})\big)

    along the rows of the batch. Where those are draws of the teacher, the expectation of L per row
    is :math:`\mathrm{KL}(p_T \,\|\, p_S)` of the whole distributions, with less variance than
    log densities of the draws give. Rows of data weigh what the teacher says where data lie.

    Any teacher that can be drawn from is distilled without this objective: maximum likelihood on
    its draws minimizes the same divergence,
    ``fit(student, probgen.train.Pairs(lambda n: (probgen.sample(teacher, n),)))``.

    Parameters
    ----------
    teacher : GenerativeModel
        A model whose distribution is autoregressive, with the order and the kind of entries of the
        student's. Held as a :class:`Frozen <probgen.objectives.Frozen>` copy.

    Raises
    ------
    TypeError
        At the call, if one of the distributions has no conditionals.
    ValueError
        At the call, if orders or events differ, or there is no closed form of the divergence of
        two conditionals.

    References
    ----------
    Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network,
    https://arxiv.org/abs/1503.02531; Kim, Rush (2016), Sequence-level knowledge distillation,
    https://arxiv.org/abs/1606.07947

    >>> from probgen.heads import Bernoulli
    >>> from probgen.models.made import MADE
    >>> teacher, student = MADE(4, [32], Bernoulli()), MADE(4, [8], Bernoulli())
    >>> x = teacher().sample((64,))
    >>> SoftTargets(teacher)(student.model, student.guide)(x) > 0
    tensor(True)
    """

    weighs_rows = True

    def __init__(self, teacher: nn.Module):
        checks.generative(teacher=teacher)
        super().__init__()
        self.teacher = held_teacher(teacher)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        how = BY_DRAWS if all(value is None for value in batch[1:]) else BY_DRAWS_GIVEN
        site = distribution_of_x(model, guide, batch, HasConditionals, self, how)
        with torch.no_grad():
            teacher = self.teacher(*contexts_beside(site["value"], batch))
        if not isinstance(teacher, HasConditionals):
            raise TypeError(
                "SoftTargets: expected a teacher with conditionals in an order, got "
                f"{type(teacher).__name__}; {how}"
            )
        terms = teacher.divergence_terms(site["fn"], site["value"]).sum(-1)
        return scale_and_mask(terms, site["scale"], site["mask"]).sum()
