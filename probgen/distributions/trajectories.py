"""Distributions of the actions that build an object: forwards by a policy, and backwards from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import Batched, BatchedDistribution
from probgen.core.missing import check_event, fill_missing, has_missing
from probgen.distributions.environments import Environment

Policy = Callable[[Tensor], Tensor]  # features of a state to logits of the actions


def actions_of(environment: Environment) -> constraints.Constraint:
    """Support of the actions of a trajectory, ``(T,)``.

    >>> from probgen.distributions.environments import AnyOrder
    >>> actions_of(AnyOrder(2)).check(torch.tensor([[0, 3], [4, 0]]))
    tensor([ True, False])
    """
    return constraints.independent(constraints.integer_interval(0, environment.actions - 1), 1)


class ForwardTrajectories(BatchedDistribution):
    r"""Actions of a policy, each given those before.

    .. math:: P_F(\tau) = \prod_{t=1}^T P_F(a_t \mid s_{t-1}), \qquad s_0 = 0, \quad s_t = s_{t-1} +
        e_{a_t}

    Events are actions ``(T,)``, integers.

    Parameters
    ----------
    environment : Environment
        Which actions are allowed.
    policy : callable
        Logits of the actions from the features of a state: ``(*batch, inputs) -> (*batch, A)``.
    nothing : Tensor
        The first state, zeros ``(A,)``.
    """

    batched: ClassVar[Batched] = {}

    def __init__(self, environment: Environment, policy: Policy, nothing: Tensor):
        self.environment = environment
        self.policy = policy
        self.nothing = nothing
        super().__init__(torch.Size(), torch.Size((environment.length,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return actions_of(self.environment)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        counts = self.nothing.expand(*shape, -1)
        actions = []
        with torch.no_grad():
            for _ in range(self.environment.length):
                action = _drawn(self._log_policy(counts))
                counts = counts + _indicator(action, counts)
                actions.append(action)
        return torch.stack(actions, -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        check_event(actions, self.event_shape)
        taken = _indicator(actions, self.nothing)
        value = _sum_taken(self._log_policy(taken.cumsum(-2) - taken), actions)
        return value.expand(self.lead(actions))

    def _log_policy(self, counts: Tensor) -> Tensor:
        logits = self.policy(self.environment.features(counts))
        return _normalized(logits, self.environment.allowed(counts))


class BackwardTrajectories(BatchedDistribution):
    r"""Actions that have built an object, each given what was there after it.

    .. math:: P_B(\tau \mid x) = \prod_{t=1}^T P_B(a_t \mid s_t), \qquad s_T = s(x)

    Events are actions ``(T,)``, integers, in the order in which they were taken.

    Parameters
    ----------
    environment : Environment
        Which actions may have been the last.
    policy : callable, optional
        Logits of the last action, as of :class:`ForwardTrajectories`; default: all alike.
    counts : Tensor
        The complete states of the objects, ``(*batch, A)``.
    """

    batched: ClassVar[Batched] = {"counts": 1}
    visits_all = True  # every trajectory of an object, or as many as the model has

    def __init__(self, environment: Environment, policy: Policy | None, counts: Tensor):
        self.environment = environment
        self.policy = policy
        self.counts = counts
        event = torch.Size((environment.length,))
        super().__init__(counts.shape[:-1], event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return actions_of(self.environment)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        counts = self.counts.expand(*sample_shape, *self.counts.shape)
        actions = []
        with torch.no_grad():
            for _ in range(self.environment.length):
                action = _drawn(self._log_policy(counts))
                counts = counts - _indicator(action, counts)
                actions.append(action)
        return torch.stack(actions[::-1], -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        check_event(actions, self.event_shape)
        after = _indicator(actions, self.counts).cumsum(-2)
        value = _sum_taken(self._log_policy(after), actions)
        arrives = (after[..., -1, :] == self.counts).all(-1)
        return torch.where(arrives, value, -torch.inf)

    def _log_policy(self, counts: Tensor) -> Tensor:
        logits = (
            torch.zeros_like(counts)
            if self.policy is None
            else self.policy(self.environment.features(counts))
        )
        return _normalized(logits, self.environment.removable(counts))


class Determined(BatchedDistribution):
    """A value that follows from others: probability one there, and zero elsewhere.

    Parameters
    ----------
    value : Tensor
        ``(*batch, *event)``.
    event_ndim : int
        Number of its event dims.
    entries : Constraint
        Support of one entry.

    >>> Determined(torch.ones(2), 1, constraints.boolean).log_prob(torch.eye(2) + torch.eye(2).flip(0))
    tensor([0., 0.])
    """

    batched: ClassVar[Batched] = {"value": None}

    def __init__(self, value: Tensor, event_ndim: int, entries: constraints.Constraint):
        self.value = value
        self.entries = entries
        lead = value.ndim - event_ndim
        super().__init__(value.shape[:lead], value.shape[lead:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.entries, len(self.event_shape))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape).clone()

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        dims = tuple(range(-len(self.event_shape), 0))
        same = (fill_missing(x) == self.value).to(self.value.dtype).amin(dims).log()
        return torch.where(x.isnan().any(dims), torch.nan, same) if has_missing(x) else same


def _indicator(actions: Tensor, like: Tensor) -> Tensor:
    """Actions as states with one count: ``(*batch,) -> (*batch, A)``."""
    choices = torch.arange(like.shape[-1], device=like.device)
    return (actions.unsqueeze(-1) == choices).to(like.dtype)


def _normalized(logits: Tensor, possible: Tensor) -> Tensor:
    """Log probabilities of the possible actions, -inf of the others."""
    none = ~possible.any(-1, keepdim=True)  # after actions that are themselves impossible
    return logits.masked_fill(~(possible | none), -torch.inf).log_softmax(-1)


def _drawn(log_policy: Tensor) -> Tensor:
    return dist.Categorical(logits=log_policy, validate_args=False).sample()


def _sum_taken(log_policy: Tensor, actions: Tensor) -> Tensor:
    """Log probability of the actions: ``(*batch, T, A), (*batch, T) -> (*batch,)``."""
    lead = torch.broadcast_shapes(log_policy.shape[:-1], actions.shape)
    taken = actions.long().expand(lead).unsqueeze(-1)
    return log_policy.expand(*lead, -1).gather(-1, taken).squeeze(-1).sum(-1)
