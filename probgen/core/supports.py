"""Rows that are no events of what they are data of, or outside of its support.

Looked for in all rows before anything is made of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from probgen.core.arguments import split
from probgen.core.contexts import zero_context
from probgen.core.kinds import density_kind
from probgen.core.missing import has_missing, values_are_known
from probgen.core.modes import infers
from probgen.core.ragged import Ragged
from probgen.core.rows import leaves_of
from probgen.core.runtime import evaluating, validation
from probgen.core.sites import Site, density_sites, observed_sites
from probgen.core.support_words import in_words
from probgen.core.turns import same_random_state
from probgen.core.unions import atoms_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

DOES_NOT_RUN = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
REAL = (constraints.real, constraints.real_vector)
FEW = 2  # rows of a run that tells supports
ENTRIES = 2**24  # values that are checked at once


@infers
@torch.no_grad()
def check_support(
    gen: GenerativeModel, *batch: Any, support: Constraint | None = None, missing: bool = True
) -> None:
    """Raises ``ValueError``, with row and value.

    Where data are outside of the support of their site, or infinite, or, for a family, rows are no
    events of it.

    NaN is a missing value, and passes. Supports are those that the distributions at observed sites
    state; the random state stays as it was.

    Parameters
    ----------
    gen : GenerativeModel
        A family, which is run on a few rows, or a Program, which is run on all.
    *batch : Tensor
        What the programs take, settled: any number of rows.
    support : Constraint, optional
        What values have to keep to instead.
    missing : bool
        Whether entries may be missing that the distribution of the data cannot integrate out.

    >>> from probgen.heads import Bernoulli
    >>> from probgen.nn import Constant
    >>> check_support(Bernoulli(Constant(2)), torch.tensor([[0.0, torch.nan], [1.0, 0.5]]))
    Traceback (most recent call last):
        ...
    ValueError: expected x with values that are 0 or 1, or NaN (missing), got 0.5 in row 1, entry 1; recode x, or ...
    """
    if not values_are_known():
        return
    family = getattr(gen, "any_rows", False)
    few = _few(batch) if family else batch
    pairs = list(zip(leaves_of(few), leaves_of(batch), strict=True))  # by name and in dicts too
    for name, site in _observed(gen, few).items():
        for part, whole in pairs:
            if site["value"] is part and torch.is_tensor(whole):
                _check_shape(name, whole, site, family, getattr(gen, "ragged", None))
                check_values(name, whole, support or support_of(site["fn"]))
                if not missing and (not family or part.isnan().any()):
                    _check_scored(name, site)
    if not family:
        _check_determined(gen, batch)


def _few(batch: tuple) -> tuple:
    """The first rows of a family, and one with missing values if there is any."""
    tensors = [value for value in batch if torch.is_tensor(value) and value.ndim]
    if len({len(value) for value in tensors}) != 1:
        return batch
    rows = list(range(min(FEW, len(tensors[0]))))
    if has_missing(tensors[0]):
        flat = tensors[0].reshape(len(tensors[0]), -1)
        rows.append(int(flat.isnan().any(1).nonzero()[0]))
    return tuple(value[rows] if torch.is_tensor(value) else value for value in batch)


def _check_scored(name: str, site: Site) -> None:
    """Refuses values that the distribution of a site cannot score.

    Missing ones, and other shapes.
    """
    distribution = site["fn"]
    value = site["value"]
    if density_kind(distribution) == "implicit" or getattr(distribution, "costly_density", False):
        return
    try:
        lost = bool(distribution.log_prob(value).isnan().any()) and bool(value.isnan().any())
    except NotImplementedError:
        return
    except (ValueError, RuntimeError) as error:
        why = refusal(site, error)
        own = why.startswith("expected")
        what = (
            f"site '{name}'"
            if own
            else f"expected values of {value.dtype} that site '{name}' can score"
        )
        raise ValueError(f"{what}: {why}") from error
    if lost:
        raise ValueError(f"site '{name}': {refusal(site)}")


def _check_determined(gen: Any, batch: tuple) -> None:
    """Refuses missing values in an argument of a program that leave no distribution at a site."""
    parameters = getattr(gen, "parameters_by_name", None)  # of a program alone
    if parameters is None:
        return
    positional, named = split(batch)
    given = {**dict(zip([*parameters()], positional, strict=False)), **named}
    lacking = {
        name: value
        for name, value in given.items()
        if torch.is_tensor(value) and value.ndim and has_missing(value)
    }
    if not lacking:
        return
    sites = _run(gen, batch)
    held = [site["value"] for site in sites.values() if site["is_observed"]]
    for word, value in lacking.items():
        undetermined = [name for name, site in sites.items() if _is_undetermined(site)]
        if undetermined and not any(value is each for each in held):
            row = int(value.isnan().reshape(len(value), -1).any(1).nonzero()[0])
            raise ValueError(
                f"expected complete values in {word}, on which the distribution at site "
                f"'{undetermined[0]}' depends, got NaN in row {row}; fill them in, or leave out these "
                "rows"
            )


def _is_undetermined(site: Site) -> bool:
    """Whether a distribution has NaN among its parameters, as the density of known values tells."""
    distribution = site["fn"]
    value = site["value"]
    if not site["is_observed"]:
        return has_missing(value)
    if density_kind(distribution) == "implicit" or getattr(distribution, "costly_density", False):
        return False
    try:
        density = distribution.log_prob(value.nan_to_num(0.0))
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return bool(density.isnan().any())


def refusal(site: Site, error: Exception | None = None) -> str:
    """Why a distribution refused a value; foreign ones do not know what NaN means here."""
    if error is not None and "expected" not in str(error) and (why := _other_size(site)):
        return why
    if error is not None and ("missing" in str(error) or not site["value"].isnan().any()):
        return str(error)
    how = "use a likelihood head of probgen, which can, or fill them in first"
    if site["name"].endswith("_observed") and site["mask"] is not None:  # of Pyro's obs_mask
        how = "state the site by probgen.observe, which takes NaN, or fill in any numbers"
    return (
        f"{type(site['fn']).__name__} cannot integrate out missing values (NaN); expected complete "
        f"rows: {how}"
    )


def _other_size(site: Site) -> str:
    """How events of another shape are told; nothing where the shape is right."""
    event = tuple(site["fn"].event_shape)
    shape = tuple(site["value"].shape)
    if not event or shape[max(len(shape) - len(event), 0) :] == event:
        return _other_rows(site)
    wanted = ", ".join(map(str, event))
    other = "data and model" if site["is_observed"] else "guide and model"
    return (
        f"expected values of shape (*batch, {wanted}), got {shape}; give {other} events of one "
        "shape"
    )


def _other_rows(site: Site) -> str:
    """How many rows there should be, where a plate has others; nothing where it has not."""
    shape = tuple(site["value"].shape)
    wanted = tuple(site["fn"].shape())
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    if all(one == other or 1 in (one, other) for one, other in pairs):
        return ""
    return (
        f"expected values of shape {wanted}, as the plates and the other arguments say, got "
        f"{shape}; give all arguments as many rows"
    )


def support_of(distribution: Any) -> Constraint:
    """The support that a distribution states; the real numbers where it does not tell."""
    try:
        return distribution.support
    except NotImplementedError:
        return constraints.real


def check_rescalable(family: GenerativeModel, centered: bool = False) -> None:
    """Refuses a family whose values mean nothing in other units: labels, counts, atoms.

    With ``centered``, which makes values of both signs, also one that is not on all real numbers.
    What cannot tell its support without a context passes.

    >>> from probgen.heads import Bernoulli
    >>> from probgen.nn import Constant
    >>> check_rescalable(Bernoulli(Constant(2)))
    Traceback (most recent call last):
        ...
    ValueError: expected a family of continuous variables, got Bernoulli, whose values are 0 or 1; take it for ...
    """
    support = _support_without_rows(family)
    if support is None:
        return
    parts = getattr(support, "cseq", None) or [support]
    values = f"got {type(family).__name__}, whose values are {in_words(support)}"
    if all(part.is_discrete for part in parts):
        raise ValueError(
            f"expected a family of continuous variables, {values}; take it for the data as they "
            "are, without other units"
        )
    if atoms_of(support):
        raise ValueError(
            f"expected a family of densities, {values}: single numbers have a mass, which other "
            "units do not change; take it for the data as they are, without other units"
        )
    if centered and not all(_of_entries(part) in REAL for part in parts):
        raise ValueError(
            f"expected a family on all real numbers, {values}: data of mean 0 are not; take it for "
            "the data as they are"
        )


def _support_without_rows(family: Any) -> Constraint | None:
    """What each value of a family has to keep to, where it tells without data."""
    context = zero_context(family) if getattr(family, "context_ndim", 1) == 1 else None
    try:
        with torch.no_grad(), _unnoticed():
            return _of_entries(support_of(family(context)))
    except DOES_NOT_RUN:
        return None


def _check_shape(
    name: str, x: Tensor, site: Site, family: bool, sequences: Ragged | None = None
) -> None:
    """Refuses arguments that are observed at a site and have another shape than it."""
    event = site["fn"].event_shape
    if family:
        return check_event_of_rows(name, x, event, sequences)
    rows = x.ndim - len(event)
    deepest = max(
        (-f.dim for f in site["cond_indep_stack"] if f.vectorized and f.size > 1), default=0
    )
    if rows >= deepest and x.shape[rows:] == event:
        return None
    raise ValueError(
        f"expected {name} of events of shape {tuple(event)} inside {deepest} plates, got shape "
        f"{tuple(x.shape)}; give "
        "one observation per row, or declare the dims that are not rows by .to_event(n)"
    )


def check_event_of_rows(
    name: str, x: Tensor, event: torch.Size, sequences: Ragged | None = None
) -> None:
    """Refuses rows that are no events; of a sequence there may be fewer steps."""
    own = x.shape[1:]
    if own == event:
        return
    steps = len(event) > 1 and len(own) == len(event) and own[1:] == event[1:]
    if steps and 1 <= own[0] <= event[0]:
        return
    shape = "(" + ", ".join(["N", *map(str, event)]) + ("" if event else ",") + ")"
    dims = "".join(f", {size}" for size in event)
    how = f"; {name}.reshape(len({name}){dims})" if own.numel() == event.numel() else ""
    if not how and sequences is not None:
        how = sequences.advice(name, x.shape)
    raise ValueError(
        f"expected {name} of shape {shape}, got {tuple(x.shape)}; give one observation per row{how}"
    )


def check_values(
    name: str, x: Tensor, support: Constraint, first: int = 0, *, unknown: str = ""
) -> None:
    """Raises ``ValueError`` unless all entries of rows ``(N, *event)`` are finite and in the support, or NaN.

    Supports whose bounds differ from row to row are left to those who look at these rows. ``first``
    is the number of the first of these rows. ``unknown`` says what to do with a negative ``{value}``
    where none can be, as stands for a missing one in many data.

    >>> check_values("y", torch.tensor([1.0, torch.inf]), constraints.real)
    Traceback (most recent call last):
        ...
    ValueError: expected y with values that are finite numbers, or NaN (missing), got inf in row 1; correct it, or ...
    """
    base = _of_all(_of_entries(support))
    ndim = max(0, x.ndim - 1)
    if any(bound.ndim > ndim for bound in _bounds(base)):
        return
    x = torch.atleast_1d(x)  # one number, which a program may observe
    size = max(1, ENTRIES // max(1, x[:1].numel()))
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        tame = _is_tame(rows)
        if base in REAL:
            if tame:
                continue
            _check_size(name, rows, first + start)
        inside = base.check(rows) if tame else _inside(rows, base)
        if not inside.all():
            row, *place = (~inside).nonzero()[0].tolist()
            wrong = rows[(row, *place)]
            got = f"{wrong.item():g}" if wrong.ndim == 0 else f"{wrong.tolist()}"
            where = f", entry {', '.join(map(str, place))}" if place else ""
            how = f"recode {name}, or take another family"
            if (
                unknown
                and wrong.ndim == 0
                and wrong < 0
                and not base.check(wrong.new_zeros(()) - 1)
            ):
                how = unknown.format(value=f"{wrong.item():g}")
            if wrong.isinf().any():
                how = "correct it, or mark it missing (NaN)"
            raise ValueError(
                f"expected {name} with values that are {in_words(base)}, or NaN (missing), got "
                f"{got} in row {first + start + row}{where}; {how}"
            )


def _check_size(name: str, rows: Tensor, first: int) -> None:
    """Refuses finite numbers whose squares, which densities of real numbers take, are infinite."""
    most = largest_of(rows.dtype)
    wrong = (rows.abs() > most) & rows.isfinite()
    if wrong.any():
        row, *place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"expected {name} up to {most:.1e}, whose squares {rows.dtype} holds, got "
            f"{rows[(row, *place)].item():g} in row {first + row}; rescale {name}, or take "
            "float64: gen.double()"
        )


def largest_of(dtype: torch.dtype) -> float:
    """The largest number whose squares may be added up a few hundred times.

    >>> round(largest_of(torch.float32) / 1e18, 2)
    1.15
    """
    return torch.finfo(dtype).max ** 0.5 / 16 if dtype.is_floating_point else float("inf")


def _inside(rows: Tensor, base: Constraint) -> Tensor:
    """Which entries, or parts that a support speaks of together, are right: ``(N, ...)``."""
    inside = base.check(rows)
    missing = rows.isnan()
    infinite = rows.isinf()
    while missing.ndim > inside.ndim:
        missing = missing.any(-1)
        infinite = infinite.any(-1)
    return (inside | missing) & ~infinite


def _is_tame(rows: Tensor) -> bool:
    """Whether no entry is NaN, infinite or huge: extremes tell, in one quick pass over the rows."""
    if not rows.is_floating_point() or not rows.numel():
        return not rows.is_floating_point()
    low, high = rows.aminmax()
    most = largest_of(rows.dtype)
    return bool((low >= -most) & (high <= most))


def _of_entries(support: Any) -> Any:
    """What each entry has to keep to; the components of a mixture are taken to have one support."""
    while True:
        if isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
            support = support.base_constraint
        elif parts := getattr(support, "parts", None):  # a union
            entries = [_of_entries(part) for part in parts]
            if all_real := next((entry for entry in entries if entry in REAL), None):
                return all_real
            if any(entry.event_dim for entry in entries):
                return support  # rows: those of one part are no rows of another
            return type(support)(entries)
        else:
            return support


def _of_all(support: Any) -> Any:
    """With a number for a bound that is one number for all rows, spread over those of a run."""
    spread = {
        name: bound.flatten()[0]
        for name, bound in vars(support).items()
        if torch.is_tensor(bound) and bound.numel() and bound.ndim and not any(bound.stride())
    }
    if not spread:
        return support
    alike = copy.copy(support)
    for name, bound in spread.items():
        setattr(alike, name, bound)
    return alike


def _bounds(support: Constraint) -> list[Tensor]:
    """The tensors among the bounds of a support, those of the parts of a union too."""
    own = [bound for bound in vars(support).values() if torch.is_tensor(bound)]
    for part in getattr(support, "parts", ()):
        own += _bounds(_of_entries(part))
    return own


def _run(gen: GenerativeModel, batch: tuple) -> dict[str, Site]:
    """Sites of one run that have a density; none where the program does not run like that."""
    try:
        with _unnoticed():
            return density_sites(poutine.trace(gen.model).get_trace(*batch))
    except DOES_NOT_RUN:
        return {}


def _observed(gen: GenerativeModel, batch: tuple) -> dict[str, Site]:
    """Observed sites of one run.

    None where the model does not run like that, which whoever runs it will say, unless rows of a
    family are no events of it.
    """
    try:
        with _unnoticed():
            return observed_sites(poutine.trace(gen.model).get_trace(*batch))
    except DOES_NOT_RUN as error:
        if getattr(gen, "any_rows", False) and batch and batch[0] is not None:
            event = _event_of(gen, *batch[1:])
            if event is not None and torch.is_tensor(batch[0]):
                try:
                    check_event_of_rows("x", batch[0], event, getattr(gen, "ragged", None))
                except ValueError as refusal:
                    raise refusal from error
        return {}


def _event_of(gen: Any, context: Tensor | None = None) -> torch.Size | None:
    """The shape of the events of a family, where it tells without rows."""
    try:
        with _unnoticed():
            return gen(context).event_shape
    except DOES_NOT_RUN:
        return None


@contextmanager
def _unnoticed() -> Iterator[None]:
    """A run that leaves the random state as it was, without checks."""
    with same_random_state(), evaluating(), validation(False):
        yield
