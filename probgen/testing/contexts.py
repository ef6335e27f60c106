"""Promises about contexts: the distribution depends on them, or they are refused."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probgen.core.contexts import ignores, size_of
from probgen.core.module import Independent
from probgen.core.program import Program
from probgen.testing.case import Case, require

REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)
HINT = (
    "use the context, or write context_size = 0 in the class, which refuses one (ignores_contexts "
    "= True where the distribution "
    "is meant to be the same for each row, as in a prior)"
)


def depends(case: Case) -> None:
    """the distribution depends on the context, unless the family declares that it has none."""
    parts = case.gen.modules() if isinstance(case.gen, Independent) else [case.gen]
    if (
        isinstance(case.gen, Program)
        or size_of(case.gen) is not None
        or any(ignores(part) for part in parts)
    ):
        return
    with torch.no_grad():
        for parameter in case.gen.parameters():  # networks may start from zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    given = torch.randn(len(case.x), 3) if case.context is None else case.context
    if (given == given.roll(1, 0)).all():
        return
    found = [_answer(case, context) for context in (given, given.roll(1, 0))]
    if found[0] is None or found[1] is None:
        return
    require(
        not torch.equal(found[0], found[1]), f"it takes a context and does not depend on it; {HINT}"
    )


def _answer(case: Case, context: Tensor) -> Tensor | None:
    """Numbers that tell two distributions apart; ``None`` where such a context is not taken."""
    try:
        return replace(case, context=context).fingerprint()
    except REFUSALS:
        return None


CHECKS = (depends,)
