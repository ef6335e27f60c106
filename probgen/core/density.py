"""Log-likelihoods of rows: importance weights of a guide's draws, in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from torch import Tensor

from probgen.core.graphs.profile import Profile, fitting
from probgen.core.graphs.repeat import Call, Choice, Window, repeated, windows
from probgen.core.graphs.replay import random_state
from probgen.core.kinds import KINDS, average, check_rows_drawn, density, kind_of, worst
from probgen.core.missing import has_missing
from probgen.core.modes import depends_on_mode, infers
from probgen.core.reading import Reading, read
from probgen.core.runtime import evaluating
from probgen.core.score import Score
from probgen.core.sites import in_plate, observed_sites

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

__all__ = ["KINDS", "average", "density", "kind_of", "log_likelihood", "log_weights", "worst"]

MEANS = ("exact", "unbiased")  # kinds of which a layer in training mode makes another one
PROBED = 64  # rows of a first run, which tells kind and memory


def log_weights(gen: GenerativeModel, *batch: Any, particles: int = 1) -> tuple[Tensor, str]:
    r"""Log importance weights of every row, and the kind of the estimate that they give.

    .. math:: w_{kb} = \log p(x_b, z_{kb} \mid \theta_k) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q

    over the sites inside the data plate. Enumerated sites are summed out exactly. Globals are drawn from the guide and
    not reweighted, so that for a fitted Bayesian model the average of ``exp(w)`` is its posterior predictive density.

    Parameters
    ----------
    gen : GenerativeModel
        A model; an objective passes any object with ``model``, ``guide`` and the attributes of that protocol.
    *batch : Tensor
        What the programs take: ``x``, or ``x, context``, or a Program's own arguments.
    particles : int
        Number K of draws per row.

    Returns
    -------
    (Tensor, str)
        Weights ``(K, B)`` in nats, and the weakest kind of density met on the way; at best *approximate* while dropout
        or batch normalisation of a model in training mode enters them.

    Raises
    ------
    ValueError
        If the guide has a site whose density is not exact, the model a latent site that the guide lacks, or no site
        stands inside the data plate.

    References
    ----------
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, https://arxiv.org/abs/1509.00519
    """
    batch = gen.settle(batch)
    if gen.vectorized:
        return _weights(gen, batch, particles)
    runs = [_weights(gen, batch, None) for _ in range(particles)]
    return torch.cat([weights for weights, _ in runs]), worst(*(kind for _, kind in runs))


def _weights(gen: GenerativeModel, batch: tuple, particles: int | None) -> tuple[Tensor, str]:
    pair = _run(gen, batch, particles)
    kind = kind_of(pair, gen.plate)
    return pair.by_row(gen.plate), "approximate" if kind in MEANS and depends_on_mode(gen) else kind


def _run(gen: GenerativeModel, batch: tuple, particles: int | None) -> Reading:
    with evaluating():
        pair = read(gen.model, gen.guide, batch, particles, gen.max_plate_nesting)
    check_rows_drawn(pair, gen.plate)
    return pair


@infers
@torch.no_grad()
def log_likelihood(
    gen: GenerativeModel,
    *batch: Any,
    particles: int = 64,
    max_rows: int | None = None,
    memory: float | None = None,
    compile: Choice = "auto",
) -> Score:
    r"""Held-out log-likelihood of every row, with the kind of number that it is.

    .. math:: \log \hat p(x_b) = \log \tfrac1K \sum_k \frac{p(x_b, z_k)}{q(z_k \mid x_b)}

    exact when there are no latents to draw. Of an exact number, and for complete rows of one that nothing random enters
    (an unnormalised density, an ODE with an exact trace), there is one draw, whatever ``particles`` says.

    Parameters
    ----------
    gen : GenerativeModel
        The model; it is scored in eval mode, and left in the mode that it is in.
    *batch : Tensor
        ``x`` of shape ``(B, *event)``, NaN = missing; then ``context`` where there is one.
    particles : int
        Draws K per row.
    max_rows : int, optional
        Bound on (rows x particles) evaluated at once, in place of the one that ``memory`` sets.
    memory : float, optional
        Bytes that the tensors of one evaluation may take, judged by a first one of a few rows; default: 128 MiB, or
        1 GiB on an accelerator. Results do not depend on it beyond the random draws, of which every block of rows has
        its own, globals included.
    compile : bool or "auto"
        Whether draws after the first ones are made by recorded and compiled operations: where the others repay it, at
        once, or never. The same seed gives the same draws in all cases.

    Raises
    ------
    NotImplementedError
        From an implicit model, naming the metric to use instead.
    NotCompilable
        With ``compile=True``, if the programs look at values of tensors.

    >>> from probgen.core.module import Fixed
    >>> import pyro.distributions as dist
    >>> print(log_likelihood(Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0), torch.zeros(3, 2)))
    = -1.84 ± 0.00 nats (exact)
    """
    if particles < 1:
        raise ValueError(f"expected particles >= 1, got {particles}")
    batch = gen.settle(batch)
    probe = _probe(gen, batch)
    kind, measure = kind_of(probe.pair, gen.plate), _measure(probe.pair, gen.plate)
    if kind == "exact" or not (probe.random or any(has_missing(value) for value in batch if torch.is_tensor(value))):
        particles = 1
    at_once = fitting(memory, probe.bytes_of_row, probe.accelerated) if max_rows is None else max(1, max_rows)
    blocks = _by_block(gen, batch, particles, at_once, probe.cut, compile)
    return Score(torch.cat([average(block, kind) for block in blocks]), kind, "nats", particles, measure)


class _Probe(NamedTuple):
    """One run, its memory per row and place, whether it drew anything, and whether the batch may be cut into blocks."""

    pair: Reading
    bytes_of_row: float
    accelerated: bool
    random: bool
    cut: bool


def _probe(gen: GenerativeModel, batch: tuple) -> _Probe:
    """A run on a few rows; on all where the arguments have no rows, or the guide draws for all rows or none."""
    rows = _row_count(batch)
    if rows is not None and rows > PROBED:
        try:
            return _measured(gen, _some(batch, slice(PROBED)), cut=True)
        except (RuntimeError, ValueError, IndexError):
            rows = None
    return _measured(gen, batch, cut=rows is not None)


def _measured(gen: GenerativeModel, batch: tuple, cut: bool) -> _Probe:
    before = random_state()
    with Profile() as profile:
        pair = _run(gen, batch, None)
        rows = pair.by_row(gen.plate).shape[1]
    random = not all(map(torch.equal, before, random_state()))
    return _Probe(pair, profile.peak / max(1, rows), profile.accelerated, random, cut)


def _row_count(batch: tuple) -> int | None:
    """Number of rows of a batch whose arguments are all tensors of one length."""
    given = [value for value in batch if value is not None]
    lengths = {value.shape[0] if torch.is_tensor(value) and value.ndim else None for value in given}
    return lengths.pop() if len(lengths) == 1 else None


def _some(batch: tuple, rows: slice) -> tuple:
    return tuple(None if value is None else value[rows] for value in batch)


def _by_block(
    gen: GenerativeModel, batch: tuple, particles: int, at_once: int, cut: bool, compile: Choice
) -> Iterator[Tensor]:
    """Log weights of one block of rows after the other, ``(particles, rows of the block)``.

    The first draw of each block is made with Pyro's checks of data and shapes, the others without.
    """
    size = max(min(at_once, 256), at_once // particles)  # a block shares a run of its encoder
    cuts = windows(_row_count(batch) or 0, size) if cut else [Window(0, 0, 0)]
    blocks = [_some(batch, slice(*each[:2])) if cut else batch for each in cuts]
    others: Iterator[list[Tensor]] | None = None
    for block, each in zip(blocks, cuts, strict=True):
        first = _run(gen, block, None).by_row(gen.plate)
        others = others or _others(gen, blocks, particles - 1, at_once // max(1, first.shape[1]), compile)
        yield torch.cat([first, *next(others)])[:particles, each.skip :]


def _others(
    gen: GenerativeModel, blocks: list[tuple], particles: int, at_once: int, compile: Choice
) -> Iterator[list[Tensor]]:
    """Log weights of so many particles, or of some more, for one block after the other: ``(some, rows)`` each."""
    given = [index for index, value in enumerate(blocks[0]) if torch.is_tensor(value)] if len(blocks) > 1 else []
    chunk = windows(particles, max(1, at_once))[0].stop
    drawn, together = (chunk, 1) if gen.vectorized else (1, chunk)

    def weigh(*tensors: Tensor) -> Tensor:
        batch = list(blocks[0])
        for index, tensor in zip(given, tensors, strict=True):
            batch[index] = tensor
        with pyro.validation_enabled(False):
            return _run(gen, tuple(batch), drawn if drawn > 1 else None).by_row(gen.plate)

    count = -(-particles // max(1, drawn))
    calls = [Call(tuple(block[index] for index in given)) for block in blocks for _ in range(count)]
    missing = any(has_missing(value) for block in blocks for value in block if torch.is_tensor(value))
    weights = repeated(weigh, calls, compile, together, missing)
    for _ in blocks:
        yield list(islice(weights, count))


def _measure(pair: Reading, plate: str) -> str:
    observed = [site for site in observed_sites(pair.model).values() if in_plate(site, plate)]
    discrete = bool(observed) and all(site["fn"].support.is_discrete for site in observed)
    return "mass" if discrete else "density"
