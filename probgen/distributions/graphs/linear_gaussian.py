"""The joint normal law of linear regressions on a directed graph, and the regressions from its moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probgen.core.normal import MultivariateNormal
from probgen.distributions.conditional import conditional


def joint_normal(weights: Tensor, bias: Tensor, scale: Tensor) -> MultivariateNormal:
    r"""The law of x = W x + b + s e with independent standard normal e.

    .. math:: x \sim N\big((I - W)^{-1} b,\; (I - W)^{-1} \mathrm{diag}(s^2) (I - W)^{-\top}\big)

    Parameters
    ----------
    weights : Tensor
        ``(D, D)``: row d holds the weights of the parents of d; acyclic, else the inverse is another law's.
    bias : Tensor
        ``(*batch, D)``.
    scale : Tensor
        Standard deviations ``(D,)`` of the noise.

    References
    ----------
    Shachter, Kenley (1989), Gaussian influence diagrams, https://doi.org/10.1287/mnsc.35.5.527

    >>> law = joint_normal(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1.0, 0.0]), torch.ones(2))
    >>> law.mean, law.covariance_matrix
    (tensor([1., 2.]), tensor([[1., 2.],
            [2., 5.]]))
    """
    eye = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    inverse = torch.linalg.inv(eye - weights)
    upper = torch.linalg.qr((inverse * scale).mT).R  # no Cholesky decomposition: that of the product loses digits
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    tril = (upper * signs.unsqueeze(-1)).mT
    return MultivariateNormal((inverse @ bias.unsqueeze(-1)).squeeze(-1), scale_tril=tril, validate_args=False)


def network_law(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], parents: Sequence[Sequence[int]], context: Tensor | None
) -> MultivariateNormal:
    """The joint law of regressions, each of weights ``(P,)`` of its parents and then of a context, bias, log scale."""
    flat, bias = [], []
    for (weight, constant, _), above in zip(parts, parents, strict=True):
        own = weight[len(above) :]
        flat.append(weight[: len(above)])
        bias.append(constant if context is None or not len(own) else constant + context @ own)
    places = [(child, parent) for child, above in enumerate(parents) for parent in above]
    weights = flat[0].new_zeros(len(parts), len(parts))
    rows, columns = torch.tensor(places, dtype=torch.long, device=weights.device).reshape(-1, 2).unbind(-1)
    scale = torch.stack([log_scale for _, _, log_scale in parts]).exp()
    matrix = weights.index_put((rows, columns), torch.cat(flat))
    return joint_normal(matrix, torch.stack(torch.broadcast_tensors(*bias), -1), scale)


def expected_moments(law: MultivariateNormal, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-likelihood of rows ``(n, D)``, NaN = missing, and expected moments of deviations from the law's mean."""
    given, hidden = conditional(law, x, ~x.isnan()), x.isnan()
    deviation = given.mean - law.loc
    left = given.free.covariance_matrix * hidden.unsqueeze(-1) * hidden.unsqueeze(-2)
    second = deviation.mT @ deviation + left.sum(0)
    statistics = {"rows": x.new_tensor(len(x)), "first": deviation.sum(0), "second": second}
    return law.log_prob(x).sum(dtype=torch.float64), statistics


def regressions(
    statistics: dict[str, Tensor], centre: Tensor, parents: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Least squares of each column on its parents, from moments about ``centre``: weights, bias, noise variance."""
    first = statistics["first"] / statistics["rows"]
    covariance = statistics["second"] / statistics["rows"] - first.outer(first)
    return [_regression(centre + first, covariance, node, list(above)) for node, above in enumerate(parents)]


def _regression(mean: Tensor, covariance: Tensor, node: int, parents: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of a column on others, from moments ``(D,)`` and ``(D, D)``: weights, bias and noise variance.

    Raises
    ------
    torch.linalg.LinAlgError
        If the parents' covariance is singular, or the column is a function of them.
    """
    inner = covariance[parents][:, parents]
    weights = torch.linalg.solve(inner, covariance[parents, node])
    variance = covariance[node, node] - weights @ covariance[parents, node]
    if not variance > torch.finfo(variance.dtype).eps * covariance[node, node]:
        raise torch.linalg.LinAlgError(
            f"expected column {node} to vary given its parents {parents}, got noise of variance "
            f"{variance.item():.3g}; remove the column, or give more rows"
        )
    return weights, mean[node] - weights @ mean[parents], variance
