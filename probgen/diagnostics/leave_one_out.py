"""Leave-one-out cross-validation from draws of an approximate posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.core.turns import in_turn
from probgen.diagnostics.psis import pareto_smooth

if TYPE_CHECKING:
    import arviz
    import xarray


NEEDED = (
    "expected the groups log_likelihood and sample_stats "
    "(they tell a guide's draws from a sampler's), got data without"
)
MANY = 0.1  # share of rows with a large k-hat above which the sum is in doubt


@in_short
@dataclass(frozen=True)
class LooResult:
    """Expected log predictive density of rows that the model has not seen.

    Attributes
    ----------
    pointwise : Tensor
        ``(rows,)``, log p(x_b | the other rows) in nats.
    khat : Tensor
        ``(rows,)``, PSIS k-hat; above 0.7 that row's number cannot be trusted.
    p_loo : float
        Effective number of parameters.

    >>> print(LooResult(torch.tensor([-1.0, -1.4]), torch.tensor([0.1, 0.2]), p_loo=0.8))
    elpd_loo = -2.40 ± 0.28 nats, p_loo = 0.8
    >>> print(LooResult(torch.tensor([-1.0, -1.4]), torch.tensor([0.1, 0.9]), p_loo=0.8))
    k-hat > 0.7 on 1 of 2 rows, not to be trusted: elpd_loo = -2.40 ± 0.28 nats, p_loo = 0.8
    """

    pointwise: Tensor
    khat: Tensor
    p_loo: float

    @property
    def elpd(self) -> float:
        """Sum over rows."""
        return self.pointwise.sum().item()

    @property
    def stderr(self) -> float:
        """Standard error of the sum, from the spread of the rows."""
        return math.sqrt(len(self.pointwise)) * self.pointwise.std(correction=0).item()

    def __str__(self) -> str:
        bad = int((self.khat > 0.7).sum())
        rows = len(self.khat)
        if bad == rows:
            return (
                f"elpd_loo: no estimate, k-hat > 0.7 on all {rows} rows; use mcmc or a guide "
                "nearer to the posterior, "
                "or leave out rows in folds and fit again (pg.diagnostics.kfold)"
            )
        value = f"elpd_loo = {self.elpd:.2f} ± {self.stderr:.2f} nats, p_loo = {self.p_loo:.1f}"
        trust = f"k-hat > 0.7 on {bad} of {rows} rows"
        if bad > MANY * rows:
            return f"{trust}, not to be trusted: {value}"
        return f"{value} ({trust})" if bad else value


@explained
@in_turn
def loo(data: arviz.InferenceData | xarray.DataTree, var_name: str | None = None) -> LooResult:
    r"""Leave-one-out cross-validation that corrects for the guide.

    By Pareto smoothed importance sampling.

    .. math:: \log p(x_b \mid x_{-b}) \approx \log \sum_s \bar w_{sb}\, p(x_b \mid \theta_s), \qquad
              w_{sb} = \frac{p(x, \theta_s)}{q(\theta_s)\, p(x_b \mid \theta_s)}

    Draws of MCMC come from the posterior itself and need no correction: :math:`w_{sb} = 1 / p(x_b
    \mid \theta_s)`, as in ``arviz.loo`` (Vehtari, Gelman, Gabry 2017). For a guide, ArviZ 1.x has
    ``arviz.loo_approximate_posterior(data, data.sample_stats.log_p, data.sample_stats.log_q)``;
    ArviZ 0.x has no such function.

    Parameters
    ----------
    data : InferenceData or DataTree
        What :func:`to_arviz` returned, with groups ``log_likelihood`` and ``sample_stats``: the
        statistics tell whether the draws are a guide's or a sampler's.
    var_name : str, optional
        Which log-likelihood: that of one observed site, for instance. Default: the only one, or the
        joint one of all observed sites.

    Raises
    ------
    ValueError
        If one of the groups is missing, the draws are a point estimate, or there are several
        log-likelihoods and no joint one.

    References
    ----------
    Magnusson, Andersen, Jonasson, Vehtari (2019), Bayesian leave-one-out cross-validation for large
    data, https://proceedings.mlr.press/v97/magnusson19a.html
    """
    checks.has(("attrs",), "pass what to_arviz returns", data=data)
    checks.text(**checks.given(var_name=var_name))
    if "log_likelihood" not in data:
        raise ValueError(f"{NEEDED}; ask to_arviz for both")
    attrs = data["log_likelihood"].attrs
    if "point_estimate" in attrs:
        raise ValueError(
            f"expected draws of a posterior, got a point estimate of {attrs['point_estimate']}; "
            "use AutoNormal, "
            "AutoMultivariateNormal or mcmc"
        )
    if "sample_stats" not in data and attrs.get("draws_of") != "posterior":
        raise ValueError(
            f"{NEEDED}; ask to_arviz for both, and keep the statistics that mcmc returned"
        )
    found: Any = data["log_likelihood"].data_vars
    rows = _rows(found, var_name)
    stats: Any = data["sample_stats"] if "sample_stats" in data else {}  # noqa: SIM401  # containers of ArviZ have no get
    correction = _correction(stats, rows)
    weights, khat = pareto_smooth(correction - rows)
    pointwise = (weights + rows).logsumexp(0)
    seen = (correction.log_softmax(0) + rows).logsumexp(0)
    return LooResult(pointwise, khat, (seen - pointwise).sum().item())


def _rows(variables: Mapping[str, Any], name: str | None) -> Tensor:
    """One log-likelihood, ``(draws, rows)``.

    The joint one has the longest of the names "joint", "joint_", ...
    """
    names = list(variables)
    joint = sorted((n for n in names if n.rstrip("_") == "joint"), key=len)
    chosen = name or (names[0] if len(names) == 1 else joint[-1] if joint else None)
    if chosen is None or chosen not in names:
        raise ValueError(
            f"expected one log-likelihood among {names}, got '{name}'; choose it with var_name="
        )
    return torch.tensor(variables[chosen].values).double().flatten(0, 1).flatten(1)


def _correction(stats: Any, rows: Tensor) -> Tensor:
    """log p - log q of every draw ``(S, 1)``.

    Zero for those of a sampler, whose statistics have no log_q.
    """
    if "log_q" not in stats:
        return rows.new_zeros(len(rows), 1)
    log_p, log_q = (
        torch.tensor(stats[name].values).double().flatten()[:, None] for name in ("log_p", "log_q")
    )
    return log_p - log_q
