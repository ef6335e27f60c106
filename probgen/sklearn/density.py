"""Any family as a density estimator of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted

from probgen.core import checks
from probgen.core.score import Score
from probgen.sampling import sample
from probgen.scoring import log_likelihood
from probgen.sklearn.families import Family, FamilyEstimator, array, checked_weights, tensor


class DensityEstimator(DensityMixin, FamilyEstimator):
    """A family that scores rows and draws new ones.

    Missing entries (NaN) are integrated out by families that do so, and refused by the others.

    Parameters
    ----------
    family : str or callable, optional
        Name of a family of vectors in ``probgen``, its class, or any function that builds one.
        It is given ``dims``, the number of columns, where it takes that. Default: a Gaussian with a
        full covariance, and a regularization of 1e-6.
    family_params : dict, optional
        Other arguments of the family, each of them also the parameter ``family__name``.
    steps : int
        Of :func:`probgen.fit`, for families that are fitted neither in closed form nor by EM.
    fit_params : dict, optional
        Other arguments of :func:`probgen.fit` or, for families fitted by it, :func:`probgen.em`.
    particles : int
        Draws of latents for each score, where the density is no closed form.
    random_state : int, RandomState or None
        Of first parameters, training and draws.

    Attributes
    ----------
    model_ : GenerativeModel
        The fitted family.

    Raises
    ------
    TypeError, ValueError
        From :meth:`fit`, for parameters and rows that do not fit.

    References
    ----------
    The interface: Buitinck et al. (2013), API design for machine learning software,
    https://arxiv.org/abs/1309.0238

    >>> X = np.random.RandomState(0).randn(200, 3)
    >>> estimator = DensityEstimator("PPCA", family_params={"factors": 1}).fit(X)
    >>> estimator.score_samples(X).shape, estimator.log_likelihood(X).kind
    ((200,), 'exact')
    """

    def __init__(
        self,
        family: Family = None,
        *,
        family_params: dict[str, Any] | None = None,
        steps: int = 1000,
        fit_params: dict[str, Any] | None = None,
        particles: int = 64,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            family,
            family_params=family_params,
            steps=steps,
            fit_params=fit_params,
            random_state=random_state,
        )
        self.particles = particles

    def fit(
        self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> DensityEstimator:
        """Fits the family to rows ``(N, D)``; weights ``(N,)`` say how often each counts."""
        checks.at_least(1, particles=self.particles)
        X = self._rows(X, ensure_min_samples=2)
        self.model_ = self._fit_model(X, checked_weights(sample_weight, X), self._seed())
        return self

    def log_likelihood(self, X: Any) -> Score:
        """Log-likelihoods of rows ``(N, D)`` with their kind: exact, a bound, an estimate."""
        rows = tensor(self._asked(X))
        return log_likelihood(self.model_, rows, particles=self.particles, seed=0)

    def score_samples(self, X: Any) -> NDArray:
        """The numbers of :meth:`log_likelihood`, in nats: ``(N, D) -> (N,)``."""
        return array(self.log_likelihood(X).value)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of a row in nats, of the kind that :meth:`log_likelihood` says."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> NDArray:
        """Draws rows: ``(n_samples, D)``."""
        check_is_fitted(self)
        checks.at_least(1, n_samples=n_samples)
        return array(sample(self.model_, n_samples, seed=self._seed()))
