"""Loops over elements as one function in C++, for graphs whose operations are small.

Values of one shape are computed in one loop as far as they need nothing of other loops, and stay in
registers unless a later loop reads them; what depends on nothing that changes is computed once
before the steps. Where the last dim is short the longest one is the innermost loop, and the one
whose elements lie side by side: compilers compute several of these at once.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from probgen.compile.kernel_header import HEADER
from probgen.compile.kernel_rolling import Family, Rolling, spaced, unit

Shape = tuple[int, ...]
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
# bytes of values that lie on the stack, which every compiler knows not to overlap
NEAR = 4096
ALIGNED = 64
# a last dim of fewer elements gives way to one that is longer by a factor
SHORT = 16
LONGER = 4


@dataclass(eq=False)
class Buffer:
    """Where the elements of a value lie: an input, a variable, memory of the kernel, or a number.

    Attributes
    ----------
    shape : tuple of int
        Its dims as they lie in memory, without those of one element.
    once : bool
        Whether it is the same in all steps.
    group : int
        The loop that computes it; -1 for inputs and numbers.
    whole : int
        From which loop on all of its elements are there.
    home : int
        The loop that alone fills it; -1 where there are several, or none.
    variable : bool
        Whether it is one number, under its name.
    stored : bool
        Whether its elements are looked for in memory.
    readers : list
        Loops that read an input, and whether each element is read where it is computed anew.
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    once: bool
    group: int = -1
    whole: int = 0
    home: int = -1
    variable: bool = False
    stored: bool = False
    readers: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def element(self) -> str:
        """The name of an element in the loop that computes it."""
        return self.name if self.variable else f"e{self.name}"

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Ref(NamedTuple):
    """A view of a buffer: the element at an index lies at offset + index x strides."""

    base: Buffer
    shape: Shape
    strides: Shape
    offset: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def spread(self, shape: Shape) -> Ref:
        """Broadcast to a shape."""
        more = len(shape) - len(self.shape)
        own = zip(self.shape, self.strides, strict=True)
        strides = (0,) * more + tuple(0 if size == 1 else stride for size, stride in own)
        return Ref(self.base, shape, strides, self.offset)

    def idle(self) -> set[int]:
        """The dims along which all elements are one."""
        sizes = zip(self.shape, self.strides, strict=True)
        return {dim for dim, (size, stride) in enumerate(sizes) if size != 1 and not stride}

    def narrowed(self, dims: Iterable[int]) -> Ref:
        """One element of each of these dims."""
        shape = tuple(1 if dim in dims else size for dim, size in enumerate(self.shape))
        return Ref(self.base, shape, self.strides, self.offset)

    def looped(self, dims: Sequence[int]) -> Ref:
        """Its elements by these dims, in the order of loops."""
        shape = tuple(self.shape[dim] for dim in dims)
        return Ref(self.base, shape, tuple(self.strides[dim] for dim in dims), self.offset)

    def lies_whole(self) -> bool:
        """Whether it is its buffer, element by element."""
        strides = tuple(s for n, s in zip(self.shape, self.strides, strict=True) if n != 1)
        whole = squeezed(self.shape) == self.base.shape and strides == contiguous(self.base.shape)
        return whole and self.offset == 0


def squeezed(shape: Sequence[int]) -> Shape:
    """Without dims of one element."""
    return tuple(size for size in shape if size != 1)


def loops_of(shape: Sequence[int]) -> Shape:
    """The dims of more than one element, in the order that loops take them.

    >>> loops_of((2, 3, 64)), loops_of((64, 1, 3))
    ((0, 1, 2), (2, 0))
    """
    dims = [dim for dim, size in enumerate(shape) if size != 1]
    if not dims:
        return ()
    longest = max(dims, key=lambda dim: shape[dim])
    if shape[dims[-1]] < SHORT and shape[longest] >= LONGER * shape[dims[-1]]:
        dims.remove(longest)
        dims.append(longest)
    return tuple(dims)


def key_of(shape: Sequence[int]) -> Shape:
    """The loops over a shape, which those over a transposed one may share.

    >>> key_of((3, 64)), key_of((64, 1, 3))
    ((3, 64), (3, 64))
    """
    return tuple(shape[dim] for dim in loops_of(shape))


def laid_out(shape: Sequence[int]) -> Shape:
    """Strides of elements in the order of loops.

    >>> laid_out((2, 3)), laid_out((64, 3))
    ((3, 1), (1, 64))
    """
    dims = loops_of(shape)
    own = dict(zip(dims, contiguous([shape[dim] for dim in dims]), strict=True))
    return tuple(own.get(dim, 0) for dim, _ in enumerate(shape))


def contiguous(shape: Sequence[int]) -> Shape:
    """Strides of elements in their order.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    sizes = itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1)
    return tuple(reversed([*sizes])) if shape else ()


class Fold(NamedTuple):
    """A sum, product, maximum or minimum: ``out[kept] = how(out[kept], value)``."""

    out: Buffer
    value: str
    how: str
    start: str
    strides: Shape


class Statement(NamedTuple):
    """A value that one element computes, and where it goes if somebody looks for it there."""

    text: str
    out: Buffer | None = None


@dataclass
class Group:
    """One loop nest over a shape, or code of its own."""

    shape: Shape
    lines: list[Statement | Fold] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    looks_up: bool = False


class LoopProgram:
    """Kernel under construction: each method adds an operation and gives where its result is."""

    def __init__(self) -> None:
        self._groups: dict[bool, list[Group]] = {True: [], False: []}
        self._buffers: list[Buffer] = []
        self._inputs: list[tuple[Buffer, bool]] = []
        self._names = itertools.count()
        self._known: dict[tuple[Ref, int], Ref] = {}
        self._computed: dict[tuple, Buffer] = {}

    # -- values
    # --------------------------------------------------------------------------------------------------

    def given(
        self, dtype: torch.dtype, shape: Shape, strides: Shape, moves: bool, once: bool
    ) -> Ref:
        """The next input; ``moves``: each step has another one."""
        name = f"in{len(self._inputs)}"
        base = Buffer(name, dtype, squeezed(shape), once, stored=True)
        self._inputs.append((base, moves))
        return Ref(base, shape, strides)

    def number(self, value: float, dtype: torch.dtype, shape: Shape = ()) -> Ref:
        base = Buffer(literal(value, dtype), dtype, (), True, variable=True)
        return Ref(base, shape, (0,) * len(shape))

    def pointwise(
        self, shape: Shape, dtype: torch.dtype, text: Callable[..., str], refs: Sequence[Ref]
    ) -> Ref:
        """``text(*elements)`` at every index; once along dims where no element differs."""
        refs = [ref.spread(shape) for ref in refs]
        if refs and (idle := set.intersection(*(ref.idle() for ref in refs))):
            refs = [ref.narrowed(idle) for ref in refs]
            return self.pointwise(refs[0].shape, dtype, text, refs).spread(shape)
        return self.indexed(shape, dtype, text, refs)

    def indexed(
        self, shape: Shape, dtype: torch.dtype, text: Callable[..., str], refs: Sequence[Ref]
    ) -> Ref:
        """``text(*elements)`` at every index, which the text may name."""
        where, once = self._place(shape, refs)
        read = [self.element(ref, shape, where, once) for ref in refs]
        value = f"({TYPES[dtype]})({text(*read)})"
        known = (once, where, dtype, value)
        if known not in self._computed:
            out = self._computed[known] = self._new(dtype, shape, where, once)
            line = Statement(f"const {TYPES[dtype]} {out.element} = {value};", out)
            self._groups[once][where].lines.append(line)
        return Ref(self._computed[known], shape, laid_out(shape))

    def fold(self, ref: Ref, dims: Sequence[int], dtype: torch.dtype, how: str, start: str) -> Ref:
        """Over some dims, which stay with one element."""
        kept = tuple(1 if dim in dims else size for dim, size in enumerate(ref.shape))
        if idle := ref.idle() - {*dims}:
            return self.fold(ref.narrowed(idle), dims, dtype, how, start).spread(kept)
        where, once = self._place(ref.shape, [ref])
        strides = laid_out(kept)
        own = tuple(strides[dim] for dim in loops_of(ref.shape))
        value = f"({TYPES[dtype]})({self.element(ref, ref.shape, where, once)})"
        known = (once, where, dtype, value, how, own)
        if known not in self._computed:
            out = self._computed[known] = self._new(dtype, kept, where, once)
            out.whole, out.group, out.home, out.stored = where + 1, -1, where, True
            self._groups[once][where].lines.append(Fold(out, value, how, start, own))
        return Ref(self._computed[known], kept, strides)

    def assemble(
        self,
        shape: Shape,
        dtype: torch.dtype,
        pieces: Sequence[tuple[Ref, Shape, int]],
        strides: Shape | None = None,
    ) -> Ref:
        """Memory that pieces are written to, each with its strides and offset; later ones win.

        It lies by ``strides``, in the order of loops where none are given.
        """
        once = all(ref.base.once for ref, *_ in pieces)
        strides = laid_out(shape) if strides is None else strides
        out = self._memory_of(dtype, shape, strides, once)
        for ref, own, offset in pieces:
            where = self._choose(ref.shape, [ref], once, out.whole)
            self._put(where, once, out, Ref(out, ref.shape, own, offset), ref)
            out.whole = where + 1
        return Ref(out, shape, strides)

    def custom(
        self,
        shape: Shape,
        dtype: torch.dtype,
        refs: Sequence[Ref],
        code: Callable[[str], Sequence[str]],
    ) -> Ref:
        """Memory that code of its own fills, by its name and strides in the order of loops.

        It reads by :meth:`at`.
        """
        once = all(ref.base.once for ref in refs)
        where = max([0, *(ref.base.whole for ref in refs if ref.base.once is once)])
        where = max(where, len(self._groups[once]))
        for ref in refs:
            self._look(ref.base, where, False)
        out = self._memory_of(dtype, shape, laid_out(shape), once)
        out.whole, out.home = where + 1, where
        self._groups[once].append(Group((), own=list(code(out.name)), looks_up=True))
        return Ref(out, shape, laid_out(shape))

    def look_up(
        self, shape: Shape, source: Ref, indices: Sequence[tuple[int, Ref]], rest: Ref
    ) -> Ref:
        """Elements of the source at indices of some of its dims; ``rest`` strides over the others."""
        rows = [(dim, self._rows(ref, source.shape[dim])) for dim, ref in indices]
        refs = [ref for _, ref in rows]
        once = all(ref.base.once for ref in [*refs, source])
        where = self._choose(shape, refs, once, self._whole(source, once))
        self._look(source.base, where, False)
        places = [place(rest.spread(shape).looped(loops_of(shape)))]
        for dim, ref in rows:
            row = self.element(ref, shape, where, once)
            places.append(f"{row} * {source.strides[dim]}")
        out = self._new(source.dtype, shape, where, once)
        found = _at(source.base, " + ".join(places))
        text = f"const {TYPES[out.dtype]} {out.element} = {found};"
        self._groups[once][where].lines.append(Statement(text, out))
        return Ref(out, shape, laid_out(shape))

    def _rows(self, ref: Ref, size: int) -> Ref:
        """Indices into so many rows, from the front and checked, once for all that is looked up."""
        if (ref, size) not in self._known:
            text = lambda index: f"row_({index}, {size}, bad)"  # noqa: E731
            rows = self.pointwise(ref.shape, torch.int64, text, [ref])
            self._groups[rows.base.once][rows.base.group].looks_up = True
            self._known[ref, size] = rows
        return self._known[ref, size]

    def write(self, into: Ref, value: Ref) -> None:
        """To an input, in each step after all that read it."""
        whole = into.looped(loops_of(into.shape)).lies_whole()
        reads = (g if same and whole else g + 1 for g, same in into.base.readers)
        where = self._choose(into.shape, [value], False, max(reads, default=0))
        self._put(where, False, into.base, into, value)

    def output(self, value: Ref) -> int:
        """What every step gives, one row after the other; its number of elements."""
        size = math.prod(value.shape)
        base = Buffer("now", torch.float64, squeezed(value.shape) or (1,), False, stored=True)
        self.write(Ref(base, value.shape, contiguous(value.shape)), value)
        return size

    # -- elements
    # ------------------------------------------------------------------------------------------------

    def element(self, ref: Ref, shape: Shape, where: int, once: bool) -> str:
        """An element of a value inside a loop over a shape that it is broadcast to."""
        base = ref.base
        if base.variable and not base.shape:
            return base.name
        ref = ref.spread(shape).looped(loops_of(shape))
        same = ref.lies_whole()
        if base.group == where and base.once is once and same:
            return base.element
        self._look(base, where, same)
        return _at(base, place(ref))

    @staticmethod
    def at(ref: Ref, *index: str) -> str:
        """The element at an index, for code of its own."""
        terms = [f"({i}) * {s}" for i, s in zip(index, ref.strides, strict=True) if s]
        return _at(ref.base, " + ".join([str(ref.offset), *terms]))

    # -- loops
    # ----------------------------------------------------------------------------------------------------

    def _new(self, dtype: torch.dtype, shape: Shape, where: int, once: bool) -> Buffer:
        key = key_of(shape)
        name = f"v{next(self._names)}"
        out = Buffer(name, dtype, key, once, where, where + bool(key), where, variable=not key)
        self._buffers.append(out)
        return out

    def _memory_of(self, dtype: torch.dtype, shape: Shape, strides: Shape, once: bool) -> Buffer:
        out = self._new(dtype, shape, -1, once)
        dims = sorted((d for d, n in enumerate(shape) if n != 1), key=lambda dim: -strides[dim])
        out.variable, out.stored = False, True
        out.shape = tuple(shape[dim] for dim in dims) or (1,)
        return out

    def _look(self, base: Buffer, where: int, same: bool) -> None:
        base.stored = True
        base.readers.append((where, same))

    def _place(self, shape: Shape, refs: Sequence[Ref]) -> tuple[int, bool]:
        once = all(ref.base.once for ref in refs)
        return self._choose(shape, refs, once, 0), once

    def _choose(self, shape: Shape, refs: Sequence[Ref], once: bool, first: int) -> int:
        """The first loop over a shape in which all that is read is there."""
        groups, key, dims = self._groups[once], key_of(shape), loops_of(shape)
        read = (ref.spread(shape).looped(dims) for ref in refs)
        first = max([first, *(self._after(ref, once) for ref in read)])
        for where in range(first, len(groups)):
            if groups[where].shape == key and not groups[where].own:
                return where
        groups.append(Group(key))
        return len(groups) - 1

    def _after(self, ref: Ref, once: bool) -> int:
        base = ref.base
        if base.once is not once:
            return 0
        if base.group >= 0 and ref.lies_whole():
            return base.group
        return base.whole

    @staticmethod
    def _whole(ref: Ref, once: bool) -> int:
        return ref.base.whole if ref.base.once is once else 0

    def _put(self, where: int, once: bool, base: Buffer, into: Ref, value: Ref) -> None:
        read = self.element(value, into.shape, where, once)
        spot = place(into.looped(loops_of(into.shape)))
        text = f"{_at(base, spot)} = ({TYPES[base.dtype]})({read});"
        self._groups[once][where].lines.append(Statement(text))

    @functools.cached_property
    def _rolling(self) -> tuple[list[list[str]], Rolling]:
        """The texts of the loops of a step, and which of them repeat, once all of them are there."""
        groups = self._groups[False]
        texts = [[*(group.own or _nest(group))] for group in groups]
        buffers = {buffer.name: buffer for buffer in self._buffers}
        kinds = {name: f"{b.dtype}{b.shape}{b.variable}" for name, b in buffers.items()}
        made: list[list[str]] = [[] for _ in groups]
        for buffer in self._buffers:
            if not buffer.once and buffer.home >= 0 and (buffer.stored or buffer.variable):
                made[buffer.home].append(buffer.name)
        units = [unit(text, kinds, own) for text, own in zip(texts, made, strict=True)]
        return texts, Rolling(units, lambda name: buffers[name].variable)

    @property
    def loops(self) -> int:
        """How many loop nests there are, which is what compiling takes its time for."""
        _, rolling = self._rolling
        groups = [*self._groups[True], *(self._groups[False][place] for place in rolling.loops)]
        return sum(bool(group.shape or group.own) for group in groups)

    @property
    def looks_up(self) -> bool:
        """Whether it reads or writes where values tell, which may be outside of what is there."""
        return any(group.looks_up for groups in self._groups.values() for group in groups)

    # -- text
    # -------------------------------------------------------------------------------------------------

    def source(self) -> tuple[str, int]:
        """The function in C++, and the bytes of memory that it needs."""
        texts, rolling = self._rolling
        memory, size = self._memory(rolling.families)
        kinds = {buffer.name: TYPES[buffer.dtype] for buffer in self._buffers}
        kinds = {family.name: kinds[family.members[0]] for family in rolling.families}
        staying = [base for base, moves in self._inputs if not moves]
        moving = [base for base, moves in self._inputs if moves]
        lines = [
            HEADER,
            'extern "C" int run(int64_t steps, void** fixed, void** moving, double* results,',
            "                   int64_t width, char* work) {",
            "int bad = 0;",
            "const unsigned mode = flushed();",
            *(_input(i, base, "fixed") for i, base in enumerate(staying)),
            *memory,
            *(line for group in self._groups[True] for line in group.own or _nest(group)),
            "for (int64_t step = 0; step < steps; ++step) {",
            "double* __restrict now = results + step * width;",
            f"void** own = moving + step * {len(moving)};",
            *(_input(i, base, "own") for i, base in enumerate(moving)),
            *rolling.lines(texts, kinds),
            "}",
            "restored(mode);",
            "return bad;",
            "}",
        ]
        return "\n".join(lines) + "\n", size

    def _memory(self, families: Sequence[Family]) -> tuple[list[str], int]:
        lines, size = [], 0
        together = {name: family for family in families for name in family.members}
        buffers = {buffer.name: buffer for buffer in self._buffers}
        for buffer in self._buffers:
            if not buffer.variable and buffer.stored and buffer.name not in together:
                line, more = _memory_at(buffer.name, buffer, math.prod(buffer.shape), size)
                lines.append(line)
                size += more
        for family in families:
            first = buffers[family.members[0]]
            space = -(-first.bytes // ALIGNED) * ALIGNED // first.dtype.itemsize
            line, more = _memory_at(family.name, first, space * len(family.members), size)
            lines += [line, f"constexpr int64_t {spaced(family.name)} = {space};"]
            lines += [
                f"{TYPES[first.dtype]}* {name} = {family.name} + {place * space};"
                for place, name in enumerate(family.members)
            ]
            size += more
        return lines, size


def _memory_at(name: str, like: Buffer, count: int, size: int) -> tuple[str, int]:
    """The declaration of so many elements, and how many bytes of the kernel's memory they take."""
    kind, taken = TYPES[like.dtype], count * like.dtype.itemsize
    if taken <= NEAR:
        return f"alignas({ALIGNED}) {kind} {name}[{count}];", 0
    line = f"{kind}* __restrict {name} = ({kind}*)(work + {size});"
    return line, -(-taken // ALIGNED) * ALIGNED


def literal(value: float, dtype: torch.dtype) -> str:
    """A number in C++.

    >>> literal(0.5, torch.float32), literal(True, torch.bool)
    ('(float)(0.5)', '(bool)(1)')
    """
    if isinstance(value, float) and not math.isfinite(value):
        text = '__builtin_nan("")' if math.isnan(value) else "__builtin_inf()"
        text = f"-{text}" if value < 0 else text
    elif isinstance(value, float):
        text = repr(value)
    else:
        text = str(int(value))
    return f"({TYPES[dtype]})({text})"


def place(ref: Ref) -> str:
    """Where an element lies, by the indices of the loops over a shape."""
    sizes = [s for n, s in zip(ref.shape, ref.strides, strict=True) if n != 1]
    terms = [f"i{dim} * {stride}" for dim, stride in enumerate(sizes) if stride]
    return " + ".join([str(ref.offset), *terms])


def _at(base: Buffer, where: str) -> str:
    return base.name if base.variable else f"{base.name}[{where}]"


def _input(index: int, base: Buffer, of: str) -> str:
    kind = TYPES[base.dtype]
    return f"{kind}* __restrict {base.name} = ({kind}*){of}[{index}];"


def _nest(group: Group) -> Iterator[str]:
    """Loops of a group; the innermost is one that a compiler may compute several elements of at once."""
    folds = [line for line in group.lines if isinstance(line, Fold)]
    yield from map(_start, folds)
    if not group.shape:
        yield from _body(group, -1)
        return
    *outer, inner = group.shape
    last = len(outer)
    for dim, size in enumerate(outer):
        yield f"for (int64_t i{dim} = 0; i{dim} < {size}; ++i{dim}) {{"
    summed = [fold for fold in folds if not fold.strides[last]]
    for fold in summed:
        yield f"{TYPES[fold.out.dtype]} l{fold.out.name} = {fold.start};"
    yield _pragma(group, summed)
    yield f"for (int64_t i{last} = 0; i{last} < {inner}; ++i{last}) {{"
    yield from _body(group, last)
    yield "}"
    for fold in summed:
        yield _combined(fold, f"l{fold.out.name}")
    yield "}" * len(outer)


def _pragma(group: Group, summed: Sequence[Fold]) -> str:
    names = {"plus_": "+", "times_": "*", "or_": "||", "and_": "&&"}
    own = "".join(f" reduction({names.get(f.how, f.how)}:l{f.out.name})" for f in summed)
    return f"#pragma omp simd{own}{' reduction(|:bad)' if group.looks_up else ''}"


def _start(fold: Fold) -> str:
    out = fold.out
    kind = TYPES[out.dtype]
    if out.variable:
        return f"{kind} {out.name} = {fold.start};"
    size = math.prod(out.shape)
    return f"for (int64_t k = 0; k < {size}; ++k) {out.name}[k] = {fold.start};"


def _body(group: Group, last: int) -> Iterator[str]:
    for line in group.lines:
        if isinstance(line, Fold):
            own = last < 0 or line.strides[last]
            local = f"l{line.out.name}"
            yield (
                _combined(line, line.value)
                if own
                else f"{local} = {line.how}({local}, {line.value});"
            )
            continue
        yield line.text
        if line.out is not None and line.out.stored and not line.out.variable:
            out = line.out
            yield f"{_at(out, place(Ref(out, out.shape, contiguous(out.shape))))} = {out.element};"


def _combined(fold: Fold, value: str) -> str:
    terms = [f"i{dim} * {stride}" for dim, stride in enumerate(fold.strides) if stride]
    target = _at(fold.out, " + ".join(["0", *terms]))
    return f"{target} = {fold.how}({target}, {value});"
