"""Families of a first course beside the libraries that people take for them: one table a study.

    python benchmarks/classics.py student_t            # EM beside L-BFGS and scikit-learn's normal mixture
    python benchmarks/classics.py ica                  # unmixing beside scikit-learn's FastICA
    python benchmarks/classics.py conjugate            # evidence beside importance sampling of the prior
    python benchmarks/classics.py copula               # held-out densities beside normal and kernel ones
    python benchmarks/classics.py experts              # p(y | x) beside one Gaussian head
    python benchmarks/classics.py lda                  # topics of simulated documents beside scikit-learn's
    python benchmarks/classics.py shakespeare --data DIR   # topics of speeches, held-out perplexity

``--seeds`` says how many seeds each figure is averaged over (the spread is the standard deviation).
Seconds are those of the processor, measured in the same run, on one core. DIR holds
``tinyshakespeare.txt.gz``, of which 20 speeches in a row are a document.

Measured with ``student_t``, ``copula`` and ``conjugate``, three seeds each (± their spread), and with
seed 0 of ``lda``; the others have not been measured at this size yet.

Held-out nats a row of three clusters of t distributed rows: truth -7.883 ± 0.132, ``StudentTMixture`` by
EM -7.917 ± 0.145 (0.95 s), the same by L-BFGS -7.917 ± 0.145 (0.28 s), scikit-learn's normal mixture
-8.684 ± 0.178 (0.03 s). Held-out nats a row of three skewed and peaked columns: ``Copula.fitted``
-3.382 ± 0.148 (0.06 s), with a normal mixture as core -3.291 ± 0.148 (0.33 s), a normal mixture of
eight components -3.529 ± 0.141 (1.55 s), scipy's kernel estimate -4.601 ± 0.270. Log evidence of 20
rows: closed form -60.378, by 200,000 draws of the prior -60.380 (means of the seeds).
Ten topics: total variation 0.0315, held-out perplexity 54.20 in 5.4 s; scikit-learn's, 50 passes, 0.0325,
54.22 in 10.8 s.
"""

from __future__ import annotations

import argparse
import gzip
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from common import command_line
from scipy.optimize import linear_sum_assignment
from scipy.stats import gaussian_kde
from sklearn import decomposition
from sklearn.mixture import GaussianMixture
from torch import Tensor

import probgen as pg
from probgen import heads
from probgen.distributions.inverse_wishart import InverseWishart
from probgen.distributions.student import MultivariateStudentT
from probgen.nn import MLP, Constant

Row = tuple[str, float, float]  # name, figure, seconds
QUIET = {"progress": False, "verdict": False, "compile": False}


def clocked(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds of the processor that it took."""
    began = time.process_time()
    return call(), time.process_time() - began


def amari(unmixing: Tensor, mixing: Tensor) -> float:
    """How far the product is from a scaled permutation, from 0 to 1 (Amari et al. 1996)."""
    product = (unmixing.double() @ mixing.double()).abs()
    rows, columns = ((product / product.amax(dim, keepdim=True)).sum(dim) - 1 for dim in (1, 0))
    return float((rows.sum() + columns.sum()) / (2 * len(product) * (len(product) - 1)))


def student_t(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Held-out nats a row: three clusters of t distributed rows (3 degrees of freedom) in 4 dims."""
    torch.manual_seed(seed)
    parts = [
        MultivariateStudentT(torch.tensor(3.0), 12 * torch.randn(4), torch.eye(4)) for _ in range(3)
    ]
    x = torch.cat([part.sample((400,)) for part in parts]).double()
    train, test = x[torch.randperm(1200)].split([900, 300])
    truth = torch.stack([part.log_prob(test.float()) for part in parts]).logsumexp(0) - math.log(3)
    yield "truth", truth.mean().item(), 0.0
    gen = pg.StudentTMixture(3, 4).double()
    _, seconds = clocked(lambda: pg.em(gen, train, seed=seed, n_init=3, tol=1e-6, max_iter=1000))
    yield "StudentTMixture, EM", gen().log_prob(test).mean().item(), seconds
    _, seconds = clocked(lambda: pg.maximum_likelihood(gen, train, n_init=1, seed=seed))
    yield "the same by L-BFGS", gen().log_prob(test).mean().item(), seconds
    peer, seconds = clocked(
        lambda: GaussianMixture(3, n_init=3, random_state=seed, max_iter=1000).fit(train.numpy())
    )
    yield "scikit-learn GaussianMixture", float(peer.score(test.numpy())), seconds


def ica(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Amari error of six mixed sources, 4,000 rows: heavy tails, then a mix of shapes."""
    shapes = {
        "Laplace": [dist.Laplace(0.0, 1.0)] * 6,
        "t, uniform, skewed": [dist.StudentT(5.0), dist.Uniform(-1.0, 1.0), dist.Gumbel(0.0, 1.0)]
        * 2,
    }
    for name, sources in shapes.items():
        torch.manual_seed(seed)
        mixing = torch.randn(6, 6)
        s = torch.stack([source.sample((4000,)) for source in sources], -1)
        x = (s - s.mean(0)) / s.std(0) @ mixing.mT
        gen = pg.ICA(6)
        _, seconds = clocked(lambda x=x, gen=gen: gen.solve(x, seed=seed))
        yield f"{name}: ICA.solve", amari(gen.unmixing.detach(), mixing), seconds
        head = heads.MixtureOfGaussians(Constant(54, initial=torch.randn(54)), components=3)
        free = pg.ICA(6, head)
        _, seconds = clocked(
            lambda x=x, free=free: pg.maximum_likelihood(free, x, max_iter=300, seed=seed)
        )
        yield f"{name}: ICA, mixtures as sources", amari(free.unmixing.detach(), mixing), seconds
        peer = decomposition.FastICA(random_state=seed, whiten="unit-variance", max_iter=1000)
        _, seconds = clocked(lambda x=x, peer=peer: peer.fit(x.numpy()))
        yield f"{name}: FastICA", amari(torch.tensor(peer.components_), mixing), seconds


def conjugate(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Log evidence of 20 rows in 2 dims: closed form, and the prior's own draws."""
    torch.manual_seed(seed)
    x = torch.randn(20, 2).double() + 0.5
    gen = pg.ConjugateNormal(2).double()
    value, seconds = clocked(lambda: gen.log_evidence(x).item())
    yield "ConjugateNormal", float(value), seconds
    draws = 200_000

    def by_draws() -> float:
        own = gen.prior
        tril = torch.linalg.cholesky(InverseWishart(own.df, own.scale_tril).sample((draws,)))
        mean = dist.MultivariateNormal(own.mean, scale_tril=tril / own.rows.sqrt()).sample()
        rows = dist.MultivariateNormal(mean, scale_tril=tril).log_prob(x[:, None])
        return float(rows.sum(0).logsumexp(0)) - math.log(draws)

    estimate, seconds = clocked(by_draws)
    yield "200,000 draws of the prior", float(estimate), seconds


def copula(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Held-out nats a row: a lognormal, a Gamma and a cubed normal margin, correlated scores."""
    torch.manual_seed(seed)
    matrix = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
    z = dist.MultivariateNormal(torch.zeros(3), matrix).sample((1500,))
    shares = torch.special.ndtr(z[:, 1])
    x = torch.stack([z[:, 0].exp(), -(-shares).log1p(), z[:, 2] ** 3], 1)
    train, test = x.split([1000, 500])
    gen, seconds = clocked(lambda: pg.Copula.fitted(train))
    yield "Copula.fitted", pg.log_likelihood(gen, test).value.mean().item(), seconds
    heavy = pg.Copula.fitted(train, pg.GaussianMixture(3, 3))
    _, seconds = clocked(lambda: pg.em(heavy.core, heavy.scores(train), seed=seed))
    yield "Copula, mixture as core", pg.log_likelihood(heavy, test).value.mean().item(), seconds
    mixture = pg.GaussianMixture(8, 3, regularization=1e-4)
    _, seconds = clocked(lambda: pg.em(mixture, train, seed=seed, n_init=3, max_iter=500))
    yield "GaussianMixture(8)", pg.log_likelihood(mixture, test).value.mean().item(), seconds
    kde, seconds = clocked(lambda: gaussian_kde(train.T.numpy()))
    yield "scipy gaussian_kde", float(np.mean(kde.logpdf(test.T.numpy()))), seconds


def experts(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Held-out nats a row of p(y | x): two lines that cross, and noise that depends on the line."""
    torch.manual_seed(seed)
    t = 4 * torch.rand(1500, 1) - 2
    side = torch.rand(1500, 1) < torch.sigmoid(2 * t)
    y = torch.where(side, 2 * t, -t) + torch.where(side, 0.1, 0.4) * torch.randn(1500, 1)
    first = torch.sigmoid(2 * t).log() + dist.Normal(2 * t, 0.1).log_prob(y)
    second = torch.sigmoid(-2 * t).log() + dist.Normal(-t, 0.4).log_prob(y)
    yield "truth", first.logaddexp(second)[1000:].mean().item(), 0.0
    linear = [heads.Gaussian(torch.nn.Linear(1, 2)) for _ in range(2)]
    families = {
        "Mixture of two linear experts": pg.Mixture(linear, torch.nn.Linear(1, 2)),
        "one Gaussian head, a network": heads.Gaussian(MLP(1, [32, 32], 2)),
        "MixtureOfGaussians head, a network": heads.MixtureOfGaussians(
            MLP(1, [32, 32], 6), components=2
        ),
    }
    for name, gen in families.items():
        options = {"steps": 1200, "optimizer": pg.train.adam(2e-2), "seed": seed, **QUIET}
        _, seconds = clocked(
            lambda gen=gen, options=options: pg.fit(gen, (y[:1000], t[:1000]), **options)
        )
        score = pg.log_likelihood(gen, y[1000:], t[1000:])
        yield name, score.value.mean().item(), seconds


def lda(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Mean total variation of ten topics over 300 words, 1,000 documents of 100 words."""
    torch.manual_seed(seed)
    truth = dist.Dirichlet(torch.full((10, 300), 0.05)).sample()
    weights = dist.Dirichlet(torch.full((1000, 10), 0.1)).sample()
    x = dist.Multinomial(100, weights @ truth).sample()
    gen = pg.LatentDirichletAllocation(10, 300)
    _, seconds = clocked(lambda: gen.solve(x[:900], seed=seed))
    yield "total variation: probgen", apart(gen.topics, truth), seconds
    peer = decomposition.LatentDirichletAllocation(10, random_state=seed, max_iter=50)
    _, seconds = clocked(lambda: peer.fit(x[:900].numpy()))
    found = torch.tensor(peer.components_ / peer.components_.sum(1, keepdims=True))
    yield "total variation: scikit-learn", apart(found.float(), truth), seconds
    yield "perplexity: probgen", gen.perplexity(x[900:]), 0.0
    yield (
        "perplexity: scikit-learn's topics",
        with_topics(peer, x.shape[1]).perplexity(x[900:]),
        0.0,
    )


def apart(found: Tensor, truth: Tensor) -> float:
    """Mean total variation of topics from the true ones that they are nearest to."""
    cost = (found[:, None] - truth).abs().sum(-1) / 2
    return float(cost[linear_sum_assignment(cost.numpy())].mean())


def with_topics(
    peer: decomposition.LatentDirichletAllocation, words: int
) -> pg.LatentDirichletAllocation:
    """The topics that scikit-learn found, scored as those of probgen are."""
    gen = pg.LatentDirichletAllocation(len(peer.components_), words)
    with torch.no_grad():
        gen.log_concentration.copy_(torch.tensor(peer.components_).log())
    return gen


def speeches(folder: Path) -> list[str]:
    """Documents of 20 speeches in a row, without the names of the speakers."""
    text = gzip.decompress((folder / "tinyshakespeare.txt.gz").read_bytes()).decode()
    said = [re.sub(r"^[^\n]*:\n", "", speech) for speech in text.split("\n\n")]
    return [" ".join(said[start : start + 20]).lower() for start in range(0, len(said), 20)]


def shakespeare(seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """Held-out perplexity of 20 topics of words of 4 letters and more, 1,500 of them."""
    texts = speeches(options.data)
    letters = re.compile(r"[a-z]{4,}").findall
    vocabulary = pg.text.Vocabulary.of(texts, tokenizer=letters, max_size=1502, min_count=3)
    x = vocabulary.counts(texts)[:, 2:]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = x[order].split([len(x) // 5, len(x) - len(x) // 5])
    counts = train.sum(0) + 1
    alone = -(test @ (counts / counts.sum()).log()).sum() / test.sum()
    yield "one distribution of words", math.exp(alone), 0.0
    gen = pg.LatentDirichletAllocation(20, x.shape[1])
    _, seconds = clocked(lambda: gen.solve(train, seed=seed, max_iter=50))
    yield "probgen", gen.perplexity(test), seconds
    peer = decomposition.LatentDirichletAllocation(20, random_state=seed, max_iter=50)
    _, seconds = clocked(lambda: peer.fit(train.numpy()))
    yield "scikit-learn's topics", with_topics(peer, x.shape[1]).perplexity(test), seconds
    if seed == 0:
        words = vocabulary.tokens[2:]
        for topic in gen.topics[:6]:
            print("   ", " ".join(words[place] for place in topic.topk(8).indices))


STUDIES = {
    study.__name__: study
    for study in (student_t, ica, conjugate, copula, experts, lda, shakespeare)
}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.studies:
        study = STUDIES[name]
        print(f"{name}: {(study.__doc__ or '').splitlines()[0]}")
        rows: dict[str, list[tuple[float, float]]] = {}
        for seed in range(options.seeds):
            for label, figure, seconds in study(seed, options):
                rows.setdefault(label, []).append((figure, seconds))
        for label, values in rows.items():
            figures, seconds = (np.array(part) for part in zip(*values, strict=True))
            spread = figures.std(ddof=1) if len(figures) > 1 else 0.0
            print(
                f"  {label:38s} {figures.mean():10.4f} ± {spread:.4f}   {seconds.mean():7.2f} s"
                f"   seeds 0-{options.seeds - 1}"
            )


if __name__ == "__main__":
    main()
