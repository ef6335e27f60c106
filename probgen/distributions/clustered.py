"""Where mixtures start: clusters of rows, found by k-means on standardized columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probgen.core.missing import fill_missing

_ROWS_FOR_START = 2**16
_EMPTY = 1e-6  # expected rows of a component that has none


class ClusterMoments(NamedTuple):
    """ClusterMoments of rows, in float64.

    Attributes
    ----------
    counts : Tensor
        Rows of each cluster and one more, ``(K,)``.
    means : Tensor
        Of each cluster, ``(K, D)``.
    pooled : Tensor
        The covariance ``(D, D)`` of rows about the means of their clusters, which is regular where
        that of a small cluster is not.
    """

    counts: Tensor
    means: Tensor
    pooled: Tensor


def clustered(
    x: Tensor,
    components: int,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
) -> ClusterMoments:
    """ClusterMoments of rows ``(N, D)`` found by k-means, after k-means++, on standardized columns.

    Works on at most 65,536 rows, drawn at random; missing entries (NaN) enter as the means of their
    columns. With labels ``(N,)``, -1 = unknown, k-means starts from the means of the labeled rows
    (Basu, Banerjee, Mooney 2002, Semi-supervised clustering by seeding).

    Raises
    ------
    ValueError
        If there are fewer rows than components.

    >>> _ = torch.manual_seed(0)
    >>> clustered(torch.cat([torch.randn(60, 2), torch.randn(40, 2) + 20]), 2).counts.sort().values
    tensor([41., 61.], dtype=torch.float64)
    """
    _check_rows(len(x), components)
    share = x.new_ones(len(x)).double() if weights is None else weights.double()
    own = x.new_full((len(x),), -1).long() if labels is None else labels
    if len(x) > _ROWS_FOR_START:
        kept = torch.randperm(len(x), generator=generator).to(x.device)
        kept = kept[(own[kept] < 0).sort(stable=True).indices]  # rows with a label first
        kept = kept[:_ROWS_FOR_START]
        x = x[kept]
        share = share[kept]
        own = own[kept]
    center = x.double().nanmean(0)
    z = fill_missing(x.double() - center)
    scale = z.square().mean(0).sqrt()
    found, clusters = _k_means(
        z / torch.where(scale > 0, scale, 1.0), components, generator, share, own
    )
    means = clusters * scale
    residual = z - means[found]
    pooled = (residual.mT * share) @ residual / share.sum() + torch.diag_embed(
        1e-3 * scale.square()
    )
    counts = found.bincount(share, minlength=components) + 1
    return ClusterMoments(counts, center + means, pooled)


def check_components(labels: Tensor | None, components: int) -> None:
    """Refuses labels beyond the last component."""
    if labels is not None and len(labels) and labels.max() >= components:
        raise ValueError(
            f"expected labels 0, ..., {components - 1}, got {int(labels.max())}; use "
            f"{int(labels.max()) + 1} components or more"
        )


def check_empty(rows: Tensor) -> None:
    """Refuses components that have no rows ``(K,)``, each an error of one run."""
    if empty := (~(rows > _EMPTY)).nonzero().flatten().tolist():
        raise torch.linalg.LinAlgError(
            f"expected rows in every component, got none in components {empty}; use fewer "
            "components, or several "
            "starts (n_init)"
        )


def _check_rows(rows: int, components: int) -> None:
    if rows < components:
        raise ValueError(
            f"expected at least as many rows as components, got {rows} rows for "
            f"{components} components; use "
            "fewer components or more rows"
        )


def _k_means(
    z: Tensor,
    components: int,
    generator: torch.Generator | None,
    weights: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """ClusterMoments ``(N,)`` and centers ``(K, D)`` of rows, each as often as its weight says.

    From the means of the rows with a label, where there are any.
    """
    from sklearn.cluster import KMeans

    start: Any = "k-means++"
    if (labels >= 0).any():
        start = _seeds(z, components, generator, weights, labels).cpu().numpy()
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    found = KMeans(components, init=start, n_init=1, random_state=seed).fit(
        z.cpu().numpy(), sample_weight=weights.cpu().numpy()
    )
    return torch.as_tensor(found.labels_, device=z.device).long(), torch.as_tensor(
        found.cluster_centers_
    ).to(z)


def _seeds(
    z: Tensor,
    components: int,
    generator: torch.Generator | None,
    weights: Tensor,
    labels: Tensor,
) -> Tensor:
    """Means ``(K, D)`` of the rows of each label.

    For components without any a row far from the others, drawn as k-means++ does.
    """
    known = labels >= 0
    shares = one_hot(labels[known], components).mT * weights[known]
    rows = shares.sum(1)
    seeds = shares @ z[known] / rows[:, None]
    for component in (rows == 0).nonzero().flatten().tolist():
        others = seeds[seeds.isfinite().all(1)]
        chances = torch.cdist(z, others).amin(1).square() * weights
        row = torch.multinomial(chances.cpu(), 1, generator=generator)
        seeds[component] = z[int(row)]
    return seeds
