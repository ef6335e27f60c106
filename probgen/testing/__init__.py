"""The conformance suite: what every generative model promises, checked on a batch of its data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.module import DistributionModule, GenerativeModel
from probgen.core.turns import in_turn, same_random_state
from probgen.testing import agreement, contexts, distribution, missing, program, state
from probgen.testing.case import Case, ConformanceError, run

__all__ = ["ConformanceError", "check_generative"]


@explained
@in_turn
def check_generative(
    gen: GenerativeModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    objective: Callable[..., Any] | None = None,
    seed: int = 0,
) -> None:
    """Checks that a model keeps the promises on which fitting, scoring.

    Sampling and composing rest.

    Run it in the tests of a family of your own. It works on copies: ``gen`` keeps its parameters
    and its mode.

    Parameters
    ----------
    gen : GenerativeModel
        The model, of a size that trains and samples within a moment.
    x : Tensor
        Rows ``(B, *event)`` such as the model is meant for, ``B >= 2``.
    context : Tensor, optional
        ``(B, *context_event)``.
    objective : callable, optional
        ``objective(model, guide)(*batch)`` gives the loss that trains the family; default: the one
        that ``fit`` picks.
    seed : int
        Seed of every check; the generators of the caller are left as they were.

    Raises
    ------
    ConformanceError
        At the first promise that is not kept.

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> import torch
    >>> check_generative(Fixed(dist.Laplace, loc=torch.zeros(2), scale=1.0), torch.randn(8, 2))
    """
    checks.no_class(gen=gen)
    checks.function(**checks.given(objective=objective))
    checks.is_seed(seed=seed)
    case = Case(gen, x, context, objective)
    told = not isinstance(gen, DistributionModule)
    first = (
        program.SITES + distribution.CHECKS if told else distribution.CHECKS + program.SITES
    )  # what the author wrote
    with same_random_state():
        for check in program.GIVEN + (program.runs,) * told:  # the first run may make parameters
            run(check, case, seed)
        for check in (
            *first,
            *state.CHECKS,
            *agreement.CHECKS,
            *program.CHECKS,
            *missing.CHECKS,
            *contexts.CHECKS,
        ):
            run(check, replace(case, gen=copy.deepcopy(gen).eval()), seed)
