"""Classics of processes and fields, each beside a reference in one run.

``switching``: two regimes of an autoregression, beside statsmodels' MarkovAutoregression: the
log-likelihood given the first step at statsmodels' optimum by both, each optimum, and the share of
steps whose regime is found. ``cluster``: the Ising model on a torus at the critical temperature, the
energy beside Kaufman's exact one, and integrated autocorrelation times of energy and squared
magnetization in steps and in seconds, of Swendsen-Wang, Wolff and single sites. ``hawkes``: a fit
beside one by hand with scipy.optimize on the double sum over events. ``dirichlet_process``: adjusted
Rand index and effective sample size of the number of clusters on known clusters, beside
scikit-learn's variational BayesianGaussianMixture.

    pip install statsmodels scikit-learn arviz
    OMP_NUM_THREADS=1 python benchmarks/processes_and_fields.py switching cluster hawkes dirichlet_process

Measured on one busy core, seed 0 (CPU seconds):

- switching, 200 steps: at statsmodels' optimum -203.213770 nats by both; own optimum -203.213770;
  regimes found at 0.965 of the steps by both; 1.5 s, statsmodels 0.7 s.
- cluster, 24 x 24: exact energy a site -1.44013; Swendsen-Wang -1.4291 +- 0.0056, Wolff -1.4401 +-
  0.0049, sites -1.4419 +- 0.0178. Autocorrelation time of the squared magnetization 5.8 rounds, 4.4
  clusters, 97 sweeps; an independent draw takes 5.6, 3.4 and 58 ms.
- hawkes, 920 events: optimum -735.3956 nats by both, rates (0.417, 0.547, 2.310) by both; 0.9 s, by
  hand 1.4 s, whose cost grows with the square of the number of events.
- dirichlet_process, 160 rows: adjusted Rand index 0.950 by both; held out -4.335 nats a row,
  scikit-learn -4.412; effective sample size of the number of clusters 60 of 300; 27 s, scikit-learn
  0.13 s: exact draws of partitions cost more than a variational fit.
"""

from __future__ import annotations

import math
import sys
import time
import warnings

import arviz
import numpy as np
import torch

import probgen as pg
from probgen.samplers import SwendsenWang, Wolff
from probgen.sequences import HawkesProcess, SwitchingAutoregression

SEED = 0


class Seconds:
    """CPU seconds of a block: wall time tells more of what else runs."""

    def __enter__(self) -> Seconds:
        self.begun = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.value = time.process_time() - self.begun


def switching() -> None:
    """Beside statsmodels."""
    from statsmodels.tsa.regime_switching.markov_autoregression import MarkovAutoregression

    torch.manual_seed(SEED)
    steps = 200
    true = SwitchingAutoregression(2, 1, steps, switching_noise=True).double()
    with torch.no_grad():
        true.level.copy_(torch.tensor([[-1.0], [1.0]]))
        true.memory.fill_(0.4)
        true.log_scale.copy_(torch.tensor([[-0.3], [-1.0]]))
    x, regimes = true().sample_with_states((1,))
    gen = SwitchingAutoregression(2, 1, steps, switching_noise=True).double()
    with Seconds() as own:
        pg.maximum_likelihood(gen, x)
    gen.canonical()
    peer = MarkovAutoregression(
        x[0, :, 0].numpy(), k_regimes=2, order=1, switching_ar=False, switching_variance=True
    )
    with Seconds() as theirs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer.fit()
    same = SwitchingAutoregression(2, 1, steps, switching_noise=True).double()
    values = dict(zip(peer.param_names, found.params, strict=True))
    stay, leave = values["p[0->0]"], values["p[1->0]"]
    with torch.no_grad():
        same.transition.copy_(torch.tensor([[stay, 1 - stay], [leave, 1 - leave]]).log())
        same.level.copy_(torch.tensor([[values["const[0]"]], [values["const[1]"]]]))
        same.memory.fill_(values["ar.L1"])
        scale = torch.tensor([[values["sigma2[0]"]], [values["sigma2[1]"]]]).sqrt()
        same.log_scale.copy_((scale - 1e-3).log())
    there = same().log_prob_after_start(x).item()
    print(f"switching: at statsmodels' optimum {there:.6f} nats, by statsmodels {found.llf:.6f}")
    print(f"switching: own optimum {gen().log_prob_after_start(x).item():.6f} nats")
    share = (gen().most_likely_states(x) == regimes).double().mean().item()
    peers = torch.as_tensor(found.smoothed_marginal_probabilities).argmax(-1)
    peers = (peers == regimes[0, 1:]).double().mean().item()
    print(f"switching: regimes found {share:.3f}, statsmodels {max(peers, 1 - peers):.3f}")
    print(f"switching: CPU seconds {own.value:.2f}, statsmodels {theirs.value:.2f}; seed {SEED}")


def kaufman(size: int, coupling: float) -> float:
    """log Z of the Ising model on a torus: Kaufman (1949), https://doi.org/10.1103/PhysRev.76.1232."""
    gammas = [2 * coupling + math.log(math.tanh(coupling))]
    for r in range(1, 2 * size):
        cosine = math.cosh(2 * coupling) / math.tanh(2 * coupling) - math.cos(math.pi * r / size)
        gammas.append(math.acosh(cosine))
    products = []
    for start, f in ((1, math.cosh), (1, math.sinh), (0, math.cosh), (0, math.sinh)):
        parts = [2 * f(size * gamma / 2) for gamma in gammas[start::2]]
        sign = math.prod(math.copysign(1.0, part) for part in parts)
        products.append((sum(math.log(abs(part)) for part in parts), sign))
    top = max(log for log, _ in products)
    total = top + math.log(sum(sign * math.exp(log - top) for log, sign in products) / 2)
    return total + size**2 / 2 * math.log(2 * math.sinh(2 * coupling))


def cluster() -> None:
    """Critical Ising model: energies and autocorrelation times."""
    critical, size, chains, steps = 0.5 * math.log(1 + math.sqrt(2)), 24, 8, 400
    slope = (kaufman(size, critical + 1e-4) - kaufman(size, critical - 1e-4)) / 2e-4
    print(f"cluster: exact energy a site {-slope / size**2:.5f}; infinite grid {-math.sqrt(2):.5f}")
    for name, kernel in (("Swendsen-Wang", SwendsenWang()), ("Wolff", Wolff()), ("sites", None)):
        torch.manual_seed(SEED)
        edges = pg.graphical.grid_edges(size, size, periodic=True)
        gen = pg.MarkovRandomField((size, size), edges, shared=True)
        table = critical * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        gen.pairs.data.copy_(table)
        unary, pairs, ends, _ = gen.potentials()
        unary, pairs = unary[None].detach(), pairs.detach()
        x = torch.randint(2, (chains, size**2))
        x = SwendsenWang()(x, unary, pairs, ends, 100)  # all begin in equilibrium
        move = kernel or sites(size)
        energies, sizes = [], []
        with Seconds() as spent:
            for _ in range(steps):
                x = move(x, unary, pairs, ends, 1, torch.ones_like(x) > 0)
                spins = (2.0 * x - 1).reshape(chains, size, size)
                each = spins * (spins.roll(1, -1) + spins.roll(1, -2))
                energies.append(-each.sum((-2, -1)) / size**2)
                sizes.append(spins.mean((-2, -1)).square())
        energy = torch.stack(energies, 1).double().numpy()
        ess = [float(arviz.ess(torch.stack(v, 1).double().numpy())) for v in (energies, sizes)]
        times = [chains * steps / value for value in ess]
        print(
            f"cluster: {name}: energy {energy.mean():.5f} +- {energy.std() / ess[0] ** 0.5:.5f}; "
            f"autocorrelation time of energy {times[0]:.1f}, of squared magnetization {times[1]:.1f} "
            f"steps; {1000 * spent.value / steps * times[1] / chains:.1f} ms an independent draw"
        )


def sites(size: int):
    """Gibbs sweeps of single sites, as a kernel."""
    from probgen.samplers.gibbs_discrete import coloring, gibbs_sweeps

    edges = torch.tensor(pg.graphical.grid_edges(size, size, periodic=True))
    colors = coloring(edges, size**2)
    return lambda x, unary, pairs, ends, count, free: gibbs_sweeps(
        x, unary, pairs, ends, colors, count, free
    )


def by_hand(point: np.ndarray, times: np.ndarray, horizon: float) -> float:
    """Negative log-likelihood of one sequence by the definition: all pairs of events."""
    rate, branching, decay = np.exp(point)
    gaps = times[:, None] - times
    kernel = np.where(gaps > 0, np.exp(-decay * np.clip(gaps, 0, None)), 0.0)
    intensity = rate + branching * decay * kernel.sum(1)
    later = branching * (1 - np.exp(-decay * (horizon - times))).sum()
    return -(np.log(intensity).sum() - rate * horizon - later)


def hawkes() -> None:
    """Beside a fit by hand."""
    from scipy.optimize import minimize

    torch.manual_seed(SEED)
    horizon = 1000.0
    gen = HawkesProcess(1, horizon, 3000).double().set(rates=0.4, branching=0.6, decay=2.0)
    x = gen().sample((1,))
    times = x[0, x[0, :, 0] >= 0, 0].numpy()
    with Seconds() as own:
        found = pg.maximum_likelihood(gen, x)
    fitted = [float(part.item()) for part in (gen.rates, gen.branching, gen.decay)]
    with Seconds() as theirs:
        hand = minimize(by_hand, np.log([0.2, 0.5, 1.0]), args=(times, horizon), method="L-BFGS-B")
    print(
        f"hawkes: {len(times)} events; optimum {found.log_likelihood:.4f} nats, by hand {-hand.fun:.4f}"
    )
    print(
        f"hawkes: rate, branching, decay {np.round(fitted, 4)}, by hand {np.exp(hand.x).round(4)}"
    )
    print(
        f"hawkes: CPU seconds {own.value:.2f}, by hand {theirs.value:.2f}; truth 0.4, 0.6, 2; seed {SEED}"
    )
    waits = gen().rescaled(x)
    ranks = waits[~waits.isnan()].neg().exp().sort().values
    distance = (ranks - torch.arange(len(ranks)) / len(ranks)).abs().max().item()
    print(
        f"hawkes: Kolmogorov distance of rescaled times {distance:.4f}, 5 % point {1.36 / len(ranks) ** 0.5:.4f}"
    )


def dirichlet_process() -> None:
    """Beside scikit-learn's variational one."""
    from sklearn.metrics import adjusted_rand_score
    from sklearn.mixture import BayesianGaussianMixture

    torch.manual_seed(SEED)
    truth = torch.arange(4).repeat_interleave(40)
    centers = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [4.0, 5.0]])
    x = (centers[truth] + torch.randn(160, 2)).double()
    fresh = (centers[truth] + torch.randn(160, 2)).double()
    with Seconds() as own:
        found = pg.dirichlet_process_mixture(x, draws=150, tune=50, seed=SEED)
    peer = BayesianGaussianMixture(
        n_components=10,
        weight_concentration_prior_type="dirichlet_process",
        random_state=SEED,
        max_iter=500,
    )
    with Seconds() as theirs:
        peer.fit(x.numpy())
    rand = adjusted_rand_score(truth, found.partition())
    peers = adjusted_rand_score(truth, peer.predict(x.numpy()))
    print(f"dirichlet_process: adjusted Rand index {rand:.3f}, scikit-learn {peers:.3f}")
    held = found.predictive().log_prob(fresh).mean().item()
    print(
        f"dirichlet_process: held out {held:.4f} nats a row, scikit-learn {peer.score(fresh.numpy()):.4f}"
    )
    ess = float(arviz.ess(found.values["clusters"]))
    print(
        f"dirichlet_process: clusters {found.clusters.double().mean():.2f}, effective sample size "
        f"{ess:.0f} of {found.clusters.numel()}; CPU seconds {own.value:.2f}, scikit-learn "
        f"{theirs.value:.2f}; seed {SEED}"
    )


STUDIES = {each.__name__: each for each in (switching, cluster, hawkes, dirichlet_process)}

if __name__ == "__main__":
    for name in sys.argv[1:] or STUDIES:
        STUDIES[name]()
