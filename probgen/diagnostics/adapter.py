"""The one place that knows which ArviZ is installed: labelled arrays in, its container of groups out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Labelled = tuple[tuple[str, ...], np.ndarray]


def container(
    groups: Mapping[str, Mapping[str, Labelled]],
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """``InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x, with the same groups, dims and coords.

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

    datasets = {group: _dataset(variables, coords or {}, attrs) for group, variables in groups.items() if variables}
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _dataset(variables: Mapping[str, Labelled], coords: Mapping[str, Any], attrs: Mapping[str, Any] | None) -> Any:
    import xarray

    sizes: dict[str, int] = {}
    for name, (dims, array) in variables.items():
        for dim, size in zip(dims, array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"expected one length of dim '{dim}', got {sizes[dim]} and {size} (at '{name}')")
    if clash := sorted(set(sizes) & set(variables)):
        raise ValueError(f"expected dims with names of their own, got {clash}, which are sites; rename them in dims=")
    labels = {dim: np.asarray(coords[dim]) if dim in coords else np.arange(size) for dim, size in sizes.items()}
    for dim, size in sizes.items():
        if len(labels[dim]) != size:
            raise ValueError(f"expected {size} labels for dim '{dim}', got {len(labels[dim])}")
    return xarray.Dataset(dict(variables), {dim: (dim, label) for dim, label in labels.items()}, attrs)
