"""Two players in one scalar.

A critic's loss, and that of whoever made the fakes, with a gradient for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.sums import sum_of
from probgen.objectives.games import Game, NonSaturating
from probgen.objectives.regularizers import Regularizer, Round, check_player, mean_penalty


class Adversary(Recorded, nn.Module):
    r"""A critic, the game that it plays against what makes the fakes, and what it sees of both.

    .. math:: L = \underbrace{L_C(s(x), s(\bar x')) + \sum_r R_r}_{\text{gradient by the critic alone}}
              + \underbrace{L_G(\bar s(x'))}_{\text{gradient by } x' \text{ alone}}

    with a bar over what is held fixed, averaged over rows. The critic is run once on real rows and
    once on fakes: the gradient of :math:`L_G` by the fakes is taken at those very scores, so that
    the second player costs neither a further run of the critic nor gradients of its parameters.

    Parameters
    ----------
    critic : nn.Module
        Scores of events, ``(B, *event) -> (B,)`` (or ``(B, 1)``, or ``(B, ...)`` of patches, each
        of which counts as much); called as ``critic(x, context)`` where there is a context.
    game : Game
        What the players minimize; default :class:`NonSaturating`.
    regularizers : sequence of Regularizer
        Penalties of the critic's slope: :class:`GradientPenalty`, :class:`R1`, :class:`R2`.
    packing : int
        Number m of independent rows that the critic judges together, side by side along the first
        event dim, so that it sees a lack of diversity: its inputs are ``(B // m, m * D)`` or ``(B
        // m, m * C, H, W)``, contexts likewise; B modulo m rows are left out.
    augment : callable, optional
        A differentiable random map of rows, ``(B, *event) -> (B, *event)``, which real rows and
        fakes go through in training: :mod:`probgen.nn.augment`.
    mismatched : float
        Weight w, below 1, of real rows with the context of another row of the batch among the
        critic's fakes, so that it learns whether an event fits its context (matching-aware):

        .. math:: (1 - w)\, L_C\big(s(x_b, c_b), s(x'_b, c_b)\big)
                  + w\, L_C\big(s(x_b, c_b), s(x_b, c_{b - 1})\big)

        Rows whose neighbor has the same context count with w = 0. Reed et al. take one half. Where
        the players are in equilibrium, :math:`(1 - w)\, q(x \mid c) + w\, p(x) = p(x \mid c)`: what
        other contexts have too is drawn less often than in data, as under guidance.

    Raises
    ------
    ValueError
        If there are fewer rows than a pack has, the critic does not give scores for each pack, or
        contexts are to be mismatched and there are none.

    References
    ----------
    Reed, Akata, Yan, Logeswaran, Schiele, Lee (2016), Generative adversarial text to image
    synthesis, https://arxiv.org/abs/1605.05396 (section 4.2: GAN-CLS); Lin, Khetan, Fanti, Oh
    (2018), PacGAN, https://arxiv.org/abs/1712.04086; Zhao, Liu, Lin, Zhu, Han (2020),
    Differentiable augmentation for data-efficient GAN training, https://arxiv.org/abs/2006.10738

    >>> adversary = Adversary(nn.Linear(4, 1), packing=2)
    >>> fake = torch.zeros(6, 2, requires_grad=True)
    >>> adversary(torch.ones(6, 2), fake).backward()
    >>> fake.grad.shape, adversary.critic.weight.grad.shape
    (torch.Size([6, 2]), torch.Size([1, 4]))
    """

    descends = False

    def __init__(
        self,
        critic: nn.Module,
        game: Game | None = None,
        *,
        regularizers: Sequence[Regularizer] = (),
        packing: int = 1,
        augment: Callable[[Tensor], Tensor] | None = None,
        mismatched: float = 0.0,
    ):
        checks.network(critic=critic)
        checks.has(
            ("critic", "generator"), "pass NonSaturating() or Hinge()", **checks.given(game=game)
        )
        check_player(
            "critic",
            "regularizers",
            regularizers,
            "pass Adversarial(critic, generator_regularizers=[...])",
        )
        checks.at_least(1, "1 shows the critic one row at a time", packing=packing)
        checks.function(**checks.given(augment=augment))
        checks.within("[0, 1)", mismatched=mismatched)
        super().__init__()
        self.critic = critic
        self.game = game or NonSaturating()
        self.packing = packing
        self.augment = augment
        self.mismatched = mismatched
        self.regularizers = tuple(regularizers)
        self.regularizer_modules = nn.ModuleList(
            each for each in self.regularizers if isinstance(each, nn.Module)
        )

    @property
    def players(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def forward(self, real: Tensor, fake: Tensor, *context: Any, both: bool = True) -> Tensor:
        """The loss per row of rows and fakes ``(B, *event)``.

        Without ``both`` that of the critic alone.
        """
        return sum_of(self.parts(real, fake, *context, both=both).values())

    def parts(
        self, real: Tensor, fake: Tensor, *context: Any, both: bool = True
    ) -> dict[str, Tensor]:
        """The same loss as terms by name.

        ``"critic"``, ``"penalty"`` where there are regularizers, ``"generator"`` with ``both``.
        """
        leaf = fake.detach()
        contexts = self._contexts(context)
        leaf.requires_grad_(both or bool(self.regularizers))
        seen = (
            self._packed(self._augmented(real.detach()))
            .detach()
            .requires_grad_(bool(self.regularizers))
        )
        made = self._packed(self._augmented(leaf))
        on_real = self._scores(seen, contexts)
        on_fake = self._scores(made, contexts)
        critic = lambda x: self._scores(x, contexts).mean(-1)  # noqa: E731
        played = Round(critic, seen, made, on_real.mean(-1), on_fake.mean(-1))
        parts = {"critic": self._critics(on_real, on_fake, seen, contexts).mean()}
        if self.regularizers:
            penalties = (mean_penalty(each, played) for each in self.regularizers)
            parts["penalty"] = sum_of(penalties)
        if both:
            parts["generator"] = self._second(on_real.detach(), on_fake, leaf, fake)
        return parts

    def judge(self, x: Tensor, *context: Any) -> Tensor:
        """The critic's scores of events through frozen weights: ``(B, *event) -> (B // packing,)``.

        Gradients pass to ``x``, none to the critic: what another objective adds to make its own
        fakes look real. Events are not augmented, and running means stay as they are.

        >>> adversary, x = Adversary(nn.Linear(2, 1)), torch.zeros(3, 2, requires_grad=True)
        >>> adversary.judge(x).sum().backward()
        >>> x.grad.shape, adversary.critic.weight.grad
        (torch.Size([3, 2]), None)
        """
        return self._scores(self._packed(x), self._contexts(context), held=True).mean(-1)

    def features(
        self, x: Tensor, *context: Any, layers: Sequence[nn.Module] = ()
    ) -> tuple[Tensor, ...]:
        """What layers of the critic give for events, through frozen weights as in :meth:`judge`.

        Parameters
        ----------
        x : Tensor
            Events ``(B, *event)``.
        context : Tensor
            Their contexts, where the critic takes them.
        layers : sequence of nn.Module
            Parts of the critic, whose outputs are given in the order in which they run; default:
            what its last layer with parameters is called with.

        Raises
        ------
        ValueError
            If no such layer has run.

        >>> critic = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
        >>> adversary = Adversary(critic)
        >>> [f.shape for f in adversary.features(torch.zeros(3, 2))]
        [torch.Size([3, 5])]
        """
        seen: list[Tensor] = []

        def look(layer: nn.Module, inputs: tuple, output: Any) -> None:
            value = output if layers else next(iter(inputs), None)
            if torch.is_tensor(value):
                seen.append(value)

        looked_at = list(layers) or [part for part in self.critic.modules() if _learns(part)]
        hooks = [layer.register_forward_hook(look) for layer in looked_at]
        try:
            self._scores(self._packed(x), self._contexts(context), held=True)
        finally:
            for hook in hooks:
                hook.remove()
        if not seen:
            raise ValueError(
                "expected layers of the critic that run on an event, got none; pass layers=[...], "
                "modules inside of the critic"
            )
        return tuple(seen) if layers else (seen[-1],)

    def _critics(
        self, on_real: Tensor, on_fake: Tensor, seen: Tensor, contexts: tuple[Tensor, ...]
    ) -> Tensor:
        """The critic's loss of every pack and patch, with fakes of both kinds."""
        loss = self.game.critic(on_real, on_fake)
        if not self.mismatched:
            return loss
        if not contexts:
            raise ValueError(
                f"expected contexts for mismatched={self.mismatched:g}, got none; train on (x, "
                "context), or leave mismatched out"
            )
        others = tuple(context.roll(1, 0) for context in contexts)
        on_others = self._scores(seen.detach(), others)
        share = self.mismatched * differ(contexts, others).to(loss.dtype)[:, None]
        return loss + share * (self.game.critic(on_real, on_others) - loss)

    def _contexts(self, context: tuple) -> tuple[Tensor, ...]:
        return tuple(self._packed(c) for c in context if torch.is_tensor(c))

    def _second(self, on_real: Tensor, on_fake: Tensor, leaf: Tensor, fake: Tensor) -> Tensor:
        """The generator's loss, whose backward reaches the fakes and leaves the critic alone."""
        loss = self.game.generator(on_real, on_fake).mean()
        if not (torch.is_grad_enabled() and fake.requires_grad):
            return loss.detach()
        (slope,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
        if slope is None:
            raise ValueError(
                "expected scores that depend on the fakes, got some without a gradient; let critic "
                "and augment pass gradients on (without detach() or torch.no_grad())"
            )
        path = (fake * slope).sum()
        return loss.detach() + (path - path.detach())

    def _augmented(self, x: Tensor) -> Tensor:
        return x if self.augment is None or not self.training else self.augment(x)

    def _packed(self, x: Tensor) -> Tensor:
        """``(B, D, *rest) -> (B // m, m * D, *rest)``."""
        if self.packing == 1:
            return x
        packs = len(x) // self.packing
        if not packs:
            raise ValueError(
                f"expected at least {self.packing} rows for a pack, got {len(x)}; use a larger "
                "batch_size"
            )
        rest = x.shape[1:] if x.ndim > 1 else (1,)
        return x[: packs * self.packing].reshape(packs, self.packing * rest[0], *rest[1:])

    def _scores(self, x: Tensor, context: tuple[Tensor, ...], held: bool = False) -> Tensor:
        """Scores ``(packs, patches)``; ``held``: through weights that take no gradient."""
        if held and isinstance(self.critic, nn.Module):
            scores = functional_call(self.critic, held_state(self.critic), (x, *context))
        else:
            scores = self.critic(x, *context)
        if not scores.ndim or scores.shape[0] != len(x):
            raise ValueError(
                f"expected the critic to give ({len(x)},) scores for events of shape "
                f"{tuple(x.shape)}, got "
                f"{tuple(scores.shape)}; its first dim is that of the packs of {self.packing} rows"
            )
        return scores.reshape(len(x), -1)


def differ(contexts: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Which rows of contexts are not the same, ``(B, ...), (B, ...) -> (B,)``; NaN is as NaN.

    >>> differ([torch.tensor([[1.0], [torch.nan]])], [torch.tensor([[2.0], [torch.nan]])])
    tensor([ True, False])
    """
    found = []
    for context, other in zip(contexts, others, strict=True):
        same = (context == other) | ((context != context) & (other != other))
        found.append((~same).flatten(1).any(1) if same.ndim > 1 else ~same)
    return torch.stack(found).any(0)


def held_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that take no gradient, and buffers that may be changed without being so."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return parameters | {name: b.detach().clone() for name, b in module.named_buffers()}


def _learns(part: nn.Module) -> bool:
    return next(part.parameters(recurse=False), None) is not None
