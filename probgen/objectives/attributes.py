"""Attribute translation: rows changed to other attributes and back, the loss of StarGAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.sums import sum_of
from probgen.objectives.adversary import Adversary, held_state
from probgen.objectives.games import Game, LeastSquares
from probgen.objectives.regularizers import Regularizer
from probgen.objectives.schedules import WeightSchedule, all_at_next_step
from probgen.objectives.translations import (
    Distance,
    InPlace,
    absolute_distance,
    check_two_arguments,
    drawn_in_place,
    takes_part,
)
from probgen.objectives.two_players import TwoPlayers


class AttributeTranslation(TwoPlayers):
    r"""Adversarial translation to attributes that are asked for, and back: the loss of StarGAN.

    .. math:: L = \sum_b L_{\text{GAN}}(D; x_b, x'_b)
              - \kappa \big( \log q(c_b \mid x_b) + \log \bar q(c'_b \mid x'_b) \big)
              + \lambda\, d\big(G(x'_b, c_b), x_b\big) + \mu\, d\big(G(x_b, c_b), x_b\big),
              \qquad c'_b \sim p(c), \quad x'_b = G(x_b, c'_b)

    for a program of rows and their attributes with an observed site of each, such as :class:`StarGAN
    <probgen.models.star_gan.StarGAN>`. The program is run unconditioned: it draws other attributes
    c' and the rows x' that have them; and once more on these rows, given the attributes of before,
    which brings the rows back; for the last term also on the real rows given their own attributes.
    The recognizer learns from real rows alone; the generator is told by it through weights that are
    held fixed (under a bar). One backward gives every player its own gradient, as in
    :class:`Adversary <probgen.objectives.Adversary>`.

    Critic and recognizer may share layers, as in the paper, which is one module in two places.

    Parameters
    ----------
    critic : nn.Module
        Scores of rows, as for :class:`Adversary <probgen.objectives.Adversary>`.
    recognizer : DistributionModule
        q, the distribution of the attributes given rows: ``Codes([3, 2], net=network)``.
    classification : float or callable
        Weight :math:`\kappa`: a number, or a function of the step count (a 0-dim tensor, from 0); in
        eval mode its value at infinity counts.
    reconstruction : float or callable
        Weight :math:`\lambda`, likewise.
    identity : float or callable
        Weight :math:`\mu`, likewise: rows that are asked for what they have stay as they are.
    distance : callable, optional
        d, row by row: ``(B, *event), (B, *event) -> (B,)``; default: the mean absolute difference
        of entries.
    game : Game, optional
        What critic and generator minimize; default :class:`LeastSquares
        <probgen.objectives.LeastSquares>`.
    regularizers : sequence of Regularizer
        Penalties of the critic.
    augment : callable, optional
        As for :class:`Adversary <probgen.objectives.Adversary>`.

    Raises
    ------
    TypeError
        At the call, if the program has no observed site for one of the arguments, or that of the
        rows has no ``rsample``.
    ValueError
        At the call, if rows or attributes are incomplete (NaN).

    References
    ----------
    Choi, Choi, Kim, Ha, Kim, Choo (2018), StarGAN, https://arxiv.org/abs/1711.09020

    >>> import torch
    >>> from probgen.models.info_gan import Codes
    >>> from probgen.models.star_gan import StarGAN
    >>> from probgen.nn import MLP
    >>> from probgen.nn.side_by_side import SideBySide
    >>> gen = StarGAN(SideBySide(MLP(2 + 3, [8], 2)), Codes([3]))
    >>> loss = AttributeTranslation(MLP(2, [8], 1), Codes([3], net=MLP(2, [8], 3)))
    >>> loss(gen.model, gen.guide)(torch.zeros(5, 2), torch.eye(3)[[0, 1, 2, 0, 1]]).backward()
    >>> all(p.grad is not None for p in (*gen.parameters(), *loss.parameters()))
    True
    """

    def __init__(
        self,
        critic: nn.Module,
        recognizer: nn.Module,
        *,
        classification: float | WeightSchedule = 1.0,
        reconstruction: float | WeightSchedule = 10.0,
        identity: float | WeightSchedule = 0.0,
        distance: Distance | None = None,
        game: Game | None = None,
        regularizers: Sequence[Regularizer] = (),
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        checks.generative(recognizer=recognizer)
        checks.scheduled(
            classification=classification, reconstruction=reconstruction, identity=identity
        )
        checks.function(**checks.given(distance=distance))
        super().__init__()
        self.adversary = Adversary(
            critic,
            LeastSquares() if game is None else game,
            regularizers=regularizers,
            augment=augment,
        )
        self.recognizer = recognizer
        self.players = {"critic": nn.ModuleList([critic, recognizer])}
        self.classification = classification
        self.reconstruction = reconstruction
        self.identity = identity
        self.distance = absolute_distance if distance is None else distance

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        check_two_arguments(
            "AttributeTranslation", batch, "rows and their attributes", "fit(gen, (x, attributes))"
        )
        x, attributes = batch
        weights = (self.classification, self.reconstruction, self.identity)
        now = all_at_next_step(weights, self.step, self.training)
        classification, reconstruction, identity = now
        drawn = self._drawn(model, batch, {})
        fake, asked = drawn.values
        parts = self.adversary.parts(x, fake)
        for name, value in parts.items():
            note(name, len(x) * value)
        loss = len(x) * sum_of(parts.values())
        if takes_part(classification):
            real = -self.recognizer(x.detach()).log_prob(attributes).sum()
            made = -self._held(fake).log_prob(asked.detach()).sum()
            note("classification", real, classification)
            note("classification of draws", made, classification)
            loss = loss + classification * (real + made)
        if takes_part(reconstruction):
            gap = self.distance(self._given(model, fake, attributes, drawn), x).sum()
            note("reconstruction", gap, reconstruction)
            loss = loss + reconstruction * gap
        if takes_part(identity):
            gap = self.distance(self._given(model, x, attributes, drawn), x).sum()
            note("identity", gap, identity)
            loss = loss + identity * gap
        return loss

    def _given(
        self, model: Callable[..., Any], rows: Tensor, attributes: Tensor, drawn: InPlace
    ) -> Tensor:
        """What the program makes of rows given attributes, which it does not draw."""
        fixed = {drawn.names[1]: attributes}
        return self._drawn(model, (rows, attributes), fixed).values[0]

    def _drawn(self, model: Callable[..., Any], batch: tuple, fixed: dict[str, Tensor]) -> InPlace:
        """What the program draws in the place of rows and attributes, some of which are fixed."""
        return drawn_in_place(
            model,
            batch,
            "AttributeTranslation",
            "use StarGAN(generator, attributes)",
            fixed=fixed,
            differentiable=(0,),
        )

    def _held(self, x: Tensor) -> Any:
        """The recognizer's distribution through weights that take no gradient."""
        return functional_call(self.recognizer, held_state(self.recognizer), (x,))
