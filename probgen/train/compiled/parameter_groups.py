"""Parameters and what their optimizer keeps for them, laid out for a graph.

Many small ones as one vector.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.compile.tracing import NotCompilable
from probgen.core.private_torch import waits_for_gradient
from probgen.train.compiled.module_state import attached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probgen.train.run import Run

SMALL = 4096


class Part(NamedTuple):
    """Parameters that are updated together.

    Attributes
    ----------
    pieces : list of Parameter
        They share the storage of ``value``.
    value : Tensor
        One vector of them all, or the one parameter itself.
    state : dict of str to Tensor
        What the optimizer keeps, in the shape of ``value``; ``step`` is one number.
    average : dict of str to Tensor
        Where there is one, the exponential moving average of ``value`` and its number of steps
        (``averaged``).
    group : int
        Index of the optimizer's parameter group.
    homes : list of Tensor
        Where the values of the pieces stood before; others may look there.
    """

    pieces: list[nn.Parameter]
    value: Tensor
    state: dict[str, Tensor]
    average: dict[str, Tensor]
    group: int
    homes: list[Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, by name."""
        return {"value": self.value, **self.state, **self.average}

    def split(self, value: Tensor) -> list[Tensor]:
        """The pieces in a tensor laid out as ``value``."""
        if len(self.pieces) == 1:
            return [value]
        ends = itertools.accumulate(piece.numel() for piece in self.pieces)
        return [
            value[end - p.numel() : end].view(p.shape)
            for end, p in zip(ends, self.pieces, strict=True)
        ]

    def join(self, pieces: list[Tensor]) -> Tensor:
        """One tensor laid out as ``value``."""
        return pieces[0] if len(pieces) == 1 else torch.cat([piece.reshape(-1) for piece in pieces])


def lay_out(run: Run, outside: bool) -> list[Part]:
    """Moves the parameters that have taken part in steps.

    Their optimizer's state and averages into parts.

    The parameters stay the objects that they are; the optimizer's state holds views of the parts,
    but for its step counts (:func:`write_steps`). ``outside``: the optimizer keeps its state, the
    parts have a place for the gradient. Raises :class:`NotCompilable` for parameters whose memory
    is that of other tensors, too.
    """
    _check_alone(run)
    state = run.optimizer.state
    groups = [group["params"] for group in run.optimizer.param_groups]
    of_group = {id(p): index for index, parameters in enumerate(groups) for p in parameters}
    together: dict[Any, list[int]] = {}
    for index, p in enumerate(run.parameters):
        kept = state.get(p, {})  # asking for what is not there would add it
        takes_part = p.grad is not None or (_kept(kept) and id(p) not in run.idle)
        if id(p) in of_group and takes_part:
            kind = (
                of_group[id(p)],
                p.dtype,
                p.device,
                float(kept.get("step", 0)),
                tuple(_kept(kept)),
            )
            together.setdefault(
                kind if p.numel() <= SMALL and p.is_contiguous() else (kind, index), []
            ).append(index)
    make = _for_gradients if outside else _with_state
    return [
        make(run, indices, of_group[id(run.parameters[indices[0]])])
        for indices in together.values()
    ]


def _check_alone(run: Run) -> None:
    """Parameters can move only if nobody else sees their memory."""
    if any(p.is_complex() for p in run.parameters):
        raise NotCompilable("a parameter is complex; keep its real and imaginary parts")
    if any(map(waits_for_gradient, run.parameters)):
        raise NotCompilable(
            "a parameter has a hook that waits for its gradient; change the gradient with "
            "register_hook"
        )
    mine = {id(p) for p in run.parameters}
    others = {id(t): t for t in attached(run.module).values() if t.is_leaf and id(t) not in mine}
    if overlapping(run.parameters, list(others.values())):
        raise NotCompilable(
            "a tensor of the model shares its memory with a parameter; keep it once"
        )


def overlapping(changing: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether a tensor shares memory with one of those that change."""
    given = [(t, True) for t in changing] + [(t, False) for t in others]
    places = [
        (t.data_ptr(), _end(t), changes)
        for t, changes in given
        if t.layout is torch.strided and t.numel()
    ]
    reached = {True: 0, False: 0}
    for start, end, changes in sorted(places):
        if start < reached[True] or (changes and start < reached[False]):
            return True
        reached[changes] = max(reached[changes], end)
    return False


def _end(t: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr() + (last + 1) * t.element_size()


def _kept(state: dict[str, Any]) -> list[str]:
    return [key for key, value in state.items() if torch.is_tensor(value) and key != "step"]


def _with_state(run: Run, indices: list[int], group: int) -> Part:
    pieces = [run.parameters[index] for index in indices]
    states = [run.optimizer.state[p] for p in pieces]
    kept = {key: _merge([state[key] for state in states]) for key in _kept(states[0])}
    steps = {"step": torch.as_tensor(states[0]["step"]).clone()} if "step" in states[0] else {}
    average = _averages(run, indices)
    homes = [p.detach() for p in pieces]
    part = Part(pieces, _merge(homes), kept | steps, average, group, homes)
    _share(part)
    for key, values in kept.items():
        for state, view in zip(states, part.split(values), strict=True):
            state[key] = view
    if run.average is not None:
        for index, view in zip(indices, part.split(average["average"]), strict=True):
            run.average[index] = view
    return part


def _averages(run: Run, indices: list[int]) -> dict[str, Tensor]:
    """The count is precise enough for one minus a decay close to one, to a high power."""
    if run.average is None:
        return {}
    steps = torch.tensor(
        float(run.averaged_steps), dtype=torch.float64, device=run.parameters[indices[0]].device
    )
    return {"average": _merge([run.average[index] for index in indices]), "averaged": steps}


def _for_gradients(run: Run, indices: list[int], group: int) -> Part:
    pieces = [run.parameters[index] for index in indices]
    homes = [p.detach() for p in pieces]
    value = _merge(homes)
    part = Part(pieces, value, {"gradient": torch.zeros_like(value)}, {}, group, homes)
    _share(part)
    return part


def _share(part: Part) -> None:
    """Makes the part's value the storage of its parameters."""
    for piece, view in zip(part.pieces, part.split(part.value), strict=True):
        piece.data = view
        piece.grad = None


def _merge(tensors: list[Tensor]) -> Tensor:
    return (
        tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])
    )


def write_steps(run: Run, parts: list[Part]) -> None:
    """Brings the step counts in the optimizer's own state up to date."""
    for part in parts:
        for p in part.pieces if "step" in part.state else ():
            run.optimizer.state[p]["step"].copy_(part.state["step"])


def read_steps(run: Run, parts: list[Part]) -> None:
    """Takes the step counts from the optimizer's own state, and from the run."""
    for part in parts:
        if part.average:
            part.average["averaged"].fill_(run.averaged_steps)
        if "step" in part.state:
            part.state["step"].copy_(run.optimizer.state[part.pieces[0]]["step"])


def release(run: Run, parts: list[Part]) -> None:
    """Puts every parameter back to where it stood.

    And gives its state and average a storage of their own again.
    """
    where = {id(p): index for index, p in enumerate(run.parameters)}
    for part in parts:
        for p, home in zip(part.pieces, part.homes, strict=True) if len(part.pieces) > 1 else ():
            p.data = home.copy_(p.detach())
            state = run.optimizer.state[p]
            state |= {key: state[key].clone() for key in _kept(state)}
            if run.average is not None:
                run.average[where[id(p)]] = run.average[where[id(p)]].clone()
