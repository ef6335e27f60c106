"""A function of tensors as one graph: recorded once from whatever Python computes it, then compiled by inductor."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from probgen.core.missing import assume_missing, assumed_missing
from probgen.core.runtime import isolated

aten = torch.ops.aten


class NotCompilable(RuntimeError):
    """A function that cannot become one graph, or a graph that cannot be compiled here; the message says why."""


class Recording(NamedTuple):
    """The operations of one run of a function.

    Attributes
    ----------
    graph : GraphModule
        Takes the function's inputs, then the tensors closed over.
    closed_over : list of Tensor
        What the function used beside its inputs: parameters, buffers, data; the objects themselves.
    outputs : TreeSpec
        How its outputs were nested.
    """

    graph: fx.GraphModule
    closed_over: list[Tensor]
    outputs: pytree.TreeSpec

    def __call__(self, *inputs: Tensor, closed_over: Sequence[Tensor] | None = None) -> Any:
        """Runs the operations one by one, without the Python that they came from.

        ``closed_over`` stands in for the tensors of that name.
        """
        others = self.closed_over if closed_over is None else closed_over
        return pytree.tree_unflatten(self.graph(*inputs, *others), self.outputs)


def record(function: Callable[..., Any], *examples: Tensor) -> Recording:
    """Runs a function of tensors once and keeps what it did to them: its graph for inputs of these shapes.

    Tensors that the function closes over are kept by reference; Python values are kept as they are now. The function
    may take gradients inside; it receives copies, and torch's random state is left as it was. Missing values are
    expected, unless :func:`assume_missing` says otherwise.

    Raises
    ------
    NotCompilable
        If what the function does depends on values of tensors.

    >>> double = record(lambda x: {"twice": 2 * x}, torch.ones(3))
    >>> double(torch.arange(3.0))
    {'twice': tensor([0., 2., 4.])}
    """
    specs = []

    def flat(*inputs: Tensor) -> list[Tensor]:
        outputs, spec = pytree.tree_flatten(function(*inputs))
        specs.append(spec)
        return [torch.as_tensor(value) for value in outputs]

    with _recording():
        try:
            graph = make_fx(flat)(*(value.detach().clone() for value in examples))
        except Exception as error:
            raise NotCompilable(_reason(error)) from error
    _fold_constants(graph)
    return Recording(graph, _lift(graph), specs[-1])


@contextmanager
def _recording() -> Iterator[None]:
    """No handler of an outer program, no checks of values, no trace in the random state."""
    answer = True if assumed_missing() is None else assumed_missing()
    with (
        isolated(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        assume_missing(answer),
        pyro.validation_enabled(False),
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield


Draw = Callable[[], Tensor]


class Compiled:
    """A recording as machine code; :func:`compiled` makes it.

    Random draws that depend on no input are made by torch before the rest, in the recorded order: the same seed gives
    the same draws as the function itself.

    Attributes
    ----------
    module : GraphModule
        The graph; it takes what :meth:`inputs` gives.
    operations : int
        Number of tensor operations in it.
    """

    def __init__(self, recording: Recording):
        graph = fx.GraphModule(recording.graph, copy.deepcopy(recording.graph.graph))
        self._outputs, self._closed_over, self._draws = recording.outputs, recording.closed_over, _hoist_draws(graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        self.operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        self.module, self._run = graph, graph

    def build(self, *examples: Tensor) -> Compiled:
        """Compiles for inputs such as these; inductor keeps the result on disk for the next time.

        Raises :class:`NotCompilable` if it cannot, for instance for want of a C++ compiler.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            inputs = [value.detach().clone() for value in self.inputs(*examples)]
            try:
                self._run = by_inductor(self.module, inputs)
            except Exception as error:
                raise NotCompilable(_first_line(error)) from error
        return self

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return pytree.tree_unflatten(self._run(*self.inputs(*inputs)), self._outputs)

    def inputs(self, *given: Tensor) -> list[Tensor]:
        """All inputs of the graph: those given, the tensors closed over, new draws."""
        return [*given, *self._closed_over, *[draw() for draw in self._draws]]


OPTIONS = {"fallback_random": True, "size_asserts": False, "alignment_asserts": False}


def compiled(function: Callable[..., Any], *examples: Tensor) -> Compiled:
    """A function of tensors as one compiled graph, for inputs of these shapes and dtypes.

    It runs without autograd; gradients may be taken inside. Tensors that the function closes over are read at every
    call, Python values are those of the first run. See :func:`record` for what can be recorded.

    Raises
    ------
    NotCompilable
        If the function depends on values of tensors, or inductor cannot compile it here.

    >>> fast = compiled(lambda x: x + torch.randn(3), torch.ones(3))
    >>> _ = torch.manual_seed(0)
    >>> first = fast(torch.zeros(3))
    >>> _ = torch.manual_seed(0)
    >>> torch.equal(first, torch.randn(3))
    True
    """
    return Compiled(record(function, *examples)).build(*examples)


def _fold_constants(module: fx.GraphModule) -> None:
    """Numbers that were made tensors during the recording become numbers again."""
    for node in list(module.graph.find_nodes(op="call_function", target=aten.lift_fresh_copy.default)):
        source = node.args[0]
        value = getattr(module, source.target) if source.op == "get_attr" else None
        if value is None or value.numel() != 1:
            continue
        with module.graph.inserting_before(node):
            kind = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
            number = module.graph.call_function(aten.full.default, (list(value.shape), value.item()), kind)
        node.replace_all_uses_with(number)
        module.graph.erase_node(node)
        if not source.users:
            module.graph.erase_node(source)


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Tensors closed over become inputs after the others; gives them, each once."""
    inputs: dict[int, tuple[Tensor, fx.Node]] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        value = getattr(module, node.target)
        if not torch.is_tensor(value):
            continue
        if id(value) not in inputs:
            inputs[id(value)] = (value, _new_input(module.graph, f"closed_over_{len(inputs)}"))
        node.replace_all_uses_with(inputs[id(value)][1])
        module.graph.erase_node(node)
    module.recompile()
    return [value for value, _ in inputs.values()]


def _new_input(graph: fx.Graph, name: str) -> fx.Node:
    """An input after those that there are."""
    last = graph.find_nodes(op="placeholder")
    place = graph.inserting_after(last[-1]) if last else graph.inserting_before(next(iter(graph.nodes)))
    with place:
        return graph.placeholder(name)


FILLS = ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "random_", "bernoulli_")
MADE = {"rand": "uniform_", "randn": "normal_", "rand_like": "uniform_", "randn_like": "normal_"}
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty")


def _hoist_draws(module: fx.GraphModule) -> list[Draw]:
    """Takes the random draws that depend on shapes alone out of a graph, up to the first one that needs a value."""
    draws = []
    for node in list(module.graph.nodes):
        if not _name(node) or torch.Tag.nondeterministic_seeded not in node.target.tags:
            continue
        draw = _free_draw(node)
        if draw is None:
            break
        given = _new_input(module.graph, f"draw_{len(draws)}")
        filled = node.args[0] if _name(node) in FILLS else None
        node.replace_all_uses_with(given)
        module.graph.erase_node(node)
        if filled is not None:
            filled.replace_all_uses_with(given)
            module.graph.erase_node(filled)
        draws.append(draw)
    return draws


def _free_draw(node: fx.Node) -> Draw | None:
    """The same draw as a function, if it depends on nothing but its shape."""
    name = _name(node)
    method, numbers = MADE.get(name, name), node.args[1:] if name in FILLS else ()
    made_here = name in MADE or (name in FILLS and _name(node.args[0]) in EMPTY)
    if not made_here or any(isinstance(value, fx.Node) for value in numbers) or node.kwargs.get("generator"):
        return None
    like = node.meta["tensor_meta"]
    layout = {"dtype": like.dtype, "device": node.meta["val"].device}
    fill = getattr(Tensor, method)
    return lambda: fill(torch.empty_strided(like.shape, like.stride, **layout), *numbers)


def by_inductor(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A graph as machine code, from inductor's cache on disk where it is there."""
    options = {key: value for key, value in OPTIONS.items() if key in torch._inductor.list_options()}
    how = {"dynamic_shapes": "from_example_inputs", "options": {"config_patches": options}}
    try:
        return torch._inductor.standalone_compile(graph, inputs, **how)
    except Exception as error:
        if "No such file" not in str(error):
            raise
        return torch._inductor.standalone_compile(graph, inputs, **how)  # another process was at the same cache


def _name(node: fx.Node) -> str:
    """Name of the torch operation at a node, without overload; empty for nodes that are none."""
    return node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""


def _reason(error: BaseException) -> str:
    """What cannot be recorded in one line, with the line of the user's program where there is one."""
    text = _first_line(error)
    if "value out of a tracing tensor" in text or "data-dependent" in text.lower():
        text = "it reads the value of a tensor (an if, a loop or .item()), which one graph cannot follow"
    libraries = {"torch", "pyro", "probgen", "<string>"}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not libraries & set(Path(f.filename).parts)]
    return (
        text if not frames else f"{text} (at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
