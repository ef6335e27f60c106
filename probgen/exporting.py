"""Densities and samplers of models as programs of torch alone, which run where probgen is not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export import export as traced
from torch.export import load as load_program
from torch.export import save as save_program

from probgen.compile.tracing import NotCompilable, Recording, record_operations
from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import average, density_kind
from probgen.core.modes import infers
from probgen.core.module import GenerativeModel
from probgen.core.runtime import validation
from probgen.core.training_record import versions
from probgen.core.turns import same_random_state

TOLD = "probgen.json"  # beside the program in its file
EXAMPLES = 6  # rows that a program is traced with
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
# what torch says of a graph that it cannot make, and what that means
REASONS = (
    (r"fake tensor", "it makes tensors of its own that torch.export cannot take"),
    (
        r"data.dependent|DataDependent|reads the value of a tensor",
        "its steps depend on values, as those of a loop with an open end",
    ),
    (
        r"Constraints violated|specialized|dynamic",
        "its steps are made for the number of rows that it sees",
    ),
    (
        r"UnsupportedOperator|unsupported operator",
        "torch has no form of {operation} that can be exported",
    ),
)
OPERATION = re.compile(r"aten\.\w+")


class NotExportable(RuntimeError):
    """A model whose density or sampler cannot be a program of torch alone; the message says why."""


@dataclass(frozen=True)
class Exported:
    """A density or a sampler as a program of torch alone.

    Attributes
    ----------
    program : torch.export.ExportedProgram
        For ``torch.export.save``, AOTInductor, ONNX and others that take one. One that is made for
        any number of rows itself takes two or more; the call here adds to fewer, and cuts.
    kind : str
        What the numbers of a density are, one of :data:`probgen.core.KINDS`; empty for a sampler.
    rows : int or None
        For how many rows, or draws, it is made; ``None``: for any number of them.
    particles : int
        Draws of the latents that each number of a density averages.
    versions : dict
        Those of probgen, torch and Pyro that made it.

    >>> import torch
    >>> from probgen.core.module import standard_normal
    >>> density = export_density(standard_normal(2), torch.zeros(6, 2))
    >>> density, density(torch.zeros(3, 2))
    (Exported(density, exact, any number of rows), tensor([-1.8379, -1.8379, -1.8379]))
    """

    program: ExportedProgram
    kind: str
    rows: int | None
    particles: int
    versions: dict[str, str]

    @cached_property
    def _module(self) -> Callable[..., Tensor]:
        return self.program.module()

    def __call__(self, *inputs: Any) -> Tensor:
        """Runs it: a density on rows, and contexts where it has them; a sampler on a number, or on contexts.

        A program that is made for a number of rows takes so many; a sampler without contexts then
        takes nothing. Draws follow torch's random state.

        Raises
        ------
        TypeError, ValueError
            For inputs of another number, or other than the tensors or the number that it was made
            with; their values are not looked at.
        """
        inputs = self._checked(inputs)
        with torch.no_grad():
            if self.rows is not None:
                return self._module(*inputs)
            count = inputs[0] if isinstance(inputs[0], int) else len(inputs[0])
            return self._module(*map(_two_or_more, inputs))[:count]

    def _checked(self, inputs: tuple) -> tuple:
        """The inputs, refused where the program was made with others."""
        wanted = _shown_inputs(self.program)
        if len(inputs) != len(wanted):
            raise TypeError(
                f"expected {len(wanted)} inputs of the program, got {len(inputs)}; give "
                f"{', '.join(map(_in_words, wanted)) or 'none'}"
            )
        given = tuple(map(_like, inputs, wanted))
        counts = [len(each) for each in given if torch.is_tensor(each)]
        if len(set(counts)) > 1 or (counts and self.rows not in (None, counts[0])):
            one = "the same number of" if self.rows is None else f"{self.rows}"
            raise ValueError(
                f"expected {one} rows in each input, got {counts}; align them"
                + ("" if self.rows is None else ", or export it with any_rows=True")
            )
        return given

    def __repr__(self) -> str:
        of = f"density, {self.kind}" if self.kind else "sampler"
        rows = "any number of rows" if self.rows is None else f"{self.rows} rows"
        averaged = f", {self.particles} particles" if self.particles > 1 else ""
        return f"Exported({of}{averaged}, {rows})"

    def save(self, path: str | os.PathLike) -> None:
        """Writes one file in torch's own format, by custom ``.pt2``.

        Where probgen is not, ``torch.export.load(path).module()`` runs it, on two rows or more;
        :func:`load_exported` gives the kind back as well.

        Raises
        ------
        OSError
            Where no file can be written.
        """
        checks.path(path=path)
        told = {
            "kind": self.kind,
            "rows": self.rows,
            "particles": self.particles,
            "versions": self.versions,
        }
        try:
            save_program(self.program, os.fspath(path), extra_files={TOLD: json.dumps(told)})
        except (RuntimeError, OSError) as error:
            raise OSError(
                f"cannot write {path}: {_first_line(error)}; choose a file in a folder that is there, "
                "is writable and has space"
            ) from error


@explained
def load_exported(path: str | os.PathLike) -> Exported:
    """Reads what :meth:`Exported.save` wrote.

    Parameters
    ----------
    path : path
        The file. Load what you trust: it is a program.

    Raises
    ------
    FileNotFoundError
        Where there is no file.
    NotExportable
        For a file of something else.

    >>> import tempfile
    >>> from probgen.core.module import standard_normal
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_sampler(standard_normal(2)).save(f"{folder}/normal.pt2")
    ...     load_exported(f"{folder}/normal.pt2")(3).shape
    torch.Size([3, 2])
    """
    checks.path(path=path)
    if not os.path.isfile(path):  # noqa: PTH113
        raise FileNotFoundError(f"expected an exported program at {path}, found no file; check it")
    extra = {TOLD: ""}
    try:
        program = load_program(os.fspath(path), extra_files=extra)
        told = json.loads(extra[TOLD])
        return Exported(program, told["kind"], told["rows"], told["particles"], told["versions"])
    except Exception as error:  # of zip files, of JSON, of torch
        raise NotExportable(
            f"expected an exported density or sampler in {path}, got another file "
            f"({_first_line(error)}); give one that Exported.save wrote, or use torch.export.load"
        ) from error


@explained
@infers
@torch.no_grad()
def export_density(
    gen: GenerativeModel,
    x: Any,
    context: Any = None,
    *,
    particles: int = 1,
    any_rows: bool = True,
) -> Exported:
    r"""The log-likelihood of rows as a program of torch alone: x, and context, to nats.

    Parameters and buffers are constants of the program, whose numbers are those of
    ``gen(context).log_prob(x)``: both are compared, on other rows too, before it is given.

    Parameters
    ----------
    gen : GenerativeModel
        The model; it is exported in eval mode and in the precision that it has.
    x : Tensor or frame
        Some rows ``(B, *event)``, which tell shape and dtype, two or more.
    context : Tensor, optional
        Their contexts ``(B, *context_event)``.
    particles : int
        Draws of the latents per row, averaged in probability space (of a bound in log space); one
        where the density is exact.
    any_rows : bool
        Whether it takes any number of rows; else as many as ``x`` has.

    Returns
    -------
    Exported
        With the kind of its numbers; nothing checks the rows that it is given.

    Raises
    ------
    NotExportable
        For models that no graph can follow, or that is made for one number of rows, with the
        reason; and for those without a density.
    ValueError, TypeError
        For rows that are not those of the model.

    Stands on :func:`torch.export.export`, https://docs.pytorch.org/docs/stable/export.html.

    >>> from probgen.models.mixture import GaussianMixture
    >>> mixture = GaussianMixture(2, 3)
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(export_density(mixture, x)(x), mixture().log_prob(x))
    True
    """
    checks.generative(gen=gen)
    checks.at_least(1, particles=particles)
    checks.flag(any_rows=any_rows)
    batch = as_rows(gen, x) if context is None else as_rows(gen, x, context)
    kind = density_kind(gen(*batch[1:]))
    if kind == "implicit":
        raise NotExportable(
            f"expected a model with a density, got {type(gen).__name__}, whose density is implicit; "
            "export its draws: export_sampler(gen)"
        )
    number = 1 if kind == "exact" else int(particles)
    inputs = tuple(map(_enough, batch)) if any_rows else batch
    program = _program(partial(_density, gen, kind, number), inputs, gen, any_rows)
    return Exported(program, kind, None if any_rows else len(inputs[0]), number, versions())


@explained
@infers
@torch.no_grad()
def export_sampler(
    gen: GenerativeModel, n: int = EXAMPLES, context: Any = None, *, any_rows: bool = True
) -> Exported:
    """Draws of a model as a program of torch alone: how many, or contexts, to rows.

    Random numbers are torch's, drawn inside: ``torch.manual_seed`` before the call makes the draws
    repeatable, wherever it runs.

    Parameters
    ----------
    gen : GenerativeModel
        The model; it is exported in eval mode and in the precision that it has.
    n : int
        How many draws a program makes that is made for one number of them; of no weight otherwise.
    context : Tensor, optional
        Some contexts ``(B, *context_event)``, two or more, for models that have them: the program
        draws one row for each context.
    any_rows : bool
        Whether it draws any number of rows; else ``n``, or as many as there are contexts.

    Returns
    -------
    Exported
        Of a :class:`probgen.Tabular` its rows as numbers, in the order of its columns.

    Raises
    ------
    NotExportable
        For models that no graph can follow (samplers with loops that end when a value says so,
        chains), or that is made for one number of rows, with the reason.
    ValueError, TypeError
        For contexts that are not those of the model.

    >>> from probgen.core.module import standard_normal
    >>> draw = export_sampler(standard_normal(2))
    >>> _ = torch.manual_seed(0)
    >>> draw(3).shape
    torch.Size([3, 2])
    """
    checks.generative(gen=gen)
    checks.at_least(1, n=n)
    checks.flag(any_rows=any_rows)
    n = int(n)
    if context is not None:
        given = as_rows(gen, None, context, optional=True)[1]
        inputs = (_enough(given) if any_rows else given,)
        program = _program(partial(_draws_given, gen), inputs, gen, any_rows)
        return Exported(program, "", None if any_rows else len(given), 1, versions())
    if not any_rows:
        program = _program(lambda: gen().sample((n,)), (), gen, False)
        return Exported(program, "", n, 1, versions())
    try:
        program = _program(lambda number: gen().sample((number,)), (max(2, n),), gen, True)
    except NotExportable:  # torch's Categorical reads the number of its draws
        program = _program(lambda number: gen().expand((number,)).sample(), (max(2, n),), gen, True)
    return Exported(program, "", None, 1, versions())


def _density(gen: Any, kind: str, particles: int, x: Tensor, *context: Tensor) -> Tensor:
    """Log-likelihoods of rows, each averaged over particles."""
    if particles == 1:
        return gen(*context).log_prob(x)
    repeated = [value.repeat(particles, *[1] * (value.ndim - 1)) for value in (x, *context)]
    log_prob = gen(*repeated[1:]).log_prob(repeated[0])
    return average(log_prob.unflatten(0, (particles, x.shape[0])), kind)


def _draws_given(gen: Any, context: Tensor) -> Tensor:
    return gen(context).sample()


def _shown_inputs(program: ExportedProgram) -> tuple:
    """What a program was made with: tensors, or a number of draws."""
    shown = program.example_inputs
    assert shown is not None  # torch.export keeps them, in its files as well
    return tuple(shown[0])


def _in_words(wanted: Any) -> str:
    if not torch.is_tensor(wanted):
        return "how many draws"
    return f"a tensor of shape (N{''.join(f', {size}' for size in wanted.shape[1:])})"


def _like(given: Any, wanted: Any) -> Any:
    """An input of the kind that a program was made with."""
    if not torch.is_tensor(wanted):
        checks.at_least(0, n=given)
        return int(given)
    if not torch.is_tensor(given):
        raise TypeError(
            f"expected {_in_words(wanted)}, got {type(given).__name__}; torch.as_tensor makes one"
        )
    if given.ndim != wanted.ndim or given.shape[1:] != wanted.shape[1:]:
        raise ValueError(
            f"expected {_in_words(wanted)}, got {tuple(given.shape)}; give rows like those that it "
            "was exported with"
        )
    return given


def _two_or_more(given: Any) -> Any:
    """What a program is made for that is made for any number of rows: sizes of one broadcast."""
    if isinstance(given, int):
        return max(2, given)
    if len(given) > 1:
        return given
    return torch.cat([given, given.new_zeros(2 - len(given), *given.shape[1:])])


def _enough(value: Tensor) -> Tensor:
    """At least as many rows as a program for any number is traced with, and no more than needed."""
    times = -(-2 // len(value))
    return value.repeat(times, *[1] * (value.ndim - 1))[: max(EXAMPLES, 2)]


class _Function(nn.Module):
    """A function that torch.export takes; the model is a part of it."""

    def __init__(self, function: Callable[..., Tensor], gen: Any):
        super().__init__()
        self.function = function
        self.gen = gen

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


class _Replayed(nn.Module):
    """Operations that were recorded, with the tensors that they need beside their inputs."""

    def __init__(self, recording: Recording):
        super().__init__()
        self.run = recording.__call__  # no part, or constants of its graph would be kept twice
        self.names = [f"tensor_{place}" for place in range(len(recording.closed_over))]
        for name, value in zip(self.names, recording.closed_over, strict=True):
            self.register_buffer(name, value.detach())

    def forward(self, *given: Tensor) -> Tensor:
        others = [self.get_buffer(name) for name in self.names]
        result: Tensor = self.run(*given, closed_over=others)
        return result


def _program(
    function: Callable[..., Tensor], inputs: tuple, gen: Any, any_rows: bool
) -> ExportedProgram:
    """The program of a function of the model, or the refusal."""
    with validation(False), same_random_state():
        _run(function, inputs)  # what is made once and kept is made of values
        try:
            program = _traced(function, inputs, gen) if any_rows else _recorded(function, inputs)
            _compare(function, program, inputs, any_rows)
            return program
        except (*FAILURES, NotCompilable) as error:
            reason = _reason(error)
        advice = "draw and score with probgen itself: pg.save(gen, path) and pg.load(path)"
        if any_rows and _can_be_recorded(function, inputs):
            advice = "any_rows=False exports it for one number of rows"
    raise NotExportable(f"{type(gen).__name__} cannot be exported: {reason}; {advice}")


def _traced(function: Callable[..., Tensor], inputs: tuple, gen: Any) -> ExportedProgram:
    """A program for any number of rows."""
    own = tuple(each.clone() if torch.is_tensor(each) else each for each in inputs)
    return traced(
        _Function(function, gen),
        own,  # torch marks what it is given
        dynamic_shapes=(
            tuple(Dim.DYNAMIC if isinstance(each, int) else {0: Dim.DYNAMIC} for each in inputs),
        ),
        strict=False,
    )


def _recorded(function: Callable[..., Tensor], inputs: tuple) -> ExportedProgram:
    """A program for as many rows as there are."""
    return traced(_Replayed(record_operations(function, *inputs)), inputs, strict=False)


def _can_be_recorded(function: Callable[..., Tensor], inputs: tuple) -> bool:
    """Whether there is a program for one number of rows."""
    fixed = tuple(each for each in inputs if torch.is_tensor(each))
    numbers = [each for each in inputs if not torch.is_tensor(each)]
    alone = partial(function, *numbers)
    try:
        _compare(alone, _recorded(alone, fixed), fixed, False)
    except (*FAILURES, NotCompilable):
        return False
    return True


def _compare(
    function: Callable[..., Tensor], program: ExportedProgram, inputs: tuple, any_rows: bool
) -> None:
    """Refuses a program that gives other numbers than the function, on more rows too."""
    run = program.module()
    for some in [inputs, *([_more(inputs)] if any_rows else [])]:
        expected = _run(function, some)
        got = _run(run, some)
        if not torch.allclose(got, expected, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise RuntimeError("its graph gives other numbers than it does itself")


def _more(inputs: Sequence[Any]) -> tuple:
    """The inputs, for more rows."""
    return tuple(
        each + 3 if isinstance(each, int) else torch.cat([each, each[:1], each[:2]])
        for each in inputs
    )


def _run(function: Callable[..., Tensor], inputs: tuple) -> Tensor:
    torch.manual_seed(0)
    return function(*inputs)


def _reason(error: Exception) -> str:
    """Why there is no program, in one sentence."""
    text = f"{type(error).__name__} {error}"
    for pattern, meaning in REASONS:
        if re.search(pattern, text):
            found = OPERATION.search(text)
            return meaning.format(operation=found[0] if found else "an operation")
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
