"""What expectation maximization is given: rows and their weights, checked and in one form."""

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

_ELEMENTS = 2**22  # of a block of rows
FEWEST = 0.5  # rows in all: weights whose sum is one are enough, up to rounding


class Rows(NamedTuple):
    """Data ``(N, *event)``, and how many rows are handled at a time.

    Weights and labels of the rows are ``(N,)`` or ``None``; an unknown label is -1.
    """

    x: Tensor
    weights: Tensor | None
    labels: Tensor | None
    max_rows: int

    @property
    def total(self) -> float:
        """Number of rows, each as often as its weight says."""
        return len(self.x) if self.weights is None else self.weights.double().sum().item()

    @property
    def given(self) -> dict[str, Tensor]:
        """What is known of the rows, by the names of the arguments of ``expect``."""
        both = {"weights": self.weights, "labels": self.labels}
        return {name: value for name, value in both.items() if value is not None}

    def blocks(self, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Arguments of ``expect``: rows on the device, and what is known of them."""
        size = int(self.max_rows)
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            known = {name: value[rows].to(device) for name, value in self.given.items()}
            yield self.x[rows].to(device), known


def prepared(gen: nn.Module, x: Any, weights: Any, labels: Any, max_rows: int | None) -> Rows:
    """The data in one form.

    Sequences padded with NaN, rows without weight left out; refuses what no row may be.
    """
    distribution = gen()
    like = next(gen.parameters())
    event = tuple(distribution.event_shape)
    own = getattr(gen, "ragged", None)
    if own is None and len(event) > 1:
        own = Ragged(event[0], event[1:])
    x = own.rows(x) if own is not None and own.takes(x) else x
    (x,) = settled_batch(gen, (x,))
    if x is None:
        raise ValueError("expected rows x, got None; give them")
    width = x[:1].numel() if x.ndim else 1
    max_rows = max_rows or max(1, _ELEMENTS // max(1, width))
    _check_shape(x, event, own)
    if weights is not None:
        weights = rows_from("weights", weights, like.dtype)
        _check_weights(gen, x, weights)
    if labels is not None:
        labels = rows_from("labels", labels, like.dtype)
        _check_labels(gen, x, labels)
        labels = labels.nan_to_num(-1.0).long().to(x.device)
    if weights is not None:
        positive = (weights > 0).to(x.device)
        x = x[positive]
        labels = None if labels is None else labels[positive]
        weights = weights[weights > 0].to(x)
    rows = Rows(x, weights, labels, max_rows)
    _check_rows(distribution, rows, like.device)
    return rows


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
    if len(x) < 2 and (len(event) < 2 or not len(x)):  # one long sequence is data enough
        raise ValueError(
            f"expected at least two rows, got x of shape {tuple(x.shape)}; give more data"
        )


def _check_takes(gen: Any, name: str, advice: str) -> None:
    if not all(
        name in inspect.signature(method).parameters for method in (gen.expect, gen.initialize)
    ):
        raise TypeError(
            f"expected a family whose expect and initialize take {name}, got "
            f"{type(gen).__name__}; {advice}"
        )


def _check_labels(gen: Any, x: Tensor, labels: Tensor) -> None:
    _check_takes(gen, "labels", "take a GaussianMixture, or state the label with pg.observe")
    if labels.shape != x.shape[:1]:
        raise ValueError(
            f"expected a label for each of {len(x)} rows, got shape {tuple(labels.shape)}; mark "
            "the unknown ones NaN"
        )
    wrong = ~(labels.isnan() | ((labels >= 0) & (labels == labels.floor()) & labels.isfinite()))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected labels 0, 1, ..., or NaN (unknown), got {labels[row]:g} in row {row}; mark "
            "unknown ones NaN: torch.where(labels < 0, torch.nan, labels)"
        )


def _check_weights(gen: Any, x: Tensor, weights: Tensor) -> None:
    _check_takes(gen, "weights", "repeat the rows")
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
