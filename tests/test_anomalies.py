"""P-values of rows: valid, comparable with missing cells, and told apart by column."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import probgen as pg
from probgen.core.missing import MissingAware
from probgen.core.module import Fixed
from probgen.decisions import (
    LikelihoodRatio,
    LogLikelihood,
    Typicality,
    Uniformity,
    conformal_p_values,
    false_discovery_threshold,
)
from probgen.decisions.anomalies import log_kernel_density


def aware(loc, scale):
    return MissingAware(dist.Normal(loc, scale), 1)


def independent(dims=3, scale=1.0):
    return Fixed(aware, loc=torch.zeros(dims), scale=float(scale))


def correlated(rho=0.9):
    """Two columns that go together, exactly."""
    gen = pg.GaussianMixture(1, 2)
    draw = torch.Generator().manual_seed(5)
    pg.em(gen, related(4000, draw, rho), seed=0)
    return gen


def related(count, draw, rho=0.9):
    z = torch.randn(count, 2, generator=draw)
    return torch.stack([z[:, 0], rho * z[:, 0] + (1 - rho**2) ** 0.5 * z[:, 1]], 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_p_values_are_ranks():
    usual, scores = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 9.0])
    assert conformal_p_values(scores, usual).tolist() == [0.2, 0.4, 0.8, 1.0]
    assert conformal_p_values(torch.tensor([torch.nan, -torch.inf]), usual)[0].isnan()


STATISTICS = {
    "density": (),
    "typicality": (Typicality(),),
    "ratio": (LikelihoodRatio(independent(scale=2.0)),),
    "states": (LogLikelihood(), LikelihoodRatio(independent(scale=2.0))),
    "of one's own": (lambda gen, x: -x.abs().amax(1),),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("statistics", STATISTICS.values(), ids=STATISTICS)
def test_p_values_of_usual_rows_are_uniform_whatever_the_statistic(statistics):
    """Averaged over calibrations: each has an error of its own that all its p-values share."""
    draw = generator()
    shares = []
    for _ in range(20):
        x = torch.randn(400, 3, generator=draw)
        found = pg.AnomalyDetector(independent(), x[:200], statistics=statistics).p_values(x[200:])
        shares.append([(found <= level).double().mean().item() for level in (0.05, 0.2, 0.5)])
    means, errors = np.mean(shares, 0), np.std(shares, 0) / 20**0.5
    assert (means < np.array([0.05, 0.2, 0.5]) + 3 * errors).all()
    assert (means > np.array([0.05, 0.2, 0.5]) - 3 * errors - 0.011).all()


def test_scores_order_what_p_values_cannot():
    detector = pg.AnomalyDetector(independent(), torch.randn(99, 3, generator=generator()))
    x = torch.tensor([[9.0, 0.0, 0.0], [20.0, 0.0, 0.0]])
    assert detector.p_values(x).tolist() == [0.01, 0.01]
    torch.testing.assert_close(
        detector.scores(x).float(), pg.log_likelihood(independent(), x).value
    )


def test_the_density_of_states_is_two_sided():
    draw = generator()
    x = torch.randn(600, 64, generator=draw)
    middle = torch.zeros(1, 64)  # the mode: far too likely
    gen = independent(64)
    assert pg.AnomalyDetector(gen, x).p_values(middle).item() == 1.0
    for statistics in ((Typicality(),), (LogLikelihood(), Typicality())):
        found = pg.AnomalyDetector(gen, x, statistics=statistics).p_values(middle)
        assert found.item() < 0.01


def test_a_kernel_density_is_that_of_scipy():
    x = torch.randn(50, generator=generator(), dtype=torch.float64)
    at = torch.linspace(-3, 3, 7, dtype=torch.float64)
    low, high = np.quantile(x, [0.25, 0.75])
    spread = min(x.std(correction=0).item(), (high - low) / 1.34)
    width = 0.9 * spread * 50**-0.2 / x.std().item()  # scipy counts in deviations of the rows
    expected = scipy.stats.gaussian_kde(x.numpy(), bw_method=width).logpdf(at.numpy())
    np.testing.assert_allclose(log_kernel_density(at, x), expected, rtol=1e-6)


def test_a_ratio_forgets_what_both_models_know():
    background, gen = independent(scale=2.0), independent()
    x = torch.randn(5, 3, generator=generator())
    expected = scipy.stats.norm(0, 1).logpdf(x) - scipy.stats.norm(0, 2).logpdf(x)
    found = LikelihoodRatio(background)(gen, x)
    np.testing.assert_allclose(found, expected.sum(1), atol=1e-5)


def test_rows_with_missing_cells_meet_their_like():
    """Against the comparison written out: calibration rows without the same cells."""
    draw = generator(3)
    gen, usual = correlated(), related(300, draw)
    detector = pg.AnomalyDetector(gen, usual)
    x = related(40, draw)
    x[:20, 1] = torch.nan
    found = detector.p_values(x)
    hidden = usual.clone()
    hidden[:, 1] = torch.nan
    for rows, calibration in ((slice(0, 20), hidden), (slice(20, 40), usual)):
        own = pg.log_likelihood(gen, x[rows]).value
        others = pg.log_likelihood(gen, calibration).value
        expected = (1 + (others[None] <= own[:, None]).sum(1)) / 301
        np.testing.assert_allclose(found[rows], expected)
    assert detector.p_values(torch.full((1, 2), torch.nan)).item() == 1.0


def test_calibration_rows_lend_what_they_have():
    usual = torch.randn(100, 3, generator=generator())
    usual[:60, 0] = torch.nan
    detector = pg.AnomalyDetector(independent(), usual)
    found = detector.p_values(torch.tensor([[torch.nan, 0.1, 9.0]]))
    assert found.item() == pytest.approx(1 / 101)  # all rows have columns 1 and 2
    usual[:, 0] = torch.nan
    with pytest.raises(ValueError, match="every cell that a row has"):
        pg.AnomalyDetector(independent(), usual).p_values(torch.zeros(1, 3))


def test_discoveries_are_those_of_scipy():
    draw = np.random.default_rng(0)
    for rate in (0.05, 0.2, 0.5):
        values = np.concatenate([draw.random(50), draw.random(20) / 50])
        mine = values <= false_discovery_threshold(torch.tensor(values), rate)
        theirs = scipy.stats.false_discovery_control(values, method="bh") <= rate
        assert (mine == theirs).all()


def test_few_of_the_discoveries_are_false():
    draw = generator(7)
    gen, shares, power = independent(), [], []
    for _ in range(30):
        detector = pg.AnomalyDetector(gen, torch.randn(1000, 3, generator=draw))
        x = torch.randn(200, 3, generator=draw)
        x[:20] *= 4
        found = detector.detect(x, false_discovery_rate=0.2)
        shares.append(found.anomalous[20:].sum().item() / max(1, found.anomalous.sum().item()))
        power.append(found.anomalous[:20].double().mean().item())
    assert np.mean(shares) < 0.2 + 3 * np.std(shares) / 30**0.5
    assert np.mean(shares) > 0.1  # 0.18 is expected: 90 % of the rows are usual
    assert np.mean(power) > 0.5


def test_what_cannot_be_found_is_told():
    detector = pg.AnomalyDetector(independent(), torch.randn(99, 3, generator=generator()))
    found = detector.detect(torch.zeros(50, 3), false_discovery_rate=0.1)
    assert found.fewest == 5  # 50 p-values of 0.01 at least: five of them pass 0.1 * 5 / 50
    assert not found.anomalous.any()
    assert "fewer than 5" in str(found)
    one = torch.cat([torch.zeros(46, 3), torch.full((4, 3), 9.0)])
    assert not detector.detect(one).anomalous.any()
    five = torch.cat([torch.zeros(45, 3), torch.full((5, 3), 9.0)])
    assert detector.detect(five).anomalous.sum() == 5
    with pytest.warns(UserWarning, match="nothing can be found"):
        detector.detect(torch.zeros(2, 3), false_discovery_rate=0.001)


def test_uniformity_is_the_test_of_two_samples():
    """Against SciPy's, of the scores themselves."""
    draw = generator(1)
    for shift in (0.0, 0.2, 0.5):
        usual, x = torch.randn(300, 3, generator=draw), torch.randn(200, 3, generator=draw)
        x = x * (1 + shift)
        detector = pg.AnomalyDetector(independent(), usual)
        found = detector.uniformity(x)
        scores = [pg.log_likelihood(independent(), rows).value.numpy() for rows in (x, usual)]
        expected = scipy.stats.ks_2samp(*scores, method="asymp")
        assert found.gap == pytest.approx(expected.statistic, abs=0.006)
        assert found.p_value == pytest.approx(expected.pvalue, abs=0.05)
        assert found.p_value < 0.01 or shift < 0.5
        share, error = found.false_alarms[0.05]
        assert share == (found.p_values <= 0.05 + 1e-12).double().mean().item()
        assert error == pytest.approx((0.05 * 0.95 * (1 / 300 + 1 / 200)) ** 0.5)


def test_uniform_p_values_pass_as_often_as_they_should():
    draw = generator(2)
    low = 0
    for _ in range(200):
        usual, x = torch.randn(80, generator=draw), torch.randn(60, generator=draw)
        low += Uniformity.of(conformal_p_values(x, usual), 80).p_value < 0.1
    assert 5 <= low <= 32  # 20 expected


def test_the_column_that_the_others_contradict_is_to_blame():
    draw = generator(4)
    gen = correlated()
    detector = pg.AnomalyDetector(gen, related(500, draw))
    x = torch.tensor([[2.0, -1.5], [0.0, 0.1]])
    found = detector.blame(x)
    assert found.kind == "exact"
    # log p(x1 | x2) of the normal distribution that was fitted
    mean, covariance = gen.means[0].detach(), gen.covariances[0].detach()
    slope = covariance[0, 1] / covariance[1, 1]
    given = scipy.stats.norm(
        (mean[0] + slope * (x[:, 1] - mean[1])).numpy(),
        (covariance[0, 0] - slope * covariance[0, 1]).sqrt().item(),
    )
    np.testing.assert_allclose(found.value[:, 0], given.logpdf(x[:, 0].numpy()), atol=1e-3)
    assert found.p_values[0].max() < 0.01 < found.p_values[1].min()


def test_blame_is_by_rank_and_by_name():
    """A column with a wide spread has low densities always: it is not to blame for that."""
    scale = torch.tensor([1.0, 100.0, 1.0])
    gen = Fixed(aware, loc=torch.zeros(3), scale=scale)
    usual = scale * torch.randn(300, 3, generator=generator())
    detector = pg.AnomalyDetector(gen, usual)
    frame = pd.DataFrame({"a": [0.0, 9.0], "b": [0.0, 0.0], "c": [8.0, np.nan]})
    found = detector.blame(torch.tensor(frame.to_numpy(np.float32)))
    assert found.columns == ["column 2", "column 0"]
    assert found.value[1, 2].isnan()
    assert detector.blame(frame).columns == ["c", "a"]
    assert list(detector.blame(frame).to_frame().columns) == ["a", "b", "c"]


def test_a_row_without_cells_has_no_column_to_blame():
    detector = pg.AnomalyDetector(independent(), torch.randn(99, 3, generator=generator()))
    nothing = torch.full((1, 3), torch.nan)
    assert detector.blame(torch.cat([nothing, torch.tensor([[0.0, 9.0, 0.0]])])).columns == [
        None,
        "column 1",
    ]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_usual_rows_of_few_values_are_believed_and_others_are_not(levels):
    """Rows that score alike tie: the gap is that of scipy's test of the scores."""
    gen = Fixed(dist.Categorical, logits=torch.tensor([0.6, 0.3, 0.1]).log()[:levels].expand(1, -1))
    draw = generator()
    masses = gen().base_dist.probs[0]
    usual, x = (
        torch.multinomial(masses, n, True, generator=draw)[:, None].float() for n in (300, 200)
    )
    found = pg.AnomalyDetector(gen, usual).uniformity(x)
    scores = [gen().log_prob(each).numpy() for each in (x, usual)]
    truth = scipy.stats.ks_2samp(*scores).statistic
    assert found.gap == pytest.approx(truth, abs=0.01)
    assert found.p_value > 0.01
    if levels > 1:
        rare = torch.full((200, 1), levels - 1.0)
        assert pg.AnomalyDetector(gen, usual).uniformity(rare).p_value < 0.01


def test_columns_cannot_be_blamed_by_what_needs_complete_rows():
    detector = pg.AnomalyDetector(pg.MAF(2, layers=1, hidden=(4,)), torch.randn(30, 2))
    with pytest.raises(NotImplementedError, match="blame columns by a GaussianMixture"):
        detector.blame(torch.zeros(1, 2))


@pytest.mark.slow
def test_tables_are_judged_in_frames():
    draw = np.random.default_rng(0)
    size = draw.normal(0.0, 1.0, 600)
    frame = pd.DataFrame({"size": size, "kind": np.where(size > 0, "big", "small")})
    table = pg.Table.read(frame)
    torch.manual_seed(0)
    heads = table.heads()
    gen = pg.Tabular(table, pg.AutoregressiveTable(heads, [16]))
    how = {"steps": 150, "optimizer": pg.train.adam(0.04), "compile": False, "seed": 0}
    pg.fit(gen, frame[:400], batch_size=100, progress=False, verdict=False, **how)
    detector = pg.AnomalyDetector(gen, frame[400:])
    odd = pd.DataFrame({"kind": ["small", "small"], "size": [2.0, -1.0]})
    found = detector.p_values(odd)
    assert found[0] < 0.05 < found[1]


def test_a_saved_detector_says_the_same(tmp_path):
    usual = torch.randn(100, 3, generator=generator())
    background = pg.PPCA(3, factors=1)
    detector = pg.AnomalyDetector(
        pg.PPCA(3, factors=2).solve(usual),
        usual,
        statistics=[LogLikelihood(), LikelihoodRatio(background)],
    )
    pg.save(detector, tmp_path / "detector")
    x = torch.randn(20, 3, generator=generator(1))
    torch.testing.assert_close(pg.load(tmp_path / "detector").p_values(x), detector.p_values(x))


WRONG = {
    "one row": (lambda: pg.AnomalyDetector(independent(), torch.zeros(1, 3)), "some hundreds"),
    "shape": (lambda: pg.AnomalyDetector(independent(), torch.zeros(9, 2)), "expected x of shape"),
    "no model": (lambda: pg.AnomalyDetector(3, torch.zeros(9, 2)), "expected"),
    "statistic": (
        lambda: pg.AnomalyDetector(independent(), torch.zeros(9, 3), statistics=[3]),
        "statistics",
    ),
    "no value of a column": (
        lambda: pg.AnomalyDetector(
            independent(), torch.randn(9, 3).index_fill(1, torch.tensor([2]), torch.nan)
        ).blame(torch.zeros(1, 3)),
        "got none of column 2",
    ),
    "before ties": (
        lambda: Uniformity.of([0.5, 0.6], 9, before_ties=[0.5, 0.7]),
        "p_values or less",
    ),
    "shape of a statistic": (
        lambda: asked(lambda gen, x: x),
        "one for each row",
    ),
    "NaN of a statistic": (lambda: asked(lambda gen, x: x[:, 0] * torch.nan), "NaN in row 0"),
    "rate": (lambda: asked(LogLikelihood(), false_discovery_rate=2.0), "false_discovery_rate"),
    "p-values": (lambda: false_discovery_threshold(torch.tensor([2.0])), "from 0 to 1"),
    "measures": (
        lambda: LikelihoodRatio(Fixed(dist.Poisson, rate=torch.ones(3)))(
            independent(), torch.ones(1, 3)
        ),
        ";",
    ),
}


def asked(statistic, **options):
    detector = pg.AnomalyDetector(independent(), torch.zeros(9, 3), statistics=[statistic])
    return detector.detect(torch.zeros(2, 3), **options)


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_detection_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
