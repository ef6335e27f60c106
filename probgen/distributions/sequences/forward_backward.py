r"""The forward-backward algorithm.

Likelihoods of hidden Markov chains, and their gradients, which are the posteriors.

All functions take log initial probabilities ``(K, R)`` of R sequences over K states; log transition
probabilities ``(S, Q, K, K)``, from row to column, S = 1 or T - 1 (one for each step), Q = 1 or R
(one for each sequence); and log densities ``(T, K, R)`` of what was observed, under each state.

With :math:`b_t = \exp(e_t - \max_k e_{tk})` the forward pass is one matrix product a step,

.. math:: a_t \propto b_t \circ (A^\top a_{t-1}), \qquad \log p(x) = \sum_t \log(\text{scale}_t) + \max_k e_{tk}

Where all entries of A exceed some :math:`\epsilon`, scales do too, and mass m that underflows at
one step has a share below :math:`m / \epsilon^2` in everything that follows: nothing is lost in
float32 above 1e-9, nor in float64 above 1e-100. Other chains (with transitions that are impossible)
take sums of exponentials in log space.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core.private_torch import get_proxy_mode
from probgen.core.threads import one_core
from probgen.distributions.possible import check_possible
from probgen.distributions.sequences import log_chain
from probgen.distributions.sequences.scan import Passed, scan

BLOCK = 2**20  # masses of states that are held at once where only the likelihood is asked for
DENSE = {torch.float32: 1e-9, torch.float64: 1e-100}  # least transition probability
_DROPPED = {
    torch.float32: -60.0,
    torch.float64: -370.0,
}  # of log densities below the largest: share e^x / dense^2


class Posterior(NamedTuple):
    """What is known of the states of R sequences.

    Attributes
    ----------
    log_likelihood : Tensor
        ``(R,)``, float64, in nats.
    initial : Tensor
        Probabilities of the first state ``(K, R)``.
    transitions : Tensor
        Expected numbers of transitions, in the shape of the transition probabilities: summed over
        the steps and sequences that share them.
    marginals : Tensor
        Probabilities of the state at each step ``(T, K, R)``.
    """

    log_likelihood: Tensor
    initial: Tensor
    transitions: Tensor
    marginals: Tensor


def chain_log_likelihood(
    log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
) -> Tensor:
    """Log-likelihoods of sequences ``(R,)``, differentiable once.

    Functions that are being recorded get a product of matrices in log space, by halves, where
    states are few.
    """
    chain = log_initial, log_transition, log_emission
    if get_proxy_mode() is None:
        differentiated = torch.is_grad_enabled() and any(part.requires_grad for part in chain)
        value = _LogLikelihood.apply(*chain) if differentiated else likelihood(*chain)
    elif len(log_initial) <= log_chain.FEW:
        value = log_chain.by_halves(*chain)
    else:
        value = _Recorded.apply(*chain)
    return value.to(log_emission.dtype)


@torch.no_grad()
def chain_posterior(*chain: Tensor, weights: Tensor | None = None) -> Posterior:
    """Both passes: the log-likelihoods, and their gradients.

    Each sequence times its weight ``(R,)``.
    """
    value, states = forward(*chain)
    weights = torch.ones_like(value) if weights is None else weights
    return Posterior(value, *backward(weights, value, states, *chain[1:]))


@torch.no_grad()
def filtered(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """Log probabilities of each state given the past and the present: ``(T, K, R)``."""
    value, states = forward(log_initial, log_transition, log_emission)
    check_possible(value)
    return states if precision(log_transition) is None else states.log()


def forward(
    log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods ``(R,)`` in float64.

    And the distribution of each state given the past ``(T, K, R)``.

    The latter are probabilities, in whichever precision loses nothing, or else log probabilities.
    """
    with one_core():  # steps are too short to share
        return _forward(log_initial, log_transition, log_emission)


def _forward(
    log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = precision(log_transition)
    if dtype is None:
        return log_chain.log_forward(log_initial, log_transition, log_emission)
    shifted, top = _shifted(log_emission, dtype)
    first = (log_initial + log_emission[0]).to(dtype)
    start = first.softmax(0)
    passed = scan(start, log_transition.to(dtype).exp().mT, shifted[1:])
    value = _passed_value(first.double().logsumexp(0), passed, top[1:])
    return value, torch.cat([start[None], passed.states])


def likelihood(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """What :func:`forward` gives first, ``(R,)``, block by block: no state but the last is kept."""
    dtype = precision(log_transition)
    if dtype is None:
        with one_core():
            return log_chain.log_forward(log_initial, log_transition, log_emission)[0]
    first = (log_initial + log_emission[0]).to(dtype)
    value, start = first.double().logsumexp(0), first.softmax(0)
    matrix = log_transition.to(dtype).exp().mT
    block = max(1, BLOCK // max(1, first.numel()))
    with one_core():
        for begin in range(1, len(log_emission), block):
            shifted, top = _shifted(log_emission[begin : begin + block], dtype)
            each = matrix if len(matrix) == 1 else matrix[begin - 1 :][: len(shifted)]
            passed = scan(start, each, shifted)
            value = _passed_value(value, passed, top)
            start = passed.states[-1]
    return value


def _passed_value(value: Tensor, passed: Passed, top: Tensor) -> Tensor:
    """The log-likelihood ``(R,)`` with that of further steps; minus infinity stays."""
    further = top.sum(0, dtype=torch.float64) + passed.scale.double().log().sum(0)
    impossible = (value == -torch.inf) | (passed.scale == 0).any(0)
    return torch.where(impossible, -torch.inf, value + further)


def backward(
    grad: Tensor, value: Tensor, states: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""What :func:`forward` leaves to do.

    ``initial``, ``transitions`` and ``marginals`` weighted by ``grad`` ``(R,)``.

    .. math:: \beta_t = A (b_{t+1} \circ \beta_{t+1}) / c_{t+1}, \qquad p(z_t \mid x) \propto a_t \circ \beta_t
    """
    with one_core():
        return _backward(grad, value, states, log_transition, log_emission)


def _backward(
    grad: Tensor, value: Tensor, states: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = precision(log_transition)
    kind = log_emission.dtype
    if dtype is None:
        return log_chain.log_backward(grad, states, log_transition, log_emission)
    impossible = value == -torch.inf
    if impossible.any():
        log_emission = log_emission.masked_fill(impossible, 0.0)
        states = states.masked_fill(impossible, 1.0)
        grad = grad.masked_fill(impossible, 0.0)
    later, _ = _shifted(log_emission.flip(0), dtype)
    start = later[0] / later[0].sum(0)
    transition = log_transition.to(dtype).exp()
    passed = scan(start, transition.flip(0), later[1:])
    ahead = torch.cat([start[None], passed.states[:-1]]).flip(0)[: len(states) - 1]
    beta = torch.cat([passed.prior.flip(0), torch.ones_like(states[:1])])
    marginals = states * beta
    weight = grad.to(dtype) / marginals.sum(1)
    marginals *= weight[:, None]
    pairs = _pairs(states[:-1] * weight[:-1, None], ahead, log_transition.shape) * transition
    return marginals[0].to(kind), pairs.to(kind), marginals.to(kind)


class _LogLikelihood(torch.autograd.Function):
    """The gradient with respect to log probabilities.

    Expected numbers of what they are the probabilities of.
    """

    @staticmethod
    def forward(
        ctx: Any, log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
    ) -> Tensor:
        value, states = forward(log_initial, log_transition, log_emission)
        ctx.save_for_backward(value, states, log_transition, log_emission)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return backward(grad, *ctx.saved_tensors)


class _Recorded(torch.autograd.Function):
    """The same as two operations, whose steps are no part of a graph that is being recorded."""

    @staticmethod
    def forward(ctx: Any, *chain: Tensor) -> Tensor:
        ctx.save_for_backward(*chain)
        return markov_value(*chain)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return markov_grad(grad, *ctx.saved_tensors)


@torch.library.custom_op("probgen::markov_value", mutates_args=())
def markov_value(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """:func:`likelihood`."""
    return likelihood(log_initial, log_transition, log_emission)


@torch.library.custom_op("probgen::markov_grad", mutates_args=())
def markov_grad(
    grad: Tensor, log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`forward` and :func:`backward`."""
    value, states = forward(log_initial, log_transition, log_emission)
    initial, pairs, marginals = backward(grad, value, states, log_transition, log_emission)
    return (
        initial.clone(),
        pairs.contiguous(),
        marginals.contiguous(),
    )  # none may share memory with another


@markov_value.register_fake
def _(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    return log_emission.new_empty(log_emission.shape[2], dtype=torch.float64)


@markov_grad.register_fake
def _(grad: Tensor, *chain: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in chain)


def precision(log_transition: Tensor) -> torch.dtype | None:
    """The precision in which a pass without logarithms loses nothing; ``None`` where it may."""
    least = log_transition.detach().double().amin().exp().item()
    fine = [dtype for dtype in (log_transition.dtype, torch.float64) if least > DENSE[dtype]]
    return fine[0] if fine else None


def _shifted(log_emission: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Densities relative to the largest of their step, and the logarithm of that one ``(T, R)``."""
    top = log_emission.amax(1)
    relative = log_emission - top.clamp(min=torch.finfo(top.dtype).min)[:, None]
    floor = _DROPPED[dtype]
    masses = relative.to(dtype).clamp_(min=floor).exp_()
    return nn.functional.threshold(masses, math.exp(floor) * 1.01, 0.0, inplace=True), top


def _pairs(now: Tensor, ahead: Tensor, shape: torch.Size) -> Tensor:
    """Sums of products of states at neighboring steps.

    Over steps and sequences that share transitions.
    """
    kept = ("t" if shape[0] > 1 else "") + ("r" if shape[1] > 1 else "")
    return torch.einsum(f"tir,tjr->{kept}ij", now, ahead).reshape(shape)
