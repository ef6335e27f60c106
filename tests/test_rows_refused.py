"""Rows with dims between the row and its event are refused by every family, in one sentence."""

import pytest
import torch
from torch import nn
from zoo import ZOO, Member

import probgen as pg
from probgen.core.program import Program


def with_a_dim_between(batch: tuple) -> tuple:
    return batch[0].unsqueeze(1), *batch[1:]


FAMILIES = [member for member in ZOO if not member.name.startswith("Program")]


@pytest.mark.table(quick=19)
@pytest.mark.parametrize("member", FAMILIES, ids=lambda member: member.name)
def test_a_dim_between_rows_and_events_is_refused(member: Member):
    gen, batch = member.gen(), member.data()
    assert not isinstance(gen, Program)
    wrong = with_a_dim_between(batch)
    expected = "expected x of shape|x of shape"
    with pytest.raises(ValueError, match=expected):
        gen.model(*wrong)
    objective = member.objective() if member.objective else None
    with pytest.raises(ValueError, match=expected):
        pg.fit(gen, wrong, objective, steps=1, verdict=False, progress=False)


@pytest.mark.parametrize("rows", [1, 6])
def test_the_sentence_says_what_to_do(rows):
    gen = pg.heads.Gaussian(pg.nn.Constant(6))
    with pytest.raises(
        ValueError,
        match=r"expected x of shape \(N, 3\), .*got \(\d, 1, 3\).*x.reshape\(len\(x\), 3\)",
    ):
        pg.log_likelihood(gen, torch.zeros(rows, 1, 3))


def test_a_head_of_scalars_refuses_columns():
    gen = pg.VAE(
        pg.standard_normal(2),
        pg.heads.Gaussian(nn.Linear(2, 2)),
        pg.heads.Gaussian(nn.Linear(1, 4)),
    )
    assert pg.log_likelihood(gen, torch.zeros(5, 1)).value.shape == (5,)
    with pytest.raises(ValueError, match="expected x of shape"):
        pg.log_likelihood(gen, torch.zeros(5, 1, 1))
