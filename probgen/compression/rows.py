"""Rows to bytes and back, by the probabilities that a model gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.compression import bits_back
from probgen.compression.channels import Channel, SymbolReader, SymbolWriter
from probgen.compression.errors import CompressionError
from probgen.compression.header import HOW, Header, file_bytes, model_digest, read_header, rows_sum
from probgen.compression.steps import Span, coded_of, events_of, is_walked, steps_of
from probgen.compression.transmission import aligned, received_rows, sent_rows
from probgen.core import checks
from probgen.core.arguments import own_dtype
from probgen.core.contexts import received
from probgen.core.entry import as_rows, check_used
from probgen.core.finite import levels_of
from probgen.core.frames import draws_frames
from probgen.core.keywords import call_form, explained
from probgen.core.kinds import density_kind
from probgen.core.marginal import Marginal
from probgen.core.missing import has_missing
from probgen.core.modes import infers
from probgen.core.supports import support_of
from probgen.core.threads import one_core
from probgen.core.turns import same_random_state
from probgen.distributions.flows.rescaled import Rescaled

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

BLOCK = 256  # rows that are coded side by side
NUMBERS = 2**24  # log masses of one block
WIDEST = 2**16  # values between the smallest and the largest
NUMBERS_IN_HEADER = {HOW["symbols"]: 3, HOW["bits back"]: 5}


@explained
@infers
@torch.no_grad()
def compress(gen: GenerativeModel, x: Any, context: Tensor | None = None) -> bytes:
    r"""Rows of discrete values as bytes, without loss, by the probabilities of a model.

    .. math:: \text{bits} \approx -\sum_b \log_2 p(x_b)

    The better the model, the fewer bytes: the size is that of the score in bits, within a thousandth
    and 64 bits, and a header of some 25 bytes. Every entry is coded by its probability given those before it,
    column by column for many rows at once: autoregressive models in their order, networks and trees
    from their roots, hidden Markov models by filtered states, mixtures by the weights that the columns
    before leave, integer flows by their latents. A latent-variable model whose latents are normal or
    discrete gives its bound instead, by *bits back*: latents are drawn from the guide by reading bits
    that are there already.

    Parameters
    ----------
    gen : GenerativeModel
        A model of discrete rows.
    x : Tensor
        Rows ``(N, *event)``, without missing values. A frame for a :class:`Tabular
        <probgen.Tabular>`.
    context : Tensor, optional
        ``(N, C)``; it is not part of the bytes, :func:`decompress` must get it again.

    Returns
    -------
    bytes
        A header (format, fingerprint of the model, checksums, number of rows), and the symbols.

    Raises
    ------
    ImportError
        Without constriction: ``pip install 'probgen[compression]'``.
    NotImplementedError
        For continuous models, unnormalized and implicit ones, and those with no conditionals in an
        order.
    ValueError
        For missing values, and where the model gives a value of a row no probability at all: with
        row and column.

    References
    ----------
    MacKay (2003), Information theory, inference, and learning algorithms, chapter 6; Townsend, Bird,
    Barber (2019), Practical lossless compression with latent variables using bits back coding,
    https://arxiv.org/abs/1901.04866; Bamler (2022), Understanding entropy coding with asymmetric
    numeral systems, https://arxiv.org/abs/2201.01741 (constriction)

    >>> from probgen.models.markov_chain import MarkovChain
    >>> gen = MarkovChain(8)
    >>> rows = gen().sample((100,))
    >>> torch.equal(decompress(gen, compress(gen, rows)), rows)  # doctest: +SKIP
    True
    """
    x, context = (*as_rows(gen, x, context), None)[:2]
    context = _contexts(gen, context)
    if has_missing(x):
        row = int(x.isnan().flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"expected complete rows, got NaN (missing) in row {row}; fill them in (probgen.impute), "
            "or give missing values a level of their own"
        )
    with one_core(), same_random_state():
        _check_codable(gen, context)
        model = model_digest(gen, context)
        if isinstance(_of(gen, context, slice(0, 1)), Marginal):
            numbers, words = bits_back.push_rows(gen, x, context)
            header = Header(model, rows_sum(x), HOW["bits back"], numbers)
            return file_bytes(header, words)
        span = _span(gen, x, context)
        writer = SymbolWriter()
        for rows in _blocks(gen, len(x), context, span):
            _code(_of(gen, context, rows), rows, x[rows], span, writer)
        header = Header(model, rows_sum(x), HOW["symbols"], (len(x), span.lowest, span.highest))
        return file_bytes(header, writer.words())


@explained
@draws_frames
@infers
@torch.no_grad()
def decompress(gen: GenerativeModel, data: bytes, context: Tensor | None = None) -> Tensor:
    """The rows that :func:`compress` made bytes of, by the same model.

    The same arithmetic has to come out: the same weights, on the same kind of machine, with the same
    versions of torch and constriction. What comes out otherwise is found by a checksum, and refused.

    Parameters
    ----------
    gen : GenerativeModel
        The model that compressed.
    data : bytes
        What it made.
    context : Tensor, optional
        The contexts of the rows, ``(N, C)``.

    Returns
    -------
    Tensor
        ``(N, *event)``, of the floating-point type of the model. Of a :class:`Tabular
        <probgen.Tabular>`: a frame.

    Raises
    ------
    CompressionError
        For bytes of another model or other contexts, foreign, cut off or damaged ones.
    TypeError
        For what is not bytes.

    >>> from probgen.models.markov_chain import MarkovChain
    >>> decompress(MarkovChain(3), b"something else entirely")
    Traceback (most recent call last):
    probgen.compression.errors.CompressionError: expected bytes of probgen.compress, got 23 others; pass ...
    """
    checks.generative(gen=gen)
    checks.instance((bytes, bytearray, memoryview), "pass what compress gave", data=data)
    context = _contexts(gen, context)
    header, words = read_header(bytes(data), NUMBERS_IN_HEADER)
    with one_core(), same_random_state():
        if model_digest(gen, context) != header.model:
            raise CompressionError(
                "expected the model that compressed these bytes, with the same contexts, got "
                f"another one ({type(gen).__name__}); load that one: pg.load(path)"
            )
        if header.how == HOW["bits back"]:
            x = bits_back.pop_rows(gen, header.numbers, words, context)
        else:
            x = _read(gen, header, words, context)
    if rows_sum(x) != header.rows_sum:
        raise CompressionError(
            "expected the rows that were compressed, got others: the model computes other numbers "
            "here; decompress on the kind of machine, with the versions of torch and constriction, "
            "that compressed"
        )
    return x


def _contexts(gen: Any, context: Any) -> Tensor | None:
    """Contexts as :func:`compress` has them."""
    if context is not None:
        context = gen.settle((None, context))[1]
    if getattr(gen, "any_rows", False):
        context = received(gen, context, f"give those of the rows: {call_form('data', 'context')}")
        if torch.is_tensor(context):
            check_used(gen, context)
    return context


def _read(gen: Any, header: Header, words: Any, context: Tensor | None) -> Tensor:
    count, lowest, highest = header.numbers
    span = Span(lowest, highest)
    reader = SymbolReader(words)
    dtype = own_dtype(gen) or torch.get_default_dtype()
    parts = [
        _code(_of(gen, context, rows), rows, None, span, reader, dtype).to(dtype)
        for rows in _blocks(gen, count, context, span)
    ]
    reader.check_exhausted()
    return torch.cat(parts)


def _code(
    distribution: Any,
    rows: slice,
    x: Tensor | None,
    span: Span,
    channel: Channel,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Rows through a channel: those that are given, or those that it gives."""
    lead = torch.Size((rows.stop - rows.start,))
    steps = steps_of(distribution, lead, span)
    if x is not None:
        sent_rows(steps, coded_of(distribution, x), channel, rows.start)
        return x
    return events_of(distribution, received_rows(steps, channel, dtype))


def _of(gen: Any, context: Tensor | None, rows: slice) -> Any:
    """The distribution of some rows; of a table of labels and counts, which have no units, that of its family."""
    distribution = gen(None if context is None else aligned(context[rows]))
    if isinstance(distribution, Rescaled) and support_of(distribution.base_dist).is_discrete:
        return distribution.base_dist
    return distribution


def _blocks(gen: Any, count: int, context: Tensor | None, span: Span) -> Iterator[slice]:
    """Rows that are coded together; as many wherever they are decoded."""
    distribution = _of(gen, context, slice(0, 1))
    levels = levels_of(distribution)
    entries = distribution.event_shape.numel()
    if levels is not None and not is_walked(distribution):
        size = levels.total  # by a table of all events
    elif levels is not None and levels.counts.max() <= WIDEST:
        size = levels.counts.double().sum().item()
    else:
        size = entries * (span.highest - span.lowest + 1)
    at_once = int(max(1, min(BLOCK, NUMBERS // max(1, size))))
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))


def _span(gen: Any, x: Tensor, context: Tensor | None) -> Span:
    """The values that are coded; of a flow those of its latents."""
    lowest, highest = [], []
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        low, high = coded_of(_of(gen, context, rows), x[rows]).aminmax()
        lowest.append(int(low.item()))
        highest.append(int(high.item()))
    span = Span(min(lowest), max(highest))
    if span.highest - span.lowest >= WIDEST:
        raise ValueError(
            f"expected values within {WIDEST:,} of each other, got {span.lowest} to "
            f"{span.highest}; code them in coarser steps, or leave such rows out"
        )
    return span


def _check_codable(gen: Any, context: Tensor | None) -> None:
    """Refuses distributions that give no masses."""
    distribution = _of(gen, context, slice(0, 1))
    kind = density_kind(distribution)
    name = type(gen).__name__
    if kind in ("implicit", "unnormalized"):
        raise NotImplementedError(
            f"expected a model that gives rows probabilities, got {kind} ones ({name}); train a "
            "model with a likelihood, on draws of this one say"
        )
    if not support_of(distribution).is_discrete:
        raise NotImplementedError(
            f"expected a model of discrete rows, got densities ({name}); round the data to a grid "
            "and train a discrete model on its levels: Categorical(levels=...), "
            "DiscretizedLogisticMixture(levels=...)"
        )
    if kind != "exact" and not isinstance(distribution, Marginal):
        raise NotImplementedError(
            f"expected masses that are exact, or a latent-variable model, got {kind} ones ({name}); "
            "take a model with exact masses: autoregressive, IntegerFlow, a network"
        )
