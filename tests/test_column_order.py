"""Narrow matrices stored by columns: which ones, and that nothing else changes."""

import pytest
import torch

from probgen.compile.column_order import order_columns
from probgen.compile.tracing import record_operations

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.linspace(-1, 1, 40)


def regression(b):
    return (Y - X @ b).square().sum()


def gradient(b):
    return X.T @ (X @ b - Y)


def several(b):
    return X @ b.outer(b)


def looked_at(b):
    return (X @ b).sum() + X[3].sum()


def written_to(b):
    X.add_(0.0)
    return X @ b


@pytest.mark.parametrize(
    ("function", "ordered"),
    [
        (regression, True),
        (gradient, True),
        (several, True),
        (looked_at, False),
        (written_to, False),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_what_is_only_multiplied_is_stored_by_columns(function, ordered):
    b = torch.tensor([0.3, -1.0, 2.0])
    recording = record_operations(function, b)
    found = order_columns(recording)
    (place,) = [i for i, value in enumerate(recording.closed_over) if value is X]
    assert (found.closed_over[place].stride() == (1, 40)) == ordered
    assert torch.equal(found.closed_over[place], X)
    torch.testing.assert_close(found(b), function(b))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(11, 3),  # not four times as tall as wide
        torch.randn(4000, 200),
        torch.randn(400, 60).double(),
        torch.randn(3, 40).T,
        torch.randn(40, 1),
        torch.randint(9, (40, 3)),
    ],
    ids=["low", "wide", "wide double", "by columns already", "one column", "integers"],
)
def test_others_stay_as_they_are(x):
    b = torch.ones(x.shape[1], dtype=x.dtype)
    assert order_columns(record_operations(lambda b: x @ b, b)).closed_over[0] is x
