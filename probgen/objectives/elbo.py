"""The evidence lower bound.

Closed-form divergences where they exist, low-variance estimates elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.loss_parts import note, noting
from probgen.core.penalty import is_penalty
from probgen.core.recording import RecordedSites, log_prob, record_sites, score_function
from probgen.core.runtime import PARTICLES, MultiFrameTensor, isolated
from probgen.core.sites import Sites
from probgen.core.sums import scaled, sum_of
from probgen.objectives.base import Objective, check_pair
from probgen.objectives.baselines import Baselines, Signal, baseline_of
from probgen.objectives.divergence import Cost, site_divergence
from probgen.objectives.schedules import WeightSchedule, at_next_step

CHARGED = ("kl", "free_bits")  # the parts with the weight beta


@runtime_checkable
class HasBoundTerms(Protocol):
    """A distribution whose log density is a bound that is a sum of terms with names."""

    def bound_terms(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of ``log_prob``: ``(*batch, *event) -> (*batch,)`` each."""


class Estimate(NamedTuple):
    """One run's loss, its parts without their weights, and what score-function terms need.

    For each site drawn without reparameterization: its score and the cost it had.
    """

    loss: Tensor
    signals: list[Signal]
    parts: dict[str, Tensor]


class ELBO(Objective):
    r"""The negative evidence lower bound.

    For models without latents the negative log-likelihood itself.

    .. math:: -\sum_b \mathbb E_{q(z \mid x_b)}\big[\log p(x_b \mid z)\big]
              + \beta \sum_b \mathrm{KL}\big(q(z \mid x_b) \,\|\, p(z)\big)

    The divergence of a latent site is the closed form of :func:`torch.distributions.kl_divergence`
    where there is one and both programs draw their latents in the same order; elsewhere it is
    estimated on the draws. Guide sites that are not reparameterized get score-function terms: of
    the costs in their own plates only, and with the mean of the other particles as baseline,
    besides those that sites ask for in ``infer={"baseline": {...}}``
    (:class:`~probgen.objectives.baselines.Baselines`). Scales and masks of sites are respected.

    Parameters
    ----------
    beta : float or callable
        Weight of the divergences: a number, or a function of the step count (a 0-dim tensor, from
        0) such as ``linear_warmup(1000)``. Steps count calls in training mode and are saved with
        the objective; in eval mode the weight at step infinity is used.
    free_bits : float or dict
        Nats per latent dim that cost nothing more: each dim contributes the larger of this and its
        divergence averaged over rows. A divergence that does not split into D dims counts as a
        whole, with D times the allowance. A number for all sites, or a dict of numbers by site, 0
        for those not named: levels of a hierarchy that would switch off are kept alone.
    particles : int
        Draws per row.
    plate : str
        Name of the plate of the rows; free bits average over it.
    max_plate_nesting : int
        Number of dims that the programs' plates use; particles take the next dim to the left.
    vectorized : bool
        Whether the programs accept particles to the left of their plates; otherwise they run once
        per particle.

    Raises
    ------
    ValueError
        At the call, if a model site's density is weaker than a bound, a guide site's is not exact,
        their latent sites do not match, or a site asks for a baseline that does not fit; the error
        names the site and what to do.

    References
    ----------
    Kingma, Welling (2014), https://arxiv.org/abs/1312.6114; Ranganath, Gerrish, Blei (2014),
    https://arxiv.org/abs/1401.0118 (score-function terms); Higgins et al. (2017),
    https://openreview.net/forum?id=Sy2fzU9gl (beta); Kingma et al. (2016),
    https://arxiv.org/abs/1606.04934, appendix C.8 (free bits)

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x), dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x), dim=-1):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> _ = torch.manual_seed(0)
    >>> x = torch.tensor([0.0, 1.0])
    >>> ELBO(particles=4000)(model, guide)(x), -dist.Normal(0.0, 2**0.5).log_prob(x).sum()
    (tensor(2.7...), tensor(2.7810))
    """

    weighs_rows = True
    step: Tensor

    def __init__(
        self,
        beta: float | WeightSchedule = 1.0,
        free_bits: float | Mapping[str, float] = 0.0,
        particles: int = 1,
        *,
        plate: str = "data",
        max_plate_nesting: int = 1,
        vectorized: bool = True,
    ):
        checks.scheduled(beta=beta)
        if isinstance(free_bits, Mapping):
            checks.not_negative(**free_bits)
        else:
            checks.not_negative(free_bits=free_bits)
        checks.at_least(1, particles=particles)
        checks.text(plate=plate)
        checks.at_least(0, max_plate_nesting=max_plate_nesting)
        checks.flag(vectorized=vectorized)
        super().__init__()
        self.beta = beta
        self.free_bits = free_bits
        self.particles = particles
        self.plate = plate
        self.max_plate_nesting = max_plate_nesting
        self.vectorized = vectorized
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.baselines = Baselines()

    def prepare(self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> None:
        """Makes the buffers of the decaying averages that guide sites ask for.

        The random state is left as it was.
        """
        devices = {value.device for value in batch if torch.is_tensor(value) and value.is_cuda}
        with isolated(), torch.random.fork_rng(devices), torch.no_grad():
            run = record_sites(
                lambda *batch: None, guide, batch, self._inside, self.max_plate_nesting
            )
        for name, site in run.guide.items():
            score = score_function(site)
            asked = None if score is None else baseline_of(site)
            if score is not None and asked is not None and asked.use_decaying_avg_baseline:
                self.baselines.start(
                    name, score.detach() if self._inside is None else score.detach()[0]
                )

    @property
    def _inside(self) -> int | None:
        """Number of particles in one run, where it has several."""
        return self.particles if self.vectorized and self.particles > 1 else None

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        beta = at_next_step(self.beta, self.step, self.training)
        estimates = []
        for _ in range(1 if self.vectorized else self.particles):
            run = record_sites(model, guide, batch, self._inside, self.max_plate_nesting)
            check_pair(run.model, run.guide, "bound", "ELBO")
            self._check_named(run)
            estimates.append(self._estimate(run, beta))
        loss = sum_of(estimate.loss for estimate in estimates)
        if any(estimate.signals for estimate in estimates):
            signals = [estimate.signals for estimate in estimates]
            loss = loss + self.baselines(signals, self.particles)
        if noting():
            self._note([estimate.parts for estimate in estimates], beta)
        return loss if self.particles == 1 else loss / self.particles

    def _note(self, runs: list[dict[str, Tensor]], beta: float | Tensor) -> None:
        """Notes the parts of the loss, averaged over particles."""
        for name in runs[0]:
            value = sum_of(parts[name] for parts in runs)
            value = value if self.particles == 1 else value / self.particles
            note(name, value, beta if name in CHARGED else 1.0)

    def _estimate(self, run: RecordedSites, beta: float | Tensor) -> Estimate:
        shared = run.model.keys() & run.guide.keys()
        ordered = [name for name in run.model if name in shared] == [
            name for name in run.guide if name in shared
        ]
        alone = {name: site for name, site in run.model.items() if name not in shared}
        if noting() and not run.guide and (terms := _bound_terms(alone)):
            (site,) = alone.values()
            return _of_bound(site, terms)
        costs = [Cost(site, -log_prob(site)) for site in alone.values()]
        penalties = {name: site for name, site in run.guide.items() if is_penalty(site)}
        for name, site in run.guide.items():
            if name in penalties:
                continue
            cost = site_divergence(site, run.model.get(name), ordered)._replace(weight=beta)
            allowance = self._allowance(name)
            costs.append(self._free(cost, allowance) if allowance else cost)
        sums = [cost.sum() for cost in costs]
        weighted = zip(costs, sums, strict=True)
        charged = [scaled(value, cost.weight) for cost, value in weighted]
        parts = _parts(costs, sums, len(alone)) if noting() and run.guide else {}
        for name, site in penalties.items():
            paid = log_prob(site).sum()
            charged.append(paid)
            parts |= {name: paid.detach()} if noting() else {}
        loss = sum_of(charged) if charged else torch.zeros(())
        return Estimate(loss, _signals(costs), parts)

    def _allowance(self, name: str) -> float:
        """The free nats per dim of a site."""
        if isinstance(self.free_bits, Mapping):
            return self.free_bits.get(name, 0.0)
        return self.free_bits

    def _check_named(self, run: RecordedSites) -> None:
        """Refuses free bits for sites that the guide does not draw."""
        if not isinstance(self.free_bits, Mapping):
            return
        for name in self.free_bits:
            if name not in run.guide:
                raise ValueError(
                    f"ELBO: expected free bits for sites that the guide draws, got '{name}' (it "
                    f"draws {', '.join(run.guide) or 'none'}); correct the name in free_bits"
                )

    def _free(self, cost: Cost, allowance: float) -> Cost:
        """Charges the allowance instead of the divergence of each dim where that is smaller."""
        site = cost.site
        dims = cost.dims
        if site["infer"].get("is_auxiliary"):
            raise ValueError(
                "ELBO: expected free bits with a guide that draws the model's latent sites "
                "themselves, got the helper "
                f"site '{site['name']}'; drop free_bits, or write the guide without it"
            )
        if site["is_observed"]:  # a deterministic site is no latent dim
            return cost
        rows = [
            f.dim - dims
            for f in site["cond_indep_stack"]
            if f.vectorized and f.name in (self.plate, PARTICLES)
        ]
        counts = scale_and_mask(
            cost.entries.new_ones(site["fn"].batch_shape), site["scale"], site["mask"]
        )
        counts = counts.reshape(counts.shape + (1,) * dims)
        spent = cost.entries.sum(rows, keepdim=True) if rows else cost.entries
        allowed = allowance * cost.size * (counts.sum(rows, keepdim=True) if rows else counts)
        charged = torch.where(spent > allowed, 0.0, allowed).sum()
        return cost._replace(
            entries=torch.where(spent > allowed, cost.entries, 0.0),
            charged=charged,
            spent=cost.entries.sum(),
        )


def _parts(costs: list[Cost], sums: list[Tensor], ahead: int) -> dict[str, Tensor]:
    """Reconstruction and divergence of one run, and what the free bits charge beyond it.

    The first costs, ``ahead`` of them, are those of sites that the guide does not draw.
    """
    values = [value.detach() for value in sums]
    charged = sum(values[ahead + 1 :], values[ahead])
    parts = {"reconstruction": sum(values[1:ahead], values[0] if ahead else 0 * charged)}
    spent = [cost.spent for cost in costs[ahead:]]
    if all(value is None for value in spent):
        return parts | {"kl": charged}
    own = zip(values[ahead:], spent, strict=True)
    kl = sum_of(value if divergence is None else divergence.detach() for value, divergence in own)
    return parts | {"kl": kl, "free_bits": charged - kl}


def _bound_terms(sites: Sites) -> dict[str, Tensor]:
    """The terms of the one site of a program, whose density is a bound by itself; else none."""
    distributions = [site["fn"] for site in sites.values()]
    if (
        len(distributions) != 1
        or density_kind(distributions[0]) != "bound"
        or not isinstance(distributions[0], HasBoundTerms)
    ):
        return {}
    (site,) = sites.values()
    return distributions[0].bound_terms(site["value"])


def _of_bound(site: dict[str, Any], terms: dict[str, Tensor]) -> Estimate:
    """The loss that is the sum of the terms of a bound."""
    loss = -scale_and_mask(sum(terms.values()), site["scale"], site["mask"]).sum()
    parts = {
        name: -scale_and_mask(value.detach(), site["scale"], site["mask"]).sum()
        for name, value in terms.items()
    }
    return Estimate(loss, [], parts)


def _in_plates(cost: Cost) -> Tensor:
    """What a site causes, with a dim for each plate around it.

    A plate without size does not broadcast its sites.
    """
    caused = cost.caused()
    deepest = max(
        (-frame.dim for frame in cost.site["cond_indep_stack"] if frame.vectorized), default=0
    )
    return caused.reshape((1,) * (deepest - caused.ndim) + caused.shape)


def _signals(costs: list[Cost]) -> list[Signal]:
    """Each score with the costs in its site's plates.

    A site's own closed form is no consequence of its draw.
    """
    drawn = [cost for cost in costs if cost.score is not None]
    if not drawn:
        return []
    caused = MultiFrameTensor(
        *((cost.site["cond_indep_stack"], _in_plates(cost)) for cost in costs)
    )
    rewards = [
        caused.sum_to(cost.site["cond_indep_stack"]) - (cost.caused() if cost.closed else 0.0)
        for cost in drawn
    ]
    return [
        Signal(cost.site, cost.score, reward)
        for cost, reward in zip(drawn, rewards, strict=True)
        if cost.score is not None
    ]
