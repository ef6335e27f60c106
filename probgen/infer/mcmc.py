"""Markov chain Monte Carlo on the full data: the No-U-Turn sampler, discrete sites summed out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probgen.compile.tracing import NotCompilable
from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.modes import check_gradients
from probgen.core.module import GenerativeModel
from probgen.core.program import Program
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.turns import own_random_state
from probgen.infer.log_density import LogDensity
from probgen.infer.nuts import (
    Chain,
    ChainInterrupt,
    ChainPlan,
    ChainSampler,
    ChainSteps,
    PyroNUTS,
    Walk,
)
from probgen.infer.nuts_nutpie import Nutpie
from probgen.infer.simulate import Draws
from probgen.infer.starts import Init, Scaled, starts
from probgen.parallel import Jobs, TasksInterrupted, check_jobs, cores_of, run_tasks


@dataclass(frozen=True)
class Chains:
    """Draws of several chains, and what the sampler noted with each.

    Attributes
    ----------
    draws : dict of str to Tensor
        ``(chain, draw, *plate dims, *event)`` for each latent and deterministic site, in its
        natural space.
    stats : dict of str to Tensor
        ``(chain, draw)`` each, under ArviZ's names: ``diverging`` (bool), ``energy`` and ``lp``
        (nats; ``lp`` is the log joint density in the unconstrained space), ``acceptance_rate``
        (average over a trajectory), ``step_size``, ``n_steps`` and ``tree_depth`` (of a
        trajectory).
    warmup : Chains or None
        The steps before, which adapt step size and scales, if they were kept; no draws from the
        posterior.
    """

    draws: Draws
    stats: dict[str, Tensor] = field(default_factory=dict)
    warmup: Chains | None = None

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} {tuple(draws.shape[2:])}" for name, draws in self.draws.items())
        some = next(iter(self.draws.values()), torch.zeros(0, 0))
        words = [f"{some.shape[0]} chains of {some.shape[1]} draws", f"sites: {sites}"]
        if "diverging" in self.stats:
            words.append(f"{int(self.stats['diverging'].sum())} divergences")
        return f"Chains({'; '.join(words)}; to_arviz(..., chains=) has R-hat and ESS)"

    @property
    def merged(self) -> Draws:
        """The draws of all chains in one dim, ``(chain * draw, ...)``.

        What ``predictive(..., given=)`` takes.
        """
        return {name: value.flatten(0, 1) for name, value in self.draws.items()}


@explained
def mcmc(
    gen: GenerativeModel | Callable[..., Any],
    *batch: Any,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    seed: int | None = None,
    init: Init = None,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    dtype: torch.dtype | None = None,
    sampler: ChainSampler | None = None,
    save_warmup: bool = False,
    n_jobs: Jobs = None,
    progress: Reported = None,
) -> Chains:
    r"""Draws from the exact posterior of every continuous latent site, by the No-U-Turn sampler.

    .. math:: p(\theta, z \mid x) \propto \sum_k p(x, z, k, \theta)

    with the enumerated sites k summed out; parameters of the modules stay as they are. The log
    density and its gradient are compiled into one graph of the full data, which takes seconds, and
    nutpie runs the chains on it, one after the other or, with ``n_jobs``, side by side. Where that is
    not possible a warning says why and Pyro's sampler does it.

    Parameters
    ----------
    gen : GenerativeModel or callable
        A family, a Program or a Pyro model; its guide is not used.
    *batch : Tensor
        What the programs take: all of the data.
    draws, tune, chains : int
        Draws kept in each chain, steps before them that adapt step size and scales, number of
        chains.
    seed : int, optional
        Makes the chains reproducible; each has its own stream either way, and torch's generator is
        left alone.
    init : mapping of str to Tensor, GenerativeModel or callable, optional
        Starting points ``(chains, *plate dims, *event)`` of some sites in their natural space; or a
        fitted guide (or a model with one), whose draws become starting points and initial scales.
        Default: uniform on (-2, 2) in the unconstrained space.
    target_accept : float
        Acceptance rate that the step size is adapted to; nearer to 1 if there are divergences.
    max_tree_depth : int
        Bound on the doublings of a trajectory.
    dtype : torch.dtype, optional
        Precision of density and draws, for instance ``torch.float64`` for sums over many rows; the
        model's own tensors stay as they are. Default: their precision.
    sampler : ChainSampler, optional
        :class:`Nutpie` or :class:`PyroNUTS`; one that is given does not give way to another.
    save_warmup : bool
        Whether to keep the steps that adapt.
    n_jobs : int, optional
        Chains that run side by side, each in a process with one core, by joblib; -1: as many as there
        are cores. The draws are the same, bit for bit, for every number. The first call starts the
        processes, which takes some seconds; they stay for the next ones. Default: one after the other
        on all cores that torch has, or what ``joblib.parallel_config`` says (Dask, Ray).
    progress : bool, float or None
        Rate and time left: in one line that is renewed where there is a terminal; elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.

    Returns
    -------
    Chains
        ``(chain, draw, *plate dims, *event)`` for each latent and deterministic site, and the
        sampler's statistics.

    Raises
    ------
    ValueError
        If nothing is observed, a plate is subsampled, a discrete site is not enumerated, a site's
        density is only estimated, there is no continuous latent site, or no finite density where a
        chain starts.
    TypeError
        If the program cannot be sent to other processes.

    References
    ----------
    Hoffman, Gelman (2014), The No-U-Turn sampler, https://arxiv.org/abs/1111.4246; Betancourt
    (2017), A conceptual introduction to Hamiltonian Monte Carlo, https://arxiv.org/abs/1701.02434

    >>> import pyro, pyro.distributions as dist
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> found = mcmc(model, torch.ones(8), draws=10, tune=10, chains=2, seed=0, sampler=PyroNUTS())
    >>> found.draws["mu"].shape, found.stats["energy"].shape
    (torch.Size([2, 10]), torch.Size([2, 10]))
    """
    check_gradients("mcmc")
    checks.function(gen=gen, **checks.given(sampler=sampler))
    if not isinstance(init, Mapping | None):
        checks.function("pass values by site, or a fitted guide", init=init)
    checks.at_least(1, draws=draws, tune=tune, chains=chains, max_tree_depth=max_tree_depth)
    checks.is_seed(**checks.given(seed=seed))
    checks.within("(0, 1)", target_accept=target_accept)
    checks.instance(torch.dtype, **checks.given(dtype=dtype))
    checks.flag(save_warmup=save_warmup)
    check_jobs(n_jobs)
    check_progress(progress)
    with own_random_state(seed):
        if seed is None:
            torch.seed()
        seeds = torch.randint(2**62, (chains,)).tolist()
        gen = as_program(gen, *batch)
        batch = as_rows(gen, *batch)
        log_density = LogDensity(gen, *batch, dtype=dtype)
        scaled, u = starts(log_density, batch, init, chains)
        density: Any = scaled
        plan = ChainPlan(tune, draws, target_accept, max_tree_depth)
        with cores_of(n_jobs, chains) as count:
            walk = Walk(ready(sampler, density, scaled.loc))
            with Progress("mcmc", chains * (tune + draws), asked=progress) as shown:
                told = partial(_place, shown, tune, tune + draws) if count == 1 else None
                advance = partial(shown.advance, said=told)
                walks = _walks(walk, scaled.v(u), seeds, plan, n_jobs, advance)
        warmup = _chains(scaled, walks, slice(0, tune)) if save_warmup else None
        return _chains(scaled, walks, slice(tune, None), warmup)


def _place(progress: Progress, tune: int, steps: int) -> str:
    """In which chain the steps are, and whether they still adapt."""
    chain, step = divmod(int(progress.done) - 1, steps)
    return f"chain {chain + 1}" + ", adapting" * (step < tune)


def as_program(gen: GenerativeModel | Callable[..., Any], *batch: Any) -> GenerativeModel:
    """A model of the library as it is.

    Any other Pyro model as a Program with as many dims as its plates use.
    """
    return gen if isinstance(gen, GenerativeModel) else Program(gen)


def ready(
    sampler: ChainSampler | None, log_density: Callable[[Tensor], Tensor], example: Tensor
) -> Chain:
    """The sampler asked for; else nutpie's, or Pyro's with a word about why."""
    if sampler is not None:
        return sampler(log_density, example)
    try:
        return Nutpie()(log_density, example)
    except ModuleNotFoundError:
        reason = "nutpie is not installed (pip install nutpie)"
    except NotCompilable as error:
        reason = f"the model cannot be compiled: {error}"
    warnings.warn(f"Pyro's sampler, which is slower, draws the chains: {reason}", stacklevel=4)
    return PyroNUTS()(log_density, example)


def _walks(
    walk: Walk,
    starts: Tensor,
    seeds: list[int],
    plan: ChainPlan,
    n_jobs: Jobs,
    advance: Callable[..., Any],
) -> list[ChainSteps]:
    """All chains; Ctrl-C ends them with those that are done, or with the draws that they have."""
    tasks = [(start.clone(), seed, plan) for start, seed in zip(starts, seeds, strict=True)]
    without: list[int | None] = [None] * len(seeds)  # the sampler seeds each chain itself
    try:
        return run_tasks(walk, tasks, without, n_jobs=n_jobs, name="chain", advance=advance)
    except TasksInterrupted as stop:
        if not stop.done:
            return _begun(stop, plan)
        warnings.warn(f"{_interrupted(stop, len(seeds))} are kept", stacklevel=4)
        return list(stop.done.values())


def _interrupted(stop: TasksInterrupted, chains: int) -> str:
    if list(stop.done) == list(range(len(stop.done))) and len(stop.begun) < 2:
        return f"interrupted in chain {len(stop.done) + 1} of {chains}; those before"
    return f"interrupted when {len(stop.done)} of {chains} chains were done; these"


def _begun(stop: TasksInterrupted, plan: ChainPlan) -> list[ChainSteps]:
    """What interrupted chains have drawn, as many of each.

    Raises again where they were still adapting.
    """
    walks = [each.steps for each in stop.begun.values() if isinstance(each, ChainInterrupt)]
    walks = [walk for walk in walks if len(walk.points) > plan.tune]
    if not walks:
        raise next(iter(stop.begun.values()), stop)
    least = min(len(walk.points) for walk in walks)
    which = "the first chain" if len(walks) == 1 else f"{len(walks)} chains each"
    warnings.warn(
        f"interrupted after {least - plan.tune} of {plan.draws} draws of {which}; those are kept",
        stacklevel=5,
    )
    return [walk.first(least) for walk in walks]


def _chains(
    scaled: Scaled, walks: list[ChainSteps], steps: slice, warmup: Chains | None = None
) -> Chains:
    """Some steps of all chains, in the natural space."""
    u = scaled.u(torch.stack([walk.points[steps] for walk in walks]))
    values = scaled.log_density.constrain(u.flatten(0, 1))
    stats = {
        name: torch.stack([walk.stats[name][steps] for walk in walks]) for name in walks[0].stats
    }
    return Chains(
        {name: value.unflatten(0, u.shape[:2]) for name, value in values.items()}, stats, warmup
    )
