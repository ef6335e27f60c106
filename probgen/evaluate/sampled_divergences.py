"""Divergences by draws of two models, and what their densities allow to say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.finite import levels_of
from probgen.core.kinds import density_kind
from probgen.core.support_words import in_words
from probgen.core.supports import support_of
from probgen.core.unions import atoms_in_words, atoms_of, of_entries
from probgen.diagnostics.findings import RELIABLE
from probgen.diagnostics.psis import SHORTEST, pareto_khat
from probgen.distributions.autoregressive import Autoregressive
from probgen.evaluate.f_divergences import RatioTerm

ONE_SIDED = ("unbiased", "bound")  # of which the log density is too small in the mean
BY_DRAWS = "compare draws of both: probgen.evaluate.mmd_test(pg.sample(p, n), pg.sample(q, n))"


class SampledDivergence(NamedTuple):
    """An average over draws."""

    value: float
    stderr: float
    kind: str
    draws: int
    khat: float


class DrawnTerms(NamedTuple):
    """What is averaged: of each model whose draws are used its terms ``(draws, contexts)``.

    And the kind of their mean; the average of several models is that of their means.
    """

    parts: list[Tensor]
    kind: str


def check_comparable(p: Any, q: Any) -> None:
    """Refuses distributions of other events, masses beside densities, other supports."""
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"expected models of the same events, got {tuple(p.event_shape)} and "
            f"{tuple(q.event_shape)}; reshape one of them"
        )
    if "implicit" in (density_kind(p), density_kind(q)):
        return  # refused with what to do instead
    first, second = support_of(p), support_of(q)
    if first.is_discrete != second.is_discrete:
        raise TypeError(
            "expected two masses or two densities, got a mass and a density, between which every "
            "divergence is at its largest; give both models the same kind of values: Quantized "
            "makes masses of densities"
        )
    if (atoms := [atoms_of(each) for each in (first, second)])[0] != atoms[1]:
        raise TypeError(
            f"expected models with the same atoms, got atoms at {atoms_in_words(atoms[0])} and at "
            f"{atoms_in_words(atoms[1])}: a mass is no density there; give both models the same "
            "atoms: ZeroInflated(head=..., atoms=...)"
        )
    if not _same_support(p, q):
        raise ValueError(
            f"expected models on the same support, got {_in_words(p)} and {_in_words(q)}; restrict "
            "one of them, or take a family with the support of the other"
        )


def _same_support(p: Any, q: Any) -> bool:
    levels = levels_of(p), levels_of(q)
    if levels[0] is not None and levels[1] is not None:
        return levels[0].same_as(levels[1])
    if any(each is not None for each in levels):
        return False
    return _in_words(p) == _in_words(q)


def _in_words(distribution: Any) -> str:
    levels = levels_of(distribution)
    if levels is None:
        return in_words(of_entries(support_of(distribution))[0])
    entries = levels.by_entry()
    low, count = entries[0] if entries else (0, 1)
    if len(set(entries)) == 1:
        return f"integers from {low} to {low + count - 1}"
    told = ", ".join(str(count) for _, count in entries[:8])
    return f"integers with {told} levels column by column"


def sampled_divergence(
    p: Any, q: Any, term: RatioTerm, draws: int, max_rows: int
) -> SampledDivergence:
    """The average, its error and kind; ``ValueError`` where it has no known error."""
    drawn = _drawn(p, q, term, draws, max_rows)
    means = [part.mean(0) for part in drawn.parts]
    by_context = torch.stack(means).mean(0)
    if by_context.isposinf().any():
        return SampledDivergence(math.inf, 0.0, drawn.kind, draws, 0.0)
    slopes = torch.ones_like(by_context)
    kind = drawn.kind
    if term.root:
        by_context = by_context.clamp(min=0.0).sqrt()
        slopes = 0.5 / by_context.clamp(min=1e-12)
        kind = "approximate"  # the root of a mean is less in the mean, of an upper bound as well
    share = 1 / len(drawn.parts)
    rows = [(part * slopes).mean(-1) * share for part in drawn.parts]
    error = math.sqrt(sum(row.var().item() / len(row) for row in rows))
    khat = tail_khat(rows)
    if not term.bounded:
        _check_tail(khat, term, draws)
    return SampledDivergence(by_context.mean().item(), error, kind, draws, khat)


def tail_khat(parts: list[Tensor]) -> float:
    """Tail index of what makes the error of an average: distances of terms from their mean.

    Those of all models whose draws are used, ``(draws,)`` each, together: a tail of terms that
    hardly differ does no harm. The smaller one of the whole tail and of its upper half: where terms
    have an upper limit that many of them come near, that limit may lie at the end of one of these
    tails, which then looks heavy. Zero where nothing differs.

    >>> tail_khat([torch.ones(200)])
    0.0
    """
    distances = torch.cat([(part - part.mean()).abs() for part in parts])
    if distances.max() <= 1e-9 * (1 + torch.cat(parts).abs().max()):
        return 0.0
    upper = distances.sort().values[-max(SHORTEST, len(distances) // 4) :]
    return min(pareto_khat(each.log()).item() for each in (distances, upper))


def _check_tail(khat: float, term: RatioTerm, draws: int) -> None:
    if khat <= RELIABLE:
        return
    raise ValueError(
        f"expected terms of the divergence {term.name!r} whose average has an error, got a Pareto "
        f"k-hat of {khat:.2f} from {draws} draws (above {RELIABLE}): few draws carry the sum; take "
        "a bounded divergence: kind='jensen-shannon', 'total variation' or 'hellinger'"
    )


def _drawn(p: Any, q: Any, term: RatioTerm, draws: int, max_rows: int) -> DrawnTerms:
    """Draws by what the densities of both models are."""
    kinds = density_kind(p), density_kind(q)
    _check_kinds(*kinds, p, q)
    both = all(kind in ("exact", "approximate") for kind in kinds)
    if both and kinds == ("exact", "exact") and term.name in ("kl", "reverse kl"):
        ordered = (p, q) if term.name == "kl" else (q, p)
        if terms := _by_conditionals(*ordered, draws, max_rows):
            return terms
    if both:
        return _of_both(p, q, term, draws, max_rows, kinds)
    if term.name == "kl":
        return _log_ratios(
            p, q, draws, max_rows, "upper bound" if kinds[0] == "exact" else "lower bound"
        )
    if term.name == "reverse kl":
        return _log_ratios(
            q, p, draws, max_rows, "upper bound" if kinds[1] == "exact" else "lower bound"
        )
    return _of_exact(p, q, term, draws, max_rows, kinds)


def _check_kinds(first: str, second: str, p: Any, q: Any) -> None:
    for name, kind, each in (("p", first, p), ("q", second, q)):
        if kind in ("implicit", "unnormalized"):
            raise ValueError(
                f"expected {name} with a density that is exact, unbiased, a bound or approximate, "
                f"got {kind} ({type(each).__name__}); {BY_DRAWS}"
            )
    if (first in ONE_SIDED and second != "exact") or (second in ONE_SIDED and first != "exact"):
        raise ValueError(
            "expected one model with an exact density, as the difference of two inexact ones "
            f"bounds nothing, got {first} ({type(p).__name__}) and {second} "
            f"({type(q).__name__}); {BY_DRAWS}"
        )


def _of_both(
    p: Any, q: Any, term: RatioTerm, draws: int, max_rows: int, kinds: tuple[str, str]
) -> DrawnTerms:
    """Half of the draws from each model: the average over their mixture."""
    half = max(SHORTEST, draws // 2)
    score = lambda x: term.mixed(_log_ratio(p, q, x))  # noqa: E731
    parts = [_scored(each, score, half, max_rows, (p, q)) for each in (p, q)]
    return DrawnTerms(parts, "approximate" if "approximate" in kinds else "unbiased")


def _log_ratios(p: Any, q: Any, draws: int, max_rows: int, kind: str) -> DrawnTerms:
    """Of KL(p || q): one-sided errors of log densities are left as they are."""
    score = lambda x: _log_ratio(p, q, x)  # noqa: E731
    return DrawnTerms([_scored(p, score, draws, max_rows, (p, q))], kind)


def _of_exact(
    p: Any, q: Any, term: RatioTerm, draws: int, max_rows: int, kinds: tuple[str, str]
) -> DrawnTerms:
    """Convex functions of an unbiased density, at draws of the exact model."""
    if "bound" in kinds:
        raise ValueError(
            f"expected densities that are exact or unbiased for the {term.name} divergence, got a "
            "bound of the log density, which bounds no other function of it; take kind='kl' or "
            "'reverse kl'"
        )
    source, function = (p, term.under_first) if kinds[0] == "exact" else (q, term.under_second)
    score = lambda x: function(_log_ratio(p, q, x))  # noqa: E731
    return DrawnTerms([_scored(source, score, draws, max_rows, (p, q))], "upper bound")


def _by_conditionals(p: Any, q: Any, draws: int, max_rows: int) -> DrawnTerms | None:
    """KL of autoregressive models: that of every conditional, along draws of p."""
    if not (isinstance(p, Autoregressive) and isinstance(q, Autoregressive)):
        return None
    score = lambda x: p.divergence_terms(q, x).sum(-1).double()  # noqa: E731
    try:
        return DrawnTerms([_scored(p, score, draws, max_rows, (p, q))], "unbiased")
    except ValueError:  # other orders, or conditionals without a closed form
        return None


def _log_ratio(p: Any, q: Any, x: Tensor) -> Tensor:
    """Log p - log q in float64; 0 where both are zero, which no exact density is at its own draws."""
    first, second = p.log_prob(x).double(), q.log_prob(x).double()
    return torch.where(first.isneginf() & second.isneginf(), 0.0, first - second)


def _scored(
    source: Any,
    score: Callable[[Tensor], Tensor],
    draws: int,
    max_rows: int,
    pair: tuple[Any, Any],
) -> Tensor:
    """Terms of draws of one model, ``(draws, contexts)``."""
    contexts = max(1, *(each.batch_shape.numel() for each in pair))
    counts = _pieces(draws, max(1, max_rows // contexts))
    terms = torch.cat([score(source.sample((count,))) for count in counts])
    return terms.reshape(draws, -1)


def _pieces(total: int, most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, most)
        total -= most
