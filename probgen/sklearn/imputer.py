"""Any family as an imputer of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OneToOneFeatureMixin, TransformerMixin

from probgen.core import checks
from probgen.infer.impute import Imputation, impute
from probgen.sklearn.families import Family, FamilyEstimator, array, checked_weights, tensor

STRATEGIES = ("mean", "mode", "draw")


class Imputer(OneToOneFeatureMixin, TransformerMixin, FamilyEstimator):
    """Missing entries (NaN) from their conditional distribution given the rest of the row.

    Parameters
    ----------
    family : str or callable, optional
        Name of a family of vectors in ``probgen``, its class, or any function that builds one, which
        is fitted to incomplete rows. It is given ``dims``, the number of columns, where it takes
        that. Default: a Gaussian with a full covariance, and a regularization of 1e-6.
    family_params : dict, optional
        Other arguments of the family, each of them also the parameter ``family__name``.
    strategy : {"mean", "mode", "draw"}
        Of the draws for each entry the mean, the most frequent one (of numbers that are levels), or
        the first one, which keeps the spread of the column.
    draws : int
        Draws for each row.
    num_steps : int
        Length of the chains, where draws are not exact.
    steps : int
        Of :func:`probgen.fit`, for families that are fitted neither in closed form nor by EM.
    fit_params : dict, optional
        Other arguments of :func:`probgen.fit` or, for families fitted by it, :func:`probgen.em`.
    random_state : int, RandomState or None
        Of first parameters and training; of draws, the same in each call.

    Attributes
    ----------
    model_ : GenerativeModel
        The fitted family.
    seed_ : int
        Of the draws.

    Raises
    ------
    TypeError, ValueError
        From :meth:`fit`, for parameters and rows that do not fit.
    NotImplementedError
        From :meth:`transform`, for families without a conditional distribution.

    References
    ----------
    Little, Rubin (2019), Statistical analysis with missing data,
    https://doi.org/10.1002/9781119482260

    >>> X = np.random.RandomState(0).randn(500, 1) @ [[1.0, 2.0]]
    >>> Imputer(random_state=0).fit(X).transform([[1.0, np.nan]]).round(1)
    array([[1., 2.]])
    """

    def __init__(
        self,
        family: Family = None,
        *,
        family_params: dict[str, Any] | None = None,
        strategy: str = "mean",
        draws: int = 100,
        num_steps: int = 500,
        steps: int = 1000,
        fit_params: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            family,
            family_params=family_params,
            steps=steps,
            fit_params=fit_params,
            random_state=random_state,
        )
        self.strategy = strategy
        self.draws = draws
        self.num_steps = num_steps

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Imputer:
        """Fits the family to rows ``(N, D)``; weights ``(N,)`` say how often each counts."""
        checks.one_of(STRATEGIES, strategy=self.strategy)
        checks.at_least(1, draws=self.draws, num_steps=self.num_steps)
        X = self._rows(X, ensure_min_samples=2)
        self.seed_ = self._seed()
        self.model_ = self._fit_model(X, checked_weights(sample_weight, X), self.seed_)
        return self

    def impute(self, X: Any) -> Imputation:
        """All draws for rows ``(N, D)``, with their kind: exact, asymptotic, heuristic."""
        rows = tensor(self._asked(X))
        draws = 1 if self.strategy == "draw" else self.draws
        return impute(
            self.model_,
            rows,
            draws=draws,
            num_steps=self.num_steps,
            seed=self.seed_,
            progress=False,
        )

    def transform(self, X: Any) -> NDArray:
        """Rows ``(N, D)`` without missing entries; what was observed stays as it is."""
        found = self.impute(X)
        if self.strategy == "mode":
            completed = torch.where(found.missing, found.draws.mode(0).values, found.draws[0])
            return array(completed)
        return array(found.mean())
