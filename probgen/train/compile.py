"""The training step as one graph: batch, loss, gradient, clipping, update and averages, several steps in one call."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probgen.core.graph import Compiled, NotCompilable, record
from probgen.core.missing import assume_missing
from probgen.train.parts import Part
from probgen.train.update import rule_of

if TYPE_CHECKING:
    from probgen.train.run import Run

Selection = Any
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


class Step:
    r"""The step of a run for one shape of batch, as a function of tensors that it changes in place.

    .. math:: g = \nabla_\theta L_B(\theta), \qquad (\theta, s) \leftarrow U(\theta, s, g)

    with the optimizer's state s. Where loss or gradient are not finite nothing changes, nor in the steps after it.

    Parameters
    ----------
    run : Run
        What is trained; it has made a step already, so that the optimizer's state exists.
    parts : list of Part
        Its parameters, laid out.
    selection
        A choice of rows from the run's source, or a batch.

    Attributes
    ----------
    graphs : dict of int to Compiled
        By number of steps in one call.
    seconds : float
        The least time that a step has taken.

    Raises
    ------
    NotCompilable
        If the loss depends on values of tensors.
    """

    def __init__(self, run: Run, parts: Sequence[Part], selection: Selection):
        self.run, self.parts, self.selection = run, parts, selection
        self.rule = rule_of(run.optimizer.optimizer)
        self.example = self._inputs(selection)
        with assume_missing(run.source.missing(selection)), _untouched(run.module.buffers()):
            self.recording = record(self._loss, *self.example)
        known = {id(buffer) for buffer in run.module.buffers()}
        buffers = [tensor for tensor in self.recording.closed_over if id(tensor) in known]
        state = ([part.tensors() for part in parts], buffers)
        self.tensors, self._structure = pytree.tree_flatten(state)
        self.graphs: dict[int, Compiled] = {}
        self.seconds = math.inf

    @property
    def operations(self) -> int:
        """Number of tensor operations of loss and gradient."""
        return sum(node.op == "call_function" for node in self.recording.graph.graph.nodes)

    def _loss(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        batch = self.run.source.batch(self.selection, inputs)
        with torch.enable_grad():
            value = self.run.per_row(batch)
            gradients = torch.autograd.grad(value, [piece for part in self.parts for piece in part.pieces])
        return value.detach(), list(gradients)

    def __call__(self, selections: Sequence[Selection], numbers: Tensor) -> list[list[float]]:
        """As many steps as there are selections; gives loss per row and gradient norm of each.

        ``numbers`` holds the optimizer's hyperparameters, ``(steps, groups, K)``; a graph for so many is built.
        """
        began = time.perf_counter()
        results = self.graphs[len(selections)](*self.tensors, numbers, *self._stacked(selections)).tolist()
        self.seconds = min(self.seconds, (time.perf_counter() - began) / len(selections))
        return results

    def build(self, steps: int, numbers: Tensor) -> None:
        """Compiles so many steps into one graph, and compares it with the program."""
        graph, inputs = self.prepare(steps, numbers)
        graph.build(*inputs)
        self._check(graph, inputs)
        self.graphs[steps] = graph

    def prepare(self, steps: int, numbers: Tensor) -> tuple[Compiled, list[Tensor]]:
        """The graph of so many steps, not compiled yet, and its inputs."""
        inputs = [*self.tensors, numbers, *self._stacked([self.selection] * steps)]
        with torch.no_grad(), assume_missing(True):
            return Compiled(record(self._steps, *inputs)), inputs

    def hand_over(self) -> None:
        """Gives the parameters their gradients, for an optimizer that stands outside of the graph."""
        for part in self.parts:
            for piece, gradient in zip(part.pieces, part.split(part.state["gradient"]), strict=True):
                piece.grad = gradient

    def replay_seconds(self) -> float:
        """Time that the operations of loss and gradient take one by one, without the program's Python."""
        times = []
        with _untouched(self.run.module.buffers()), torch.random.fork_rng(), torch.no_grad():
            for _ in range(3):
                began = time.perf_counter()
                self.recording(*self.example)
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _stacked(self, selections: Sequence[Selection]) -> list[Tensor]:
        inputs = [self._inputs(selection) for selection in selections]
        return [torch.stack(values) if len(values) > 1 else values[0][None] for values in zip(*inputs, strict=True)]

    def _inputs(self, selection: Selection) -> list[Tensor]:
        return [tensor.to(self.run.fabric.device) for tensor in self.run.source.tensors(selection)]

    def _check(self, graph: Compiled, inputs: Sequence[Tensor]) -> None:
        """Loss, gradient norm and random state after one call are those of the program itself."""
        with torch.random.fork_rng(), _untouched(self.run.module.buffers()):
            state = torch.get_rng_state()
            with assume_missing(self.run.source.missing(self.selection)):
                value, gradients = self._loss(*self.example)
            expected = torch.stack([value, _norm(gradients)]).double()
            drawn = torch.get_rng_state()
            torch.set_rng_state(state)
            found = graph(*[tensor.clone() for tensor in inputs])
            same = len(found) > 1 or torch.equal(drawn, torch.get_rng_state())
        tolerance = TOLERANCE.get(value.dtype, 0.05)
        if not same or not torch.allclose(found[0], expected, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise NotCompilable(
                f"the compiled step gives loss and gradient norm {found[0].tolist()}, the program {expected.tolist()}"
            )

    def _steps(self, *tensors: Tensor) -> Tensor:
        """Several steps: state, hyperparameters ``(steps, groups, K)``, inputs ``(steps, ...)`` -> ``(steps, 2)``."""
        count = len(self.tensors)
        parts, buffers = pytree.tree_unflatten(tensors[:count], self._structure)
        numbers, inputs = tensors[count], tensors[count + 1 :]
        alive, results = numbers.new_ones((), dtype=torch.bool), []
        for step in range(len(numbers)):
            value, norm, alive = self._one(parts, buffers, numbers[step], [x[step] for x in inputs], alive)
            results.append(torch.stack([value.double(), norm.double()]))
        return torch.stack(results)

    def _one(
        self,
        parts: list[dict[str, Tensor]],
        buffers: list[Tensor],
        numbers: Tensor,
        inputs: list[Tensor],
        alive: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = [buffer.clone() for buffer in buffers]
        versions = [buffer._version for buffer in kept]
        value, gradients = self._evaluate(parts, kept, inputs)
        left = iter(gradients)
        gradients = [part.join([next(left) for _ in part.pieces]) for part in self.parts]
        norm = _norm(gradients)
        alive = alive & value.isfinite() & norm.isfinite()
        if self.run.clip is not None:
            shrink = (self.run.clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = [gradient * shrink for gradient in gradients]
        for part, tensors, gradient in zip(self.parts, parts, gradients, strict=True):
            self._update(part, tensors, gradient, numbers[part.group], alive)
        changed = [index for index, buffer in enumerate(kept) if buffer._version != versions[index]]
        _replace(dict(enumerate(buffers)), {index: kept[index] for index in changed}, alive)
        return value, norm, alive

    def _evaluate(
        self, parts: list[dict[str, Tensor]], buffers: list[Tensor], inputs: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The recorded loss and gradient, at these parameters and buffers."""
        known = {id(buffer) for buffer in self.run.module.buffers()}
        own = iter(buffers)
        place = {id(t): next(own) for t in self.recording.closed_over if id(t) in known}
        for part, tensors in zip(self.parts, parts, strict=True):
            pieces = part.split(tensors["value"])
            place |= {id(piece): value for piece, value in zip(part.pieces, pieces, strict=True)}
        return self.recording(*inputs, closed_over=[place.get(id(t), t) for t in self.recording.closed_over])

    def _update(self, part: Part, tensors: dict[str, Tensor], gradient: Tensor, numbers: Tensor, alive: Tensor) -> None:
        """One part's update; the numbers that its elements share become one tensor, or each would compute them."""
        factors = [*self.rule.factors(numbers.unbind(), tensors), alive]
        *factors, go = torch.stack([factor.to(gradient.dtype) for factor in factors]).unbind()
        new = self.rule.update(tensors, gradient, factors, self.run.optimizer.param_groups[part.group])
        if "average" in tensors:
            new["average"] = tensors["average"] + (new["value"] - tensors["average"]) * (1 - self.run.decay)
        _replace(tensors, new, go > 0)


def _replace(old: dict[Any, Tensor], new: dict[Any, Tensor], where: Tensor) -> None:
    for key, value in new.items():
        old[key].copy_(torch.where(where, value, old[key]))


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([gradient.float().norm() for gradient in gradients]).norm()


@contextlib.contextmanager
def _untouched(tensors: Iterator[Tensor]) -> Iterator[None]:
    """Puts back what happens to these tensors inside the block."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in kept:
            tensor.copy_(value)
