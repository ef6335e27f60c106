"""Markov chains of which observations are known: what can be said of their states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probgen.distributions.possible import check_possible
from probgen.distributions.sequences.forward_backward import (
    Posterior,
    chain_log_likelihood,
    chain_posterior,
    filtered,
)
from probgen.distributions.sequences.log_chain import best_path
from probgen.distributions.sequences.markov_paths import draw_backward


class ObservedChain(NamedTuple):
    """The states of R series, and log densities of what was observed under each of K states.

    Attributes
    ----------
    initial : Tensor
        Log probabilities of the first state: ``(K, R)``.
    transition : Tensor
        Log probabilities ``(S, Q, K, K)``, as the passes of
        :mod:`probgen.distributions.sequences.forward_backward` take them.
    emission : Tensor
        Log densities of each step under each state: ``(T, K, R)``.
    lead : torch.Size
        The dims ``(*batch,)`` of the R series.

    >>> even = torch.full((2, 2), 0.5).log()
    >>> chain = ObservedChain(even[:, :1], even[None, None], torch.tensor([[[0.0], [-1.0]]]), torch.Size())
    >>> chain.smoothed(), chain.best_path()
    (tensor([[0.7311, 0.2689]]), tensor([0]))
    """

    initial: Tensor
    transition: Tensor
    emission: Tensor
    lead: torch.Size

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the passes take."""
        return self.initial, self.transition, self.emission

    def log_likelihood(self) -> Tensor:
        """``(*batch,)``, in nats, differentiable once."""
        return chain_log_likelihood(*self.parts).reshape(self.lead)

    def posterior(self, weights: Tensor | None = None) -> Posterior:
        """What is known of the states, of series with weights ``(R,)``."""
        return chain_posterior(*self.parts, weights=None if weights is None else weights.double())

    def log_filtered(self) -> Tensor:
        """Log probabilities of the states given the past and the present: ``(*batch, T, K)``."""
        return self._by_series(filtered(*self.parts))

    def smoothed(self) -> Tensor:
        """Probabilities of the states given all observations: ``(*batch, T, K)``.

        Raises ``ValueError`` for series that are impossible.
        """
        found = self.posterior()
        check_possible(found.log_likelihood)
        return self._by_series(found.marginals)

    @torch.no_grad()
    def best_path(self) -> Tensor:
        """The most probable states by Viterbi's algorithm: ``(*batch, T)``, integers.

        Raises ``ValueError`` for series that are impossible.
        """
        path, value = best_path(*self.parts)
        check_possible(value)
        return path.mT.reshape(*self.lead, -1)

    @torch.no_grad()
    def draws(self, count: int) -> Tensor:
        """Independent draws of all states given all observations: ``(count, *batch, T)``."""
        paths = draw_backward(filtered(*self.parts), self.transition, count)
        return paths.movedim(0, -1).reshape(count, *self.lead, -1)

    def _by_series(self, states: Tensor) -> Tensor:
        """``(T, K, R)`` as ``(*batch, T, K)``."""
        steps, count = states.shape[:2]
        return states.movedim(-1, 0).reshape(*self.lead, steps, count)
