"""Anyone's own pair of Pyro programs as a generative model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from pyro.infer.inspect import render_model
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import transform_to

from probgen.core import checks
from probgen.core.arguments import Keywords, as_arguments, call, dtype_of, is_leaf, joined, split
from probgen.core.construction import Recorded
from probgen.core.conversion import NO_ROWS
from probgen.core.first_run import MISFIT, FirstRun, first_run
from probgen.core.marginal import Marginal
from probgen.core.module import first_length
from probgen.core.outline import Line, line_of, plate_rows, rows_plate, table
from probgen.core.ownership import dense, owned_modules
from probgen.core.private_torch import pytree
from probgen.core.rows import RowLayout, leaves_of, row_layout
from probgen.core.runtime import (
    LocalParameters,
    as_guide,
    completed_plates,
    local_parameters,
    localized,
    makes_parameters,
    private_store,
)
from probgen.core.signatures import check_arguments, open_parameters, signature_of
from probgen.core.sites import density_sites, is_deterministic, plate_dims, sample_sites
from probgen.core.turns import turn

__all__ = ["Keywords", "Program"]

# rows that a first run need not all see, and how many it then sees
MANY = 4096
SOME = 256


class Program(Recorded, nn.Module):
    """Anyone's own Pyro pair.

    Plain functions, modules, AutoGuides or guides that are messengers, with any arguments.

    The program owns what its runs show: parameters of ``pyro.param`` statements, which start from
    the global parameter store where that has their name, and modules behind bound methods,
    closures, handlers and ``pyro.module``. The global store is read, never written.

    Parameters
    ----------
    model, guide : callable
        Pyro programs called with the same arguments, for instance ``model(covariates, y)``. A
        missing guide means that the model has no latent variables.
    plate : str, optional
        Name of the plate whose entries are the rows of the data; default: the plate ``"data"``,
        else the one that is around all observed sites, the outer one where they are nested.
    max_plate_nesting : int, optional
        Number of dims that the plates use; default: as many as a first run shows.
    vectorized : bool
        Whether the pair accepts draws in a plate to the left of its own plates, that is, whether
        every tensor operation in it treats the dims to the left as batch dims. If not, it is run
        once per draw.

    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("cities", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> from pyro.infer.autoguide import AutoNormal
    >>> program = Program(model, AutoNormal(model))
    >>> rows = program.settle((torch.zeros(3),))
    >>> print(program)
    Program: rows are plate 'cities'
    site  role      distribution  shape  plates
    mu    latent    Normal        ()     -
    y     observed  Normal        (3,)   cities
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        *,
        plate: str | None = None,
        max_plate_nesting: int | None = None,
        vectorized: bool = False,
    ):
        checks.function(model=model, **checks.given(guide=guide))
        checks.text(**checks.given(plate=plate))
        checks.at_least(0, **checks.given(max_plate_nesting=max_plate_nesting))
        checks.flag(vectorized=vectorized)
        super().__init__()
        self._model = model
        self._guide = guide
        self._told = plate, max_plate_nesting
        self.plate = "data" if plate is None else plate
        self.max_plate_nesting = 1 if max_plate_nesting is None else max_plate_nesting
        self.vectorized = vectorized
        self.statements = nn.ParameterDict()
        self.parts = nn.ModuleList(
            m for m in owned_modules(model, guide) if m is not model and m is not guide
        )
        self._constraints: dict[str, Any] = {}
        self._known: set[int] = set()
        self._lines: list[Line] = []
        self._layout: RowLayout | None = None
        self._seen: list[Any] | None = None
        self.chooses: frozenset[str] = frozenset()
        self._given: frozenset[str] = frozenset()
        self._completed: set[str] = set()
        self._waiting: dict[str, Tensor] = {}
        self._complete: set[str] | None = None
        self.observes = True  # whether anything held data in the run that told how it is to be read

    context_ndim = 1

    def forward(self, context: Tensor | None = None) -> Marginal:
        """p(x) of a program of ``x`` and ``context`` with an observed site ``"x"``."""
        check_takes_context(self._model)
        return Marginal(self, context)

    def check_part(self, name: str) -> None:
        """Refuses to be part of a family, called ``name``, with other arguments than ``x, context``."""
        check_takes_context(self._model, f" as {name}", "let it take both")

    def model(self, *args: Any, **kwargs: Any) -> Any:
        args = joined(args, kwargs)
        with self._running(args):
            try:
                return call(self._model, args)
            except (TypeError, AttributeError) as error:
                _check_drawn(self._model, args, error)
                raise

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        args = joined(args, kwargs)
        if self._guide is not None:
            with self._running(args), localized(self._guide, self._handler):
                return call(as_guide(self._guide), args)

    @contextmanager
    def _running(self, args: tuple) -> Iterator[None]:
        completing = completed_plates(self._given, self._completed)
        with turn():  # of all threads: Pyro's modules and guides hold what belongs to one run
            if self._waiting or self._complete is not None:
                self._realise(args)
            with local_parameters(), private_store(), completing, self._handler():
                yield

    def _handler(self) -> LocalParameters:
        return LocalParameters(self.statements, self._constraints, self._knows)

    def _knows(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter belongs to a module of the program."""
        if id(parameter) not in self._known:
            self._known = {id(p) for p in self.parameters()}
        return id(parameter) in self._known

    # -- how it is read
    # ------------------------------------------------------------------------------------------

    def settle(self, batch: tuple) -> tuple:
        """The arguments as tensors.

        Finds plate, rows and nesting by a run of the pair on them, where not told.
        """
        batch = as_arguments(batch, dtype_of(self))
        leaves, form = pytree.tree_flatten(batch, is_leaf=is_leaf)
        key = [form, *map(_remembered, leaves)]
        if key != self._seen:
            check_arguments("model", self._model, batch)
            if self._guide is not None:
                check_arguments("guide", self._guide, batch)
            try:
                self._read(batch)
            except (*MISFIT, AttributeError, TypeError, ArithmeticError) as error:
                _check_kinds(batch, error)
                raise
            self._seen = key
        return batch

    def _read(self, batch: tuple) -> None:
        few = self._on_few_rows(batch)
        trace, drawn, self.chooses = few or self._alone(batch) or first_run(self, batch)
        plate, nesting = self._told
        if nesting is None:
            self.max_plate_nesting = max(1, plate_dims(trace), plate_dims(drawn))
        if plate is None:
            self.plate = rows_plate(trace) or self.plate
        size = first_length(batch) if few else plate_rows(trace, self.plate)
        self._layout = None if size is None else row_layout(batch, size)
        self._lines = [line_of(site) for site in sample_sites(trace).values()]
        held = (site for site in density_sites(trace).values() if site["is_observed"])
        self.observes = not all(map(is_deterministic, held))  # factors hold data as well

    def _alone(self, batch: tuple) -> FirstRun | None:
        """A run of the model without a guide that takes its sites from the run that makes its parameters.

        It must not be one without observations, in which data are latent sites.
        """
        if not makes_parameters(self._guide):
            return None
        with suppress(
            NotImplementedError, *MISFIT
        ):  # a prior that cannot be drawn from needs the guide
            return first_run(self, batch, guided=False)
        return None

    def make_parameters(self, batch: tuple) -> None:
        """Lets an AutoGuide, or a guide that is a messenger.

        Make its parameters for all rows of the data.
        """
        if makes_parameters(self._guide):
            first_run(self, batch)

    def _on_few_rows(self, batch: tuple) -> FirstRun | None:
        """A first run on some of very many rows, if the pair runs on any number of them.

        A network need not see all.
        """
        count = first_length(batch)
        if count is None or count <= MANY or makes_parameters(self._guide):
            return None
        layout = row_layout(batch, count)
        made = set(self.statements)
        try:
            first_run(self, layout.take(batch, slice(SOME // 2)))
            found = first_run(self, layout.take(batch, slice(SOME)))
        except MISFIT:  # parameters or plates of another size
            found = None
        if found is None or plate_rows(found[0], rows_plate(found[0]) or self.plate) != SOME:
            for key in set(self.statements) - made:
                del self.statements[key]
            return None
        return found

    def parameters_by_name(self) -> dict[str, inspect.Parameter]:
        """The parameters of the model's signature; none where it hides it."""
        return open_parameters(self._model)

    @property
    def latents(self) -> list[str]:
        """Names of the sites that were drawn in that run."""
        return [line.name for line in self._lines if line.role in ("latent", "enumerated")]

    @property
    def takes_nothing(self) -> bool:
        return not self.parameters_by_name()

    def rows_in(self, batch: tuple) -> int | None:
        """The number of entries along the plate of the rows, as a run told.

        Else the length of the arguments.
        """
        return (
            first_length(batch) if self._layout is None else self._layout.like(batch).count(batch)
        )

    def __repr__(self) -> str:
        if not self._lines:
            return self._before_a_run()
        return f"Program: rows are plate '{self.plate}'\n{table(self._lines)}"

    def _before_a_run(self) -> str:
        """What it was made of, and how to see its sites."""
        names = list(self.parameters_by_name())
        given = ", ".join(names) + "," * (len(names) == 1)
        guide = "none" if self._guide is None else _name_of(self._guide)
        return (
            f"Program(model={_name_of(self._model)}, guide={guide}): its sites are shown once it has "
            f"run, as by program.settle(({given}))"
        )

    def render(self, *args: Any, **options: Any) -> Any:
        """The model as a graph, by :func:`pyro.infer.inspect.render_model`.

        Whose options these are.

        Needs the package ``graphviz``. Keyword arguments of the model go into :class:`Keywords`.
        """
        args, kwargs = split(self.settle(args))
        with local_parameters(), private_store(), self._handler():
            return render_model(self._model, model_args=args, model_kwargs=kwargs, **options)

    # -- parameters
    # ----------------------------------------------------------------------------------------------

    def param_values(self) -> dict[str, Tensor]:
        """Constrained values of all ``pyro.param`` statements and parameters of PyroModules.

        By name, detached.
        """
        values = {
            key.replace("/", "."): transform_to(self._constraints[key])(value).detach()
            for key, value in self.statements.items()
            if key in self._constraints
        }
        for module in self.children():
            if isinstance(module, PyroModule):
                values |= {name: value.detach() for name, value in module.named_pyro_params()}
        return values

    def to_param_store(self) -> None:
        """Writes the values of ``pyro.param`` statements to Pyro's global store.

        For code that reads them there.
        """
        store = pyro.get_param_store()
        for key, constraint in self._constraints.items():
            value = transform_to(constraint)(self.statements[key]).detach().clone()
            store.setdefault(key.replace("/", "."), value, constraint)
            store[key.replace("/", ".")] = value

    def awaits(self, name: str) -> bool:
        """Whether an entry of a state belongs to a parameter that the first run will make."""
        return (
            name.startswith(("statements.", "_guide.", "_model.")) and name not in self.state_dict()
        )

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As for any module.

        What a first run is yet to make (AutoGuides, statements) is put in place there.
        """
        waiting = {
            name: value.detach().clone() for name, value in state_dict.items() if self.awaits(name)
        }
        present = {name: value for name, value in state_dict.items() if name not in waiting}
        result = super().load_state_dict(present, strict, assign)
        self._waiting, self._complete = (
            waiting,
            set(state_dict) if strict and self._seen is None else None,
        )
        return result

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self._waiting.items():
            destination.setdefault(prefix + name, value)

    @torch.no_grad()
    def _realise(self, args: tuple) -> None:
        """Makes the parameters that wait for a first run.

        And gives them the values that were loaded.
        """
        waiting = self._waiting
        complete = self._complete
        self._waiting = {}
        self._complete = None
        try:
            first_run(self, args)
            dense(self)
            own = self.state_dict(keep_vars=True)
            _check_state(own, waiting, complete)
            for name, value in waiting.items():
                own[name].copy_(value)
        except BaseException:
            self._waiting = waiting
            self._complete = complete
            raise


def check_takes_context(model: Callable[..., Any], place: str = "", how: str = "") -> None:
    """Refuses a model of other arguments than ``x`` and ``context``; ``TypeError``."""
    signature = signature_of(model)
    if signature is None:
        return
    try:
        signature.bind(None, None)
    except TypeError:
        names = ", ".join(signature.parameters)
        raise TypeError(
            f"expected a model of (x=None, context=None){place}, whose x can be drawn, got one of "
            f"({names}); {how or _predicted(names)}"
        ) from None


def _predicted(names: str) -> str:
    return f"use predictive({', '.join(filter(None, ('gen', names)))})"


def _check_drawn(model: Callable[..., Any], args: tuple, error: Exception) -> None:
    """Says of a model that needs its first argument that it was called to draw it."""
    first = next(iter(open_parameters(model).values()), None)
    if first is None or not args or args[0] is not None or first.default is not first.empty:
        return
    raise TypeError(
        f"expected a model that draws {first.name} where it is None, got one that does not run "
        f"then ({type(error).__name__}: {error}); give its arguments: "
        f"{_predicted(', '.join(open_parameters(model)))}"
    ) from error


def _check_kinds(batch: tuple, error: Exception) -> None:
    """Says which arguments of a program that does not run are no tensors, or have no rows."""
    leaves = leaves_of(batch)
    if any(isinstance(leaf, Tensor) and 0 in leaf.shape[:1] for leaf in leaves):
        raise ValueError(NO_ROWS) from error
    positional, named = split(batch)
    values = [*positional, *named.values()]
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if all(isinstance(value, Tensor) and value.ndim for value in values) and values:
        _check_lengths(positional, named, error)
        return
    how = "pass rows as tensors, arrays or frames"
    if any(isinstance(value, tuple) for value in positional):
        how = f"pass the arguments side by side, or {how.removeprefix('pass ')}"
    words = [*map(_in_words, positional)]
    words += [f"{name}={_in_words(value)}" for name, value in named.items()]
    got = ", ".join(words) or "nothing"
    raise TypeError(
        f"expected arguments that the program runs on, got {got} ({type(error).__name__}: "
        f"{error}); {how}"
    ) from error


def _check_lengths(positional: tuple, named: Mapping[str, Any], error: Exception) -> None:
    """Says of tensors on which a program does not run that they have not the same rows."""
    tensors = [*positional, *named.values()]
    if len({len(value) for value in tensors}) > 1:
        shapes = " and ".join(str(tuple(value.shape)) for value in tensors)
        raise ValueError(
            f"expected arguments that the program runs on, got tensors of shape {shapes} "
            f"({type(error).__name__}: {error}); give all as many rows"
        ) from error


def _in_words(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )


def _name_of(program: Callable[..., Any]) -> str:
    return str(getattr(program, "__name__", type(program).__name__))


def _check_state(
    own: Mapping[str, Tensor], waiting: Mapping[str, Tensor], complete: set[str] | None
) -> None:
    """Refuses a state of other parameters than those that a first run has made."""
    wrong = [f"unexpected {name}" for name in waiting if name not in own]
    wrong += [f"missing {name}" for name in (() if complete is None else set(own) - complete)]
    wrong += [
        f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, value in waiting.items()
        if name in own and own[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"the state that was loaded belongs to another program ({'; '.join(sorted(wrong)[:8])})"
        )


def _remembered(leaf: Any) -> Any:
    """What tells an argument from others.

    A tensor by its identity and shape, plain values as they are.
    """
    if isinstance(leaf, Tensor):
        return id(leaf), leaf.shape
    return (
        leaf if isinstance(leaf, str | int | float | None) else (id(leaf), leaf)
    )  # kept, or its id might return
