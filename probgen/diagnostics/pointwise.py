"""Log-likelihoods of rows given draws of what all rows share.

One for each observed site, and one for all together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from probgen.compile.scheduling import Call, repeated, windows
from probgen.core.drawn_together import drawn_together
from probgen.core.kinds import average, check_rows_drawn, kind_of, worst
from probgen.core.missing import has_missing
from probgen.core.reading import Reading, read
from probgen.core.rows import row_count, tensors_of
from probgen.core.runtime import evaluating, validation
from probgen.core.score import Score
from probgen.core.sites import (
    Site,
    density_sites,
    event_of,
    in_plate,
    is_enumerated,
    latent_sites,
    observed_sites,
    plates_of,
    sample_sites,
)
from probgen.infer.given import model_trace
from probgen.infer.simulate import Draws, trace_of
from probgen.scoring import measure_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

Proposal = Callable[[Draws], Callable[..., Any]]
Variables = dict[str, list[str] | None]

SEPARATE = (
    16  # observed sites of a row that are worth a variable each; more are the steps of a series
)


@torch.no_grad()
def log_likelihoods(
    gen: GenerativeModel, batch: tuple, given: Mapping[str, Tensor], particles: int, max_rows: int
) -> Draws:
    r"""Log-likelihood of every row given draws of the globals, marginal over local latents.

    ``(draws, rows)`` each.

    .. math:: \log \tfrac1M \sum_m \frac{p(x_b, z_m \mid \theta)}{q(z_m)}, \qquad z_m \sim q

    Enumerated sites are summed out exactly. q is the guide where it has a density for each row,
    else the prior :math:`p(z \mid \theta)`; without local latents the value is exact. Programs that
    do not say that they take several draws make them as those of
    :func:`probgen.diagnostics.guide_draws.guide_draws`.

    Returns
    -------
    dict of str to Tensor
        For each of :func:`variables_of` a tensor ``(draws, rows)`` in nats.

    Raises
    ------
    ValueError
        If ``given`` lacks a global site, rows have no density of their own, or one known up to its
        constant only.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> found = log_likelihoods(Program(model), (torch.zeros(3),), {"mu": torch.tensor([0.0, 1.0])}, 1, 100)
    >>> found["y"].sum(1)
    tensor([-2.7568, -4.2568])
    """
    with drawn_together(gen, batch):
        return _log_likelihoods(gen, batch, given, particles, max_rows)


def _log_likelihoods(
    gen: GenerativeModel, batch: tuple, given: Mapping[str, Tensor], particles: int, max_rows: int
) -> Draws:
    proposal, fixed, local, first = _parts(gen, batch, given)
    capacity = max(1, max_rows // row_count(gen, batch))
    draws = len(next(iter(given.values()))) if given else 1
    particles = particles if local else 1
    size, together = (capacity, 1) if gen.vectorized else (1, capacity)
    repeats = min(particles, size)
    cuts = windows(draws, size // repeats)
    rounds = -(-particles // repeats)
    size = cuts[0].stop * repeats
    kind = _checked(first, gen.plate)
    variables = variables_of(first.model, gen.plate)

    def weigh(*values: Tensor) -> Draws:
        with validation(False):
            pair = _run(gen, batch, proposal, dict(zip(fixed, values, strict=True)), size)
        return {
            name: pair.by_row(gen.plate, sites).expand(size, -1)
            for name, sites in variables.items()
        }

    own = [
        tuple(v[c.start : c.stop].repeat_interleave(repeats, 0) for v in fixed.values())
        for c in cuts
    ]
    calls = [Call(own=values) for values in own for _ in range(rounds)]
    runs = repeated(weigh, calls, "auto", together, any(map(has_missing, tensors_of(batch))))
    parts = []
    for cut in cuts:
        found = list(islice(runs, rounds))
        parts.append(
            {
                name: _averaged([run[name] for run in found], repeats, kind)[cut.skip :]
                for name in variables
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in variables}


class _Parts(NamedTuple):
    """What draws the local latents, the globals as the program draws them, and a run with the first."""

    proposal: Proposal
    fixed: Draws
    local: list[str]
    first: Reading


def _parts(gen: GenerativeModel, batch: tuple, given: Mapping[str, Tensor]) -> _Parts:
    probe = model_trace(gen, batch)
    if not observed_sites(probe):
        raise ValueError(_nothing_observed(probe, gen.plate))
    latent = {name: site for name, site in latent_sites(probe).items() if not is_enumerated(site)}
    local = [name for name, site in latent.items() if in_plate(site, gen.plate)]
    fixed = _full({name: site for name, site in latent.items() if name not in local}, given, gen)
    proposal = _proposal(gen, batch, local)
    first = _run(gen, batch, proposal, {name: value[:1] for name, value in fixed.items()}, 1)
    return _Parts(proposal, fixed, local, first)


@torch.no_grad()
def score_of_draws(
    gen: GenerativeModel,
    batch: tuple,
    given: Mapping[str, Tensor],
    particles: int = 1,
    max_rows: int = 2**15,
) -> Score:
    r"""Log-likelihood of every row under the mean over draws of the globals.

    .. math:: \log \tfrac1S \sum_s p(x_b \mid \theta_s)

    As of :func:`log_likelihoods`, of all observed sites together: unbiased for the density under the
    posterior that the draws come from.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> print(score_of_draws(Program(model), (torch.zeros(3),), {"mu": torch.tensor([0.0, 1.0])}))
    >= -1.14 ± 0.00 nats (unbiased, 2 particles)
    """
    with drawn_together(gen, batch):
        found = _log_likelihoods(gen, batch, given, particles, max_rows)
        first = _parts(gen, batch, given).first
    rows = list(found.values())[-1]  # the joint one comes last
    kind = worst("unbiased", _checked(first, gen.plate))
    value = average(rows, kind)
    return Score(value, kind, particles=len(rows), measure=measure_of(first, gen.plate))


def variables_of(model: poutine.Trace, plate: str) -> Variables:
    """Names of log-likelihoods, each with the observed sites that it is of.

    ``None`` for all of them together.

    One for each observed site inside the plate of the rows, and where there are several the joint
    one, ``"joint"`` (with underscores after it where a site is called that). The joint one alone
    for a plate that is a loop, where each row has sites of its own, and for the many steps of a
    series.
    """
    inside = {name: site for name, site in observed_sites(model).items() if in_plate(site, plate)}
    if not inside:
        raise ValueError(_nothing_observed(model, plate))
    joint = "joint"
    names = set(sample_sites(model))
    while joint in names:
        joint += "_"
    if plates_of(model)[plate].kind == "sequential" or len(inside) > SEPARATE:
        return {joint: None}
    if len(inside) == 1:
        return {next(iter(inside)): None}
    return {name: [name] for name in inside} | {joint: None}


def _nothing_observed(model: poutine.Trace, plate: str) -> str:
    factors = [name for name, site in density_sites(model).items() if isinstance(site["fn"], Unit)]
    if factors:
        return (
            f"expected an observed site inside plate '{plate}', got pyro.factor "
            f"({', '.join(factors)}), whose constant "
            "nobody knows; state the likelihood with pyro.sample(..., obs=...)"
        )
    return (
        f"expected an observed site inside plate '{plate}', got none; open the plate around the "
        "observed data, with "
        "one entry for each row"
    )


def _run(
    gen: GenerativeModel, batch: tuple, proposal: Proposal, values: Draws, size: int
) -> Reading:
    """The model with given globals, local latents drawn from the proposal."""
    if not gen.vectorized:
        values = {name: value[0] for name, value in values.items()}
    model = poutine.condition(gen.model, values)
    with evaluating():
        return read(
            model, proposal(values), batch, size if gen.vectorized else None, gen.max_plate_nesting
        )


def _checked(pair: Reading, plate: str) -> str:
    """The kind of the rows' numbers; factors outside of the plate are no part of them."""
    pair.by_row(plate)
    model = pair.model.copy()
    for name, site in density_sites(pair.model).items():
        if isinstance(site["fn"], Unit) and not in_plate(site, plate):
            model.remove_node(name)
    kind = kind_of(Reading(model, pair.guide), plate)
    if kind == "unnormalized":
        raise ValueError(
            f"expected a normalized log-likelihood of the rows in plate '{plate}', got one up to a "
            "constant; leave "
            "log_likelihood out of groups="
        )
    return kind


def _averaged(runs: list[Tensor], repeats: int, kind: str) -> Tensor:
    """Log weights of some runs, ``(draws * repeats, rows)`` each.

    Over all draws of the local latents.
    """
    weights = torch.stack([rows.unflatten(0, (-1, repeats)) for rows in runs], 1).flatten(1, 2)
    return average(weights.movedim(1, 0), kind)


def _proposal(gen: GenerativeModel, batch: tuple, local: list[str]) -> Proposal:
    """What draws the local latents given the globals.

    The guide where it has a density for each row, else the prior.
    """
    if not local:
        return lambda values: lambda *batch: None
    if _draws_rows(gen, batch, local):
        return lambda values: poutine.block(poutine.condition(gen.guide, values), hide=list(values))
    return lambda values: poutine.block(poutine.condition(gen.model, values), expose=local)


def _draws_rows(gen: GenerativeModel, batch: tuple, local: list[str]) -> bool:
    """Whether the guide draws these sites, with a density for each row."""
    if not set(local) <= set(latent_sites(trace_of(gen.guide, batch))):
        return False
    with evaluating():
        pair = read(gen.model, gen.guide, batch, None, gen.max_plate_nesting)
    try:
        check_rows_drawn(pair, gen.plate)
    except ValueError:
        return False
    return True


def _full(sites: Mapping[str, Site], given: Mapping[str, Tensor], gen: GenerativeModel) -> Draws:
    """Given values as the program draws them.

    Singleton dims between the draws and the dims of their plates.
    """
    if missing := sorted(set(sites) - set(given)):
        raise ValueError(
            f"expected draws of every global site, got none of {', '.join(missing)}; give them in "
            "chains=, or a guide"
        )
    values = {}
    for name, site in sites.items():
        batch = site["fn"].batch_shape
        padding = gen.max_plate_nesting - len(batch) if gen.vectorized else 0
        values[name] = given[name].reshape(-1, *(1,) * padding, *batch, *event_of(site))
    return values
