"""Columns are prepared for a family and its scores stay densities of the raw data."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from probgen.core.columns import AFFINE, ASINH, LOG, LOGIT, examine, resolution
from probgen.core.module import DistributionModule, standard_normal
from probgen.diagnostics.column_advice import column_advice
from probgen.diagnostics.verdict import verdict
from probgen.distributions.flows.columns import ColumnMaps
from probgen.distributions.rounded import Rounded
from probgen.heads import Gaussian
from probgen.infer.impute import impute
from probgen.models.autoregressive_flow import MAF
from probgen.models.factor_analysis import FactorAnalysis
from probgen.models.preprocessed import Preprocessed
from probgen.nn import MLP, Constant
from probgen.scoring import log_likelihood
from probgen.train.fit import fit
from probgen.train.saved import load, save

N = 2000


def columns():
    """A column of each kind, the map that it needs and the advice that names it."""
    numbers = torch.Generator().manual_seed(0)
    uniform = torch.rand(N, generator=numbers)
    normal = torch.randn(N, generator=numbers)
    bounded = (
        torch.from_numpy(stats.beta(0.4, 0.3).ppf(uniform.double())).float().clamp(1e-6, 1 - 1e-6)
    )
    tails = torch.from_numpy(stats.t(2).ppf(uniform.double().clamp(1e-6, 1 - 1e-6))).float()
    return {
        "normal": (normal, AFFINE, 0.0, None),
        "far off": (1e4 + 3e4 * normal, AFFINE, 0.0, "standardize it"),
        "small": (1e-5 * normal, AFFINE, 0.0, "standardize it"),
        "bounded": (bounded, LOGIT, 0.0, "piles up at the ends"),
        "positive": ((1.5 * normal).exp(), LOG, 0.0, "its log gains"),
        "heavy tails": (tails, ASINH, 0.0, "its asinh gains"),
        "counts": (
            torch.poisson(torch.full((N,), 40.0), generator=numbers),
            AFFINE,
            1.0,
            "in steps of 1",
        ),
        "hundredths": ((3 + 0.2 * normal).mul(100).round() / 100, AFFINE, 0.01, "in steps of 0.01"),
        "tens": ((normal * 5).round() * 10, AFFINE, 10.0, "in steps of 10"),
    }


@pytest.mark.parametrize("case", columns())
def test_columns_are_told_apart_and_brought_to_order_one(case):
    x, kind, step, _ = columns()[case]
    found = examine(x)
    assert (found.map, found.resolution) == (kind, pytest.approx(step))
    maps = ColumnMaps.of(x[:, None])
    y = maps()(x[:, None] + maps.resolution / 2)
    assert abs(y.mean()) < 0.1 and y.std().item() == pytest.approx(1, abs=0.15)
    torch.testing.assert_close(
        maps().inv(y), x[:, None] + maps.resolution / 2, rtol=1e-4, atol=1e-4 * x.std().item()
    )


@pytest.mark.parametrize("case", columns())
def test_slopes_of_the_maps_are_those_of_autograd(case):
    x = columns()[case][0][:50, None].double()
    maps = ColumnMaps.of(columns()[case][0][:, None]).double()
    x = x.requires_grad_()
    y, ladj = maps().call_and_ladj(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ladj, slope.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(maps().inverse_and_ladj(y)[1], -slope.log(), rtol=1e-5, atol=1e-5)


def advice(gen, *batch):
    return " ".join(finding.text for finding in column_advice(gen, *batch))


@pytest.mark.parametrize("case", columns())
def test_advice_names_the_column_and_what_to_do_until_it_is_done(case):
    x, _, _, words = columns()[case]
    rows = torch.stack([torch.randn(N), x], 1)
    gen = standard_normal(2)
    found = advice(gen, rows)
    assert (words in found and "1 of x" in found) if words else not found
    assert not column_advice(Preprocessed.fitted(gen, rows), rows)
    assert (words or "loss") in str(verdict(gen, rows)) or not words


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(100), "1 of x does not vary"),
        (torch.randn(100).clamp(min=0.0), "of the rows: a density has no bound on points"),
    ],
)
def test_columns_that_no_map_helps_have_advice(x, words):
    assert words in advice(standard_normal(2), torch.stack([torch.randn(100), x], 1))


def test_contexts_far_from_one_have_advice():
    x, context = torch.randn(100, 2), 1e4 * torch.randn(100, 3)
    gen = Gaussian(MLP(3, (4,), 4))
    assert advice(gen, x, context).startswith("columns: 0, 1, 2 of context has mean")
    found = verdict(gen, x, context)
    assert not found.ok and "of context has mean" in str(found)
    assert not column_advice(Preprocessed.fitted(gen, x, context), x, context)


def test_the_grid_of_rounded_and_unrounded_columns():
    x = torch.randn(500)
    assert resolution((x * 1000).round().unique().double() / 1000) == pytest.approx(0.001)
    assert resolution(x.double().unique()) == 0
    assert resolution(torch.tensor([1e9, 3e9, 7e9]).double()) == 1e6


def test_densities_integrate_to_one_in_the_units_of_the_data():
    """A density on (0, infinity) beside one of a grid: an integral times a sum over the steps."""
    positive, counts = columns()["positive"][0], columns()["hundredths"][0]
    gen = Preprocessed.fitted(standard_normal(2), torch.stack([positive, counts], 1))
    x = torch.logspace(-4, 4, 4001, dtype=torch.double).float()
    steps = torch.arange(1.5, 4.5, 0.01)
    middle = torch.tensor(counts.median())
    mass = gen().log_prob(torch.stack([torch.full_like(steps, 1.0), steps], 1)).exp()
    other = gen().log_prob(torch.tensor([[1.0, middle]]).expand(4000, 2)).exp().mean()
    along = gen().log_prob(torch.stack([x, middle.expand(4001)], 1)).exp()
    share = torch.trapezoid(along, x) * (mass.sum() * 0.01) / other
    assert share.item() == pytest.approx(1, abs=0.05)


def test_a_grid_of_integers_has_the_probabilities_of_the_steps():
    distribution = Rounded(dist.Normal(torch.tensor([3.0]), 2.0).to_event(1), torch.tensor([1.0]))
    k = torch.arange(-4.0, 10.0)[:, None]
    found = distribution.expand((14,)).log_prob(k.expand(20_000, 14, 1)).exp().mean(0)
    expected = stats.norm.cdf(k[:, 0] + 1, 3, 2) - stats.norm.cdf(k[:, 0], 3, 2)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=0.02, atol=1e-4)
    drawn = distribution.sample((50_000,)).flatten()
    shares = torch.stack([(drawn == value).float().mean() for value in k[:, 0]])
    torch.testing.assert_close(shares, torch.from_numpy(expected).float(), rtol=0, atol=0.01)


def test_log_prob_of_a_prepared_normal_is_that_of_scipy():
    x = columns()["positive"][0][:, None]
    gen = Preprocessed.fitted(standard_normal(1), x)
    log = x[:, 0].double().log()
    distribution = stats.lognorm(log.std(correction=0).item(), scale=log.mean().exp().item())
    found = log_likelihood(gen, x)
    assert found.kind == "exact"
    torch.testing.assert_close(
        found.value.double(), torch.from_numpy(distribution.logpdf(x[:, 0])), rtol=1e-4, atol=1e-4
    )


def flow_of_mixed_columns(context=0):
    return MAF(4, context=context, layers=2, hidden=(16,))


def mixed_rows():
    some = columns()
    return torch.stack(
        [some[name][0] for name in ("bounded", "heavy tails", "counts", "far off")], 1
    )


def test_prepared_families_train_score_sample_and_are_saved(tmp_path):
    x = mixed_rows()
    context = x[:, 3:] * 3 + 1e4
    gen = Preprocessed.fitted(flow_of_mixed_columns(1), x, context)
    history = fit(
        gen,
        (x, context),
        steps=60,
        batch_size=200,
        compile=False,
        seed=0,
        progress=False,
        verdict=False,
    )
    assert history.loss[-1] < history.loss[0]
    score = log_likelihood(gen, x[:200], context[:200])
    assert score.kind == "unbiased" and score.value.isfinite().all()
    drawn = gen(context[:500]).sample()
    assert ((drawn[:, 0] >= 0) & (drawn[:, 0] <= 1)).all() and (drawn[:, 2] % 1 == 0).all()
    save(gen, tmp_path / "gen.safetensors")
    other = load(tmp_path / "gen.safetensors")
    torch.manual_seed(0)
    expected = gen(context).log_prob(x)
    torch.manual_seed(0)
    torch.testing.assert_close(other(context).log_prob(x), expected)


def test_scores_do_not_depend_on_the_units_of_contexts():
    x = torch.randn(300, 2)
    context = x[:, :1] + 0.1 * torch.randn(300, 1)
    torch.manual_seed(0)
    plain = Preprocessed.fitted(Gaussian(MLP(1, (8,), 4)), x, context)
    torch.manual_seed(0)
    scaled = Preprocessed.fitted(Gaussian(MLP(1, (8,), 4)), x, 1e4 * context + 7e4)
    found = scaled(1e4 * context + 7e4).log_prob(x)
    torch.testing.assert_close(found, plain(context).log_prob(x), rtol=1e-3, atol=1e-3)


def test_missing_cells_are_integrated_out_and_filled_in():
    x = mixed_rows()
    x[::3, 1] = torch.nan
    gen = Preprocessed.fitted(Gaussian(Constant(8)), x)
    torch.manual_seed(0)
    whole = gen().log_prob(x)
    assert whole.isfinite().all()
    alone = x.clone()
    alone[:, [0, 2, 3]] = torch.nan
    assert (gen().log_prob(alone)[::3] == 0).all()


def test_imputation_is_that_of_the_family_on_the_grid():
    x = torch.randn(500, 3)
    x = torch.stack([x[:, 0].exp(), (5 * (x[:, 0] + 0.1 * x[:, 1])).round(), x[:, 2]], 1)
    gen = Preprocessed.fitted(FactorAnalysis(3, factors=1), x, dequantize=False)
    rows = x[:20].clone()
    rows[:, 1] = torch.nan
    done = impute(gen, rows, draws=50)
    assert done.draws.isfinite().all() and torch.equal(
        done.draws[..., 0], rows[:, 0].expand(50, 20)
    )


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.randn(20), r"expected x of shape \(N, D\), got \(20,\)"),
        (torch.stack([torch.randn(20), torch.ones(20)], 1), r"constant or missing ones at \[1\]"),
    ],
)
def test_rows_that_cannot_be_prepared_are_refused(x, words):
    with pytest.raises(ValueError, match=words):
        Preprocessed.fitted(standard_normal(2), x)


class Degenerate(DistributionModule):
    """A family that takes what it is given, to see it."""

    context_size = 0

    def __init__(self):
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(1))

    def forward(self, context=None):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)


def test_values_out_of_range_are_refused_by_row():
    gen = Preprocessed.fitted(Degenerate(), columns()["bounded"][0][:, None])
    with pytest.raises(ValueError, match="row 1"):
        log_likelihood(gen, torch.tensor([[0.5], [1.5]]))
    assert math.isfinite(log_likelihood(gen, torch.tensor([[0.0], [1.0]])).mean)
