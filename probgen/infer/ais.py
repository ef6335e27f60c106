"""Annealed importance sampling: log Z from both ends, and the log-likelihoods that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.score import Score
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn
from probgen.parallel import Jobs, check_jobs, is_asked, run_tasks

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

PARTS = 8  # that chains are divided into where they may run side by side


class AnnealingPath(Protocol):
    r"""Distributions from a known one, :math:`\beta = 0`, to another, :math:`\beta = 1`.

    Each with a reversible kernel.
    """

    def log_z(self) -> Tensor: ...

    def start(self, chains: int) -> Tensor: ...

    def log_weight(self, state: Tensor) -> Tensor: ...

    def advance(
        self, state: Tensor, old: Tensor, new: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor]: ...

    def events(self, state: Tensor) -> Tensor: ...


@runtime_checkable
class Annealed(Protocol):
    """A distribution that can be reached along a path from a known one."""

    def path(self, x: Tensor | None = None) -> AnnealingPath:
        """The path; from a distribution with the moments of rows, where there are any."""

    def states(self, shape: torch.Size | tuple) -> Tensor:
        """Draws of the states that the path moves."""

    def chain(self, state: Tensor, num_steps: int) -> Tensor:
        """States after so many steps that leave the distribution as it is."""


@in_short
@dataclass(frozen=True)
class LogZ:
    r"""log Z between two stochastic bounds.

    .. math:: \mathbb E\Big[\log \tfrac1M \textstyle\sum_m w_m\Big] \le \log Z \le
              \mathbb E\Big[-\log \tfrac1M \textstyle\sum_m w'_m\Big]

    with weights of chains that go from the known distribution to the other one, and of chains that
    go back from its draws.

    Attributes
    ----------
    forwards, backwards : Tensor
        log Z as each chain gives it, ``(chains,)``: of the chains there, and of those back.
    start : str
        Kind of the draws that the chains back start from: ``"exact"``, or ``"asymptotic"``, ends of
        chains. With these the upper bound holds as far as they have reached the distribution.

    >>> print(LogZ(torch.tensor([5.0, 5.2]), torch.tensor([5.1, 5.3]), "exact"))
    5.10 ± 0.10 <= log Z <= 5.20 ± 0.10 nats (2 chains each way, exact draws)
    """

    forwards: Tensor
    backwards: Tensor
    start: str
    ancestors: Tensor | None = None

    @property
    def lower(self) -> float:
        """The lower bound: the log of the mean weight of the chains there, whose mean is Z."""
        return _log_mean(self.forwards)

    @property
    def upper(self) -> float:
        """The upper bound.

        Minus the log of the mean weight of the chains back, whose mean is 1 / Z.
        """
        return -_log_mean(-self.backwards)

    @property
    def stderr(self) -> tuple[float, float]:
        """Standard errors of both, by the delta method.

        Infinite where there are not two independent chains.
        """
        return _stderr(self.forwards), _stderr(-self.backwards, self.ancestors)

    @property
    def value(self) -> float:
        """The middle."""
        return (self.lower + self.upper) / 2

    @property
    def gap(self) -> float:
        """The upper bound less the lower one; negative where they agree within their noise."""
        return self.upper - self.lower

    @property
    def ess(self) -> tuple[float, float]:
        """Effective numbers of chains, there and back; near 1 the numbers stand on one chain."""
        there, back = (
            float(torch.exp(2 * w.logsumexp(0) - (2 * w).logsumexp(0)))
            for w in (self.forwards, -self.backwards)
        )
        return there, back

    def log_likelihoods(self, log_weight: Tensor, measure: str = "density") -> tuple[Score, Score]:
        """The least and the largest log-likelihoods of rows, kind approximate.

        Given their unnormalized ones.

        The larger end gives the least, also where the noise of the two has put the upper below the
        lower one.
        """
        ends = sorted((self.upper, self.lower), reverse=True)
        least, largest = (Score(log_weight - end, "approximate", measure=measure) for end in ends)
        return least, largest

    def __str__(self) -> str:
        low, high = self.stderr
        chains = f"{len(self.forwards)} chains each way, {self.start} draws"
        return f"{self.lower:.2f} ± {low:.2f} <= log Z <= {self.upper:.2f} ± {high:.2f} nats ({chains})"


@explained
@in_turn
@torch.no_grad()
@takes_seed
def annealed_importance(
    gen: GenerativeModel,
    x: Tensor | None = None,
    *,
    temperatures: int | Sequence[float] | Tensor = 1000,
    chains: int = 100,
    moves: int = 1,
    settle: int = 100,
    at_once: int = 1000,
    n_jobs: Jobs = None,
    seed: Seed = None,
    progress: Reported = None,
) -> LogZ:
    r"""Brackets log Z of an unnormalized model by annealed importance sampling.

    Forwards and backwards.

    Along distributions :math:`p_0, \dots, p_K`, from a known one to the model's, each chain has the
    weight

    .. math:: w = Z_0 \prod_{k=1}^K \frac{p^*_k(x_{k-1})}{p^*_{k-1}(x_{k-1})}, \qquad x_k \sim T_k(\cdot \mid x_{k-1}),
              \qquad \mathbb E[w] = Z

    and a chain back from a draw of the model one with mean :math:`1 / Z`. Chains back start from
    independent draws where the distribution has them, else from ends of the chains there, drawn by
    their weights and moved ``settle`` steps.

    Parameters
    ----------
    gen : GenerativeModel
        A model without context whose distribution has a path: ``RBM``, ``DeepBoltzmannMachine``,
        ``EnergyBasedModel``.
    x : Tensor, optional
        Rows ``(N, *event)``: the known distribution takes their moments (the base-rate model of
        Salakhutdinov and Murray).
    temperatures : int or sequence of float
        Number K of equal steps from 0 to 1, or the values of :math:`\beta` themselves.
    chains : int
        Number of chains each way.
    moves : int
        Steps of the kernel at each temperature.
    settle : int
        Steps of the model's own chains before those back start, where draws are not exact.
    at_once : int
        Bound on the chains that are moved together, which take memory.
    n_jobs : int, optional
        Parts of the chains that run side by side, each in a process with one core, by joblib; -1: as
        many as there are cores. Given, chains go in eight parts with random numbers of their own, and
        the result is the same for every number. Default: all chains together on all cores, or what
        ``joblib.parallel_config`` says.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.
    progress : bool, float or None
        Rate and time left: in one line that is renewed where there is a terminal; elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.

    Raises
    ------
    TypeError
        If the distribution has no path.
    ValueError
        If the temperatures do not rise from 0 to 1, or rows have missing entries.

    References
    ----------
    Neal (2001), Annealed importance sampling, https://doi.org/10.1023/A:1008923215028;
    Salakhutdinov, Murray (2008), On the quantitative analysis of deep belief networks,
    https://doi.org/10.1145/1390156.1390266; Grosse, Ghahramani, Adams (2015), Sandwiching the
    marginal likelihood using bidirectional Monte Carlo, https://arxiv.org/abs/1511.02543

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> from probgen.models.rbm import RBM
    >>> _ = torch.manual_seed(0)
    >>> rbm = RBM(BernoulliUnits(6), hidden=3, scale=1.0)
    >>> bracket = annealed_importance(rbm, temperatures=200)
    >>> (bracket.value - rbm().log_z()).abs() < 0.1
    tensor(True)
    """
    checks.generative(gen=gen)
    checks.at_least(1, chains=chains, moves=moves, at_once=at_once)
    checks.at_least(0, settle=settle)
    check_jobs(n_jobs)
    check_progress(progress)
    distribution = _distribution(gen)
    betas = _schedule(temperatures)
    path = distribution.path(None if x is None else _complete(gen, "x", x))
    total = 2 * (len(betas) - 1)
    with Progress("annealed_importance", total, "temperatures", asked=progress) as shown:
        plan = _Plan(moves, at_once, n_jobs)
        return _both_ways(path, distribution, betas, (chains, settle), plan, shown)


def _both_ways(
    path: AnnealingPath,
    distribution: Any,
    betas: Tensor,
    sizes: tuple[int, int],
    plan: _Plan,
    progress: Progress,
) -> LogZ:
    chains, settle = sizes
    ratios, ends = _anneal(path, path.start(chains), betas, plan, progress)
    forwards = path.log_z() + ratios
    exact = density_kind(distribution) == "exact"
    chosen = None
    if exact:
        begin = distribution.states((chains,))
    else:
        chosen = torch.distributions.Categorical(logits=ratios, validate_args=False).sample(
            (chains,)
        )
        begin = distribution.chain(ends[chosen], settle)
    back, _ = _anneal(path, begin, betas.flip(0), plan, progress)
    return LogZ(forwards, path.log_z() - back, "exact" if exact else "asymptotic", chosen)


@explained
@in_turn
@torch.no_grad()
@takes_seed
def reverse_annealing(
    gen: GenerativeModel,
    x: Tensor,
    *,
    base: Tensor | None = None,
    temperatures: int | Sequence[float] | Tensor = 1000,
    chains: int = 10,
    moves: int = 1,
    at_once: int = 1000,
    n_jobs: Jobs = None,
    seed: Seed = None,
    progress: Reported = None,
) -> Score:
    r"""Log-likelihoods of rows under the annealing model, whose draws are ends of annealed chains.

    .. math:: \log \hat p(x) = \log \tfrac1M \sum_m \frac{p^*_K(x)}{Z_0} \prod_{k=1}^K
              \frac{p^*_{k-1}(x_{k-1})}{p^*_k(x_{k-1})}, \qquad x_{k-1} \sim T_k(\cdot \mid x_k),\
              x_K = x

    An *unbiased* estimate for a model from which exact draws can be made, and which tends to the
    given one with the number of temperatures; a conservative number for it in practice, without
    draws of the model itself.

    Parameters
    ----------
    gen : GenerativeModel
        As in :func:`annealed_importance`, with events for states (not a deep machine).
    x : Tensor
        Rows ``(B, *event)``.
    base : Tensor, optional
        Rows whose moments the known distribution takes.
    temperatures, moves, at_once, n_jobs
        As in :func:`annealed_importance`.
    chains : int
        Number M of chains for each row.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.
    progress : bool, float or None
        Rate and time left: in one line that is renewed where there is a terminal; elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.

    Raises
    ------
    TypeError, ValueError
        As :func:`annealed_importance`; for a model with further layers too.

    References
    ----------
    Burda, Grosse, Salakhutdinov (2015), Accurate and conservative estimates of MRF log-likelihood
    using reverse annealing, https://arxiv.org/abs/1412.8566

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> from probgen.models.rbm import RBM
    >>> print(reverse_annealing(RBM(BernoulliUnits(4), hidden=2, scale=0.0), torch.ones(3, 4)))  # 4 log(1/2)
    >= -2.77 ± 0.00 nats (unbiased, 10 particles)
    """
    checks.generative(gen=gen)
    checks.at_least(1, chains=chains, moves=moves, at_once=at_once)
    check_jobs(n_jobs)
    check_progress(progress)
    distribution = _distribution(gen)
    betas = _schedule(temperatures).flip(0)
    path = distribution.path(None if base is None else _complete(gen, "base", base))
    state = distribution.chain_from(_complete(gen, "x", x))
    if state.shape[1:] != path.start(1).shape[1:] or path.events(state).numel() != state.numel():
        raise ValueError(
            "expected a model whose states are events, got one with further layers; use "
            "annealed_importance"
        )
    rows = state.repeat(chains, *[1] * (state.ndim - 1))
    _, moved = path.advance(rows, betas[0], betas[0], moves)
    total = len(betas) - 1
    with Progress("reverse_annealing", total, "temperatures", asked=progress) as shown:
        ratios, _ = _anneal(path, moved, betas, _Plan(moves, at_once, n_jobs), shown)
    value = (
        path.log_weight(state)
        - path.log_z()
        + ratios.unflatten(0, (chains, -1)).logsumexp(0)
        - math.log(chains)
    )
    measure = "mass" if distribution.support.is_discrete else "density"
    return Score(value, "unbiased", particles=chains, measure=measure)


def _complete(gen: GenerativeModel, name: str, x: Any) -> Tensor:
    """Rows as the model takes them; refuses missing entries, whose energies are none."""
    (rows,) = as_rows(gen, x, missing=True)
    missing = rows.isnan().flatten(1).any(1)
    if missing.any():
        raise ValueError(
            f"expected complete rows {name}, got NaN (missing) in row {int(missing.nonzero()[0])}; "
            f"leave incomplete rows out: {name}[~{name}.isnan().flatten(1).any(1)]"
        )
    return rows


def _distribution(gen: GenerativeModel) -> Any:
    distribution = gen(None)
    if not isinstance(distribution, Annealed):
        raise TypeError(
            "expected a distribution that can be annealed (path, states, chain), got "
            f"{type(distribution).__name__}; models with a "
            "density of another kind are scored by log_likelihood"
        )
    return distribution


def _schedule(temperatures: int | Sequence[float] | Tensor) -> Tensor:
    checks.numeric(temperatures=temperatures)
    if checks.is_number(temperatures):
        checks.at_least(1, temperatures=temperatures)
        count: Any = temperatures
        temperatures = torch.linspace(0, 1, count + 1)
    betas = torch.as_tensor(temperatures, dtype=torch.get_default_dtype())
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (betas.diff() >= 0).all():
        raise ValueError(
            "expected temperatures that rise from 0 to 1, or their number >= 1, got "
            f"{temperatures}; "
            "pass 1000, or torch.linspace(0, 1, 1001)"
        )
    return betas


class _Plan(NamedTuple):
    """How chains are moved: steps at each temperature, how many together, where."""

    moves: int
    at_once: int
    n_jobs: Jobs


def _anneal(
    path: AnnealingPath, states: Tensor, betas: Tensor, plan: _Plan, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Log ratios of the weights at the ends of a path, summed along chains.

    And the ends of these.
    """
    largest = int(plan.at_once)
    seeds: list[int | None] = [None] * math.ceil(len(states) / largest)
    if is_asked(plan.n_jobs):
        largest = min(largest, math.ceil(len(states) / PARTS))
        parts = math.ceil(len(states) / largest)
        seeds = [int(torch.randint(2**62, ())) for _ in range(parts)]
    tasks = [(state.clone(), len(state) / len(states)) for state in states.split(largest)]
    task = partial(_along, path, betas, plan.moves)
    found = run_tasks(task, tasks, seeds, n_jobs=plan.n_jobs, name="part", advance=progress.advance)
    ratios, ends = zip(*found, strict=True)
    return torch.cat(ratios), torch.cat(ends)


@torch.no_grad()
def _along(
    path: AnnealingPath,
    betas: Tensor,
    moves: int,
    advance: Callable[[float], Any],
    state: Tensor,
    share: float,
) -> tuple[Tensor, Tensor]:
    """Some of the chains."""
    total: Any = 0.0
    for old, new in zip(betas[:-1].to(state), betas[1:].to(state), strict=True):
        ratio, state = path.advance(state, old, new, moves)
        total = total + ratio
        advance(share)
    return total, state


def _log_mean(weights: Tensor) -> float:
    return float(weights.double().logsumexp(0)) - math.log(len(weights))


def _stderr(weights: Tensor, families: Tensor | None = None) -> float:
    """Of the log of a mean of exponentials, which are independent.

    Or of so many independent families.
    """
    share = (weights - weights.max()).double().exp()
    excess = share / share.mean() - 1
    if families is not None:
        _, index = families.unique(return_inverse=True)
        excess = excess.new_zeros(int(index.max()) + 1).index_add_(0, index, excess)
    count = len(excess)
    return (
        math.inf
        if count < 2
        else math.sqrt(float(excess.square().sum()) * count / (count - 1)) / len(weights)
    )
