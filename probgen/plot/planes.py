"""Distributions of two variables: densities, and the paths on which draws are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import received
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.modes import infers
from probgen.core.seeds import Seed, takes_seed
from probgen.core.truncation import using
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.probability_flow import ReverseFlow
from probgen.distributions.energy.continuous import EnergyDistribution
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.ode import ContinuousTransform, FixedSteps
from probgen.distributions.flows.rescaled import Rescaled
from probgen.distributions.guidance.rule import plain
from probgen.plot.canvas import MAP, SECOND, axes_for, doubles_of, names_for, open_frame
from probgen.sampling import sample
from probgen.scoring import log_likelihood

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgen.core.module import GenerativeModel

LIGHT_TO_DARK = "Blues"
DRAWN = 400  # rows that tell where the distribution is
DEPTH = 12.0  # nats below the maximum that are shown
PIECES = 40  # of a path whose solver chooses its own steps, and of long chains
TOLD = {
    "exact": "density",
    "unbiased": "density, estimated",
    "approximate": "density, approximate",
    "bound": "lower bound of the density",
    "unnormalized": "density relative to its maximum",
}


@explained
def density(
    gen: GenerativeModel,
    context: Tensor | None = None,
    *,
    x: Tensor | None = None,
    bounds: Sequence[Sequence[float]] | None = None,
    log: bool = False,
    points: int = 100,
    particles: int = 64,
    names: Sequence[str] | None = None,
    seed: Seed = None,
    ax: Axes | None = None,
) -> Axes:
    """The density of a model of two variables on a grid, with its kind on the bar of colors.

    Parameters
    ----------
    gen : GenerativeModel
        A model of events ``(2,)``.
    context : Tensor, optional
        ``(1, *context_event)``.
    x : Tensor, optional
        ``(N, 2)``: rows drawn on top, which also tell the bounds.
    bounds : ((float, float), (float, float)), optional
        Smallest and largest value of both variables; default: where x is, or draws of the model.
    log : bool
        Whether the logarithm is drawn, minus the energy of energy-based models; down to 12 nats
        below its maximum.
    points : int
        Of the grid, to each side.
    particles : int
        Draws of latents for each point, where the density is estimated.
    names : sequence of str, optional
        Of both variables.
    seed : int or torch.Generator, optional
        Of draws.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With one picture, whose extent are the bounds.

    Raises
    ------
    ValueError
        For models of other events, and bounds that are none.
    NotImplementedError
        For implicit models, which have no density.

    >>> from probgen.models.mixture import GaussianMixture
    >>> ax = density(GaussianMixture(2, 2), bounds=((-3.0, 3.0), (-2.0, 2.0)), points=20)
    >>> ax.images[0].get_extent(), ax.images[0].colorbar.ax.get_ylabel()
    ([-3.0, 3.0, -2.0, 2.0], 'density')
    """
    checks.generative(gen=gen)
    checks.flag(log=log)
    checks.at_least(2, points=points)
    checks.at_least(1, particles=particles)
    labels = names_for(2, "column ", names, "names")
    rows = None if x is None else _in_a_plane("x", doubles_of("x", x))
    if bounds is None:
        rows_there = _drawn_rows(gen, context, seed) if rows is None else rows
        limits = _around(rows_there)
    else:
        limits = _limits(bounds)
    logs, kind = _on_grid(gen, context, limits, int(points), int(particles), seed=seed)
    word = TOLD[kind]
    if kind == "unnormalized":
        logs = logs - logs[np.isfinite(logs)].max()
    if log:
        word = f"log of the {word}"
    finite = logs[np.isfinite(logs)]
    top = float(finite.max()) if finite.size else 0.0
    values = np.maximum(logs, top - DEPTH) if log else np.exp(logs)
    panel: Any = axes_for(ax, (5.0, 4.0))
    extent = (*limits[0], *limits[1])
    style = {
        "origin": "lower",
        "aspect": "auto",
        "cmap": LIGHT_TO_DARK,
        "interpolation": "bilinear",
    }
    picture = panel.imshow(values, extent=extent, **style)
    bar = panel.figure.colorbar(picture, ax=panel)
    bar.set_label(word)
    bar.outline.set_visible(False)
    if rows is not None:
        size = float(np.clip(1000 / len(rows), 2, 12))
        panel.scatter(*rows.T, s=size, color=SECOND, alpha=0.6, linewidths=0)
    panel.set(xlabel=labels[0], ylabel=labels[1], xlim=limits[0], ylim=limits[1])
    return panel


@explained
def paths(
    gen: GenerativeModel,
    n: int = 150,
    context: Tensor | None = None,
    *,
    sampler: Any = None,
    guidance: Any = None,
    x: Tensor | None = None,
    seed: Seed = None,
    ax: Axes | None = None,
) -> Axes:
    """The ways on which draws of two variables go from noise, at time 1, to data, at time 0.

    The states are those at which the sampler asks the network; of an equation that is solved in
    steps of any size, forty equally spaced ones. Of an energy-based model they are those of its
    Markov chains, from their start at time 1 to the draws, forty of them where chains are longer.

    Parameters
    ----------
    gen : GenerativeModel
        A diffusion, flow matching, a continuous flow, or one of them standardized, or an
        energy-based model with chains, of events ``(2,)``.
    n : int
        Number of draws.
    context : Tensor, optional
        ``(1, *context_event)``.
    sampler, guidance : optional
        As for :func:`probgen.sample`.
    x : Tensor, optional
        ``(N, 2)``: data, drawn behind.
    seed : int or torch.Generator, optional
        Of the draws.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the lines as one collection, colored by time, then noise, then data.

    Raises
    ------
    TypeError
        For models that make draws in another way.

    >>> import probgen as pg
    >>> flow = pg.FlowMatching(pg.nn.TimeMLP(2, [4]), (2,), solver=pg.flows.Euler(5))
    >>> ax = paths(flow, 3, seed=0)
    >>> len(ax.collections[0].get_segments())  # three draws, five steps
    15
    """
    checks.generative(gen=gen)
    checks.at_least(1, n=n)
    behind = None if x is None else _in_a_plane("x", doubles_of("x", x))
    found = _followed(gen, int(n), context, sampler, guidance, seed=seed)
    states = found.states
    panel: Any = axes_for(ax, (5.0, 4.2))
    lines = _colored_lines(found)
    panel.add_collection(lines)
    bar = panel.figure.colorbar(lines, ax=panel, label="time: from noise, 1, to data, 0")
    bar.outline.set_visible(False)
    if behind is not None:
        panel.scatter(*behind.T, s=4, color="0.8", linewidths=0, zorder=0, label="data")
    panel.scatter(*states[0].T, s=9, fc="none", ec="0.55", lw=0.6, label="noise")
    panel.scatter(*states[-1].T, s=9, color="black", linewidths=0, zorder=3, label="draws")
    panel.autoscale_view()
    panel.set(xlabel="column 0", ylabel="column 1")
    panel.set_aspect("equal", adjustable="datalim")
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3}
    panel.legend(frameon=False, fontsize="small", handletextpad=0.1, **above)
    open_frame(panel)
    return panel


class Trajectories(NamedTuple):
    """States of draws on their way.

    Attributes
    ----------
    times : numpy.ndarray
        ``(T,)``, falling from 1.
    states : Tensor or numpy.ndarray
        ``(T, N, *event)``.
    """

    times: Any
    states: Any


@singledispatch
def trajectories(distribution: Any, n: int) -> Trajectories:
    """So many draws of a distribution and the states that they came through.

    >>> import pyro.distributions as dist
    >>> trajectories(dist.Normal(0.0, 1.0), 3)
    Traceback (most recent call last):
    TypeError: expected a diffusion, flow matching, a continuous flow or an energy, whose draws...
    """
    raise TypeError(
        "expected a diffusion, flow matching, a continuous flow or an energy, whose draws are made "
        f"along paths, got a {type(distribution).__name__}; draw density(gen), or its draws by "
        "embedding(pg.sample(gen, 500))"
    )


@trajectories.register(GaussianDiffused)
def _(distribution: GaussianDiffused, n: int) -> Trajectories:
    rule = plain if distribution.guidance is None else distribution.guidance
    seen: dict[float, Tensor] = {}

    def watched(predictor: Any, z: Tensor, t: Tensor, context: Any) -> Any:
        seen[float(t.reshape(-1)[0])] = z  # what is asked last at a time is where steps lead
        return rule(predictor, z, t, context)

    watching: Any = watched
    drawn = distribution.using(guidance=watching).sample((n,))
    times = sorted((time for time in seen if time > 0), reverse=True)
    states = torch.stack([*(seen[time] for time in times), drawn])
    return Trajectories(np.array([*times, 0.0]), states)


@trajectories.register(Pushforward)
def _(distribution: Pushforward, n: int) -> Trajectories:
    transform = distribution.drawn_through
    if isinstance(transform, ContinuousTransform):
        return _solved(transform, distribution.base_dist.sample((n,)))
    inner = trajectories(distribution.base_dist, n)
    return inner._replace(states=transform.inv(inner.states))


@trajectories.register(Rescaled)
def _(distribution: Rescaled, n: int) -> Trajectories:
    inner = trajectories(distribution.base_dist, n)
    return inner._replace(states=distribution.units.inv(inner.states))


@trajectories.register(ReverseFlow)
def _(distribution: ReverseFlow, n: int) -> Trajectories:
    diffused = distribution.diffused
    if diffused.guidance is not None:
        raise ValueError(
            "expected the flow of a diffusion without guidance, got one with; give the diffusion "
            "itself: paths(gen.diffusion, guidance=..., sampler=...)"
        )
    noise = diffused.noise.sample(torch.Size((n,)) + diffused.batch_shape)
    zero = torch.zeros_like(noise[(0,) * noise.ndim])
    found = _solved(distribution.transform, diffused.process.prior_scale(zero) * noise)
    signal, _ = diffused.process.schedule(zero)
    states = torch.cat([found.states[:-1], found.states[-1:] / signal])
    return found._replace(states=states)


@trajectories.register(EnergyDistribution)
def _(distribution: EnergyDistribution, n: int) -> Trajectories:
    states = [distribution.init_chains((n,))]
    steps = np.array_split(np.arange(distribution.num_steps), min(PIECES, distribution.num_steps))
    for piece in steps:
        states.append(distribution.chain(states[-1], len(piece)))
    done = np.cumsum([0, *map(len, steps)])
    return Trajectories(1 - done / distribution.num_steps, torch.stack(states))


def _solved(transform: ContinuousTransform, z: Tensor) -> Trajectories:
    """From time 1 to 0, step by step of the solver, or in pieces where it chooses its steps."""
    solver: Any = transform.solver
    pieces = PIECES
    if isinstance(solver, FixedSteps):
        pieces = solver.num_steps
        solver = replace(solver, num_steps=1)
    times = np.linspace(1.0, 0.0, pieces + 1)
    states = [z]
    for start, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        slope = lambda t, x: (transform.velocity(t, x),)  # noqa: E731
        states.append(solver(slope, (states[-1],), start, end, ())[0])
    return Trajectories(times, torch.stack(states))


@infers
@torch.no_grad()
@takes_seed
def _followed(gen: Any, n: int, context: Any, sampler: Any, guidance: Any) -> Trajectories:
    """The states as arrays ``(T, n, 2)``."""
    distribution = gen(_one_context(gen, context))
    if sampler is not None:
        distribution = using(distribution, sampler)
    if guidance is not None:
        distribution = using(distribution, guidance=guidance)
    if tuple(distribution.event_shape) != (2,):
        raise ValueError(
            f"expected a model of events (2,), got {tuple(distribution.event_shape)}; fit one to "
            "two of the columns"
        )
    found = trajectories(distribution, n)
    states = found.states.reshape(len(found.times), -1, 2)
    return Trajectories(found.times, states.cpu().double().numpy())


def _one_context(gen: Any, context: Any) -> Any:
    if context is not None:
        context = gen.settle((None, context))[1]
    return received(gen, context, "give one: context=context[:1]")


def _colored_lines(found: Trajectories) -> Any:
    """One segment for each step of each draw, colored by the time at its beginning."""
    from matplotlib.collections import LineCollection

    states = found.states
    segments: Any = np.stack([states[:-1], states[1:]], 2).reshape(-1, 2, 2)
    times = np.repeat((found.times[:-1] + found.times[1:]) / 2, states.shape[1])
    lines = LineCollection(segments, cmap=MAP, linewidths=0.7, alpha=0.6)
    lines.set_array(times)
    lines.set_clim(0.0, 1.0)
    return lines


@infers
@torch.no_grad()
@takes_seed
def _on_grid(
    gen: Any, context: Any, limits: Sequence[tuple[float, float]], points: int, particles: int
) -> tuple[np.ndarray, str]:
    """Log-densities ``(points, points)``, rows from the lowest up, and their kind."""
    axes = [torch.linspace(low, high, points) for low, high in limits]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).reshape(-1, 2)
    beside = _one_context(gen, context)
    distribution = gen(beside)
    if tuple(distribution.event_shape) != (2,):
        raise ValueError(
            f"expected a model of events (2,), got {tuple(distribution.event_shape)}; fit one to "
            "two of the columns, or take two of them: embedding(pg.sample(gen, 500))"
        )
    kind = density_kind(distribution)
    if kind == "unbiased":
        rows = (grid,) if beside is None else (grid, beside.expand(len(grid), *beside.shape[1:]))
        logs = log_likelihood(gen, *rows, particles=particles, compile=False).value
    else:
        (grid,) = gen.settle((grid,)) if beside is None else (grid.to(beside),)
        parts = [distribution.log_prob(part) for part in grid.split(4096)]
        logs = torch.cat([part.reshape(-1) for part in parts])
    return logs.reshape(points, points).cpu().double().numpy(), kind


def _drawn_rows(gen: Any, context: Any, seed: Seed) -> np.ndarray:
    """Some draws of a model of two variables ``(N, 2)``; the same every time without a seed."""
    drawn = sample(gen, DRAWN, context, seed=0 if seed is None else seed)
    drawn = drawn if context is None else drawn.flatten(0, 1)
    return _in_a_plane("draws", doubles_of("draws", drawn))


def _in_a_plane(name: str, rows: np.ndarray) -> np.ndarray:
    if rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
        raise ValueError(
            f"expected {name} of shape (N, 2), got {rows.shape}; give two of the columns"
        )
    return rows


def _around(rows: np.ndarray) -> list[tuple[float, float]]:
    """Bounds of most rows, with a margin."""
    low, high = np.nanquantile(rows, [0.005, 0.995], axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-6)
    return [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]


def _limits(bounds: Any) -> list[tuple[float, float]]:
    checks.instances((tuple, list, np.ndarray, Tensor), "pass ((-3, 3), (-3, 3))", bounds=bounds)
    checks.length(2, bounds=bounds)
    for place, each in enumerate(bounds):
        checks.pair(**{f"bounds[{place}]": each})
    return [(float(low), float(high)) for low, high in bounds]
