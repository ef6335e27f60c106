"""Cycle consistency: translation between two sets of rows, judged by what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.sums import sum_of
from probgen.objectives.adversary import Adversary
from probgen.objectives.games import Game, LeastSquares
from probgen.objectives.regularizers import Regularizer
from probgen.objectives.schedules import WeightSchedule, all_at_next_step
from probgen.objectives.translations import (
    Distance,
    absolute_distance,
    check_two_arguments,
    drawn_in_place,
    takes_part,
)
from probgen.objectives.two_players import TwoPlayers


class Translations(NamedTuple):
    """What a program of two sets makes of rows: of ``b`` in the place of a, and of ``a`` in b's."""

    a: Tensor
    b: Tensor


class CycleConsistency(TwoPlayers):
    r"""Adversarial translation between two sets whose rows come back: the loss of CycleGAN.

    .. math:: L = \sum_b L_{\text{GAN}}(D_a; a, F(b)) + L_{\text{GAN}}(D_b; b, G(a))
              + \lambda \big( d(F(G(a)), a) + d(G(F(b)), b) \big)
              + \mu \big( d(G(b), b) + d(F(a), a) \big)

    for a program of two arguments with an observed site of each, such as :class:`CycleGAN
    <probgen.models.cycle_gan.CycleGAN>`. The program is run unconditioned on the rows (a, b), which
    draws what stands for each; then once more on what it has drawn, which brings the rows back; and
    for the last term on the sets exchanged. One backward gives every player its own gradient, as in
    :class:`Adversary <probgen.objectives.Adversary>`.

    A large weight :math:`\lambda` from the first step holds translations to maps that can be
    undone, all along the way from where the networks begin: where the true map is not reached
    so, it is never found, and another one that is consistent is. ``cycle=linear_warmup(2000, 0.0,
    5.0)`` lets it rise.

    Parameters
    ----------
    critic_a, critic_b : nn.Module
        Scores of events of each set, as for :class:`Adversary <probgen.objectives.Adversary>`.
    cycle : float or callable
        Weight :math:`\lambda`: a number, or a function of the step count (a 0-dim tensor, from 0)
        such as ``linear_warmup(1000)``; in eval mode its value at infinity counts.
    identity : float or callable
        Weight :math:`\mu`, likewise, for sets whose events have the same shape.
    distance : callable, optional
        d, row by row: ``(B, *event), (B, *event) -> (B,)``; default: the mean absolute difference
        of entries.
    game : Game, optional
        What the players minimize; default :class:`LeastSquares
        <probgen.objectives.LeastSquares>`.
    regularizers : sequence of Regularizer
        Penalties of both critics.
    augment : callable, optional
        As for :class:`Adversary <probgen.objectives.Adversary>`, for both critics.

    Raises
    ------
    TypeError
        At the call, if the program has no observed site for one of the arguments, or its
        distribution has no ``rsample``.
    ValueError
        At the call, if rows are incomplete (NaN), and with ``identity`` for sets of different
        shapes.

    References
    ----------
    Zhu, Park, Isola, Efros (2017), Unpaired image-to-image translation using cycle-consistent
    adversarial networks, https://arxiv.org/abs/1703.10593

    >>> import torch
    >>> from probgen.models.cycle_gan import CycleGAN
    >>> gen = CycleGAN(nn.Linear(2, 3), nn.Linear(3, 2))
    >>> loss = CycleConsistency(nn.Linear(2, 1), nn.Linear(3, 1))
    >>> loss(gen.model, gen.guide)(torch.zeros(5, 2), torch.ones(5, 3)).backward()
    >>> all(p.grad is not None for p in (*gen.parameters(), *loss.parameters()))
    True
    """

    def __init__(
        self,
        critic_a: nn.Module,
        critic_b: nn.Module,
        *,
        cycle: float | WeightSchedule = 10.0,
        identity: float | WeightSchedule = 0.0,
        distance: Distance | None = None,
        game: Game | None = None,
        regularizers: Sequence[Regularizer] = (),
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        checks.scheduled(cycle=cycle, identity=identity)
        checks.function(**checks.given(distance=distance))
        super().__init__()
        options: dict[str, Any] = {
            "game": LeastSquares() if game is None else game,
            "regularizers": regularizers,
            "augment": augment,
        }
        self.of_a = Adversary(critic_a, **options)
        self.of_b = Adversary(critic_b, **options)
        self.players = {"critic": nn.ModuleList([critic_a, critic_b])}
        self.cycle = cycle
        self.identity = identity
        self.distance = absolute_distance if distance is None else distance

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        real = self._sets(batch)
        weights = (self.cycle, self.identity)
        cycle, identity = all_at_next_step(weights, self.step, self.training)
        fake = self._translated(model, real)
        count = len(real.a)
        loss = real.a.new_zeros(())
        games = {"a": (self.of_a, real.a, fake.a), "b": (self.of_b, real.b, fake.b)}
        for name, (adversary, rows, made) in games.items():
            parts = adversary.parts(rows, made)
            for kind, value in parts.items():
                note(f"{kind} of {name}", count * value)
            loss = loss + count * sum_of(parts.values())
        if takes_part(cycle):
            back = self._translated(model, fake)
            gap = self._gap(back, real)
            note("cycle", gap, cycle)
            loss = loss + cycle * gap
        if takes_part(identity):
            same = self._translated(model, self._exchanged(real))
            gap = self._gap(same, real)
            note("identity", gap, identity)
            loss = loss + identity * gap
        return loss

    def _sets(self, batch: tuple) -> Translations:
        """The rows of both sets; refuses anything else."""
        check_two_arguments(
            "CycleConsistency", batch, "rows of two sets", "fit(gen, Unpaired(a, b), ...)"
        )
        return Translations(*batch)

    def _translated(self, model: Callable[..., Any], rows: Translations) -> Translations:
        """What an unconditioned run of the program draws in the place of each of its arguments."""
        drawn = drawn_in_place(model, rows, "CycleConsistency", "use CycleGAN(to_b, to_a)")
        return Translations(*drawn.values)

    def _exchanged(self, rows: Translations) -> Translations:
        if rows.a.shape != rows.b.shape:
            raise ValueError(
                "CycleConsistency: expected sets of events of one shape for identity, got "
                f"{tuple(rows.a.shape[1:])} and {tuple(rows.b.shape[1:])}; pass identity=0.0"
            )
        return Translations(rows.b, rows.a)

    def _gap(self, made: Translations, wanted: Translations) -> Tensor:
        """How far rows are from those that they should be, summed over rows and sets."""
        return sum_of(
            self.distance(one, other).sum() for one, other in zip(made, wanted, strict=True)
        )
