"""Parameters that are trained by name only: no gradient reaches them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probgen.train.agreement import GRADIENTS
from probgen.train.compiled.module_state import preserved
from probgen.train.history import FitWarning, listed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from probgen.train.run import Run

STEPS = 20  # steps that a gradient has time to come in: players take turns, layers start at zero
TRIES = 8  # runs in training mode after them
DO = (
    "let the loss depend on them (a branch that is detached or never used, a rounding without "
    "straight-through, a weight that is zero), or freeze them with requires_grad_(False)"
)


class GradientWatch:
    """Looks in the first steps of a run for trained parameters that get no gradient.

    A parameter is one of them if its gradient is absent, or zero in every entry, in each step
    that is not compiled; and, tried afterwards, in eval mode, where schedules stand at their end
    and every player of a game has its turn, and in some more runs in training mode, where what
    happens at random happens at last.

    With several processes each of them looks: gradients of steps are those of all (DDP), and what
    one process finds afterwards on its own rows counts for all. Where a strategy keeps parts of the
    parameters in each process (FSDP) no one holds whole gradients, and nothing is watched.

    Parameters
    ----------
    run : Run
        Whose optimizer's parameters are looked at.
    """

    def __init__(self, run: Run):
        given = (p for group in run.optimizer.param_groups for p in group["params"])
        learned = {id(p) for p in given}
        self.run = run
        self.until = run.step + STEPS
        self.trained = {
            name: p
            for name, p in run.module.named_parameters()
            if p.requires_grad and p.numel() and id(p) in learned
        }
        self.left = _expected(run.module, self.trained)

    def see(self) -> None:
        """Takes note of the gradients that the parameters hold."""
        if self.left:
            self._reached([p.grad for p in self.left.values()])

    def _reached(self, gradients: Sequence[Tensor | None]) -> None:
        pairs = zip(self.left.items(), gradients, strict=True)
        self.left = dict(item for item, gradient in pairs if _is_nothing(gradient))

    def conclude(self) -> None:
        """Names those that are left, in the history and in one warning."""
        before = dict(self.left)
        for training in (False, *[True] * TRIES):
            if self.left:
                self._try(training)
        self._agree(before)
        if not self.left:
            return
        names = [readable(name) for name in whole_modules(self.left, self.trained)]
        self.run.history.without_gradient = names
        if not self.run.fabric.is_global_zero:
            return
        warnings.warn(
            f"no gradient reaches {len(self.left)} of the {len(self.trained)} parameters that are "
            f"trained: {listed(names)}; {DO}",
            FitWarning,
            stacklevel=9,
        )

    def _agree(self, before: dict[str, nn.Parameter]) -> None:
        """Keeps of those before the tries the ones that no process has found a gradient of."""
        shares = self.run.agreement.meet(GRADIENTS, [name in self.left for name in before])
        self.left = {
            name: p
            for (name, p), share in zip(before.items(), shares, strict=True)
            if share > 0.999
        }

    def _try(self, training: bool) -> None:
        """The gradient of a batch, which changes nothing."""
        run = self.run
        selection = run.source.first()
        with preserved(run.module), torch.random.fork_rng(), torch.enable_grad():
            run.module.train(training)
            try:
                index = run.source.index(selection)
                weights = run.source.scales(selection)
                batch = run.fetch(selection)
                value = run.per_row(batch, loss=run.plain, index=index, weights=weights)
                given = list(self.left.values())
                self._reached(torch.autograd.grad(value, given, allow_unused=True))
            except Exception:
                return  # what fails in this mode tells nothing


def stands_alone(fabric: Fabric) -> bool:
    """Whether this process trains by itself, so that nothing of Fabric's is around the loss."""
    from lightning_fabric.strategies import SingleDeviceStrategy

    return isinstance(fabric.strategy, SingleDeviceStrategy)


def holds_gradients(fabric: Fabric) -> bool:
    """Whether each process holds the whole gradient of each parameter."""
    from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy

    return isinstance(fabric.strategy, DDPStrategy | SingleDeviceStrategy)


def _expected(loss: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of the parameters that the objective says nothing of.

    Parts that it holds fixed are no surprise, nor is an energy's constant where that cancels, nor
    what a module says only some data need (``rare``, names of its parameters).
    """
    objective = getattr(loss, "elbo", None)
    held = tuple(f"elbo.{name}." for name in getattr(objective, "held", ()))
    cancels = getattr(objective, "ignores_constants", False)
    rare = {
        f"{path}.{name}"
        for path, part in loss.named_modules()
        for name in getattr(part, "rare", ())
    }
    return {
        name: p
        for name, p in trained.items()
        if not name.startswith(held) and name not in rare and not (cancels and p.numel() == 1)
    }


def check_depends(loss: Tensor) -> None:
    """Refuses a loss that no gradient can be taken of."""
    if not loss.requires_grad:
        check_reached([])


def check_reached(gradients: Sequence[Tensor]) -> None:
    """Refuses a step in which no parameter has got a gradient, or one has got a sparse one.

    Raises
    ------
    ValueError
        With what to look at.
    """
    if not gradients:
        raise ValueError(
            "expected a loss that depends on the parameters to be learned, got one that depends on "
            f"none of them; {DO}, and give the optimizer the parameters that it is to move"
        )
    if any(gradient.is_sparse for gradient in gradients):
        raise ValueError(
            "expected dense gradients, got sparse ones; build nn.Embedding(..., sparse=False)"
        )


def _is_nothing(gradient: Tensor | None) -> bool:
    if gradient is None:
        return True
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return not bool(values.any())


def whole_modules(some: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Names of parameters, or of the modules of which all parameters are among them.

    >>> whole_modules(["a.bias", "b.0.w", "b.1.w"], ["a.bias", "a.weight", "b.0.w", "b.1.w"])
    ['a.bias', 'b']
    """
    chosen = set(some)
    others = [name for name in everything if name not in chosen]
    found = (_outermost(name, others) for name in some)
    return list(dict.fromkeys(found))


def _outermost(name: str, others: Sequence[str]) -> str:
    """The largest module around a parameter in which there is none of the others."""
    places = name.split(".")
    for depth in range(1, len(places)):
        module = ".".join(places[:depth])
        if not any(other.startswith(f"{module}.") for other in others):
            return module
    return name


def readable(name: str) -> str:
    """A name in the loss module as the user knows it: within the model, or the objective.

    >>> readable("gen.decoder.weight"), readable("elbo.critic.bias")
    ('decoder.weight', 'objective.critic.bias')
    """
    inside, _, rest = name.partition(".")
    if inside == "elbo":
        return f"objective.{rest}" if rest else "objective"
    return rest.removeprefix("statements.") if inside == "gen" and rest else name
