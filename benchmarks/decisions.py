"""Classifiers with a reject option and anomaly detectors, beside scikit-learn's.

    python benchmarks/decisions.py

Measured on one core in 77 seconds of it (one seed, so that a percent is noise; 447 test rows of the
8 x 8 digits, 1,000 to train on, 350 to calibrate with). Before and after the temperature: share that
is right, log loss (nats), expected calibration error, share of confidence above 0.999; with half of
the pixels missing the share that is right::

    random split           right    log loss       calibration     > 0.999       half missing
    PPCA per class         0.991    0.41 -> 0.08   .009 -> .011    99 -> 92 %    0.949
    mixture per class      0.989    0.74 -> 0.08   .011 -> .012    99 -> 45 %    0.951
    conditional VAE        0.906    0.41 -> 0.31   .051 -> .020    56 -> 29 %    0.761
    QDA (scikit-learn)     0.973    3.17           .025            98 %          0.387 (means filled in)
    logistic (the same)    0.964    0.10           .024            25 %          0.772 (means filled in)

    other writers          right    log loss       calibration     > 0.999       half missing
    PPCA per class         0.969    1.49 -> 0.15   .033 -> .017    99 -> 57 %    0.888
    mixture per class      0.957    2.23 -> 0.21   .039 -> .013    98 -> 40 %    0.904
    conditional VAE        0.881    0.72 -> 0.47   .075 -> .060    57 -> 7 %     0.725
    QDA (scikit-learn)     0.942    5.79           .057            98 %          0.389
    logistic (the same)    0.906    0.36           .025            20 %          0.734

A temperature does not always lower the calibration error where few rows are wrong: .009 to .011 is
within its noise. It makes the order of rows better (area under the risk-coverage curve of PPCA .0050
-> .0006, random split), since confidences of 1 tie no longer. With ``reject=0.05, outliers=0.02``
PPCA answers 97 % of the rows, 0.7 % of these wrong (other writers: 86 %, 1.0 %). The conditional VAE
is no match for a density of each class: its numbers are approximate, and its training short (with
3,000 steps and 64 particles 0.951, random split).

Anomalies, area under the ROC curve (a mixture fitted to usual rows; digits: one digit is unusual,
the mean of ten)::

                          density  typicality  ratio   states  isolation forest  local outlier factor
    digits                0.974    0.961       0.974   0.969   0.748             0.961
    breast cancer         0.938    0.915       0.108   0.938   0.955             0.950
    wine, class 0, 1, 2   .97 .96 1  .96 .96 1  .65 .91 1  .96 .95 1   .95 .96 1   .99 .96 1

The likelihood ratio to independent columns is of no use where unusual rows are extreme in each
column by itself (breast cancer: worse than chance); the density of states, which has it as one of
its two statistics, does not suffer.

P-values hold where rows are exchangeable, and lie where they are not: usual digits at a level of 5 %
give 1.8 ± 1.6 % false alarms in a random split, and 12.5 ± 1.6 % where the calibration rows are of
the writers who wrote the training rows and the test rows are not; the check of uniformity says p =
0.58 and p = 0.001. Calibrated with rows of other writers than the training's: 5.4 ± 1.6 %. Ten
fours among ninety other digits at a false discovery rate of 0.1 (20 splits): 0.082 ± 0.024 of those
found are false, 68 % of the fours are found.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import command_line
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import probgen as pg
from probgen.decisions import (
    LikelihoodRatio,
    LogLikelihood,
    RiskCoverage,
    Typicality,
    calibration_error,
)

PARTICLES = 16  # draws of latents
QUIET = {"progress": False, "verdict": False, "compile": False}


def digits(order: str) -> tuple[tuple[Tensor, np.ndarray], ...]:
    """Rows and labels to train on, to calibrate with, and to test, 1000 : 350 : 447.

    ``"random"``; ``"writers"``, in the order of the file, so that other people wrote the last rows
    than the first; ``"new writers"``, where the rows of the calibration are of the people who wrote
    those of the training.
    """
    source = load_digits()
    x, y = torch.tensor(source.data, dtype=torch.float32), source.target
    shuffled = {"random": len(x), "new writers": 1350, "writers": 0}[order]
    index = np.arange(len(x))
    index[:shuffled] = np.random.default_rng(0).permutation(shuffled)
    parts = np.split(index, [1000, 1350])
    return tuple((x[part], y[part]) for part in parts)


# classifiers


def by_ppca() -> Any:
    return pg.GenerativeClassifier({k: pg.PPCA(64, factors=12) for k in range(10)})


def by_mixtures() -> Any:
    models = {k: pg.GaussianMixture(3, 64, regularization=1.0) for k in range(10)}
    return pg.GenerativeClassifier(models)


def by_conditional_vae() -> Any:
    prior = pg.standard_normal(8)
    decoder = pg.heads.Gaussian(pg.nn.MLP(8 + 10, [128], 128), min_scale=0.3)
    encoder = pg.heads.Gaussian(pg.nn.MLP(64 + 10, [128], 16))
    return pg.GenerativeClassifier(pg.VAE(prior, decoder, encoder), range(10))


CLASSIFIERS: dict[str, tuple[Callable[[], Any], dict]] = {
    "PPCA per class": (by_ppca, {}),
    "mixture per class": (by_mixtures, {"seed": 0, "max_iter": 500}),
    "conditional VAE": (
        by_conditional_vae,
        {"steps": 2000, "batch_size": 128, "seed": 0, **QUIET},
    ),
}
PEERS: dict[str, Callable[[], Any]] = {
    "scikit-learn QDA": lambda: QuadraticDiscriminantAnalysis(reg_param=0.1),
    "scikit-learn logistic": lambda: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=2000)
    ),
}


def judged(probability: Tensor, truth: np.ndarray) -> str:
    """Accuracy, log loss, calibration error, sure rows, and the risk-coverage curve."""
    truth = torch.as_tensor(truth)
    confidence, answer = probability.max(1)
    right = answer == truth
    log_loss = -probability.gather(1, truth[:, None]).clamp(min=1e-300).log().mean()
    curve = RiskCoverage.of(confidence, right)
    return (
        f"{right.double().mean():8.3f} {log_loss:8.3f} {calibration_error(probability, truth):8.3f} "
        f"{(confidence > 0.999).double().mean():8.2f} {curve.area:8.4f} {curve.at(0.9):8.4f}"
    )


def classification(order: str) -> None:
    (x, y), (x_held, y_held), (x_test, y_test) = digits(order)
    half = x_test.clone()
    half[torch.rand(half.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = torch.nan
    print(f"\ndigits, {order} split")
    print(
        f"{'':34s}{'right':>8s} {'log loss':>8s} {'ECE':>8s} {'> .999':>8s} {'AURC':>8s} "
        f"{'risk@.9':>8s}"
    )
    for name, (make, options) in CLASSIFIERS.items():
        torch.manual_seed(0)
        began = time.process_time()
        clf = make().fit(x, y, **options)
        found = clf.log_posterior(x_test, particles=PARTICLES)
        print(f"{name + f' ({found.kind})':34s}{judged(found.probability, y_test)}")
        told = clf.calibrate(x_held, y_held, particles=PARTICLES)
        after = clf.log_posterior(x_test, particles=PARTICLES).probability
        print(f"{f'  temperature {told.temperature:.3g}':34s}{judged(after, y_test)}")
        missing = (clf.predict(half, particles=PARTICLES) == y_test).mean()
        kept = clf.decide(x_test, reject=0.05, outliers=0.02, particles=PARTICLES)
        answered = kept.reasons == "answer"
        wrong = (kept.labels[answered] != y_test[answered]).mean()
        print(
            f"  half of the pixels missing: {missing:.3f} right; reject=0.05, outliers=0.02: "
            f"{answered.mean():.3f} answered, {wrong:.4f} of these wrong; "
            f"{time.process_time() - began:.0f} s"
        )
    filled = torch.where(half.isnan(), x.mean(0), half).numpy()
    for name, make in PEERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf = make().fit(x.numpy(), y)
        probability = torch.tensor(clf.predict_proba(x_test.numpy()), dtype=torch.float64)
        print(f"{name:34s}{judged(probability, y_test)}")
        missing = (clf.predict(filled) == y_test).mean()
        print(f"  half of the pixels missing, filled with means: {missing:.3f} right")


# anomalies


def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows, and whether each is usual."""
    found = {}
    source = load_digits()
    for digit in range(10):
        found[f"digits without {digit}"] = (source.data, source.target != digit)
    cancer, wine = load_breast_cancer(), load_wine()
    found["breast cancer, benign"] = (cancer.data, cancer.target == 1)
    for kind in range(3):
        found[f"wine {kind}"] = (wine.data, wine.target == kind)
    return found


def split(x: np.ndarray, usual: np.ndarray, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Usual rows to train on, calibrate with and test (half, a quarter, a quarter); the others."""
    index = np.random.default_rng(seed).permutation(np.flatnonzero(usual))
    first, second = len(index) // 2, 3 * len(index) // 4
    if x.max() == 16:  # pixels of one unit: columns that hardly vary must not be blown up
        rows = torch.tensor(x / 4, dtype=torch.float32)
    else:
        scaler = StandardScaler().fit(x[index[:first]])
        rows = torch.tensor(scaler.transform(x), dtype=torch.float32)
    return (*(rows[part] for part in np.split(index, [first, second])), rows[~usual])


def fitted(train: Tensor) -> Any:
    """A mixture, of as many components as rows allow."""
    components = 10 if len(train) > 500 else 2 if len(train) > 100 else 1
    gen = pg.GaussianMixture(components, train.shape[1], regularization=0.1)
    pg.em(gen, train, seed=0, max_iter=500)
    return gen


def background(train: Tensor) -> Any:
    """One broad normal distribution of independent columns."""
    gen = pg.GaussianMixture(1, train.shape[1], pg.distributions.Diagonal, regularization=0.1)
    pg.em(gen, train, seed=0)
    return gen


def anomalies() -> None:
    print("\nanomalies: area under the ROC curve")
    names = ["density", "typicality", "ratio", "states", "forest", "LOF"]
    print(f"{'':26s}" + "".join(f"{name:>11s}" for name in names))
    rows: dict[str, list[list[float]]] = {}
    for name, (x, usual) in tables().items():
        train, held, test, odd = split(x, usual, 0)
        gen, simple = fitted(train), background(train)
        ratio = LikelihoodRatio(simple)
        detectors = [
            pg.AnomalyDetector(gen, held, statistics=statistics)
            for statistics in ((), (Typicality(),), (ratio,), (LogLikelihood(), ratio))
        ]
        both = torch.cat([test, odd])
        truth = np.r_[np.zeros(len(test)), np.ones(len(odd))]
        areas = [roc_auc_score(truth, -detector.scores(both).numpy()) for detector in detectors]
        # scikit-learn's see the calibration rows as well, which they would not need
        own = torch.cat([train, held]).numpy()
        for peer in (IsolationForest(random_state=0), LocalOutlierFactor(novelty=True)):
            areas.append(roc_auc_score(truth, -peer.fit(own).score_samples(both.numpy())))
        rows.setdefault(name.split(" without")[0], []).append(areas)
    for name, found in rows.items():
        means = np.mean(found, 0)
        label = name if len(found) == 1 else f"{name}, mean of {len(found)}"
        print(f"{label:26s}" + "".join(f"{mean:11.3f}" for mean in means))


def validity() -> None:
    print("\nfalse alarms of digits that are usual, at a level of 0.05")
    for order in ("random", "writers", "new writers"):
        (x, _), (held, _), (test, _) = digits(order)
        gen = fitted(x / 4)
        found = pg.AnomalyDetector(gen, held / 4).uniformity(test / 4)
        print(f"{order} split: {found}")
    print("\nfalse discoveries among 90 digits other than 4 and ten fours, rate 0.1")
    source = load_digits()
    shares, power, alarms = [], [], []
    for seed in range(20):
        train, held, test, odd = split(source.data, source.target != 4, seed)
        detector = pg.AnomalyDetector(fitted(train), held)
        test = test[:90]
        found = detector.detect(torch.cat([test, odd[:10]]), false_discovery_rate=0.1)
        false = found.anomalous[: len(test)].sum().item()
        shares.append(false / max(1, found.anomalous.sum().item()))
        power.append(found.anomalous[len(test) :].double().mean().item())
        alarms.append((found.p_values[: len(test)] <= 0.05).double().mean().item())
    error = np.std(shares) / len(shares) ** 0.5
    print(
        f"{np.mean(shares):.3f} ± {error:.3f} false of those found, {np.mean(power):.2f} of the "
        f"fours found; {np.mean(alarms):.3f} false alarms at 0.05"
    )


def main() -> None:
    command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    for order in ("random", "writers"):
        classification(order)
    anomalies()
    validity()
    print(f"\n{time.process_time() - began:.0f} s of a core")


if __name__ == "__main__":
    main()
