"""The joint normal distribution of linear regressions on a directed graph.

And the regressions from its moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probgen.core.normal import MultivariateNormal
from probgen.distributions.conditional import conditional


def joint_normal(weights: Tensor, bias: Tensor, scale: Tensor) -> MultivariateNormal:
    r"""The distribution of x = W x + b + s e with independent standard normal e.

    .. math:: x \sim N\big((I - W)^{-1} b,\; (I - W)^{-1} \mathrm{diag}(s^2) (I - W)^{-\top}\big)

    Parameters
    ----------
    weights : Tensor
        ``(D, D)``: row d holds the weights of the parents of d; acyclic, else the inverse is
        another distribution's.
    bias : Tensor
        ``(*batch, D)``.
    scale : Tensor
        Standard deviations ``(D,)`` of the noise.

    References
    ----------
    Shachter, Kenley (1989), Gaussian influence diagrams, https://doi.org/10.1287/mnsc.35.5.527

    >>> distribution = joint_normal(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1.0, 0.0]), torch.ones(2))
    >>> distribution.mean, distribution.covariance_matrix
    (tensor([1., 2.]), tensor([[1., 2.],
            [2., 5.]]))
    """
    eye = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    inverse = torch.linalg.inv(eye - weights)
    upper = torch.linalg.qr(
        (inverse * scale).mT
    ).R  # no Cholesky decomposition: that of the product loses digits
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    tril = (upper * signs.unsqueeze(-1)).mT
    return MultivariateNormal(
        (inverse @ bias.unsqueeze(-1)).squeeze(-1), scale_tril=tril, validate_args=False
    )


def network_distribution(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]],
    parents: Sequence[Sequence[int]],
    context: Tensor | None,
) -> MultivariateNormal:
    """The joint distribution of regressions.

    Each of weights ``(P,)`` of its parents and then of a context.

    Bias, log scale.
    """
    flat = []
    bias = []
    for (weight, constant, _), above in zip(parts, parents, strict=True):
        own = weight[len(above) :]
        flat.append(weight[: len(above)])
        bias.append(constant if context is None or not len(own) else constant + context @ own)
    places = [(child, parent) for child, above in enumerate(parents) for parent in above]
    weights = flat[0].new_zeros(len(parts), len(parts))
    rows, columns = (
        torch.tensor(places, dtype=torch.long, device=weights.device).reshape(-1, 2).unbind(-1)
    )
    scale = torch.stack([log_scale for _, _, log_scale in parts]).exp()
    matrix = weights.index_put((rows, columns), torch.cat(flat))
    return joint_normal(matrix, torch.stack(torch.broadcast_tensors(*bias), -1), scale)


def expected_moments(
    distribution: MultivariateNormal, x: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-likelihood of rows ``(n, D)``, NaN = missing.

    And expected moments of deviations from the distribution's mean.

    Each row counts as often as its weight ``(n,)`` says.
    """
    share = x.new_ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    given = conditional(distribution, x, ~x.isnan())
    hidden = x.isnan()
    deviation = (given.mean - distribution.loc).double()
    left = given.joint.covariance_matrix * hidden.unsqueeze(-1) * hidden.unsqueeze(-2)
    second = (deviation.mT * share) @ deviation + torch.einsum("n,nij->ij", share, left.double())
    statistics = {"rows": share.sum(), "first": share @ deviation, "second": second}
    return distribution.log_prob(x).double() @ share, statistics


def regression(
    statistics: dict[str, Tensor],
    center: Tensor,
    node: int,
    above: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    names: Sequence[str] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of a column on its parents, from moments about ``center``.

    Weights, bias and noise variance.

    Weights or bias that are given are kept; errors call columns by their ``names``, if there are.

    Raises
    ------
    torch.linalg.LinAlgError
        If the parents are functions of each other, or the column is one of them.
    """
    first = statistics["first"] / statistics["rows"]
    parents = list(above)
    mean = center + first
    covariance = statistics["second"] / statistics["rows"] - first.outer(first)
    inner = covariance[parents][:, parents]
    cross = covariance[parents, node]
    if weight is None:
        at = (
            0.0 * mean[parents] if bias is None else mean[parents]
        )  # through the bias, where that is given
        cross = cross + at * (mean[node] - (0.0 if bias is None else bias))
        weight = _solved(inner + at.outer(at), cross, node, parents, names)
    best = mean[node] - weight @ mean[parents]
    bias = best if bias is None else bias
    left = covariance[node, node] - 2 * weight @ covariance[parents, node] + weight @ inner @ weight
    rounding = 10 * (1 + len(parents)) * torch.finfo(left.dtype).eps
    if not left > rounding * covariance[node, node]:
        raise torch.linalg.LinAlgError(
            f"expected {_told([node], names)} to vary given its parents {_told(parents, names)}, "
            "got noise of "
            f"variance {left.item():.3g}; remove the column, or give more rows"
        )
    return weight, bias, left + (best - bias).square()


def _told(columns: Sequence[int], names: Sequence[str]) -> str:
    """Columns by their names, or their places."""
    found = ", ".join(f"'{names[c]}'" if names else str(c) for c in columns)
    return found if names else f"column{'s' * (len(columns) != 1)} {found}"


def _solved(
    inner: Tensor, cross: Tensor, node: int, parents: list[int], names: Sequence[str]
) -> Tensor:
    """The normal equations, on parents of unit scale."""
    scale = inner.diagonal().sqrt()
    tril, failed = torch.linalg.cholesky_ex(inner / (scale[:, None] * scale))
    least = 10 * len(parents) * torch.finfo(inner.dtype).eps
    if failed or not (tril.diagonal().square() > least).all():
        raise torch.linalg.LinAlgError(
            f"expected parents of {_told([node], names)} that vary and are no functions of each "
            "other, got "
            f"{_told(parents, names)}; remove one of them, or give more rows"
        )
    return torch.cholesky_solve((cross / scale)[:, None], tril)[:, 0] / scale
