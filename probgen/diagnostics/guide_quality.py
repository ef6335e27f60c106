"""How close a guide is to the posterior: PSIS k-hat, effective sample size, active units."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn
from probgen.diagnostics.findings import SWALLOWED
from probgen.diagnostics.guide_draws import GuideDraws, guide_draws
from probgen.diagnostics.psis import ROUNDING, effective_sample_size, pareto_khat

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

RESOLUTION = 0.1  # nats: weights that are off by more than this tell nothing of a tail
ACTIVE = 0.01  # smallest share of a latent's variance that lies between the rows of the data


@explained
@in_turn
@takes_seed
def khat(
    gen: GenerativeModel,
    *batch: Any,
    particles: int = 200,
    max_rows: int = 2**15,
    seed: Seed = None,
) -> Tensor:
    r"""PSIS k-hat of the guide: how heavy the tail of its importance weights is.

    Up to 0.5 the guide is close to the posterior, up to 0.7 close enough for importance sampling to
    correct it, above 0.7 neither the guide nor weighted averages can be trusted. A guide that is
    narrower than the posterior has heavy tails, one that is wider has not.

    Parameters
    ----------
    gen : GenerativeModel
        A model with latents.
    *batch : Tensor
        What the programs take. Where the guide draws globals alone, all rows that it was fitted to.
    particles : int
        Draws from the guide, at least 25.
    max_rows : int
        Bound on (rows x draws) evaluated at once.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.

    Returns
    -------
    Tensor
        ``(B,)``, one number per row for a guide with local latents :math:`q(z_b \mid x_b)`, globals
        drawn from the guide; NaN where it leaves out values of a discrete latent, and where
        rounding is larger than the differences that count. Where the guide draws globals alone, or
        all rows at once (AutoMultivariateNormal), ``()``: one number for
        :math:`\log p(\theta, z, x_1, \dots, x_B) - \log q(\theta, z)`.

    Raises
    ------
    ValueError
        If the guide draws nothing, or is a point estimate.

    Warns
    -----
    RuntimeWarning
        Where rounding swallows the weights, with what to do.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman (2018), Yes, but did it work? Evaluating variational inference,
    https://arxiv.org/abs/1802.02538; Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed
    importance sampling, https://jmlr.org/papers/v25/19-556.html

    >>> import torch, pyro, pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> def guide(y):
    ...     pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5))
    >>> khat(Program(model, guide), torch.ones(3))        # the guide is the posterior: all weights are equal
    tensor(0., dtype=torch.float64)
    """
    checks.generative(gen=gen)
    checks.at_least(1, particles=particles, max_rows=max_rows)
    drawn = _drawn(gen, batch, particles, max_rows)
    _warn_if_swallowed(drawn, 6)
    return khat_of(drawn)


@explained
@takes_seed
def ess(
    gen: GenerativeModel,
    *batch: Any,
    particles: int = 200,
    max_rows: int = 2**15,
    seed: Seed = None,
) -> Tensor:
    r"""Effective number of ``particles`` draws from the guide, between 1 and ``particles``.

    Shapes as :func:`khat`; NaN where rounding is larger than the differences that count.

    .. math:: \mathrm{ESS}_b = \frac{(\sum_k w_{kb})^2}{\sum_k w_{kb}^2}
    """
    checks.generative(gen=gen)
    checks.at_least(1, particles=particles, max_rows=max_rows)
    drawn = _drawn(gen, batch, particles, max_rows)
    _warn_if_swallowed(drawn, 5)
    return ess_of(drawn)


@explained
@in_turn
@takes_seed
def active_units(
    gen: GenerativeModel,
    *batch: Any,
    particles: int = 200,
    max_rows: int = 2**15,
    seed: Seed = None,
) -> dict[str, Tensor]:
    r"""Which dims of each local latent are in use: those whose posterior mean varies over the data.

    .. math:: A_d = \mathrm{Var}_x\big(\mathrm E_{q(z \mid x)}[z_d]\big) > 0.01\, \mathrm{Var}_{x,\,q(z \mid x)}(z_d)

    The variance on the right is about that of the prior: 1 for a standard normal one, where this is
    the usual definition. The Monte Carlo noise of the means, which would look like activity, is
    subtracted.

    Returns
    -------
    dict of str to Tensor
        Booleans ``(*other plate dims, *event)`` for each local latent site.

    References
    ----------
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders,
    https://arxiv.org/abs/1509.00519
    """
    checks.generative(gen=gen)
    checks.at_least(1, particles=particles, max_rows=max_rows)
    return active(_drawn(gen, batch, particles, max_rows))


def weights_of(drawn: GuideDraws) -> Tensor:
    """Log weights of the rows ``(K, B)`` where the guide has a density for each.

    Else of the whole draw ``(K,)``.
    """
    return (
        drawn.rows if drawn.by_row and drawn.rows is not None else drawn.joint - drawn.joint.amax()
    )


def khat_of(drawn: GuideDraws) -> Tensor:
    """k-hat of some draws; NaN where the guide leaves out values of a discrete latent.

    No draw tells of those. NaN too where rounding swallows what the weights differ by.

    So it is where such a latent took one value in all draws and the weights are equal: equal
    weights vouch for a guide that has been where the posterior is, and this one has been in one
    place.
    """
    weights = weights_of(drawn)
    khat = pareto_khat(weights)
    equal = weights.amax(0) - weights.amin(0) < ROUNDING
    unknown = equal & _one_value(drawn, weights) | drawn.leaves_out | swallowed(drawn)
    return torch.where(unknown, torch.nan, khat)


def ess_of(drawn: GuideDraws) -> Tensor:
    """Effective sample size of some draws; NaN where rounding swallows the weights."""
    size = effective_sample_size(weights_of(drawn))
    return torch.where(swallowed(drawn), torch.nan, size)


def swallowed(drawn: GuideDraws) -> Tensor:
    """Whether log weights may be off by more than they have to be known: ``(B,)`` or ``()``."""
    if drawn.by_row and drawn.rows is not None:
        error = drawn.rows.abs() * torch.finfo(drawn.rows.dtype).eps
    else:
        error = torch.zeros(1) if drawn.rounding is None else drawn.rounding
    return error.nan_to_num(0.0, 0.0, 0.0).amax(0) > RESOLUTION


def _one_value(drawn: GuideDraws, weights: Tensor) -> Tensor:
    """Whether some discrete latent has the same value in all draws.

    For each row where weights are those of rows.
    """
    same = torch.zeros(weights.shape[1:], dtype=torch.bool, device=weights.device)
    for name, value in drawn.values.items():
        if name in drawn.continuous:
            continue
        unmoved = (value == value[:1]).all(0)
        axis = drawn.row_axis.get(name)
        if same.ndim > 0 and axis is not None:
            same = same | unmoved.movedim(axis - 1, 0).reshape(len(same), -1).all(1)
        else:
            same = same | unmoved.all()
    return same


def active(drawn: GuideDraws) -> dict[str, Tensor]:
    """Booleans for each local latent of some draws, see :func:`active_units`."""
    by_row = {
        name: drawn.values[name].movedim(axis, 1).double() for name, axis in drawn.row_axis.items()
    }
    return {name: _varies(value) for name, value in by_row.items()}


def _varies(value: Tensor) -> Tensor:
    """Whether the means over draws vary over rows: ``(K, B, *rest) -> (*rest,)``."""
    if min(value.shape[:2]) < 2:
        raise ValueError(
            "expected at least two draws and two rows to see what varies, got "
            f"{tuple(value.shape[:2])}"
        )
    within = value.var(0).mean(0)
    between = value.mean(0).var(0) - within / len(value)
    return between > ACTIVE * (between + within)


def _drawn(gen: GenerativeModel, batch: tuple, particles: int, max_rows: int) -> GuideDraws:
    batch = as_rows(gen, *batch)
    drawn = guide_draws(gen, *batch, particles=particles, max_rows=max_rows)
    drawn.check_random()
    return drawn


def _warn_if_swallowed(drawn: GuideDraws, stacklevel: int) -> None:
    if swallowed(drawn).any():
        words = f"k-hat and ESS are not known: {SWALLOWED}"
        warnings.warn(words, RuntimeWarning, stacklevel=stacklevel)
