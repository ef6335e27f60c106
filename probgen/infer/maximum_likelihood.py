"""Maximum likelihood of families with an exact density and few parameters, by L-BFGS."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.training_record import TrainingRecord, keep_record, versions
from probgen.core.turns import training


@dataclass(frozen=True)
class MaximumLikelihoodResult:
    """How the search for the largest likelihood went.

    Attributes
    ----------
    log_likelihood : float
        Of all rows, in nats.
    converged : bool
        Whether the search ended because nothing was left to gain.
    n_iter : int
        Number of steps taken.
    evaluations : int
        Number of passes over the data.
    gradient : float
        Largest derivative at the end, in nats a value that was observed.
    """

    log_likelihood: float
    converged: bool
    n_iter: int
    evaluations: int
    gradient: float

    def __repr__(self) -> str:
        ended = "converged" if self.converged else "not converged"
        return (
            f"MaximumLikelihoodResult({self.n_iter} iterations, {ended}, "
            f"{self.log_likelihood:.6g} nats)"
        )


@explained
def maximum_likelihood(
    gen: nn.Module,
    x: Any,
    context: Any = None,
    *,
    max_iter: int = 500,
    tol: float = 1e-5,
    n_init: int = 1,
    seed: int | None = None,
) -> MaximumLikelihoodResult:
    """Fits a family in place to all rows at once, by a quasi-Newton method with exact gradients.

    For families with an exact density and few parameters, such as
    :class:`StructuralTimeSeries <probgen.sequences.StructuralTimeSeries>`; for many parameters or
    rows take :func:`probgen.fit`. Computed in double precision, whatever that of the parameters,
    which keep theirs. Parameters that do not train (``requires_grad`` is ``False``) keep their
    values.

    Parameters
    ----------
    gen : nn.Module
        A family with an exact density.
    x : Tensor, array, frame or list
        Rows ``(N, *event)``; NaN = missing, where the family integrates it out.
    context : Tensor, optional
        ``(N, *context_event)``.
    max_iter : int
        Largest number of iterations.
    tol : float
        Stop when no derivative, in nats a value that was observed, is larger than this, or the
        likelihood no longer rises.
    n_init : int
        Number of starts, of which the one that ends best is kept: the family's own
        (``gen.initialize``), and more at random around it. 0 starts from the present parameters, as
        does a family without a start of its own.
    seed : int, optional
        Makes random starts repeatable.

    Raises
    ------
    TypeError
        If nothing of the family trains.
    ValueError
        If the density is not exact, or the rows do not fit the family.

    Warns
    -----
    RuntimeWarning
        If the search ended before it converged.

    References
    ----------
    Byrd, Lu, Nocedal, Zhu (1995), A limited memory algorithm for bound constrained optimization,
    https://doi.org/10.1137/0916069

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> gen = Gaussian(Constant(2))
    >>> maximum_likelihood(gen, torch.tensor([[1.0], [3.0]])).converged
    True
    >>> gen().mean.round(decimals=3).item()
    2.0
    """
    checks.generative(gen=gen)
    checks.at_least(1, max_iter=max_iter)
    checks.at_least(0, n_init=n_init)
    checks.not_negative(tol=tol)
    checks.is_seed(**checks.given(seed=seed))
    began = time.perf_counter()
    trial: Any = copy.deepcopy(gen).double()
    rows = as_rows(trial, x, context)
    kind = density_kind(trial(rows[1]))
    if kind != "exact":
        raise ValueError(
            f"expected a family with an exact density, got {type(gen).__name__}, whose is {kind}; "
            "use fit(gen, x) with an objective"
        )
    search = _Search(trial, rows)
    with training(gen):
        best = _best_of(search, gen, max_iter, tol, n_init, seed)
        gen.load_state_dict(best[1])
    result = best[0]
    if not result.converged:
        warnings.warn(
            f"the search for the largest likelihood stopped after {result.n_iter} iterations with a "
            f"derivative of {result.gradient:.3g}, more than tol = {tol:g}; give a larger max_iter, "
            "more starts (n_init=5), or a simpler family",
            RuntimeWarning,
            stacklevel=3,
        )
    settings = {"max_iter": max_iter, "tol": float(tol), "n_init": n_init}
    keep_record(gen, _record(result, len(rows[0]), settings, time.perf_counter() - began))
    return result


class _Search:
    """The negative log-likelihood a value that was observed, as a function of one vector."""

    def __init__(self, gen: Any, rows: tuple):
        self.gen = gen
        self.x, self.context = rows
        self.parameters = [each for each in gen.parameters() if each.requires_grad]
        if not self.parameters:
            raise TypeError(
                "expected parameters that train, got none; thaw some: gen.requires_grad_(True)"
            )
        self.count = max(1, int((~self.x.isnan()).sum()))

    def point(self) -> np.ndarray:
        """The present parameters in one vector."""
        return nn.utils.parameters_to_vector(self.parameters).detach().cpu().numpy()

    def move(self, point: np.ndarray) -> None:
        """Sets the parameters."""
        like = self.parameters[0]
        with torch.no_grad():
            nn.utils.vector_to_parameters(torch.as_tensor(point).to(like), self.parameters)

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        self.move(point)
        total = self.gen(self.context).log_prob(self.x).sum()
        found = torch.autograd.grad(total, self.parameters, allow_unused=True)
        parts = [
            (torch.zeros_like(own) if part is None else part).reshape(-1)
            for part, own in zip(found, self.parameters, strict=True)
        ]
        slope = torch.cat(parts).cpu().numpy()
        return -float(total.detach()) / self.count, slope / -self.count


def _best_of(
    search: _Search, gen: Any, max_iter: int, tol: float, n_init: int, seed: int | None
) -> tuple[MaximumLikelihoodResult, dict[str, Tensor]]:
    """The result of the start that ended best, and its parameters."""
    start = getattr(gen, "initialize", None)
    begun = search.point()
    generator = torch.Generator().manual_seed(
        int(torch.randint(2**31, ())) if seed is None else int(seed)
    )
    found = []
    for number in range(max(1, n_init)):
        search.move(begun)
        if start is not None and n_init:
            search.gen.initialize(search.x, None if number == 0 else generator)
        result = _run(search, max_iter, tol)
        found.append((result, copy.deepcopy(search.gen.state_dict())))
        if start is None:
            break
    return max(found, key=lambda pair: pair[0].log_likelihood)


def _run(search: _Search, max_iter: int, tol: float) -> MaximumLikelihoodResult:
    """One search from the present parameters."""
    from scipy.optimize import minimize

    options = {"maxiter": max_iter, "gtol": tol, "ftol": 1e-13, "maxcor": 20}
    found = minimize(search, search.point(), jac=True, method="L-BFGS-B", options=options)
    search.move(found.x)
    slope = float(np.abs(found.jac).max())
    return MaximumLikelihoodResult(
        log_likelihood=-float(found.fun) * search.count,
        converged=bool(found.success) or slope <= tol,
        n_iter=int(found.nit),
        evaluations=int(found.nfev),
        gradient=slope,
    )


def _record(
    result: MaximumLikelihoodResult, rows: int, settings: dict[str, Any], seconds: float
) -> TrainingRecord:
    """What is kept of a run beside its model."""
    return TrainingRecord(
        "maximum_likelihood",
        "log-likelihood",
        result.n_iter,
        float(rows),
        loss=-result.log_likelihood / rows,
        kind="exact",
        seconds=seconds,
        stopped="converged" if result.converged else "not converged",
        settings=settings,
        versions=versions(),
    )
