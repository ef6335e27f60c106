"""Promises that two ways to the same distribution agree.

Program and distribution, samples and density.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from probgen.scoring import log_likelihood
from probgen.testing.case import Case, require, require_close, require_shape


def agrees_with_program(case: Case) -> None:
    """log_likelihood gives the number and the kind that the distribution tells."""
    if case.kind == "implicit":
        return
    score = log_likelihood(case.gen, *case.batch, particles=4)
    require_shape(
        "log_likelihood",
        score.value,
        (len(case.x),),
        "open data_plate around the sites of the rows",
    )
    if case.kind == "exact":
        require(
            score.kind == "exact",
            f"expected an exact score, got {score.kind}; model tells another story than forward",
        )
        require_close(
            "log_likelihood",
            score.value,
            case.distribution.log_prob(case.x),
            "model and forward are two distributions",
        )


def samples_follow_density(case: Case) -> None:
    r"""samples follow the density.

    .. math:: E_{x \sim p_\theta}[p_{\theta'}(x) / p_\theta(x)] = 1

    for every neighbor :math:`\theta'` that is a normalized density on the same support.
    """
    if case.kind != "exact":
        return
    draws = case.distribution.sample((-(-2000 // len(case.x)),) if case.rows else (2000,))
    for _ in range(4):
        ratio = _log_ratio(case, draws, _direction(case)).flatten().double()
        if not 1e-5 < ratio.abs().max() < torch.inf:  # no such neighbor
            continue
        excess = ratio.expm1()
        error = excess.std() / len(excess) ** 0.5
        hint = "sample() draws from another distribution than log_prob scores, or log_prob is not normalized"
        require(
            excess.mean().abs() < 5 * error,
            f"expected 0 ± {error:.3g} from an identity, got {excess.mean():.3g}; {hint}",
        )


def _direction(case: Case) -> list[Tensor]:
    return [
        torch.randn_like(parameter) * (0.1 + parameter.abs()) for parameter in case.gen.parameters()
    ]


@torch.no_grad()
def _log_ratio(case: Case, draws: Tensor, direction: list[Tensor]) -> Tensor:
    """Log density ratio of a neighbor whose log ratio has a standard deviation near one half."""
    here = case.distribution.log_prob(draws)
    length = 1e-2
    ratio = torch.zeros(())
    for _ in range(2):
        twin = replace(case, gen=copy.deepcopy(case.gen))
        for parameter, step in zip(twin.gen.parameters(), direction, strict=True):
            parameter.add_(length * step)
        ratio = twin.distribution.log_prob(draws) - here
        length *= 0.5 / max(ratio.std().item(), 1e-3)
    return ratio


CHECKS = (agrees_with_program, samples_follow_density)
