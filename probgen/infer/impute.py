"""Missing values drawn from their conditional distribution given the observed ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from probgen.compile.scheduling import Call, Choice, Repeat
from probgen.core import checks
from probgen.core.by_blocks import (
    AT_ONCE,
    BlockResult,
    by_blocks,
    drawn_seed,
)
from probgen.core.conversion import has_named_columns, tensor_from
from probgen.core.entry import as_rows
from probgen.core.in_memory import is_stream
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind, kind_of, visits_one, without_own_draw, worst
from probgen.core.modes import infers
from probgen.core.program import Program
from probgen.core.progress import Progress, Reported, check_progress, counting
from probgen.core.reading import Reading, read
from probgen.core.runtime import isolated, validation
from probgen.core.seeds import Seed, takes_seed
from probgen.core.sites import (
    completed_sites,
    in_plate,
    is_enumerated,
    latent_sites,
    sample_sites,
)
from probgen.core.supports import check_support
from probgen.core.together import Together
from probgen.distributions.any_order import ObservedFirst
from probgen.distributions.conditional import conditional, observed
from probgen.distributions.gibbs import completions
from probgen.infer.posterior import posterior_of
from probgen.infer.shared_draws import shared_parts

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from probgen.core.module import GenerativeModel

LOW = 0.05  # acceptance, below which a chain hardly moves
KINDS = ("exact", "asymptotic", "heuristic")
Completed = tuple[Tensor, str, Tensor]  # draws, their kind, acceptance of every row
CHAINED, FEWEST = 1024, 4  # rows of a block that processes share, at most; blocks, about
MANY = 0.1  # share of rows with such chains, from which on a warning says so


class Incomplete(NamedTuple):
    """A frame with missing cells, if rows came as one, and the model that completes it."""

    gen: Any
    frame: Any = None

    def completed(self, rows: Tensor, missing: Tensor) -> Any:
        """The frame with rows ``(B, D)`` in place of what is missing; of encoded rows a new one."""
        if self.frame is None:
            return self.gen.frame(rows)
        return self.gen.completed(self.frame, rows, missing)


@dataclass(frozen=True)
class Imputation:
    """Completed copies of incomplete data.

    Attributes
    ----------
    draws : Tensor
        Complete data ``(draws, B, *event)`` in the precision of the data (of a frame too), where
        these are floating-point numbers; observed entries are those of the data.
    missing : Tensor of bool
        Which entries were drawn: ``(B, *event)``.
    kind : str
        ``"exact"``: independent draws from the model's conditional distribution. ``"asymptotic"``:
        ends of Markov chains that converge to it. ``"heuristic"``: ends of chains that converge to
        something near it, because the model has a density that is not exact, or a guide that does
        not draw.
    acceptance : Tensor
        Share of accepted proposals of every row ``(B,)``; one where draws are exact. Values near
        zero mean that the guide misses the posterior of that row, and that its draws have not
        forgotten where they started. A guide that is narrower than the posterior makes chains slow
        in the tails, which this share does not show: draws of longer chains do.
    given : Incomplete, optional
        The model, where it has a table, and the frame that was completed, where x was one.
    """

    draws: Tensor
    missing: Tensor
    kind: str
    acceptance: Tensor
    given: Incomplete | None = None

    def __repr__(self) -> str:
        accepted = f"{self.acceptance.mean():.2f}" if len(self.acceptance) else "none"
        return (
            f"Imputation({self.kind}, draws {tuple(self.draws.shape)}, "
            f"{int(self.missing.sum())} missing entries, mean acceptance {accepted})"
        )

    def mean(self) -> Tensor:
        """Average over the draws, the estimate of least squared error: ``(B, *event)``."""
        return torch.where(self.missing, self.draws.mean(0), self.draws[0])

    def frame(self) -> Any:
        """The completed frame: the mean of the draws of numbers and dates, the mode of labels.

        Cells that were known are those of the frame that was given, whose index it has. Where rows
        came encoded, block by block of a stream, it is a new frame, as the model draws them.

        Raises
        ------
        TypeError
            If the model has no table.
        """
        given = self._frame_given()
        return given.completed(given.gen.center(self.draws), self.missing)

    def frames(self) -> list[Any]:
        """A completed frame for each draw (multiple imputation).

        Raises
        ------
        TypeError
            If the model has no table.
        """
        given = self._frame_given()
        return [given.completed(rows, self.missing) for rows in self.draws]

    def _frame_given(self) -> Incomplete:
        if self.given is None:
            raise TypeError(
                "expected draws for a data frame, got those for numbers; give pg.impute a "
                "pg.Tabular and a frame, or take draws and mean()"
            )
        return self.given

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends of the central interval that holds a share ``level`` of the draws of every entry.

        ``(B, *event)`` each.

        >>> draws = torch.linspace(0, 1, 101).reshape(101, 1, 1)
        >>> low, high = Imputation(draws, torch.ones(1, 1) > 0, "exact", torch.ones(1)).interval(0.8)
        >>> low, high
        (tensor([[0.1000]]), tensor([[0.9000]]))
        """
        if not 0 < level < 1:
            raise ValueError(
                f"expected 0 < level < 1, got {level}; 0.9 is the central ninety per cent"
            )
        ordered = self.draws.sort(0).values  # torch.quantile refuses large tensors
        return _quantile(ordered, 0.5 - level / 2), _quantile(ordered, 0.5 + level / 2)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """The quantile along the first, sorted dim, interpolated linearly."""
    place = share * (len(ordered) - 1)
    low = ordered[math.floor(place)]
    high = ordered[math.ceil(place)]
    return low.lerp(high, place - math.floor(place))


@explained
@infers
@torch.no_grad()
@takes_seed
def impute(
    gen: GenerativeModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    draws: int = 1,
    num_steps: int = 500,
    compile: Choice = "auto",
    seed: Seed = None,
    progress: Reported = None,
    max_rows: int = AT_ONCE,
    fabric: Fabric | None = None,
) -> Imputation | Iterator[BlockResult]:
    r"""Draws missing entries (NaN) given the observed ones, row by row.

    :math:`x_m \sim p(x_m \mid x_o, c)`.

    Without local latents the draws are exact: :func:`conditional` of the model's distribution, or,
    where it has no closed form, ends of Gibbs chains (:mod:`probgen.distributions.gibbs`).
    Enumerated latents (the components of a mixture) are drawn from their exact conditional first.
    With other local latents, every draw is the end of a chain over :math:`(z, x_m)` that leaves
    :math:`p(z, x_m \mid x_o)` invariant:

    .. math:: z' \sim q(z \mid x), \quad \text{accepted with probability }
              \min\Big(1, \frac{p(x, z')\, q(z \mid x)}{p(x, z)\, q(z' \mid x)}\Big); \qquad x_m
              \sim p(x_m \mid x_o, z)

    started by a tenth as many steps that accept everything. Globals of a Bayesian model are drawn
    from its guide, one set per draw. Rows that are latent where they are missing
    (:func:`probgen.observe`) come from their exact conditional where they are summed out, else from
    the guide (*heuristic*). Entries are taken to be missing at random. The model runs in eval mode,
    and is left in the mode that it is in.

    Parameters
    ----------
    gen : GenerativeModel
        A model with observed site ``"x"``, whose distribution given the latents has a closed-form
        :func:`conditional`.
    x : Tensor
        ``(B, *event)``, NaN = missing; where a model of sequences says that NaN at the end is
        padding, that stays. Or a stream of rows (a file, a DataLoader that does not shuffle, batches),
        which is read once and completed block by block.
    context : Tensor, optional
        ``(B, *context_event)``.
    draws : int
        Number of completed copies. Chains run in parallel; those of models with global latents one
        after the other.
    num_steps : int
        Length of the chains, where draws are not exact.
    compile : bool or "auto"
        Whether steps of the chains after the first ones are made of recorded and compiled
        operations: where enough steps are left to amortize the cost, at once, or never. The same
        seed gives the same draws in all cases.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.
    progress : bool, float or None
        Rate and time left: in one line that is renewed where there is a terminal; elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.
    max_rows : int
        Rows of a stream that are read at once.
    fabric : lightning_fabric.Fabric, optional
        A launched Fabric: each of its processes completes a part of the rows in memory, and all of
        them get all rows, in their order; of a stream each gets the blocks of its part. Draws,
        globals included, are those of a block: the same ones for any number of processes, and for
        rows in memory other ones than without a fabric.

    Returns
    -------
    Imputation or iterator of BlockResult
        Of a stream the completed rows of one block after the other, see :func:`probgen.by_blocks`;
        memory is that of one block.

    Warns
    -----
    UserWarning
        Where a tenth of the rows, or more, accept less than a twentieth of their proposals.

    Raises
    ------
    NotImplementedError
        If the distribution of x given the latents has no closed-form conditional, a site has no
        density, or a local latent is enumerated beside others and the guide leaves it out.
    ValueError
        If the guide does not draw a local latent, or has a site whose density is not exact; if a
        context is given beside a stream, or the fabric was not launched.

    References
    ----------
    Rezende, Mohamed, Wierstra (2014), Stochastic backpropagation, https://arxiv.org/abs/1401.4082
    (pseudo-Gibbs); Mattei, Frellsen (2018), Leveraging the exact likelihood of deep latent variable
    models, https://arxiv.org/abs/1802.04826 (Metropolis within Gibbs)

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> x, covariance = torch.tensor([[2.0, torch.nan]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    >>> done = impute(Fixed(dist.MultivariateNormal, loc=torch.zeros(2), covariance_matrix=covariance), x, draws=1000)
    >>> done.kind, done.draws.shape, done.mean().round(decimals=1)
    ('exact', torch.Size([1000, 1, 2]), tensor([[2.0000, 1.8000]]))
    """
    checks.generative(gen=gen)
    checks.at_least(1, draws=draws, num_steps=num_steps, max_rows=max_rows)
    checks.one_of(("auto", True, False), compile=compile)
    check_progress(progress)
    together = Together(fabric)
    how: dict[str, Any] = {"draws": draws, "num_steps": num_steps, "compile": compile}
    if is_stream(x, gen):
        _check_no_context(context)
        cut: dict[str, Any] = {"max_rows": max_rows, "seed": drawn_seed(), "fabric": fabric}
        return by_blocks(impute, gen, x, progress=False, **cut, **how)
    with together.agreed():
        _check_completed(gen, context)
        given = _original(gen, x)
        incomplete = None
        if getattr(gen, "gives_frames", False):
            incomplete = Incomplete(gen, x if has_named_columns(x) else None)
        x, context = (*as_rows(gen, x, context, missing=True), None)[:2]
        missing = _missing(gen, (x, context))
    together.check_call(gen, (x, context), {"draws": draws, "num_steps": num_steps})
    rows = missing.reshape(len(x), -1).any(-1)
    completed = x.repeat(draws, *[1] * x.ndim)
    acceptance = torch.ones(len(x), device=x.device)
    kind = "exact"
    if rows.any():
        batch = x[rows], None if context is None else context[rows]
        asked = progress if together.first else False
        with Progress("impute", asked=asked) as shown:
            completed[:, rows], kind, acceptance[rows] = _shared_out(
                partial(_impute, gen, progress=shown, **how), batch, together
            )
        _warn_of_rejections(acceptance[rows], num_steps)
    if given is not None and given.shape == x.shape:
        completed = torch.where(missing, completed.to(given.dtype), given.to(x.device))
    return Imputation(completed, missing, kind, acceptance, incomplete)


def _shared_out(complete: Callable[..., Completed], batch: tuple, together: Together) -> Completed:
    """Completed rows, each process completing its part of them, in all of them.

    Blocks, and what is drawn for each, do not depend on how many processes there are.
    """
    if together.fabric is None:
        return complete(batch=batch)

    def work(begin: int, end: int) -> Completed:
        part = tuple(None if each is None else each[begin:end] for each in batch)
        done, kind, acceptance = complete(batch=part)
        return done.cpu(), kind, acceptance.cpu()

    rows = len(batch[0])
    parts = shared_parts(work, rows, min(CHAINED, -(-rows // FEWEST)), together)
    device = batch[0].device
    completed = torch.cat([done for done, _, _ in parts], 1).to(device)
    kinds = [kind for _, kind, _ in parts]
    acceptance = torch.cat([each for _, _, each in parts]).to(device)
    return completed, max(kinds, key=KINDS.index), acceptance


def _check_no_context(context: Any) -> None:
    if context is not None:
        raise ValueError(
            "expected the contexts of a stream in the stream itself, got context beside it; give "
            "batches (x, context)"
        )


def _warn_of_rejections(acceptance: Tensor, num_steps: int) -> None:
    """Chains that hardly ever move have not forgotten where they started."""
    stuck = int((acceptance < LOW).sum())
    if stuck >= MANY * len(acceptance):
        warnings.warn(
            f"of {len(acceptance)} rows with missing entries {stuck} have an acceptance below "
            f"{LOW:.0%}: their draws still depend on where the chains started; take longer ones, "
            f"num_steps={10 * num_steps}, or a guide that is closer to the posterior",
            stacklevel=6,
        )


def _check_completed(gen: GenerativeModel, context: Any) -> None:
    """Refuses programs of other arguments, and missing values in those that are not completed."""
    if not isinstance(gen, Program):
        return
    gen.check_part("what impute completes")
    given = context if torch.is_tensor(context) else None
    if given is not None and given.isnan().any():
        first, second = [*gen.parameters_by_name(), "x", "context"][:2]
        raise ValueError(
            f"expected missing values of a program in its first argument, {first}, which impute "
            f"completes, got NaN in {second}; let the program take {second} first, or state its rows by "
            "pg.observe, and take pg.posterior"
        )


def _original(gen: GenerativeModel, x: Any) -> Tensor | None:
    """Floating-point rows in the precision that they came in.

    None for lists, and for tables whose columns are found by name.
    """
    if getattr(gen, "names_columns", False) and has_named_columns(x):
        return None
    made = tensor_from(x, None)
    return made if made is not None and made.is_floating_point() else None


def _impute(
    gen: GenerativeModel,
    batch: tuple,
    draws: int,
    num_steps: int,
    compile: Choice,
    progress: Progress,
) -> Completed:
    """Draws of one model, or of one model for every draw of the globals."""
    probe = _trace(gen.model, batch)
    if _is_partly_observed(probe):
        return _partly_observed(gen, batch, draws)
    if _is_summed_out(gen, probe, batch):
        return _given_labels(gen, batch, draws)
    if all(in_plate(site, gen.plate) for site in latent_sites(probe).values()):
        chains = _ImputationChains(gen, gen.model, gen.guide, compile, progress)
        return chains.draw(batch, draws, num_steps)
    parts = []
    for _ in range(draws):
        drawn = _trace(gen.guide, (None, batch[1]))
        model, guide = (
            poutine.replay(program, trace=_shared(drawn, gen.plate))
            for program in (gen.model, gen.guide)
        )
        chains = _ImputationChains(gen, model, guide, compile, progress, draws)
        parts.append(chains.draw(batch, 1, num_steps))
    completed, kinds, acceptance = zip(*parts, strict=True)
    return torch.cat(completed), kinds[0], torch.stack(acceptance).mean(0)


def _is_partly_observed(probe: poutine.Trace) -> bool:
    """Whether missing rows of x are latent sites of the program."""
    return any(site["name"] == "x" for site in completed_sites(probe))


def _is_summed_out(gen: GenerativeModel, probe: poutine.Trace, batch: tuple) -> bool:
    """Whether there are latents, and those of the rows are all enumerated by the model alone."""
    latents = latent_sites(probe)
    rows = {name: site for name, site in latents.items() if in_plate(site, gen.plate)}
    if not latents or not all(map(is_enumerated, rows.values())):
        return False
    if not rows:
        return True
    x = torch.where(batch[0].isnan(), _distribution(probe).sample(), batch[0])
    return rows.keys().isdisjoint(latent_sites(_trace(gen.guide, (x, *batch[1:]))))


def _partly_observed(gen: GenerativeModel, batch: tuple, draws: int) -> tuple[Tensor, str, Tensor]:
    """Draws of rows that are latent where x is missing.

    Exact where they are summed out, else those of the guide.
    """
    x = batch[0]
    completed = posterior_of(gen, batch, draws, discrete=True)["x"].to(x.dtype)
    drawn = latent_sites(_trace(gen.guide, batch)).values()
    guessed = any(in_plate(site, gen.plate) and not is_enumerated(site) for site in drawn)
    return completed, "heuristic" if guessed else "exact", torch.ones(len(x), device=x.device)


def _given_labels(gen: GenerativeModel, batch: tuple, draws: int) -> tuple[Tensor, str, Tensor]:
    """Draws of globals from the guide, of enumerated sites from their exact conditional.

    Then of x given both.
    """
    x = batch[0]
    latents = latent_sites(_trace(gen.model, batch)).values()
    if any(in_plate(site, gen.plate) for site in latents):
        check_support(gen, *batch, missing=False)  # they are drawn given a density of what is there
    values = posterior_of(gen, batch, draws, discrete=True)
    completed = []
    for draw in range(draws):
        fixed = {name: value[draw] for name, value in values.items()}
        distribution = _distribution(_trace(poutine.condition(gen.model, data=fixed), batch))
        completed.append(conditional(distribution, x, observed(distribution, x)).sample())
    return torch.stack(completed), "exact", torch.ones(len(x), device=x.device)


def _missing(gen: GenerativeModel, batch: tuple) -> Tensor:
    """Which entries of x are missing: what is NaN, but for the padding of sequences that ended."""
    missing = batch[0].isnan()
    if not missing.any():
        return missing
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        probe = _trace(gen.model, batch)
        if _is_partly_observed(probe):
            return missing
        return ~observed(_distribution(probe), batch[0])


def _trace(program: Callable, batch: tuple) -> poutine.Trace:
    with isolated():
        return poutine.trace(program).get_trace(*batch)


def _shared(trace: poutine.Trace, plate: str) -> poutine.Trace:
    """The latents of a trace that stand outside the data plate: globals."""
    kept = {name for name, site in latent_sites(trace).items() if not in_plate(site, plate)}
    shared = trace.copy()
    for name in set(trace.nodes) - kept:
        shared.remove_node(name)
    return shared


@dataclass(frozen=True)
class _ImputationChains:
    """Metropolis-corrected pseudo-Gibbs chains of one model and guide whose globals, if any.

    Are fixed.
    """

    gen: GenerativeModel
    model: Callable
    guide: Callable
    compile: Choice
    progress: Progress
    times: int = 1  # that chains like these are run

    def draw(self, batch: tuple, draws: int, num_steps: int) -> tuple[Tensor, str, Tensor]:
        """Completed rows ``(draws, B, *event)``, their kind.

        And the acceptance rate of every row.
        """
        state = _trace(self.model, batch)
        if not self._locals(state):
            self.progress.total = self.times * num_steps
            with counting(self.progress):
                done = completions(_distribution(state), batch[0], draws, num_steps)
            return *done, torch.ones(len(batch[0]), device=batch[0].device)
        x: Any
        x, context = (
            None if part is None else part.repeat(draws, *[1] * (part.ndim - 1)) for part in batch
        )
        completed, kind, rate = self._run(x, context, num_steps)
        return completed.unflatten(0, (draws, -1)), kind, rate.unflatten(0, (draws, -1)).mean(0)

    def _run(self, x: Tensor, context: Any, num_steps: int) -> tuple[Tensor, str, Tensor]:
        """Ends of the chains, one for every row of ``x``.

        They start at draws of the latents from the model.
        """
        start = _trace(self.model, (x, context))
        seen = observed(_distribution(start), x)
        rate = torch.zeros(len(x), device=x.device)
        early = max(1, num_steps // 10)
        given = conditional(_distribution(start), x, seen)
        filled = given.sample()
        proposal = self._propose((filled, context))
        self._check_enumerated(start, proposal.guide)
        kind = _kind(proposal, self.gen.plate)
        if isinstance(given, ObservedFirst):  # of another joint distribution than the scores
            kind = "heuristic"
        latents = proposal.guide
        sites: Mapping[str, Any] = start.nodes
        values = [sites[name]["value"] for name in self._locals(latents)]

        def step(filled: Tensor, corrected: Tensor, *values: Tensor) -> list[Tensor]:
            return self._step((filled, context), seen, corrected, latents, values)

        self.progress.total = self.times * (early + num_steps)
        repeat = Repeat(step, early + num_steps, self.compile, missing=False)
        with validation(False):  # the runs above were validated
            for corrected in rate.new_tensor(
                [False] * early + [True] * num_steps, dtype=torch.bool
            ):
                ((filled, accepted, *values),) = repeat([Call(own=(filled, corrected, *values))])
                rate += accepted * corrected / num_steps
                self.progress.advance()
            state = self._at(values, latents, (filled, context))
        return conditional(_distribution(state), filled, seen).sample(), kind, rate

    def _step(
        self,
        batch: tuple,
        seen: Tensor,
        corrected: Tensor,
        latents: poutine.Trace,
        values: Sequence[Tensor],
    ) -> list[Tensor]:
        """Missing entries given the latents, then a proposal for the latents.

        Completed x, what was accepted, latents.

        Early steps, not ``corrected``, accept whatever the ratio.
        """
        state = self._at(values, latents, batch)
        state.nodes["x"]["value"] = filled = conditional(
            _distribution(state), batch[0], seen
        ).sample()
        batch = (filled, batch[1])
        proposal = self._propose(batch)
        current = Reading(state, _trace(poutine.replay(self.guide, trace=state), batch))
        accepted = _accept(self._log_ratio(proposal, current)) | ~corrected
        moved = []
        sites: Mapping[str, Any] = proposal.guide.nodes
        for (name, site), value in zip(self._locals(latents).items(), values, strict=True):
            dim = next(
                frame.dim for frame in site["cond_indep_stack"] if frame.name == self.gen.plate
            )
            column = accepted.reshape(-1, *[1] * (site["fn"].event_dim - dim - 1))
            moved.append(torch.where(column, sites[name]["value"], value))
        return [filled, accepted, *moved]

    def _propose(self, batch: tuple) -> Reading:
        with isolated():
            return read(self.model, self.guide, batch, None, self.gen.max_plate_nesting)

    def _log_ratio(self, proposal: Reading, current: Reading) -> Tensor:
        return proposal.by_row(self.gen.plate)[0] - current.by_row(self.gen.plate)[0]

    def _at(self, values: Sequence[Tensor], latents: poutine.Trace, batch: tuple) -> poutine.Trace:
        """The model's run with these values of the local latents.

        Which stand in a run of the guide.
        """
        given = latents.copy()
        for name, value in zip(self._locals(latents), values, strict=True):
            given.nodes[name] = given.nodes[name].copy()
            given.nodes[name]["value"] = value
        return _trace(poutine.replay(self.model, trace=given), batch)

    def _locals(self, trace: poutine.Trace) -> dict[str, dict[str, Any]]:
        """The latent sites inside the data plate."""
        return {
            name: site
            for name, site in latent_sites(trace).items()
            if in_plate(site, self.gen.plate)
        }

    def _check_enumerated(self, model: poutine.Trace, guide: poutine.Trace) -> None:
        """Refuses local latents that only the model enumerates: a chain has no draw to move them by.

        Those of the guide are drawn from it, whether objectives enumerate them or not.
        """
        drawn = latent_sites(guide)
        for name, site in self._locals(model).items():
            if is_enumerated(site) and name not in drawn:
                raise NotImplementedError(
                    "expected local latents that the guide draws, got the enumerated site "
                    f"'{name}'; add it to the "
                    "guide, or sum it out in the distribution of 'x' (a mixture: "
                    "pyro.distributions.MixtureSameFamily)"
                )


def _distribution(trace: poutine.Trace) -> Any:
    """The distribution of x given the latents of a run."""
    if "x" not in trace.nodes:
        raise ValueError(
            f"expected an observed site named 'x', got sites {sorted(sample_sites(trace))}; rename "
            "the site that holds "
            "the data"
        )
    return trace.nodes["x"]["fn"]


def _accept(log_ratio: Tensor) -> Tensor:
    return torch.rand_like(log_ratio).log() < log_ratio


def _kind(pair: Reading, plate: str) -> str:
    """Chains are as exact as the densities in their acceptance ratio.

    An inexact guide is refused.
    """
    explores = not visits_one(pair, plate) and not without_own_draw(pair, plate)
    kind_of(pair, plate)
    exact = explores and (
        worst(*(density_kind(site["fn"]) for site in sample_sites(pair.model).values())) == "exact"
    )
    return "asymptotic" if exact else "heuristic"
