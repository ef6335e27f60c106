"""Trajectory balance: a sampler of a distribution that is known up to its constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.missing import values_are_known
from probgen.core.module import GenerativeModel
from probgen.core.recording import Recorder
from probgen.core.runtime import PARTICLES, as_guide
from probgen.core.sites import Sites, densities, in_plate
from probgen.objectives.base import Objective, check_pair
from probgen.objectives.parts import Frozen
from probgen.objectives.weighted import log_rows

KNOWN = ("exact", "unnormalized", "approximate")


class TrajectoryBalance(Objective):
    r"""Squared errors of the balance between a sampler and a reward, over the sampler's own draws.

    .. math:: L = \frac1N \sum_{n=1}^N \Big(\log Z + \log p(x_n, \tau_n) - \log R(x_n) - \log q(\tau_n
        \mid x_n)\Big)^2

    At zero, p(x) = R(x) / Z. The model draws :math:`(x, \tau)`, and :math:`\tau` are its latent
    variables: the trajectory of a :class:`GFlowNet <probgen.GFlowNet>`, with its forward and
    backward policies p and q, or nothing at all. Any family of discrete variables with an exact
    density is a sampler, for instance :class:`MADE <probgen.MADE>`: objects are then built in a
    fixed order, and the one way to each has q = 1. No gradient passes through draws or the reward.

    ``fit(gen, None, TrajectoryBalance(log_reward), steps=2000)`` learns from the sampler's draws.
    Rows of data, real ones or made by ``probgen.train.Pairs``, are added to these: what the sampler
    has not met yet (off-policy). Their trajectories are drawn by the guide, and the loss is then
    multiplied by their number, as a sum over rows is.

    Parameters
    ----------
    log_reward : callable or GenerativeModel
        :math:`\log R(x)` of objects ``(N, *event) -> (N,)``, in nats; or a model whose log density
        it is, up to a constant: an :class:`RBM <probgen.RBM>`, a :class:`MarkovRandomField
        <probgen.MarkovRandomField>`. A module is held as a :class:`Frozen
        <probgen.objectives.Frozen>` copy.
    draws : int
        Number of draws from the sampler in each step.
    rate : float
        How many times faster than other parameters log Z moves under Adam. The default gives it the
        rate 0.1 where the others have 0.001, as in the paper.
    temperature : float
        Divides the log reward: below one, the sampler prefers what has the largest.

    Attributes
    ----------
    log_z : Tensor
        The log Z that was learned, in nats.

    Raises
    ------
    ValueError
        If the density of the reward is not known up to a constant; at the call, if that of the
        sampler is not exact, a latent variable is shared by rows, or rewards are not one for each
        row.

    References
    ----------
    Malkin, Jain, Bengio, Sun, Bengio (2022), Trajectory balance: improved credit assignment in
    GFlowNets, https://arxiv.org/abs/2201.13259

    >>> from probgen.heads import Bernoulli
    >>> from probgen.models.made import MADE
    >>> gen = MADE(4, [16], Bernoulli())
    >>> TrajectoryBalance(lambda x: x.sum(-1))(gen.model, gen.guide)().shape
    torch.Size([])
    """

    def __init__(
        self,
        log_reward: Callable[[Tensor], Tensor] | GenerativeModel,
        draws: int = 64,
        *,
        rate: float = 100.0,
        temperature: float = 1.0,
    ):
        checks.callable_("pass a function of rows: lambda x: ...", log_reward=log_reward)
        checks.at_least(1, draws=draws)
        checks.positive(rate=rate, temperature=temperature)
        super().__init__()
        self.by_density = isinstance(log_reward, GenerativeModel)
        if self.by_density:
            _check_known(log_reward)
        self.reward: Any = Frozen(log_reward) if isinstance(log_reward, nn.Module) else log_reward
        self.draws = draws
        self.rate = rate
        self.temperature = temperature
        self.slow_log_z = nn.Parameter(torch.zeros(()))

    @property
    def log_z(self) -> Tensor:
        """log Z, in nats."""
        return (self.rate * self.slow_log_z).detach()

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        rows, *others = *batch, None
        if any(value is not None for value in others):
            raise ValueError(
                "TrajectoryBalance: expected rows alone, or none, got a context; leave it out: the "
                "sampler has one reward"
            )
        weights = [self._own(model, guide, batch, self.draws)]
        if rows is not None:
            weights.append(self._weigh(model, guide, batch, {}))
        errors = torch.cat(weights) - self.rate * self.slow_log_z
        return errors.square().mean() * (1 if rows is None else len(rows))

    @torch.no_grad()
    def log_weights(
        self, model: Callable[..., Any], guide: Callable[..., Any], draws: int = 1000
    ) -> Tensor:
        r"""Log importance weights :math:`\log R(x) q(\tau \mid x) / p(x, \tau)` of draws: ``(draws,)``.

        Their mean is a lower bound on log Z; that of their exponentials is Z, without bias. Draws
        that are to have the exact distribution are resampled by them.
        """
        return self._own(model, guide, (), draws)

    def _own(
        self, model: Callable[..., Any], guide: Callable[..., Any], batch: tuple, draws: int
    ) -> Tensor:
        """Log weights of the sampler's own draws."""
        with torch.no_grad(), Recorder() as run, pyro.plate(PARTICLES, draws, dim=-2):
            model(*(None for _ in batch))
        if "x" not in run.sites:
            raise TypeError(
                "TrajectoryBalance: expected a model that draws a site 'x' without data, it has "
                f"{', '.join(densities(run.sites)) or 'no sites'}; rename the site of the data"
            )
        sites = densities(run.sites)
        _check_local(sites)
        drawn = {name: {"value": site["value"].flatten(0, 1)} for name, site in sites.items()}
        x = drawn.pop("x")["value"]
        return self._weigh(model, guide, (x, *batch[1:]), drawn)

    def _weigh(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        batch: tuple,
        drawn: Mapping[str, dict[str, Any]],
    ) -> Tensor:
        """Log weights of rows x, whose latents are given or drawn by the guide."""
        with Recorder(drawn) as q:
            as_guide(guide)(*batch)
        with Recorder({**q.sites, **drawn}) as p:
            model(*batch)
        own, explained = densities(p.sites), densities(q.sites)
        check_pair(own, explained, "exact", "TrajectoryBalance")
        _check_local(own)
        log_q = log_rows(explained, "data")[0] if explained else 0.0
        return self._log_reward(own["x"]["value"]) + log_q - log_rows(own, "data")[0]

    def _log_reward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.reward().log_prob(x) if self.by_density else self.reward(x)
        if found.shape != x.shape[:1]:
            raise ValueError(
                f"TrajectoryBalance: expected one log reward for each row, ({len(x)},), got "
                f"{tuple(found.shape)}; sum over the entries of a row, or squeeze(-1)"
            )
        if values_are_known() and not found.isfinite().all():
            raise ValueError(
                "TrajectoryBalance: expected finite log rewards, got "
                f"{found[~found.isfinite()][0].item()}; give what should not be drawn a low one, "
                "such as -50"
            )
        return found.to(self.slow_log_z) / self.temperature


def _check_known(gen: Any) -> None:
    """Refuses a model whose density is not even known up to a constant."""
    kind = density_kind(gen())
    if kind not in KNOWN:
        raise ValueError(
            f"TrajectoryBalance: expected a reward of density {', '.join(KNOWN)}, got {kind} "
            f"({type(gen).__name__}); pass a function of rows that gives one number for each"
        )


def _check_local(sites: Sites) -> None:
    for name, site in sites.items():
        if not in_plate(site, "data"):
            raise ValueError(
                f"TrajectoryBalance: expected every site inside the plate 'data', got '{name}' "
                "outside of it: each draw is an object with a trajectory of its own; use a family "
                "without parameters that are drawn, such as GFlowNet or MADE"
            )
