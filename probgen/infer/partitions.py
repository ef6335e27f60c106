"""Dirichlet-process mixtures: the posterior of the partition of rows into clusters, by Gibbs sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from probgen.core import checks
from probgen.core.conversion import complete_rows
from probgen.core.described import in_short
from probgen.core.keywords import explained

Array = NDArray[np.float64]
_WITHIN = 0.25  # of the variances of all rows: what clusters are expected to have, by default


@in_short
@dataclass(frozen=True)
class NormalInverseWishart:
    r"""What is expected of the mean and covariance of a cluster.

    .. math:: \Sigma \sim W^{-1}(\Psi, \nu), \qquad \mu \mid \Sigma \sim N(m, \Sigma / \kappa)

    Attributes
    ----------
    mean : Tensor
        m: ``(D,)``.
    strength : float
        kappa > 0, how many rows the mean is worth.
    df : float
        nu > D - 1; the covariance is worth as many rows.
    scatter : Tensor
        Psi: ``(D, D)``, symmetric and positive definite; with nu > D + 1 the expected covariance is
        Psi / (nu - D - 1).

    Raises
    ------
    TypeError, ValueError
        If a part is of another kind, or not positive.

    >>> NormalInverseWishart(torch.zeros(2), 0.1, 4.0, torch.eye(2))
    NormalInverseWishart(mean=tensor(2), strength=0.1, df=4.0, scatter=tensor(2, 2))
    """

    mean: Tensor
    strength: float
    df: float
    scatter: Tensor

    def __post_init__(self) -> None:
        checks.instance(Tensor, "give torch.zeros(D)", mean=self.mean)
        checks.instance(Tensor, "give torch.eye(D)", scatter=self.scatter)
        checks.positive(strength=self.strength, df=self.df)

    @classmethod
    def of_rows(cls, x: Tensor) -> NormalInverseWishart:
        """Clusters anywhere among rows ``(N, D)``, each with a quarter of their variances.

        >>> NormalInverseWishart.of_rows(torch.tensor([[-1.0], [1.0], [3.0]]))
        NormalInverseWishart(mean=tensor(1), strength=0.1, df=3.0, scatter=tensor(1, 1))
        """
        spread = x.double().var(0)
        spread = torch.where(spread > 0, spread, 1.0)
        return cls(x.double().mean(0), 0.1, x.shape[1] + 2.0, torch.diag(_WITHIN * spread))


@dataclass(frozen=True, repr=False)
class PartitionPosterior:
    """Draws of the partition of rows into clusters.

    Attributes
    ----------
    labels : Tensor
        The cluster of each row, numbered by first appearance: ``(chain, draw, N)``, integers.
    concentration : Tensor
        ``(chain, draw)``: as given, or drawn.
    x : Tensor
        The rows ``(N, D)``.
    base : NormalInverseWishart
        What was expected of a cluster.
    """

    labels: Tensor
    concentration: Tensor
    x: Tensor
    base: NormalInverseWishart

    def __repr__(self) -> str:
        chains, draws, rows = self.labels.shape
        counts = self.clusters.double()
        return (
            f"PartitionPosterior({chains} chains of {draws} draws, {rows} rows, "
            f"{counts.mean():.1f} clusters)"
        )

    @property
    def clusters(self) -> Tensor:
        """Number of clusters: ``(chain, draw)``; for R-hat and effective sample sizes."""
        return self.labels.amax(-1) + 1

    @property
    def values(self) -> dict[str, Array]:
        """Number of clusters, concentration, and share of the largest cluster, ``(chain, draw)`` each.

        As ``arviz.from_dict`` takes them.
        """
        shape = self.labels.shape[:2]
        flat = self.labels.flatten(0, 1)
        largest = torch.stack([row.bincount().max() for row in flat]).reshape(shape)
        found = {
            "clusters": self.clusters,
            "concentration": self.concentration,
            "largest_share": largest / self.labels.shape[-1],
        }
        return {name: value.double().numpy() for name, value in found.items()}

    def similarity(self) -> Tensor:
        """Posterior probability that two rows are in one cluster: ``(N, N)``."""
        flat = self.labels.flatten(0, 1)
        total = sum((row[:, None] == row).double() for row in flat)
        return torch.as_tensor(total) / len(flat)

    def partition(self) -> Tensor:
        """One partition to show: the draw that is nearest to :meth:`similarity`, ``(N,)`` integers.

        References
        ----------
        Dahl (2006), Model-based clustering for expression data via a Dirichlet process mixture
        model; Binder (1978), https://doi.org/10.1093/biomet/65.1.31
        """
        similar = self.similarity()
        flat = self.labels.flatten(0, 1)
        loss = [((row[:, None] == row).double() - similar).square().sum() for row in flat]
        return flat[int(torch.stack(loss).argmin())]

    def predictive(self) -> dist.TorchDistribution:
        r"""The distribution of a further row, averaged over the draws: of events ``(D,)``.

        .. math:: p(x' \mid x) \approx \frac1S \sum_s \Big[\sum_k \frac{n_{sk}}{N + \alpha_s}\, t_{sk}(x')
                  + \frac{\alpha_s}{N + \alpha_s}\, t_0(x')\Big]

        A mixture of Student's t distributions, whose density is exact; as the posterior predictive of
        the Dirichlet process it has the error of finitely many draws.
        """
        engine = _Clusters(self.x.double().numpy(), self.base)
        parts = []
        count = self.labels.shape[0] * self.labels.shape[1]
        for row, alpha in zip(
            self.labels.flatten(0, 1).numpy(), self.concentration.flatten().tolist(), strict=True
        ):
            engine.set(row)
            sizes = np.append(engine.sizes, alpha)
            shares = sizes / sizes.sum() / count
            parts += list(zip(shares, *engine.predictives(), strict=True))
        shares, df, loc, scale = (
            torch.as_tensor(np.stack(part)) for part in zip(*parts, strict=True)
        )
        component = dist.MultivariateStudentT(df, loc, torch.linalg.cholesky(scale))
        return dist.MixtureSameFamily(dist.Categorical(shares), component)


@explained
def dirichlet_process_mixture(
    x: Any,
    *,
    concentration: float = 1.0,
    concentration_prior: tuple[float, float] | None = None,
    base: NormalInverseWishart | None = None,
    draws: int = 200,
    tune: int = 100,
    chains: int = 2,
    seed: int | None = None,
) -> PartitionPosterior:
    r"""Clusters whose number is not given: a Dirichlet-process mixture of normals, by collapsed Gibbs.

    .. math:: G \sim DP(\alpha, NIW), \qquad (\mu_i, \Sigma_i) \sim G, \qquad x_i \sim N(\mu_i, \Sigma_i)

    Means, covariances and G are integrated out. Each row in turn joins a cluster of n other rows
    with a probability in proportion to n times its predictive density there, or a new one in
    proportion to alpha times that under the base (Neal's algorithm 3).

    Parameters
    ----------
    x : Tensor, array or frame
        Rows ``(N, D)``, none missing.
    concentration : float
        alpha: the larger, the more clusters; expected are about alpha log(N / alpha).
    concentration_prior : (float, float), optional
        Shape and rate of a Gamma prior of alpha, which is then drawn as well (Escobar, West).
    base : NormalInverseWishart, optional
        What is expected of a cluster; default: :meth:`NormalInverseWishart.of_rows`.
    draws, tune : int
        Sweeps over all rows that are kept, and that are left out before them, of each chain.
    chains : int
        Number of chains; they start from one cluster and from a cluster for each row in turn.
    seed : int, optional
        Makes the draws repeatable.

    Raises
    ------
    ValueError
        If rows are missing or infinite, or the base does not fit them.

    References
    ----------
    Neal (2000), Markov chain sampling methods for Dirichlet process mixture models,
    https://doi.org/10.1080/10618600.2000.10474879; Escobar, West (1995), Bayesian density
    estimation and inference using mixtures, https://doi.org/10.1080/01621459.1995.10476550

    >>> _ = torch.manual_seed(0)
    >>> x = torch.cat([torch.randn(20, 2) - 5, torch.randn(20, 2) + 5])
    >>> found = dirichlet_process_mixture(x, draws=20, tune=10, seed=0)
    >>> found.labels.shape, found.partition().unique().tolist()
    (torch.Size([2, 20, 40]), [0, 1])
    >>> found.predictive().log_prob(x.double()).mean() > -5
    tensor(True)
    """
    rows = complete_rows("x", x).cpu()
    checks.rows(1, x=rows)
    checks.positive(concentration=concentration)
    if concentration_prior is not None:
        checks.numbers("positive", concentration_prior=concentration_prior)
        if len(concentration_prior) != 2:
            raise ValueError(
                "expected shape and rate of a Gamma prior as concentration_prior, got "
                f"{concentration_prior}; give (1.0, 1.0)"
            )
    checks.at_least(1, draws=draws, chains=chains)
    checks.at_least(0, tune=tune)
    checks.is_seed(**checks.given(seed=seed))
    checks.instance(NormalInverseWishart, **checks.given(base=base))
    own = NormalInverseWishart.of_rows(rows) if base is None else base
    _check_base(own, rows.shape[1])
    begin = int(torch.randint(2**31, ())) if seed is None else int(seed)
    found = [
        _chain(
            rows.double().numpy(), own, concentration, concentration_prior, draws, tune, place, key
        )
        for place, key in enumerate(np.random.SeedSequence(begin).spawn(chains))
    ]
    labels, alphas = zip(*found, strict=True)
    return PartitionPosterior(
        torch.as_tensor(np.stack(labels)), torch.as_tensor(np.stack(alphas)), rows, own
    )


def _check_base(base: NormalInverseWishart, dims: int) -> None:
    fits = base.mean.shape == (dims,) and base.scatter.shape == (dims, dims)
    fits = fits and base.df > dims - 1
    if not fits or torch.linalg.cholesky_ex(base.scatter.double()).info:
        raise ValueError(
            f"expected a base of {dims} variables with df > {dims - 1} and a positive "
            f"definite scatter, got {base}; give NormalInverseWishart.of_rows(x)"
        )


def _chain(
    x: Array,
    base: NormalInverseWishart,
    alpha: float,
    prior: tuple[float, float] | None,
    draws: int,
    tune: int,
    place: int,
    key: np.random.SeedSequence,
) -> tuple[NDArray[np.int64], Array]:
    """Labels ``(draws, N)`` and concentrations ``(draws,)`` of one chain."""
    random = np.random.default_rng(key)
    clusters = _Clusters(x, base)
    clusters.labels = np.zeros(len(x), np.int64) if place % 2 == 0 else np.arange(len(x))
    kept, alphas = [], []
    for sweep in range(tune + draws):
        clusters.set(
            _by_appearance(clusters.labels)
        )  # sums anew, without the errors of differences
        for row in range(len(x)):
            clusters.leave(row)
            logs = clusters.scores(clusters.x[row], alpha)
            shares = np.exp(logs - logs.max()).cumsum()
            clusters.join(row, int(np.searchsorted(shares, random.random() * shares[-1])))
        if prior is not None:
            alpha = _concentration(random, alpha, len(clusters.sizes), len(x), prior)
        if sweep >= tune:
            kept.append(_by_appearance(clusters.labels))
            alphas.append(alpha)
    return np.stack(kept), np.array(alphas)


def _concentration(
    random: np.random.Generator, alpha: float, count: int, rows: int, prior: tuple[float, float]
) -> float:
    """A draw of alpha given the number of clusters, by Escobar and West's auxiliary variable."""
    shape, rate = prior
    rate = rate - math.log(random.beta(alpha + 1, rows))
    odds = (shape + count - 1) / (rows * rate)
    more = random.random() < odds / (1 + odds)
    return float(random.gamma(shape + count - (not more), 1 / rate))


def _by_appearance(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same partition, numbered by first appearance.

    >>> _by_appearance(np.array([2, 0, 2, 1]))
    array([0, 1, 0, 2])
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[first.argsort()] = np.arange(len(first))
    return order[inverse.reshape(-1)]


class _Clusters:
    """Clusters of rows with what their predictive densities need, one entry for each cluster."""

    def __init__(self, x: Array, base: NormalInverseWishart):
        self.center = x.mean(0)  # squares of numbers far from zero would cancel
        self.x = x - self.center
        self.dims = x.shape[1]
        self.mean = base.mean.double().numpy() - self.center
        self.scatter = base.scatter.double().numpy()
        self.strength, self.df = float(base.strength), float(base.df)
        self.prior_square = self.scatter + self.strength * np.outer(self.mean, self.mean)
        self.labels = np.zeros(len(x), np.int64)
        self.own = self._prepared(0, np.zeros(self.dims), np.zeros((self.dims, self.dims)))

    def set(self, labels: NDArray[np.int64]) -> None:
        """Takes a partition, whose labels are 0, ..., K - 1."""
        self.labels = labels.copy()
        count = int(labels.max()) + 1
        self.sizes = np.bincount(labels, minlength=count)
        groups = [self.x[labels == k] for k in range(count)]
        self.sums = np.stack([group.sum(0) for group in groups])
        self.squares = np.stack([group.T @ group for group in groups])
        self.ready = [
            self._prepared(*part) for part in zip(self.sizes, self.sums, self.squares, strict=True)
        ]

    def leave(self, row: int) -> None:
        """Takes a row out of its cluster, which ends with its last row."""
        label = self.labels[row]
        self._add(row, label, -1)
        if not self.sizes[label]:
            self.sizes, self.sums, self.squares = (
                np.delete(part, label, 0) for part in (self.sizes, self.sums, self.squares)
            )
            del self.ready[label]
            self.labels[self.labels > label] -= 1

    def join(self, row: int, label: int) -> None:
        """Puts a row into a cluster; the one after the last is new."""
        if label == len(self.sizes):
            nothing = np.zeros((1, self.dims))
            self.sizes = np.append(self.sizes, 0)
            self.sums = np.concatenate([self.sums, nothing])
            self.squares = np.concatenate([self.squares, 0 * self.prior_square[None]])
            self.ready.append(self.own)
        self.labels[row] = label
        self._add(row, label, 1)

    def scores(self, value: Array, alpha: float) -> Array:
        """Log of size times predictive density of each cluster, and of a new one last: ``(K + 1,)``."""
        every = [*self.ready, self.own]
        loc = np.stack([each[0] for each in every])
        whiten = np.stack([each[1] for each in every])
        df, constant = (np.array([each[k] for each in every]) for k in (2, 3))
        noise = np.einsum("kde,ke->kd", whiten, value - loc)
        density = constant - 0.5 * (df + self.dims) * np.log1p((noise**2).sum(-1) / df)
        return np.log(np.append(self.sizes, alpha)) + density

    def predictives(self) -> tuple[Array, Array, Array]:
        """Degrees of freedom, places and scales of the predictive densities, a new one's last."""
        every = [*self.ready, self.own]
        root = np.linalg.inv(np.stack([each[1] for each in every]))
        df, loc = np.array([each[2] for each in every]), np.stack([each[0] for each in every])
        return df, loc + self.center, root @ root.swapaxes(-1, -2)

    def _add(self, row: int, label: int, sign: int) -> None:
        value = self.x[row]
        self.sizes[label] += sign
        self.sums[label] += sign * value
        self.squares[label] += sign * np.outer(value, value)
        if self.sizes[label]:
            parts = self.sizes[label], self.sums[label], self.squares[label]
            self.ready[label] = self._prepared(*parts)

    def _prepared(
        self, size: int, total: Array, square: Array
    ) -> tuple[Array, Array, float, float]:
        """Place, whitening matrix, degrees of freedom and log constant of a cluster's predictive t.

        Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 9.
        """
        strength, df = self.strength + size, self.df + size - self.dims + 1
        loc = (self.strength * self.mean + total) / strength
        scatter = self.prior_square + square - strength * np.outer(loc, loc)
        root = np.linalg.cholesky(scatter * ((strength + 1) / (strength * df)))
        constant = math.lgamma((df + self.dims) / 2) - math.lgamma(df / 2)
        constant -= self.dims / 2 * math.log(df * math.pi) + float(np.log(root.diagonal()).sum())
        return loc, np.linalg.inv(root), df, constant
