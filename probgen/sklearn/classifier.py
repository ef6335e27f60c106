"""Bayes' rule over any family as a classifier of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length

from probgen.core import checks
from probgen.decisions import classifier
from probgen.decisions.class_posterior import ClassPosterior
from probgen.sklearn.families import Family, FamilyEstimator, array, checked_weights, tensor


class GenerativeClassifier(ClassifierMixin, FamilyEstimator):
    r"""Bayes' rule over a family for each class, :math:`p(c \mid x) \propto p(c)\, p(x \mid c)`.

    Missing entries (NaN) are integrated out by families that do so, and refused by the others.

    Parameters
    ----------
    family : str or callable, optional
        Name of a family of vectors in ``probgen``, its class, or any function that builds one: each
        class has its own. It is given ``dims``, the number of columns, where it takes that. Default:
        a Gaussian with a full covariance, and a regularization of 1e-6 (quadratic discriminant
        analysis).
    family_params : dict, optional
        Other arguments of the family, each of them also the parameter ``family__name``.
    priors : array or list, optional
        Probabilities of the classes up to a factor, ``(C,)`` in the order of ``classes_``; default:
        their shares of the rows of the fit.
    reject : float, optional
        In (0, 1): what it costs to give no answer, where a wrong one costs 1. :meth:`predict` gives
        ``reject_label`` for rows whose probability of an error is larger.
    reject_label : label, optional
        What it gives for them: ``-1``, say, where classes are numbers.
    steps : int
        Of :func:`probgen.fit`, for families that are fitted neither in closed form nor by EM.
    fit_params : dict, optional
        Other arguments of :func:`probgen.fit` or, for families fitted by it, :func:`probgen.em`.
    particles : int
        Draws of latents for each score, where the density is no closed form.
    random_state : int, RandomState or None
        Of first parameters and training.

    Attributes
    ----------
    classes_ : ndarray
        Labels, sorted: ``(C,)``.
    priors_ : ndarray
        Their probabilities, ``(C,)``.
    model_ : probgen.GenerativeClassifier
        The classifier itself, whose labels are places in ``classes_``.

    Raises
    ------
    TypeError, ValueError
        From :meth:`fit`, for parameters, rows and labels that do not fit.

    References
    ----------
    Ng, Jordan (2001), On discriminative vs. generative classifiers: a comparison of logistic
    regression and naive Bayes, https://papers.nips.cc/paper/2020-on-discriminative-vs-generative;
    Chow (1970), On optimum recognition error and reject tradeoff,
    https://doi.org/10.1109/TIT.1970.1054406

    >>> X = np.random.RandomState(0).randn(60, 2) + 4.0 * (np.arange(60) % 2)[:, None]
    >>> clf = GenerativeClassifier().fit(X, ["low", "high"] * 30)
    >>> clf.predict([[0.0, 0.0], [4.0, np.nan]])
    array(['low', 'high'], dtype='<U4')
    """

    def __init__(
        self,
        family: Family = None,
        *,
        family_params: dict[str, Any] | None = None,
        priors: ArrayLike | None = None,
        reject: float | None = None,
        reject_label: Any = None,
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
        self.priors = priors
        self.reject = reject
        self.reject_label = reject_label
        self.particles = particles

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> GenerativeClassifier:
        """Fits a family to the rows of each class, ``(N, D)`` with labels ``(N,)``.

        Weights ``(N,)`` say how often each row counts.
        """
        checks.within("(0, 1)", **checks.given(reject=self.reject))
        checks.at_least(1, particles=self.particles)
        X, y = self._rows_and_labels(X, y)
        weights = checked_weights(sample_weight, X)
        counts = np.ones(len(X)) if weights is None else weights
        X, y, counts = (part[counts > 0] for part in (X, y, counts))
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"expected rows of two classes or more, got {len(self.classes_)} class; to tell "
                "usual rows from others take OutlierDetector"
            )
        self.priors_ = self._priors(np.bincount(index, counts))
        random = check_random_state(self.random_state)
        models = {
            number: self._fit_model(
                X[index == number], counts[index == number], int(random.randint(2**31 - 1))
            )
            for number in range(len(self.classes_))
        }
        shares = dict(enumerate(self.priors_.tolist()))
        self.model_ = classifier.GenerativeClassifier(models, priors=shares).eval()
        return self

    def predict_log_proba(self, X: Any) -> NDArray:
        """Log-probabilities of the classes: ``(N, D) -> (N, C)``."""
        return array(self.log_posterior(X).value)

    def predict_proba(self, X: Any) -> NDArray:
        """Probabilities of the classes: ``(N, D) -> (N, C)``."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> NDArray:
        """The most probable class of each row, ``(N, D) -> (N,)``, or ``reject_label``."""
        found = self.log_posterior(X)
        labels = self.classes_[found.predict()]
        if self.reject is None:
            return labels
        doubtful = array(1 - found.confidence > self.reject)
        labels = labels.astype(_kind_of(labels, self.reject_label))
        labels[doubtful] = self.reject_label
        return labels

    def log_posterior(self, X: Any) -> ClassPosterior:
        """The same log-probabilities with their kind, and the log-likelihoods of the rows."""
        rows = tensor(self._asked(X))
        return self.model_.log_posterior(rows, particles=self.particles, seed=0)

    def _rows_and_labels(self, X: Any, y: Any) -> tuple[NDArray, NDArray]:
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: expected "
                "labels y, got None; give one for each row"
            )
        X = self._rows(X, ensure_min_samples=2)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        return X, y

    def _priors(self, counts: NDArray) -> NDArray:
        given = counts if self.priors is None else np.asarray(self.priors, dtype=float)
        if given.shape != counts.shape or not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(
                f"expected {len(counts)} finite priors > 0, one for each class, got shape "
                f"{given.shape}; leave them out to take the shares of the rows"
            )
        return given / given.sum()


def _kind_of(labels: NDArray, other: Any) -> np.dtype:
    """The dtype of labels that may be another one too: objects, unless they are of one kind."""
    both = np.asarray(other)
    return np.result_type(labels, both) if both.dtype.kind == labels.dtype.kind else np.dtype("O")
