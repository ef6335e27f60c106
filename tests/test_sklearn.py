"""Estimators of scikit-learn around families: its own checks, and its own mixture beside ours."""

import io
import subprocess
import sys
import warnings
from functools import partial

import joblib
import numpy as np
import pandas
import pytest
import torch
from sklearn import mixture
from sklearn.base import clone
from sklearn.datasets import load_wine, make_blobs
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import probgen as pg
from probgen.sklearn import (
    Clusterer,
    DensityEstimator,
    GaussianMixture,
    GenerativeClassifier,
    Imputer,
    OutlierDetector,
)
from probgen.sklearn.families import factory_of

ESTIMATORS = [
    GaussianMixture(),
    DensityEstimator(),
    OutlierDetector(),
    Clusterer(),
    Imputer(draws=10),
    GenerativeClassifier(),
]
OURS = [DensityEstimator, OutlierDetector, Clusterer, Imputer, GenerativeClassifier]
LEARNED = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")


@pytest.fixture(scope="module")
def rows():
    random = np.random.RandomState(0)
    return np.concatenate(
        [
            random.randn(50, 3),
            random.randn(70, 3) * [1, 2, 0.5] + 3,
            random.randn(30, 3) - [4, 0, 1],
        ]
    )


@pytest.mark.table(quick=60)
@parametrize_with_checks(ESTIMATORS)
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


FORMS = ["full", "tied", "diag", "spherical"]
STARTS = ["kmeans", "k-means++", "random", "random_from_data"]


@pytest.mark.parametrize("init_params", STARTS)
@pytest.mark.parametrize("covariance_type", FORMS)
def test_mixture_takes_the_steps_of_scikit_learns(rows, covariance_type, init_params):
    settings = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
    }
    theirs, ours = (
        make(**settings).fit(rows) for make in (mixture.GaussianMixture, GaussianMixture)
    )
    assert_same(ours, theirs, rows)


def test_mixture_keeps_the_best_of_several_starts(rows):
    settings = {"n_components": 3, "init_params": "random", "random_state": 0}
    theirs, ours = (
        make(n_init=4, **settings).fit(rows) for make in (mixture.GaussianMixture, GaussianMixture)
    )
    assert_same(ours, theirs, rows)
    assert ours.lower_bound_ > GaussianMixture(**settings).fit(rows).lower_bound_ + 1e-3


@pytest.mark.parametrize("covariance_type", FORMS)
def test_mixture_without_steps_is_the_start(rows, covariance_type):
    settings = {"covariance_type": covariance_type, "random_state": 0, "max_iter": 0}
    ours, theirs = (
        make(3, **settings).fit(rows) for make in (GaussianMixture, mixture.GaussianMixture)
    )
    assert ours.n_iter_ == 0 and not ours.converged_
    assert ours.means_ == pytest.approx(theirs.means_)
    assert ours.score_samples(rows) == pytest.approx(theirs.score_samples(rows))


def assert_same(ours, theirs, rows, tolerance=1e-9):
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    for name in (*LEARNED, "lower_bound_"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=tolerance), name
    assert (ours.predict(rows) == theirs.predict(rows)).all()
    assert ours.predict_proba(rows) == pytest.approx(theirs.predict_proba(rows), abs=tolerance)
    assert ours.score_samples(rows) == pytest.approx(theirs.score_samples(rows), abs=tolerance)
    assert ours.score(rows) == pytest.approx(theirs.score(rows))
    assert ours.aic(rows) == pytest.approx(theirs.aic(rows))
    assert ours.bic(rows) == pytest.approx(theirs.bic(rows))


def precisions(covariance_type):
    return {
        "full": np.stack([np.eye(3), 2 * np.eye(3), np.eye(3) + 0.2]),
        "tied": np.eye(3) + 0.2,
        "diag": np.arange(1.0, 10.0).reshape(3, 3),
        "spherical": np.array([1.0, 2.0, 0.5]),
    }[covariance_type]


@pytest.mark.parametrize("max_iter", [1, 7])
@pytest.mark.parametrize("covariance_type", FORMS)
def test_mixture_starts_from_what_is_given(rows, covariance_type, max_iter):
    settings = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "weights_init": [0.2, 0.3, 0.5],
        "means_init": [[0, 0, 0], [2, 2, 2], [-1, 0, 1]],
        "precisions_init": precisions(covariance_type),
        "max_iter": max_iter,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours, theirs = (
            make(**settings).fit(rows) for make in (GaussianMixture, mixture.GaussianMixture)
        )
    assert_same(ours, theirs, rows)


def test_mixture_goes_on_from_where_it_was(rows):
    def steps(make):
        model = make(3, random_state=0, warm_start=True, max_iter=2, tol=0.0)
        with pytest.warns(ConvergenceWarning):
            model.fit(rows).fit(rows)
        return model

    assert_same(steps(GaussianMixture), steps(mixture.GaussianMixture), rows)


def test_mixture_does_not_go_on_from_another_form(rows):
    model = GaussianMixture(3, random_state=0, warm_start=True).fit(rows)
    with pytest.raises(ValueError, match="for a warm start, got 2, 3 and 'full'; set warm_start"):
        model.set_params(n_components=2).fit(rows)
    assert model.set_params(warm_start=False).fit(rows).weights_.shape == (2,)


def test_mixture_of_single_precision_stays_near_scikit_learns(rows):
    single = rows.astype(np.float32)
    ours = GaussianMixture(3, random_state=0).fit(single)
    theirs = mixture.GaussianMixture(3, random_state=0).fit(rows)
    assert ours.means_.dtype == ours.score_samples(single).dtype == np.float32
    assert ours.means_ == pytest.approx(theirs.means_, abs=1e-3)


def test_mixture_draws_what_it_has_learned(rows):
    model = GaussianMixture(3, random_state=0).fit(rows)
    x, component = model.sample(40_000)
    assert x.shape == (40_000, 3) and (np.diff(component) >= 0).all()
    shares = np.bincount(component) / 40_000
    assert shares == pytest.approx(model.weights_, abs=0.01)
    for k in range(3):
        own = x[component == k]
        assert own.mean(0) == pytest.approx(model.means_[k], abs=0.1)
        assert np.cov(own.T) == pytest.approx(model.covariances_[k], abs=0.25)


def test_mixture_integrates_missing_entries_out(rows):
    gaps = rows.copy()
    gaps[::7, 0] = np.nan
    model = GaussianMixture(1).fit(gaps)
    reference = pg.GaussianMixture(1, 3, regularization=1e-6).double()
    pg.em(reference, torch.tensor(gaps), tol=1e-9, max_iter=500)
    assert model.means_ == pytest.approx(reference.means.numpy(), abs=5e-2)
    seen = np.array([[np.nan, 1.0, 2.0]])
    marginal = torch.distributions.MultivariateNormal(
        torch.tensor(model.means_[0, 1:]), torch.tensor(model.covariances_[0, 1:, 1:])
    )
    expected = marginal.log_prob(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert model.score_samples(seen) == pytest.approx([expected.item()])


def test_mixture_warns_where_it_has_not_converged(rows):
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        GaussianMixture(3, max_iter=1, random_state=0).fit(rows)


def test_a_fit_of_which_each_start_collapses_is_refused(rows):
    equal = np.repeat(rows[:2], 20, 0)
    with pytest.raises(ValueError, match="expected a start from which no component collapses"):
        GaussianMixture(2, reg_covar=0.0, n_init=2, random_state=0).fit(equal)


BAD = [
    (GaussianMixture, {"n_components": 0}),
    (GaussianMixture, {"covariance_type": "round"}),
    (GaussianMixture, {"init_params": "zeros"}),
    (GaussianMixture, {"tol": -1.0}),
    (GaussianMixture, {"reg_covar": "x"}),
    (GaussianMixture, {"max_iter": -1}),
    (GaussianMixture, {"n_init": 0}),
    (GaussianMixture, {"weights_init": [2.0]}),
    (GaussianMixture, {"weights_init": [0.5, 0.5]}),
    (GaussianMixture, {"means_init": [[0.0]]}),
    (GaussianMixture, {"precisions_init": -np.eye(3)[None]}),
    *[(make, {"family": 3}) for make in OURS],
    *[(make, {"family": "fit"}) for make in OURS],
    *[(make, {"family": "Nothing"}) for make in OURS],
    *[(make, {"family": "PPCA", "steps": 0, "family_params": {"factors": 1}}) for make in OURS],
    *[(make, {"family_params": 3}) for make in OURS],
    *[(make, {"fit_params": 3}) for make in OURS],
    *[(make, {"family": lambda dims: torch.nn.Linear(dims, 1)}) for make in OURS],
    (DensityEstimator, {"particles": 0}),
    (OutlierDetector, {"particles": 0}),
    (OutlierDetector, {"contamination": 0.6}),
    (OutlierDetector, {"calibration": 1.0}),
    (OutlierDetector, {"calibration": 0.3, "contamination": 0.001}),
    (Clusterer, {"n_clusters": 0}),
    (Clusterer, {"draws": 0}),
    (Imputer, {"strategy": "median"}),
    (Imputer, {"draws": 0}),
    (Imputer, {"num_steps": 0}),
    (GenerativeClassifier, {"priors": [1.0, -1.0]}),
    (GenerativeClassifier, {"priors": [1.0]}),
    (GenerativeClassifier, {"reject": 1.5}),
    (GenerativeClassifier, {"particles": 0}),
]


@pytest.mark.parametrize(
    ("make", "settings"), BAD, ids=lambda value: getattr(value, "__name__", "")
)
def test_bad_parameters_are_refused_by_fit_in_one_sentence(rows, make, settings):
    estimator = make(**settings)  # which checks nothing, as in all of scikit-learn
    with pytest.raises((ValueError, TypeError), match=r"(?s)expected.*got.*;"):
        estimator.fit(rows, np.arange(len(rows)) % 2)


FAMILIES = [
    ("PPCA", {"factors": 1}),
    ("GaussianMixture", {"components": 2}),
    ("RealNVP", {"layers": 1}),
    (partial(pg.FactorAnalysis, factors=1), None),
]


@pytest.mark.parametrize(("family", "params"), FAMILIES, ids=["PPCA", "mixture", "flow", "partial"])
def test_any_family_scores_draws_and_is_cloned(rows, family, params):
    estimator = DensityEstimator(
        family, family_params=params, steps=3, random_state=0, fit_params=None
    )
    copied = clone(estimator).fit(rows)
    score = copied.log_likelihood(rows)
    assert score.kind == "exact"
    assert copied.score_samples(rows) == pytest.approx(
        copied.model_().log_prob(torch.tensor(rows)).detach().numpy()
    )
    assert copied.sample(5).shape == (5, 3)
    again = clone(estimator).fit(rows)
    assert (again.score_samples(rows) == copied.score_samples(rows)).all()
    assert (again.sample(2) == copied.sample(2)).all()


def test_a_family_with_latents_says_that_its_numbers_are_no_exact_ones(rows):
    def build(dims):
        return pg.VAE(
            pg.standard_normal(2),
            pg.heads.Gaussian(pg.nn.MLP(2, (4,), 2 * dims)),
            pg.heads.Gaussian(pg.nn.MLP(dims, (4,), 4)),
        )

    estimator = DensityEstimator(build, steps=2, particles=3, random_state=0).fit(rows)
    assert estimator.log_likelihood(rows).kind != "exact"
    assert np.isfinite(estimator.score(rows))


def test_the_default_is_the_gaussian_of_closed_form(rows):
    model = DensityEstimator().fit(rows)
    normal = torch.distributions.MultivariateNormal(
        torch.tensor(rows.mean(0)), torch.tensor(np.cov(rows.T, bias=True)) + 1e-6 * torch.eye(3)
    )
    expected = normal.log_prob(torch.tensor(rows)).numpy()
    assert model.score_samples(rows) == pytest.approx(expected, abs=1e-9)


def test_arguments_of_the_family_are_parameters(rows):
    estimator = DensityEstimator("GaussianMixture", family_params={"components": 2})
    assert estimator.get_params()["family__components"] == 2
    assert "family__components" not in estimator.get_params(deep=False)
    changed = clone(estimator).set_params(family__components=3, steps=5)
    assert (changed.family_params, changed.steps) == ({"components": 3}, 5)
    assert estimator.family_params == {"components": 2}
    with pytest.raises(ValueError, match="Invalid parameter"):
        estimator.set_params(nothing=1)


def test_grid_search_finds_the_number_of_components(rows):
    search = GridSearchCV(
        DensityEstimator("GaussianMixture", random_state=0),
        {"family__components": [1, 3], "family__regularization": [1e-3]},
        cv=3,
    ).fit(np.random.RandomState(0).permutation(rows))
    assert search.best_params_["family__components"] == 3
    plain = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 3]}, cv=3)
    assert plain.fit(np.random.RandomState(0).permutation(rows)).best_params_ == {"n_components": 3}


@pytest.mark.slow
def test_cross_validation_in_two_processes_is_that_of_one():
    x, y = load_wine(return_X_y=True)
    family = partial(pg.PPCA, factors=2)
    pipeline = make_pipeline(StandardScaler(), GenerativeClassifier(family))
    alone, together = (cross_val_score(pipeline, x, y, cv=3, n_jobs=jobs) for jobs in (1, 2))
    assert (alone == together).all() and alone.mean() > 0.95


def test_classifier_is_quadratic_discriminant_analysis():
    x, y = make_blobs(120, centers=3, cluster_std=3.0, random_state=0)
    ours = GenerativeClassifier().fit(x, y)
    normals = [
        torch.distributions.MultivariateNormal(
            torch.tensor(x[y == k].mean(0)),
            torch.tensor(np.cov(x[y == k].T, bias=True)) + 1e-6 * torch.eye(2),
        )
        for k in range(3)
    ]
    joint = torch.stack([normal.log_prob(torch.tensor(x)) for normal in normals], -1)
    expected = joint.softmax(-1).numpy()  # classes of 40 rows each
    assert ours.predict_proba(x) == pytest.approx(expected, abs=1e-9)
    assert ours.log_posterior(x).kind == "exact"
    theirs = QuadraticDiscriminantAnalysis().fit(x, y)  # which divides by the rows less one
    assert (ours.predict(x) == theirs.predict(x)).mean() > 0.95


def test_classifier_rejects_what_it_doubts():
    x = np.concatenate(
        [np.random.RandomState(0).randn(100, 1) - 2, np.random.RandomState(1).randn(100, 1) + 2]
    )
    y = np.repeat([0, 1], 100)
    asked = np.array([[-2.0], [0.05], [2.0]])
    clf = GenerativeClassifier(reject=0.1, reject_label=-1).fit(x, y)
    assert clf.predict(asked).tolist() == [0, -1, 1]
    assert clf.predict(asked).dtype.kind == "i"
    named = GenerativeClassifier(reject=0.1).fit(x, y.astype(str))
    assert named.predict(asked).tolist() == ["0", None, "1"]
    assert GenerativeClassifier().fit(x, y).predict(asked).tolist()[::2] == [0, 1]


def test_priors_move_the_boundary():
    x = np.array([[-1.0], [-0.5], [0.5], [1.0]])
    y = [0, 0, 1, 1]
    even, skewed = (GenerativeClassifier(priors=p).fit(x, y) for p in (None, [9.0, 1.0]))
    odds = [np.subtract(*clf.predict_log_proba([[0.1]])[0]) for clf in (even, skewed)]
    assert odds[1] - odds[0] == pytest.approx(np.log(9.0))


def test_threshold_is_the_quantile_of_the_rows(rows):
    detector = OutlierDetector(contamination=0.2).fit(rows)
    assert (detector.predict(rows) == -1).sum() == 0.2 * len(rows)
    scores = detector.score_samples(rows)
    assert detector.offset_ == pytest.approx(np.percentile(scores, 20))
    with pytest.raises(ValueError, match="rows that were held out"):
        detector.p_values(rows)


def test_held_out_rows_bound_the_share_of_false_outliers():
    random = np.random.RandomState(0)
    shares = []
    for seed in range(20):
        detector = OutlierDetector(calibration=0.5, contamination=0.1, random_state=seed)
        detector.fit(random.standard_t(2, size=(100, 2)))  # no Gaussian
        fresh = random.standard_t(2, size=(500, 2))
        outlying = detector.predict(fresh) == -1
        assert (outlying == (detector.p_values(fresh) <= 0.1)).all()
        shares.append(outlying.mean())
    assert 0.05 < np.mean(shares) < 0.13  # 5 / 51 in expectation
    with pytest.raises(ValueError, match="expected no sample_weight beside calibration"):
        detector.fit(fresh, sample_weight=np.ones(500))


def test_imputed_means_are_those_of_the_regression(rows):
    gaps = rows.copy()
    gaps[:, 0] = np.where(np.arange(len(rows)) % 2, np.nan, rows[:, 0])
    imputer = Imputer(draws=4000, random_state=0).fit(rows)
    filled = imputer.transform(gaps)
    covariance = np.cov(rows.T, bias=True)
    gain = covariance[0, 1:] @ np.linalg.inv(covariance[1:, 1:])
    expected = rows[:, 0].mean() + (rows[:, 1:] - rows[:, 1:].mean(0)) @ gain
    hidden = np.isnan(gaps[:, 0])
    assert filled[hidden, 0] == pytest.approx(expected[hidden], abs=0.2)
    assert (filled[~hidden] == rows[~hidden]).all()
    assert imputer.impute(gaps).kind == "exact"


def test_draws_keep_the_spread_that_means_lose():
    x = np.random.RandomState(0).randn(2000, 2)
    gaps = np.where([[True, False]], np.nan, x)
    means, draws = (
        Imputer(strategy=strategy, random_state=0).fit(x).transform(gaps)[:, 0]
        for strategy in ("mean", "draw")
    )
    assert means.std() < 0.3 and draws.std() == pytest.approx(1.0, abs=0.1)


def test_the_mode_of_levels_is_a_level():
    x = np.repeat([[0.0, 0.0], [1.0, 1.0]], [30, 20], 0)
    settings = {"family_params": {"levels": 2}, "random_state": 0}
    filled = Imputer("JointTable", strategy="mode", **settings).fit(x)
    assert filled.transform([[np.nan, 1.0], [0.0, np.nan]]).tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("make", OURS)
def test_weights_are_repeated_rows(rows, make):
    random = np.random.RandomState(0)
    weights = random.randint(0, 4, size=len(rows))
    labels = np.arange(len(rows)) % 3
    repeated = rows.repeat(weights, 0)
    settings = {"random_state": 0} | ({"n_clusters": 3} if make is Clusterer else {})
    by_weight = make(**settings).fit(rows, labels, sample_weight=weights)
    by_rows = make(**settings).fit(repeated, labels.repeat(weights))
    density = [density_of(estimator, rows) for estimator in (by_weight, by_rows)]
    assert density[0] == pytest.approx(density[1], rel=1e-9)
    unweighted = make(**settings).fit(rows, labels)
    assert not np.allclose(density_of(unweighted, rows), density[0])
    if make is OutlierDetector:
        scores = by_rows.score_samples(repeated)
        assert by_weight.offset_ == pytest.approx(np.percentile(scores, 10))


LEVELS = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0], [1, 0, np.nan], [1, 0, np.nan]])
TABLES = [
    ("ChowLiu", {"levels": (2, 2, 2), "smoothing": 0.5}),
    ("JointTable", {"levels": 2, "smoothing": 0.5}),
    ("PPCA", {"factors": 1}),
    ("GaussianMixture", {"components": 2, "regularization": 0.1}),
]


@pytest.mark.parametrize(("family", "params"), TABLES, ids=lambda value: str(value)[:5])
def test_equal_rows_are_no_matter_whether_a_family_takes_weights(family, params):
    rows = np.nan_to_num(LEVELS) if family == "ChowLiu" else LEVELS
    weights = [1, 2, 3, 1, 1]
    settings = {"family_params": params, "random_state": 0, "fit_params": {}}
    by_weight = DensityEstimator(family, **settings).fit(rows, sample_weight=weights)
    by_rows = DensityEstimator(family, **settings).fit(rows.repeat(weights, 0))
    assert (by_weight.score_samples(rows) == by_rows.score_samples(rows)).all()


def density_of(estimator, rows):
    if isinstance(estimator, GenerativeClassifier):
        return estimator.log_posterior(rows).density.value.numpy()
    return pg.log_likelihood(estimator.model_, torch.tensor(rows)).value.numpy()


def test_frames_go_in_and_come_out():
    frame = pandas.DataFrame({"a": [1.0, np.nan, 3.0, 0.0], "b": [2.0, 4.0, 6.1, 0.1]})
    imputer = Imputer(random_state=0).set_output(transform="pandas")
    filled = imputer.fit_transform(frame)
    assert list(filled.columns) == ["a", "b"] and filled.index.equals(frame.index)
    assert not filled.isna().any().any()
    assert list(imputer.get_feature_names_out()) == ["a", "b"]
    with pytest.raises(ValueError, match="feature names"):
        imputer.transform(frame.rename(columns={"a": "c"}))


@pytest.mark.parametrize("make", [GaussianMixture, *OURS])
def test_estimators_are_saved(rows, make):
    estimator = make(random_state=0).fit(rows, np.arange(len(rows)) % 2)
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    again = joblib.load(file)
    ask = "transform" if make is Imputer else "predict"
    ask = "score_samples" if make is DensityEstimator else ask
    assert (getattr(again, ask)(rows) == getattr(estimator, ask)(rows)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", OURS[:-1])
def test_precision_is_that_of_the_rows(rows, make, dtype):
    estimator = make(random_state=0).fit(rows.astype(dtype), np.arange(len(rows)) % 2)
    assert density_of(estimator, rows.astype(dtype)).dtype == dtype


@pytest.mark.slow
def test_probgen_alone_does_not_load_it():
    code = "import sys, probgen; print([n for n in sys.modules if n.startswith(('sklearn', 'probgen.sk'))])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_families_are_found_by_name():
    assert factory_of("NSF") is pg.NSF and factory_of(pg.NSF) is pg.NSF
