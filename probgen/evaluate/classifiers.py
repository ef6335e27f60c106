"""Classifiers of many labelings at once, for tests that permute the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.evaluate.rows import MEMORY, chunk_rows, distance_blocks

Classifier = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # rows (n, F), labels (n, P), new rows (m, F) -> scores (m, P)


@dataclass(frozen=True)
class NearestNeighbors:
    """Share of ones among the k nearest rows, minus a half.

    The neighbors are the same for every labeling.

    Parameters
    ----------
    neighbors : int or None
        k; the odd number next to the root of the rows where it is None.
    memory : int
        Bytes of distances held at once.

    >>> rows, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    >>> NearestNeighbors(1)(rows, labels, torch.tensor([[4.0]]))
    tensor([[0.5000]])
    """

    neighbors: int | None = None
    memory: int = MEMORY

    def __call__(self, rows: Tensor, labels: Tensor, new: Tensor) -> Tensor:
        count = self.neighbors or 2 * (round(len(rows) ** 0.5) // 2) + 1
        scores = []
        for _, squares in distance_blocks(new, rows, self.memory // 2):
            found = squares.topk(count, largest=False).indices
            for part in found.split(
                chunk_rows(count * labels.shape[1], self.memory // 2, labels.element_size())
            ):
                scores.append(labels[part].mean(1) - 0.5)
        return torch.cat(scores)


@dataclass(frozen=True)
class Logistic:
    r"""Penalized logistic regression on standardized features.

    All labelings by one matrix factorization.

    .. math:: \beta \leftarrow \beta + \big(\tfrac14 X^\top X + \lambda I\big)^{-1}
              \big(X^\top (y - \sigma(X \beta)) - \lambda \beta\big)

    which climbs the log-likelihood at every step, because the matrix bounds its curvature; from the
    limit nothing is far where classes overlap. The constant is not penalized.

    Source: Böhning, Lindsay (1988), Monotonicity of quadratic-approximation algorithms,
    https://doi.org/10.1007/BF00049423

    >>> rows = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    >>> bool(Logistic()(rows, (rows > 0).float(), torch.tensor([[2.0]])) > 0)
    True
    """

    penalty: float = 1.0
    steps: int = 60

    def __call__(self, rows: Tensor, labels: Tensor, new: Tensor) -> Tensor:
        design, fresh = _design(rows, new)
        ridge = torch.full(
            (design.shape[1],), self.penalty, dtype=design.dtype, device=design.device
        )
        ridge[0] = 1e-9
        factor = torch.linalg.cholesky(design.T @ design / 4 + ridge.diag())
        weights = design.new_zeros(design.shape[1], labels.shape[1])
        for _ in range(self.steps):
            slope = design.T @ (labels - (design @ weights).sigmoid()) - ridge[:, None] * weights
            weights = weights + torch.cholesky_solve(slope, factor)
        return fresh @ weights


@dataclass(frozen=True)
class Network:
    r"""One hidden layer, :math:`a^\top \mathrm{ReLU}(W x + b)`, one network per labeling.

    All trained side by side.

    Time and memory grow with the labelings: use about a hundred permutations.

    >>> rows = torch.linspace(-2, 2, 80)[:, None]
    >>> scores = Network(steps=200)(rows, (rows.abs() > 1).float(), torch.tensor([[0.0], [1.8]]))
    >>> (scores > 0).flatten().tolist()
    [False, True]
    """

    hidden: int = 32
    steps: int = 150
    rate: float = 1e-2
    batch_size: int = 128
    seed: int = 0

    def __call__(self, rows: Tensor, labels: Tensor, new: Tensor) -> Tensor:
        design, fresh = (each.float() for each in _design(rows, new))
        random = torch.Generator().manual_seed(self.seed)
        count = labels.shape[1]
        inner = (
            torch.randn(1, design.shape[1], self.hidden, generator=random)
            * (2 / design.shape[1]) ** 0.5
        )
        outer = torch.randn(1, self.hidden, 1, generator=random) * self.hidden**-0.5
        weights = [each.to(design).repeat(count, 1, 1).requires_grad_() for each in (inner, outer)]
        optimizer = torch.optim.AdamW(weights, self.rate, weight_decay=1e-2)
        targets = labels.to(design)
        for _ in range(self.steps):
            some = torch.randint(len(rows), (self.batch_size,), generator=random).to(rows.device)
            with torch.enable_grad():
                scores = _scores(design[some], *weights)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    scores, targets[some].T, reduction="sum"
                )
            for each, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                each.grad = slope / self.batch_size
            optimizer.step()
        with torch.no_grad():
            return torch.cat([_scores(part, *weights) for part in fresh.split(1024)], 1).T.to(
                labels
            )


def _scores(design: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    return ((design @ inner).relu() @ outer)[..., 0]


def _design(rows: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Standardized by the rows trained on, in double precision, with a constant in front."""
    mean = rows.double().mean(0)
    scale = rows.double().std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    standard = [(each.double() - mean) / scale for each in (rows, new)]
    one, other = (torch.cat([torch.ones_like(each[:, :1]), each], 1) for each in standard)
    return one, other
