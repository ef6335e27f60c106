"""Graphs of small operations as kernels: which operations there are, and how each is computed.

Products of matrices are loops here, which for more than some thousand products are slower than
those of a library; such graphs are refused before anything is done, as are those with operations
that are not listed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from probgen.compile.kernel_program import (
    TYPES,
    LoopProgram,
    Ref,
    contiguous,
    laid_out,
    literal,
    loops_of,
)
from probgen.compile.mutation_analysis import shared_memory
from probgen.core.private_torch import is_operation, operation_of

# elements of a value, products of a matrix product, and both for a whole graph: what takes longer
# has not been measured. A step of a mixture of 12,000 rows takes 0.15 ms, and 1.4 by inductor
ELEMENTS = 2**17
PRODUCTS = 2**16
WHOLE = 2**24
# what some functions count as, of which libraries have vectors and kernels do not
DEAR = 16
# what is larger would be shared by threads elsewhere
SHARED = 2**14
# products of a matrix product that are one formula for each element
FEW = 16


class NotLowered(Exception):
    """A graph that no kernel is made of; the message says why."""


POINTWISE = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "exp": "exp_({0})",
    "log1p": "log1p_({0})",
    "expm1": "expm1_({0})",
    "sin": "sin_({0})",
    "cos": "cos_({0})",
    "tanh": "tanh_({0})",
    "erf": "erf_({0})",
    "sqrt": "sqrt_({0})",
    "rsqrt": "1 / sqrt_({0})",
    "reciprocal": "1 / {0}",
    "abs": "abs_({0})",
    "lgamma": "lgamma_({0})",
    "sigmoid": "sigmoid_({0})",
    "relu": "{0} > 0 || {0} != {0} ? {0} : 0",
    "minimum": "min_({0}, {1})",
    "maximum": "max_({0}, {1})",
    "xlogy": "xlogy_({0}, {1})",
    "logaddexp": "log_add_exp_({0}, {1})",
    "sigmoid_backward": "{0} * ((1 - {1}) * {1})",
    "tanh_backward": "{0} * (1 - {1} * {1})",
    "threshold_backward": "{1} <= {2} ? 0 : {0}",
    "log_sigmoid_backward": "log_sigmoid_backward_({0}, {1})",
    "silu": "{0} * sigmoid_({0})",
    "_to_copy": "{0}",
    "clone": "{0}",
    "contiguous": "{0}",
    "copy": "{1}",
}
COMPARED = {
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "isnan": "{0} != {0}",
    "isfinite": "__builtin_isfinite({0})",
    "isinf": "__builtin_isinf({0})",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "logical_not": "!({0})",
    "logical_xor": "!({0}) != !({1})",
}
BITS = {"bitwise_and": "{0} & {1}", "bitwise_or": "{0} | {1}", "bitwise_xor": "{0} ^ {1}"}
FOLDS = {
    "sum": ("plus_", 0),
    "prod": ("times_", 1),
    "amax": ("max_", -math.inf),
    "amin": ("min_", math.inf),
    "any": ("or_", 0),
    "all": ("and_", 1),
}
SAME = ("detach", "alias", "lift_fresh", "lift_fresh_copy")
VIEWS = ("view", "reshape", "_unsafe_view")


class Lowering:
    """Goes through a graph once, node by node, and adds each to a kernel.

    Parameters
    ----------
    graph : Graph
        With the shapes that its recording has noted.
    inputs : list of Tensor
        Such as it will get.
    fixed : set of int
        Which of them are the same tensors in all steps, though some may change in place.

    Raises
    ------
    NotLowered
        For operations, types or sizes that no kernel is made for.
    """

    def __init__(self, graph: fx.Graph, inputs: Sequence[Tensor], fixed: set[int]):
        check_small(graph, inputs)
        self.program = LoopProgram()
        self._values: dict[fx.Node, Any] = {}
        self._owners = owners(graph)
        changed = set(self._owners.values())
        places = graph.find_nodes(op="placeholder")
        for index, (node, value) in enumerate(zip(places, inputs, strict=True)):
            self._values[node] = self.program.given(
                value.dtype,
                tuple(value.shape),
                value.stride(),
                index not in fixed,
                index in fixed and node not in changed,
            )
        homes = {node: self._values[node] for node in places if node in changed}
        for node in graph.nodes:
            if node.op == "call_function":
                self._add(node)
        output: Any = graph.output_node().args[0]
        (result,) = output if isinstance(output, list | tuple) else (output,)
        self.shape = self._values[result].shape
        self.width = self.program.output(self._values[result])
        for node, home in homes.items():
            self.program.write(home, self._values[node])

    def _add(self, node: fx.Node) -> None:
        given: Any = fx.map_arg((node.args, dict(node.kwargs)), lambda n: self._values[n])
        args, kwargs = given
        if not is_operation(node):
            self._values[node] = args[0][args[1]]
            return
        name = name_of(node)
        writes = node in self._owners
        name = name.removesuffix("_") if writes else name
        value = self._lower(name, node, args, kwargs)
        self._values[node] = value
        if writes:  # from here on the tensor that is written to has the new value
            target: Any = node.args[0]
            self._values[target] = self._values[self._owners[node]] = value

    def _lower(self, name: str, node: fx.Node, args: Sequence[Any], kwargs: dict) -> Any:
        if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode"):
            raise NotLowered(f"{name} has further arguments")
        if name in POINTWISE:
            return self._computed(node, POINTWISE[name], args)
        if name in COMPARED:
            return self._pointwise(node, COMPARED[name], args, comparison_type(args))
        if name in BITS:
            return self._pointwise(node, BITS[name], args, noted_dtype(node))
        return HANDLERS[name](self, node, *args, **kwargs)

    # -- element by element
    # ----------------------------------------------------------------------------------------

    def _computed(self, node: fx.Node, text: str, args: Sequence[Any]) -> Ref:
        return self._pointwise(node, text, args, noted_dtype(node))

    def _pointwise(self, node: fx.Node, text: str, args: Sequence[Any], kind: torch.dtype) -> Ref:
        return self.elements(noted_shape(node), noted_dtype(node), text, args, kind)

    def elements(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        text: str,
        args: Sequence[Any],
        kind: torch.dtype | None = None,
    ) -> Ref:
        """A formula of values and numbers, which it takes as of one type."""
        kind = kind or dtype
        used = [arg for place, arg in enumerate(args) if f"{{{place}}}" in text]
        refs = [arg for arg in used if isinstance(arg, Ref)]

        def filled(*read: str) -> str:
            left = iter(read)
            given = [
                f"({TYPES[kind]})({next(left)})" if isinstance(arg, Ref) else literal(arg, kind)
                for arg in used
            ]
            places = [place for place, _ in enumerate(args) if f"{{{place}}}" in text]
            by_place = dict(zip(places, given, strict=True))
            return text.format(*(by_place.get(place, "") for place, _ in enumerate(args)))

        return self.program.pointwise(shape, dtype, filled, refs)

    def like(self, ref: Ref, text: str, *others: Any) -> Ref:
        """A formula of a value and others of no larger shape."""
        return self.elements(ref.shape, ref.dtype, text, (ref, *others))

    def truth(self, node: Any) -> Ref | None:
        """What a value is the number of, where that is true or false."""
        if not isinstance(node, fx.Node) or not is_operation(node) or name_of(node) != "_to_copy":
            return None
        source: Any = node.args[0]
        return self._values[source] if self._values[source].dtype == torch.bool else None

    def where(self, node: fx.Node, condition: Ref, one: Any, other: Any) -> Ref:
        return self.chosen(noted_shape(node), noted_dtype(node), condition, one, other)

    def chosen(
        self, shape: tuple[int, ...], dtype: torch.dtype, condition: Ref, one: Any, other: Any
    ) -> Ref:
        refs = [condition, *(arg for arg in (one, other) if isinstance(arg, Ref))]
        kind = TYPES[dtype]

        def text(first: str, *read: str) -> str:
            left = iter(read)
            a, b = (
                f"({kind})({next(left)})" if isinstance(arg, Ref) else literal(arg, dtype)
                for arg in (one, other)
            )
            return f"{first} ? {a} : {b}"

        return self.program.pointwise(shape, dtype, text, refs)

    # -- sums
    # -------------------------------------------------------------------------------------------------

    def folded(
        self, ref: Ref, name: str, dims: Any = None, keep: bool = False, dtype: Any = None
    ) -> Ref:
        """Sums and their like over some dims, or all."""
        dtype = dtype or ref.dtype
        how, start = FOLDS[name]
        count = len(ref.shape)
        dims = [dims] if isinstance(dims, int) else dims
        over = {dim % count for dim in dims} if dims else set(range(count))
        if not count:
            return ref if dtype == ref.dtype else self.elements((), dtype, "{0}", (ref,))
        if not math.prod(ref.shape):
            raise NotLowered("a tensor is empty")
        if all(ref.shape[dim] == 1 for dim in over):
            value = ref if dtype == ref.dtype else self.elements(ref.shape, dtype, "{0}", (ref,))
            return value if keep else without(value, over)
        count = 1
        if name != "prod":  # elements that are one, as often as they come
            idle = ref.idle() & over
            count = math.prod(ref.shape[dim] for dim in idle)
            ref = ref.narrowed(idle)
        start = bounded(start, dtype)
        value = self.program.fold(ref, sorted(over), dtype, how, literal(start, dtype))
        if name == "sum" and count > 1:
            value = self.like(value, "{0} * {1}", count)
        return value if keep else without(value, over)


def bounded(number: float, dtype: torch.dtype) -> float:
    """An infinity as the outermost number of a type that has none."""
    if math.isfinite(number) or dtype.is_floating_point:
        return number
    if dtype == torch.bool:
        return number > 0
    return torch.iinfo(dtype).max if number > 0 else -torch.iinfo(dtype).max


def without(ref: Ref, dims: set[int]) -> Ref:
    """Without some dims, each of one element."""
    kept = [dim for dim, _ in enumerate(ref.shape) if dim not in dims]
    shape = tuple(ref.shape[dim] for dim in kept)
    return Ref(ref.base, shape, tuple(ref.strides[dim] for dim in kept), ref.offset)


def name_of(node: fx.Node) -> str:
    """The name of an operation, without its overload."""
    return operation_of(node).overloadpacket.__name__


def noted_shape(node: fx.Node) -> tuple[int, ...]:
    """That of its result."""
    return tuple(noted(node).shape)


def noted_dtype(node: fx.Node) -> torch.dtype:
    """That of its result."""
    return noted(node).dtype


def noted(node: fx.Node) -> Tensor:
    """A tensor such as the node gives; of the first, where it gives several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) else value
    if not torch.is_tensor(value):
        raise NotLowered(f"{node.name} gives no tensor")
    return value


def comparison_type(args: Sequence[Any]) -> torch.dtype:
    """The type that values are compared in."""
    refs = [arg for arg in args if isinstance(arg, Ref)]
    numbers = [ref.dtype for ref in refs if not ref.shape]
    kinds = [ref.dtype for ref in refs if ref.shape] or numbers
    kind = functools.reduce(torch.promote_types, kinds)
    for other in numbers:  # a single number decides only where it is of another category
        if other.is_floating_point and not kind.is_floating_point:
            kind = torch.promote_types(kind, other)
    if any(isinstance(arg, float) for arg in args) and not kind.is_floating_point:
        kind = torch.get_default_dtype()
    return kind


def owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Of each operation that writes in place, the node that made the tensor.

    Raises :class:`NotLowered` where the memory is looked at under an earlier name afterwards.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if is_operation(node) and name_of(node).endswith("_") and name_of(node)[0] != "_":
            target: Any = node.args[0]
            found[node] = found.get(target, target)
    order = {node: place for place, node in enumerate(graph.nodes)}
    bases = shared_memory(graph)
    for node, owner in found.items():
        views = (other for other in graph.nodes if bases[other] & bases[owner])
        names = [view for view in views if view is not owner and found.get(view) is not owner]
        seen = [
            user
            for view in names
            if order[view] < order[node]
            for user in view.users
            if order[user] > order[node]
        ]
        if seen or bases[owner] != {owner}:
            raise NotLowered("a view of a tensor is changed in place")
    return found


def check_small(graph: fx.Graph, inputs: Sequence[Tensor]) -> None:
    """By names, types and sizes alone, which takes some milliseconds."""
    if any(value.device.type != "cpu" or value.dtype not in TYPES for value in inputs):
        raise NotLowered("an input has a type that kernels do not have")
    whole = 0
    given = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if is_operation(node):
            size = _size(node, given)
            whole += size if size <= SHARED else size * torch.get_num_threads()
    if whole > WHOLE:
        raise NotLowered("the operations are large")


def _size(node: fx.Node, given: dict[fx.Node, Tensor]) -> int:
    """Elements and products of an operation."""
    name = name_of(node)
    plain = name.removesuffix("_") if name[0] != "_" else name
    if not any(plain in names for names in (POINTWISE, COMPARED, BITS, HANDLERS)):
        raise NotLowered(f"no kernel has {name}")
    value = noted(node)
    size = value.numel()
    if name in MATRICES:
        left: Any = node.args[MATRICES[name]]
        size *= (given[left] if left in given else noted(left)).shape[-1]
        if size > PRODUCTS:
            raise NotLowered("a product of matrices is large")
    if value.numel() > ELEMENTS or value.dtype not in TYPES:
        raise NotLowered(f"{name} gives many numbers, or {value.dtype}")
    if name == "lgamma" or (name == "pow" and not isinstance(node.args[1], int | float)):
        size *= DEAR
    return 0 if value.numel() and name in _FREE else size


MATRICES = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1}

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
_FREE = (*SAME, *VIEWS, "expand", "permute", "unsqueeze", "squeeze", "slice", "select", "t")


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Says which operations a function lowers."""

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


@handles("where")
def _where(low: Lowering, node: fx.Node, condition: Ref, one: Any, other: Any) -> Ref:
    return low.where(node, condition, one, other)


@handles("masked_fill")
def _masked_fill(low: Lowering, node: fx.Node, ref: Ref, mask: Ref, value: Any) -> Ref:
    return low.where(node, mask, value, ref)


@handles("log")
def _log(low: Lowering, node: fx.Node, ref: Ref) -> Ref:
    known = low.truth(node.args[0])
    if known is None:
        return low._computed(node, "log_({0})", (ref,))
    return low.where(node, known, 0.0, -math.inf)


@handles("pow")
def _pow(low: Lowering, node: fx.Node, base: Any, exponent: Any) -> Ref:
    known = {2: "{0} * {0}", 1: "{0}", 0.5: "sqrt_({0})", -0.5: "1 / sqrt_({0})", -1: "1 / {0}"}
    known |= {3: "{0} * {0} * {0}", 0: "1", -2: "1 / ({0} * {0})"}
    text = "pow_({0}, {1})" if isinstance(exponent, Ref) else known.get(exponent, "pow_({0}, {1})")
    return low._computed(node, text, (base, exponent))


@handles("bitwise_not")
def _bitwise_not(low: Lowering, node: fx.Node, ref: Ref) -> Ref:
    return low._computed(node, "!{0}" if ref.dtype == torch.bool else "~{0}", (ref,))


@handles("clamp", "clamp_min")
def _clamp(
    low: Lowering, node: fx.Node, ref: Ref, least: Any = None, most: Any = None, **named: Any
) -> Ref:
    least, most = named.get("min", least), named.get("max", most)
    text = "{0}" if least is None else "max_({0}, {1})"
    text = text if most is None else f"min_({text}, {{2}})"
    return low._computed(node, text, (ref, least, most))


@handles("clamp_max")
def _clamp_max(low: Lowering, node: fx.Node, ref: Ref, most: Any) -> Ref:
    return _clamp(low, node, ref, None, most)


@handles("softplus")
def _softplus(low: Lowering, node: fx.Node, ref: Ref, beta: float = 1, most: float = 20) -> Ref:
    return low._computed(node, "softplus_({0}, {1}, {2})", (ref, beta, most))


@handles("softplus_backward")
def _softplus_backward(low: Lowering, node: fx.Node, *args: Any) -> Ref:
    return low._computed(node, "softplus_backward_({0}, {1}, {2}, {3})", args)


@handles("log_sigmoid_forward")
def _log_sigmoid(low: Lowering, node: fx.Node, ref: Ref) -> tuple[Ref, Ref]:
    value = low.like(ref, "log_sigmoid_({0})")
    return value, value  # the second, a help for torch's own gradient, is not read here


@handles("binary_cross_entropy_with_logits")
def _cross_entropy(
    low: Lowering,
    node: fx.Node,
    x: Ref,
    y: Ref,
    weight: Any = None,
    positive: Any = None,
    how: int = 1,
) -> Ref:
    if weight is not None or positive is not None:
        raise NotLowered("cross entropy has weights")
    value = low.like(x, "cross_entropy_({0}, {1})", y)
    if how == 0:
        return value
    total = low.folded(value, "sum")
    return total if how == 2 else low.like(total, "{0} / {1}", math.prod(x.shape))


# -- tensors of numbers
# ---------------------------------------------------------------------------------------


@handles("full", "scalar_tensor", "full_like", "new_full")
def _full(low: Lowering, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    return low.program.number(args[-1], noted_dtype(node), noted_shape(node))


@handles("zeros", "zeros_like", "new_zeros", "empty_like", "empty", "new_empty")
def _zeros(low: Lowering, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    return low.program.number(0, noted_dtype(node), noted_shape(node))


@handles("ones", "ones_like", "new_ones")
def _ones(low: Lowering, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    return low.program.number(1, noted_dtype(node), noted_shape(node))


@handles("arange")
def _arange(low: Lowering, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    start, step = (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)
    (size,) = noted_shape(node)
    if size == 1:
        return low.program.number(start, noted_dtype(node), (1,))
    begin, by = (literal(number, noted_dtype(node)) for number in (start, step))
    return low.program.indexed((size,), noted_dtype(node), lambda: f"{begin} + i0 * {by}", [])


@handles("eye")
def _eye(low: Lowering, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    return _indexed(low, noted_shape(node), noted_dtype(node), lambda i, j: f"{i} == {j}", None)


@handles("tril")
def _tril(low: Lowering, node: fx.Node, ref: Ref, diagonal: int = 0) -> Ref:
    return _indexed(low, ref.shape, ref.dtype, lambda i, j: f"{j} <= {i} + ({diagonal})", ref)


@handles("triu")
def _triu(low: Lowering, node: fx.Node, ref: Ref, diagonal: int = 0) -> Ref:
    return _indexed(low, ref.shape, ref.dtype, lambda i, j: f"{j} >= {i} + ({diagonal})", ref)


def _indexed(
    low: Lowering,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    condition: Callable[[str, str], str],
    ref: Ref | None,
) -> Ref:
    """A matrix where a condition of row and column holds; ones without it; zero elsewhere."""
    loops = loops_of(shape)
    dims = (len(shape) - 2, len(shape) - 1)
    row, column = (f"i{loops.index(dim)}" if dim in loops else "0" for dim in dims)
    test = condition(row, column)
    refs = [] if ref is None else [ref]
    return low.program.indexed(
        shape, dtype, lambda *read: f"{test} ? {read[0] if read else 1} : 0", refs
    )


# -- sums
# ----------------------------------------------------------------------------------------------------


@handles("sum", "prod", "amax", "amin", "any", "all")
def _fold(
    low: Lowering, node: fx.Node, ref: Ref, dims: Any = None, keep: bool = False, **_: Any
) -> Ref:
    return low.folded(ref, name_of(node), dims, keep, noted_dtype(node))


@handles("mean")
def _mean(
    low: Lowering, node: fx.Node, ref: Ref, dims: Any = None, keep: bool = False, **_: Any
) -> Ref:
    total = low.folded(ref, "sum", dims, keep, noted_dtype(node))
    return low.like(total, "{0} / {1}", math.prod(ref.shape) / max(1, math.prod(total.shape)))


@handles("linalg_vector_norm")
def _norm(
    low: Lowering,
    node: fx.Node,
    ref: Ref,
    order: float = 2,
    dims: Any = None,
    keep: bool = False,
    **_: Any,
) -> Ref:
    if order != 2:
        raise NotLowered("a norm is not that of squares")
    kind = noted_dtype(node)
    squares = low.elements(ref.shape, kind, "{0} * {0}", (ref,))
    return low.like(low.folded(squares, "sum", dims, keep), "sqrt_({0})")


@handles("logsumexp")
def _logsumexp(low: Lowering, node: fx.Node, ref: Ref, dims: Any, keep: bool = False) -> Ref:
    top = low.like(low.folded(ref, "amax", dims, True), "__builtin_isinf({0}) ? 0 : {0}")
    total = low.folded(low.like(ref, "exp_({0} - {1})", top), "sum", dims, True)
    value = low.like(total, "log_({0}) + {1}", top)
    count = len(ref.shape)
    return value if keep or not count else without(value, {dim % count for dim in dims})


@handles("_softmax", "_log_softmax")
def _softmax(low: Lowering, node: fx.Node, ref: Ref, dim: int, half: bool) -> Ref:
    top = low.folded(ref, "amax", dim, True)
    powers = low.like(ref, "exp_({0} - {1})", top)
    total = low.folded(powers, "sum", dim, True)
    if name_of(node) == "_softmax":
        return low.like(powers, "{0} / {1}", total)
    return low.like(ref, "{0} - {1} - {2}", top, low.like(total, "log_({0})"))


@handles("_softmax_backward_data")
def _softmax_backward(low: Lowering, node: fx.Node, g: Ref, value: Ref, dim: int, kind: Any) -> Ref:
    total = low.folded(low.like(g, "{0} * {1}", value), "sum", dim, True)
    return low.like(value, "{0} * ({1} - {2})", g, total)


@handles("_log_softmax_backward_data")
def _log_softmax_backward(
    low: Lowering, node: fx.Node, g: Ref, value: Ref, dim: int, kind: Any
) -> Ref:
    return low.like(value, "{1} - exp_({0}) * {2}", g, low.folded(g, "sum", dim, True))


@handles("cumsum", "cumprod")
def _running(low: Lowering, node: fx.Node, ref: Ref, dim: int, **_: Any) -> Ref:
    shape, kind = ref.shape, noted_dtype(node)
    if not shape:
        return ref
    sign, start = ("+", 0) if name_of(node) == "cumsum" else ("*", 1)
    dim %= len(shape)
    names = [f"k{d}" for d, _ in enumerate(shape)]
    strides = laid_out(shape)

    def code(out: str) -> list[str]:
        others = [d for d, _ in enumerate(shape) if d != dim]
        lines = [_for(names[d], shape[d]) for d in others]
        lines += [f"{TYPES[kind]} total = {start};", _for(names[dim], shape[dim])]
        lines += [f"total = total {sign} {LoopProgram.at(ref, *names)};"]
        lines += [f"{out}[{_spot(names, strides)}] = total;", "}" * len(shape)]
        return ["{", *lines, "}"]

    return low.program.custom(shape, kind, [ref], code)


@handles("max", "min")
def _extreme(low: Lowering, node: fx.Node, ref: Ref, *args: Any) -> Any:
    name = f"a{name_of(node)}"
    if args and isinstance(args[0], Ref):
        return low._computed(node, f"{name[1:]}_({{0}}, {{1}})", (ref, *args))
    if not args:
        return low.folded(ref, name)
    dim, keep = args[0], len(args) > 1 and args[1]
    value = low.folded(ref, name, dim, keep)
    used = {user.args[1] for user in node.users}
    return value, _place_of(low, ref, dim, keep, name) if 1 in used else value


def _place_of(low: Lowering, ref: Ref, dim: int, keep: bool, name: str) -> Ref:
    """The first place of a maximum or minimum."""
    dim %= len(ref.shape)
    kept = tuple(1 if d == dim else size for d, size in enumerate(ref.shape))
    names = [f"k{d}" for d, _ in enumerate(kept)]
    first = ["0" if d == dim else n for d, n in enumerate(names)]
    sign = ">" if name == "amax" else "<"

    def code(out: str) -> list[str]:
        others = [d for d, _ in enumerate(kept) if d != dim]
        lines = [_for(names[d], kept[d]) for d in others]
        lines += [f"{TYPES[ref.dtype]} best = {LoopProgram.at(ref, *first)}; int64_t spot = 0;"]
        lines += [_for(names[dim], ref.shape[dim])]
        lines += [f"{TYPES[ref.dtype]} own = {LoopProgram.at(ref, *names)};"]
        lines += [
            f"if (own {sign} best || (own != own && best == best)) {{ best = own; spot = {names[dim]}; }}"
        ]
        lines += ["}", f"{out}[{_spot(first, laid_out(kept))}] = spot;", "}" * len(others)]
        return ["{", *lines, "}"]

    value = low.program.custom(kept, torch.int64, [ref], code)
    return value if keep else without(value, {dim})


# -- views
# -----------------------------------------------------------------------------------------------------


@handles(*SAME)
def _same(low: Lowering, node: fx.Node, ref: Ref) -> Ref:
    return ref


@handles(*VIEWS)
def _view(low: Lowering, node: fx.Node, ref: Ref, *_: Any) -> Ref:
    shape = noted_shape(node)
    strides = viewed(ref, shape)
    if strides is None:
        own = contiguous(ref.shape)
        ref = low.program.assemble(ref.shape, ref.dtype, [(ref, own, 0)], own)
        strides = contiguous(shape)
    return Ref(ref.base, shape, strides, ref.offset)


def viewed(ref: Ref, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of the same elements under another shape, if there are any."""
    if not math.prod(shape):
        raise NotLowered("a tensor is empty")
    old = [(n, s) for n, s in zip(ref.shape, ref.strides, strict=True) if n != 1]
    merged: list[list[int]] = []
    for size, stride in old:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = [merged[-1][0] * size, stride]
        else:
            merged.append([size, stride])
    strides = []
    for size in reversed(shape):
        if size == 1:
            strides.append(0)
            continue
        if not merged or merged[-1][0] % size:
            return None
        left, stride = merged[-1]
        strides.append(stride)
        merged[-1] = [left // size, stride * size]
        if left == size:
            merged.pop()
    return tuple(reversed(strides))


@handles("expand")
def _expand(low: Lowering, node: fx.Node, ref: Ref, *_: Any, **__: Any) -> Ref:
    return ref.spread(noted_shape(node))


@handles("permute", "t", "transpose", "numpy_T")
def _permute(low: Lowering, node: fx.Node, ref: Ref, *args: Any) -> Ref:
    order = [*range(len(ref.shape))]
    if name_of(node) == "permute":
        order = [dim % len(order) for dim in args[0]]
    elif name_of(node) == "transpose":
        one, two = (dim % len(order) for dim in args)
        order[one], order[two] = two, one
    else:
        order.reverse()
    shape = tuple(ref.shape[d] for d in order)
    return Ref(ref.base, shape, tuple(ref.strides[d] for d in order), ref.offset)


@handles("unsqueeze")
def _unsqueeze(low: Lowering, node: fx.Node, ref: Ref, dim: int) -> Ref:
    dim %= len(ref.shape) + 1
    shape = (*ref.shape[:dim], 1, *ref.shape[dim:])
    return Ref(ref.base, shape, (*ref.strides[:dim], 0, *ref.strides[dim:]), ref.offset)


@handles("squeeze")
def _squeeze(low: Lowering, node: fx.Node, ref: Ref, dims: Any = None) -> Ref:
    given = range(len(ref.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    return (
        without(ref, {d % len(ref.shape) for d in given if ref.shape[d] == 1}) if ref.shape else ref
    )


@handles("slice")
def _slice(
    low: Lowering,
    node: fx.Node,
    ref: Ref,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Ref:
    return _sliced(ref, dim, slice(start, end, step))


def _sliced(ref: Ref, dim: int, part: slice) -> Ref:
    places = range(*part.indices(ref.shape[dim]))
    shape, strides = [*ref.shape], [*ref.strides]
    offset = ref.offset + places.start * strides[dim]
    shape[dim] = len(places)
    strides[dim] *= places.step
    return Ref(ref.base, tuple(shape), tuple(strides), offset)


@handles("select")
def _select(low: Lowering, node: fx.Node, ref: Ref, dim: int, index: int) -> Ref:
    dim %= len(ref.shape)
    return _one(ref, dim, index % ref.shape[dim])


def _one(ref: Ref, dim: int, index: int) -> Ref:
    moved = Ref(ref.base, ref.shape, ref.strides, ref.offset + index * ref.strides[dim])
    return without(moved, {dim})


@handles("unbind")
def _unbind(low: Lowering, node: fx.Node, ref: Ref, dim: int = 0) -> list[Ref]:
    dim %= len(ref.shape)
    return [_one(ref, dim, index) for index in range(ref.shape[dim])]


@handles("flip")
def _flip(low: Lowering, node: fx.Node, ref: Ref, dims: Sequence[int]) -> Ref:
    strides, offset = [*ref.strides], ref.offset
    for dim in dims:
        offset += (ref.shape[dim] - 1) * strides[dim]
        strides[dim] = -strides[dim]
    return Ref(ref.base, ref.shape, tuple(strides), offset)


@handles("diagonal")
def _diagonal(
    low: Lowering, node: fx.Node, ref: Ref, offset: int = 0, one: int = 0, two: int = 1
) -> Ref:
    if offset:
        raise NotLowered("a diagonal is not the main one")
    rest = without(ref, {one % len(ref.shape), two % len(ref.shape)})
    shape = (*rest.shape, min(ref.shape[one], ref.shape[two]))
    strides = (*rest.strides, ref.strides[one] + ref.strides[two])
    return Ref(ref.base, shape, strides, ref.offset)


# -- memory put together
# -------------------------------------------------------------------------------------


@handles("cat")
def _cat(low: Lowering, node: fx.Node, refs: Sequence[Ref], dim: int = 0) -> Ref:
    shape = noted_shape(node)
    strides = laid_out(shape)
    refs = [ref for ref in refs if math.prod(ref.shape)]
    dim %= len(shape)
    pieces, offset = [], 0
    for ref in refs:
        pieces.append((ref, strides, offset * strides[dim]))
        offset += ref.shape[dim]
    return low.program.assemble(shape, noted_dtype(node), pieces)


@handles("stack")
def _stack(low: Lowering, node: fx.Node, refs: Sequence[Ref], dim: int = 0) -> Ref:
    shape = noted_shape(node)
    dim %= len(shape)
    strides = laid_out(shape)
    own = tuple(s for d, s in enumerate(strides) if d != dim)
    pieces = [(ref, own, index * strides[dim]) for index, ref in enumerate(refs)]
    return low.program.assemble(shape, noted_dtype(node), pieces)


def _inside(
    low: Lowering, node: fx.Node, ground: Ref, ref: Ref, strides: Sequence[int], offset: int
) -> Ref:
    """A value written over a part of another."""
    shape = noted_shape(node)
    pieces = [(ground, laid_out(shape), 0), (ref, tuple(strides), offset)]
    return low.program.assemble(shape, noted_dtype(node), pieces)


def _nothing(low: Lowering, node: fx.Node, value: float = 0) -> Ref:
    return low.program.number(value, noted_dtype(node), noted_shape(node))


@handles("slice_backward")
def _slice_backward(
    low: Lowering, node: fx.Node, ref: Ref, sizes: Any, dim: int, start: int, end: int, step: int
) -> Ref:
    strides = [*laid_out(tuple(sizes))]
    offset = slice(start, end, step).indices(sizes[dim])[0] * strides[dim]
    strides[dim] *= step
    return _inside(low, node, _nothing(low, node), ref, strides, offset)


@handles("select_backward")
def _select_backward(
    low: Lowering, node: fx.Node, ref: Ref, sizes: Any, dim: int, index: int
) -> Ref:
    dim %= len(sizes)
    strides = laid_out(tuple(sizes))
    own = [s for d, s in enumerate(strides) if d != dim]
    return _inside(low, node, _nothing(low, node), ref, own, index % sizes[dim] * strides[dim])


@handles("diagonal_backward")
def _diagonal_backward(
    low: Lowering, node: fx.Node, ref: Ref, sizes: Any, offset: int, one: int, two: int
) -> Ref:
    whole = Ref(ref.base, tuple(sizes), laid_out(tuple(sizes)))
    own = _diagonal(low, node, whole, offset, one, two)
    return _inside(low, node, _nothing(low, node), ref, own.strides, 0)


@handles("constant_pad_nd")
def _pad(low: Lowering, node: fx.Node, ref: Ref, sizes: Sequence[int], value: float = 0) -> Ref:
    shape = noted_shape(node)
    strides = laid_out(shape)
    before = [0] * len(shape)
    for place in range(len(sizes) // 2):
        dim = len(shape) - 1 - place
        left, right = sizes[2 * place], sizes[2 * place + 1]
        ref = _sliced(ref, dim, slice(max(0, -left), ref.shape[dim] + min(0, right)))
        before[dim] = max(0, left)
    offset = sum(b * s for b, s in zip(before, strides, strict=True))
    return _inside(low, node, _nothing(low, node, value), ref, strides, offset)


# -- places that values tell
# ---------------------------------------------------------------------------------


@handles("index")
def _index(low: Lowering, node: fx.Node, source: Ref, indices: Sequence[Ref | None]) -> Ref:
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    first, wide = _together(given)
    shape = noted_shape(node)
    source = _solid(low, source)
    dims = {dim for dim, _ in given}
    rest = without(source, dims)
    strides = (*rest.strides[:first], *(0,) * wide, *rest.strides[first:])
    after = len(rest.shape) - first
    spread = [(dim, _behind(ref, after)) for dim, ref in given]
    return low.program.look_up(
        shape, source, spread, Ref(source.base, shape, strides, source.offset)
    )


def _together(given: Sequence[tuple[int, Ref]]) -> tuple[int, int]:
    """Where the dims of indices stand in the result, and how many there are."""
    dims = [dim for dim, _ in given]
    if any(ref.dtype not in (torch.int64, torch.int32) for _, ref in given):
        raise NotLowered("a mask chooses elements")
    if dims != [*range(dims[0], dims[0] + len(dims))]:
        raise NotLowered("indices stand apart")
    return dims[0], max(len(ref.shape) for _, ref in given)


def _behind(ref: Ref, count: int) -> Ref:
    """With so many dims of one element after its own."""
    return Ref(ref.base, (*ref.shape, *(1,) * count), (*ref.strides, *(0,) * count), ref.offset)


def _solid(low: Lowering, ref: Ref) -> Ref:
    """Not one number under a name, which cannot be looked up in."""
    if not ref.base.variable:
        return ref
    return low.program.assemble(ref.shape, ref.dtype, [(ref, laid_out(ref.shape), 0)])


@handles("gather")
def _gather(low: Lowering, node: fx.Node, source: Ref, dim: int, index: Ref, **_: Any) -> Ref:
    if not source.shape:
        return source
    source = _solid(low, source)
    dim %= len(source.shape)
    strides = tuple(0 if d == dim else s for d, s in enumerate(source.strides))
    rest = Ref(source.base, index.shape, strides, source.offset)
    return low.program.look_up(index.shape, source, [(dim, index)], rest)


@handles("index_put")
def _index_put(
    low: Lowering,
    node: fx.Node,
    into: Ref,
    indices: Sequence[Ref | None],
    values: Ref,
    adds: bool = False,
) -> Ref:
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    first, wide = _together(given)
    if first:
        raise NotLowered("indices do not come first")
    shape = tuple(torch.broadcast_shapes(*(ref.shape for _, ref in given)))
    shape = (*shape, *into.shape[len(given) :])
    names = [f"k{d}" for d, _ in enumerate(shape)]
    strides = laid_out(into.shape)
    rest = len(into.shape) - len(given)
    rows = [
        f"row_({LoopProgram.at(_behind(ref, rest).spread(shape), *names)}, {into.shape[dim]}, bad) * {strides[dim]}"
        for dim, ref in given
    ]
    spot = " + ".join(
        [*rows, *(f"{n} * {s}" for n, s in zip(names[wide:], strides[len(given) :], strict=True))]
    )
    refs = [into, *(ref for _, ref in given)]
    return _put(low, node, refs, values.spread(shape), names, spot, adds)


@handles("scatter", "scatter_add")
def _scatter(
    low: Lowering, node: fx.Node, into: Ref, dim: int, index: Ref, values: Any, **named: Any
) -> Ref:
    if named:
        raise NotLowered("scatter reduces")
    if not isinstance(values, Ref):
        values = low.program.number(values, into.dtype, index.shape)
    dim %= max(1, len(into.shape))
    names = [f"k{d}" for d, _ in enumerate(index.shape)]
    row = f"row_({LoopProgram.at(index, *names)}, {into.shape[dim]}, bad)"
    places = [row if d == dim else name for d, name in enumerate(names)]
    own = tuple(min(n, m) for n, m in zip(index.shape, values.shape, strict=True))
    values = Ref(values.base, own, values.strides, values.offset)
    spot = _spot(places, laid_out(into.shape))
    adds = name_of(node).startswith("scatter_add")
    return _put(low, node, [into, index], values, names, spot, adds)


def _put(
    low: Lowering,
    node: fx.Node,
    refs: Sequence[Ref],
    values: Ref,
    names: Sequence[str],
    spot: str,
    adds: bool,
) -> Ref:
    """A copy of the first value, with others added or put in at places."""
    into = refs[0]
    own = [f"j{d}" for d, _ in enumerate(into.shape)]

    def code(out: str) -> list[str]:
        copied = [_for(n, size) for n, size in zip(own, into.shape, strict=True)]
        copied += [
            f"{out}[{_spot(own, laid_out(into.shape))}] = {LoopProgram.at(into, *own)};",
            "}" * len(own),
        ]
        lines = [_for(n, size) for n, size in zip(names, values.shape, strict=True)]
        lines += [
            f"{out}[{spot}] {'+' if adds else ''}= {LoopProgram.at(values, *names)};",
            "}" * len(names),
        ]
        return [*copied, *lines]

    return low.program.custom(into.shape, into.dtype, [*refs, values], code)


def _for(name: str, size: int) -> str:
    return f"for (int64_t {name} = 0; {name} < {size}; ++{name}) {{"


def _spot(names: Sequence[str], strides: Sequence[int]) -> str:
    return " + ".join(["0", *(f"({n}) * {s}" for n, s in zip(names, strides, strict=True) if s)])


# -- matrices
# ----------------------------------------------------------------------------------------------------


@handles("mv")
def _mv(low: Lowering, node: fx.Node, matrix: Ref, vector: Ref) -> Ref:
    return low.folded(low.like(matrix, "{0} * {1}", vector), "sum", 1)


@handles("dot")
def _dot(low: Lowering, node: fx.Node, one: Ref, other: Ref) -> Ref:
    return low.folded(low.like(one, "{0} * {1}", other), "sum")


@handles("mm", "bmm")
def _mm(low: Lowering, node: fx.Node, one: Ref, other: Ref) -> Ref:
    *batch, rows, _ = one.shape
    inner, columns = other.shape[-2:]
    if 1 in (rows, columns, inner):  # sums, which other operations can join
        left = _unsqueeze(low, node, one, -1)
        right = _unsqueeze(low, node, other, -3)
        shape = (*batch, rows, inner, columns)
        product = low.elements(shape, one.dtype, "{0} * {1}", (left, right))
        return low.folded(product, "sum", len(shape) - 2)
    names = [f"b{d}" for d, _ in enumerate(batch)]
    kind, strides = TYPES[one.dtype], laid_out((*batch, rows, columns))
    near = other.strides[-1] == 1 or other.strides[-2] != 1

    def code(out: str) -> list[str]:
        spot = _spot([*names, "r", "c"], strides)
        pair = lambda k: [  # noqa: E731
            LoopProgram.at(ref, *names, *place)
            for ref, place in ((one, ("r", k)), (other, (k, "c")))
        ]
        product = " * ".join(pair("k"))
        simd = "#pragma omp simd"
        lines = [_for(n, size) for n, size in zip(names, batch, strict=True)] + [_for("r", rows)]
        if near and inner <= FEW:
            total = " + ".join(" * ".join(pair(str(k))) for k in range(inner))
            lines += [simd, _for("c", columns), f"{out}[{spot}] = {total};", "}"]
        elif near:
            lines += [_for("c", columns), f"{out}[{spot}] = 0;", "}", _for("k", inner), simd]
            lines += [_for("c", columns), f"{out}[{spot}] += {product};", "}", "}"]
        else:
            lines += [_for("c", columns), f"{kind} total = 0;", f"{simd} reduction(+:total)"]
            lines += [_for("k", inner), f"total += {product};", "}", f"{out}[{spot}] = total;", "}"]
        return [*lines, "}" * (len(batch) + 1)]

    return low.program.custom((*batch, rows, columns), one.dtype, [one, other], code)


@handles("addmm", "baddbmm")
def _addmm(low: Lowering, node: fx.Node, bias: Ref, one: Ref, other: Ref, **scaled: Any) -> Ref:
    if scaled:
        raise NotLowered("a product of matrices is scaled")
    return low.like(_mm(low, node, one, other), "{0} + {1}", bias)


@handles("linalg_solve_triangular")
def _solve(
    low: Lowering,
    node: fx.Node,
    matrix: Ref,
    right: Ref,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Ref:
    if not left or unitriangular:
        raise NotLowered("a triangular system is solved from the right")
    shape = noted_shape(node)
    *batch, rows, columns = shape
    if math.prod(shape) * rows > PRODUCTS:
        raise NotLowered("a triangular system is large")
    matrix = matrix.spread((*batch, rows, rows))
    right = right.spread(shape)
    names = [f"b{d}" for d, _ in enumerate(batch)]
    strides = laid_out(shape)

    def code(out: str) -> list[str]:
        row = f"int64_t r = {f'{rows} - 1 - s' if upper else 's'};"
        known = f"for (int64_t k = {'r + 1' if upper else '0'}; k < {rows if upper else 'r'}; ++k)"
        own = f"{out}[{_spot([*names, 'r', 'c'], strides)}]"
        other = f"{out}[{_spot([*names, 'k', 'c'], strides)}]"
        lines = [_for(n, size) for n, size in zip(names, batch, strict=True)]
        lines += [_for("s", rows), row, _for("c", columns)]
        lines += [f"{TYPES[right.dtype]} total = 0;", "#pragma omp simd reduction(+:total)"]
        lines += [known, f"total += {LoopProgram.at(matrix, *names, 'r', 'k')} * {other};"]
        divisor = LoopProgram.at(matrix, *names, "r", "r")
        lines += [f"{own} = ({LoopProgram.at(right, *names, 'r', 'c')} - total) / {divisor};"]
        return [*lines, "}" * (len(batch) + 2)]

    return low.program.custom(shape, right.dtype, [matrix, right], code)
