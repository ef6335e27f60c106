"""One function finds a place within every support: what it gives, the support takes."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints as torchs

import probgen as pg
from probgen import heads
from probgen.core.inside import inside, point_inside
from probgen.core.unions import AnyOf, OfAnyState, WithAtoms
from probgen.distributions.codes import CodeDistribution
from probgen.distributions.sequences.ends import or_padding
from probgen.nn import Constant

BOUNDS = torch.tensor([0.0, 5.0, -3.0])
CAT = torchs.cat([torchs.positive, torchs.integer_interval(3, 5)], -1, [2, 1])


class Rounded(torchs.Constraint):
    """A support to which no map leads."""

    def check(self, value):
        return value == value.round()


# a support and the shape of its events
SUPPORTS = {
    "real": (torchs.real, ()),
    "positive": (torchs.positive, ()),
    "far from zero": (torchs.greater_than(1e9), ()),
    "at least": (torchs.greater_than_eq(-1e9), ()),
    "less": (torchs.less_than(-4.0), ()),
    "interval": (torchs.interval(7.0, 8.0), ()),
    "half open": (torchs.half_open_interval(7.0, 8.0), (2,)),
    "counts": (torchs.nonnegative_integer, (2, 3)),
    "counts from one": (torchs.positive_integer, ()),
    "levels": (torchs.integer_interval(3, 9), ()),
    "whole": (dist.constraints.integer, ()),
    "flags": (torchs.boolean, (4,)),
    "one-hot": (torchs.one_hot, (2, 3)),
    "multinomial": (torchs.multinomial(5), (3,)),
    "multinomial of rows": (torchs.multinomial(torch.tensor([5, 2])), (3,)),
    "simplex": (torchs.simplex, (3,)),
    "Cholesky factor": (torchs.lower_cholesky, (2, 2)),
    "correlations": (torchs.corr_cholesky, (3, 3)),
    "ordered": (dist.constraints.ordered_vector, (3,)),
    "independent": (torchs.independent(torchs.positive, 2), (2, 3)),
    "bounds of rows": (torchs.greater_than(BOUNDS), ()),
    "bounds of entries": (torchs.independent(torchs.interval(BOUNDS, BOUNDS + 1), 1), (3,)),
    "columns": (torchs.independent(CAT, 1), (3,)),
    "columns of steps": (torchs.independent(CAT, 2), (4, 3)),
    "columns, one with an atom": (
        torchs.independent(torchs.cat([WithAtoms(torchs.positive, (0.0,)), CAT], -1, [1, 3]), 1),
        (4,),
    ),
    "stacked": (torchs.stack([torchs.positive, torchs.integer_interval(3, 5)], -1), (2,)),
    "mixture": (torchs.MixtureSameFamilyConstraint(torchs.independent(torchs.positive, 1)), (3,)),
    "mixture of bounds": (
        torchs.MixtureSameFamilyConstraint(torchs.interval(torch.zeros(2), torch.ones(2))),
        (),
    ),
    "any state": (OfAnyState(torchs.interval(BOUNDS, BOUNDS + 1), 0), ()),
    "any state of vectors": (
        torchs.independent(OfAnyState(torchs.greater_than(BOUNDS[:, None]), 1), 1),
        (2,),
    ),
    "union": (AnyOf([torchs.positive, torchs.interval(-2.0, -1.0)]), ()),
    "union of columns and rows": (
        AnyOf([torchs.independent(CAT, 1), torchs.independent(torchs.real, 1)]),
        (3,),
    ),
    "union with what has no map": (AnyOf([Rounded(), torchs.greater_than(3.0)]), ()),
    "atoms": (WithAtoms(torchs.interval(2.0, 3.0), (0.0,)), ()),
    "atoms of counts": (WithAtoms(torchs.positive_integer, (-1.0,)), (2,)),
    "union of atoms": (AnyOf([WithAtoms(torchs.positive, (0.0,))] * 2), ()),
    "padding": (or_padding(torchs.independent(torchs.positive, 1), -1.0), (3,)),
    "at most": (heads.TruncatedGaussian(high=-1e3)(torch.zeros(2)).support, (1,)),
    "between": (heads.Beta(low=10.0, high=11.0)(torch.zeros(2)).support, (1,)),
    "codes": (CodeDistribution([torch.zeros(3)], torch.zeros(2), torch.ones(2)).support, (5,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("support", "event"), SUPPORTS.values(), ids=SUPPORTS.keys())
def test_the_point_is_in_the_support(support, event, dtype):
    point = point_inside(support, torch.Size(event), torch.zeros((), dtype=dtype))
    assert point.dtype == dtype
    assert point.shape[point.ndim - len(event) :] == event
    assert support.check(point).all()


def test_what_has_no_map_is_said_so_or_zero():
    with pytest.raises(NotImplementedError):
        point_inside(Rounded(), torch.Size([2]), torch.zeros(()))

    class Odd(dist.Normal):
        support = Rounded()

    assert inside(Odd(torch.zeros(()), 1.0), torch.ones(2)) == 0


def amount():
    return heads.ZeroInflated(head=heads.LogNormal())


# what once looked for the point itself: gradients with missing entries are finite
USES = {
    "normal mixtures": lambda: heads.MixtureOfGaussians(Constant(12), components=2),
    "atoms": lambda: heads.ZeroInflated(Constant(6), head=heads.LogNormal()),
    "mixture of columns": lambda: pg.Mixture(
        [
            heads.Mixed(Constant(6), [amount(), amount()]),
            heads.Mixed(Constant(6), [amount(), amount()]),
        ]
    ),
    "one entry after the other": lambda: pg.NADE(2, 3, heads.LogNormal()),
    "masked": lambda: pg.MADE(2, [3], heads.Gamma()),
}


@pytest.mark.parametrize("make", USES.values(), ids=USES.keys())
def test_missing_entries_leave_gradients_finite(make):
    torch.manual_seed(0)
    gen = make()
    gen().log_prob(torch.tensor([[0.5, math.nan], [1.5, 2.5]])).sum().backward()
    grads = [parameter.grad for parameter in gen.parameters() if parameter.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_rows_outside_of_one_component_leave_gradients_finite():
    class Away(pg.DistributionModule):
        """Positive numbers and labels of three levels."""

        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(5))

        def forward(self, context=None):
            columns = heads.Mixed(None, [heads.LogNormal(), heads.Categorical(levels=3)])
            return columns(self.raw)

    near = heads.Mixed(Constant(5), [heads.Gaussian(), heads.Categorical(levels=3)])
    gen = pg.Mixture([near, Away()])
    values = gen().log_prob(torch.tensor([[-1.0, 2.0], [1.0, 0.0]]))
    values.sum().backward()
    alone = near().log_prob(torch.tensor([[-1.0, 2.0]])) + math.log(0.5)
    torch.testing.assert_close(values[:1], alone)
    assert all(parameter.grad.isfinite().all() for parameter in gen.parameters())
