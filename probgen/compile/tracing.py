"""A function of tensors as one graph.

Recorded once from whatever Python computes it, then compiled by inductor.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from probgen.compile.backend import (
    FAILURES,
    CompiledCall,
    by_inductor,
    library_from,
    library_of,
)
from probgen.compile.inductor_workarounds import spell_out_alphas, spell_out_masked_puts
from probgen.compile.kernel_library import Kernel, Loop
from probgen.compile.kernel_lowering import NotLowered
from probgen.compile.mutation_analysis import changed_inputs, relax_views
from probgen.compile.random_numbers import Pool, hoist_draws, is_random, new_input
from probgen.compile.tracing_mode import Strict, why_not_general
from probgen.core.machine_code import this_machine
from probgen.core.missing import assume_missing, assumed_missing
from probgen.core.private_torch import FakeTensorMode, make_fx, pytree, sharing_shapes
from probgen.core.runtime import isolated, validation

aten = torch.ops.aten


class NotCompilable(RuntimeError):
    """A function that cannot become one graph, or a graph that cannot be compiled here.

    The message says why.
    """


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

    @property
    def changed(self) -> list[Tensor]:
        """Those of ``closed_over`` that the operations change in place."""
        changed = changed_inputs(self.graph.graph)
        return [
            tensor
            for node, tensor in zip(self._nodes, self.closed_over, strict=True)
            if node in changed
        ]

    @property
    def refusal(self) -> str | None:
        """Why other values would need other operations, if so."""
        return why_not_general(
            self.graph.graph, dict(zip(self._nodes, self.closed_over, strict=True))
        )

    @property
    def _nodes(self) -> list[fx.Node]:
        nodes = self.graph.graph.find_nodes(op="placeholder")
        return nodes[len(nodes) - len(self.closed_over) :]


def record_operations(function: Callable[..., Any], *examples: Tensor) -> Recording:
    """Runs a function of tensors once and keeps what it did to them.

    Its graph for inputs of these shapes.

    Tensors that the function closes over are kept by reference; Python values are kept as they are
    now. The function may take gradients inside; it receives copies, and torch's random state is
    left as it was. Missing values are expected, unless :func:`assume_missing` says otherwise.

    Raises
    ------
    NotCompilable
        If what the function does depends on values of tensors.

    >>> double = record_operations(lambda x: {"twice": 2 * x}, torch.ones(3))
    >>> double(torch.arange(3.0))
    {'twice': tensor([0., 2., 4.])}
    """
    specs = []

    def flat(*inputs: Tensor) -> list[Tensor]:
        with Strict():
            outputs, spec = pytree.tree_flatten(function(*inputs))
        specs.append(spec)
        return [torch.as_tensor(value) for value in outputs]

    with _recording():
        try:
            graph = make_fx(flat)(*(value.detach().clone() for value in examples))
        except (NameError, ImportError):  # a slip is no property of the program
            raise
        except Exception as error:
            raise NotCompilable(_reason(error)) from error
    _fold_constants(graph)
    graph.graph.eliminate_dead_code()
    return Recording(graph, _lift(graph), specs[-1])


@contextmanager
def _recording() -> Iterator[None]:
    """No handler of an outer program, no checks of values, no trace in the random state."""
    assumed = assumed_missing()
    answer = True if assumed is None else assumed
    shapes = FakeTensorMode(
        allow_fallback_kernels=True
    )  # one for all operations; else each would make its own
    with (
        isolated(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        assume_missing(answer),
        validation(False),
        torch.autograd.set_multithreading_enabled(False),
        torch.backends.mkldnn.flags(False, None, None, None),  # its recurrent layers have no graph
        sharing_shapes(shapes),
    ):
        yield


class Compiled:
    """A recording as machine code; :func:`compiled` makes it.

    Random draws that depend on no input are made by torch before the rest, in the recorded order:
    the same seed gives the same draws as the function itself.

    Attributes
    ----------
    module : GraphModule
        The graph; it takes what :meth:`inputs` gives.
    operations : int
        Number of tensor operations in it.
    random : bool
        Whether it makes draws itself, which depend on values.
    kernel : Kernel or None
        What :meth:`lower` has made.
    unlowered : str
        Why there is none.
    """

    def __init__(self, recording: Recording):
        graph = fx.GraphModule(recording.graph, copy.deepcopy(recording.graph.graph))
        self._outputs = recording.outputs
        self._closed_over = recording.closed_over
        self._draws = hoist_draws(graph.graph)
        relax_views(graph.graph)
        spell_out_alphas(graph.graph)
        spell_out_masked_puts(graph.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        self.operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        self.module = graph
        self._run: Callable[[list[Tensor]], Sequence[Tensor]] = self._interpreted
        self.random = any(map(is_random, graph.graph.nodes))
        self.kernel: Kernel | None = None
        self.unlowered = ""

    def build(self, *examples: Tensor, library: bool = True) -> Compiled:
        """Compiles for inputs such as these; the result is kept on disk for the next time.

        Without ``library`` it takes half the time, and some microseconds more at every call.

        Raises :class:`NotCompilable` if it cannot, for instance for want of a C++ compiler.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            inputs = self.inputs(*examples)
            try:
                self._run = by_inductor(self.module, [replica(value) for value in inputs], library)
            except (NameError, ImportError):
                raise
            except Exception as error:
                raise NotCompilable(_first_line(error)) from error
            self._compare(inputs)
        return self

    def lower(self, *examples: Tensor, fixed: int) -> bool:
        """Makes a kernel, of which many calls cost less than one of a library, where there can be one.

        Whether there is one now. The first ``fixed`` inputs are the same in all of those calls.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            inputs = self.inputs(*examples)
            moving = {*range(fixed, len(examples))}
            moving |= {*range(len(inputs) - len(self._draws), len(inputs))}
            try:
                if self.random:
                    raise NotLowered("draws depend on values")
                kernel = Kernel(self.module.graph, inputs, {*range(len(inputs))} - moving)
                self._run = kernel
                self._compare(inputs)
            except (NotLowered, NotCompilable) as error:
                self._run = self._interpreted
                self.unlowered = str(error)
                return False
        self.kernel = kernel
        return True

    def forget_kernel(self, reason: str) -> None:
        """Goes back to where it was before :meth:`lower`."""
        self.kernel = None
        self.unlowered = reason
        self._run = self._interpreted

    @property
    def drawn(self) -> int:
        """Bytes of the draws of a call."""
        return sum(torch.Size(d.shape).numel() * d.dtype.itemsize for d in self._draws)

    def loop(self, count: int) -> Loop:
        """So many calls of the kernel as one."""
        assert self.kernel is not None  # :meth:`lower` comes first
        return Loop(self.kernel, self._closed_over, Pool(self._draws, count))

    def _compare(self, inputs: list[Tensor]) -> None:
        """Machine code that gives other results than the operations is not used."""
        results = []
        for run in (self._interpreted, self._run):
            torch.manual_seed(0)
            copies = [replica(value) for value in inputs]
            results.append([*run(copies), *copies])
        for one, other in zip(*results, strict=True):
            near = torch.isclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)
            if near.numel() and near.double().mean() < 0.99:
                raise NotCompilable("the compiled graph gives other results than its operations")

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return pytree.tree_unflatten(self._run(self.inputs(*inputs)), self._outputs)

    def replay(self, *inputs: Tensor) -> Any:
        """The operations one by one, as torch has them."""
        with torch.no_grad():
            return pytree.tree_unflatten(self.module(*self.inputs(*inputs)), self._outputs)

    def _interpreted(self, values: list[Tensor]) -> Sequence[Tensor]:
        return self.module(*values)

    def portable(self, *examples: Tensor) -> Portable:
        """The same function for other processes, which need neither the graph nor a compiler.

        Raises :class:`NotCompilable` where there is no library to be sent.
        """
        if self._draws or self.random:
            raise NotCompilable("a function that makes draws stays in its process")
        try:
            content = library_of(self.module, [replica(value) for value in self.inputs(*examples)])
        except FAILURES as error:
            raise NotCompilable(_first_line(error)) from error
        return Portable(content, this_machine(), self._closed_over, self._outputs)

    def repeatedly(self, count: int) -> Repeated:
        """So many calls in a row, with less around each of them.

        One where it makes draws itself.
        """
        return Repeated(self._run, self._closed_over, Pool(self._draws, count), self._outputs)

    def inputs(self, *given: Tensor) -> list[Tensor]:
        """All inputs of the graph: those given, the tensors closed over, new draws."""
        return [*given, *self._closed_over, *[draw() for draw in self._draws]]


class Portable:
    """A compiled graph that processes send to each other; each loads the library at its first call.

    Parameters
    ----------
    library : bytes
        See :func:`~probgen.compile.backend.library_of`.
    machine : str
        The kind of machine that it was made for.
    closed_over : list of Tensor
        Inputs after those that are given.
    outputs : TreeSpec
        How the outputs are nested.
    """

    def __init__(
        self, library: bytes, machine: str, closed_over: list[Tensor], outputs: pytree.TreeSpec
    ):
        self.library = library
        self.machine = machine
        self.closed_over = closed_over
        self.outputs = outputs
        self._run: CompiledCall | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_run": None}

    def __call__(self, *inputs: Tensor) -> Any:
        run = self._run
        if run is None:
            run = self._run = library_from(self.library, self.machine)
        with torch.no_grad():
            return pytree.tree_unflatten(run([*inputs, *self.closed_over]), self.outputs)


class Repeated(NamedTuple):
    """A compiled graph for many calls in a row.

    Its draws share memory that the next calls use again.
    """

    run: CompiledCall
    closed_over: list[Tensor]
    pool: Pool
    outputs: pytree.TreeSpec

    def __call__(self, inputs: Iterable[Sequence[Tensor]]) -> list[Any]:
        """The outputs for each of as many inputs, nested as the function's."""
        with torch.no_grad():
            self.pool.refill()
            pairs = zip(inputs, self.pool.tensors, strict=True)
            flat = [self.run([*given, *self.closed_over, *draws]) for given, draws in pairs]
        if self.outputs.is_leaf():  # a look at the structure would take a part of a fast call
            return [values[0] for values in flat]
        return [pytree.tree_unflatten(values, self.outputs) for values in flat]


def compiled(function: Callable[..., Any], *examples: Tensor) -> Compiled:
    """A function of tensors as one compiled graph, for inputs of these shapes and dtypes.

    It runs without autograd; gradients may be taken inside. Tensors that the function closes over
    are read at every call, Python values are those of the first run. See :func:`record_operations` for what
    can be recorded.

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
    return Compiled(record_operations(function, *examples)).build(*examples)


def _fold_constants(module: fx.GraphModule) -> None:
    """Numbers that were made tensors during the recording become numbers again."""
    for node in list(
        module.graph.find_nodes(op="call_function", target=aten.lift_fresh_copy.default)
    ):
        source = node.args[0]
        value = getattr(module, source.target) if source.op == "get_attr" else None
        if value is None or value.numel() != 1:
            continue
        with module.graph.inserting_before(node):
            kind = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
            number = module.graph.call_function(
                aten.full.default, (list(value.shape), value.item()), kind
            )
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
            inputs[id(value)] = (value, new_input(module.graph, f"closed_over_{len(inputs)}"))
        node.replace_all_uses_with(inputs[id(value)][1])
        module.graph.erase_node(node)
    module.recompile()
    return [value for value, _ in inputs.values()]


def replica(value: Tensor) -> Tensor:
    """The same values laid out in the same way: compiled code goes by strides."""
    if 0 in value.stride():  # it is not written to
        return value.detach()
    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device=value.device
    ).copy_(value)


def _reason(error: BaseException) -> str:
    """What cannot be recorded in one line.

    With the line of the user's program where there is one.
    """
    text = _first_line(error)
    if "value out of a tracing tensor" in text or "data-dependent" in text.lower():
        text = "it reads the value of a tensor (an if, a loop or .item()), which one graph cannot follow"
    libraries = {"torch", "pyro", "probgen", "<string>"}
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not libraries & set(Path(f.filename).parts)
    ]
    return (
        text
        if not frames
        else f"{text} (at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
