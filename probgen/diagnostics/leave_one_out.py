"""Leave-one-out cross-validation from draws of an approximate posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.evaluate.psis import pareto_smooth

if TYPE_CHECKING:
    import arviz
    import xarray


@dataclass(frozen=True)
class Loo:
    """Expected log predictive density of rows that the model has not seen.

    Attributes
    ----------
    pointwise : Tensor
        ``(rows,)``, log p(x_b | the other rows) in nats.
    khat : Tensor
        ``(rows,)``, PSIS k-hat; above 0.7 that row's number cannot be trusted.
    p_loo : float
        Effective number of parameters.

    >>> print(Loo(torch.tensor([-1.0, -1.4]), torch.tensor([0.1, 0.9]), p_loo=0.8))
    elpd_loo = -2.40 ± 0.28 nats, p_loo = 0.8 (k-hat > 0.7 on 1 of 2 rows)
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
        trust = f" (k-hat > 0.7 on {bad} of {len(self.khat)} rows)" if bad else ""
        return f"elpd_loo = {self.elpd:.2f} ± {self.stderr:.2f} nats, p_loo = {self.p_loo:.1f}{trust}"


def loo(data: arviz.InferenceData | xarray.DataTree) -> Loo:
    r"""Leave-one-out cross-validation that corrects for the guide, by Pareto smoothed importance sampling.

    .. math:: \log p(x_b \mid x_{-b}) \approx \log \sum_s \bar w_{sb}\, p(x_b \mid \theta_s), \qquad
              w_{sb} = \frac{p(x, \theta_s)}{q(\theta_s)\, p(x_b \mid \theta_s)}

    For draws of MCMC use ``arviz.loo``. Under ArviZ 1.x this is ``arviz.loo_approximate_posterior(data,
    data.sample_stats.log_p, data.sample_stats.log_q)``; ArviZ 0.x has no such function.

    Parameters
    ----------
    data : InferenceData or DataTree
        What :func:`to_arviz` returned for a guide, with groups ``log_likelihood`` and ``sample_stats``.

    Raises
    ------
    ValueError
        If ``log_p`` and ``log_q`` are missing.

    References
    ----------
    Magnusson, Andersen, Jonasson, Vehtari (2019), Bayesian leave-one-out cross-validation for large data,
    https://proceedings.mlr.press/v97/magnusson19a.html
    """
    if "sample_stats" not in data or "log_q" not in data["sample_stats"]:
        raise ValueError(
            "expected log_p and log_q in sample_stats, got none; call to_arviz with the groups log_likelihood and "
            "sample_stats for a guide that draws globals, and use arviz.loo for draws of MCMC"
        )
    (rows,) = (torch.tensor(v.values).double().flatten(0, 1) for v in data["log_likelihood"].data_vars.values())
    stats = data["sample_stats"]
    log_p, log_q = (torch.tensor(stats[name].values).double().flatten()[:, None] for name in ("log_p", "log_q"))
    weights, khat = pareto_smooth(log_p - log_q - rows)
    pointwise = (weights + rows).logsumexp(0)
    seen = ((log_p - log_q).log_softmax(0) + rows).logsumexp(0)
    return Loo(pointwise, khat, (seen - pointwise).sum().item())
