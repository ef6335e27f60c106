"""Whether a sampler's posteriors are right on average: simulation-based calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.core.module import GenerativeModel
from probgen.core.program import Program
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.sites import holds_data, sample_sites
from probgen.core.turns import own_random_state, turn
from probgen.infer.log_density import LogDensity
from probgen.infer.mcmc import as_program, ready
from probgen.infer.nuts import ChainPlan, ChainSampler, Walk
from probgen.infer.posterior import prior_predictive
from probgen.infer.simulate import Draws, trace_of
from probgen.parallel import Jobs, check_jobs, cores_of, run_tasks


@in_short
@dataclass(frozen=True)
class Calibration:
    r"""Ranks of parameters among draws from their posteriors, over many simulated data sets.

    Attributes
    ----------
    ranks : dict of str to Tensor
        ``(sims, *natural shape)`` for each continuous latent site, whole numbers from 0 to
        ``draws``: how many of the posterior draws are smaller than the value that made the data.
        Uniform if the posteriors are right.
    draws : int
        Posterior draws in each simulation.
    """

    ranks: dict[str, Tensor]
    draws: int

    @property
    def p_values(self) -> dict[str, Tensor]:
        """Chi-square tests of uniform ranks, ``(*natural shape)`` for each site."""
        return {name: uniformity(value, self.draws) for name, value in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest of them times their number, at most 1 (Bonferroni)."""
        values = torch.cat([value.flatten() for value in self.p_values.values()])
        return min(1.0, values.min().item() * len(values))


def uniformity(ranks: Tensor, largest: int) -> Tensor:
    """P-values of chi-square tests that ranks 0, ..., ``largest`` are uniform.

    ``(sims, *shape) -> shape``.

    There are as many bins of the same size as leave five simulations or more for each.

    >>> uniformity(torch.arange(100) % 10, 9), uniformity(torch.arange(100) % 5, 9) < 1e-9
    (tensor(1.), tensor(True))
    """
    sims = len(ranks)
    values = largest + 1
    bins = max(n for n in range(1, values + 1) if values % n == 0 and (n == 1 or 5 * n <= sims))
    which = torch.div(ranks, values // bins, rounding_mode="floor")
    counts = torch.stack([(which == bin).sum(0) for bin in range(bins)]).double()
    statistic = ((counts - sims / bins) ** 2 / (sims / bins)).sum(0)
    return torch.special.gammaincc(
        torch.full_like(statistic, (bins - 1) / 2), statistic / 2
    ).float()


@explained
def simulation_based_calibration(
    gen: GenerativeModel | Callable[..., Any],
    *batch: Any,
    sims: int = 200,
    draws: int = 63,
    thin: int = 4,
    tune: int = 300,
    seed: int | None = None,
    target_accept: float = 0.8,
    dtype: torch.dtype | None = None,
    sampler: ChainSampler | None = None,
    n_jobs: Jobs = None,
    progress: Reported = None,
) -> Calibration:
    r"""Draws parameters and data from the model, then parameters from their posterior.

    And ranks the first among these.

    .. math:: \theta^* \sim p(\theta), \quad x \sim p(x \mid \theta^*), \quad \theta_1, \ldots, \theta_L \sim
        p(\theta \mid x) \quad \Rightarrow \quad \#\{l : \theta_l < \theta^*\} \sim
        \mathrm{Uniform}\{0, \ldots, L\}

    It finds errors of a sampler, a log density or a parametrization too hard to sample; the density
    is compiled once for all data sets.

    Parameters
    ----------
    gen : GenerativeModel or callable
        A family, a Program or a Pyro model with proper priors; no observed site may look at another
        one's data.
    *batch : Tensor
        What the programs take; observations tell shapes only.
    sims : int
        Number of data sets.
    draws, thin, tune : int
        L, the steps from one draw to the next (draws must be nearly independent), and the warm-up
        of each chain.
    seed : int, optional
        Makes everything reproducible; torch's generator is left alone either way.
    target_accept, dtype, sampler, progress
        As for :func:`mcmc`.
    n_jobs : int, optional
        Data sets that are worked on side by side, as chains of :func:`mcmc`; the ranks are the same
        for every number.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian inference algorithms
    with simulation-based calibration, https://arxiv.org/abs/1804.06788

    >>> import pyro, pyro.distributions as dist
    >>> from probgen.infer.nuts import PyroNUTS
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> sizes = {"sims": 4, "draws": 3, "thin": 1, "tune": 5}
    >>> simulation_based_calibration(model, torch.zeros(5), seed=0, sampler=PyroNUTS(), **sizes).ranks["mu"].shape
    torch.Size([4])
    """
    checks.function(gen=gen, **checks.given(sampler=sampler))
    checks.at_least(1, sims=sims, draws=draws, thin=thin, tune=tune)
    checks.is_seed(**checks.given(seed=seed))
    checks.within("(0, 1)", target_accept=target_accept)
    checks.instance(torch.dtype, **checks.given(dtype=dtype))
    check_jobs(n_jobs)
    check_progress(progress)
    with own_random_state(seed):
        if seed is None:
            torch.seed()
        gen = as_program(gen, *batch)
        simulated = prior_predictive(gen, *batch, draws=sims)
        data = _templates(gen, batch, dtype)
        log_density = LogDensity(_with_data(gen, data), *batch, dtype=dtype)
        truth = {name: simulated[name] for name in log_density.shapes}
        starts = log_density.unconstrain(truth, log_density.origin.expand(sims, -1))
        plan = ChainPlan(tune, draws * thin, target_accept)
        seeds = [int(torch.randint(2**62, ())) for _ in range(sims)]
        tasks = [
            ({name: simulated[name][sim].clone() for name in data}, starts[sim].clone(), seed, plan)
            for sim, seed in enumerate(seeds)
        ]
        without: list[int | None] = [None] * sims  # the sampler seeds each chain itself
        with (
            cores_of(n_jobs, sims),
            Progress("simulation_based_calibration", sims, "data sets", asked=progress) as shown,
        ):
            chain = ready(sampler, log_density, log_density.origin)
            walks = _Simulated(Walk(chain), data, thin)
            points = run_tasks(
                walks, tasks, without, n_jobs=n_jobs, name="data set", advance=shown.advance
            )
        found = log_density.constrain(torch.cat(points))
    return Calibration({name: _ranks(value, found[name]) for name, value in truth.items()}, draws)


class _Simulated:
    """Chains on simulated data: the density reads them in the tensors that they are copied to."""

    def __init__(self, walk: Walk, data: Draws, thin: int):
        self.walk = walk
        self.data = data
        self.thin = thin

    def __call__(
        self,
        advance: Callable[..., Any],
        simulated: Draws,
        start: Tensor,
        seed: int,
        plan: ChainPlan,
    ) -> Tensor:
        """Nearly independent points of one chain: ``(draws, D)``."""
        with turn():  # nobody else may copy data into the same tensors meanwhile
            for name, value in self.data.items():
                value.copy_(simulated[name].reshape(value.shape))
            walk = self.walk(float, start, seed, plan)
        advance(1)
        return walk.points[plan.tune + self.thin - 1 :: self.thin].clone()


def _templates(gen: GenerativeModel, batch: tuple, dtype: torch.dtype | None) -> Draws:
    """A tensor for the data of every observed site, in the precision asked for."""
    with torch.no_grad():
        sites = sample_sites(trace_of(gen.model, batch))
    values = {
        name: site["value"].detach().clone() for name, site in sites.items() if holds_data(site)
    }
    return {
        name: value.to(dtype) if dtype and value.is_floating_point() else value
        for name, value in values.items()
    }


def _with_data(gen: GenerativeModel, data: Draws) -> Program:
    """The model with tensors of ours as its observations."""
    model = poutine.condition(gen.model, data)
    return Program(model, plate=gen.plate, max_plate_nesting=gen.max_plate_nesting)


def _ranks(truth: Tensor, draws: Tensor) -> Tensor:
    return (draws.unflatten(0, (len(truth), -1)) < truth[:, None]).sum(1)
