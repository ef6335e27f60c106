"""Probabilities of classes with their kind, and the decisions that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.core.score import Score

OUTLIER = "outlier"
DOUBT = "doubt"
ANSWER = "answer"


@dataclass(frozen=True)
class ClassPosterior:
    r"""Log-probabilities of classes given rows, :math:`\log p(c \mid x)`.

    Attributes
    ----------
    value : Tensor
        ``(N, C)``, float64; rows sum to 1 in probability. NaN for a row that has no density under
        any class, about which Bayes' rule says nothing.
    kind : str
        ``"exact"`` where all densities are, so that only the models may be wrong; ``"approximate"``
        where a density is an estimate or a bound: their differences have no known sign.
    labels : tuple
        The label of each column.
    density : Score
        :math:`\log p(x) = \log \sum_c p(c)\, p(x \mid c)` of each row, with its own kind.

    >>> density = Score(torch.zeros(1), "exact")
    >>> found = ClassPosterior(torch.tensor([[0.25, 0.75]]).log(), "exact", ("no", "yes"), density)
    >>> found.predict(), found.confidence
    (array(['yes'], dtype='<U3'), tensor([0.7500]))
    """

    value: Tensor
    kind: str
    labels: tuple
    density: Score

    @property
    def probability(self) -> Tensor:
        """Probabilities, ``(N, C)``."""
        return self.value.exp()

    @property
    def confidence(self) -> Tensor:
        """Probability of the most probable class, ``(N,)``."""
        return self.value.amax(-1).exp()

    @property
    def index(self) -> Tensor:
        """Number of the most probable class, ``(N,)``."""
        return self.value.argmax(-1)

    def predict(self) -> np.ndarray:
        """The most probable label of each row, ``(N,)``.

        Raises
        ------
        ValueError
            For rows without a density under any class.
        """
        if (lost := self.value.isnan().any(-1)).any():
            raise ValueError(
                "expected rows with a density under some class, got one that is impossible under "
                f"all, row {int(lost.nonzero()[0])}; leave it out, or let such rows be rejected: "
                "predict(x, outliers=0.01)"
            )
        return as_array(self.labels)[self.index.cpu().numpy()]

    def __repr__(self) -> str:
        return f"ClassPosterior({self.kind}, {len(self.value)} rows, labels {list(self.labels)})"


@dataclass(frozen=True)
class Decision:
    """What a classifier with a reject option says of rows.

    Attributes
    ----------
    labels : numpy.ndarray
        ``(N,)`` of objects: a label, or ``None`` where the row is rejected.
    reasons : numpy.ndarray
        ``(N,)`` of ``"answer"``; ``"outlier"``, the row is like no class; ``"doubt"``, it is like
        several.
    confidence : Tensor
        Probability of the most probable class, ``(N,)``.
    """

    labels: np.ndarray
    reasons: np.ndarray
    confidence: Tensor

    @property
    def coverage(self) -> float:
        """Share of the rows that have an answer."""
        return float((self.reasons == ANSWER).mean())

    def __repr__(self) -> str:
        counts = {reason: int((self.reasons == reason).sum()) for reason in (DOUBT, OUTLIER)}
        return (
            f"Decision({len(self.reasons)} rows, {self.coverage:.1%} answered, {counts[DOUBT]} in "
            f"doubt, {counts[OUTLIER]} like no class)"
        )


def decided(posterior: ClassPosterior, doubtful: Tensor, outlying: Tensor) -> Decision:
    """The decision where some rows are rejected, ``(N,)`` each; to be like no class comes first."""
    outlying = outlying | posterior.value.isnan().any(-1)
    reasons = np.full(len(outlying), ANSWER, dtype="<U7")
    reasons[doubtful.cpu().numpy()] = DOUBT
    reasons[outlying.cpu().numpy()] = OUTLIER
    labels = np.empty(len(outlying), dtype=object)
    for row, index in enumerate(posterior.index.tolist()):
        labels[row] = posterior.labels[index] if reasons[row] == ANSWER else None
    return Decision(labels, reasons, posterior.confidence)


def as_array(labels: Sequence[Any]) -> np.ndarray:
    """Labels as an array of one dim, of objects where they are of several kinds.

    >>> as_array(("a", "b")), as_array((1, "b")), as_array(((0, 1), (2, 3))).shape
    (array(['a', 'b'], dtype='<U1'), array([1, 'b'], dtype=object), (2,))
    """
    if len({type(label) for label in labels}) == 1 and not isinstance(labels[0], tuple):
        return np.asarray(labels)
    found = np.empty(len(labels), dtype=object)
    found[:] = labels
    return found


def indices_of(y: Any, labels: Sequence[Any], name: str = "y") -> Tensor:
    """The numbers of the classes that labels name, ``(N,)``: arrays, tensors, series or lists.

    Raises
    ------
    TypeError
        For what is no sequence of labels.
    ValueError
        For a label that is none of them, a missing one, and columns of labels.

    >>> indices_of(["b", "a", "b"], ("a", "b"))
    tensor([1, 0, 1])
    >>> indices_of(["c"], ("a", "b"))
    Traceback (most recent call last):
    ValueError: expected y among the labels ['a', 'b'], got 'c' in row 0; leave such rows out, or give the...
    """
    given = labels_in(y, name)
    numbers = {label: number for number, label in enumerate(labels)}
    found = []
    for row, label in enumerate(given):
        try:
            found.append(numbers[label])
        except (KeyError, TypeError):
            raise ValueError(
                f"expected {name} among the labels {list(labels)[:10]}, got {label!r} in row "
                f"{row}; leave such rows out, or give the classifier a model of that class"
            ) from None
    return torch.tensor(found, dtype=torch.long)


def labels_in(y: Any, name: str = "y") -> list[Any]:
    """Labels in a list; one-hot ones and columns are refused."""
    if isinstance(y, str | bytes) or not isinstance(y, Sequence):
        tolist = getattr(y, "tolist", None) or getattr(y, "to_list", None)
        if tolist is None or isinstance(y, type):
            raise TypeError(
                f"expected {name} as labels, one for each row, got {type(y).__name__}; give a list, "
                "an array, a series or a tensor"
            )
        if len(shape := tuple(getattr(y, "shape", (0,)))) != 1:
            raise ValueError(
                f"expected {name} of shape (N,), one label for each row, got {shape}; take a "
                "column as y[:, 0], one-hot labels as y.argmax(-1)"
            )
        y = tolist()
    return [label_of(label) for label in y]


def label_of(label: Any) -> Any:
    """A label that equals others of its value: the number in a tensor without dims.

    >>> label_of(torch.tensor(2)), label_of("a")
    (2, 'a')
    """
    return label.item() if torch.is_tensor(label) and label.ndim == 0 else label


def check_class_labels(labels: Sequence[Any]) -> None:
    """Refuses labels that stand for none, and two of one value.

    >>> check_class_labels(("a", None))
    Traceback (most recent call last):
    ValueError: expected labels of classes, got None, which stands for no answer; leave it out, or name it: 'unknown'
    """
    for label in labels:
        if label is None or label != label:
            raise ValueError(
                f"expected labels of classes, got {label}, which stands for no answer; leave it out, "
                "or name it: 'unknown'"
            )
    if len(set(labels)) != len(labels):
        raise ValueError(f"expected labels that differ, got {list(labels)}; name each class once")
