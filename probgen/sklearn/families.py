"""Any family as the parameter of an estimator: how it is built, fitted and asked."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.missing import has_missing
from probgen.core.turns import own_random_state
from probgen.decisions.classifier import Solvable
from probgen.infer.em import SupportsEM, em
from probgen.models.mixture import GaussianMixture
from probgen.train.fit import fit

FLOATS = [np.float64, np.float32]
INSIDE = "family__"
REGULARIZATION = 1e-6  # of the family that is taken where none is given
Family = str | Callable[..., nn.Module] | None


class FamilyEstimator(BaseEstimator):
    """What the estimators around a family share; ``family__name`` are its arguments.

    Parameters
    ----------
    family : str or callable, optional
        Name of a family of vectors in ``probgen``, its class, or any function that builds one.
        It is given ``dims``, the number of columns, where it takes that. Default: a
        :class:`probgen.GaussianMixture` with full covariances and a regularization of 1e-6.
    family_params : dict, optional
        Other arguments of the family, each of them also the parameter ``family__name``.
    steps : int
        Of :func:`probgen.fit`, for families that are fitted neither in closed form nor by EM.
    fit_params : dict, optional
        Other arguments of :func:`probgen.fit` or, for families fitted by it, :func:`probgen.em`.
    random_state : int, RandomState or None
        Of first parameters, training and draws.
    """

    def __init__(
        self,
        family: Family = None,
        *,
        family_params: dict[str, Any] | None = None,
        steps: int = 1000,
        fit_params: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.family = family
        self.family_params = family_params
        self.steps = steps
        self.fit_params = fit_params
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, with ``deep`` also the arguments of the family."""
        own = super().get_params(deep=deep)
        inner = self.family_params if deep and isinstance(self.family_params, Mapping) else {}
        return {**own, **{INSIDE + name: value for name, value in inner.items()}}

    def set_params(self, **params: Any) -> FamilyEstimator:
        """Sets parameters, and arguments of the family by ``family__name``."""
        inner = {name: value for name, value in params.items() if name.startswith(INSIDE)}
        super().set_params(**{name: params[name] for name in params.keys() - inner.keys()})
        if inner:
            named = {name.removeprefix(INSIDE): value for name, value in inner.items()}
            self.family_params = {**(self.family_params or {}), **named}
        return self

    def _rows(self, X: Any, **options: Any) -> NDArray:
        """Rows ``(N, D)``, checked; those to be fitted to unless ``reset=False``."""
        return validate_data(self, X, dtype=FLOATS, ensure_all_finite="allow-nan", **options)

    def _asked(self, X: Any) -> NDArray:
        """Rows of the kind that was fitted to, in the precision of the fit."""
        check_is_fitted(self)
        return self._rows(X, reset=False).astype(self._precision)

    def _build(self, dims: int, dtype: torch.dtype, seed: int, components: int) -> nn.Module:
        """The family with parameters to begin with."""
        checks.mapping(**checks.given(family_params=self.family_params, fit_params=self.fit_params))
        checks.at_least(1, steps=self.steps)
        factory = factory_of(self.family)
        taken = inspect.signature(factory).parameters
        known = {"dims": dims, "components": components}
        given = {name: value for name, value in known.items() if name in taken}
        with own_random_state(seed):
            model = factory(**{**given, **(self.family_params or {})})
        checks.generative(gen=model)
        return model.to(dtype)

    def _fit_model(
        self, X: NDArray, weights: NDArray | None, seed: int, components: int = 1
    ) -> nn.Module:
        """The family fitted to rows, each as often as its weight says."""
        self._precision = X.dtype.type
        model: Any = self._build(X.shape[1], tensor(X[:0]).dtype, seed, components)
        rows, counts = _merged(X, weights)
        if counts is not None and _repeats(model, counts):
            rows, counts = rows.repeat(counts.astype(int), 0), None
        x = tensor(rows)
        known = {} if counts is None else {"weights": torch.tensor(counts, dtype=x.dtype)}
        options: dict[str, Any] = {**known, "seed": seed, **(self.fit_params or {})}
        in_steps = isinstance(model, SupportsEM)
        if isinstance(model, Solvable) and counts is None and not has_missing(x):
            model.solve(x)
        elif in_steps:
            em(model, x, **options)
        else:
            fit(model, x, **{"steps": self.steps, "progress": False, "verdict": False, **options})
        return model.eval()

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def factory_of(family: Family) -> Callable[..., nn.Module]:
    """What builds a family: the class of a name, or the function itself."""
    if family is None:
        return partial(GaussianMixture, regularization=REGULARIZATION)
    if not isinstance(family, str):
        checks.factory("pass the name of a family, its class or a function", family=family)
        return family
    public = importlib.import_module("probgen")
    found = vars(public).get(family) if family in public.__all__ else None
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        raise ValueError(
            f"expected the name of a family in probgen, got {family!r}; pass 'GaussianMixture', "
            "say, or the class itself"
        )
    return found


def tensor(rows: NDArray) -> Tensor:
    """A copy: arrays may be read-only, tensors are not."""
    return torch.tensor(np.ascontiguousarray(rows))


def array(values: Tensor) -> NDArray:
    """Numbers of a tensor, in their precision."""
    return values.detach().cpu().numpy()


def _merged(X: NDArray, weights: NDArray | None) -> tuple[NDArray, NDArray | None]:
    """Rows in one order, each once, and how often it counts; ``None`` where all count once.

    A weight is then the same as repeated rows also for what depends on the order of rows: starts.
    """
    counts = np.ones(len(X)) if weights is None else weights.astype(float)
    kept = counts > 0
    X = X[kept]
    order = np.lexsort(X.T[::-1])
    X = X[order]
    both_missing = np.isnan(X[1:]) & np.isnan(X[:-1])
    first = np.r_[True, ((X[1:] != X[:-1]) & ~both_missing).any(1)]
    counts = np.add.reduceat(counts[kept][order], np.flatnonzero(first))
    X = X[first]
    if len(X) == 1:  # two halves of a row are that row, and families take two rows or more
        X = np.repeat(X, 2, 0)
        counts = np.repeat(counts / 2, 2)
    return X, None if (counts == 1).all() else counts


def _repeats(model: Any, counts: NDArray) -> bool:
    """Whether rows are better repeated: a closed form and some families take no weights."""
    if (counts != counts.round()).any():
        return False
    steps = (model.expect, model.initialize) if isinstance(model, SupportsEM) else ()
    weighted = all("weights" in inspect.signature(step).parameters for step in steps)
    return isinstance(model, Solvable) or not weighted


def checked_weights(weights: ArrayLike | None, X: NDArray) -> NDArray | None:
    """How often rows count, ``(N,)``, finite and not negative."""
    if weights is None:
        return None
    found = check_array(weights, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if found.shape == (len(X),) and not found.any():
        raise ValueError(
            "expected sample_weight of which some are positive, got zero for each row; leave it "
            "out to count each row once"
        )
    if found.shape != (len(X),) or (found < 0).any():
        raise ValueError(
            f"expected sample_weight of shape ({len(X)},), not negative, got {found.shape} with "
            f"values from {found.min():g}; say how often each row counts"
        )
    return found
