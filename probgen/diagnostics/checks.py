"""Posterior predictive checks: whether a model makes data like those it was fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn
from probgen.infer.posterior import observed_names, predictive
from probgen.infer.simulate import trace_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


@in_short
@dataclass(frozen=True)
class PredictiveCheck:
    """A statistic of the data among the same statistic of replicated data.

    Attributes
    ----------
    observed : Tensor
        ``(*shape)``, T(x).
    replicated : Tensor
        ``(draws, *shape)``, T of each replicated data set.
    """

    observed: Tensor
    replicated: Tensor

    def __str__(self) -> str:
        """The p-values, the extreme ones of many."""
        values = self.p_value.flatten()
        shown = f"p = {float(values[0]):.2f}" if len(values) == 1 else ""
        if len(values) > 1:
            shown = f"p from {values.min():.2f} to {values.max():.2f}, of {len(values)} statistics"
        return f"PredictiveCheck({shown}; {len(self.replicated)} replications)"

    @property
    def p_value(self) -> Tensor:
        """Share of replications above the data, ties counted half.

        Near 0 or 1 the model misses this statistic.
        """
        above = self.replicated > self.observed
        equal = self.replicated == self.observed
        return above.double().mean(0) + equal.double().mean(0) / 2


@explained
@in_turn
@torch.no_grad()
@takes_seed
def predictive_check(
    gen: GenerativeModel,
    *batch: Any,
    statistic: Callable[[Tensor], Tensor],
    draws: int = 500,
    new_rows: bool = False,
    site: str | None = None,
    max_rows: int = 2**15,
    seed: Seed = None,
) -> PredictiveCheck:
    r"""Bayesian p-value of a statistic of the data.

    .. math:: p = \Pr\big(T(\tilde x) > T(x) \mid x\big) + \tfrac12 \Pr\big(T(\tilde x) = T(x) \mid x\big)

    over data sets :math:`\tilde x` of the same size that the fitted model makes.

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program.
    *batch : Tensor
        What the programs take, observations included.
    statistic : callable
        T, from data ``(rows, *event)`` to a tensor of any shape: one p-value for each of its
        entries. Entries that are missing in the data (NaN) are so in the replications.
    draws : int
        Number of replications.
    new_rows : bool
        Whether the replications are of other rows from the population (latents from the model)
        instead of the same.
    site : str, optional
        The observed site, where there are several.
    max_rows : int
        Bound on (draws x rows) run at once.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.

    Raises
    ------
    ValueError
        If there is not exactly one observed site to choose, or the statistic is NaN because entries
        are missing.

    References
    ----------
    Gelman, Meng, Stern (1996), Posterior predictive assessment of model fitness via realized
    discrepancies, Statistica Sinica 6(4), https://www.jstor.org/stable/24306036

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> gen = Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0)
    >>> predictive_check(gen, torch.ones(50, 1), statistic=torch.std).p_value     # every replication spreads more
    tensor(1., dtype=torch.float64)
    """
    checks.generative(gen=gen)
    checks.function(statistic=statistic)
    checks.at_least(1, draws=draws, max_rows=max_rows)
    checks.flag(new_rows=new_rows)
    checks.text(**checks.given(site=site))
    batch = as_rows(gen, *batch)
    names = observed_names(gen, *batch)
    if site is None and len(names) != 1:
        raise ValueError(f"expected one observed site, got {names}; choose with site=")
    if site is not None and site not in names:
        raise ValueError(f"expected one of the observed sites {names}, got '{site}'")
    name = site or names[0]
    made = predictive(gen, *batch, draws=draws, new_rows=new_rows, sites=[name], max_rows=max_rows)[
        name
    ]
    given: Any = trace_of(gen.model, batch).nodes[name]["value"]
    observed = given.reshape(made.shape[1:])
    missing = observed.isnan()
    if missing.any():  # replications miss what the data miss
        made = made.masked_fill(missing, torch.nan)
    value = statistic(observed)
    if missing.any() and value.isnan().any():
        raise ValueError(
            "expected a statistic that leaves out missing values, got NaN for data with missing "
            "entries (NaN); use "
            "torch.nanmean, torch.nanquantile, or impute first"
        )
    return PredictiveCheck(value, torch.stack([statistic(x) for x in made]))
