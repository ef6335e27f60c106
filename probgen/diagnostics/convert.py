"""Everything that ArviZ can use about a fitted model, in ArviZ's container."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyro import poutine
from torch import Tensor

from probgen.core import checks
from probgen.core.drawn_together import drawn_together
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.seeds import Seed, takes_seed
from probgen.core.sites import Site, latent_sites, observed_sites, sample_sites, shape_of
from probgen.core.turns import in_turn
from probgen.diagnostics.adapter import SAMPLE_DIMS, Labeled, container
from probgen.diagnostics.labels import constants, dims_of, observation, to_numpy
from probgen.diagnostics.sampled import UNDEFINED, Sampled, from_chains, from_guide
from probgen.infer.draws import as_chains
from probgen.infer.given import GivenDraws, model_trace
from probgen.infer.mcmc import Chains, as_program
from probgen.infer.posterior import predictive, prior_predictive
from probgen.infer.simulate import Unobserved

if TYPE_CHECKING:
    import arviz
    import xarray

    from probgen.core.module import GenerativeModel


@dataclass(frozen=True)
class Groups:
    """The groups of ArviZ's schema, each ``{variable: (dims, array)}``."""

    gen: GenerativeModel
    batch: tuple
    probe: poutine.Trace
    sampled: Sampled
    names: Mapping[str, tuple[str, ...]]
    draws: int
    max_rows: int
    wanted: Collection[str]
    chains: Chains | None = None

    def posterior(self) -> dict[str, Labeled]:
        return self._labeled(self.sampled.draws if self.chains is None else self.chains.draws)

    def warmup_posterior(self) -> dict[str, Labeled]:
        return self._labeled(self._warmup.draws)

    def warmup_sample_stats(self) -> dict[str, Labeled]:
        return _statistics(self._warmup.stats)

    def posterior_predictive(self) -> dict[str, Labeled]:
        if not self._observed:
            return {}
        drawn = self.sampled.draws
        given = {name: value.flatten(0, 1) for name, value in drawn.items()} if drawn else None
        counts = next(iter(drawn.values())).shape[:2] if drawn else (1, self.draws)
        sites = list(self._observed)
        values = predictive(
            self.gen,
            *self.batch,
            draws=self.draws,
            given=given,
            sites=sites,
            max_rows=self.max_rows,
        )
        return self._labeled({name: value.unflatten(0, counts) for name, value in values.items()})

    def prior(self) -> dict[str, Labeled]:
        return self._forward(latent_sites(self.probe))

    def prior_predictive(self) -> dict[str, Labeled]:
        return self._forward(self._observed)

    @cached_property
    def _simulated(self) -> dict[str, Tensor]:
        """Draws of the program run forward, of what is wanted of it: the groups go together."""
        parts = {"prior": latent_sites(self.probe), "prior_predictive": self._observed}
        sites = [name for group, part in parts.items() if group in self.wanted for name in part]
        return prior_predictive(
            self.gen, *self.batch, draws=self.draws, sites=sites, max_rows=self.max_rows
        )

    def log_likelihood(self) -> dict[str, Labeled]:
        dims = (*SAMPLE_DIMS, self.gen.plate)
        return {
            name: (dims, to_numpy(value)) for name, value in self.sampled.log_likelihood.items()
        }

    def sample_stats(self) -> dict[str, Labeled]:
        return _statistics(self.sampled.stats)

    def observed_data(self) -> dict[str, Labeled]:
        return {name: observation(site, self.names[name]) for name, site in self._observed.items()}

    def constant_data(self) -> dict[str, Labeled]:
        return constants(self.gen, self.batch, [site["value"] for site in self._observed.values()])

    @property
    def _warmup(self) -> Chains:
        kept = None if self.chains is None else self.chains.warmup
        return Chains({}) if kept is None else kept

    @property
    def _observed(self) -> dict[str, Site]:
        return observed_sites(self.probe)

    def _labeled(self, values: Mapping[str, Tensor]) -> dict[str, Labeled]:
        return {
            name: ((*SAMPLE_DIMS, *self._dims(name, value)), to_numpy(value))
            for name, value in values.items()
        }

    def _dims(self, name: str, value: Tensor) -> tuple[str, ...]:
        """Names of the dims after chain and draw; a guide may have sites that the model has not."""
        return self.names.get(name) or tuple(
            f"{name}_dim_{i}" for i in range(value.ndim - len(SAMPLE_DIMS))
        )

    def _forward(self, sites: Collection[str]) -> dict[str, Labeled]:
        return self._labeled({name: self._simulated[name][None] for name in sites})


SIMULATED = ("posterior_predictive", "prior", "prior_predictive")
FEW = 20  # draws that take no longer one by one than a trial of several
GROUPS = {
    "posterior": Groups.posterior,
    "posterior_predictive": Groups.posterior_predictive,
    "prior": Groups.prior,
    "prior_predictive": Groups.prior_predictive,
    "log_likelihood": Groups.log_likelihood,
    "sample_stats": Groups.sample_stats,
    "observed_data": Groups.observed_data,
    "constant_data": Groups.constant_data,
    "warmup_posterior": Groups.warmup_posterior,
    "warmup_sample_stats": Groups.warmup_sample_stats,
}


@explained
@in_turn
@takes_seed
def to_arviz(
    gen: GenerativeModel | Callable[..., Any],
    *batch: Any,
    draws: int = 1000,
    chains: GivenDraws | None = None,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    groups: Collection[str] | None = None,
    particles: int = 16,
    max_rows: int = 2**15,
    max_elements: int = 10**8,
    seed: Seed = None,
) -> arviz.InferenceData | xarray.DataTree:
    r"""Posterior, predictions, pointwise log-likelihood and data of a fitted model.

    For ArviZ's plots and statistics.

    Without ``chains`` the posterior is one chain of draws from the guide, and ``sample_stats``
    holds for each of them

    .. math:: \mathtt{log\_p} = \log p(\theta) + \sum_b \log p(x_b \mid \theta), \qquad
              \mathtt{log\_q} = \log q(\theta),

    which :func:`loo` (or ``arviz.loo_approximate_posterior`` of ArviZ 1.x) needs to correct for the
    guide. The log-likelihood of a row is that given the globals: enumerated sites are summed out,
    local latents integrated out by importance sampling. It has a variable for each observed site,
    and where there are several the joint one beside them, ``"joint"``. Where rows have no density
    of their own, log p and log q are those of the whole draw.

    Each draw of ``prior_predictive`` is made from the draw of ``prior`` at the same place.

    Of a point estimate there are no log p and log q; the attribute ``point_estimate`` of all groups
    names its sites.

    Parameters
    ----------
    gen : GenerativeModel or callable
        A family, a Program or a Pyro model, in the mode (train or eval) that it is in.
    *batch : Tensor
        What the programs take, observations included.
    draws : int
        Draws from guide and prior.
    chains : Chains, mapping of str to Tensor or array, pyro.infer.MCMC, Importance or CSIS,
    optional
        What :func:`mcmc` returned for this model and batch, or draws from elsewhere, ``(draw,
        *shape)`` or ``(chain, draw, *shape)``; they take the place of the guide's. Warm-up steps
        that were kept are groups of their own.
    coords : mapping of str to sequence, optional
        Labels of dims; a plate's name is the name of its dim.
    dims : mapping of str to sequence of str, optional
        Names of the rightmost dims of sites, for instance ``{"beta": ["feature"]}``.
    groups : collection of str, optional
        What to compute; leave out what is not needed or too large. Default: all that the model has;
        a warning says why a group is not among them (rows without a density of their own, a
        distribution without a sampler, ...).
    particles : int
        Draws of the local latents for each log-likelihood, where there are globals too.
    max_rows : int
        Bound on (draws x rows) run at once.
    max_elements : int
        Bound on the number of elements of a group.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.

    Returns
    -------
    InferenceData or DataTree
        ``InferenceData`` under ArviZ 0.x, ``DataTree`` under 1.x, both with ``to_netcdf(path)``.

    Raises
    ------
    ValueError
        For unknown groups, dims of unknown sites, labels of the wrong length, a group of more than
        ``max_elements``, or a group that was asked for by name and is not defined.

    References
    ----------
    Magnusson, Andersen, Jonasson, Vehtari (2019), Bayesian leave-one-out cross-validation for large
    data, https://proceedings.mlr.press/v97/magnusson19a.html

    >>> import pyro, torch, pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> def guide(y):
    ...     pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5))
    >>> found = to_arviz(Program(model, guide), torch.ones(3), draws=50)
    >>> dict(found["log_likelihood"]["y"].sizes)
    {'chain': 1, 'draw': 50, 'data': 3}
    """
    checks.function(gen=gen)
    checks.at_least(
        1, draws=draws, particles=particles, max_rows=max_rows, max_elements=max_elements
    )
    checks.mapping(**checks.given(coords=coords, dims=dims))
    checks.texts(**checks.given(groups=groups))
    gen = as_program(gen, *batch)
    wanted = GROUPS if groups is None else groups
    batch = as_rows(gen, *batch, missing="log_likelihood" not in wanted)
    probe = model_trace(gen, batch)
    given = None if chains is None else as_chains(chains, gen, batch)
    _check_groups(wanted)
    _check_size(wanted, probe, draws, given, max_elements)
    names = dims_of(sample_sites(probe).values(), dims or {})
    if given is None:
        sampled = from_guide(gen, batch, draws, particles, max_rows, wanted)
    else:
        sampled = from_chains(gen, batch, _as_drawn(given, probe), particles, max_rows, wanted)
    found = Groups(gen, batch, probe, sampled, names, draws, max_rows, wanted, given)
    simulates = any(name in wanted for name in SIMULATED) and draws > FEW
    attrs = {"inference_library": "probgen", "modeling_interface": "pyro"}
    attrs["draws_of"] = "guide" if given is None else "posterior"
    if sampled.points:
        attrs["point_estimate"] = ", ".join(sampled.points)
    with drawn_together(gen, batch, Unobserved()(gen.model)) if simulates else nullcontext():
        computed = _computed(found, wanted, strict=groups is not None)
    return container(computed, coords, attrs)


def _computed(
    found: Groups, wanted: Collection[str], strict: bool
) -> dict[str, dict[str, Labeled]]:
    """The groups that are defined, and a word about the others.

    The error of one that was asked for by name.
    """
    computed = {}
    reasons: dict[str, list[str]] = {}
    for name, compute in GROUPS.items():
        try:
            if name in wanted:
                found.sampled.check(name)
                computed[name] = compute(found)
        except UNDEFINED as error:
            if strict:
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            reasons.setdefault(reason, []).append(name)
    if reasons:
        left_out = "; ".join(
            f"{' and '.join(names)} ({reason})" for reason, names in reasons.items()
        )
        warnings.warn(f"groups that this model has not: {left_out}", stacklevel=6)
    return computed


def _as_drawn(chains: Chains, probe: poutine.Trace) -> Chains:
    """Chains in the precision of the model, whatever it was sampled in."""
    sites = sample_sites(probe)
    draws = {
        name: value.to(sites[name]["value"]) if name in sites else value
        for name, value in chains.draws.items()
    }
    return Chains(draws, chains.stats)


def _statistics(stats: Mapping[str, Tensor]) -> dict[str, Labeled]:
    return {name: (SAMPLE_DIMS, to_numpy(value)) for name, value in stats.items()}


def _check_groups(groups: Collection[str]) -> None:
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise ValueError(f"expected groups among {', '.join(GROUPS)}, got {', '.join(unknown)}")


def _check_size(
    groups: Collection[str],
    probe: poutine.Trace,
    draws: int,
    chains: Chains | None,
    max_elements: int,
) -> None:
    """Refuses what would not fit in memory before it is computed."""
    latent = sum(shape_of(site).numel() for site in latent_sites(probe).values())
    observed = sum(shape_of(site).numel() for site in observed_sites(probe).values())
    kept = draws if chains is None else next(iter(chains.draws.values())).shape[:2].numel()
    sizes = {
        "posterior": kept * latent,
        "posterior_predictive": kept * observed,
        "prior": draws * latent,
        "prior_predictive": draws * observed,
    }
    for group, size in sizes.items():
        if group in groups and size > max_elements:
            raise ValueError(
                f"expected groups of at most {max_elements:,} elements, {group} would have {size:,}; "
                "ask for fewer draws "
                f"or rows, leave it out with groups=..., or raise max_elements"
            )
