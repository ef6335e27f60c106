"""Families of a first course beside the libraries that people take for them: one table a study.

    python benchmarks/classics.py student_t            # EM beside L-BFGS and scikit-learn's normal mixture
    python benchmarks/classics.py ica                  # unmixing beside scikit-learn's FastICA
    python benchmarks/classics.py conjugate            # evidence beside importance sampling of the prior
    python benchmarks/classics.py copula               # held-out densities beside normal and kernel ones
    python benchmarks/classics.py experts              # p(y | x) beside one Gaussian head
    python benchmarks/classics.py lda                  # topics of simulated documents beside scikit-learn's
    python benchmarks/classics.py shakespeare --data DIR   # topics of speeches, held-out perplexity
    python benchmarks/classics.py gplvm                # digits in two latents beside PPCA, gpytorch and GPy
    python benchmarks/classics.py gflownet             # a grid sampled, beside Metropolis and torchgfn

``--seeds`` says how many seeds each figure is averaged over (the spread is the standard deviation).
Seconds are those of the processor, measured in the same run, on one core. DIR holds
``tinyshakespeare.txt.gz``, of which 20 speeches in a row are a document.

Measured with ``student_t``, ``copula``, ``conjugate``, ``ica``, ``experts``, ``shakespeare`` and ``gplvm``, three seeds
each (± their spread), with seeds 0 and 1 of ``gflownet``, and with seed 0 of ``lda``.

Held-out nats a row of three clusters of t distributed rows: truth -7.883 ± 0.132, ``StudentTMixture`` by
EM -7.917 ± 0.145 (0.95 s), the same by L-BFGS -7.917 ± 0.145 (0.28 s), scikit-learn's normal mixture
-8.684 ± 0.178 (0.03 s). Held-out nats a row of three skewed and peaked columns: ``Copula.fitted``
-3.382 ± 0.148 (0.06 s), with a normal mixture as core -3.291 ± 0.148 (0.33 s), a normal mixture of
eight components -3.529 ± 0.141 (1.55 s), scipy's kernel estimate -4.601 ± 0.270. Log evidence of 20
rows: closed form -60.378, by 200,000 draws of the prior -60.380 (means of the seeds).
Amari error of six Laplace sources: ``ICA.solve`` 0.0139 ± 0.0006 (0.02 s), by maximum likelihood with
mixtures as sources 0.0136 ± 0.0020 (1.7 s), scikit-learn's FastICA 0.0143 ± 0.0011 (less than 0.01 s);
of sources of several shapes ``ICA.solve``, whose sources are heavy-tailed, 0.1227 ± 0.0175, mixtures
0.0138 ± 0.0033 (1.6 s), FastICA 0.0203 ± 0.0036. Held-out nats a row of two lines that cross: truth
-0.109 ± 0.034, two linear experts -0.134 ± 0.017 (1.9 s), a head of two normals -0.147 ± 0.024 (1.5 s), of
one normal -1.143 ± 0.066 (1.3 s).
Words of speeches of 362 documents: held-out perplexity of one distribution of words 606.8 ± 9.9, of 8 topics
with one added to each count 600.9 ± 8.6 (2.6 s), scikit-learn's 593.1 ± 10.4 (3.3 s); so few documents do not
tell 20 topics: with the priors of both libraries as they are, 626.3 ± 11.8 and 628.3 ± 13.6 (the 8 were the
best of five settings on the test documents of seed 0, which is one of the three).
Ten topics: total variation 0.0315, held-out perplexity 54.20 in 5.4 s; scikit-learn's, 50 passes, 0.0325,
54.22 in 10.8 s.
Digits in two latents, 1,400 images: the nearest image of a held-out one shows the same digit with
``BayesianGPLVM`` 0.876 ± 0.014, ``PPCA`` 0.567 ± 0.016; held-out nats an image -40.61 ± 0.82 (unbiased)
against -55.44 ± 0.38 (exact); 10.8 s and 0.2 s. Beside libraries whose latents belong to the rows they are
fitted to, seed 0, nearest among these rows and bound a row: probgen 0.924, -41.50 (3,000 steps of 200 rows,
11.7 s), GPy 1.15.0 from PCA 0.926, -40.17 (collapsed, all rows, 200 iterations of L-BFGS, 17.0 s), gpytorch
1.15.2 from PCA 0.826, -47.17 (1,000 steps of 200 rows, not at its end, 25.7 s).
Grid of 8^4 points, 96,000 calls of the reward: L1 distance of ``GFlowNet`` from the truth 0.249 ± 0.015,
error of its log Z -0.066 ± 0.025 nats, by 10,000 weights -0.0006 ± 0.0011 (35 s); torchgfn 2.4.1, the same
networks, draws and rates, 0.245 ± 0.013, -0.093 ± 0.023 (38 s). As many states of Metropolis chains from
random points have 0.262 ± 0.011 (0.12 s), as many draws of the trained network 0.307 ± 0.011, independent
draws of the truth 0.156: on this reward, whose modes are near each other, chains are the cheaper answer.
All have met all 16 modes.
torchgfn, gpytorch and GPy are no requirements: rows of theirs appear where they can be imported.
"""

from __future__ import annotations

import argparse
import gzip
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from common import command_line
from scipy.optimize import linear_sum_assignment
from scipy.stats import gaussian_kde
from sklearn import decomposition
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor, nn

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
    """Held-out perplexity of topics of words of 4 letters and more, 1,500 of them, one added to each."""
    texts = speeches(options.data)
    letters = re.compile(r"[a-z]{4,}").findall
    vocabulary = pg.text.Vocabulary.of(texts, tokenizer=letters, max_size=1502, min_count=3)
    x = vocabulary.counts(texts)[:, 2:]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = x[order].split([len(x) // 5, len(x) - len(x) // 5])
    counts = train.sum(0) + 1
    alone = -(test @ (counts / counts.sum()).log()).sum() / test.sum()
    yield "one distribution of words", math.exp(alone), 0.0
    for topics, prior in ((8, 1.0), (20, None)):
        name = f"{topics} topics" + (", priors as they are" if prior is None else "")
        gen = pg.LatentDirichletAllocation(topics, x.shape[1], topics_prior=prior)
        _, seconds = clocked(lambda gen=gen: gen.solve(train, seed=seed, max_iter=50))
        yield f"{name}: probgen", gen.perplexity(test), seconds
        peer = decomposition.LatentDirichletAllocation(
            topics, topic_word_prior=prior, random_state=seed, max_iter=50
        )
        _, seconds = clocked(lambda peer=peer: peer.fit(train.numpy()))
        yield f"{name}: scikit-learn", with_topics(peer, x.shape[1]).perplexity(test), seconds
    if seed == 0:
        words = vocabulary.tokens[2:]
        for topic in gen.topics[:6]:
            print("   ", " ".join(words[place] for place in topic.topk(8).indices))


def gplvm(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """Digits in two latents: 1-nearest-neighbor accuracy, held-out nats an image, bounds."""
    torch.manual_seed(seed)
    digits = load_digits()
    x = torch.tensor(digits.data).float()
    x = x[:, x.std(0) > 0.5]
    order = torch.randperm(len(x))
    train, test = ((x - x.mean(0)) / x.std())[order].split([1400, len(x) - 1400])
    labels = digits.target[order.numpy()]
    dims = x.shape[1]

    def nearest(z: Tensor, new: Tensor | None = None) -> float:
        """Accuracy of new rows, or of each row among the others."""
        if new is None:
            places = NearestNeighbors(n_neighbors=2).fit(z).kneighbors(return_distance=False)[:, 0]
            return float((labels[:1400][places] == labels[:1400]).mean())
        return float(KNeighborsClassifier(1).fit(z, labels[:1400]).score(new, labels[1400:]))

    peer = pg.PPCA(dims, factors=2)
    _, seconds = clocked(lambda: pg.em(peer, train, seed=seed))
    codes = [pg.encode(peer, part) for part in (train, test)]
    yield "accuracy, new rows: PPCA", nearest(*codes), seconds
    yield "accuracy, among rows: PPCA", nearest(codes[0]), seconds
    yield "held-out nats: PPCA", pg.log_likelihood(peer, test).value.mean().item(), seconds
    yield "nats of rows: PPCA", pg.log_likelihood(peer, train).value.mean().item(), seconds
    gen = pg.BayesianGPLVM(dims, heads.Gaussian(MLP(dims, [128, 128], 4)), latents=2, inducing=50)
    gen.initialize(train)
    options = {"steps": 3000, "batch_size": 200, "seed": seed, **QUIET}
    _, seconds = clocked(lambda: pg.fit(gen, train, optimizer=pg.train.adam(1e-2), **options))
    codes = [gen.encode(part).mean.detach() for part in (train, test)]
    yield "accuracy, new rows: BayesianGPLVM", nearest(*codes), seconds
    yield "accuracy, among rows: BayesianGPLVM", nearest(codes[0]), seconds
    value = pg.log_likelihood(gen, test, particles=512, seed=seed).value.mean().item()
    yield "held-out nats: BayesianGPLVM", value, seconds
    bound = pg.ELBO(particles=20)(gen.train().model, gen.guide)
    with torch.no_grad():
        yield "bound on rows: BayesianGPLVM", -bound(train).item() / 1400, seconds
    if find_spec("gpytorch") is not None:
        (codes[0], value), seconds = clocked(lambda: by_gpytorch(train))
        yield "accuracy, among rows: gpytorch", nearest(codes[0]), seconds
        yield "bound on rows: gpytorch", value, seconds
    if find_spec("GPy") is not None:
        (codes[0], value), seconds = clocked(lambda: by_gpy(train))
        yield "accuracy, among rows: GPy", nearest(codes[0]), seconds
        yield "bound on rows: GPy", value, seconds


def by_gpytorch(x: Tensor, inducing: int = 50, steps: int = 1000) -> tuple[Tensor, float]:
    """Latents of each row, started from PCA, and the bound a row, by gpytorch's mini-batches."""
    import gpytorch
    from gpytorch.models.gplvm import bayesian_gplvm, latent_variable
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

    rows, dims = x.shape

    class Peer(bayesian_gplvm.BayesianGPLVM):
        def __init__(self) -> None:
            batch = torch.Size([dims])
            prior = gpytorch.priors.NormalPrior(torch.zeros(rows, 2), torch.ones(rows, 2))
            start = torch.tensor(decomposition.PCA(2, whiten=True).fit_transform(x.numpy()))
            latents = latent_variable.VariationalLatentVariable(
                rows, dims, 2, torch.nn.Parameter(start.float()), prior
            )
            points = torch.randn(dims, inducing, 2)
            own = CholeskyVariationalDistribution(inducing, batch_shape=batch)
            super().__init__(latents, VariationalStrategy(self, points, own))
            self.mean_module = gpytorch.means.ZeroMean(ard_num_dims=2)
            kernel = gpytorch.kernels.RBFKernel(ard_num_dims=2)
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, z: Tensor) -> Any:
            mean, covariance = self.mean_module(z), self.covar_module(z)
            return gpytorch.distributions.MultivariateNormal(mean, covariance)

    gen, noise = Peer(), gpytorch.likelihoods.GaussianLikelihood()
    bound = gpytorch.mlls.VariationalELBO(noise, gen, num_data=rows)
    optimizer = torch.optim.Adam([*gen.parameters(), *noise.parameters()], 1e-2)
    values = []
    for _ in range(steps):
        chosen = torch.randperm(rows)[:200]
        optimizer.zero_grad()
        loss = -bound(gen(gen.sample_latent_variable()[chosen]), x[chosen].T).sum()
        loss.backward()
        optimizer.step()
        values.append(-loss.item())
    return gen.X.q_mu.detach(), float(np.mean(values[-50:]))


def by_gpy(x: Tensor, inducing: int = 50, max_iter: int = 200) -> tuple[Tensor, float]:
    """Latents of each row, started from PCA, and the collapsed bound a row, by GPy's L-BFGS."""
    import GPy

    kernel = GPy.kern.RBF(2, ARD=True)
    gen = GPy.models.BayesianGPLVM(x.double().numpy(), 2, num_inducing=inducing, kernel=kernel)
    gen.optimize("lbfgs", max_iters=max_iter, messages=False)
    return torch.tensor(np.array(gen.X.mean)).float(), np.sum(gen.log_likelihood()).item() / len(x)


def grid_reward(x: Tensor, levels: int = 8, low: float = 0.1) -> Tensor:
    """Log reward of Bengio et al. (2021): 2^D modes near the corners of a grid."""
    place = (x / (levels - 1) - 0.5).abs()
    inner = ((place > 0.3) & (place < 0.4)).all(-1)
    return (low + 0.5 * (place > 0.25).all(-1) + 2 * inner).log()


def gflownet(seed: int, _: argparse.Namespace) -> Iterator[Row]:
    """The grid of 8^4 points: log Z, L1 distance from the truth, by 96,000 calls of the reward."""
    torch.manual_seed(seed)
    grid = pg.energy.HyperGrid(4, levels=8)
    points = torch.cartesian_prod(*[torch.arange(8.0)] * 4)
    log_reward = grid_reward(points)
    log_z = log_reward.logsumexp(0)
    truth = (log_reward - log_z).exp()
    modes = log_reward == log_reward.max()
    draws, steps = 64, 1500

    def of_draws(x: Tensor) -> tuple[float, float]:
        """L1 distance of an empirical distribution, and how many modes are in it."""
        place = (x * 8 ** torch.arange(3.0, -1.0, -1.0)).sum(-1).long().flatten()
        share = place.bincount(minlength=4096) / len(place)
        return float((share - truth).abs().sum()), float((share[modes] > 0).sum())

    gen = pg.GFlowNet(grid, MLP(grid.inputs, [256, 256], grid.actions))
    objective = pg.objectives.TrajectoryBalance(grid_reward, draws)
    options = {"steps": steps, "optimizer": pg.train.adam(1e-3), "seed": seed, **QUIET}
    _, seconds = clocked(lambda: pg.fit(gen, None, objective, **options))
    yield "error of log Z: GFlowNet", float(objective.log_z - log_z), seconds
    weights = objective.log_weights(gen.model, gen.guide, 10_000)
    value = weights.logsumexp(0) - math.log(10_000) - log_z
    yield "error of log Z: 10,000 weights of it", value.item(), seconds
    yield "L1: GFlowNet", float((reached(gen) - truth).abs().sum()), seconds
    distance, found = of_draws(pg.sample(gen, draws * steps, seed=seed))
    yield "L1: 96,000 draws of it", distance, seconds
    yield "modes in these draws, of 16", found, seconds
    (distance, found), seconds = clocked(lambda: of_draws(metropolis(draws, steps)))
    yield "L1: 96,000 states of Metropolis", distance, seconds
    yield "modes in these states, of 16", found, seconds
    exact = points[truth.multinomial(draws * steps, replacement=True)]
    yield "L1: 96,000 independent draws", of_draws(exact)[0], 0.0
    if find_spec("gfn") is not None:
        (peer, found), seconds = clocked(lambda: by_torchgfn(draws, steps))
        yield "error of log Z: torchgfn", found - log_z.item(), seconds
        distance = (reached(pg.GFlowNet(grid, peer)) - truth).abs().sum()
        yield "L1: torchgfn", float(distance), seconds


@torch.no_grad()
def reached(gen: pg.GFlowNet) -> Tensor:
    """Probabilities of all points of a grid, ``(8^4,)``: what flows to each, step after step."""
    points = torch.cartesian_prod(*[torch.arange(8.0)] * 4)
    counts = torch.cat([points, torch.zeros(len(points), 1)], -1)
    logits = gen.net(gen.environment.features(counts))
    policy = logits.masked_fill(~gen.environment.allowed(counts), -torch.inf).softmax(-1)
    *onwards, stop = policy.unflatten(0, (8,) * 4).double().unbind(-1)
    here = torch.zeros_like(stop)
    here[0, 0, 0, 0] = 1
    total = torch.zeros_like(stop)
    for _ in range(gen.environment.length):
        total = total + here * stop
        moved = [(here * step).roll(1, dim) for dim, step in enumerate(onwards)]
        here = torch.stack(moved).sum(0)
    return total.flatten()


def metropolis(chains: int, num_steps: int) -> Tensor:
    """All states of chains that step to a neighbor on the grid, from random points: one call each."""
    x = torch.randint(8, (chains, 4)).float()
    before = grid_reward(x)
    states = []
    for _ in range(num_steps):
        step = nn.functional.one_hot(torch.randint(4, (chains,)), 4)
        other = x + step * (2 * torch.randint(2, (chains, 1)) - 1)
        inside = ((other >= 0) & (other < 8)).all(-1)
        after = torch.where(inside, grid_reward(other), -torch.inf)
        taken = torch.rand(chains).log() < after - before
        x, before = torch.where(taken[:, None], other, x), torch.where(taken, after, before)
        states.append(x)
    return torch.cat(states)


def by_torchgfn(draws: int, steps: int) -> tuple[nn.Module, float]:
    """The network of torchgfn's forward policy, trained alike, and its log Z."""
    from gfn.estimators import DiscretePolicyEstimator
    from gfn.gflownet import TBGFlowNet
    from gfn.gym import HyperGrid
    from gfn.preprocessors import KHotPreprocessor

    env = HyperGrid(ndim=4, height=8, reward_fn_kwargs={"R0": 0.1, "R1": 0.5, "R2": 2.0})
    encode = KHotPreprocessor(8, 4)
    encode.target_dtype = torch.float
    net = MLP(32, [256, 256], env.n_actions)
    forward = DiscretePolicyEstimator(net, env.n_actions, encode)
    back = DiscretePolicyEstimator.uniform(env.n_actions, encode)
    peer = TBGFlowNet(forward, back)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    optimizer.add_param_group({"params": [peer.logZ], "lr": 0.1})
    for _ in range(steps):
        trajectories = peer.sample_trajectories(env, n=draws, save_logprobs=False)
        optimizer.zero_grad()
        peer.loss(env, trajectories, recalculate_all_logprobs=True).backward()
        optimizer.step()
    return net, peer.logZ.item()


STUDIES = {
    study.__name__: study
    for study in (
        *(student_t, ica, conjugate, copula, experts, lda, shakespeare),
        *(gplvm, gflownet),
    )
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
