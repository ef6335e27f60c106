"""Stacking: how much of each of several densities is in their best mixture, by held-out rows."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks

MAX_ITER = 300  # of EM, which is concave here


def stacking_weights(scores: Tensor) -> Tensor:
    r"""Weights of the mixture of densities that held-out rows are likeliest under.

    .. math:: \hat w = \arg\max_w \sum_n \log \sum_k w_k\, p_k(x_n) + \frac1K \sum_k \log w_k,
              \qquad \sum_k w_k = 1

    by EM. The last term counts one row more, 1 / K of it for each density: no weight is zero, so
    that a row which is impossible under the others does not cost everything.

    Parameters
    ----------
    scores : Tensor
        ``(N, K)``: log-likelihoods in nats of rows that none of the densities was trained on.

    Returns
    -------
    Tensor
        ``(K,)``, positive, with sum 1, in float64.

    Raises
    ------
    ValueError
        For scores of another shape, and no rows.

    References
    ----------
    Smyth, Wolpert (1999), Linearly combining density estimators via stacking,
    https://doi.org/10.1023/A:1007511322260

    >>> sure, unsure = torch.tensor([-1.0, -1.0, -9.0]), torch.tensor([-2.0, -2.0, -2.0])
    >>> stacking_weights(torch.stack([sure, unsure], 1)).round(decimals=2)
    tensor([0.4800, 0.5200], dtype=torch.float64)
    """
    checks.instance(Tensor, scores=scores)
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(
            f"expected scores of shape (N, K), got {tuple(scores.shape)}; stack the scores of K "
            "densities: torch.stack([...], 1)"
        )
    scores = scores.double()
    count = scores.shape[1]
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    for _ in range(MAX_ITER):
        shares = (scores + weights.log()).softmax(1)
        weights = (shares.sum(0) + 1 / count) / (len(scores) + 1)
    return weights


def stacked_score(scores: Tensor) -> Tensor:
    """Log-likelihoods of rows ``(N,)`` under the best mixture of K densities: ``(N, K) -> (N,)``.

    >>> stacked_score(torch.tensor([[-1.0, -1.0]]))
    tensor([-1.], dtype=torch.float64)
    """
    return (scores.double() + stacking_weights(scores).log()).logsumexp(1)


def selected(scores: Tensor, most: int, gain: float) -> list[int]:
    """Which densities a mixture needs, the best one first: each raises it by more than ``gain``.

    Greedy: of all that are left the one that raises the mixture most comes next.

    Parameters
    ----------
    scores : Tensor
        ``(N, K)``, as :func:`stacking_weights` takes them.
    most : int
        How many at most.
    gain : float
        Nats a row.

    >>> one, two = torch.tensor([-1.0, -1.0, -5.0]), torch.tensor([-5.0, -5.0, -1.0])
    >>> selected(torch.stack([one - 9, two, one, one], 1), most=3, gain=0.01)
    [2, 1]
    """
    chosen: list[int] = []
    reached = -torch.inf
    for _ in range(min(most, scores.shape[1])):
        others = [each for each in range(scores.shape[1]) if each not in chosen]
        means = [float(stacked_score(scores[:, [*chosen, each]]).mean()) for each in others]
        best = max(range(len(others)), key=means.__getitem__)
        if means[best] <= reached + gain:
            break
        chosen.append(others[best])
        reached = means[best]
    return chosen
