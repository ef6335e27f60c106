"""Importance weights of rows under the draws of a guide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import check_rows_drawn, kind_of, worst
from probgen.core.modes import depends_on_mode
from probgen.core.reading import Reading, read
from probgen.core.runtime import evaluating
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

MEANS = ("exact", "unbiased")  # kinds of which a layer in training mode makes another one


@explained
@in_turn
@takes_seed
def log_weights(
    gen: GenerativeModel, *batch: Any, particles: int = 1, seed: Seed = None
) -> tuple[Tensor, str]:
    r"""Log importance weights of every row, and the kind of the estimate that they give.

    .. math:: w_{kb} = \log p(x_b, z_{kb} \mid \theta_k) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q

    over the sites inside the data plate. Enumerated sites are summed out exactly. Globals are drawn
    from the guide and not reweighted, so that for a fitted Bayesian model the average of ``exp(w)``
    is its posterior predictive density.

    Parameters
    ----------
    gen : GenerativeModel
        A model; an objective passes any object with ``model``, ``guide`` and the attributes of that
        protocol.
    *batch : Tensor
        What the programs take: ``x``, or ``x, context``, or a Program's own arguments.
    particles : int
        Number K of draws per row.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.

    Returns
    -------
    (Tensor, str)
        Weights ``(K, B)`` in nats, and the weakest kind of density met on the way; at best
        *approximate* while dropout or batch normalization of a model in training mode enters them.

    Raises
    ------
    ValueError
        If the guide has a site whose density is not exact, the model a latent site that the guide
        lacks, or no site stands inside the data plate.

    References
    ----------
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders,
    https://arxiv.org/abs/1509.00519
    """
    checks.generative(gen=gen)
    checks.at_least(1, particles=particles)
    return row_weights(gen, as_rows(gen, *batch), particles)


def row_weights(
    gen: GenerativeModel, batch: tuple, particles: int, observed: Iterable[str] | None = None
) -> tuple[Tensor, str]:
    """:func:`log_weights` of arguments that are tensors, whose values are not looked at.

    With ``observed`` other observed sites are left out.
    """
    if gen.vectorized:
        return _weights(gen, batch, particles, observed)
    runs = [_weights(gen, batch, None, observed) for _ in range(particles)]
    return torch.cat([weights for weights, _ in runs]), worst(*(kind for _, kind in runs))


def _weights(
    gen: GenerativeModel, batch: tuple, particles: int | None, observed: Iterable[str] | None
) -> tuple[Tensor, str]:
    pair = run_pair(gen, batch, particles)
    kind = kind_of(pair, gen.plate)
    weights = pair.by_row(gen.plate, observed)
    return weights, "approximate" if kind in MEANS and depends_on_mode(gen) else kind


def run_pair(gen: GenerativeModel, batch: tuple, particles: int | None) -> Reading:
    """One reading of guide and model on a batch, whose guide draws the rows independently."""
    with evaluating():
        pair = read(gen.model, gen.guide, batch, particles, gen.max_plate_nesting)
    check_rows_drawn(pair, gen.plate)
    return pair
