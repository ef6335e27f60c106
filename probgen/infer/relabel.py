"""One labeling for the components of a mixture in all posterior draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.infer.simulate import Draws


def relabel(
    draws: Mapping[str, Tensor],
    sites: Sequence[str] = ("weights", "means", "scales"),
    labels: Sequence[str] = ("component",),
    leading: int = 1,
    max_iter: int = 20,
) -> Draws:
    r"""Permutes the components of every draw so that a label means the same component throughout.

    A mixture's posterior is the same under each of the K! orders of its components, and chains
    wander between them: averages over draws, R-hat and effective sample sizes say nothing before
    this. Each draw takes the permutation

    .. math:: \pi_s = \arg\min_\pi \sum_k \lVert \theta^{(s)}_{\pi(k)} - m_k \rVert^2, \qquad
        m_k = \frac1S \sum_s \theta^{(s)}_{\pi_s(k)}

    where :math:`\theta_k` joins the standardized entries of component k at ``sites``; the two steps
    alternate until nothing changes. Components are then put in order of decreasing average at the
    first site: largest weight first.

    Parameters
    ----------
    draws : mapping of str to Tensor
        Posterior draws, ``(S, ...)``, or ``(chain, draw, ...)`` with ``leading=2``.
    sites : sequence of str
        Sites with one entry per component, ``(S, K, *event)``; those that ``draws`` lacks are left
        out.
    labels : sequence of str
        Sites whose values are the components' numbers, if there.
    leading : int
        Number of dims that count draws.
    max_iter : int
        Bound on the alternations.

    Returns
    -------
    dict of str to Tensor
        The draws with components permuted; other sites as they were.

    Raises
    ------
    ValueError
        If none of ``sites`` is among the draws.

    References
    ----------
    Stephens (2000), Dealing with label switching in mixture models,
    https://doi.org/10.1111/1467-9868.00265

    >>> means = torch.tensor([[[-1.0], [1.0]], [[1.1], [-1.1]]])
    >>> relabel({"means": means})["means"][..., 0]
    tensor([[ 1.0000, -1.0000],
            [ 1.1000, -1.1000]])
    """
    checks.mapping(draws=draws)
    checks.texts(sites=sites, labels=labels)
    checks.at_least(1, leading=leading, max_iter=max_iter)
    flat = {name: value.flatten(0, leading - 1) for name, value in draws.items()}
    present = [name for name in sites if name in flat]
    if not present:
        raise ValueError(
            f"expected draws of some of {list(sites)}, got {sorted(draws)}; name the sites of "
            "components"
        )
    features = torch.cat([_standardized(flat[name]) for name in present], -1)
    order = _matched(features, max_iter)
    first = flat[present[0]].flatten(2).mean(-1) if flat[present[0]].ndim > 2 else flat[present[0]]
    order = order[:, first.gather(1, order).mean(0).argsort(descending=True)]
    for name in present:
        index = order.reshape(*order.shape, *(1,) * (flat[name].ndim - 2)).expand_as(flat[name])
        flat[name] = flat[name].gather(1, index)
    for name in (name for name in labels if name in flat):
        new = order.argsort(1).to(flat[name])  # the inverse: old number to new number
        flat[name] = new.gather(1, flat[name].long().flatten(1)).reshape(flat[name].shape)
    return {name: value.reshape(draws[name].shape) for name, value in flat.items()}


def _standardized(value: Tensor) -> Tensor:
    """Entries ``(S, K, F)`` on one scale, pooled over draws and components."""
    value = value.flatten(2) if value.ndim > 2 else value[..., None]
    spread = value.flatten(0, 1).std(0)
    return value / torch.where(spread > 0, spread, 1.0)


def _matched(features: Tensor, max_iter: int) -> Tensor:
    """Permutations ``(S, K)`` that bring every draw nearest to the average of all.

    Which starts as the last draw.
    """
    from scipy.optimize import linear_sum_assignment

    reference = features[-1]
    order: Any = None
    for _ in range(max_iter):
        costs = torch.cdist(reference.expand_as(features), features).square().double().cpu().numpy()
        new = torch.tensor(
            [linear_sum_assignment(cost)[1].tolist() for cost in costs], device=features.device
        )
        if order is not None and torch.equal(new, order):
            break
        order = new
        reference = features.gather(1, order[..., None].expand_as(features)).mean(0)
    return order
