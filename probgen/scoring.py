"""Log-likelihoods of rows, evaluated in blocks that fit in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probgen.compile.batched_replay import generator_states
from probgen.compile.cost_model import Profile, fitting
from probgen.compile.scheduling import Call, Choice, Window, repeated, windows
from probgen.core import checks
from probgen.core.arguments import is_leaf
from probgen.core.by_blocks import BlockResult, drawn_seed, large_blocks, results, seed_of
from probgen.core.entry import as_rows
from probgen.core.given_weights import weights_from
from probgen.core.in_memory import is_stream
from probgen.core.keywords import explained
from probgen.core.kinds import average, kind_of
from probgen.core.missing import has_missing
from probgen.core.modes import infers
from probgen.core.private_torch import pytree
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.reading import Reading
from probgen.core.rows import RowLayout, layout_of, tensors_of
from probgen.core.runtime import rows_in_plate, validation
from probgen.core.score import MeanScore, Score
from probgen.core.seeds import Seed, seeded, takes_seed
from probgen.core.sites import in_plate, observed_sites
from probgen.core.streams import as_stream, share, shared_blocks
from probgen.core.together import Together
from probgen.core.unions import atoms_in_words, atoms_of
from probgen.core.unvisited import leaves_values_out
from probgen.core.weights import run_pair

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from probgen.core.module import GenerativeModel

PROBED = 64  # rows of a first run, which tells kind and memory


@explained
@infers
@torch.no_grad()
@takes_seed
def log_likelihood(
    gen: GenerativeModel,
    *batch: Any,
    weights: Tensor | Sequence[float] | None = None,
    particles: int = 64,
    max_rows: int | None = None,
    memory: float | None = None,
    compile: Choice = "auto",
    seed: Seed = None,
    progress: Reported = None,
    fabric: Fabric | None = None,
) -> Score | MeanScore:
    r"""Held-out log-likelihood of every row, with the kind of number that it is.

    .. math:: \log \hat p(x_b) = \log \tfrac1K \sum_k \frac{p(x_b, z_k)}{q(z_k \mid x_b)}

    exact when there are no latents to draw, and nothing in the networks is random in eval mode. Of
    an exact number, and for complete rows of one that nothing random enters (an unnormalized
    density, an ODE with an exact trace), there is one draw, whatever ``particles`` says.

    Parameters
    ----------
    gen : GenerativeModel
        The model; it is scored in eval mode, and left in the mode that it is in.
    *batch : Tensor
        ``x`` of shape ``(B, *event)``, NaN = missing; then ``context`` where there is one. A family
        of sequences takes a list of them, ``(T_b, *entry)`` each. Or one stream of rows, which is
        read once, block by block: the result is then their mean, in constant memory;
        :func:`probgen.by_blocks` gives the scores of the rows of each block.
    weights : Tensor, array or sequence of float, optional
        How often each row counts in the mean of the score and in its standard error, ``(B,)``, not
        negative: 2 is the same as the row given twice.
    particles : int
        Draws K per row.
    max_rows : int, optional
        Bound on (rows x particles) evaluated at once, in place of the one that ``memory`` sets. Of a
        stream: rows that are read at once; default: as many as hold four million numbers, or 4096.
    memory : float, optional
        Bytes that the tensors of one evaluation may take, judged by a first one of a few rows;
        default: 128 MiB, or 1 GiB on an accelerator. Results do not depend on it beyond the random
        draws, of which every block of rows has its own, globals included.
    compile : bool or "auto"
        Whether draws after the first ones are made by recorded and compiled operations: where enough
        draws are left to amortize the cost, at once, or never. The same seed gives the same draws
        in all cases.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.
    progress : bool, float or None
        Mean so far, rate and time left: in one line that is renewed where there is a terminal;
        elsewhere nothing, with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.
    fabric : lightning_fabric.Fabric, optional
        A launched Fabric: each of its processes scores a part of the rows, and all of them get the
        whole result, in the order of the rows. Of an exact density it is that of one process, and of a
        stream whatever the density. Draws for rows in memory follow from the seed and from how rows
        are shared: they are the same for as many processes, and other ones than those of one.

    Returns
    -------
    Score or MeanScore
        Values of all rows in memory; of a stream their mean, its standard error and the worst kind
        of its blocks.

    Warns
    -----
    UserWarning
        Where a density that is exact by its distributions draws random numbers: it is approximate.

    Raises
    ------
    ValueError
        For values outside of the support of the data, with the row; for weights that are negative,
        or not one for each row.
    NotImplementedError
        From an implicit model, naming the metric to use instead.
    NotCompilable
        With ``compile=True``, if the programs look at values of tensors.

    >>> from probgen.core.module import Fixed
    >>> import pyro.distributions as dist
    >>> print(log_likelihood(Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0), torch.zeros(3, 2)))
    = -1.84 ± 0.00 nats (exact)
    """
    checks.generative(gen=gen)
    checks.at_least(1, particles=particles)
    checks.at_least(1, **checks.given(max_rows=max_rows))
    checks.positive(**checks.given(memory=memory))
    checks.one_of(("auto", True, False), compile=compile)
    check_progress(progress)
    together = Together(fabric)
    if len(batch) == 1 and is_stream(batch[0], gen):
        _check_unweighted(weights)
        how = {"particles": particles, "memory": memory, "compile": compile}
        return _of_stream(gen, batch[0], max_rows, how, together, progress)
    with together.agreed():
        batch = as_rows(gen, *batch)
        if weights is not None:
            weights = weights_from(weights, layout_of(gen, batch).size)
        probe = _probe(gen, batch)
        kind = _kind(gen, probe)
        measure = measure_of(probe.pair, gen.plate)
    together.check_call(gen, (batch, weights), {"particles": particles})
    if kind == "exact" or not (
        probe.random or any(has_missing(value) for value in batch if torch.is_tensor(value))
    ):
        particles = 1
    at_once = together.share(
        fitting(memory, probe.bytes_of_row, probe.accelerated)
        if max_rows is None
        else max(1, max_rows)
    )
    values = []
    asked = progress if together.first else False
    own = _own_seed(probe.cut, together)
    with (
        Progress("log_likelihood", unit="rows", asked=asked) as shown,
        together.agreed(),
        seeded(own),
    ):
        for block in _by_block(
            gen, batch, particles, at_once, probe.cut, compile, shown, together.part
        ):
            values.append(average(block, kind))
            shown.say(lambda: f"mean {torch.cat(values).mean():.4g} nats")
    return Score(
        _of_all(values, probe.cut, together),
        kind,
        "nats",
        particles,
        measure,
        weights,
    )


def _of_stream(
    gen: GenerativeModel,
    data: Any,
    max_rows: int | None,
    how: dict[str, Any],
    together: Together,
    progress: Reported,
) -> MeanScore:
    """The mean score of the rows of a stream, each process reading its part of them."""
    with together.agreed():
        stream = as_stream(data, gen)
    together.check_call(gen, stream, {"particles": how["particles"]})
    seed = together.share(drawn_seed())
    with together.agreed():
        read = (
            large_blocks(stream, together.part)
            if max_rows is None
            else shared_blocks(stream, int(max_rows), together.part)
        )
    blocks = results(log_likelihood, gen, stream, read, seed, how)
    asked = progress if together.first else False
    with Progress("log_likelihood", unit="rows", asked=asked) as shown, together.agreed():
        scores = _told(blocks, shown)
        first = list(islice(scores, 1))
        own = [MeanScore.of(chain(first, scores))] if first else []
    parts = [score for scores in together.gather(own) for score in scores]
    if not parts:
        raise ValueError(
            "expected data with at least one row that counts, got none; check how it was filtered or "
            "split, and its weights"
        )
    return MeanScore.of(parts)


def _told(blocks: Iterator[BlockResult], progress: Progress) -> Iterator[Score]:
    """Scores of blocks, as they come."""
    for block in blocks:
        progress.advance(block.size)
        yield block.result


def _check_unweighted(weights: Any) -> None:
    if weights is not None:
        raise ValueError(
            "expected the weights of a stream in the stream itself, got weights= beside it; give "
            "them as a column of it: pg.streams.Parquet(path, weights='column')"
        )


def _own_seed(cut: RowBlocks | None, together: Together) -> int | None:
    """What this process draws by: where rows are shared, other numbers than the others."""
    if together.world == 1:
        return None
    shared = together.share(drawn_seed())
    return shared if cut is None else seed_of(shared, together.rank)


def _of_all(values: list[Tensor], cut: RowBlocks | None, together: Together) -> Tensor:
    """The values of all rows, in their order; without rows that can be told apart each has all."""
    own = torch.cat(values) if values else None
    if together.world == 1 or cut is None:
        assert own is not None
        return own
    found = together.gather(None if own is None else own.cpu())
    return torch.cat([part for part in found if part is not None]).to(together.fabric.device)


def _kind(gen: GenerativeModel, probe: _Probe) -> str:
    """The kind of the scores, by what the run showed beside the distributions met in it."""
    kind = kind_of(probe.pair, gen.plate)
    if kind == "unbiased" and probe.leaves_out:
        return "bound"
    if kind == "exact" and probe.random:
        warnings.warn(
            f"the density of {type(gen).__name__} draws random numbers in eval mode, so that it "
            "differs from call to call and its scores are approximate: a layer stays random "
            "(dropout with training=True, noise added in forward); make that depend on "
            "self.training",
            UserWarning,
            stacklevel=7,  # of the caller, past the decorators
        )
        return "approximate"
    return kind


class _Probe(NamedTuple):
    """One run, its memory per row and place, whether it drew anything.

    And how the batch is cut into blocks.
    """

    pair: Reading
    bytes_of_row: float
    accelerated: bool
    random: bool
    cut: RowBlocks | None
    leaves_out: bool


class RowBlocks(NamedTuple):
    """Rows of a batch by their numbers.

    Which the plate of the program gets too where it runs with them.
    """

    gen: GenerativeModel
    batch: tuple
    layout: RowLayout
    numbered: bool

    def take(self, rows: slice) -> tuple:
        """The arguments with some rows alone."""
        return self.layout.take(self.batch, rows)

    def run(self, block: tuple, rows: slice, particles: int | None = None) -> Reading:
        """A run on those rows."""
        index = torch.arange(rows.start, rows.stop) if self.numbered else None
        with rows_in_plate(self.gen.plate, self.layout.size, index):
            return run_pair(self.gen, block, particles)


def _probe(gen: GenerativeModel, batch: tuple) -> _Probe:
    """A run on a few rows.

    On all where the arguments have no rows, or rows cannot be told apart.
    """
    layout = layout_of(gen, batch)
    for numbered in (True, False) if layout.known and layout.size > PROBED else ():
        cut = RowBlocks(gen, batch, layout, numbered)
        with suppress(RuntimeError, ValueError, IndexError):
            probe = _measured(cut, slice(layout.size - PROBED, layout.size))
            if _rows_stand_alone(cut, probe):
                return probe
            break
    return _measured(RowBlocks(gen, batch, layout, numbered=False), None)


def _measured(cut: RowBlocks, rows: slice | None) -> _Probe:
    before = generator_states()
    with Profile() as profile:
        block = cut.batch if rows is None else cut.take(rows)
        pair = run_pair(cut.gen, block, None) if rows is None else cut.run(block, rows)
        count = pair.by_row(cut.gen.plate).shape[1]
    if rows is not None and count != rows.stop - rows.start:
        raise ValueError("a plate that does not follow the rows of the arguments")
    random = not all(map(torch.equal, before, generator_states()))
    known = None if rows is None else cut
    leaves_out = leaves_values_out(cut.gen, block, pair)
    return _Probe(
        pair, profile.peak / max(1, count), profile.accelerated, random, known, leaves_out
    )


def _rows_stand_alone(cut: RowBlocks, probe: _Probe) -> bool:
    """Whether rows have the same numbers among others, where nothing random enters.

    Else they look at each other.
    """
    if probe.random:
        return True
    half = slice(cut.layout.size - PROBED // 2, cut.layout.size)
    alone = cut.run(cut.take(half), half).by_row(cut.gen.plate)
    among = probe.pair.by_row(cut.gen.plate)[:, -PROBED // 2 :]
    return torch.allclose(alone, among, rtol=1e-3, atol=1e-3, equal_nan=True)


def _by_block(
    gen: GenerativeModel,
    batch: tuple,
    particles: int,
    at_once: int,
    cut: RowBlocks | None,
    compile: Choice,
    progress: Progress,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Tensor]:
    """Log weights of one block of rows after the other, ``(particles, rows of the block)``.

    Of several processes each has its part of the blocks. The first draw of each block is made with
    Pyro's checks of data and shapes, the others without.
    """
    size = max(min(at_once, 256), at_once // particles)  # a block shares a run of its encoder
    cuts = _cuts(cut, size, part)
    blocks = [batch if cut is None else cut.take(slice(*each[:2])) for each in cuts]
    progress.total = float(particles if cut is None else sum(map(_new, cuts)))
    if cut is None:
        progress.unit = "particles"
    others: Iterator[list[Tensor]] | None = None
    for block, each in zip(blocks, cuts, strict=True):
        pair = run_pair(gen, block, None) if cut is None else cut.run(block, slice(*each[:2]))
        first = pair.by_row(gen.plate)
        count = at_once // max(1, first.shape[1])
        progress.advance(1 if cut is None else _new(each) / particles)
        others = others or _others(gen, blocks, cuts, particles - 1, count, cut, compile, progress)
        yield torch.cat([first, *next(others)])[:particles, each.skip :]


def _cuts(cut: RowBlocks | None, size: int, part: tuple[int, int]) -> list[Window]:
    """The blocks of one process, of at most so many rows; all rows at once where they have no cut."""
    if cut is None:
        return [Window(0, 0, 0)]
    whole = windows(cut.layout.size, min(size, -(-cut.layout.size // part[1])))
    return whole[slice(*share(len(whole), *part))]


def _others(
    gen: GenerativeModel,
    blocks: list[tuple],
    cuts: list[Window],
    particles: int,
    at_once: int,
    cut: RowBlocks | None,
    compile: Choice,
    progress: Progress,
) -> Iterator[list[Tensor]]:
    """Log weights of so many particles, or of some more, for one block after the other.

    ``(some, rows)`` each.

    What differs between blocks is an argument of the recorded function: their rows, and the numbers
    of these.
    """
    leaves, spec = pytree.tree_flatten(blocks[0], is_leaf=is_leaf)
    given = [i for i, leaf in enumerate(leaves) if torch.is_tensor(leaf)] if len(blocks) > 1 else []
    numbered = cut is not None and cut.numbered and len(blocks) > 1
    chunk = windows(particles, max(1, at_once))[0].stop
    drawn, together = (chunk, 1) if gen.vectorized else (1, chunk)

    def weigh(*tensors: Tensor) -> Tensor:
        own = list(leaves)
        for index, tensor in zip(given, tensors, strict=False):
            own[index] = tensor
        numbers = tensors[-1] if numbered else None
        size = cut.layout.size if cut is not None else 0
        with validation(False), rows_in_plate(gen.plate, size, numbers):
            return run_pair(
                gen, pytree.tree_unflatten(own, spec), drawn if drawn > 1 else None
            ).by_row(gen.plate)

    count = -(-particles // max(1, drawn))
    shared = []
    for block, each in zip(blocks, cuts, strict=True):
        tensors = pytree.tree_flatten(block, is_leaf=is_leaf)[0]
        numbers = (torch.arange(each.start, each.stop),) if numbered else ()
        shared.append((*(tensors[index] for index in given), *numbers))
    calls = [Call(tensors) for tensors in shared for _ in range(count)]
    missing = any(has_missing(value) for block in blocks for value in tensors_of(block))
    weights = repeated(weigh, calls, compile, together, missing)
    for each in cuts:
        share = particles if cut is None else _new(each) * particles / (particles + 1)
        found = []
        for weight in islice(weights, count):
            found.append(weight)
            progress.advance(share / count)
        yield found


def _new(window: Window) -> int:
    """How many rows a window has that were in none before."""
    return window.stop - window.start - window.skip


def measure_of(pair: Reading, plate: str) -> str:
    """What the rows' numbers are of: see :class:`Score`."""
    observed = [site for site in observed_sites(pair.model).values() if in_plate(site, plate)]
    if observed and all(site["fn"].support.is_discrete for site in observed):
        return "mass"
    atoms = [found for site in observed if (found := atoms_of(site["fn"].support))]
    return f"density with atoms at {'; '.join(map(atoms_in_words, atoms))}" if atoms else "density"
