"""A recorded function run again.

Without its Python, many runs at once where its draws allow that, or compiled. Measured by
``benchmarks/compile_passes.py``: with discrete draws left as they are predictive draws of a
logistic regression take 1.5 times as long, since they then run one by one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from probgen.compile.mutation_analysis import relax_views
from probgen.compile.random_numbers import Pool, hoist_draws, is_random
from probgen.compile.rounding import tolerance
from probgen.compile.tracing import Compiled, NotCompilable, Recording, compiled
from probgen.core.private_torch import pytree

aten = torch.ops.aten
# share of entries that may differ: a discrete draw flips where rounding moves its probability
FLIPPED = 1e-3


class Call(NamedTuple):
    """Arguments of one call: those that it shares with its neighbors, then its own."""

    shared: tuple[Tensor, ...] = ()
    own: tuple[Tensor, ...] = ()


class Replay:
    """Calls of a recorded function, with the random draws that the function itself would make.

    Where all draws depend on shapes alone, they are made first, call by call, and the operations
    then run once for many calls, with the calls along a leading dim of all tensors.

    Parameters
    ----------
    recording : Recording
        The function for one call.
    together : int
        How many calls may run at once.

    Attributes
    ----------
    together : int
        How many calls do: one where the operations do not allow more.
    """

    def __init__(self, recording: Recording, together: int = 1):
        self.graph = fx.GraphModule(recording.graph, copy.deepcopy(recording.graph.graph))
        self._closed_over = recording.closed_over
        self._outputs = recording.outputs
        if recording.changed:  # running averages: replays that are thrown away would count
            raise NotCompilable(
                "it changes tensors that it closes over (running averages); use eval mode"
            )
        _split_draws(self.graph)
        self.recording = Recording(
            fx.GraphModule(self.graph, copy.deepcopy(self.graph.graph)), *recording[1:]
        )
        self._draws = hoist_draws(self.graph.graph)
        relax_views(self.graph.graph)
        self.graph.graph.eliminate_dead_code()
        self.graph.recompile()
        self.together = 1 if any(map(is_random, self.graph.graph.nodes)) else together
        self._built: Callable[..., Any] | None = None

    @torch.no_grad()
    def __call__(
        self, calls: Sequence[Call], watch: AbstractContextManager | None = None
    ) -> list[Any]:
        """What the function gives for each of the calls.

        Those that run together have the same shared arguments.

        ``watch`` is around the operations, not around the draws before them.
        """
        watch = watch or nullcontext()
        if self.together == 1:
            return [self._one(call, watch) for call in calls]
        return self._many(calls, watch)

    def build(self, calls: Sequence[Call]) -> None:
        """Compiles for so many calls at once; :class:`NotCompilable` where that cannot be."""
        if self.together == 1:
            self._built = Compiled(self.recording).build(
                *calls[0].shared, *calls[0].own, library=False
            )
        elif len(calls) == self.together:
            state = generator_states()
            examples = self._stacked(calls)
            set_generator_states(state)
            self._built = compiled(self._vectorized(calls), *examples)

    def check(self, calls: Sequence[Call], expected: Sequence[Any], state: list[Tensor]) -> None:
        """Compares with what the function gave from this random state on.

        Raises :class:`NotCompilable`.

        Where calls do not run together as they should, they run one by one from now on.
        """
        after = generator_states()
        found = False
        for together in sorted({self.together, 1}, reverse=True):
            self.together = together
            set_generator_states(state)
            try:
                found = _same(self(calls), list(expected)) and all(
                    map(torch.equal, generator_states(), after)
                )
            except Exception as error:
                if together == 1:
                    raise NotCompilable(str(error).partition("\n")[0]) from error
            finally:
                set_generator_states(after)
            if found:
                return
        raise NotCompilable("the recorded operations give other numbers than the program")

    def _one(self, call: Call, watch: AbstractContextManager) -> Any:
        if self._built is not None:
            return self._built(*call.shared, *call.own)
        draws = [draw() for draw in self._draws]
        with watch:
            outputs = self.graph(*call.shared, *call.own, *self._closed_over, *draws)
        return pytree.tree_unflatten(outputs, self._outputs)

    def _many(self, calls: Sequence[Call], watch: AbstractContextManager) -> list[Any]:
        built = self._built if len(calls) == self.together else None
        run = built or self._vectorized(calls)
        tensors = self._stacked(calls)
        with watch, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # operations without a batched form run one by one
            outputs = run(*tensors)
        pieces = zip(*(value.unbind() for value in outputs), strict=True)
        return [pytree.tree_unflatten(list(piece), self._outputs) for piece in pieces]

    def _stacked(self, calls: Sequence[Call]) -> list[Tensor]:
        """Shared arguments, then what is each call's own: arguments and draws, ``(calls, ...)``."""
        pool = Pool(self._draws, len(calls))
        pool.refill()
        own = [(*call.own, *drawn) for call, drawn in zip(calls, pool.tensors, strict=True)]
        return [*calls[0].shared, *(torch.stack(values) for values in zip(*own, strict=True))]

    def _vectorized(self, calls: Sequence[Call]) -> Callable[..., list[Tensor]]:
        shared = len(calls[0].shared)
        own = len(calls[0].own)
        closed = self._closed_over
        dims = (None,) * shared + (0,) * own + (None,) * len(closed) + (0,) * len(self._draws)
        run = torch.vmap(lambda *tensors: tuple(self.graph(*tensors)), in_dims=dims)

        def several(*tensors: Tensor) -> list[Tensor]:
            given = shared + own
            return list(run(*tensors[:given], *closed, *tensors[given:]))

        return several


def generator_states() -> list[Tensor]:
    """Where torch's generators stand, those of accelerators in use included."""
    return [
        torch.get_rng_state(),
        *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ()),
    ]


def set_generator_states(state: list[Tensor]) -> None:
    """Puts torch's generators where they stood."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])


def _same(found: Any, expected: Any) -> bool:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return all(_close(ours, torch.as_tensor(theirs)) for ours, theirs in pairs)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same up to rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    slack = tolerance(expected.dtype)
    found = found.double()
    expected = expected.double()
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().mean() if expected.numel() else 0.0
    same = torch.isclose(found, expected, rtol=slack, atol=float(slack * scale), equal_nan=True)
    return float((~same).double().mean()) <= FLIPPED if expected.numel() else True


def _split_draws(module: fx.GraphModule) -> None:
    """Discrete draws as functions of draws that depend on shapes alone.

    The ones by which torch itself makes them.

    A Bernoulli draw is a uniform one below p, a categorical one the largest of p over exponential
    ones.
    """
    for node in list(module.graph.nodes):
        if node.target is aten.bernoulli.default and not node.kwargs:
            _replace(module.graph, node, _bernoulli)
        elif (
            node.target is aten.multinomial.default
            and node.args[1] == 1
            and "tensor_meta" in node.args[0].meta
        ):
            _replace(module.graph, node, _categorical)
    module.recompile()


def _replace(graph: fx.Graph, node: fx.Node, build: Callable[[fx.Graph, fx.Node], fx.Node]) -> None:
    with graph.inserting_before(node):
        new = build(graph, node)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _bernoulli(graph: fx.Graph, node: fx.Node) -> fx.Node:
    uniform = graph.call_function(aten.rand_like.default, (node.args[0],))
    uniform.meta = dict(node.meta)
    below = graph.call_function(aten.lt.Tensor, (uniform, node.args[0]))
    return graph.call_function(
        aten._to_copy.default, (below,), {"dtype": node.meta["tensor_meta"].dtype}
    )


def _categorical(graph: fx.Graph, node: fx.Node) -> fx.Node:
    probabilities: Any = node.args[0]
    empty = graph.call_function(aten.empty_like.default, (probabilities,))
    exponential = graph.call_function(aten.exponential_.default, (empty,))
    exponential.meta = {
        **probabilities.meta,
        "tensor_meta": _dense(probabilities.meta["tensor_meta"]),
    }
    ratio = graph.call_function(aten.div.Tensor, (probabilities, exponential))
    return graph.call_function(aten.argmax.default, (ratio, -1, True))


def _dense(like: Any) -> Any:
    """The layout of ``empty_like``: that of a tensor, unless entries share memory."""
    return like._replace(
        stride=torch.empty_like(
            torch.empty_strided(like.shape, like.stride, device="meta")
        ).stride()
    )
