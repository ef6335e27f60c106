"""Parts of a loss that are not trained by its gradient.

A module held fixed (a teacher), and a moving average of another one (a target network).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.program import Program
from probgen.objectives.schedules import WeightSchedule, at_step

Now = Callable[[Tensor], Tensor]


class Frozen(Recorded, nn.Module):
    """A module held fixed: a teacher, a pretrained classifier, the features of a perceptual loss.

    A copy, made now and in eval mode for good. Gradients pass through it to what it is called with,
    and none reaches its parameters: no optimizer has them, nor the average of ``fit(ema=)``, nor
    processes that train together. A checkpoint holds a fingerprint of its weights in their place,
    and a run is not resumed with others. The module that was given stays as it is, and may be
    trained elsewhere. It moves with the objective (``.to(device)``).

    It is called as the module is, and has the module's attributes and methods: a generative model
    gives a distribution, ``self.teacher(context).log_prob(x)``.

    Parameters
    ----------
    module : nn.Module
        What to hold.

    Raises
    ------
    TypeError
        For what is no module, and for a :class:`Program <probgen.Program>`, whose functions cannot
        be copied.
    ValueError
        For a module that cannot be copied: one that keeps a tensor of an earlier run.

    References
    ----------
    Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network,
    https://arxiv.org/abs/1503.02531

    >>> teacher = Frozen(nn.Linear(2, 1))
    >>> list(teacher.parameters()), teacher.train().weight.requires_grad
    ([], False)
    """

    def __init__(self, module: nn.Module):
        own = _copied(module, "Frozen").requires_grad_(False)
        super().__init__()
        self.__dict__["module"] = own.eval()  # no part of this module: nobody trains or saves it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if "module" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.__dict__["module"], name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        self.module._apply(fn, recurse)
        return self

    def weights(self) -> dict[str, Tensor]:
        """Its parameters and buffers by name."""
        state: dict[str, Tensor] = self.module.state_dict()
        return state

    def extra_repr(self) -> str:
        return type(self.module).__name__


class Average(Recorded, nn.Module):
    r"""An exponential moving average of the parameters of another module, as a module.

    A target network, a mean teacher, the averaged generator of a game: what it is called with goes
    through the averaged weights.

    .. math:: \bar\theta_0 = \theta_0, \qquad
              \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t) \theta_t

    :func:`probgen.fit` moves it after each step of the optimizer, compiled steps included. It is in
    eval mode for good, and no gradient reaches its parameters, while gradients pass to what it is
    called with. Buffers (running means of batch normalization) are copied at each step. It belongs
    to the state of the objective, checkpoints included, and has nothing to do with ``fit(ema=)``.
    Several processes keep the same one, as their parameters are the same.

    It has the attributes and methods of the module.

    Parameters
    ----------
    module : nn.Module
        What is followed: the model that is trained, a part of it, or of the objective.
    decay : float or callable
        d, or a function of the number of steps done (a 0-dim tensor, from 1).

    Raises
    ------
    TypeError, ValueError
        As for :class:`Frozen`; for a decay outside of [0, 1); for a module without parameters yet.

    References
    ----------
    Tarvainen, Valpola (2017), Mean teachers are better role models, https://arxiv.org/abs/1703.01780;
    Grill et al. (2020), Bootstrap your own latent, https://arxiv.org/abs/2006.07733

    >>> net = nn.Linear(2, 1)
    >>> mean = Average(net, 0.9)
    >>> before = mean.weight.clone()
    >>> with torch.no_grad():
    ...     _ = net.weight.add_(1.0)
    >>> mean.follow()
    >>> bool(torch.allclose(mean.weight, before + 0.1))
    True
    """

    step: Tensor

    def __init__(self, module: nn.Module, decay: float | WeightSchedule):
        if not callable(decay):
            checks.within("[0, 1)", "0.999 averages over about 1,000 steps", decay=decay)
        own = _copied(module, "Average").requires_grad_(False)
        super().__init__()
        self.module = own.eval()
        self.decay = decay
        self.__dict__["followed"] = module  # it belongs to the model, or to the objective
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "module" not in self.__dict__.get("_modules", {}):  # while it is copied or unpickled
                raise
            return getattr(self.module, name)

    def train(self, mode: bool = True) -> Average:
        super().train(mode)
        self.module.eval()
        return self

    def tensors(self) -> list[Tensor]:
        """What moves."""
        return [*self.module.parameters(), *self.module.buffers(), self.step]

    @torch.no_grad()
    def moved(self, now: Now = lambda tensor: tensor) -> list[Tensor]:
        """What :meth:`tensors` become after a step.

        ``now`` gives the present values of tensors of both modules where they are kept elsewhere.
        """
        step = now(self.step) + 1
        decay: Any = at_step(self.decay, step, True)
        pairs = zip(self.module.parameters(), self.followed.parameters(), strict=True)
        means = [_between(now(mean), now(newest), decay) for mean, newest in pairs]
        return [*means, *(now(buffer) for buffer in self.followed.buffers()), step]

    @torch.no_grad()
    def follow(self) -> None:
        """Moves it by one step."""
        for own, new in zip(self.tensors(), self.moved(), strict=True):
            own.copy_(new)

    def extra_repr(self) -> str:
        return f"decay={self.decay}"


def held_teacher(teacher: nn.Module) -> Frozen:
    """A teacher held fixed, as it is or as a copy."""
    return teacher if isinstance(teacher, Frozen) else Frozen(teacher)


def taught(objective: Any, contexts: list[Any], needs: type, wanted: str, instead: str) -> Any:
    """The distribution of an objective's ``teacher`` given contexts, by its ``guidance`` if any.

    Raises ``TypeError`` unless it satisfies the protocol ``needs``.
    """
    with torch.no_grad():
        distribution: Any = objective.teacher(*contexts)
    known: bool = isinstance(distribution, needs)
    if not known:
        raise TypeError(
            f"{type(objective).__name__}: expected a teacher whose distribution is one {wanted}, "
            f"got {type(distribution).__name__}; pass a trained {instead}"
        )
    guidance = objective.guidance
    return distribution if guidance is None else distribution.using(guidance=guidance)


def _between(mean: Tensor, newest: Tensor, decay: float | Tensor) -> Tensor:
    """An infinity, as in tables of log probabilities, minus itself is not a number."""
    return torch.where(mean == newest, mean, mean + (newest - mean) * (1 - decay))


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A copy of a module for a part called ``name``, which shares nothing with it."""
    checks.instance(nn.Module, **{f"module of {name}": module})
    if isinstance(module, Program):
        raise TypeError(
            f"{name}: expected a module that can be copied, got a Program, whose functions cannot; "
            "pass the networks in it, or write it as a LatentVariableModel or DistributionModule"
        )
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        raise ValueError(
            f"{name}: expected a module whose parameters are there, got a "
            f"{type(module).__name__} with lazy ones; run it once on a batch first"
        )
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name}: expected a module that can be copied, got a {type(module).__name__}: {error}; "
            "copy.deepcopy(module) has to work"
        ) from error
