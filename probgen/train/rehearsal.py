"""What goes around one evaluation of an objective.

Mini-batch scaling, and a checked first run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.util import check_site_shape
from torch import Tensor

from probgen.core.first_run import MISFIT
from probgen.core.keywords import call_form
from probgen.core.kinds import density_kind
from probgen.core.module import GenerativeModel
from probgen.core.program import Program
from probgen.core.reading import ROWS, UNWEIGHTED, WEIGHTS, Reading
from probgen.core.recording import enumerated_runs
from probgen.core.runtime import isolated, rows_in_plate, shapes_explained, validation
from probgen.core.sites import in_plate, latent_sites, sample_sites
from probgen.core.supports import refusal
from probgen.train.data import InMemory, Source
from probgen.train.history import FitWarning
from probgen.train.rows import Batch


class RowScale(Messenger):
    r"""Scales a program's sites so that an objective summed over a batch of B of N rows is B times its mean per row.

    Sites inside the data plate count once per row, whatever size the plate was given; sites outside
    it, the globals, are shared by all N rows and get the weight B/N. An ELBO divided by B is then
    an unbiased estimate of the ELBO of the whole data divided by N.

    With ``weights`` each row counts so often, with mean one over all rows, and N is the sum of the
    weights that were given. ``totals`` are the numbers of rows of other sets, by their plates: of
    such a plate of B' of N' rows the sites get the weight (B/N) (N'/B').

    >>> import pyro
    >>> with RowScale("data", rows=10, total=1000), pyro.poutine.trace() as tracer:
    ...     _ = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0))
    >>> tracer.trace.nodes["w"]["scale"]
    0.01
    """

    def __init__(
        self,
        plate: str,
        rows: int,
        total: float,
        weights: Tensor | None = None,
        totals: Mapping[str, int] = MappingProxyType({}),
    ):
        super().__init__()
        self.totals = totals
        self.plate = plate
        self.rows = rows
        self.total = total
        self.weights = weights
        self._scales: dict[tuple[float, int], Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        stack = msg["cond_indep_stack"]
        frame = None
        for around in stack:
            if around.name == self.plate:
                frame = around
                break
        full = 0 if frame is None else frame.full_size or frame.size
        factor = (
            self.rows / (full or self.total) if full >= 0 else 1.0
        )  # a plate without size holds the batch
        if frame is None:
            for other in stack:
                if other.name in self.totals:
                    factor = factor * self.totals[other.name] / (other.full_size or other.size)
        msg["infer"][ROWS] = factor
        msg["scale"] = msg["scale"] * factor
        if frame is not None and self.weights is not None:
            noted = {UNWEIGHTED: msg["scale"], WEIGHTS: self.weights}
            msg["infer"] = msg["infer"] | noted  # a copy: a program may keep its own
            msg["scale"] = self._weighted(msg["scale"], self.weights, frame)

    def _weighted(self, scale: float | Tensor, weights: Tensor, frame: Any) -> Tensor:
        """A scale times the weights of the rows.

        One tensor for all sites of a scale, by which sites are known to have the same.
        """
        if torch.is_tensor(scale) or not frame.vectorized:
            return weighted_scale(scale, weights, frame)
        if (scale, frame.dim) not in self._scales:
            self._scales[scale, frame.dim] = weighted_scale(scale, weights, frame)
        return self._scales[scale, frame.dim]


def weighted_scale(scale: float | Tensor, weights: Tensor, frame: Any) -> Tensor:
    """A scale times the weights of the rows of a plate, as its frame in the stack of a site says."""
    if not frame.vectorized:
        return scale * weights[frame.counter - 1]
    return scale * weights.reshape(-1, *(1,) * (-frame.dim - 1))


RowsOf = Callable[..., AbstractContextManager]


def rehearsed(gen: GenerativeModel, source: Source, asked: int | None) -> RowsOf:
    """A checked first run; gives the handler under which the rows of a batch stand for themselves.

    The plate of a program gets the numbers that the rows of a batch have among all rows, so that
    indices and parameters of rows are theirs; a program that looks up its arguments by index gets
    those of the batch. Where the pair runs on all rows only and no batch size was ``asked`` for,
    every batch holds all rows.
    """
    if not isinstance(gen, Program) or source.index(source.first()) is None:
        rehearse(gen, source, _nothing)
        _check_other_rows(gen, source)
        return _nothing
    failures = []
    for handler in (rows_in_plate, _nothing):
        try:
            rehearse(gen, source, handler)
            return handler
        except MISFIT as error:
            failures.append(error)
    if not isinstance(source, InMemory):
        raise failures[-1]
    return _on_all_rows(gen, source, asked, failures[-1])


def _on_all_rows(gen: GenerativeModel, source: Any, asked: int | None, error: Exception) -> RowsOf:
    """Batches of all rows, if the pair runs on these.

    The error that it raised on some of them, if it does not.
    """
    size = len(source.index(source.first()))
    kept = source.batch_size
    try:
        source.whole()
        rehearse(gen, source, _nothing)
    except MISFIT:
        raise error from None
    if source.weights is not None and source.weights.drawn:
        raise ValueError(
            "expected a pair that runs on rows drawn by their weights, it runs on all rows in "
            f"their order alone ({_first_line(error)}); use ELBO(), which scales rows, or size plates "
            "and parameters by what the programs are given"
        ) from error
    reason = (
        f"the pair runs on all {source.rows} rows and not on {size} of them ({_first_line(error)})"
    )
    if asked is not None:
        source.batch_size = kept
        raise ValueError(
            f"expected a pair that runs on mini-batches: {reason}; train on all rows with "
            f"batch_size={source.rows}, "
            "size plates and parameters by what the programs are given, or draw local latents by "
            "AutoNormal"
        ) from error
    warnings.warn(f"every step takes all rows: {reason}", FitWarning, stacklevel=8)
    return _nothing


def check_observes(gen: GenerativeModel, objective: Any) -> None:
    """Refuses a program in which nothing is observed although it takes arguments.

    One that takes none may be all prior, and an objective of one's own may want that: then there is
    a warning.
    """
    if not isinstance(gen, Program) or gen.observes or gen.takes_nothing:
        return
    if objective is not None and not gen.latents:
        return  # no density at all: a map that the objective makes a loss of
    drawn = ", ".join(gen.latents) or "nothing"
    text = (
        f"nothing is observed: expected data at a site of the model, got {drawn} drawn from the "
        f"prior; give all arguments: {call_form(*gen.parameters_by_name())}"
    )
    if objective is None:
        raise ValueError(text)
    warnings.warn(text, FitWarning, stacklevel=6)


def check_held_out(gen: GenerativeModel, batches: Sequence[Batch]) -> None:
    """Refuses validation rows that the pair does not run on.

    Those of a guide with parameters for each row.
    """
    if not batches or not isinstance(gen, Program):
        return
    try:
        _run_on(gen, batches[0])
    except MISFIT as error:
        raise ValueError(
            f"expected validation rows that the pair runs on, it does not ({_first_line(error)}); "
            "a guide with "
            "parameters for each row knows the rows that it is fitted to: drop validation, or use "
            "an encoder"
        ) from error


def _run_on(gen: GenerativeModel, batch: Batch) -> None:
    """One run of the pair, which raises what it raises on rows that are not its own."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        isolated(),
        validation(False),
    ):
        next(enumerated_runs(gen.model, gen.guide, batch, None, gen.max_plate_nesting))


def _nothing(*_: Any) -> AbstractContextManager:
    return nullcontext()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_other_rows(gen: GenerativeModel, source: Source) -> None:
    """Batches of a loader have no numbers of rows.

    A guide with parameters for those of the first one is refused.
    """
    batch = source.peek()
    layout = source.layout.like(batch)
    rows = layout.count(batch)
    more = source.rows is None or source.rows > rows
    if not isinstance(gen, Program) or not (layout.known and more and rows > 1):
        return
    try:
        _run_on(gen, layout.take(batch, slice(rows - 1)))
    except MISFIT as error:
        raise ValueError(
            "expected a pair that runs on other rows than those of the first batch, it does not "
            f"({_first_line(error)}); a guide with parameters for each row needs the rows in "
            "memory: pass tensors, or "
            "use an encoder"
        ) from error


def rehearse(gen: GenerativeModel, source: Source, handler: RowsOf) -> None:
    """Runs guide and model once with all of Pyro's and torch's checks on.

    And names what does not fit.

    Sites are enumerated as training does it. Random state and training mode are left as they were;
    lazy parameters (AutoGuides) come into being here. Raises ``ValueError`` with the site, its
    plates, the expected and the actual shape, and the fix.
    """
    training = gen.training
    chosen = source.first()
    batch = source.batch(chosen)
    total = source.rows
    gen.eval()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            isolated(),
            validation(True),
            shapes_explained(),
            handler(gen.plate, total, source.index(chosen)),
        ):
            pair = Reading(
                *next(enumerated_runs(gen.model, gen.guide, batch, None, gen.max_plate_nesting))
            )
            for site in [*sample_sites(pair.guide).values(), *sample_sites(pair.model).values()]:
                _check_shape(site, gen.max_plate_nesting)
    finally:
        gen.train(training)
    _check_rows(gen, pair, source.layout.like(batch).count(batch), total)
    if source.weights is not None or source.scales(chosen) is not None:
        _check_plate(gen, pair)
    _check_sets(gen, pair, source)


def _check_shape(site: Any, max_plate_nesting: int) -> None:
    """Pyro's check of one site's log_prob against its plates, with the names of the plates.

    Left out for distributions without a density, and for those whose objectives are there because
    theirs costs so much.
    """
    if density_kind(site["fn"]) == "implicit" or getattr(site["fn"], "costly_density", False):
        return
    try:
        site["log_prob"] = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"site '{site['name']}': {refusal(site, error)}") from error
    try:
        check_site_shape(site, max_plate_nesting)
    except ValueError as error:
        plates = [
            f"'{f.name}' of size {f.size} at dim {f.dim}" for f in site["cond_indep_stack"]
        ] or ["no plate"]
        raise ValueError(f"site '{site['name']}' inside {' and '.join(plates)}: {error}") from error


def _check_plate(gen: GenerativeModel, pair: Reading) -> None:
    """Weights need a data plate."""
    if not any(in_plate(site, gen.plate) for site in sample_sites(pair.model).values()):
        raise ValueError(
            f"expected a plate named '{gen.plate}' around the rows that have weights, found none; "
            "open it in the model, or name yours with Program(..., plate=...)"
        )


def _check_sets(gen: GenerativeModel, pair: Reading, source: Source) -> None:
    """Plates of further sets of rows have to be known, or their rows would count as terms of all."""
    known = {gen.plate, *source.totals}
    stacks = [site["cond_indep_stack"] for site in sample_sites(pair.model).values()]
    found = {
        frame.name: frame.size
        for stack in stacks
        if not any(frame.name in known for frame in stack)
        for frame in stack
        if frame.size in source.unnamed
    }
    if found:
        name, size = next(iter(found.items()))
        raise ValueError(
            f"expected to know which plate holds the rows of which set, got plate '{name}' of {size} "
            f"rows; name them: Unpaired(a, b, plates=['{gen.plate}', '{name}']), with None for a set "
            "without one"
        )


def _check_rows(gen: GenerativeModel, pair: Reading, rows: int, total: int | None) -> None:
    """A mini-batch needs a data plate; globals need to know how many rows there are in all."""
    stacks = [site["cond_indep_stack"] for site in sample_sites(pair.model).values()]
    plates = [
        frame for stack in stacks for frame in stack if frame.name == gen.plate and frame.size >= 0
    ]
    if total is not None and rows < total and stacks and not plates:
        raise ValueError(
            f"expected a plate named '{gen.plate}' for mini-batches of {rows} of {total} rows, "
            "found none; open it in "
            "the model, name yours with Program(..., plate=...), or train on all rows with "
            f"batch_size={total}"
        )
    subset = {frame.full_size for frame in plates if frame.size == rows < frame.full_size}
    sizes = {frame.full_size for frame in plates} - {rows, total} - subset
    if sizes:
        raise ValueError(
            f"expected plate '{gen.plate}' of size {rows} (rows of the batch) or {total} (rows of "
            "the data), got "
            f"{sizes.pop()}; size it by what the model is given: pyro.plate('{gen.plate}', len(x))"
        )
    shared = [
        name for name, site in latent_sites(pair.model).items() if not in_plate(site, gen.plate)
    ]
    if total is None and shared:
        raise ValueError(
            f"sites {shared} are shared by all rows, whose number is unknown; pass a DataLoader "
            "over a sized Dataset, "
            "or the rows themselves"
        )
