"""Consistency models: a network that says of every state where its path leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from probgen.core import checks
from probgen.objectives.base import Objective, contexts_beside, distribution_of_x
from probgen.objectives.parts import held_teacher, taught
from probgen.objectives.schedules import WeightSchedule, at_next_step

INSTEAD = "use a Diffusion with Gaussian noise"
GAUSSIAN = ("of a diffusion with Gaussian noise", "Diffusion")


@runtime_checkable
class HasConsistencyPair(Protocol):
    """A distribution whose network says something of the data at each state of a path."""

    def consistency_pair(self, x: Tensor, levels: tuple, teacher: Any, target: Any) -> Any:
        """Its guesses ``own`` and ``other`` at neighboring levels, ``gap`` apart."""


class Consistency(Objective):
    r"""Consistency training, and consistency distillation where there is a teacher.

    .. math:: \sum_b \frac{1}{\varsigma_i - \varsigma_{i-1}} \Big(\sqrt{|f(z_i, t_i) - \bar f(z_{i-1}, t_{i-1})|^2
              + c^2} - c\Big), \qquad \bar f(z_0, 0) = z_0 / \alpha_0

    with the guess f of the data of a diffusion at two neighboring levels :math:`\varsigma` of noise
    to signal, and no gradient through :math:`\bar f`. At its minimum f says of every state where
    the probability-flow equation leads it, so that ``gen().using(ConsistencySteps(1))`` draws by
    one call of the network, more steps being better. The states of a pair have the same noise, or,
    with a teacher, the earlier one is where a step of the teacher's equation (Heun's method) leads.

    Scores of the model stay those of a diffusion with that guess: bounds, and loose ones, as a point
    of the data is no mean of them. ``Velocity()`` and ``EDM(sigma_data)`` are apt predictions, which
    hardly change states of next to no noise; begin with the weights of a trained diffusion. Draws
    of averaged weights, ``fit(ema=0.999)``, are better. A student has the errors of its teacher's
    paths, once for each call: where more calls draw worse, train the teacher for longer.

    Parameters
    ----------
    teacher : GenerativeModel, optional
        A trained ``Diffusion`` of the same schedule and events, held as a :class:`Frozen
        <probgen.objectives.Frozen>` copy.
    levels : int or callable
        Number N of steps between levels, or a function of the number of steps of training done, such
        as :func:`doubling(steps) <probgen.objectives.doubling>`: few at first, whose targets vary
        little, then many, whose bias is small.
    guidance : float or callable, optional
        Of the teacher, as in ``gen(context).using(guidance=...)``: the student has it without a
        second call.
    target : nn.Module, optional
        Who is asked at the earlier state: ``Average(gen, 0.95)``, whose weights follow. Default: the
        model itself.
    mean, std : float
        Of the logarithm of the ratio of noise to signal at which pairs are looked at.
    rho : float
        Levels are even in the ratio to the power of 1 / rho: the larger, the more of them at little
        noise. With some 20 levels, 3 may be better than the 7 of the papers.
    huber : float
        :math:`c / \sqrt D` for events of D numbers.

    Raises
    ------
    TypeError
        At the call, if the distribution of x is no diffusion with Gaussian noise, or that of the
        teacher is not.

    References
    ----------
    Song, Dhariwal, Chen, Sutskever (2023), Consistency models, https://arxiv.org/abs/2303.01469;
    Song, Dhariwal (2024), Improved techniques for training consistency models,
    https://arxiv.org/abs/2310.14189

    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> gen = Diffusion(TimeMLP(2, [16]), (2,))
    >>> Consistency(levels=8)(gen.model, gen.guide)(torch.randn(8, 2)).shape
    torch.Size([])
    """

    weighs_rows = True
    step: Tensor

    def __init__(
        self,
        teacher: nn.Module | None = None,
        *,
        levels: int | WeightSchedule = 40,
        guidance: Any = None,
        target: nn.Module | None = None,
        mean: float = -1.1,
        std: float = 2.0,
        rho: float = 7.0,
        huber: float = 0.00054,
    ):
        checks.generative(**checks.given(teacher=teacher, target=target))
        checks.scheduled(2.0, levels=levels)
        checks.finite(mean=mean)
        checks.positive(std=std, rho=rho)
        checks.not_negative(huber=huber)
        super().__init__()
        if guidance is not None and teacher is None:
            raise ValueError(
                "expected a teacher for guidance, which is that of the teacher, got none; give "
                "teacher, or guide the draws of the model: sample(gen, n, context, guidance=...)"
            )
        self.teacher = None if teacher is None else held_teacher(teacher)
        self.target = target
        self.levels = levels
        self.guidance = guidance
        self.mean = mean
        self.std = std
        self.rho = rho
        self.huber = huber
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(model, guide, batch, HasConsistencyPair, self, INSTEAD)
        contexts = contexts_beside(site["value"], batch)
        count = at_next_step(self.levels, self.step, self.training)
        levels = count, self.mean, self.std, self.rho
        teacher = None
        if self.teacher is not None:
            teacher = taught(self, contexts, HasConsistencyPair, *GAUSSIAN)
        target = None if self.target is None else self.target(*contexts)
        pair = site["fn"].consistency_pair(site["value"], levels, teacher, target)
        apart = (pair.own - pair.other).flatten(pair.gap.ndim)
        c = self.huber * apart.shape[-1] ** 0.5
        distance = (apart.square().sum(-1) + c**2).clamp(min=1e-20).sqrt() - c
        return scale_and_mask(distance / pair.gap, site["scale"], site["mask"]).sum()

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


@runtime_checkable
class HasHalvedPair(Protocol):
    """A distribution drawn by deterministic steps, which may be halved in number."""

    def halved_pair(self, x: Tensor, num_steps: int, teacher: Any) -> Any:
        """Its simple loss ``loss`` against what two steps of a teacher say."""


class ProgressiveDistillation(Objective):
    r"""Progressive distillation: one step of the student does what two of the teacher do.

    .. math:: \sum_b w(t_b)\, |\hat x(z_b, t_b) - \tilde x_b|^2, \qquad t_b \in \{1 / N, 2 / N, \dots, 1\}

    where :math:`\tilde x` is what the student would have to say for a step of DDIM from t to t -
    1 / N to arrive where two steps of half the size by the teacher arrive, and w the weight of the
    prediction's simple loss: with ``Velocity()`` that is one plus the signal-to-noise ratio. The
    student draws by ``DDIM(N)``. Begin with a copy of the teacher, and go on with the student as
    the next teacher::

        for num_steps in (8, 4, 2, 1):
            student = copy.deepcopy(teacher)
            fit(student, x, ProgressiveDistillation(teacher, num_steps), steps=1000)
            teacher = student

    Predict by ``Velocity()`` or ``Original()``: noise tells nothing of the data where there is no
    signal, in the one step of N = 1.

    Parameters
    ----------
    teacher : GenerativeModel
        A ``Diffusion`` of the same schedule and events that draws well by ``DDIM(2 * num_steps)``,
        held as a :class:`Frozen <probgen.objectives.Frozen>` copy.
    num_steps : int
        Number N of steps of the student.
    guidance : float or callable, optional
        Of the teacher, as in ``gen(context).using(guidance=...)``; in the first round only, as the
        student has it.

    Raises
    ------
    TypeError
        At the call, if one of the distributions is no diffusion with Gaussian noise.

    References
    ----------
    Salimans, Ho (2022), Progressive distillation for fast sampling of diffusion models,
    https://arxiv.org/abs/2202.00512

    >>> import copy
    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> teacher = Diffusion(TimeMLP(2, [16]), (2,))
    >>> student = copy.deepcopy(teacher)
    >>> loss = ProgressiveDistillation(teacher, num_steps=4)(student.model, student.guide)
    >>> loss(torch.randn(8, 2)).shape
    torch.Size([])
    """

    weighs_rows = True

    def __init__(self, teacher: nn.Module, num_steps: int, *, guidance: Any = None):
        checks.generative(teacher=teacher)
        checks.at_least(1, num_steps=num_steps)
        super().__init__()
        self.teacher = held_teacher(teacher)
        self.num_steps = num_steps
        self.guidance = guidance

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(model, guide, batch, HasHalvedPair, self, INSTEAD)
        contexts = contexts_beside(site["value"], batch)
        teacher = taught(self, contexts, HasHalvedPair, *GAUSSIAN)
        pair = site["fn"].halved_pair(site["value"], self.num_steps, teacher)
        return scale_and_mask(pair.loss, site["scale"], site["mask"]).sum()

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"
