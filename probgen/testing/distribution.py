"""Promises of the distribution p(x | context): shapes, kinds, densities, samples."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from probgen.core.kinds import KINDS
from probgen.testing.case import Case, ConformanceError, require, require_close, require_shape

REPEATABLE = ("exact", "unnormalized")


def shapes(case: Case) -> None:
    """gen(context) is a distribution over rows of x, one for each row of context."""
    distribution = case.distribution
    require(
        isinstance(distribution, TorchDistributionMixin),
        f"got {type(distribution)}; take it from pyro.distributions",
    )
    hint = "turn dims into event dims by .to_event(n), and expand the distribution to the batch dims of the context"
    batch = tuple(distribution.batch_shape)
    event = tuple(distribution.event_shape)
    require(batch == case.rows, f"expected batch_shape {case.rows}, got {batch}; {hint}")
    require(event == case.event, f"expected event_shape {case.event}, got {event}; {hint}")
    require(
        case.kind in KINDS,
        f"expected a density that is one of {KINDS}, got {case.kind!r}; correct the attribute",
    )


def contexts(case: Case) -> None:
    """a context with more leading dims gives a distribution with those batch dims."""
    if case.context is None:
        return
    distribution = case.gen(case.context.expand(2, *case.context.shape))
    hint = "index dims of the context from the right"
    rows = (2, len(case.x))
    require(
        tuple(distribution.batch_shape) == rows,
        f"expected batch_shape {rows}, got {tuple(distribution.batch_shape)}; {hint}",
    )
    require_shape("samples", distribution.sample(), rows + case.event, hint)
    if case.kind in REPEATABLE:
        require_close(
            "log_prob",
            distribution.log_prob(case.x)[1],
            case.distribution.log_prob(case.x),
            "rows of context are mixed up",
        )


def draws_have_shapes(case: Case) -> None:
    """sample(shape) gives finite draws of shape + batch_shape + event_shape, in the dtype of x."""
    for shape in ((), (3,), (2, 3)):
        draws = case.distribution.sample(torch.Size(shape))
        require_shape(
            "samples", draws, shape + case.rows + case.event, "sample_shape goes to the left"
        )
        require(
            draws.dtype == case.x.dtype,
            f"expected samples of {case.x.dtype} as x, got {draws.dtype}; convert one",
        )
        require(
            not draws.requires_grad,
            "samples carry gradients; sample() runs without them, rsample() with",
        )


def supports(case: Case) -> None:
    """x and samples lie in the support."""
    for name, value in (("x", case.complete), ("a sample", case.distribution.sample())):
        inside = case.distribution.support.check(value)
        require(
            inside.all(),
            f"{name} leaves the support {case.distribution.support}; correct the support, or the "
            "data",
        )


def seeded_draws(case: Case) -> None:
    """the same seed gives the same samples."""
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(case.gen(case.context).sample((3,)))
    require(
        torch.equal(*draws),
        "two draws differ; draw from torch's generators alone, and keep no state",
    )


def scores_have_shapes(case: Case) -> None:
    """log_prob gives one finite number for each row.

    And the same again where the density is exact.
    """
    if case.kind == "implicit":
        return refuses(case)
    value = case.distribution.log_prob(case.x)
    require_shape("log_prob", value, (len(case.x),), "sum over the event dims, and over no others")
    if case.kind in REPEATABLE:
        hint = "declare density_kind = 'unbiased' or 'bound', or take the randomness out"
        require_close("log_prob twice", case.distribution.log_prob(case.x), value, hint)


def refuses(case: Case) -> None:
    """an implicit density refuses to score, and says what to do instead."""
    try:
        case.distribution.log_prob(case.x)
    except NotImplementedError as error:
        require(
            bool(str(error)),
            "log_prob refuses without a word; name the objective and the metric to use",
        )
    else:
        raise ConformanceError(
            "it is implicit and gives a log_prob; raise NotImplementedError, or declare its kind"
        )


def single_rows(case: Case) -> None:
    """the density of a row does not depend on the other rows."""
    if case.kind in REPEATABLE:
        first, rest = (case.at(rows).log_prob(case.x[rows]) for rows in (slice(1), slice(1, None)))
        hint = "rows are scored one by one: no statistics over the batch in eval mode"
        require_close(
            "log_prob row by row",
            torch.cat([first, rest]),
            case.distribution.log_prob(case.x),
            hint,
        )


def draws_of_rows(case: Case) -> None:
    """log_prob accepts draws to the left of the rows."""
    if case.kind == "implicit":
        return
    draws = (
        torch.stack([case.x.flip(0), case.x])
        if case.context is None
        else case.x.expand(2, *case.x.shape)
    )
    value = case.distribution.log_prob(draws)
    require_shape(
        "log_prob", value, (2, len(case.x)), "index dims from the right: the leading ones are draws"
    )
    if case.kind in REPEATABLE:
        require_close(
            "log_prob of a draw", value[1], case.distribution.log_prob(case.x), "draws are mixed up"
        )


def expands(case: Case) -> None:
    """expand(shape) gives the same distribution with that batch_shape."""
    for shape in ((len(case.x),), (2, len(case.x))):
        distribution = case.distribution.expand(torch.Size(shape))
        got = (tuple(distribution.batch_shape), tuple(distribution.event_shape))
        hint = "implement expand(batch_shape, _instance=None)"
        require(
            got == (shape, case.event),
            f"expected batch and event shapes {(shape, case.event)}, got {got}; {hint}",
        )
        require_shape("samples", distribution.sample((3,)), (3, *shape, *case.event), hint)
        if case.kind == "implicit":
            continue
        value = distribution.log_prob(case.x)
        require_shape("log_prob", value, shape, hint)
        if case.kind in REPEATABLE:
            require_close(
                "log_prob of it", value, case.distribution.log_prob(case.x).expand(shape), hint
            )


CHECKS = (
    shapes,
    contexts,
    draws_have_shapes,
    supports,
    seeded_draws,
    scores_have_shapes,
    single_rows,
    draws_of_rows,
    expands,
)
