"""Names for the dims of sites.

Plates keep their own, events take the user's or ArviZ's default; names of arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.core.program import Keywords, Program
from probgen.core.rows import row_count
from probgen.core.signatures import argument_names
from probgen.core.sites import Site, event_of, is_deterministic, own_dims, shape_of
from probgen.diagnostics.adapter import SAMPLE_DIMS, Labeled

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


def dims_of(
    sites: Iterable[Site], given: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
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
            raise ValueError(
                f"expected at most {len(shape)} names for dims of '{name}' {shape}, got "
                f"{list(names)}"
            )
    sizes = dict.fromkeys(SAMPLE_DIMS, -1)
    return {name: _dims(site, tuple(given.get(name, ())), sizes) for name, site in by_name.items()}


def _dims(site: Site, names: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    """A plate gives its name to its dims of one size alone.

    One of another size, in a loop, is a dim of its site.
    """
    name = site["name"]
    shape = shape_of(site)
    found = _plates_in_front(site) if is_deterministic(site) else _plates(site)
    plates = {
        i: plate for i, plate in found.items() if sizes.setdefault(plate, shape[i]) == shape[i]
    }
    default = [
        plates.get(i, f"{name}_dim_{i - sum(j < i for j in plates)}") for i in range(len(shape))
    ]
    return (*default[: len(shape) - len(names)], *names)


def _plates(site: Site) -> dict[int, str]:
    """Which plate stands at which natural dim of a sample site."""
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    return {i: plates[dim] for i, dim in enumerate(own_dims(site)) if dim in plates}


def _plates_in_front(site: Site) -> dict[int, str]:
    """The same for a deterministic site, which does not tell batch from event.

    Plates in front where sizes agree.
    """
    frames = sorted(
        (frame for frame in site["cond_indep_stack"] if frame.vectorized),
        key=lambda frame: frame.dim,
    )
    sizes = tuple(frame.size for frame in frames)
    return (
        dict(enumerate(frame.name for frame in frames))
        if site["value"].shape[: len(sizes)] == sizes
        else {}
    )


def observation(site: Site, names: tuple[str, ...]) -> Labeled:
    """The data of an observed site in its natural shape, with the names of its dims.

    One number for all entries is repeated; data of a plate without size keep their own shape.
    """
    value = torch.as_tensor(site["value"])
    shape = shape_of(site)
    full = site["fn"].batch_shape + event_of(site)
    if value.numel() == shape.numel():
        return names, to_numpy(value.reshape(shape))
    if value.ndim <= len(full):
        return names, to_numpy(value.expand(full).reshape(shape))
    return tuple(f"{site['name']}_dim_{i}" for i in range(value.ndim)), to_numpy(value)


def constants(gen: GenerativeModel, batch: tuple, observed: Sequence[Tensor]) -> dict[str, Labeled]:
    """The numerical arguments of a program that are not its observations, by their names."""
    rows = row_count(gen, batch)
    found = {}
    for name, value in _arguments(gen, batch):
        if name in found or any(_same(value, seen) for seen in observed):
            continue
        array = to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)
        dims = [f"{name}_dim_{i}" for i in range(array.ndim)]
        if dims and len(array) == rows:
            dims[0] = gen.plate
        found[name] = (tuple(dims), array)
    return found


def _arguments(gen: GenerativeModel, batch: tuple) -> Iterator[tuple[str, Any]]:
    """Numbers and tensors among the arguments with their names: those of dicts by their keys."""
    named = batch[-1] if batch and isinstance(batch[-1], Keywords) else {}
    positional = batch[: len(batch) - bool(named)]
    program = gen._model if isinstance(gen, Program) else gen.model
    names = argument_names(program, len(positional))
    values = [*zip(names, positional, strict=True), *named.items()]
    while values:
        name, value = values.pop(0)
        if isinstance(value, Mapping):
            values = [(str(key), entry) for key, entry in value.items()] + values
        elif isinstance(value, Tensor | np.ndarray | np.generic | int | float):
            yield name, value


def _same(value: Any, seen: Any) -> bool:
    """Whether an argument is the observation of a site; missing values (NaN) make it no less so."""
    if not isinstance(value, Tensor) or not isinstance(seen, Tensor) or value.shape != seen.shape:
        return value is seen
    return bool((torch.eq(value, seen) | (value != value) & (seen != seen)).all())


def to_numpy(value: Tensor) -> np.ndarray:
    """A tensor of any device and precision, without its gradient, as an array."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
