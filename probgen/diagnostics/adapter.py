"""The one place that knows which ArviZ is installed.

Labeled arrays in, its container of groups out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Labeled = tuple[tuple[str, ...], np.ndarray]

SAMPLE_DIMS = ("chain", "draw")


def container(
    groups: Mapping[str, Mapping[str, Labeled]],
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """``InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x, with the same groups.

    Dims and coords.

    Names that files or xarray do not allow are changed: "/" becomes ".", a dim called like a
    variable of its group gets "_dim" after it. A variable that is renamed has its own name in its
    attribute ``site``.

    Parameters
    ----------
    groups : mapping
        ``{group: {variable: (dims, array)}}`` with a name for every dim; empty groups are left out.
    coords : mapping, optional
        Labels of dims by name; other dims are numbered from zero.
    attrs : mapping, optional
        Attributes of every group.

    Raises
    ------
    ValueError
        If labels and a dim differ in length.
    """
    import arviz
    import xarray

    datasets = {
        group: _dataset(variables, coords or {}, attrs)
        for group, variables in groups.items()
        if variables
    }
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _dataset(
    variables: Mapping[str, Labeled], coords: Mapping[str, Any], attrs: Mapping[str, Any] | None
) -> Any:
    import xarray

    sizes: dict[str, int] = {}
    for name, (dims, array) in variables.items():
        for dim, size in zip(dims, array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"expected one length of dim '{dim}', got {sizes[dim]} and {size} (at '{name}')"
                )
    labels = {
        dim: np.asarray(coords[dim]) if dim in coords else np.arange(size)
        for dim, size in sizes.items()
    }
    for dim, size in sizes.items():
        if len(labels[dim]) != size:
            raise ValueError(f"expected {size} labels for dim '{dim}', got {len(labels[dim])}")
    names = _unique(variables, SAMPLE_DIMS, "_")
    own = _unique([dim for dim in sizes if dim not in SAMPLE_DIMS], names.values(), "_dim")
    own |= {dim: dim for dim in SAMPLE_DIMS}
    data = {
        names[name]: (
            tuple(own[dim] for dim in dims),
            array,
            {} if names[name] == name else {"site": name},
        )
        for name, (dims, array) in variables.items()
    }
    return xarray.Dataset(
        data, {own[dim]: (own[dim], label) for dim, label in labels.items()}, attrs
    )


def _unique(names: Iterable[str], taken: Iterable[str], suffix: str) -> dict[str, str]:
    """Names without "/", each another one and none of those taken.

    By suffixes where that is needed.

    >>> _unique(["a/b", "a.b", "draw"], ["draw"], "_")
    {'a.b': 'a.b', 'draw': 'draw_', 'a/b': 'a.b_'}
    """
    used = set(taken)
    found = {}
    for name in sorted(names, key=lambda name: "/" in name):  # who can keep the name does
        new = name.replace("/", ".")
        while new in used:
            new += suffix
        used.add(new)
        found[name] = new
    return found
