"""What expectation maximization is given in memory: rows and weights, checked and in one form."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core.conversion import rows_from
from probgen.core.module import settled_batch
from probgen.core.ragged import Ragged
from probgen.core.supports import check_values, support_of
from probgen.core.together import Together

_ELEMENTS = 2**22  # of a block of rows
FEWEST = 0.5  # rows in all: weights whose sum is one are enough, up to rounding
_OTHERWISE = {  # what to do where a family does not take it
    "weights": "repeat the rows",
    "labels": "take a GaussianMixture, or state the label with pg.observe",
}


class Rows(NamedTuple):
    """Data ``(N, *event)``, and how many rows are handled at a time.

    Weights and labels of the rows are ``(N,)`` or ``None``; an unknown label is -1. Where several
    processes work together, each of them has all rows and goes over a range of them.
    """

    x: Tensor
    weights: Tensor | None
    labels: Tensor | None
    max_rows: int
    together: Together

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.x.dtype

    @property
    def total(self) -> float:
        """Number of rows, each as often as its weight says."""
        return len(self.x) if self.weights is None else self.weights.double().sum().item()

    @property
    def given(self) -> dict[str, Tensor]:
        """What is known of the rows, by the names of the arguments of ``expect``."""
        both = {"weights": self.weights, "labels": self.labels}
        return {name: value for name, value in both.items() if value is not None}

    def begin(self, gen: Any, generator: torch.Generator | None) -> None:
        """Sets the parameters of a family, in place, to a start."""
        gen.initialize(self.x, generator, **self.given)

    def blocks(self, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Arguments of ``expect``: rows on the device, and what is known of them."""
        size = int(self.max_rows)
        rank, world = self.together.part
        last = len(self.x) * (rank + 1) // world
        for start in range(len(self.x) * rank // world, last, size):
            rows = slice(start, min(start + size, last))
            known = {name: value[rows].to(device) for name, value in self.given.items()}
            yield self.x[rows].to(device), known


def prepared(
    gen: nn.Module,
    x: Any,
    weights: Any,
    labels: Any,
    max_rows: int | None,
    together: Together,
) -> Rows:
    """The data in one form.

    Sequences padded with NaN, rows without weight left out; refuses what no row may be.
    """
    distribution = gen()
    like = next(gen.parameters())
    x = as_events(gen, x, tuple(distribution.event_shape))
    _check_enough(x)
    max_rows = max_rows or rows_at_once(x[:1].numel())
    if weights is not None:
        weights = rows_from("weights", weights, like.dtype)
        _check_weights(gen, x, weights)
    if labels is not None:
        labels = rows_from("labels", labels, like.dtype)
        labels = _checked_labels(gen, x, labels).to(x.device)
    if weights is not None:
        positive = (weights > 0).to(x.device)
        x = x[positive]
        labels = None if labels is None else labels[positive]
        weights = weights[weights > 0].to(x)
    rows = Rows(x, weights, labels, max_rows, together)
    _check_rows(distribution, rows, like.device)
    return rows


def rows_at_once(width: int) -> int:
    """How many rows of so many entries make a block.

    >>> rows_at_once(2**12)
    1024
    """
    return max(1, _ELEMENTS // max(1, width))


def as_events(gen: Any, x: Any, event: tuple[int, ...]) -> Tensor:
    """Rows as a family of such events takes them, sequences padded with NaN.

    Refuses what has another shape.
    """
    own = getattr(gen, "ragged", None)
    if own is None and len(event) > 1:
        own = Ragged(event[0], event[1:])
    x = own.rows(x) if own is not None and own.takes(x) else x
    (x,) = settled_batch(gen, (x,))
    if x is None:
        raise ValueError("expected rows x, got None; give them")
    _check_shape(x, event, own)
    return x


def _check_shape(x: Tensor, event: tuple[int, ...], sequences: Ragged | None) -> None:
    shorter = (
        len(event) > 1
        and x.ndim == 1 + len(event)
        and 1 <= x.shape[1] <= event[0]
        and x.shape[2:] == event[1:]
    )
    if x.ndim != 1 + len(event) or (tuple(x.shape[1:]) != event and not shorter):
        how = "" if sequences is None else sequences.advice("x", x.shape)
        raise ValueError(
            f"expected x of shape (N, {', '.join(map(str, event))}), got {tuple(x.shape)}; give "
            f"one observation per row{how}"
        )


def _check_enough(x: Tensor) -> None:
    if len(x) < 2 and (x.ndim < 3 or not len(x)):  # one long sequence is data enough
        raise ValueError(
            f"expected at least two rows, got x of shape {tuple(x.shape)}; give more data"
        )


def check_takes(gen: Any, name: str) -> None:
    """Refuses weights or labels where the family has no argument for them; ``TypeError``."""
    if not all(
        name in inspect.signature(method).parameters for method in (gen.expect, gen.initialize)
    ):
        raise TypeError(
            f"expected a family whose expect and initialize take {name}, got "
            f"{type(gen).__name__}; {_OTHERWISE[name]}"
        )


def _checked_labels(gen: Any, x: Tensor, labels: Tensor) -> Tensor:
    check_takes(gen, "labels")
    if labels.shape != x.shape[:1]:
        raise ValueError(
            f"expected a label for each of {len(x)} rows, got shape {tuple(labels.shape)}; mark "
            "the unknown ones NaN"
        )
    return label_numbers(labels)


def label_numbers(labels: Tensor) -> Tensor:
    """Labels as integers, -1 where unknown; refuses what is neither 0, 1, ... nor NaN.

    >>> label_numbers(torch.tensor([1.0, torch.nan]))
    tensor([ 1, -1])
    """
    wrong = ~(labels.isnan() | ((labels >= 0) & (labels == labels.floor()) & labels.isfinite()))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected labels 0, 1, ..., or NaN (unknown), got {labels[row]:g} in row {row}; mark "
            "unknown ones NaN: torch.where(labels < 0, torch.nan, labels)"
        )
    return labels.nan_to_num(-1.0).long()


def check_weight_values(weights: Tensor) -> None:
    """Refuses weights of a block that are negative or not finite; ``ValueError``.

    >>> check_weight_values(torch.tensor([0.0, -1.0]))
    Traceback (most recent call last):
    ValueError: expected weights that are finite and not negative, got -1 in row 1; give each row the number of ...
    """
    wrong = ~(weights.isfinite() & (weights >= 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected weights that are finite and not negative, got {weights[row]:g} in row "
            f"{row}; give each row the number of times that it counts"
        )


def _check_weights(gen: Any, x: Tensor, weights: Tensor) -> None:
    check_takes(gen, "weights")
    if (
        weights.shape != x.shape[:1]
        or not (weights.isfinite() & (weights >= 0)).all()
        or not (weights > 0).any()
    ):
        raise ValueError(
            f"expected weights of shape ({len(x)},), finite and not negative, some positive, got "
            "shape "
            f"{tuple(weights.shape)} with values from {weights.min().item():g} to "
            f"{weights.max().item():g}; give each "
            "row the number of times that it counts"
        )
    total = weights.double().sum().item()
    if total < FEWEST:
        raise ValueError(
            f"expected weights that make one row or more together, got a sum of {total:g}: beside "
            "pseudo-counts and regularization that is no data; they say how often each row counts: "
            "weights * len(x) / weights.sum()"
        )


def _check_rows(distribution: dist.TorchDistribution, rows: Rows, device: torch.device) -> None:
    """Refuses infinities and values outside of the support."""
    support = support_of(distribution)
    first = 0
    observed = False
    for x, *_ in rows.blocks(device):
        check_values("x", x, support, first)
        first += len(x)
        observed = observed or not bool(x.isnan().all())
    if not observed and rows.x.ndim > 2:  # families of vectors name the columns
        raise ValueError(
            "expected observed entries in x, got NaN (missing values) alone; give more data"
        )
