"""Contrastive divergence.

Gradients of a log-likelihood without its constant, from Markov chains of the distribution itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.objectives.base import Objective, distribution_of_x


@runtime_checkable
class HasChains(Protocol):
    """A distribution with Markov chains that leave it as it is; its density may lack a constant."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log weight of rows: ``(*batch, *event) -> (*batch,)``."""

    def chain_from(self, x: Tensor) -> Tensor:
        """States of chains that begin at rows: ``(*batch, *event) -> (*batch, *state)``."""

    def init_chains(self, shape: torch.Size | tuple) -> Tensor:
        """Initial states of chains, independent of data and of each other.

        ``(*shape, *state)``.
        """

    def chain(self, state: Tensor, num_steps: int) -> Tensor:
        """States after so many steps, without gradients."""

    def chain_log_weight(self, state: Tensor) -> Tensor:
        """Log weights of states, with the constant of log_prob if that has it.

        All other variables are summed out.
        """


@runtime_checkable
class HasEnergy(Protocol):
    """A distribution that states the energy of rows."""

    def energy(self, x: Tensor) -> Tensor:
        """``(*batch, *event) -> (*batch,)``."""


class ContrastiveDivergence(Objective):
    r"""A difference whose gradient approximates that of the negative log-likelihood.

    Its value means nothing.

    .. math:: -\sum_b \log p^*(x_b) + \frac{B}{M} \sum_m \log p^*(\tilde x_m), \qquad
              \nabla \log Z = \mathbb E_p[\nabla \log p^*(\tilde x)]

    with :math:`\tilde x` the ends of Markov chains of the distribution, after ``num_steps`` of its
    kernel:

    - from the rows of the batch, without ``chains``: contrastive divergence, CD-k (Hinton 2002);
    - from where they ended last time, ``chains=M``: persistent contrastive divergence (Tieleman
      2008);
    - from M of a larger ``pool`` of such states, some of which are restarted with the probability
      ``restart``: the replay buffer of Du and Mordatch (2019).

    The states are a buffer, saved with the training state; chains without rows start where the
    distribution says.

    The value stands near 0 while the chains keep up with the model. One that falls without end says
    that they do not: take more or larger steps, a smaller learning rate or a penalty. A
    distribution whose density is *exact* (a small :class:`RBM <probgen.models.rbm.RBM>`) needs no
    chains: the default objective is its likelihood.

    Parameters
    ----------
    num_steps : int
        Steps of the kernel in each call.
    chains : int, optional
        Number M of persistent chains that are advanced in each call; without a context alone.
    pool : int, optional
        Number of states that are kept; default: those of the chains.
    restart : float
        Probability with which each chain is restarted at a call.
    penalty : float
        Weight of :math:`\sum_b E(x_b)^2 + E(\tilde x)^2`, which keeps energies near 0 (Du, Mordatch
        2019); the distribution must state its energy.

    Raises
    ------
    TypeError
        At the call, if the distribution of x has no chains, or, with a penalty, no energy.
    ValueError
        At the call, if there are persistent chains and a context.

    References
    ----------
    Hinton (2002), https://doi.org/10.1162/089976602760128018; Tieleman (2008), Training restricted
    Boltzmann machines using approximations to the likelihood gradient,
    https://doi.org/10.1145/1390156.1390290; Du, Mordatch (2019), Implicit generation and modeling
    with energy-based models, https://arxiv.org/abs/1903.08689

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> from probgen.models.rbm import RBM
    >>> rbm = RBM(BernoulliUnits(3), hidden=2)
    >>> loss = ContrastiveDivergence(num_steps=5, chains=10)(rbm.model, rbm.guide)(torch.ones(4, 3))
    >>> loss.backward()
    >>> rbm.weight.grad.shape
    torch.Size([3, 2])
    """

    descends = False
    weighs_rows = True
    ignores_constants = True
    states: Tensor | None

    def __init__(
        self,
        num_steps: int = 1,
        *,
        chains: int | None = None,
        pool: int | None = None,
        restart: float = 0.0,
        penalty: float = 0.0,
    ):
        checks.at_least(1, num_steps=num_steps, **checks.given(chains=chains, pool=pool))
        checks.within("[0, 1]", restart=restart)
        checks.not_negative(penalty=penalty)
        super().__init__()
        pool = chains if pool is None else pool
        paired = (chains is None) == (pool is None)
        if not paired or (chains is not None and pool is not None and not 1 <= chains <= pool):
            raise ValueError(
                f"expected 1 <= chains <= pool or neither, got chains={chains}, pool={pool}; give "
                "both"
            )
        self.num_steps = num_steps
        self.chains = chains
        self.pool = pool
        self.restart = restart
        self.penalty = penalty
        self.register_buffer("states", None)

    def prepare(self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> None:
        """Starts the persistent chains."""
        if self.chains is not None:
            self._check(batch)
            states = self._site(model, guide, batch)["fn"].init_chains((self.pool,))
            if self.states is None or self.states.shape != states.shape:
                self.states = states

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        if self.chains is not None and self.states is None:
            self.prepare(model, guide, *batch)
        site = self._site(model, guide, batch)
        distribution = site["fn"]
        x = site["value"]
        positive = distribution.log_prob(x)
        if self.chains is None:
            states = distribution.chain(distribution.chain_from(x), self.num_steps)
            each = distribution.chain_log_weight(states) - positive
            penalty = self._penalty(distribution, x, states)
            loss = scale_and_mask(each + penalty, site["scale"], site["mask"]).sum()
            return self._noted(loss, penalty, site)
        self._check(batch)
        states = self._advance(distribution)
        rows = scale_and_mask(torch.ones_like(positive), site["scale"], site["mask"]).sum()
        negative = distribution.chain_log_weight(states).mean()
        penalty = self._penalty(distribution, x, states)
        known = scale_and_mask(positive - penalty, site["scale"], site["mask"]).sum()
        return self._noted(rows * negative - known, penalty, site)

    def _noted(self, loss: Tensor, penalty: Tensor | float, site: dict[str, Any]) -> Tensor:
        """The loss, its parts noted where it has several."""
        if torch.is_tensor(penalty):
            paid = scale_and_mask(penalty.detach(), site["scale"], site["mask"]).sum()
            note("contrast", loss.detach() - paid)
            note("penalty", paid / self.penalty, self.penalty)
        return loss

    def _site(
        self, model: Callable[..., Any], guide: Callable[..., Any], batch: tuple
    ) -> dict[str, Any]:
        site = distribution_of_x(
            model, guide, batch, HasChains, self, "use ELBO, or another objective for its density"
        )
        if self.penalty and not isinstance(site["fn"], HasEnergy):
            raise TypeError(
                "expected a distribution with an energy for the penalty, got "
                f"{type(site['fn']).__name__}; drop it"
            )
        return site

    def _check(self, batch: tuple) -> None:
        if len(batch) > 1 and batch[1] is not None:
            raise ValueError(
                "expected rows without a context for persistent chains, got a context: the chain "
                "of one row is none of "
                "another; leave out chains, so that they start at the rows"
            )

    @torch.no_grad()
    def _advance(self, distribution: HasChains) -> Tensor:
        """The next states of some chains; in training they take the place of the earlier ones."""
        chains: Any = self.chains
        pool: Any = self.pool
        kept: Any = self.states
        device = kept.device
        where = torch.arange(chains, device=device)
        if chains < pool:  # neighbors in the pool, from a random place on
            where = (where + (torch.rand(1, device=device) * pool).long()) % pool
        states = kept.index_select(0, where)
        if self.restart:
            anew = torch.rand(chains, device=device) < self.restart
            anew = anew.reshape(-1, *[1] * (states.ndim - 1))
            states = torch.where(anew, self._fresh(distribution), states)
        states = distribution.chain(states, self.num_steps)
        if self.training:
            kept.index_copy_(0, where, states)
        return states

    def _fresh(self, distribution: HasChains) -> Tensor:
        return distribution.init_chains((self.chains,))

    def _penalty(self, distribution: Any, x: Tensor, states: Tensor) -> Tensor | float:
        """What each row pays for the size of energies."""
        if not self.penalty:
            return 0.0
        ends = distribution.chain_log_weight(states).square()
        if self.chains is not None:  # which belong to no row
            ends = ends.mean()
        return self.penalty * (distribution.energy(x).square() + ends)
