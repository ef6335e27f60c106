"""Cross-validation by refits: each row is judged by a model that was fitted without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import worst
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.score import Score
from probgen.core.turns import own_random_state
from probgen.diagnostics.given_rows import GivenRows
from probgen.diagnostics.leave_one_out import LooResult
from probgen.diagnostics.pointwise import score_of_draws
from probgen.infer.mcmc import Chains, as_program
from probgen.parallel import Jobs, check_jobs, run_tasks
from probgen.scoring import log_likelihood


@explained
def kfold(
    refit: Callable[..., Any],
    *batch: Any,
    folds: int = 10,
    particles: int = 64,
    seed: int | None = None,
    n_jobs: Jobs = None,
    progress: Reported = None,
) -> Score:
    r"""Log-likelihood of every row under a model that was fitted without the row's fold.

    .. math:: \log p(x_b \mid x_{-k(b)})

    Rows are shared out at random among K folds of the same size, up to one row. As many folds as
    rows is leave-one-out, exactly.

    Parameters
    ----------
    refit : callable
        ``refit(*batch)`` builds a model, fits it to these rows and gives it back; or ``(model,
        draws)``, with :class:`Chains` or a dict of draws ``(draws, ...)`` of what all rows share. What it
        draws follows from ``seed``, unless it asks for other seeds.
    *batch : Tensor
        What the model takes: rows ``(N, ...)`` in all tensors, or ``None``.
    folds : int
        K, from 2 to the number of rows.
    particles : int
        Draws for each row where the density is an estimate, as of :func:`log_likelihood`.
    seed : int, optional
        Makes everything reproducible; torch's generator is left alone either way.
    n_jobs : int, optional
        Folds that are worked on side by side, in processes; the score is the same for every number.
    progress : bool, float or None
        As for :func:`mcmc`.

    Returns
    -------
    Score
        In the order of the rows, with the worst kind of the folds: two of the same ``seed`` and
        ``folds`` compare row by row, ``one.difference(other)``.

    Raises
    ------
    TypeError, ValueError
        If arguments differ in their number of rows, there are more folds than rows, or ``refit``
        gives no model.

    References
    ----------
    Geisser (1975), The predictive sample reuse method,
    https://doi.org/10.1080/01621459.1975.10479865; Vehtari, Gelman, Gabry (2017), Practical Bayesian
    model evaluation using leave-one-out cross-validation and WAIC,
    https://doi.org/10.1007/s11222-016-9696-4

    >>> from probgen.core.module import Fixed
    >>> import pyro.distributions as dist
    >>> def fitted(x):
    ...     return Fixed(dist.Normal, loc=x.mean(0), scale=1.0)
    >>> print(kfold(fitted, torch.tensor([[0.0], [1.0], [2.0]]), folds=3, seed=0))
    = -1.67 ± 0.38 nats (exact)
    """
    _check(refit, particles, seed, n_jobs, progress)
    checks.at_least(2, folds=folds)
    rows = GivenRows(batch)
    if folds > rows.size:
        raise ValueError(
            f"expected 2 to {rows.size} folds, got {folds}; as many as rows leave one out each time"
        )
    with _drawing(seed):
        order = torch.randperm(rows.size)
        seeds = torch.randint(2**62, (folds,)).tolist()
    held_out = [order[fold::folds].sort().values for fold in range(folds)]
    judge = _HeldOut(refit, rows, particles)
    with Progress("kfold", folds, "folds", asked=progress) as shown:
        scores = run_tasks(
            judge,
            [(index,) for index in held_out],
            seeds,
            n_jobs=n_jobs,
            name="fold",
            advance=shown.advance,
        )
    value = torch.cat([score.value for score in scores])
    value = value[torch.cat(held_out).argsort().to(value.device)]
    kind = "exact"
    for score in scores:
        kind = worst(kind, score.kind)
    return replace(scores[0], value=value, kind=kind, particles=max(s.particles for s in scores))


@explained
def reloo(
    result: LooResult,
    refit: Callable[..., Any],
    *batch: Any,
    threshold: float = 0.7,
    particles: int = 64,
    seed: int | None = None,
    n_jobs: Jobs = None,
    progress: Reported = None,
) -> LooResult:
    """Leave-one-out by refits where importance sampling cannot be trusted.

    Rows whose k-hat is above the threshold are left out in earnest, one after the other; their
    numbers take the place of the estimates, with a k-hat of 0.

    Parameters
    ----------
    result : LooResult
        What :func:`loo` gave for these rows.
    refit : callable
        As of :func:`kfold`: fits to the other rows, as the posterior of ``result`` was found.
    *batch : Tensor
        What the model takes: rows ``(N, ...)`` in all tensors, or ``None``.
    threshold : float
        k-hat above which a row is left out by a refit.
    particles, seed, n_jobs, progress
        As of :func:`kfold`.

    Raises
    ------
    TypeError, ValueError
        If ``result`` is of other rows, arguments differ in their number of rows, or ``refit`` gives
        no model.

    References
    ----------
    Vehtari, Gelman, Gabry (2017), Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC, https://doi.org/10.1007/s11222-016-9696-4

    >>> from probgen.core.module import Fixed
    >>> import pyro.distributions as dist
    >>> def fitted(x):
    ...     return Fixed(dist.Normal, loc=x.mean(0), scale=1.0)
    >>> first = LooResult(torch.tensor([-1.0, -2.0]), torch.tensor([0.1, 0.9]), p_loo=0.5)
    >>> reloo(first, fitted, torch.tensor([[0.0], [1.0]])).pointwise
    tensor([-1.0000, -1.4189])
    """
    checks.instance(LooResult, "pass what loo gave", result=result)
    _check(refit, particles, seed, n_jobs, progress)
    checks.positive(threshold=threshold)
    rows = GivenRows(batch)
    if len(result.khat) != rows.size or rows.size < 2:
        raise ValueError(
            f"expected the rows of the result, {len(result.khat)} of them (two or more), got "
            f"{rows.size}; pass the data that loo was asked about"
        )
    doubtful = (result.khat > threshold).nonzero()[:, 0].cpu()
    with _drawing(seed):
        seeds = torch.randint(2**62, (len(doubtful),)).tolist()
    judge = _HeldOut(refit, rows, particles)
    with Progress("reloo", len(doubtful), "rows", asked=progress) as shown:
        tasks = [(row[None].clone(),) for row in doubtful]
        how: dict[str, Any] = {"n_jobs": n_jobs, "name": "refit", "advance": shown.advance}
        scores = run_tasks(judge, tasks, seeds, **how)
    pointwise, khat = result.pointwise.clone(), result.khat.clone()
    for row, score in zip(doubtful, scores, strict=True):
        pointwise[row] = score.value.to(pointwise).squeeze()
        khat[row] = 0.0
    lower = (result.pointwise - pointwise).sum().item()
    return LooResult(pointwise, khat, result.p_loo + lower)


def _check(refit: Any, particles: int, seed: Any, n_jobs: Jobs, progress: Reported) -> None:
    """What both take."""
    checks.function(refit=refit)
    checks.at_least(1, particles=particles)
    checks.is_seed(**checks.given(seed=seed))
    check_jobs(n_jobs)
    check_progress(progress)


@contextmanager
def _drawing(seed: int | None) -> Iterator[None]:
    """The block has random numbers of its own, other ones each time where there is no seed."""
    with own_random_state(seed):
        if seed is None:
            torch.seed()
        yield


class _HeldOut:
    """A fit to all rows but some, and the score of those."""

    def __init__(self, refit: Callable[..., Any], rows: GivenRows, particles: int):
        self.refit = refit
        self.rows = rows
        self.particles = particles

    def __call__(self, advance: Callable[..., Any], index: Tensor) -> Score:
        found = self.refit(*self.rows.without(index))
        gen, draws = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        others = self.rows.take(index)
        if draws is None:
            _check_model(gen)
            score = log_likelihood(gen, *others, particles=self.particles)
        else:
            gen = as_program(gen)
            batch = as_rows(gen, *others)
            score = score_of_draws(gen, batch, _merged(draws), self.particles)
        advance(1)
        return score


def _check_model(gen: Any) -> None:
    wanted = (
        "give back the model that was fitted, or (model, draws) with the draws of mcmc or posterior"
    )
    if gen is None or isinstance(gen, Chains | Mapping):
        raise TypeError(f"expected refit to give a model, got {type(gen).__name__}; {wanted}")


def _merged(draws: Any) -> dict[str, Tensor]:
    """Draws ``(draws, ...)`` of each site."""
    if isinstance(draws, Chains):
        return draws.merged
    if not isinstance(draws, Mapping) or not all(map(torch.is_tensor, draws.values())):
        raise TypeError(
            f"expected draws of sites by their names, got {type(draws).__name__}; give what mcmc or "
            "posterior returned"
        )
    return dict(draws)
