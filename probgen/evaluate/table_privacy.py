"""Whether rows of a table give away the rows that the model was fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.evaluate.copying import rank_shares
from probgen.evaluate.rows import interval
from probgen.evaluate.schemas import coded_frames
from probgen.table.schema import Table

BLOCK = 256  # rows whose distances to all others are held at once


@in_short
@dataclass(frozen=True)
class TablePrivacy:
    """How close samples lie to training rows, beside real rows that were not trained on.

    Attributes
    ----------
    copies : (float, float)
        Share of the samples that are a training row, cell by cell; of the held-out rows.
    distance : (float, float)
        Median distance of the samples to the closest training row; of the held-out rows.
    ratio : (float, float)
        Median ratio of the distances to the closest and the second closest training row (near 0 where
        one row is singled out); of the held-out rows.
    closer : (float, float, float)
        Share of the samples that lie closer to the training rows than to as many held-out ones, with
        its 95 % confidence interval: 1/2 for a model that keeps nothing of single rows.
    membership : (float, float, float)
        Probability that a training row lies closer to the samples than a held-out row does, with its
        95 % confidence interval: how well that distance tells who was trained on. 1/2: not at all.
    rows : (int, int, int)
        Samples, training and held-out rows that were compared.
    """

    copies: tuple[float, float]
    distance: tuple[float, float]
    ratio: tuple[float, float]
    closer: tuple[float, float, float]
    membership: tuple[float, float, float]
    rows: tuple[int, int, int]

    @property
    def finding(self) -> str:
        """What the intervals say, in one line."""
        if self.membership[1] > 0.5 or self.closer[1] > 0.5:
            return "samples lie closer to training rows than to others: the model keeps single rows"
        return "samples lie no closer to training rows than to others"

    def __str__(self) -> str:
        samples, train, held_out = self.rows
        lines = [
            f"{samples:,} samples, {train:,} training and {held_out:,} held-out rows",
            f"  exact copies of training rows       {self.copies[0]:7.2%}   "
            f"held-out rows {self.copies[1]:.2%}",
            f"  distance to the closest (median)    {self.distance[0]:7.4f}   "
            f"held-out rows {self.distance[1]:.4f}",
            f"  closest to second closest (median)  {self.ratio[0]:7.4f}   "
            f"held-out rows {self.ratio[1]:.4f}",
            f"  closer to training than to others   {self.closer[0]:7.1%}   "
            f"[{self.closer[1]:.1%}, {self.closer[2]:.1%}], 50 % is none",
            f"  membership told by distance         {self.membership[0]:7.1%}   "
            f"[{self.membership[1]:.1%}, {self.membership[2]:.1%}], 50 % is none",
            f"  {self.finding}",
        ]
        return "\n".join(lines)


@explained
def table_privacy(
    samples: Any,
    train: Any,
    held_out: Any,
    *,
    table: Table | None = None,
    judged_rows: int = 5000,
    seed: int = 0,
) -> TablePrivacy:
    r"""Copies, distances to the closest record, and membership told by them.

    The distance of two rows is Gower's: the mean over columns of :math:`|x - y|` over the column's
    range between the 1 % and 99 % quantiles of the training rows, at most 1, of numbers; of 0 or 1 for
    equal and other labels; missing cells equal one another and nothing else.

    Small distances alone say nothing, for real rows lie close to each other too: each figure stands
    beside that of held-out rows, and the two shares beside 1/2.

    Parameters
    ----------
    samples : data frame
        What the model drew.
    train : data frame
        The rows that it was fitted to.
    held_out : data frame
        Real rows that it was not fitted to, in no way (not to stop training, not to choose it).
    table : Table, optional
        What the columns are; default: as ``Table.read(train)`` says.
    judged_rows : int
        Rows of each frame that are compared, chosen at random; copies are looked for among all.
    seed : int
        For the choice.

    Raises
    ------
    TypeError
        For what is no data frame.
    ValueError
        For fewer than two training rows, no samples or held-out rows, held-out rows that are the
        training rows, other columns, unknown labels.

    References
    ----------
    Gower (1971), A general coefficient of similarity and some of its properties,
    https://doi.org/10.2307/2528823; distance to the closest record: Park et al. (2018),
    https://arxiv.org/abs/1806.03384; membership: Hilprecht, Härterich, Bernau (2019), Monte Carlo and
    reconstruction membership inference attacks against generative models,
    https://doi.org/10.2478/popets-2019-0067; the interval of the area under the curve: DeLong,
    DeLong, Clarke-Pearson (1988), https://doi.org/10.2307/2531595

    >>> import pandas
    >>> generator = np.random.default_rng(0)
    >>> rows = pandas.DataFrame(generator.normal(size=(600, 3)), columns=["a", "b", "c"])
    >>> train, held_out, fresh = rows[:200], rows[200:400], rows[400:]
    >>> table_privacy(train, train, held_out).copies
    (1.0, 0.0)
    >>> table_privacy(fresh, train, held_out).finding
    'samples lie no closer to training rows than to others'
    """
    checks.at_least(2, judged_rows=judged_rows)
    checks.is_seed(seed=seed)
    checks.instance(Table, **checks.given(table=table))
    frames = {"samples": samples, "train": train, "held_out": held_out}
    schema, whole = coded_frames(table, "train", frames)
    _check_some(whole)
    copies = _copied(whole[0], whole[1]), _copied(whole[2], whole[1])
    generator = torch.Generator().manual_seed(int(seed))
    drawn, known, others = (
        rows[torch.randperm(len(rows), generator=generator)[:judged_rows]] for rows in whole
    )
    measure = _Gower(whole[1], torch.tensor([kind.label for kind in schema.kinds.values()]))
    near = measure.nearest(drawn, known, 2)
    fresh = measure.nearest(others, known, 2)
    seen, unseen = (measure.nearest(part, drawn)[:, 0] for part in (known, others))
    return TablePrivacy(
        copies,
        (near[:, 0].median().item(), fresh[:, 0].median().item()),
        (_ratio(near), _ratio(fresh)),
        _closer(measure, drawn, known, others),
        _area(seen, unseen),
        (len(drawn), len(known), len(others)),
    )


def _check_some(rows: list[Tensor]) -> None:
    if len(rows[1]) < 2 or not len(rows[0]) or not len(rows[2]):
        raise ValueError(
            "expected samples, held-out rows and two training rows at least, got "
            f"{len(rows[0])}, {len(rows[2])} and {len(rows[1])}; draw or keep more"
        )
    if rows[1].shape == rows[2].shape and rows[1].allclose(rows[2], equal_nan=True):
        raise ValueError(
            "expected held-out rows that the model was not fitted to, got the training rows; keep "
            "some apart before the fit"
        )


def _copied(rows: Tensor, train: Tensor) -> float:
    known = {row.tobytes() for row in _plain(train)}
    return float(np.mean([row.tobytes() in known for row in _plain(rows)]))


def _plain(rows: Tensor) -> np.ndarray:
    """Rows whose equal cells have equal bytes: one NaN, one zero."""
    values = rows.numpy().copy()
    values[np.isnan(values)] = np.nan
    return values + 0.0


class _Gower:
    """Distances of rows, columns in units of their range among the training rows."""

    def __init__(self, train: Tensor, labels: Tensor):
        self.labels = labels
        low, high = (train.nanquantile(q, 0) for q in (0.01, 0.99))
        spread = (high - low).nan_to_num(0.0)
        self.spread = torch.where(spread > 0, spread, 1.0)

    def nearest(self, rows: Tensor, others: Tensor, count: int = 1) -> Tensor:
        """The ``count`` smallest distances of each row, ``(N, count)``."""
        parts = [
            block.topk(min(count, block.shape[1]), largest=False).values
            for block in self.blocks(rows, others)
        ]
        return torch.cat(parts)

    def blocks(self, rows: Tensor, others: Tensor) -> Iterator[Tensor]:
        """All distances, a block of rows at a time."""
        for part in rows.split(BLOCK):
            total = torch.zeros(len(part), len(others), dtype=rows.dtype)
            columns = zip(part.T, others.T, self.labels.tolist(), self.spread, strict=True)
            for one, two, label, spread in columns:
                apart = (one[:, None] - two).abs()
                apart = (apart > 0).to(apart) if label else (apart / spread).clamp(max=1.0)
                lacking = one.isnan()[:, None], two.isnan()
                apart = torch.where(lacking[0] | lacking[1], 1.0, apart)
                total += torch.where(lacking[0] & lacking[1], 0.0, apart)
            yield total / len(self.labels)


def _closer(
    measure: _Gower, drawn: Tensor, known: Tensor, others: Tensor
) -> tuple[float, float, float]:
    """Share of samples that lie closer to training rows than to as many others.

    Samples that lie closest to one real row agree about it, and so count as one: which rows happen
    to be training rows is the chance that the interval is about.
    """
    size = min(len(known), len(others))
    share = 0.0
    places = []
    for block in measure.blocks(drawn, torch.cat([known[:size], others[:size]])):
        trained, left = block[:, :size].amin(1), block[:, size:].amin(1)
        share += ((trained < left).double() + 0.5 * (trained == left).double()).sum().item()
        places.append(block.argmin(1))
    share /= len(drawn)
    counts = torch.cat(places).bincount().double()
    return _interval(share, (share * (1 - share) * (counts**2).sum().item()) ** 0.5 / len(drawn))


def _ratio(near: Tensor) -> float:
    """Median of the closest to the second closest distance; 1 where both are none."""
    ratio = torch.where(near[:, 1] > 0, near[:, 0] / near[:, 1], 1.0)
    return ratio.median().item()


def _area(members: Tensor, others: Tensor) -> tuple[float, float, float]:
    """Probability that a member's distance is the smaller one, ties counted half."""
    area, _, variance = rank_shares(members, others)
    return _interval(area, variance**0.5)


def _interval(value: float, stderr: float) -> tuple[float, float, float]:
    return value, *interval(value, stderr, low=0.0, high=1.0)["interval"]
