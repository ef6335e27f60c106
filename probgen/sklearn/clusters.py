"""Any family of components as a clusterer of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClusterMixin

from probgen.core import checks
from probgen.decisions.clusters import Clusters, cluster
from probgen.sklearn.families import Family, FamilyEstimator, array, checked_weights, tensor


class Clusterer(ClusterMixin, FamilyEstimator):
    """The most probable component of each row under a family of components.

    Parameters
    ----------
    n_clusters : int
        Number of components, for families that take ``components``.
    family : str or callable, optional
        Name of a family of vectors in ``probgen``, its class, or any function that builds one, with
        a component for each row (:func:`probgen.cluster`). It is given ``dims``, the number of
        columns, where it takes that. Default: a :class:`probgen.GaussianMixture` with full
        covariances, and a regularization of 1e-6.
    family_params : dict, optional
        Other arguments of the family, each of them also the parameter ``family__name``.
    steps : int
        Of :func:`probgen.fit`, for families that are fitted neither in closed form nor by EM.
    fit_params : dict, optional
        Other arguments of :func:`probgen.fit` or, for families fitted by it, :func:`probgen.em`.
    draws : int
        Draws of latents for each row, where there is no closed form.
    random_state : int, RandomState or None
        Of first parameters and training.

    Attributes
    ----------
    model_ : GenerativeModel
        The fitted family.
    labels_ : ndarray
        Component of each row of the fit, ``(N,)``.

    Raises
    ------
    TypeError, ValueError
        From :meth:`fit`, for parameters and rows that do not fit, and families without components.

    References
    ----------
    McLachlan, Peel (2000), Finite mixture models, https://doi.org/10.1002/0471721182

    >>> X = np.random.RandomState(0).randn(60, 2) + 20.0 * (np.arange(60) % 2)[:, None]
    >>> labels = Clusterer(n_clusters=2, random_state=0).fit_predict(X)
    >>> bool((labels[::2] == labels[0]).all()), bool((labels[1::2] != labels[0]).all())
    (True, True)
    """

    def __init__(
        self,
        n_clusters: int = 2,
        *,
        family: Family = None,
        family_params: dict[str, Any] | None = None,
        steps: int = 1000,
        fit_params: dict[str, Any] | None = None,
        draws: int = 64,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            family,
            family_params=family_params,
            steps=steps,
            fit_params=fit_params,
            random_state=random_state,
        )
        self.n_clusters = n_clusters
        self.draws = draws

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Clusterer:
        """Fits the family to rows ``(N, D)``; weights ``(N,)`` say how often each counts."""
        checks.at_least(1, n_clusters=self.n_clusters, draws=self.draws)
        X = self._rows(X, ensure_min_samples=2)
        weights = checked_weights(sample_weight, X)
        self.model_ = self._fit_model(X, weights, self._seed(), self.n_clusters)
        self.labels_ = array(self._clusters(X).label)
        return self

    def predict(self, X: Any) -> NDArray:
        """The most probable component of each row: ``(N, D) -> (N,)``."""
        return array(self._clusters(self._asked(X)).label)

    def predict_proba(self, X: Any) -> NDArray:
        """Probability that a row came from each component: ``(N, D) -> (N, K)``."""
        return array(self._clusters(self._asked(X)).probability)

    def _clusters(self, X: NDArray) -> Clusters:
        return cluster(self.model_, tensor(X), draws=self.draws)
