"""Penalties of the critic's slope, which keep its game with a generator stable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.signatures import signature_of, takes
from probgen.objectives.schedules import WeightSchedule, at_next_step


class Round(NamedTuple):
    """One round of a game as the critic sees it.

    Attributes
    ----------
    critic : callable
        From events ``(B, *event)`` to scores, their context being known to it.
    real, fake : Tensor
        Events; under gradients both are leaves, or follow from leaves, that take them.
    real_scores, fake_scores : Tensor
        The critic's scores of them.
    """

    critic: Callable[[Tensor], Tensor]
    real: Tensor
    fake: Tensor
    real_scores: Tensor
    fake_scores: Tensor


class Regularizer(Protocol):
    """A penalty that is added to the critic's loss.

    Its ``player``, where it has one, says whose loss: ``"critic"`` or ``"generator"``.
    """

    def __call__(self, played: Round) -> Tensor:
        """The penalty, row by row: ``(B,)``."""


@dataclass(frozen=True)
class GradientPenalty:
    r"""Slope near one between real rows and fakes.

    What makes the critic of a Wasserstein game Lipschitz.

    .. math:: \lambda \big(\lVert \nabla_{\hat x} s(\hat x) \rVert - t\big)^2, \qquad
              \hat x = \epsilon x + (1 - \epsilon) x', \quad \epsilon \sim U(0, 1)

    Parameters
    ----------
    weight : float
        :math:`\lambda`.
    target : float
        t; zero gives the zero-centered penalty (Thanh-Tung, Tran, Venkatesh 2019).

    References
    ----------
    Gulrajani et al. (2017), Improved training of Wasserstein GANs, https://arxiv.org/abs/1704.00028
    """

    weight: float = 10.0
    target: float = 1.0
    player = "critic"

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight, target=self.target)

    def __call__(self, played: Round) -> Tensor:
        real = played.real.detach()
        fake = played.fake.detach()
        with torch.enable_grad():
            share = torch.rand(
                len(real), *[1] * (real.ndim - 1), dtype=real.dtype, device=real.device
            )
            between = (fake + share * (real - fake)).requires_grad_()
            slope = _slopes(played.critic(between), between)
        norm = (slope.flatten(1).square().sum(-1) + 1e-12).sqrt()  # the root has no slope at 0
        return self.weight * (norm - self.target).square()


@dataclass(frozen=True)
class R1:
    r"""Slope near zero on real rows, :math:`\tfrac\gamma2 \lVert \nabla_x s(x) \rVert^2`.

    Locally convergent games.

    Parameters
    ----------
    gamma : float
        :math:`\gamma`; larger for larger images and small batches.

    References
    ----------
    Mescheder, Geiger, Nowozin (2018), Which training methods for GANs do actually converge?,
    https://arxiv.org/abs/1801.04406
    """

    gamma: float = 10.0
    player = "critic"

    def __post_init__(self) -> None:
        checks.not_negative(gamma=self.gamma)

    def __call__(self, played: Round) -> Tensor:
        return self.gamma / 2 * _squared(played.critic, played.real, played.real_scores)


@dataclass(frozen=True)
class R2:
    r"""Slope near zero on fakes, :math:`\tfrac\gamma2 \lVert \nabla_{x'} s(x') \rVert^2`.

    See :class:`R1`.

    Parameters
    ----------
    gamma : float
        :math:`\gamma`.
    """

    gamma: float = 10.0
    player = "critic"

    def __post_init__(self) -> None:
        checks.not_negative(gamma=self.gamma)

    def __call__(self, played: Round) -> Tensor:
        return self.gamma / 2 * _squared(played.critic, played.fake, played.fake_scores)


class Scheduled(Recorded, nn.Module):
    r"""A regularizer whose weight changes with the step: :math:`w_t R`.

    A schedule is a function of tensors, and steps with it are compiled as others are.

    Parameters
    ----------
    regularizer : callable
        R, of the critic or of the generator: ``R1(1.0)``.
    weight : callable
        :math:`w_t`, a function of the number of steps (a 0-dim tensor, from 0) such as
        ``geometric(10_000, 0.1, 0.001)``; in eval mode its value at infinity counts.

    >>> from probgen.objectives.schedules import geometric
    >>> scheduled = Scheduled(lambda played: torch.ones(2), geometric(2, 1.0, 0.01))
    >>> [round(scheduled(None)[0].item(), 4) for _ in range(3)]
    [1.0, 0.1, 0.01]
    """

    step: Tensor

    def __init__(self, regularizer: Callable[[Any], Tensor], weight: WeightSchedule):
        checks.function(regularizer=regularizer, weight=weight)
        super().__init__()
        self.regularizer = regularizer
        self.weight = weight
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def player(self) -> str | None:
        """Whose loss it is added to, where the regularizer says so."""
        return getattr(self.regularizer, "player", None)

    def forward(self, played: Any) -> Tensor:
        return at_next_step(self.weight, self.step, self.training) * self.regularizer(played)


class Lazy(Recorded, nn.Module):
    r"""Lazy regularization: a regularizer at every k-th step, with k times its weight.

    What looks at a step count is not compiled; in eval mode each call counts once.

    Parameters
    ----------
    regularizer : callable
        Of the critic or of the generator.
    every : int
        k.

    References
    ----------
    Karras et al. (2020), Analyzing and improving the image quality of StyleGAN,
    https://arxiv.org/abs/1912.04958

    >>> lazy = Lazy(lambda played: torch.ones(()), every=3)
    >>> [lazy(None).item() for _ in range(4)]
    [3.0, 0.0, 0.0, 3.0]
    """

    step: Tensor

    def __init__(self, regularizer: Callable[[Any], Tensor], every: int = 16):
        checks.function(regularizer=regularizer)
        checks.at_least(1, every=every)
        super().__init__()
        self.regularizer = regularizer
        self.every = every
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def player(self) -> str | None:
        """Whose loss it is added to, where the regularizer says so."""
        return getattr(self.regularizer, "player", None)

    def forward(self, played: Any) -> Tensor:
        if not self.training:
            return self.regularizer(played)
        due = int(self.step) % self.every == 0
        self.step.add_(1)
        if not due:
            return torch.zeros((), device=self.step.device)
        return self.every * self.regularizer(played)


def check_player(player: str, name: str, regularizers: Any, other: str) -> None:
    """Refuses what is no list of functions, and penalties of the other player; ``TypeError``.

    >>> check_player("generator", "generator_regularizers", [R1()], "pass regularizers=[...]")
    Traceback (most recent call last):
        ...
    TypeError: expected penalties of the generator in generator_regularizers, got R1, one of the critic; pass ...
    """
    checks.functions(**{name: regularizers})
    for each in regularizers:
        if not takes(each, 1):
            raise TypeError(
                f"expected penalties of one argument in {name}, got one that takes "
                f"{signature_of(each)}; let it take the round that is played"
            )
        found = getattr(each, "player", None)
        if found is not None and found != player:
            raise TypeError(
                f"expected penalties of the {player} in {name}, got {type(each).__name__}, one of "
                f"the {found}; {other}"
            )


def mean_penalty(regularizer: Callable[[Any], Tensor], played: Any) -> Tensor:
    """What a regularizer adds to the loss per row; ``TypeError`` where it gives no tensor.

    >>> mean_penalty(lambda played: torch.ones(3), None)
    tensor(1.)
    """
    penalty = regularizer(played)
    if not torch.is_tensor(penalty):
        raise TypeError(
            "expected a regularizer that gives a tensor, row by row (B,), got "
            f"{type(penalty).__name__}; let it return what the gradient passes through"
        )
    return penalty.mean()


def _squared(critic: Callable[[Tensor], Tensor], x: Tensor, scores: Tensor) -> Tensor:
    """Squared norm of the slope at x, ``(B,)``.

    From the scores there where they can be differentiated.
    """
    if not scores.requires_grad or not x.requires_grad:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            scores = critic(x)
            slope = _slopes(scores, x)
    else:
        slope = _slopes(scores, x)
    return slope.flatten(1).square().sum(-1)


def _slopes(scores: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(scores.sum(), x, create_graph=True)[0]
