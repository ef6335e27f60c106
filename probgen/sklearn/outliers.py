"""Any family as an outlier detector of scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OutlierMixin
from sklearn.utils import check_random_state

from probgen.core import checks
from probgen.decisions.conformal import conformal_p_values
from probgen.scoring import log_likelihood
from probgen.sklearn.families import Family, FamilyEstimator, array, checked_weights, tensor


class OutlierDetector(OutlierMixin, FamilyEstimator):
    r"""Rows of low density are outliers.

    Without ``calibration`` the threshold is the quantile of the densities of the rows that the
    family was fitted to, so that a share ``contamination`` of these are called outliers. With it
    some of the rows are held out, and a row is an outlier where its conformal p-value among them is
    ``contamination`` at most: of rows like those of the fit no more than that share are called
    outliers in expectation, however good or bad the family is.

    Missing entries (NaN) are integrated out by families that do so, and a row with fewer entries
    has a density of fewer entries, which is often higher: :class:`probgen.AnomalyDetector` compares
    rows with those of the same missing entries.

    Parameters
    ----------
    family : str or callable, optional
        Name of a family of vectors in ``probgen``, its class, or any function that builds one.
        It is given ``dims``, the number of columns, where it takes that. Default: a Gaussian with a
        full covariance, and a regularization of 1e-6.
    family_params : dict, optional
        Other arguments of the family, each of them also the parameter ``family__name``.
    contamination : float
        In (0, 0.5]: share of outliers among the rows of the fit, or the level of p-values.
    calibration : float, optional
        In (0, 1): share of the rows that is held out.
    steps : int
        Of :func:`probgen.fit`, for families that are fitted neither in closed form nor by EM.
    fit_params : dict, optional
        Other arguments of :func:`probgen.fit` or, for families fitted by it, :func:`probgen.em`.
    particles : int
        Draws of latents for each score, where the density is no closed form.
    random_state : int, RandomState or None
        Of first parameters, training, and the rows that are held out.

    Attributes
    ----------
    model_ : GenerativeModel
        The fitted family.
    offset_ : float
        Log-likelihood below which a row is an outlier, in nats.
    calibration_scores_ : ndarray or None
        Log-likelihoods of the rows that were held out, ``(M,)``.

    Raises
    ------
    TypeError, ValueError
        From :meth:`fit`, for parameters and rows that do not fit, and where so few rows are held
        out that no row could be called an outlier.

    References
    ----------
    Bates, Candès, Lei, Romano, Sesia (2023), Testing for outliers with conformal p-values,
    https://arxiv.org/abs/2104.08279

    >>> X = np.random.RandomState(0).randn(200, 3)
    >>> OutlierDetector(contamination=0.05).fit(X).predict([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    def __init__(
        self,
        family: Family = None,
        *,
        family_params: dict[str, Any] | None = None,
        contamination: float = 0.1,
        calibration: float | None = None,
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
        self.contamination = contamination
        self.calibration = calibration
        self.particles = particles

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> OutlierDetector:
        """Fits the family and the threshold to rows ``(N, D)``.

        Weights ``(N,)`` say how often each counts; with ``calibration`` there are none.
        """
        checks.within("(0, 0.5]", contamination=self.contamination)
        checks.within("(0, 1)", **checks.given(calibration=self.calibration))
        checks.at_least(1, particles=self.particles)
        X = self._rows(X, ensure_min_samples=2)
        weights = checked_weights(sample_weight, X)
        if self.calibration is not None:
            return self._calibrated(X, weights, self.calibration)
        self.calibration_scores_: NDArray | None = None
        self.model_ = self._fit_model(X, weights, self._seed())
        self.offset_ = _quantile(self._scores(X), weights, self.contamination)
        return self

    def score_samples(self, X: Any) -> NDArray:
        """Log-likelihood of each row in nats: ``(N, D) -> (N,)``."""
        return self._scores(self._asked(X))

    def decision_function(self, X: Any) -> NDArray:
        """How far the log-likelihood lies above the threshold: ``(N, D) -> (N,)``, in nats."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray:
        """-1 for outliers, 1 for other rows: ``(N, D) -> (N,)``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> NDArray:
        """Conformal p-value of each row, ``(N, D) -> (N,)``; needs ``calibration``."""
        scores = self.score_samples(X)
        if self.calibration_scores_ is None:
            raise ValueError(
                "expected rows that were held out, got none; fit OutlierDetector(calibration=0.3)"
            )
        usual = torch.tensor(self.calibration_scores_)
        return array(conformal_p_values(torch.tensor(scores), usual))

    def _calibrated(self, X: NDArray, weights: NDArray | None, share: float) -> OutlierDetector:
        """Fits the family to some of the rows, and the threshold to the others."""
        if weights is not None:
            raise ValueError(
                "expected no sample_weight beside calibration, where rows are compared one by one, "
                "got some; repeat the rows, or leave calibration out"
            )
        random = check_random_state(self.random_state)
        order = random.permutation(len(X))
        held = math.ceil(share * len(X))
        rank = math.floor(self.contamination * (held + 1) + 1e-9) - 1
        if rank < 0 or len(X) - held < 2:
            raise ValueError(
                f"expected two rows to fit and {math.ceil(1 / self.contamination) - 1} or more "
                f"held out, got {len(X) - held} and {held}; give more rows, another calibration or "
                "a larger contamination"
            )
        self.model_ = self._fit_model(X[order[held:]], None, int(random.randint(2**31 - 1)))
        scores = np.sort(self._scores(X[order[:held]]))
        self.calibration_scores_ = scores
        self.offset_ = float(scores[rank])  # p > contamination from here on
        return self

    def _scores(self, X: NDArray) -> NDArray:
        found = log_likelihood(self.model_, tensor(X), particles=self.particles, seed=0)
        return array(found.value).astype(float)


def _quantile(values: NDArray, weights: NDArray | None, share: float) -> float:
    """That of values of which each stands as often as its weight says, interpolated linearly."""
    order = values.argsort()
    counts = np.ones(len(values)) if weights is None else weights[order]
    ends = counts.cumsum()
    place = max(0.0, share * (ends[-1] - 1))
    low, high = (
        values[order[min(np.searchsorted(ends, end, side="right"), len(values) - 1)]]
        for end in (math.floor(place), math.floor(place) + 1)
    )
    return float(low + (place - math.floor(place)) * (high - low))
