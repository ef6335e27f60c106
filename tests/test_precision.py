"""Values of another precision than a family's own are scored, or refused in one sentence."""

import pytest
import torch
from zoo import ZOO

from probgen.core.kinds import density_kind

TYPES = {torch.float64: "x.float()", torch.int64: "x.float()", torch.float16: "x.float()"}
members = pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)


def made(member):
    torch.manual_seed(0)
    return member.gen(), *member.data()


def scored(distribution, x):
    """Log densities, drawn ones from the same random numbers; ``None`` where there are none."""
    torch.manual_seed(1)
    try:
        return distribution.log_prob(x)
    except NotImplementedError as error:
        return None if "density" in str(error) or "implicit" in str(error) else pytest.fail(error)


def check_same(distribution, found, want):
    """Estimates draw other numbers in another precision."""
    assert found.shape == want.shape and torch.equal(found.isfinite(), want.isfinite())
    if density_kind(distribution) in ("exact", "unnormalized"):
        torch.testing.assert_close(found.to(want), want, rtol=1e-3, atol=1e-3)


@pytest.mark.table(quick=14)
@members
@torch.no_grad()
def test_rows_of_another_precision_are_scored_or_refused_with_advice_that_helps(member):
    gen, x, *context = made(member)
    distribution = gen(*context)
    want = scored(distribution, x)
    if want is None:
        pytest.skip("no density")
    for dtype, advice in TYPES.items():
        given = x.to(dtype)
        if not torch.equal(given.to(x.dtype).nan_to_num(0.5), x.nan_to_num(0.5)):
            continue  # other values
        try:
            found = scored(distribution, given)
        except ValueError as error:
            assert f"got {dtype}; give {advice}" in str(error)
            found = scored(distribution, given.float())
        check_same(distribution, found, want)


@pytest.mark.table(quick=20)
@members
@torch.no_grad()
def test_rows_of_a_model_in_double_precision(member):
    gen, x, *context = made(member)
    gen = gen.double()
    try:
        distribution = gen(*(part.double() for part in context))
        want = scored(distribution, x.double())
    except (RuntimeError, ValueError):
        pytest.skip("no density, or its data are of one type")
    if want is None:
        pytest.skip("no density")
    try:
        found = scored(distribution, x)
    except ValueError as error:
        assert "give x.double(), or turn the model: gen.float()" in str(error)
        return
    check_same(distribution, found, want)
