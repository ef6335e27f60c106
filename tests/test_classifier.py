"""Classification by Bayes' rule: against closed forms, other libraries, and the definition."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import log_loss

import probgen as pg
from probgen.core.missing import MissingAware
from probgen.core.module import Fixed
from probgen.decisions import RiskCoverage, calibration_error
from probgen.decisions.temperature import fitted_temperature

NAMES = ("low", "high")


def aware(loc, scale):
    return MissingAware(dist.Normal(loc, scale), 1)


def normal(at, scale=1.0, dims=2):
    return Fixed(aware, loc=torch.full((dims,), float(at)), scale=float(scale))


def two(**options):
    return pg.GenerativeClassifier({"low": normal(0.0), "high": normal(2.0)}, **options)


def rows(count=400, seed=0):
    """Two normal classes of two columns, two apart."""
    draw = torch.Generator().manual_seed(seed)
    index = torch.randint(2, (count,), generator=draw)
    x = torch.randn(count, 2, generator=draw) + 2.0 * index[:, None]
    return x, [NAMES[number] for number in index.tolist()]


def log_densities(x, at=(0.0, 2.0)):
    return np.stack([scipy.stats.norm(m).logpdf(x.double().numpy()).sum(1) for m in at], 1)


def test_posterior_is_bayes_rule():
    x, _ = rows(20)
    clf = two(priors={"high": 3.0, "low": 1.0})
    found = clf.log_posterior(x)
    joint = log_densities(x) + np.log([0.25, 0.75])
    total = scipy.special.logsumexp(joint, 1)
    assert found.kind == "exact"
    assert found.labels == NAMES
    np.testing.assert_allclose(found.value, joint - total[:, None], atol=1e-5)
    np.testing.assert_allclose(found.density.value, total, atol=1e-5)
    assert found.density.kind == "exact"


def test_fitted_gaussians_are_quadratic_discriminant_analysis():
    x, y = rows(300)
    mine = pg.GenerativeClassifier({name: pg.GaussianMixture(1, 2) for name in NAMES}).fit(x, y)
    theirs = QuadraticDiscriminantAnalysis(store_covariance=False).fit(x, y)
    # theirs divides by N - 1: the difference is of that size
    order = [list(theirs.classes_).index(name) for name in NAMES]
    np.testing.assert_allclose(
        mine.log_posterior(x).probability, theirs.predict_proba(x)[:, order], atol=0.02
    )
    share = y.count("high") / 300
    np.testing.assert_allclose(mine.log_prior.exp(), [1 - share, share], atol=1e-12)


def test_missing_features_are_integrated_out():
    x, _ = rows(50)
    half = x.clone()
    half[:, 1] = torch.nan
    clf = two()
    joint = np.stack([scipy.stats.norm(m).logpdf(x[:, 0]) for m in (0.0, 2.0)], 1)
    expected = joint - scipy.special.logsumexp(joint, 1)[:, None]
    np.testing.assert_allclose(clf.log_posterior(half).value, expected, atol=1e-5)
    nothing = torch.full((1, 2), torch.nan)
    np.testing.assert_allclose(clf.log_posterior(nothing).probability, [[0.5, 0.5]], atol=1e-9)


def flow():
    torch.manual_seed(0)
    return pg.MAF(2, context=2, layers=1, hidden=(4,))


def test_features_of_families_that_need_them_are_refused():
    clf = pg.GenerativeClassifier(flow(), NAMES)
    with pytest.raises(ValueError, match="missing"):
        clf.log_posterior(torch.tensor([[0.0, torch.nan]]))


CONTEXTS = {
    "one-hot by place": NAMES,
    "by label": {"high": torch.tensor([0.0, 1.0]), "low": torch.tensor([1.0, 0.0])},
}


@pytest.mark.parametrize("labels", CONTEXTS.values(), ids=CONTEXTS)
def test_a_conditional_model_is_asked_once_for_each_label(labels):
    gen, (x, _) = flow(), rows(10)
    found = pg.GenerativeClassifier(gen, labels).log_posterior(x)
    with torch.no_grad():
        joint = torch.stack([gen(torch.eye(2)[k].expand(10, 2)).log_prob(x) for k in (0, 1)], 1)
    by_name = dict(zip(found.labels, found.value.T, strict=True))
    for k, name in enumerate(NAMES):
        torch.testing.assert_close(
            by_name[name].float(), joint.log_softmax(1)[:, k], atol=1e-4, rtol=1e-4
        )


@pytest.mark.slow
def test_a_conditional_model_is_fitted_with_the_contexts_of_labels():
    x, y = rows(600)
    how = {"steps": 150, "optimizer": pg.train.adam(0.05), "compile": False, "seed": 0}
    how |= {"progress": False, "verdict": False}
    gen = pg.heads.Gaussian(torch.nn.Linear(2, 4))
    clf = pg.GenerativeClassifier(gen, NAMES).fit(x, y, **how)
    assert (clf.predict(x) == np.array(y)).mean() > 0.88  # 0.92 is the best there is


def test_a_model_of_rows_and_labels_brings_its_priors():
    torch.manual_seed(0)
    gen = pg.JointEnergyModel(pg.nn.MLP(2, [4], 2), (2,))
    x, _ = rows(10)
    clf = pg.GenerativeClassifier(gen, NAMES)
    found = clf.log_posterior(x)
    assert found.kind == "exact"  # the unknown constant cancels
    torch.testing.assert_close(found.probability.float(), gen.classify(x).probs)


def vae(seed):
    torch.manual_seed(seed)
    head = lambda a, b: pg.heads.Gaussian(pg.nn.MLP(a, [4], 2 * b))  # noqa: E731
    return pg.VAE(pg.standard_normal(1), head(1, 2), head(2, 1))


def test_differences_of_estimates_are_approximate():
    x, _ = rows(5)
    found = pg.GenerativeClassifier({"low": normal(0.0), "high": vae(0)}).log_posterior(x)
    assert found.kind == "approximate"
    assert found.density.kind == "unbiased"


LABELS = {
    "words": (("a", "b"), ["a", "b", "b"]),
    "numbers": ((3, 7), torch.tensor([3, 7, 7])),
    "booleans": ((False, True), np.array([False, True, True])),
    "series": (("a", "b"), pd.Series(["a", "b", "b"], index=[5, 6, 9])),
    "pairs": (((0, "x"), (1, "y")), [(0, "x"), (1, "y"), (1, "y")]),
    "categories": (("a", "b"), pd.Series(["a", "b", "b"], dtype="category")),
}


@pytest.mark.parametrize(("labels", "y"), LABELS.values(), ids=LABELS)
def test_labels_may_be_of_any_type(labels, y):
    clf = pg.GenerativeClassifier(dict(zip(labels, (normal(0.0), normal(9.0)), strict=True)))
    x = torch.tensor([[0.0, 0.0], [9.0, 9.0], [9.0, 8.0]])
    clf.fit(x, y, how=lambda model, rows: None)
    assert clf.predict(x).tolist() == list(y.tolist() if torch.is_tensor(y) else y)
    assert clf.log_prior.exp().tolist() == pytest.approx([1 / 3, 2 / 3])


def test_temperature_minimizes_the_log_loss():
    draw = torch.Generator().manual_seed(1)
    scores = 9 * torch.randn(300, 3, generator=draw, dtype=torch.float64)
    truth = torch.distributions.Categorical(logits=scores / 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = truth.sample()
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    found = fitted_temperature(scores, prior, y)
    losses = [
        log_loss(y, (scores / t + prior).softmax(1).numpy(), labels=[0, 1, 2])
        for t in (found * 0.97, found, found * 1.03)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_calibration_makes_confidence_right_and_leaves_densities_alone():
    x, y = rows(2000)
    sure = pg.GenerativeClassifier({"low": normal(0.0, 0.5), "high": normal(2.0, 0.5)})
    before = sure.log_posterior(x)
    told = sure.calibrate(*rows(2000, seed=1))
    assert told.temperature == pytest.approx(4.0, rel=0.15)  # variances are a quarter of the true
    after = sure.log_posterior(x)
    truth = torch.tensor([NAMES.index(name) for name in y])
    assert calibration_error(after.probability, truth) < 0.03
    assert calibration_error(before.probability, truth) > 0.04
    torch.testing.assert_close(before.density.value, after.density.value)
    assert (before.predict() == after.predict()).all()
    assert "2000 held-out rows" in str(told)


@pytest.mark.filterwarnings("error")
def test_perfect_answers_have_no_temperature():
    x = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    with pytest.warns(UserWarning, match="no answer is wrong"):
        two().calibrate(x, NAMES)


def test_doubt_is_chows_rule_and_outliers_are_as_many_as_allowed():
    clf = two()
    x, y = rows(999, seed=2)
    clf.calibrate(x, y)
    clf.temperature.fill_(1.0)
    new, _ = rows(4000, seed=3)
    found = clf.decide(new, reject=0.2, outliers=0.05)
    assert (found.reasons == "outlier").mean() == pytest.approx(0.05, abs=0.02)
    error = 1 - clf.log_posterior(new).confidence.numpy()
    kept = found.reasons != "outlier"
    assert ((found.reasons == "doubt")[kept] == (error > 0.2)[kept]).all()
    far = clf.predict(torch.tensor([[9.0, -9.0], [0.0, 0.0]]), outliers=0.01)
    assert far.tolist() == [None, "low"]
    assert found.coverage == pytest.approx((found.labels != None).mean())  # noqa: E711


def tokens(*masses):
    return Fixed(dist.Categorical, logits=torch.tensor([masses, masses]).log())


def test_rows_that_are_impossible_under_all_classes_have_no_posterior():
    clf = pg.GenerativeClassifier({"low": tokens(0.5, 0.5, 0.0), "high": tokens(0.1, 0.9, 0.0)})
    x = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    assert clf.log_posterior(x).value.isnan().all(1).tolist() == [False, True]
    with pytest.raises(ValueError, match="impossible under all, row 1"):
        clf.predict(x)
    assert clf.predict(x, reject=0.49).tolist() == ["high", None]


def test_the_curve_is_its_definition():
    draw = np.random.default_rng(0)
    confidence = draw.integers(0, 20, 200) / 20  # many ties
    right = draw.random(200) < confidence
    curve = RiskCoverage.of(confidence, right)
    for threshold, coverage, risk in zip(curve.threshold, curve.coverage, curve.risk, strict=True):
        kept = confidence >= threshold.item()
        assert coverage.item() == pytest.approx(kept.mean())
        assert risk.item() == pytest.approx((~right)[kept].mean())
    at = [curve.risk[(curve.threshold <= c).nonzero()[0, 0]].item() for c in confidence]
    assert curve.area == pytest.approx(np.mean(at))
    assert curve.at(1.0) == pytest.approx((~right).mean())
    assert 0 < curve.best_area < curve.area


def test_a_promised_risk_is_kept_nearly_always():
    draw = np.random.default_rng(0)
    found = []
    for _ in range(100):
        confidence = draw.random(800)
        right = draw.random(800) < 0.5 + confidence / 2  # risk among those above t: (1 - t) / 4
        found.append(RiskCoverage.of(confidence, right).confidence_for(0.18, level=0.9))
    risks = (1 - np.array(found)) / 4
    assert (risks <= 0.18).mean() >= 0.9
    assert risks.mean() > 0.1  # and not by answering next to nothing
    with pytest.raises(ValueError, match="more held-out rows"):
        RiskCoverage.of(confidence, right).confidence_for(1e-4)


def test_a_classifier_orders_its_rows_by_confidence():
    clf, (x, y) = two(), rows(300)
    curve = clf.risk_coverage(x, y)
    found = clf.log_posterior(x)
    right = found.predict() == np.array(y)
    expected = RiskCoverage.of(found.confidence, right)
    torch.testing.assert_close(curve.risk, expected.risk)


def test_a_saved_classifier_answers_the_same(tmp_path):
    x, y = rows(300)
    clf = pg.GenerativeClassifier({name: pg.PPCA(2, factors=1) for name in NAMES}).fit(x, y)
    clf.calibrate(*rows(300, seed=1))
    pg.save(clf, tmp_path / "classifier")
    loaded = pg.load(tmp_path / "classifier")
    assert loaded.labels == NAMES
    torch.testing.assert_close(loaded.log_posterior(x).value, clf.log_posterior(x).value)
    assert (
        loaded.decide(x, outliers=0.1).reasons.tolist()
        == clf.decide(x, outliers=0.1).reasons.tolist()
    )


@pytest.mark.slow
def test_frames_are_classified_by_tables():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 300)
    frame = pd.DataFrame(
        {"size": draw.normal(3.0 * y), "kind": np.where(draw.random(300) < 0.2 + 0.6 * y, "u", "v")}
    )
    table = pg.Table.read(frame)
    models = {}
    for label in (0, 1):
        heads = table.heads()
        width = pg.heads.Mixed(None, heads).width
        models[label] = pg.Tabular(table, pg.heads.Mixed(pg.nn.Constant(width), heads))
    how = {"steps": 150, "optimizer": pg.train.adam(0.1), "compile": False, "seed": 0}
    how |= {"progress": False, "verdict": False}
    clf = pg.GenerativeClassifier(models).fit(frame, y, **how)
    assert (clf.predict(frame[["kind", "size"]]) == y).mean() > 0.9
    frame.loc[0, "kind"] = None
    assert clf.predict(frame.head(1)).shape == (1,)


WRONG = {
    "one class": (lambda: pg.GenerativeClassifier({"a": normal(0)}), "AnomalyDetector"),
    "no labels": (lambda: pg.GenerativeClassifier(flow()), "labels=\\[...\\]"),
    "labels twice": (
        lambda: pg.GenerativeClassifier({"a": normal(0), "b": normal(1)}, ["a", "b"]),
        "its keys are the labels",
    ),
    "same labels": (lambda: pg.GenerativeClassifier(flow(), ["a", "a"]), "name each class once"),
    "sizes": (lambda: pg.GenerativeClassifier(flow(), "abc"), "give a list"),
    "contexts": (lambda: pg.GenerativeClassifier(flow(), ["a", "b", "c"]), "labels={label"),
    "priors": (lambda: two(priors={"low": 1.0}), "a prior for each"),
    "negative prior": (lambda: two(priors={"low": 1.0, "high": -1.0}), "priors > 0"),
    "unknown": (lambda: two().fit(rows(3)[0], ["low", "high", "odd"]), "'odd' in row 2"),
    "empty": (lambda: two().fit(rows(2)[0], ["low", "low"]), "none of 'high'"),
    "lengths": (lambda: two().fit(rows(3)[0], ["low", "high"]), "3 rows x and 2 labels"),
    "one-hot": (lambda: two().fit(rows(3)[0], torch.eye(3)), "argmax"),
    "shape": (lambda: two().predict(torch.zeros(3, 5)), "expected x of shape"),
    "uncalibrated": (lambda: two().predict(rows(3)[0], outliers=0.1), "calibrate"),
    "few": (lambda: calibrated_on(9).predict(rows(3)[0], outliers=0.01), "at least 99 held-out"),
    "reject": (lambda: two().predict(rows(3)[0], reject=1.5), "reject"),
    "one model twice": (lambda: shared(), "a model of its own for each class"),
    "no label": (lambda: pg.GenerativeClassifier({"a": normal(0), None: normal(1)}), "got None"),
    "NaN": (lambda: pg.GenerativeClassifier({"a": normal(0), math.nan: normal(1)}), "got nan"),
    "tensors alike": (
        lambda: pg.GenerativeClassifier({torch.tensor(0): normal(0), torch.tensor(0): normal(1)}),
        "name each class once",
    ),
    "no contexts": (
        lambda: pg.GenerativeClassifier(pg.MAF(2), ["a", "b"]),
        "build it with context=2",
    ),
    "missing": (
        lambda: calibrated_on(99).predict(torch.tensor([[0.0, torch.nan]]), outliers=0.1),
        "missing cells in row 0",
    ),
    "infinite": (
        lambda: pg.GenerativeClassifier({n: pg.PPCA(2, factors=1) for n in NAMES}).fit(
            torch.randn(40, 2).index_fill(0, torch.tensor([9]), torch.inf), NAMES * 20
        ),
        "got inf in row",
    ),
    "not probabilities": (
        lambda: pg.decisions.calibration_error(torch.tensor([[7.0, 3.0]]), [0]),
        "whose sum is 1",
    ),
    "NaN probabilities": (
        lambda: pg.decisions.calibration_error(torch.tensor([[torch.nan, 0.3]]), [0]),
        "whose sum is 1",
    ),
    "no such class": (
        lambda: pg.decisions.calibration_error(torch.tensor([[0.7, 0.3]]), [5]),
        "got 5 in row 0",
    ),
}


def shared():
    model = normal(0)
    return pg.GenerativeClassifier({"a": model, "b": model})


LABELS = {
    "tensors": lambda: list(torch.tensor([0, 1])),
    "numbers of numpy": lambda: [np.int64(0), np.int64(1)],
    "floats": lambda: [0.0, 1.0],
    "truth values": lambda: [False, True],
}


@pytest.mark.parametrize("make", LABELS.values(), ids=list(LABELS))
def test_labels_of_one_value_are_one_label(make):
    """In the models and in y, however a number is kept."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    x[20:] += 9.0
    y = [label for label in make() for _ in range(20)]
    models = {label: pg.PPCA(2, factors=1) for label in make()}
    clf = pg.GenerativeClassifier(models).fit(x, y)
    assert clf.predict(x).tolist() == [0] * 20 + [1] * 20
    plain = pg.GenerativeClassifier({n: pg.PPCA(2, factors=1) for n in (0, 1)}).fit(x, y)
    assert plain.predict(x).tolist() == [0] * 20 + [1] * 20


def test_outliers_are_told_by_complete_rows_alone():
    """Densities of fewer features are others: rows that lack some are no yardstick."""
    x, y = rows(999, seed=2)
    clf = two()
    clf.calibrate(x, y)
    before = clf.usual
    gaps = torch.cat([x, torch.full((500, 2), torch.nan)])
    clf.calibrate(gaps, list(y) + list(y[:500]))
    torch.testing.assert_close(clf.usual, before)
    clf.calibrate(gaps[-500:], y[:500])
    with pytest.raises(ValueError, match="complete held-out rows"):
        clf.decide(x, outliers=0.05)


def calibrated_on(count):
    clf = two()
    x, y = rows(400)
    clf.calibrate(x[:count], y[:count])
    return clf


@pytest.mark.filterwarnings("ignore:the temperature")
@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_classification_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


UNCOMPARED = {
    "energies": lambda: pg.EnergyBasedModel(pg.nn.MLP(2, [4], 1), (2,)),
    "masses": lambda: Fixed(dist.Poisson, rate=torch.ones(2)),
    "implicit": lambda: pg.GAN(pg.nn.MLP(2, [4], 2), pg.standard_normal(2), (2,)),
}


@pytest.mark.parametrize("make", UNCOMPARED.values(), ids=UNCOMPARED)
def test_densities_that_do_not_compare_are_refused(make):
    clf = pg.GenerativeClassifier({"low": normal(0.0), "high": make()})
    with pytest.raises((TypeError, NotImplementedError), match=";"):
        clf.log_posterior(torch.ones(3, 2))
