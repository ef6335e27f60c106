"""Markov chain Monte Carlo on the full data: the No-U-Turn sampler, discrete sites summed out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import NUTS
from pyro.infer.autoguide import init_to_uniform, init_to_value
from torch import Tensor
from tqdm import tqdm

from probgen.core.density import density
from probgen.core.runtime import is_enumerated, isolated, latent_sites, sample_sites
from probgen.infer.posterior import complete
from probgen.infer.simulate import Draws, Site, holds_data, shape_of, trace_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


@dataclass(frozen=True)
class Chains:
    """Draws of several chains, and what the sampler noted with each.

    Attributes
    ----------
    draws : dict of str to Tensor
        ``(chain, draw, *plate dims, *event)`` for each latent and deterministic site, in its natural space.
    stats : dict of str to Tensor
        ``(chain, draw)`` each, under ArviZ's names: ``diverging`` (bool), ``energy`` and ``lp`` (nats; ``lp`` is the
        log joint density in the unconstrained space), ``acceptance_rate`` (average over a trajectory),
        ``step_size``, ``n_steps`` and ``tree_depth`` (of a trajectory).
    """

    draws: Draws
    stats: dict[str, Tensor] = field(default_factory=dict)

    @property
    def merged(self) -> Draws:
        """The draws of all chains in one dim, ``(chain * draw, ...)``: what ``predictive(..., given=)`` takes."""
        return {name: value.flatten(0, 1) for name, value in self.draws.items()}


def mcmc(
    gen: GenerativeModel,
    *batch: Any,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    seed: int | None = None,
    init: Mapping[str, Tensor] | None = None,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    progress: bool = True,
) -> Chains:
    r"""Draws from the exact posterior of every continuous latent site, by the No-U-Turn sampler.

    .. math:: p(\theta, z \mid x) \propto \sum_k p(x, z, k, \theta)

    with the enumerated sites k summed out; parameters of the modules stay as they are. The chains run one after the
    other, on the full data, at the precision of the model's tensors (float64 helps with sums over many rows).

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program; its guide is not used.
    *batch : Tensor
        What the programs take: all of the data.
    draws, tune, chains : int
        Draws kept in each chain, steps before them that adapt step size and scales, number of chains.
    seed : int, optional
        Makes the chains reproducible; each has its own stream either way, and torch's generator is left alone.
    init : mapping of str to Tensor, optional
        Starting points ``(chains, *plate dims, *event)`` of some sites in their natural space, for instance
        ``posterior(gen, x, draws=chains)``; default: uniform on (-2, 2) in the unconstrained space.
    target_accept : float
        Acceptance rate that the step size is adapted to; nearer to 1 if there are divergences.
    max_tree_depth : int
        Bound on the doublings of a trajectory.
    progress : bool
        Whether to show a bar where there is a terminal.

    Returns
    -------
    Chains
        ``(chain, draw, *plate dims, *event)`` for each latent and deterministic site, and the sampler's statistics.

    Raises
    ------
    ValueError
        If nothing is observed, a plate is subsampled, a discrete site is not enumerated, a site's density is only
        estimated, or there is no continuous latent site.

    References
    ----------
    Hoffman, Gelman (2014), The No-U-Turn sampler, https://arxiv.org/abs/1111.4246;
    Betancourt (2017), A conceptual introduction to Hamiltonian Monte Carlo, https://arxiv.org/abs/1701.02434

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Program
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> found = mcmc(Program(model), torch.ones(8), draws=10, tune=10, chains=2, seed=0)
    >>> found.draws["mu"].shape, found.stats["energy"].shape
    (torch.Size([2, 10]), torch.Size([2, 10]))
    """
    _check_counts(draws=draws, tune=tune, chains=chains)
    source = None if seed is None else torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (chains,), generator=source).tolist()
    runs = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        sites = _sampled(gen, batch)
        starts = _starts(sites, init or {}, chains)
        bar = tqdm(total=chains * (tune + draws), disable=None if progress else True, unit="step")
        with bar, isolated(), pyro.validation_enabled(False):  # a diverging trajectory leaves the support
            for stream, start in zip(seeds, starts, strict=True):
                kernel = RecordingNUTS(
                    gen.model,
                    init_strategy=start,
                    target_accept_prob=target_accept,
                    max_tree_depth=max_tree_depth,
                    max_plate_nesting=gen.max_plate_nesting,
                )
                torch.manual_seed(stream)
                runs.append(_chain(kernel, batch, tune, draws, bar))
        values, stats = (_stack(part) for part in zip(*runs, strict=True))
        values = {name: values[name].reshape(chains, draws, *shape_of(site)) for name, site in sites.items()}
        return _with_deterministic(gen, batch, Chains(values, stats))


class RecordingNUTS(NUTS):
    """Pyro's No-U-Turn kernel that notes what happened in each transition."""

    def sample(self, params: Draws) -> Draws:
        self.leaves: list[Any] = []
        self.energy = torch.zeros(())
        return super().sample(params)

    def _build_basetree(self, *args: Any) -> Any:
        """One leapfrog step; its last argument is the energy at the start of the trajectory."""
        self.leaves.append(super()._build_basetree(*args))
        self.energy = args[-1]
        return self.leaves[-1]

    def statistics(self) -> dict[str, Tensor]:
        """Of the transition just made, under ArviZ's names."""
        steps = len(self.leaves)
        return {
            "diverging": torch.stack([torch.as_tensor(leaf.diverging) for leaf in self.leaves]).any(),
            "energy": self.energy,
            "lp": -self._potential_energy_last,
            "acceptance_rate": torch.stack([leaf.sum_accept_probs for leaf in self.leaves]).mean(),
            "step_size": torch.tensor(float(self.step_size)),
            "n_steps": torch.tensor(steps),
            "tree_depth": torch.tensor(steps.bit_length()),
        }


def _chain(kernel: RecordingNUTS, batch: tuple, tune: int, draws: int, bar: tqdm) -> tuple[Draws, dict[str, Tensor]]:
    """Natural-space draws of one chain, and the statistics of each."""
    kept, stats = [], []
    kernel.setup(tune, *batch)
    params, transforms = kernel.initial_params, kernel.transforms
    for step in range(tune + draws):
        params = kernel.sample(params)
        if step >= tune:
            kept.append({name: transforms[name].inv(value).detach() for name, value in params.items()})
            stats.append({name: value.detach() for name, value in kernel.statistics().items()})
        bar.update()
    kernel.cleanup()
    return _stack(kept), _stack(stats)


def _stack(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _with_deterministic(gen: GenerativeModel, batch: tuple, chains: Chains) -> Chains:
    values = complete(gen, *batch, given=chains.merged, discrete=False)
    counts = next(iter(chains.draws.values())).shape[:2]
    return Chains({name: value.unflatten(0, counts) for name, value in values.items()}, chains.stats)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")


@torch.no_grad()
def _sampled(gen: GenerativeModel, batch: tuple) -> dict[str, Site]:
    """The continuous latent sites; refuses programs that the sampler would get wrong."""
    probe = trace_of(gen.model, batch)
    if not any(holds_data(site) for site in sample_sites(probe).values()):
        raise ValueError("expected observed sites, found none; pass the data, or draw with prior_predictive")
    for site in sample_sites(probe).values():
        _check_plates(site)
        _check_density(site)
    sites = {name: site for name, site in latent_sites(probe).items() if not is_enumerated(site)}
    for name, site in sites.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"expected continuous latent sites, '{name}' is discrete; sum it out with infer={{'enumerate': "
                "'parallel'}, or write the marginal density (probgen.distributions)"
            )
    if not sites:
        raise ValueError("expected continuous latent sites, found none; there is nothing to draw by MCMC")
    return sites


def _check_plates(site: Site) -> None:
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"expected the full data, plate '{frame.name}' around site '{site['name']}' holds {frame.size} of "
                f"{frame.full_size} rows; MCMC needs all rows, or use fit with a guide for mini-batches"
            )


def _check_density(site: Site) -> None:
    """A latent prior may lack its constant; a likelihood must not, and no term may be random."""
    kind, allowed = density(site["fn"]), ("exact",) if site["is_observed"] else ("exact", "unnormalised")
    if kind not in allowed:
        raise ValueError(
            f"expected an exact density at site '{site['name']}', got {kind}; its gradient is not that of the "
            "posterior: use a family with an exact density there, or fit a guide"
        )


def _starts(sites: Mapping[str, Site], init: Mapping[str, Tensor], chains: int) -> list[Callable]:
    """Pyro's initialisation of each chain: given values where there are some."""
    for name, value in init.items():
        if name in sites and tuple(value.shape) != (expected := (chains, *shape_of(sites[name]))):
            raise ValueError(
                f"expected init['{name}'] of shape {expected}, got {tuple(value.shape)}; one start for each chain, for "
                "instance posterior(gen, x, draws=chains)"
            )
    full = {name: init[name].reshape(chains, *site["value"].shape) for name, site in sites.items() if name in init}
    rows = ({name: value[chain] for name, value in full.items()} for chain in range(chains))
    return [init_to_value(values=values, fallback=init_to_uniform) for values in rows]
