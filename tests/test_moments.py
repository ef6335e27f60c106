"""Means and variances that have no closed form: refused with advice that gives them."""

import pytest
import torch

import probgen as pg

NO_MOMENTS = {
    "Marginal": lambda: pg.GammaPoisson(2),
    "Autoregressive": lambda: pg.MADE(2, [4], pg.heads.Gaussian()),
    "Pushforward": lambda: pg.MAF(2, hidden=(4,)),
    "HawkesEvents": lambda: pg.sequences.HawkesProcess(1, horizon=5.0, most=40),
    "GaussianDiffused": lambda: pg.Diffusion(pg.nn.TimeMLP(2, [4]), (2,)),
}


@pytest.mark.parametrize("name", NO_MOMENTS)
@pytest.mark.parametrize(("moment", "call"), [("mean", "mean"), ("variance", "var")])
def test_what_has_no_closed_form_says_how_to_get_it(name, moment, call):
    torch.manual_seed(0)
    distribution = NO_MOMENTS[name]()()
    with pytest.raises(NotImplementedError) as told:
        getattr(distribution, moment)
    assert f"whose {moment} has a closed form, got {name}; " in str(told.value)
    advice = str(told.value).rpartition(": ")[2]
    assert advice == f"distribution.sample((1000,)).{call}(0)"
    found = eval(advice.replace("1000", "3"), {"distribution": distribution})
    assert found.shape == distribution.event_shape
