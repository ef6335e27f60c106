"""Adversarial training of anything that can be drawn with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.recording import Recorder, log_prob
from probgen.core.sites import densities
from probgen.core.sums import sum_of
from probgen.objectives.adversary import Adversary
from probgen.objectives.games import Game
from probgen.objectives.generator_regularizers import GeneratorRegularizer, GeneratorRound
from probgen.objectives.regularizers import Regularizer, check_player, mean_penalty
from probgen.objectives.samples import LatentDraw, UnconditionedRun, unconditioned_run
from probgen.objectives.schedules import WeightSchedule, at_step
from probgen.objectives.two_players import TwoPlayers


class Adversarial(TwoPlayers):
    r"""Adversarial training.

    A critic tells real rows from draws of the model, which learns to be mistaken for them.

    .. math:: \sum_b L_C\big(s(x_b), s(\bar x'_b)\big) + L_G\big(\bar s(x'_b)\big) - \lambda \log q(z'_b \mid x'_b),
              \qquad (z'_b, x'_b) \sim p_\theta(\cdot \mid c_b)

    beside the penalties of either player.

    Two players, one scalar, one backward: what is held fixed (under a bar) gets no gradient, so
    each player gets its own, as from two backward passes. The fakes are draws of the unconditioned
    model: an implicit distribution (:class:`GAN <probgen.models.gan.GAN>`), and as well a flow or
    any other family whose distribution of x has ``rsample``. With a context c both players see it:
    the critic is called as ``critic(x, context)``.

    The value is no measure of progress. Each player may have an optimizer of its own::

        fit(gan, x, Adversarial(critic), optimizer={
            "model": adam(1e-4, betas=(0.0, 0.9)), "critic": adam(4e-4, betas=(0.0, 0.9))})

    ``adam(2e-4, betas=(0.5, 0.999))`` gives both the same; ``fit(ema=0.999)`` leaves the averaged
    generator, which hides the cycles of the game.

    Parameters
    ----------
    critic, game, regularizers, packing, augment, mismatched
        As for :class:`Adversary <probgen.objectives.adversary.Adversary>`.
    generator_regularizers : sequence of GeneratorRegularizer
        Penalties of the generator: :class:`PathLength`, :class:`DiversitySensitive`,
        :class:`ModeSeeking`, :class:`FeatureMatching`.
    critic_steps : int
        The generator learns at every so many-th step, the critic at each: the loss of the other
        steps has no gradient for the model, which optimizers then leave alone. Losses that look at
        a step count are not compiled; with 1 they do not.
    information : float or callable
        Weight :math:`\lambda` of how well the guide tells the latents of a fake from the fake
        (InfoGAN): a lower bound of their mutual information, which model and guide raise together.
        A number, or a function of the step count (a 0-dim tensor, from 0) such as
        ``linear_warmup(1000)``; in eval mode its value at infinity counts.

    Raises
    ------
    TypeError
        At the call, if there is no observed site ``"x"``, or its distribution has no ``rsample``.
    ValueError
        At the call, if rows are incomplete (NaN), the critic's scores do not fit,
        ``information`` is asked of a guide that draws no latent of the model, or ``mismatched`` of
        data without context.

    References
    ----------
    Goodfellow et al. (2014), Generative adversarial networks, https://arxiv.org/abs/1406.2661;
    Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel (2016), InfoGAN,
    https://arxiv.org/abs/1606.03657; Reed, Akata, Yan, Logeswaran, Schiele, Lee (2016), Generative
    adversarial text to image synthesis, https://arxiv.org/abs/1605.05396 (mismatched contexts)

    >>> import torch
    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.gan import GAN
    >>> from probgen.nn.mlp import MLP
    >>> gan, critic = GAN(MLP(2, [8], 2), standard_normal(2)), MLP(2, [8], 1)
    >>> Adversarial(critic)(gan.model, gan.guide)(torch.randn(64, 2)).backward()
    >>> all(p.grad is not None for p in (*gan.parameters(), *critic.parameters()))
    True
    """

    def __init__(
        self,
        critic: nn.Module,
        game: Game | None = None,
        *,
        regularizers: Sequence[Regularizer] = (),
        packing: int = 1,
        augment: Callable[[Tensor], Tensor] | None = None,
        generator_regularizers: Sequence[GeneratorRegularizer] = (),
        critic_steps: int = 1,
        information: float | WeightSchedule = 0.0,
        mismatched: float = 0.0,
    ):
        checks.at_least(1, critic_steps=critic_steps)
        checks.scheduled(information=information)
        check_player(
            "generator",
            "generator_regularizers",
            generator_regularizers,
            "pass regularizers=[...]",
        )
        super().__init__()
        self.adversary = Adversary(
            critic,
            game,
            regularizers=regularizers,
            packing=packing,
            augment=augment,
            mismatched=mismatched,
        )
        self.generator_regularizers = tuple(generator_regularizers)
        self.generator_regularizer_modules = nn.ModuleList(
            each for each in self.generator_regularizers if isinstance(each, nn.Module)
        )
        self.critic_steps = critic_steps
        self.information = information

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        information = at_step(self.information, self.step, self.training)
        both = self._generators_turn()
        penalized = both and bool(self.generator_regularizers)
        drawn = unconditioned_run(model, batch, self, differentiable=both, leaves=penalized)
        parts = self.adversary.parts(drawn.real, drawn.fake, *drawn.context, both=both)
        for name, value in parts.items():
            note(name, len(drawn.real) * value)
        loss = len(drawn.real) * sum_of(parts.values())
        if penalized:
            penalty = len(drawn.real) * self._penalty(model, batch, drawn)
            note("generator penalty", penalty)
            loss = loss + penalty
        if self.information and both:
            told = self._told(guide, batch, drawn)
            note("information", -told, information)
            loss = loss - information * told
        return loss

    def _generators_turn(self) -> bool:
        """Whether the generator learns in this step.

        The count is read only where critic and generator take turns.
        """
        if not self.training or (self.critic_steps == 1 and not callable(self.information)):
            return True
        self.step.add_(1)
        return self.critic_steps == 1 or int(self.step) % self.critic_steps == 0

    def _penalty(self, model: Callable[..., Any], batch: tuple, drawn: UnconditionedRun) -> Tensor:
        """The generator's penalties per row."""

        def draw() -> LatentDraw:
            other = unconditioned_run(model, batch, self, leaves=True)
            return LatentDraw(other.latents, other.fake)

        played = GeneratorRound(
            LatentDraw(drawn.latents, drawn.fake), drawn.real, drawn.context, draw, self.adversary
        )
        return sum_of(mean_penalty(each, played) for each in self.generator_regularizers)

    def _told(self, guide: Callable[..., Any], batch: tuple, drawn: UnconditionedRun) -> Tensor:
        """log q(z' | x') of the unconditioned run, summed; gradients pass through x' too."""
        with Recorder(drawn.sites) as run:
            guide(*(drawn.fake if value is drawn.real else value for value in batch))
        sites = densities(run.sites)
        unknown = [name for name in sites if name not in drawn.sites]
        if unknown or not sites:
            raise ValueError(
                "Adversarial: expected a guide of latents of the model, for "
                f"information={self.information}, got "
                f"{unknown or 'one without sites'}; use InfoGAN, or information=0"
            )
        return sum_of(log_prob(site).sum() for site in sites.values())
