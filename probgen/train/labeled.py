"""Rows of which some are labeled."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.arguments import dtype_of
from probgen.core.conversion import rows_from
from probgen.core.module import GenerativeModel
from probgen.train.data import DEFAULT_ROWS, Source, as_source, held_out
from probgen.train.forms import DataForm, Request, refuse_own_rows, refuse_weights
from probgen.train.history import FitWarning
from probgen.train.pools import APART, Order, PooledRows
from probgen.train.rows import Batch, checked


class Labeled(DataForm):
    r"""Partly labeled data: rows x of which some have a known label y, for semi-supervised learning.

    The programs and the objective get ``(x, y)``, y as floating-point numbers with NaN where it is
    unknown. With ``labeled_share`` :math:`s` each batch of B rows has :math:`m = sB` labeled ones,
    however few there are, and every row a weight, such that the loss still estimates, without bias,
    the mean over all N rows, of which L are labeled:

    .. math:: \frac1B \Big( \frac{L/N}{m/B} \sum_{i=1}^{m} \ell(x_i, y_i)
              + \frac{1 - L/N}{1 - m/B} \sum_{j=m+1}^{B} \ell(x_j) \Big)

    What a known label adds has less variance then; how much it counts is the objective's affair (a
    weight of the classifier's term). An objective that does not look at the scales of sites
    (:attr:`Objective.weighs_rows <probgen.objectives.Objective>`) gets no weights: its loss is that
    of a population of which the share s is labeled, and a warning says so.

    An *epoch* is one pass over the rows, or, with ``labeled_share``, over the part (labeled,
    unlabeled) that needs the most batches; the other begins anew meanwhile. N is the number of all
    rows.

    Parameters
    ----------
    x : array, DataFrame or Tensor
        All rows, ``(N, *event)``.
    y : array or Tensor
        Their labels, ``(N,)`` or ``(N, *label)``; NaN and None are unknown.
    unknown : float, optional
        A number that stands for an unknown label as well, such as -1.
    labeled_share : float, optional
        Share of labeled rows in each batch, between 0 and 1; default: as they come.

    Raises
    ------
    ValueError
        For labels of other rows, and where ``labeled_share`` finds only labeled or only unlabeled
        rows, or a batch has no room for both.

    Source: Kingma, Rezende, Mohamed, Welling (2014), Semi-supervised learning with deep generative
    models, https://arxiv.org/abs/1406.5298

    >>> data = Labeled(torch.zeros(6, 2), torch.tensor([0, 1, -1, -1, -1, -1]), unknown=-1)
    >>> data.y
    tensor([0., 1., nan, nan, nan, nan])
    >>> batch = Labeled(data.x, data.y, labeled_share=0.5).source(Request(None, batch_size=4)).peek()
    >>> batch[1]
    tensor([0., 1., nan, nan])
    """

    def __init__(
        self, x: Any, y: Any, *, unknown: float | None = None, labeled_share: float | None = None
    ):
        kind = torch.get_default_dtype()
        if unknown is not None:
            checks.number(unknown=unknown)
        if labeled_share is not None:
            checks.within("(0, 1)", "half of each batch: 0.5", labeled_share=labeled_share)
        if isinstance(x, tuple):
            raise TypeError(
                f"expected rows x and labels y alone, got a tuple of {len(x)} for x; leave contexts "
                "out, or put them beside the rows: torch.cat(x, -1)"
            )
        rows = rows_from("x", x)
        labels = rows_from("y", y, kind)
        labels = labels if labels.is_floating_point() else labels.to(kind)
        if len(labels) != len(rows):
            raise ValueError(
                f"expected a label for each of {len(rows)} rows, got {len(labels)}; mark the "
                "unknown ones NaN"
            )
        self.x = rows
        self.y = labels if unknown is None else labels.masked_fill(labels == unknown, torch.nan)
        self.labeled_share = labeled_share

    @property
    def known(self) -> Tensor:
        """Which rows are labeled, ``(N,)``."""
        return ~self.y.reshape(len(self.y), -1).isnan().any(1)

    def source(self, request: Request) -> Source:
        if self.labeled_share is None:
            return as_source(
                (self.x, self._labels(request.gen)),
                request.batch_size,
                request.seed,
                request.rank,
                request.world,
                request.gen,
                drop_last=request.drop_last,
                weights=request.weights,
                drawn=not request.scaled,
            )
        refuse_weights(request, "drop labeled_share, or the weights")
        refuse_own_rows(request)
        return self._shared_out(request, self.labeled_share)

    def _shared_out(self, request: Request, share: float) -> Source:
        batch, layout = checked(request.gen, (self.x, self._labels(request.gen)))
        known = self.known
        pools = [known.nonzero()[:, 0], (~known).nonzero()[:, 0]]
        counts = [len(pool) for pool in pools]
        if not all(counts):
            raise ValueError(
                f"expected labeled and unlabeled rows for labeled_share, got {counts[0]} and "
                f"{counts[1]}; drop labeled_share"
            )
        size = request.batch_size or min(DEFAULT_ROWS, layout.size)
        labeled = min(size - 1, max(1, round(share * size)))
        sizes = [labeled, size - labeled]
        if size < 2:
            raise ValueError(
                f"expected batches with room for labeled and unlabeled rows, got batch_size={size};"
                " give 2 or more"
            )
        factors = [
            (count / layout.size) / (own / size) for count, own in zip(counts, sizes, strict=True)
        ]
        if not request.scaled:
            warnings.warn(
                "the loss is that of rows of which a share of "
                f"{labeled / size:.3g} is labeled, in the data it is {counts[0] / layout.size:.3g}: "
                "this objective does not look at the weights of rows",
                FitWarning,
                stacklevel=9,
            )
        return PooledRows(
            batch,
            layout,
            [Order(pool, request.seed + place * APART) for place, pool in enumerate(pools)],
            sizes,
            scales=factors if request.scaled else None,
            rank=request.rank,
            world=request.world,
        )

    def held_out(self, size: int, gen: GenerativeModel | None) -> list[Batch]:
        return list(held_out((self.x, self._labels(gen)), size, gen))

    def _labels(self, gen: GenerativeModel | None) -> Tensor:
        module: Any = gen
        return self.y if gen is None else self.y.to(dtype_of(module))
