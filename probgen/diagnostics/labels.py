"""Names for the dims of sites: plates keep their own, events take the user's or ArviZ's default."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.core.program import Program
from probgen.core.rows import row_count
from probgen.core.sites import Site, is_deterministic, shape_of
from probgen.diagnostics.adapter import Labelled

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

SAMPLE_DIMS = ("chain", "draw")


def dims_of(sites: Iterable[Site], given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Names of the natural dims ``(*plate dims, *event)`` of each site.

    Parameters
    ----------
    sites : iterable
        Sample sites of one plain run.
    given : mapping of str to sequence of str
        The user's names for the rightmost dims of some sites.

    Raises
    ------
    ValueError
        If ``given`` has a site that there is not, or more names than that site has dims.
    """
    by_name: dict[str, Site] = {site["name"]: site for site in sites}
    for name, names in given.items():
        if name not in by_name:
            raise ValueError(f"expected dims of sites among {sorted(by_name)}, got '{name}'")
        shape = tuple(shape_of(by_name[name]))
        if len(names) > len(shape):
            raise ValueError(f"expected at most {len(shape)} names for dims of '{name}' {shape}, got {list(names)}")
    return {name: _dims(site, tuple(given.get(name, ()))) for name, site in by_name.items()}


def _dims(site: Site, names: tuple[str, ...]) -> tuple[str, ...]:
    name, shape = site["name"], shape_of(site)
    plates = _plates_in_front(site) if is_deterministic(site) else _plates(site)
    default = [plates.get(i, f"{name}_dim_{i - sum(j < i for j in plates)}") for i in range(len(shape))]
    return (*default[: len(shape) - len(names)], *names)


def _plates(site: Site) -> dict[int, str]:
    """Which plate stands at which natural dim of a sample site."""
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    batch = site["fn"].batch_shape
    sizes = zip(range(-len(batch), 0), batch, strict=True)
    kept = [dim for dim, size in sizes if dim in plates or size > 1]
    return {i: plates[dim] for i, dim in enumerate(kept) if dim in plates}


def _plates_in_front(site: Site) -> dict[int, str]:
    """The same for a deterministic site, which does not tell batch from event: plates in front where sizes agree."""
    frames = sorted((frame for frame in site["cond_indep_stack"] if frame.vectorized), key=lambda frame: frame.dim)
    sizes = tuple(frame.size for frame in frames)
    return dict(enumerate(frame.name for frame in frames)) if site["value"].shape[: len(sizes)] == sizes else {}


def constants(gen: GenerativeModel, batch: tuple, observed: Sequence[Tensor]) -> dict[str, Labelled]:
    """The numerical arguments of a program that are not its observations, by their names."""
    rows, found = row_count(gen, batch), {}
    for name, value in zip(argument_names(gen, len(batch)), batch, strict=True):
        numerical = isinstance(value, Tensor | np.ndarray | int | float)
        if not numerical or any(_same(value, seen) for seen in observed):
            continue
        array = to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)
        dims = [f"{name}_dim_{i}" for i in range(array.ndim)]
        if dims and len(array) == rows:
            dims[0] = gen.plate
        found[name] = (tuple(dims), array)
    return found


def _same(value: Any, seen: Tensor) -> bool:
    """Whether an argument is the observation of a site; missing values (NaN) make it no less so."""
    if not isinstance(value, Tensor) or value.shape != seen.shape:
        return value is seen
    return bool((torch.eq(value, seen) | (value != value) & (seen != seen)).all())


def argument_names(gen: GenerativeModel, count: int) -> list[str]:
    """Names of the first ``count`` positional arguments of a program; numbered where it takes ``*args``.

    >>> argument_names(Program(lambda covariates, *rest: None), 3)
    ['covariates', 'argument_1', 'argument_2']
    """
    program = gen._model if isinstance(gen, Program) else gen.model
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [name for name, p in inspect.signature(program).parameters.items() if p.kind in positional]
    return (named + [f"argument_{i}" for i in range(len(named), count)])[:count]


def to_numpy(value: Tensor) -> np.ndarray:
    """A tensor of any device, without its gradient, as an array."""
    return value.detach().cpu().numpy()
