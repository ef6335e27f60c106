"""A Gaussian mixture in place of scikit-learn's, on the E- and M-steps of probgen."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from probgen.core import checks
from probgen.core.progress import Progress
from probgen.distributions.covariance import Covariance, Diagonal, Full, Spherical, Tied
from probgen.models import mixture
from probgen.scoring import log_likelihood

FORMS: dict[str, type[Covariance]] = {
    "full": Full,
    "tied": Tied,
    "diag": Diagonal,
    "spherical": Spherical,
}
STARTS = ("kmeans", "k-means++", "random", "random_from_data")


class _Run(NamedTuple):
    """Where EM ended from one start, and its bounds before each M-step."""

    model: mixture.GaussianMixture
    bounds: list[float]
    converged: bool


class GaussianMixture(DensityMixin, BaseEstimator):
    """Gaussian mixture with the parameters, attributes and results of scikit-learn's.

    From the same start it takes the same steps as ``sklearn.mixture.GaussianMixture``. Beyond it:
    missing entries (NaN, missing at random) are integrated out, in fitting and afterwards, and with
    several starts one that collapses does not end the others. A component without rows is refused,
    where scikit-learn's keeps it at a weight of about zero.

    Parameters
    ----------
    n_components : int
        Number K of components.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Form of the covariance matrices.
    tol : float
        EM ends where the mean log-likelihood of a row changes by less, in nats.
    reg_covar : float
        Variance that is added to each variable, in its squared unit.
    max_iter : int
        Steps of EM at most.
    n_init : int
        Starts, of which the best is kept.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}
        How starts are found.
    weights_init, means_init, precisions_init : array or nested lists, optional
        Start of the weights ``(K,)``, means ``(K, D)``, and precisions in the shape of
        ``precisions_``, in place of those found.
    random_state : int, RandomState or None
        Of starts, and of :meth:`sample`.
    warm_start : bool
        Whether a further :meth:`fit` starts from where the last one ended.
    verbose : int
        Above zero progress is shown.
    verbose_interval : int
        Taken for the sake of scikit-learn's signature; progress renews one line.

    Attributes
    ----------
    weights_, means_ : ndarray
        ``(K,)`` and ``(K, D)``.
    covariances_, precisions_, precisions_cholesky_ : ndarray
        ``(K, D, D)`` for "full", ``(D, D)`` for "tied", ``(K, D)`` for "diag", ``(K,)`` for
        "spherical".
    converged_ : bool
        Whether the best start converged.
    n_iter_ : int
        Its steps.
    lower_bound_, lower_bounds_ : float, list of float
        Its mean log-likelihood of a row before the last step, and before each.
    model_ : probgen.GaussianMixture
        The mixture itself.

    Raises
    ------
    ValueError
        From :meth:`fit`, for arguments that do not fit the data, and where each start collapses.

    References
    ----------
    Dempster, Laird, Rubin (1977), https://doi.org/10.1111/j.2517-6161.1977.tb01600.x; the interface:
    Pedregosa et al. (2011), https://jmlr.org/papers/v12/pedregosa11a.html

    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> gm = GaussianMixture(n_components=2, random_state=0).fit(X)
    >>> gm.means_[gm.predict([[0, 0], [12, 3]])].round(6)
    array([[ 1.,  2.],
           [10.,  2.]])
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> GaussianMixture:
        """Fits the mixture to rows ``(N, D)``, NaN = missing; ``y`` is not used."""
        self._fit(X)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> NDArray:
        """Fits the mixture, and gives the most probable component of each row, ``(N,)``."""
        rows = self._fit(X)
        return _array(self.model_.predict(rows))

    def predict(self, X: Any) -> NDArray:
        """The most probable component of each row: ``(N, D) -> (N,)``."""
        model, rows = self._fitted(X)
        return _array(model.predict(rows))

    def predict_proba(self, X: Any) -> NDArray:
        """Probability that a row came from each component: ``(N, D) -> (N, K)``."""
        model, rows = self._fitted(X)
        return _array(model.responsibilities(rows))

    def score_samples(self, X: Any) -> NDArray:
        """Log-likelihood of each row in nats, exact: ``(N, D) -> (N,)``."""
        return _array(log_likelihood(*self._fitted(X)).value)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of a row in nats, exact; ``y`` is not used."""
        return float(self.score_samples(X).mean())

    def aic(self, X: Any) -> float:
        """Akaike's information criterion on rows ``(N, D)``; lower is better."""
        model, rows = self._fitted(X)
        return model.aic(rows)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on rows ``(N, D)``; lower is better."""
        model, rows = self._fitted(X)
        return model.bic(rows)

    def sample(self, n_samples: int = 1) -> tuple[NDArray, NDArray]:
        """Draws rows ``(n_samples, D)``, and the component of each, in the order of components."""
        check_is_fitted(self)
        checks.at_least(1, n_samples=n_samples)
        random = check_random_state(self.random_state)
        share = self.weights_.astype(float)
        counts = random.multinomial(n_samples, share / share.sum())
        component = np.repeat(np.arange(len(counts)), counts)
        noise = random.standard_normal((n_samples, self.means_.shape[1]))
        tril = _array(self.model_.covariance.scale_tril.detach()).astype(float)
        spread = np.einsum("nij,nj->ni", tril[component], noise)
        return self.means_[component] + spread, component

    def _fitted(self, X: Any) -> tuple[Any, Tensor]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=_FLOATS, ensure_all_finite="allow-nan")
        return self.model_, torch.tensor(np.ascontiguousarray(X), dtype=self.model_.loc.dtype)

    def _fit(self, X: Any) -> Tensor:
        """Fits the mixture; the rows as a tensor."""
        X = validate_data(
            self, X, dtype=_FLOATS, ensure_min_samples=2, ensure_all_finite="allow-nan"
        )
        self._check(X)
        rows = torch.tensor(np.ascontiguousarray(X))
        warm = bool(self.warm_start) and getattr(self, "converged_", None) is not None
        if warm:
            self._check_warm(X.shape[1])
        best = self._best(X, rows, warm)
        if not best.converged and self.max_iter > 0:
            warnings.warn(
                f"EM stopped after {self.max_iter} steps while the mean log-likelihood still "
                f"changed by {self.tol:g} nats or more; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        self._keep(best)
        return rows

    def _best(self, X: NDArray, rows: Tensor, warm: bool) -> _Run:
        """The best of several starts, or the one from where the last fit ended."""
        count = 1 if warm else self.n_init
        random = check_random_state(self.random_state)
        best = None
        collapse = None
        total = count * max(1, self.max_iter)
        with Progress("em", total, "iterations", asked=bool(self.verbose), bound=True) as shown:
            for start in range(count):
                shown.skip(start * self.max_iter)
                try:
                    model = (
                        copy.deepcopy(self.model_).to(rows.dtype)
                        if warm
                        else self._started(X, random)
                    )
                    model.regularization = float(self.reg_covar)
                    run = self._run(model, rows, self.lower_bound_ if warm else -math.inf, shown)
                except torch.linalg.LinAlgError as error:
                    collapse = error
                    continue
                if best is None or (run.bounds and run.bounds[-1] > best.bounds[-1]):
                    best = run
        if best is None:
            raise ValueError(
                f"expected a start from which no component collapses, got {count} that do "
                f"({collapse}); take fewer components, a larger reg_covar or n_init"
            ) from collapse
        return best

    @torch.no_grad()
    def _run(
        self, model: mixture.GaussianMixture, rows: Tensor, bound: float, shown: Progress
    ) -> _Run:
        """Steps of EM, the bound before each; the last one is taken after the bound has settled."""
        bounds = [bound]
        converged = False
        while len(bounds) <= self.max_iter and not converged:
            value, statistics = model.expect(rows)
            bounds.append(float(value) / len(rows))
            model.maximize(statistics)
            converged = abs(bounds[-1] - bounds[-2]) < self.tol
            shown.advance(1, lambda: f"log-likelihood {bounds[-1]:.4g} nats a row")
        return _Run(model, bounds[1:], converged)

    def _started(self, X: NDArray, random: np.random.RandomState) -> mixture.GaussianMixture:
        """The mixture at a start: the parts that were given, and those of responsibilities."""
        given = (self.weights_init, self.means_init, self.precisions_init)
        filled = np.where(np.isnan(X), np.nanmean(X, 0), X) if np.isnan(X).any() else X
        weights, means, covariances = (
            (None, None, None)
            if all(part is not None for part in given)
            else self._moments(filled, self._responsibilities(filled, random))
        )
        if self.precisions_init is not None:
            covariances = np.linalg.inv(self._complete(self.precisions_init, X.shape[1]))
        model = mixture.GaussianMixture(
            self.n_components, X.shape[1], FORMS[self.covariance_type], regularization=0.0
        ).to(torch.tensor(X[:0]).dtype)
        start_weights, start_means, start_covariances = (
            torch.tensor(np.asarray(part, dtype=float))
            for part in (
                weights if self.weights_init is None else self.weights_init,
                means if self.means_init is None else self.means_init,
                covariances,
            )
        )
        return model.assign(start_weights, start_means, start_covariances)

    def _responsibilities(self, X: NDArray, random: np.random.RandomState) -> NDArray:
        """Those of a start, ``(N, K)``, drawn in the order in which scikit-learn draws."""
        rows, count = len(X), self.n_components
        if self.init_params == "random":
            shares = random.uniform(size=(rows, count)).astype(X.dtype)
            return shares / shares.sum(1, keepdims=True)
        if self.init_params == "kmeans":
            labels = KMeans(count, n_init=1, random_state=random).fit(X).labels_
            return np.eye(count)[labels]
        if self.init_params == "k-means++":
            chosen = kmeans_plusplus(X, count, random_state=random)[1]
        else:
            chosen = random.choice(rows, size=count, replace=False)
        shares = np.zeros((rows, count))
        shares[chosen, np.arange(count)] = 1
        return shares

    def _moments(self, X: NDArray, shares: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Weights, means and complete covariances of rows under responsibilities."""
        shares = shares.astype(float)
        X = X.astype(float)
        counts = shares.sum(0) + 10 * np.finfo(float).eps
        means = shares.T @ X / counts[:, None]
        if self.covariance_type == "tied":  # of all rows, also of those without a share
            scatter = X.T @ X - (counts * means.T) @ means
            covariances = np.repeat(scatter[None] / counts.sum(), len(counts), 0)
        else:
            covariances = np.stack(
                [
                    (share * (X - mean).T) @ (X - mean) / count
                    for share, mean, count in zip(shares.T, means, counts, strict=True)
                ]
            )
        return counts / counts.sum(), means, covariances + self.reg_covar * np.eye(X.shape[1])

    def _complete(self, given: ArrayLike, dims: int) -> NDArray:
        """Matrices ``(K, D, D)`` of what is given in the shape of the covariances' form."""
        values = np.asarray(given, dtype=float)
        if self.covariance_type == "full":
            return values
        if self.covariance_type == "tied":
            return np.repeat(values[None], self.n_components, 0)
        columns = values if self.covariance_type == "diag" else values[:, None]
        return columns[:, :, None] * np.eye(dims)

    def _keep(self, run: _Run) -> None:
        """Sets the attributes."""
        self.model_ = run.model
        self.converged_ = run.converged
        self.n_iter_ = len(run.bounds)
        self.lower_bounds_ = run.bounds
        self.lower_bound_ = run.bounds[-1] if run.bounds else -math.inf
        self.weights_ = _array(run.model.weights)
        self.means_ = _array(run.model.means).copy()
        tril = run.model.covariance.scale_tril.detach()
        identity = torch.eye(tril.shape[-1], dtype=tril.dtype)
        root = torch.linalg.solve_triangular(tril, identity, upper=False).mT
        self.covariances_ = self._shaped(tril @ tril.mT)
        self.precisions_ = self._shaped(root @ root.mT)
        self.precisions_cholesky_ = self._shaped(root)

    def _shaped(self, matrices: Tensor) -> NDArray:
        """Of matrices ``(K, D, D)`` the entries that the form has."""
        if self.covariance_type == "full":
            return _array(matrices).copy()
        if self.covariance_type == "tied":
            return _array(matrices[0]).copy()
        diagonal = _array(matrices.diagonal(dim1=-2, dim2=-1))
        return (diagonal if self.covariance_type == "diag" else diagonal[:, 0]).copy()

    def _check(self, X: NDArray) -> None:
        """Refuses parameters of wrong values, and starts that do not fit the data."""
        checks.at_least(1, n_components=self.n_components, n_init=self.n_init)
        checks.at_least(1, verbose_interval=self.verbose_interval)
        checks.at_least(0, max_iter=self.max_iter)
        checks.not_negative(tol=self.tol, reg_covar=self.reg_covar)
        checks.one_of(tuple(FORMS), covariance_type=self.covariance_type)
        checks.one_of(STARTS, init_params=self.init_params)
        if len(X) < self.n_components:
            raise ValueError(
                f"expected n_samples >= n_components, got n_components = {self.n_components}, "
                f"n_samples = {len(X)}; take fewer components"
            )
        self._check_start(X.shape[1])

    def _check_warm(self, dims: int) -> None:
        model = self.model_
        now = (self.n_components, dims, FORMS[self.covariance_type])
        if (model.components, model.dims, type(model.covariance)) != now:
            raise ValueError(
                f"expected {model.components} components, {model.dims} columns and the form of the "
                f"last fit for a warm start, got {now[0]}, {now[1]} and {self.covariance_type!r}; "
                "set warm_start=False"
            )

    def _check_start(self, dims: int) -> None:
        count = self.n_components
        shapes = {"full": (count, dims, dims), "tied": (dims, dims), "diag": (count, dims)}
        wanted = {
            "weights_init": (count,),
            "means_init": (count, dims),
            "precisions_init": shapes.get(self.covariance_type, (count,)),
        }
        for name, shape in wanted.items():
            given = getattr(self, name)
            if given is None:
                continue
            values = np.asarray(given, dtype=float)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(
                    f"expected {name} of shape {shape}, finite, got {values.shape}; leave it out "
                    "to have it found"
                )
        if self.weights_init is not None:
            _check_weights(np.asarray(self.weights_init, dtype=float))
        if self.precisions_init is not None:
            _check_precisions(self._complete(self.precisions_init, dims))


_FLOATS = [np.float64, np.float32]


def _array(values: Tensor) -> NDArray:
    return values.cpu().numpy()


def _check_weights(weights: NDArray) -> None:
    if (weights < 0).any() or not math.isclose(weights.sum(), 1, abs_tol=1e-6):
        raise ValueError(
            f"expected weights_init >= 0 whose sum is 1, got {weights.min():g} at least and a sum "
            f"of {weights.sum():g}; divide them by their sum"
        )


def _check_precisions(matrices: NDArray) -> None:
    symmetric = np.allclose(matrices, matrices.swapaxes(-1, -2))
    if not symmetric or not (np.linalg.eigvalsh(matrices) > 0).all():
        raise ValueError(
            "expected precisions_init that are symmetric and positive-definite, got others; leave "
            "it out to have it found"
        )
