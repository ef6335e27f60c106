"""Uncertain evidence: likelihoods of states, and those under which given marginals hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from probgen.distributions.graphical.directed_graph import Graph, did_you_mean
from probgen.distributions.graphical.states import States

Numbers: TypeAlias = "Tensor | Sequence[float] | Mapping[str, float]"
Likelihood: TypeAlias = Mapping[str, Numbers]


def as_likelihoods(
    values: Likelihood, graph: Graph, states: States, like: Tensor
) -> dict[str, Tensor]:
    """Likelihoods of the values of some nodes as tensors ``(*batch, K)``.

    Parameters
    ----------
    values : mapping of str to Tensor, sequence of float or mapping of str to float
        For each node one number for each of its states, in their order or by their names.
    like : Tensor
        A tensor of the dtype and device of the result.

    Raises
    ------
    ValueError
        For nodes that are not discrete, other numbers of states, negative or infinite numbers, and
        where all states are impossible.
    """
    return {
        name: _checked(name, _in_order(name, value, states.get(name)), graph, like)
        for name, value in values.items()
    }


def _in_order(name: str, value: Numbers, states: Sequence[str] | None) -> Tensor | Sequence[float]:
    if not isinstance(value, Mapping):
        return value
    if states is None:
        raise ValueError(
            f"expected likelihoods of '{name}' in the order of its states, which have no names, "
            "got "
            f"{dict(value)}; give a list"
        )
    for state in value:
        if state not in states:
            raise ValueError(
                f"expected likelihoods of states of '{name}', {did_you_mean(states, state)}"
            )
    if lacking := [state for state in states if state not in value]:
        raise ValueError(
            f"expected a likelihood for every state of '{name}', got none for {lacking}; "
            "1 for all is what says nothing"
        )
    return [value[state] for state in states]


def _checked(name: str, value: Tensor | Sequence[float], graph: Graph, like: Tensor) -> Tensor:
    levels = graph.levels[graph.index(name)]
    if levels is None:
        raise ValueError(
            f"expected likelihoods of discrete nodes, got '{name}', which has numbers; "
            "add an observed child of it to the network"
        )
    found = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if found.ndim == 0 or found.shape[-1] != levels:
        raise ValueError(
            f"expected {levels} likelihoods of '{name}', one for each state, or (*batch, "
            f"{levels}), got "
            f"shape {tuple(found.shape)}; the order is that of the states"
        )
    if not (found.isfinite() & (found >= 0)).all() or not (found > 0).any(-1).all():
        raise ValueError(
            f"expected likelihoods of '{name}' that are finite and not negative, some positive, "
            "got "
            f"{found.tolist()}; a likelihood is p(finding | state)"
        )
    return found


def check_rows(likelihoods: Mapping[str, Tensor], batch: torch.Size) -> None:
    """Raises ``ValueError`` unless likelihoods ``(*batch, K)`` are one for all rows or one each."""
    for name, value in likelihoods.items():
        try:
            torch.broadcast_shapes(value.shape[:-1], batch)
        except RuntimeError:
            raise ValueError(
                f"expected likelihoods of '{name}' of shape ({value.shape[-1]},) or "
                f"{(*batch, value.shape[-1])}, one for each row of x, got {tuple(value.shape)}; "
                "repeat the row of x for several of them"
            ) from None


def fitted_likelihoods(
    marginals: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    targets: Mapping[str, Tensor],
    *,
    max_iter: int,
    tol: float,
) -> dict[str, Tensor]:
    r"""Likelihoods under which some variables have given marginals.

    Iterated Jeffrey's rule (iterative proportional fitting): in turn

    .. math:: \lambda_v(k) \leftarrow \lambda_v(k)\, \frac{q_v(k)}{p(x_v = k \mid \lambda)}

    until all marginals agree; of all distributions that have them, the result is nearest to that
    without evidence in Kullback-Leibler divergence. One variable takes one step.

    Parameters
    ----------
    marginals : callable
        From likelihoods to the marginals of the variables, each ``(*batch, K)``.
    targets : mapping of str to Tensor
        The marginals :math:`q_v` that shall hold, ``(*batch, K)``.
    max_iter : int
        Largest number of rounds.
    tol : float
        Largest difference from a target.

    Raises
    ------
    ValueError
        Where a target gives probability to what is impossible, or they do not hold together.

    References
    ----------
    Jeffrey (1965), The Logic of Decision; Csiszar (1975), I-divergence geometry of probability
    distributions and minimization problems, https://doi.org/10.1214/aop/1176996454
    """
    found = {name: torch.ones_like(target) for name, target in targets.items()}
    gap = torch.inf
    for _ in range(max_iter):
        for name, target in targets.items():
            now = marginals(found)[name]
            _refuse_impossible(name, target, now)
            ratio = torch.where(target > 0, target / now, 0.0) * found[name]
            found[name] = ratio / ratio.amax(-1, keepdim=True)
        reached = marginals(found)
        gap = max((reached[name] - target).abs().max().item() for name, target in targets.items())
        if gap < tol:
            return found
    raise ValueError(
        f"expected marginals of {tuple(targets)} that can hold together, got some that are off by "
        f"{gap:.2g} after {max_iter} iterations; change them, or give a larger max_iter or tol"
    )


def _refuse_impossible(name: str, target: Tensor, now: Tensor) -> None:
    if ((target > 0) & (now <= 0)).any():
        place = int(((target > 0) & (now <= 0)).nonzero()[0, -1])
        raise ValueError(
            f"expected marginals of '{name}' that are 0 where it cannot be, got "
            f"{target[..., place].max().item():g} for value {place}; what is observed, or the "
            "other "
            "marginals, exclude it"
        )
