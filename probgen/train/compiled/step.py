"""The training step as one graph.

Batch, loss, gradient, clipping, update and averages, several steps in one call.
"""

from __future__ import annotations

import functools
import logging
import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.compile.kernel_library import Loop
from probgen.compile.passes import simplify
from probgen.compile.rounding import tolerance
from probgen.compile.tracing import Compiled, NotCompilable, Repeated, record_operations, replica
from probgen.core.loss_parts import noted_parts
from probgen.core.missing import assume_missing
from probgen.core.private_torch import pytree
from probgen.train.compiled.module_state import attached, plain_values, preserved, python_random
from probgen.train.compiled.optimizer_updates import OUTSIDE, rule_of
from probgen.train.compiled.parameter_groups import Part, overlapping
from probgen.train.noted import Series, numbers_of, series_of

if TYPE_CHECKING:
    from probgen.train.run import Run

Selection = Any
_log = logging.getLogger("probgen")
# steps in a row without looking up, as calls of a library or inside one of a kernel, and seconds
# that they may take
MOST = 64
MOST_LOOPED = 512
TOGETHER = 0.02
# bytes of draws that wait for their steps
DRAWN = 2**22
# different numbers of steps that memory is kept for, beside powers of two
NUMBERS = 8
# steps in one call that are compared with steps one by one
CHECKED = 3


class CompiledStep:
    r"""The step of a run for one shape of batch, as a function of tensors that it changes in place.

    .. math:: g = \nabla_\theta L_B(\theta), \qquad (\theta, s) \leftarrow U(\theta, s, g)

    with the optimizer's state s. Where loss or gradient are not finite nothing changes, nor in the
    steps after it.

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
    graph : Compiled or None
        Once it is built.
    seconds : float
        The least time that a step has taken.
    series : tuple
        Which series of the history the parts of the loss go on.

    Raises
    ------
    NotCompilable
        If the loss depends on values of tensors.
    """

    def __init__(self, run: Run, parts: Sequence[Part], selection: Selection):
        self.run = run
        self.parts = parts
        self.selection = selection
        self.device = run.fabric.device
        self.rule = rule_of(run.optimizer.optimizer)
        self.series: Series = ()
        self.example = self._inputs(selection)
        self.constants = self._constants()
        with assume_missing(run.source.missing(selection)), preserved(run.module):
            before = attached(run.module), python_random()
            self.recording = record_operations(self._loss, *self.example)
            self._check_constants(*before)
        pieces = {id(piece) for part in parts for piece in part.pieces}
        self.buffers = [tensor for tensor in self.recording.changed if id(tensor) not in pieces]
        known = {id(tensor) for tensor in self.buffers}
        for follower in run.followers:
            self.buffers += [each for each in follower.tensors() if id(each) not in known]
        self._check_memory()
        self.recording = simplify(self.recording, *self.example)
        alive = torch.ones((), dtype=torch.bool, device=run.fabric.device)
        state = ([part.tensors() for part in parts], self.buffers, alive)
        self.tensors, self._structure = pytree.tree_flatten(state)
        names = [f"buffer {index}" for index, _ in enumerate(self.buffers)]
        self._names = pytree.tree_leaves(
            ([{name: name for name in part.tensors()} for part in parts], names, "alive")
        )
        self.graph: Compiled | None = None
        self.seconds = math.inf
        self._calls: dict[int, Repeated | Loop] = {}
        self._prepared: tuple[Compiled, list[Tensor]] | None = None

    @property
    def operations(self) -> int:
        """Number of tensor operations of loss and gradient."""
        return sum(node.op == "call_function" for node in self.recording.graph.graph.nodes)

    def _loss(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss per row, its gradients, and the numbers of its parts."""
        batch = self.run.source.batch(self.selection, inputs)
        with torch.enable_grad(), noted_parts() as parts:
            index = self.run.source.index(self.selection, inputs)
            weights = self.run.source.scales(self.selection, inputs)
            value = self.run.per_row(batch, loss=self.run.plain, index=index, weights=weights)
            pieces = [piece for part in self.parts for piece in part.pieces]
            known = {id(piece) for piece in pieces}
            trained = [p for group in self.run.optimizer.param_groups for p in group["params"]]
            others = [p for p in trained if p.requires_grad and id(p) not in known]
            gradients = torch.autograd.grad(value, [*pieces, *others], allow_unused=True)
        if [gradient is None for gradient in gradients] != [False] * len(pieces) + [True] * len(
            others
        ):
            raise NotCompilable("some parameters take part in some batches only")
        self.series = series_of(parts)
        numbers = numbers_of(parts, self.run.count(batch))
        return value.detach(), list(gradients[: len(pieces)]), numbers

    def __call__(
        self, selections: Sequence[Selection], numbers: Sequence[Tensor]
    ) -> list[list[float]]:
        """As many steps as there are selections, at most :meth:`most`.

        Gives lists over the steps: loss per row, gradient norm, and each part of the loss
        (``series``).

        ``numbers`` holds the optimizer's hyperparameters in each of them, ``(groups, K)``.
        """
        count = len(selections)
        if count not in self._calls:
            graph = self._built()
            self._calls[count] = (
                graph.repeatedly(count) if graph.kernel is None else graph.loop(count)
            )
        began = time.perf_counter()
        call = self._calls[count]
        inputs = ([n, *self._inputs(chosen)] for chosen, n in zip(selections, numbers, strict=True))
        if isinstance(call, Loop):
            results = call(self.tensors, inputs)
        else:
            results = torch.stack(call([*self.tensors, *own] for own in inputs))
        # turned afterwards: to stack them by columns takes twice as long
        rows = results.T.tolist()
        self.seconds = min(self.seconds, (time.perf_counter() - began) / count)
        return rows

    def together(self, room: int) -> int:
        """How many steps are made in a row where there is room for so many.

        Inside one call all of them, as the rest of an epoch; else a power of two: for each number
        of steps there is memory for their draws.
        """
        most = self.most()
        few = room in self._calls or len(self._calls) < NUMBERS
        if self._built().kernel is not None and room <= most and few:
            return room
        return 2 ** int(math.log2(min(room, most)))

    def most(self) -> int:
        """So many steps may be made in a row.

        What takes some milliseconds, one where draws depend on values.
        """
        graph = self._built()
        if graph.random:
            return 1
        bound = MOST
        if graph.kernel is not None:
            bound = min(MOST_LOOPED, DRAWN // max(1, graph.drawn))
        return max(1, min(bound, int(TOGETHER / self.seconds)))

    def _built(self) -> Compiled:
        assert self.graph is not None  # :meth:`build` comes first
        return self.graph

    def build(self, numbers: Tensor, library: bool = True) -> None:
        """Compiles the graph, and compares it with the program.

        A kernel that gives other results gives way to a library.
        """
        graph, inputs = self.prepare(numbers)
        if self.looped(numbers):
            try:
                self._check(graph, inputs)
                self._check_loop(graph, inputs)
                self.graph = graph
                return
            except NotCompilable as error:
                _log.warning("steps are not made in one loop: %s", error)
                graph.forget_kernel(str(error))
        graph.build(*inputs, library=library)
        self._check(graph, inputs)
        self.graph = graph

    def prepare(self, numbers: Tensor) -> tuple[Compiled, list[Tensor]]:
        """The graph, not compiled yet, and its inputs."""
        if self._prepared is None:
            inputs = [*self.tensors, numbers, *self.example]
            with torch.no_grad(), assume_missing(True):
                self._prepared = Compiled(record_operations(self._step, *inputs)), inputs
        graph, inputs = self._prepared
        inputs[len(self.tensors)] = numbers
        return graph, inputs

    def looped(self, numbers: Tensor) -> bool:
        """Whether many steps can be made inside one call of machine code.

        Which a kernel is compiled for, in a second or two.
        """
        graph, inputs = self.prepare(numbers)
        if graph.kernel is None and not graph.unlowered and self.rule is not OUTSIDE:
            graph.lower(*inputs, fixed=len(self.tensors))
        return graph.kernel is not None

    def outdated(self) -> str | None:
        """A Python value of the module that is no longer what the graph has taken it for."""
        now = self._constants()
        names = (
            name
            for name in now.keys() | self.constants.keys()
            if now.get(name) != self.constants.get(name)
        )
        return next(names, None)

    def _constants(self) -> dict[str, str]:
        """Python values that a graph is made with."""
        flags = {"clip": repr(self.run.clip), "ema": repr(self.run.decay)}
        for index, group in enumerate(self.run.optimizer.param_groups):
            flags[f"optimizer.{index}.params"] = repr(len(group["params"]))
            flags |= {
                f"optimizer.{index}.{key}": repr(flag)
                for key, flag in group.items()
                if isinstance(flag, bool)
            }
        return plain_values(self.run.module) | flags

    def hand_over(self) -> None:
        """Gives the parameters their gradients.

        For an optimizer that stands outside of the graph.
        """
        for part in self.parts:
            for piece, gradient in zip(
                part.pieces, part.split(part.state["gradient"]), strict=True
            ):
                piece.grad = gradient

    def replay_seconds(self) -> float:
        """Time that the operations of loss and gradient take one by one.

        Without the program's Python.
        """
        times = []
        with preserved(self.run.module, *self.buffers), torch.random.fork_rng(), torch.no_grad():
            for _ in range(3):
                began = time.perf_counter()
                self.recording(*self.example)
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _inputs(self, selection: Selection) -> list[Tensor]:
        return [
            tensor.to(self.device).contiguous() for tensor in self.run.source.tensors(selection)
        ]

    def _check_constants(self, before: dict[str, Tensor], random: tuple[Any, ...]) -> None:
        """The program does nothing that a graph would not do."""
        if self.recording.refusal:
            raise NotCompilable(self.recording.refusal)
        name = self.outdated()
        if name is not None:
            raise NotCompilable(
                f"the program changes '{name}', a Python value; make it a buffer that changes in "
                "place"
            )
        if python_random() != random:
            raise NotCompilable(
                "the program draws random numbers of Python or NumPy; draw them with torch"
            )
        read = {id(tensor) for tensor in self.recording.closed_over}
        buffers = {name for name, _ in self.run.module.named_buffers()}
        for name, tensor in attached(self.run.module).items():
            old = before.get(name)
            if old is not tensor and old is not None and (id(old) in read or name in buffers):
                raise NotCompilable(
                    f"the program replaces '{name}'; change it in place, with .copy_()"
                )

    def _check_memory(self) -> None:
        """What changes is not seen under other names, nor looked for where it was."""
        own = {
            id(tensor)
            for tensor in [*self.buffers, *(piece for part in self.parts for piece in part.pieces)]
        }
        others = [tensor for tensor in self.recording.closed_over if id(tensor) not in own]
        homes = [home for part in self.parts if len(part.pieces) > 1 for home in part.homes]
        changing = [*(part.value for part in self.parts), *homes, *self.buffers]
        if overlapping(changing, others):
            raise NotCompilable(
                "a tensor shares its memory with a parameter or buffer that changes; keep it once"
            )

    def _check(self, graph: Compiled, inputs: Sequence[Tensor]) -> None:
        """Loss, gradient norm and random state are those of the program.

        All that changes is as without compiler.
        """
        copies, again = (list(map(replica, inputs)) for _ in range(2))
        with torch.random.fork_rng(), preserved(self.run.module, *self.buffers):
            state = torch.get_rng_state()
            with assume_missing(self.run.source.missing(self.selection)):
                value, gradients, numbers = self._loss(*self.example)
            expected = _result(value, _norm(gradients), numbers)
            drawn = torch.get_rng_state()
            torch.set_rng_state(state)
            found = graph(*copies)
            same = torch.equal(drawn, torch.get_rng_state())
            torch.set_rng_state(state)
            replayed = graph.replay(*again)
        slack = self._tolerance()
        near: dict[str, Any] = {"rtol": slack, "atol": slack, "equal_nan": True}
        if not same or not torch.allclose(found, expected, **near):
            raise NotCompilable(
                f"the compiled step gives loss and gradient norm {found.tolist()}, the program "
                f"{expected.tolist()}"
            )
        wrong = self._differences(copies, again, inputs, slack)
        if wrong or not torch.allclose(found, replayed, **near):
            raise NotCompilable(
                f"the compiled step gives another {wrong or 'loss'} than its operations one by one"
            )

    def _check_loop(self, graph: Compiled, inputs: Sequence[Tensor]) -> None:
        """Several steps in one call are the same steps one by one, number for number."""
        count = len(self.tensors)
        copies, again = ([*map(replica, inputs[:count])] for _ in range(2))
        each = [inputs[count:]] * CHECKED
        with torch.random.fork_rng():
            state = torch.get_rng_state()
            found = graph.loop(CHECKED)(copies, each)
            drawn = torch.get_rng_state()
            torch.set_rng_state(state)
            expected = torch.stack([graph(*again, *own) for own in each])
            same = torch.equal(drawn, torch.get_rng_state())
        pairs = [*zip(copies, again, strict=True), (found, expected)]
        if not same or not all(_identical(one, two) for one, two in pairs):
            raise NotCompilable("steps in one call are others than one by one")

    def _tolerance(self) -> float:
        """By the lowest precision among the operations."""
        values = [node.meta.get("val") for node in self.recording.graph.graph.nodes]
        return max(tolerance(value.dtype) for value in values if torch.is_tensor(value))

    def _differences(
        self,
        found: Sequence[Tensor],
        expected: Sequence[Tensor],
        before: Sequence[Tensor],
        tolerated: float,
    ) -> str:
        """What has become something else than expected.

        Optimizers turn rounding of tiny gradients into whole steps.
        """
        wrong = []
        for name in dict.fromkeys(self._names):
            one, two, old = (
                torch.cat(
                    [_flat(t) for n, t in zip(self._names, tensors, strict=False) if n == name]
                )
                for tensors in (found, expected, before)
            )
            slack = (two - old).norm() / 2 if name in ("value", "average") else 0.0
            if (one - two).norm() > tolerated * (0.1 + two.norm()) + slack:
                wrong.append(name)
        return " and ".join(wrong)

    def _step(self, *tensors: Tensor) -> Tensor:
        """One step: state, hyperparameters ``(groups, K)``.

        Inputs -> loss per row, gradient norm, and the parts of the loss: ``(2 + parts,)``.
        """
        count = len(self.tensors)
        parts, buffers, alive = pytree.tree_unflatten(tensors[:count], self._structure)
        numbers = tensors[count]
        inputs = tensors[count + 1 :]
        kept = [buffer.clone() for buffer in buffers]
        value, gradients, noted = self._evaluate(parts, kept, inputs)
        left = iter(gradients)
        gradients = [part.join([next(left) for _ in part.pieces]) for part in self.parts]
        norm = _norm(gradients)
        alive.logical_and_(value.isfinite() & norm.isfinite())
        if self.run.clip is not None:
            shrink = (self.run.clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = [gradient * shrink for gradient in gradients]
        for part, own, gradient in zip(self.parts, parts, gradients, strict=True):
            self._update(part, own, gradient, numbers[part.group], alive)
        if self.rule is not OUTSIDE:
            self._follow(parts, kept)
        _replace(dict(enumerate(buffers)), dict(enumerate(kept)), alive)
        return _result(value, norm, noted)

    def _evaluate(
        self, parts: list[dict[str, Tensor]], buffers: list[Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The recorded loss, gradient and parts, at these parameters and buffers."""
        place = self._places(parts, buffers)
        return self.recording(
            *inputs, closed_over=[place.get(id(t), t) for t in self.recording.closed_over]
        )

    def _places(self, parts: list[dict[str, Tensor]], buffers: list[Tensor]) -> dict[int, Tensor]:
        """The present values of parameters and buffers, by the identity of these."""
        place = {id(old): new for old, new in zip(self.buffers, buffers, strict=True)}
        for part, tensors in zip(self.parts, parts, strict=True):
            pieces = part.split(tensors["value"])
            place |= {id(piece): value for piece, value in zip(part.pieces, pieces, strict=True)}
        return place

    def _follow(self, parts: list[dict[str, Tensor]], buffers: list[Tensor]) -> None:
        """Averages of modules (:class:`probgen.objectives.Average`) go on to the new parameters."""
        place = self._places(parts, buffers)
        for follower in self.run.followers:
            new = follower.moved(lambda tensor: place.get(id(tensor), tensor))
            for own, value in zip(follower.tensors(), new, strict=True):
                place[id(own)].copy_(value)

    def _update(
        self,
        part: Part,
        tensors: dict[str, Tensor],
        gradient: Tensor,
        numbers: Tensor,
        alive: Tensor,
    ) -> None:
        """One part's update.

        The numbers that its elements share become one tensor, or each would compute them.
        """
        shared = [alive, *self.rule.factors(numbers.unbind(), tensors)]
        if part.average:
            decay: Any = self.run.decay
            shared.append((1 - decay) / (1 - decay ** (tensors["averaged"] + 1)))
        kind = _wide(gradient).dtype
        go, *factors = torch.stack([number.to(kind) for number in shared]).unbind()
        newest = factors.pop() if part.average else None
        new = self.rule.update(
            tensors, gradient, tuple(factors), self.run.optimizer.param_groups[part.group]
        )
        if newest is not None:
            moved = new["value"] - tensors["average"]
            if self.run.unbounded:  # an infinity minus itself is not a number
                moved = torch.where(new["value"] == tensors["average"], 0.0, moved)
            new["average"] = tensors["average"] + moved * newest
            new["averaged"] = tensors["averaged"] + 1
        _replace(tensors, new, go > 0)


def _result(value: Tensor, norm: Tensor, numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.double(), norm.double(), *numbers])


def _replace(old: dict[Any, Tensor], new: dict[Any, Tensor], where: Tensor) -> None:
    for key, value in new.items():
        old[key].copy_(torch.where(where, value, old[key]))


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    norms = [_wide(gradient).norm() for gradient in gradients]
    kind = functools.reduce(torch.promote_types, (norm.dtype for norm in norms))
    return torch.stack([norm.to(kind) for norm in norms]).norm()


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _identical(one: Tensor, two: Tensor) -> bool:
    return bool(((one == two) | ((one != one) & (two != two))).all())


def _flat(value: Tensor) -> Tensor:
    return (torch.view_as_real(value) if value.is_complex() else value).double().flatten()
