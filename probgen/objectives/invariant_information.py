"""Codes that two views of a row agree on: clusters that are found by what does not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note, note_whole, noted_parts
from probgen.core.missing import fill_missing
from probgen.core.recording import Recorder
from probgen.core.sites import densities
from probgen.core.sums import sum_of
from probgen.objectives.base import Objective, Prepared, check_observed
from probgen.objectives.schedules import WeightSchedule, at_next_step


@runtime_checkable
class HasLevels(Protocol):
    """A distribution of categories for each row."""

    def probabilities(self) -> list[Tensor]:
        """Of the levels of each category: ``(B, levels)``."""


class InvariantInformation(Objective):
    r"""An objective beside which the categories of a guide's code tell what two views of a row have in common.

    .. math:: L(x) - \lambda B \sum_k I_k, \qquad
              I = \sum_{l, m} P_{lm} \log \frac{P_{lm}}{(P_{l \cdot} P_{\cdot m})^{\eta}}, \qquad
              P = \frac1{2B} \sum_b \big(q_b q_b'^\top + q_b' q_b^\top\big)

    with the probabilities :math:`q_b, q_b'` of the levels that the guide gives to two random views
    of row b. It is greatest where a category is certain, the same in both views, and all its levels
    are in use. In a batch the rows have to be many times the squared number of levels over which P
    is spread, or chance agreement counts.

    Beside ``Adversarial(critic, information=1.0)`` the recognizer of an :class:`InfoGAN
    <probgen.models.info_gan.InfoGAN>` learns from real rows as well as from fakes, and names what
    the views do not change: classes rather than strokes. Without an objective it is a clustering by
    itself.

    Parameters
    ----------
    views : callable, optional
        The random map of rows, ``(B, *event) -> (B, *event)``: ``nn.Sequential`` of
        :mod:`probgen.nn.augment`. Without it the guide itself is run twice, and has to be random.
    objective : Objective, optional
        L.
    weight : float
        :math:`\lambda`, in nats per row.
    balance : float or callable
        :math:`\eta \geq 1`: above 1 levels that are hardly used cost more. A number, or a function
        of the step count (a 0-dim tensor, from 0); in eval mode its value at infinity counts. All
        levels alike are a saddle of the loss for numbers well above 1, which a rise from 1 avoids:
        ``linear_warmup(500, 1.0, 1.5)``.
    site : str
        Name of the latent site whose distribution has ``probabilities()``, as that of :class:`Codes
        <probgen.models.info_gan.Codes>`.

    Raises
    ------
    TypeError
        At the call, if the distribution at that site has no probabilities.
    ValueError
        At the call, if there is no such site in the guide.

    References
    ----------
    Ji, Henriques, Vedaldi (2019), Invariant information clustering for unsupervised image
    classification and segmentation, https://arxiv.org/abs/1807.06653

    >>> from probgen.models.info_gan import Codes, InfoGAN
    >>> from probgen.models.gan import GAN
    >>> from probgen.core.module import standard_normal
    >>> from probgen.nn import MLP, SideBySide
    >>> generator = GAN(SideBySide(MLP(4 + 3, [8], 2)), standard_normal(4), (2,))
    >>> gen = InfoGAN(generator, Codes([3]), Codes([3], net=MLP(2, [8], 3)))
    >>> loss = InvariantInformation(lambda x: x + 0.1 * torch.randn_like(x))(gen.model, gen.guide)
    >>> loss(torch.randn(50, 2)) > -50 * torch.tensor(3.0).log()
    tensor(True)
    """

    descends = False
    step: Tensor

    def __init__(
        self,
        views: Callable[[Tensor], Tensor] | None = None,
        objective: Objective | None = None,
        *,
        weight: float = 1.0,
        balance: float | WeightSchedule = 1.0,
        site: str = "code",
    ):
        checks.function(**checks.given(views=views))
        checks.instance(Objective, **checks.given(objective=objective))
        checks.not_negative(weight=weight)
        checks.scheduled(1, balance=balance)
        checks.text(site=site)
        super().__init__()
        self.views = views
        self.objective = objective
        self.weight = weight
        self.balance = balance
        self.site = site
        self.ignores_constants = objective is not None and objective.ignores_constants
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def prepare(self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> None:
        """Prepares the objective that it stands beside."""
        if isinstance(self.objective, Prepared):
            self.objective.prepare(model, guide, *batch)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        one, other = (self._levels(guide, batch) for _ in range(2))
        balance = at_next_step(self.balance, self.step, self.training)
        told = sum_of(joint_information(p, q, balance) for p, q in zip(one, other, strict=True))
        loss = -self.weight * len(one[0]) * told
        if self.objective is None:
            return loss
        note("invariance", -len(one[0]) * told, self.weight)
        with noted_parts() as parts:
            objective = self.objective.differentiable_loss(model, guide, *batch)
        note_whole("objective", objective, parts)
        return loss + objective

    def _levels(self, guide: Callable[..., Any], batch: tuple) -> list[Tensor]:
        """The probabilities that the guide gives to the levels of each category.

        For a view of the rows.
        """
        if not batch:
            check_observed(type(self).__name__, {})
        x, *rest = batch
        seen = x if self.views is None else self.views(fill_missing(x))
        with Recorder() as run:
            guide(seen, *rest)
        site = densities(run.sites).get(self.site)
        if site is None:
            raise ValueError(
                f"InvariantInformation: expected the guide to draw '{self.site}', it has "
                f"{', '.join(run.sites) or 'no sites'}; name the site of the categories by site=..."
            )
        distribution = site["fn"]
        if not isinstance(distribution, HasLevels) or not (found := distribution.probabilities()):
            raise TypeError(
                "InvariantInformation: expected a distribution of categories at site "
                f"'{self.site}', got {type(distribution).__name__}; "
                "use Codes([10], net=...)"
            )
        return found


def joint_information(one: Tensor, other: Tensor, balance: float | Tensor = 1.0) -> Tensor:
    r"""The mutual information of two categories whose probabilities given each row are known.

    In nats.

    Parameters
    ----------
    one, other : Tensor
        ``(B, levels)`` each; the roles of the two are averaged.
    balance : float
        Exponent :math:`\eta` of the product of the marginals.

    >>> joint_information(torch.eye(4), torch.eye(4))  # log 4
    tensor(1.3863)
    """
    joint = one.mT @ other / len(one)
    joint = ((joint + joint.mT) / 2).clamp_min(
        torch.finfo(joint.dtype).tiny
    )  # whose log has a gradient
    margin = joint.sum(0)
    return torch.special.entr(margin).sum() * 2 * balance - torch.special.entr(joint).sum()
