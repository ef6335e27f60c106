"""How far one model is from another: exact where it can be, else by draws, with error and kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.modes import inference_mode_of
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn
from probgen.evaluate.f_divergences import RatioTerm, ratio_term
from probgen.evaluate.known_divergences import (
    closed_divergence,
    enumerated_divergence,
    is_by_enumeration,
)
from probgen.evaluate.sampled_divergences import check_comparable, sampled_divergence
from probgen.evaluate.schemas import check_same_columns

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

DRAWS = 4000  # where nobody says how many


@dataclass(frozen=True)
class ModelDivergence:
    """A divergence of two models.

    Attributes
    ----------
    value : float
        The divergence, or the mean over draws.
    stderr : float
        Its standard error; 0 where nothing was drawn.
    kind : str
        ``"exact"``; ``"unbiased"``: its expectation is the divergence; ``"upper bound"`` and
        ``"lower bound"``: its expectation is the divergence or more, or less; ``"approximate"``: no
        such guarantee.
    draws : int
        Number of draws; 0 where nothing was drawn.
    name : str
        Which divergence.
    how : str
        ``"closed form"``, ``"enumeration"`` or ``"draws"``.
    khat : float or None
        Pareto k-hat of what is averaged over draws; below 0.7, as more is refused. ``None`` where
        nothing was drawn.
    unit : str
        ``"nats"``, or nothing.
    """

    value: float
    stderr: float
    kind: str
    draws: int = 0
    name: str = "kl"
    how: str = "draws"
    khat: float | None = None
    unit: str = "nats"

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if not self.draws:
            return f"{self.value:.4g}{unit} ({self.kind}, {self.how})"
        khat = "" if self.khat is None else f", k-hat {self.khat:.2f}"
        return f"{self.value:.4g} ± {self.stderr:.2g}{unit} ({self.kind}, {self.draws} draws{khat})"


@explained
@in_turn
@takes_seed
@torch.no_grad()
def divergence(
    p: GenerativeModel,
    q: GenerativeModel,
    kind: str | Callable[[Tensor], Tensor] = "kl",
    context: Tensor | None = None,
    *,
    draws: int | None = None,
    max_rows: int = 2**12,
    seed: Seed = None,
) -> ModelDivergence:
    r"""How far two models are from each other: an f-divergence of their distributions.

    .. math:: D_f(p \,\|\, q) = \mathbb E_{x \sim q}\, f\!\left(\frac{p(x)}{q(x)}\right),
              \qquad f \text{ convex}, \; f(1) = 0

    In closed form where there is one, else by enumeration where events have few enough values, else
    by draws of both models. Log ratios of single draws have heavy tails wherever one model is narrower than
    the other; draws of both, half from each, average terms that are not negative and grow no faster
    than the log ratio, for KL as for the bounded divergences. Their Pareto k-hat is told, and an
    average that it shows not to have a known error is refused, not printed.

    What is known of the densities decides what the number is. Both exact: *exact* or *unbiased*.
    Against a density that is unbiased or a bound (a latent-variable model, a diffusion), draws are of
    the exact model alone or of the first one: KL(p || q) is an *upper bound* in the mean where q is
    the inexact one, a *lower bound* where p is; other f-divergences are upper bounds by Jensen's
    inequality, for unbiased densities alone.

    Parameters
    ----------
    p, q : GenerativeModel
        Models of the same events, with values on the same support.
    kind : str or callable
        ``"kl"``: :math:`\mathrm{KL}(p \| q) = \mathbb E_p \log (p / q)`; ``"reverse kl"``:
        :math:`\mathrm{KL}(q \| p)`; ``"jensen-shannon"``: at most log 2; ``"total variation"``:
        :math:`\tfrac12 \int |p - q|`; ``"hellinger"``: :math:`\sqrt{1 - \int \sqrt{p q}}`, and
        ``"squared hellinger"``; ``"chi-squared"``: :math:`\int (p - q)^2 / q`. Or a convex function
        f of a tensor of ratios u = p / q, with f(1) = 0.
    context : Tensor, optional
        ``(*batch, C)``: the divergence of the distributions given each context, averaged.
    draws : int, optional
        So many draws, for each context, at least 100, even where more is known. Default: 4000,
        where there is no exact value.
    max_rows : int
        Bound on the draws made and scored at once.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws.

    Returns
    -------
    ModelDivergence
        The value with its standard error, kind and k-hat. It is infinite where one model has no
        density at a draw of the other and the divergence counts that as infinite.

    Raises
    ------
    TypeError
        For masses beside densities, or other atoms.
    ValueError
        If events or supports differ, or columns and levels of tables; for densities that tell
        nothing (implicit, unnormalized, both inexact); where the k-hat of the terms exceeds 0.7.

    References
    ----------
    Csiszár (1967), Information-type measures of difference of probability distributions; Nowozin,
    Cseke, Tomioka (2016), f-GAN, https://arxiv.org/abs/1606.00709; Vehtari, Simpson, Gelman, Yao,
    Gabry (2024), Pareto smoothed importance sampling, https://jmlr.org/papers/v25/19-556.html

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> p, q = (Fixed(dist.Normal, loc=torch.full((2,), m), scale=1.0) for m in (0.0, 1.0))
    >>> print(divergence(p, q))
    1 nats (exact, closed form)
    >>> found = divergence(p, q, "jensen-shannon", seed=0)
    >>> found.kind, found.how, found.khat < 0.7
    ('unbiased', 'draws', True)
    """
    checks.generative(p=p, q=q)
    checks.at_least(100, **checks.given(draws=draws))
    checks.at_least(1, max_rows=max_rows)
    term = ratio_term(kind)
    check_same_columns(p, q)
    if torch.is_tensor(context) and context.ndim and not len(context):
        raise ValueError("expected a context or more, got none; check how they were filtered")
    with inference_mode_of(p), inference_mode_of(q):
        first = p(context)
        second = q(context)
        check_comparable(first, second)
        if draws is None and (known := _known(first, second, term)) is not None:
            return known
        found = sampled_divergence(first, second, term, draws or DRAWS, max_rows)
    return ModelDivergence(
        found.value,
        found.stderr,
        found.kind,
        found.draws,
        term.name,
        "draws",
        found.khat,
        term.unit,
    )


def _known(p: Any, q: Any, term: RatioTerm) -> ModelDivergence | None:
    """The exact divergence, averaged over contexts, where there is one."""
    closed = "enumeration" if is_by_enumeration(p, q) else "closed form"
    for how, function in (
        (closed, closed_divergence),
        ("enumeration", enumerated_divergence),
    ):
        values = function(p, q, term)
        if values is not None:
            value = max(0.0, values.double().mean().item())
            value = math.nan if values.isnan().any() else value
            return ModelDivergence(value, 0.0, "exact", 0, term.name, how, None, term.unit)
    return None
