"""Draws from the posterior that a guide stands for.

And from the predictive distributions of a program.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from probgen.compile.scheduling import Choice
from probgen.core import checks
from probgen.core.by_blocks import AT_ONCE, BlockResult, by_blocks, drawn_seed
from probgen.core.checksum import checksum
from probgen.core.entry import as_rows
from probgen.core.enumerating import enumerating
from probgen.core.in_memory import is_stream
from probgen.core.keywords import explained
from probgen.core.kinds import without_guide
from probgen.core.modes import infers
from probgen.core.seeds import Seed, takes_seed
from probgen.core.sites import (
    Site,
    completed_sites,
    holds_data,
    in_plate,
    is_deterministic,
    is_enumerated,
    latent_sites,
    sample_sites,
)
from probgen.core.together import Together
from probgen.infer.given import GivenDraws, follows, guide_trace, merged, model_trace
from probgen.infer.shared_draws import shared_draws
from probgen.infer.simulate import Draws, Runs, Unobserved, trace_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from probgen.core.module import GenerativeModel


@explained
@infers
@torch.no_grad()
@takes_seed
def posterior(
    gen: GenerativeModel,
    *batch: Any,
    draws: int = 1000,
    discrete: bool = False,
    max_rows: int | None = None,
    memory: float | None = None,
    compile: Choice = "auto",
    seed: Seed = None,
    fabric: Fabric | None = None,
) -> Draws | Iterator[BlockResult]:
    r"""Draws of every latent site of the guide, and of the model's deterministic sites.

    In their natural space.

    .. math:: \theta^{(s)}, z^{(s)} \sim q(\theta, z \mid x)

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program; it runs in eval mode, and is left in the mode that it is in.
    *batch : Tensor
        What the programs take: ``x``, or ``x, context``, or a Program's own arguments. Or one stream
        of rows (a file, a DataLoader that does not shuffle, batches), read once, block by block.
    draws : int
        Number of draws; they come from vectorized runs where ``gen.vectorized``, else from one run
        each.
    discrete : bool
        Whether to draw also the enumerated sites that the guide leaves out, from their exact
        conditional given x and the other sites.
    max_rows : int, optional
        Bound on (draws x rows) run at once, in place of the one that ``memory`` sets. Of a stream:
        rows that are read at once.
    memory : float, optional
        Bytes that the tensors of one run may take, judged by a run of one draw; default: 128 MiB,
        or 1 GiB on an accelerator.
    compile : bool or "auto"
        Whether runs after the first ones are made of recorded and compiled operations: where enough
        runs are left to amortize the cost, at once, or never. The same seed gives the same draws in
        all cases.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.
    fabric : lightning_fabric.Fabric, optional
        A launched Fabric: its processes share the draws, and all of them get all; of a stream each gets
        the blocks of its part. Draws are the same for any number of processes, and other ones than
        without a fabric (of a stream the same).

    Returns
    -------
    dict of str to Tensor
        ``(draws, *plate dims, *event)`` for each site. Of a stream: an iterator of such draws for
        one block after the other (:func:`probgen.by_blocks`), globals drawn anew in each.

    Warns
    -----
    UserWarning
        If there is none to draw, where latents are enumerated, or summed out by the density of the
        family (mixtures, hidden Markov models); it says what to ask instead.

    >>> import pyro, pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> def guide(y):
    ...     pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5))
    >>> posterior(Program(model, guide), torch.ones(3), draws=10)["mu"].shape
    torch.Size([10])
    """
    checks.generative(gen=gen)
    checks.at_least(1, draws=draws)
    checks.flag(discrete=discrete)
    checks.at_least(1, **checks.given(max_rows=max_rows))
    checks.positive(**checks.given(memory=memory))
    checks.one_of(("auto", True, False), compile=compile)
    together = Together(fabric)
    if len(batch) == 1 and is_stream(batch[0], gen):
        how: dict[str, Any] = {"draws": draws, "discrete": discrete}
        how |= {"memory": memory, "compile": compile}
        cut: dict[str, Any] = {"max_rows": max_rows or AT_ONCE, "seed": drawn_seed()}
        return by_blocks(posterior, gen, batch[0], fabric=fabric, **cut, **how)
    with together.agreed():
        batch = as_rows(gen, *batch, optional=True)
    together.check_call(gen, batch, {"draws": draws, "discrete": discrete})

    def draw(begin: int, end: int) -> Draws:
        return posterior_of(gen, batch, end - begin, discrete, (max_rows, memory, compile))

    found = shared_draws(draw, draws, together)
    if not found and (why := _why_empty(gen, batch)):
        warnings.warn(f"the posterior has no site: {why}", stacklevel=6)
    return found


def _why_empty(gen: GenerativeModel, batch: tuple) -> str | None:
    """What there is in place of draws, where no site is drawn; ``None`` where there are no latents."""
    latents = latent_sites(model_trace(gen, batch))
    if enumerated := [name for name, site in latents.items() if is_enumerated(site)]:
        return f"{enumerated} are enumerated; draw them with discrete=True"
    if latents:
        return without_guide(list(latents))
    if (told := getattr(gen, "summed_out", None)) is None:
        return None
    what, _, how = told.partition(": ")
    if batch[1:] and batch[1] is not None:
        how = re.sub(r"(gen\.\w+)\(x\)", r"\1(x, context)", how).replace("()", "(context)")
    return f"{type(gen).__name__} sums its {what} out; ask {how}"


def posterior_of(
    gen: GenerativeModel,
    batch: tuple,
    draws: int,
    discrete: bool = False,
    limits: tuple = (None, None, "auto"),
) -> Draws:
    """:func:`posterior` of checked arguments, of which entries may be missing."""
    probe = guide_trace(gen, batch)
    values = Runs(gen, batch, probe, *limits).of(gen.guide, draws, latent_sites(probe).values())
    return _complete(gen, batch, model_trace(gen, batch), values, discrete, limits, draws)


@infers
@torch.no_grad()
@takes_seed
def complete(
    gen: GenerativeModel,
    *batch: Any,
    given: GivenDraws,
    discrete: bool = True,
    max_rows: int | None = None,
    memory: float | None = None,
    compile: Choice = "auto",
    seed: Seed = None,
) -> Draws:
    """Adds to draws of latent sites what follows from them.

    Deterministic sites, and enumerated ones if asked.

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program.
    *batch : Tensor
        What the programs take.
    given : mapping of str to Tensor, Chains, pyro.infer.MCMC or Importance
        ``(draws, *plate dims, *event)``, or ``(chains, draws, ...)`` in which case chains are put
        in one dim, for each latent site that is not enumerated, from a guide or from MCMC.
    discrete : bool
        Whether to draw the enumerated sites from their exact conditional.
    max_rows, memory, compile, seed
        As in :func:`posterior`.
    """
    probe = model_trace(gen, batch)
    values = merged(given, gen, batch, probe, follows(probe))
    if not values:
        raise ValueError(
            "expected draws of some site in given=, got none; posterior(gen, ...) makes them"
        )
    return _complete(gen, batch, probe, values, discrete, (max_rows, memory, compile))


def _complete(
    gen: GenerativeModel,
    batch: tuple,
    probe: poutine.Trace,
    given: Mapping[str, Tensor],
    discrete: bool,
    limits: tuple,
    draws: int | None = None,
) -> Draws:
    view = enumerating(
        gen, [site for name, site in latent_sites(probe).items() if name not in given]
    )
    if view is not gen:
        gen = view
        probe = trace_of(view.model, batch)
    summed = [
        site
        for name, site in latent_sites(probe).items()
        if is_enumerated(site) and name not in given
    ]
    wanted = [site for site in sample_sites(probe).values() if is_deterministic(site)] + (
        summed if discrete else []
    )
    if not wanted:
        return dict(given)
    count = draws or len(next(iter(given.values())))
    return {
        **given,
        **Runs(gen, batch, probe, *limits).of(gen.model, count, wanted, given, bool(summed)),
    }


@explained
@infers
@torch.no_grad()
@takes_seed
def predictive(
    gen: GenerativeModel,
    *batch: Any,
    draws: int = 1000,
    given: GivenDraws | None = None,
    new_rows: bool = False,
    sites: Iterable[str] | None = None,
    max_rows: int | None = None,
    memory: float | None = None,
    compile: Choice = "auto",
    seed: Seed = None,
    fabric: Fabric | None = None,
) -> Draws | Iterator[BlockResult]:
    r"""Draws from the posterior predictive distribution of the observed sites.

    .. math:: \tilde x^{(s)} \sim p(\tilde x \mid z^{(s)}, \theta^{(s)}),
        \qquad z^{(s)}, \theta^{(s)} \sim q(z, \theta \mid x)

    replicates the rows of the data. With ``new_rows`` the latents of each row are drawn from the
    model, :math:`z^{(s)} \sim p(z \mid \theta^{(s)})`, which predicts other rows from the same
    population. Where the program is called without observations (``predictive(program, covariates,
    None)``), the sites that the guide does not draw are predicted.

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program.
    *batch : Tensor
        What the programs take; or one stream of rows, as in :func:`posterior`.
    draws : int
        Number of draws, when ``given`` is not there to tell it.
    given : mapping of str to Tensor, Chains, pyro.infer.MCMC or Importance, optional
        Draws ``(draws, *plate dims, *event)`` or ``(chains, draws, ...)`` of the latent sites;
        default: from the guide.
    new_rows : bool
        Whether to draw the latents inside the data plate from the model.
    sites : iterable of str, optional
        Names of the sites to return, deterministic ones included; default: the observed ones.
    max_rows, memory, compile, seed, fabric
        As in :func:`posterior`.

    Returns
    -------
    dict of str to Tensor
        ``(draws, *plate dims, *event)`` for each site. Of a stream: an iterator of such draws for
        one block after the other; with ``given=`` draws of globals all blocks share these.

    Raises
    ------
    ValueError
        If ``sites`` has a name that the program lacks, or ``given`` an unknown site, another shape
        or number of draws; where there are data, if neither guide nor ``given`` has a latent site.
    """
    checks.generative(gen=gen)
    checks.at_least(1, draws=draws)
    checks.flag(new_rows=new_rows)
    checks.texts(**checks.given(sites=sites))
    checks.at_least(1, **checks.given(max_rows=max_rows))
    checks.positive(**checks.given(memory=memory))
    checks.one_of(("auto", True, False), compile=compile)
    asked = _Asked(new_rows, None if sites is None else list(sites), max_rows, memory, compile)
    together = Together(fabric)
    if len(batch) == 1 and is_stream(batch[0], gen):
        how = asked._asdict() | {"max_rows": max_rows or AT_ONCE, "seed": drawn_seed()}
        return by_blocks(predictive, gen, batch[0], fabric=fabric, draws=draws, given=given, **how)
    with together.agreed():
        batch = as_rows(gen, *batch, optional=True)
        probe = model_trace(gen, batch)
        if given is not None:
            loose = follows(probe) | (_local(gen, probe) if _is_new(probe, asked) else set())
            given = merged(given, gen, batch, probe, loose)
            draws = len(next(iter(given.values()), range(draws)))
    told = checksum(given.values()) if given and together.world > 1 else None
    together.check_call(gen, batch, {"draws": draws, "new_rows": new_rows, "given": told})

    def draw(begin: int, end: int) -> Draws:
        own = None if given is None else {name: value[begin:end] for name, value in given.items()}
        return _predicted(gen, batch, probe, end - begin, own, asked)

    return shared_draws(draw, draws, together)


class _Asked(NamedTuple):
    """What :func:`predictive` is asked for beside the draws."""

    new_rows: bool
    sites: list[str] | None
    max_rows: int | None
    memory: float | None
    compile: Choice

    @property
    def limits(self) -> tuple:
        return self.max_rows, self.memory, self.compile


def _local(gen: GenerativeModel, probe: poutine.Trace) -> set[str]:
    """Names of the sites inside the data plate."""
    sites = sample_sites(probe)
    return {name for name, site in sites.items() if in_plate(site, gen.plate)}


def _is_new(probe: poutine.Trace, asked: _Asked) -> bool:
    """Whether other rows are predicted."""
    return asked.new_rows or not _observed(probe)


def _predicted(
    gen: GenerativeModel,
    batch: tuple,
    probe: poutine.Trace,
    draws: int,
    given: Draws | None,
    asked: _Asked,
) -> Draws:
    """:func:`predictive` of checked arguments, ``given`` with all chains in one dim."""
    observed, new_rows, local = _observed(probe), _is_new(probe, asked), _local(gen, probe)
    limits = dict(zip(("max_rows", "memory", "compile"), asked.limits, strict=True))
    if given is None:
        given = posterior_of(gen, batch, draws, not new_rows, asked.limits)
    elif not new_rows:
        given = complete(gen, *batch, given=given, **limits)
    values: Any = given
    free = [
        s for name, s in latent_sites(probe).items() if name not in values and not is_enumerated(s)
    ]
    if observed and (
        lacking := [s["name"] for s in free if not new_rows or s["name"] not in local]
    ):
        raise ValueError(
            f"{without_guide(lacking)}; or pass given=, as pg.mcmc draws it; pg.prior_predictive needs "
            "neither"
        )
    if new_rows:
        values = {name: value for name, value in values.items() if name not in local}
    wanted = (
        _named(probe, asked.sites)
        if asked.sites is not None
        else [*observed, *completed_sites(probe)] or free
    )
    count = len(next(iter(values.values()))) if values else draws
    return Runs(gen, batch, probe, *asked.limits).of(Unobserved()(gen.model), count, wanted, values)


@explained
@infers
@torch.no_grad()
@takes_seed
def prior_predictive(
    gen: GenerativeModel,
    *batch: Any,
    draws: int = 1000,
    sites: Iterable[str] | None = None,
    max_rows: int | None = None,
    memory: float | None = None,
    compile: Choice = "auto",
    seed: Seed = None,
) -> Draws:
    r"""Joint draws of every site of the program run forward without looking at the observations.

    .. math:: \theta^{(s)}, z^{(s)}, x^{(s)} \sim p(\theta)\,p(z \mid \theta)\,p(x \mid z, \theta)

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program.
    *batch : Tensor
        What the programs take; its values at observed sites are not used, its shapes are.
    draws : int
        Number of draws.
    sites : iterable of str, optional
        Names of the sites to return; default: all, those that data would occupy included.
    max_rows, memory, compile, seed
        As in :func:`posterior`.

    Returns
    -------
    dict of str to Tensor
        ``(draws, *plate dims, *event)`` for each site.

    Raises
    ------
    ValueError
        If ``sites`` has a name that the program lacks.
    """
    checks.generative(gen=gen)
    checks.at_least(1, draws=draws)
    checks.texts(**checks.given(sites=sites))
    checks.at_least(1, **checks.given(max_rows=max_rows))
    checks.positive(**checks.given(memory=memory))
    checks.one_of(("auto", True, False), compile=compile)
    batch = as_rows(gen, *batch, optional=True, missing=True)
    probe = trace_of(gen.model, batch)
    wanted = _named(probe, sites) if sites is not None else _with_values(probe)
    return Runs(gen, batch, probe, max_rows, memory, compile).of(
        Unobserved()(gen.model), draws, wanted
    )


def observed_names(gen: GenerativeModel, *batch: Any) -> list[str]:
    """Names of the sites of the model that the batch occupies."""
    with torch.no_grad():
        return [site["name"] for site in _observed(trace_of(gen.model, batch))]


def _observed(probe: poutine.Trace) -> list[Site]:
    return [site for site in sample_sites(probe).values() if holds_data(site)]


def _with_values(probe: poutine.Trace) -> list[Site]:
    """All sites but the factors of a density, which have no value."""
    return [site for site in sample_sites(probe).values() if not isinstance(site["fn"], Unit)]


def _named(probe: poutine.Trace, names: Iterable[str]) -> list[Site]:
    sites = sample_sites(probe)
    for name in (names := list(names)):
        if name not in sites:
            raise ValueError(f"expected sites among {sorted(sites)}, got '{name}'")
    return [sites[name] for name in names]
