"""Importance-weighted bounds: tighter than the evidence lower bound, from several draws per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.kinds import average
from probgen.core.recording import DetachedDraws
from probgen.objectives.weighted import RowWeighted, Weights, log_rows

Bound = Callable[[Tensor], Tensor]


class IWAE(RowWeighted):
    r"""The negative importance-weighted bound, which rises to log p(x) with the number of draws.

    .. math:: -\sum_b \mathbb E \log \tfrac1K \sum_k w_{kb}, \qquad w_{kb} = \frac{p(x_b, z_{kb})}{q(z_{kb} \mid x_b)}

    Guide sites that are not reparameterized (discrete ones, mixtures) get VIMCO's score-function
    terms: row by row, with the bound that the other draws predict as baseline. A model density that
    is a bound itself is averaged in log space, which makes this the ELBO.

    Parameters
    ----------
    particles : int
        Draws K per row; the parameters after it are those of :class:`RowWeighted`.

    Raises
    ------
    ValueError
        At the call, if a latent site is shared by rows, a density is too weak, latent sites do not
        match, or a site that is not reparameterized meets a single particle.

    References
    ----------
    Burda, Grosse, Salakhutdinov (2016), https://arxiv.org/abs/1509.00519; Mnih, Rezende (2016),
    Variational inference for Monte Carlo objectives, https://arxiv.org/abs/1602.06725

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x), dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x), dim=-1):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> _ = torch.manual_seed(0)
    >>> x = torch.tensor([0.0, 1.0])
    >>> IWAE(particles=4000)(model, guide)(x), -dist.Normal(0.0, 2**0.5).log_prob(x).sum()
    (tensor(2.7...), tensor(2.7810))
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        weights = self.weigh(model, guide, batch)
        loss = -_total(self, weights, lambda log_w: average(log_w, weights.kind))
        return self.noted(weights, loss)


class Renyi(RowWeighted):
    r"""The negative variational Rényi bound, between the ELBO.

    Alpha near 1) and the importance-weighted one (alpha 0.

    .. math:: -\sum_b \frac{1}{1 - \alpha}\, \mathbb E \log \tfrac1K \sum_k w_{kb}^{1 - \alpha}

    At alpha = 1 it is the ELBO. Below 0 it is no lower bound of log p(x).

    Parameters
    ----------
    alpha : float
        Order of the divergence: larger values seek modes, smaller ones cover mass.
    particles : int
        Draws K per row; the parameters after it are those of :class:`RowWeighted`.

    Raises
    ------
    ValueError
        As :class:`IWAE`.

    References
    ----------
    Li, Turner (2016), Rényi divergence variational inference, https://arxiv.org/abs/1602.02311

    >>> Renyi(alpha=0.5, particles=8).alpha
    0.5
    """

    def __init__(self, alpha: float, particles: int, **options: Any):
        checks.finite(alpha=alpha)
        super().__init__(particles, **options)
        self.alpha = alpha

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        weights = self.weigh(model, guide, batch)
        power = 1.0 - self.alpha

        def bound(log_w: Tensor) -> Tensor:
            return average(power * log_w, weights.kind) / power if power else log_w.mean(0)

        return self.noted(weights, -_total(self, weights, bound))


class DReG(RowWeighted):
    r"""The importance-weighted bound with doubly reparameterized gradients.

    Whose noise does not grow with K.

    The value is that of :class:`IWAE`; with normalized weights :math:`v_k = w_k / \sum_j w_j` the
    gradients are

    .. math:: \nabla_\theta: \sum_k v_k \nabla_\theta \log p_\theta(x, z_k), \qquad
              \nabla_\phi: \sum_k v_k^2 \, \frac{\partial \log w_k}{\partial z_k}
              \frac{\partial z_k}{\partial \phi},

    where :math:`\log w_k` depends on phi through the draw alone. Guides with several layers of
    latents are treated as one reparameterized draw of all of them.

    Parameters
    ----------
    particles : int
        Draws K per row; the parameters after it are those of :class:`RowWeighted`.

    Raises
    ------
    ValueError
        At the call, if a guide site is not reparameterized, and as :class:`IWAE`.

    References
    ----------
    Tucker, Lawson, Gu, Maddison (2019), https://arxiv.org/abs/1810.04152

    >>> DReG(particles=8).particles
    8
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        cuts: list[DetachedDraws] = []

        def cut() -> DetachedDraws:
            cuts.append(DetachedDraws(differentiable=True))
            return cuts[-1]

        weights = self.weigh(model, guide, batch, cut)
        for name in self.not_reparameterized(weights.pairs[0]):
            raise ValueError(
                f"DReG: expected reparameterized draws at every guide site, got '{name}' that is "
                "not; use "
                f"IWAE(particles={self.particles}) or WakeSleep(particles={self.particles})"
            )
        bound = average(weights.log_w, weights.kind)
        loss = self.noted(weights, -(weights.rows * bound).sum())
        if not torch.is_grad_enabled():
            return loss
        share = weight_shares(weights.log_w, weights.kind)
        path = weights.rows * (share if weights.kind == "bound" else share**2)
        share = weights.rows * share
        surrogate = (share * weights.log_p).sum() + _pathwise((path * weights.log_w).sum(), cuts)
        return loss.detach() - (surrogate - surrogate.detach())


def weight_shares(log_w: Tensor, kind: str) -> Tensor:
    """The derivative of :func:`average` by every log weight, ``(K, B)``.

    How much of a row each draw accounts for.
    """
    return torch.full_like(log_w, 1 / len(log_w)) if kind == "bound" else log_w.detach().softmax(0)


def _pathwise(value: Tensor, cuts: list[DetachedDraws]) -> Tensor:
    """A sum whose gradient is that of ``value`` through the draws alone.

    Later draws through earlier ones included.
    """
    copies = [copy for cut in cuts for copy in cut.copies.values()]
    gradients = iter(
        torch.autograd.grad(value, copies, retain_graph=True, materialize_grads=True)
        if copies
        else ()
    )
    return sum(
        (_chain(cut, [next(gradients) for _ in cut.copies]) for cut in cuts), value.new_zeros(())
    )


def _chain(cut: DetachedDraws, gradients: list[Tensor]) -> Tensor:
    total: Any = gradients[0].new_zeros(()) if gradients else 0.0
    steps = zip(cut.draws.values(), cut.copies.values(), gradients, strict=True)
    for draw, copy, gradient in reversed(list(steps)):
        if total.requires_grad:  # what the later draws pass back to this one
            gradient = (
                gradient
                + torch.autograd.grad(total, copy, retain_graph=True, materialize_grads=True)[0]
            )
        total = total + (gradient * draw).sum()
    return total


def _total(objective: RowWeighted, weights: Weights, bound: Bound) -> Tensor:
    """The bound summed over rows, with score-function terms for draws that carry no gradient."""
    total = (weights.rows * bound(weights.log_w)).sum()
    sites = [objective.not_reparameterized(pair) for pair in weights.pairs]
    if not any(sites):
        return total
    for name, site in sites[0].items():
        if site["fn"].has_rsample or objective.particles == 1:
            raise ValueError(
                f"{type(objective).__name__}: expected guide sites that are reparameterized "
                "entirely, or not at all "
                f"and with at least 2 particles, got '{name}' ({type(site['fn']).__name__}) with "
                f"{objective.particles}"
                "; use more particles, ELBO() for a single one, or WakeSleep"
            )
    score = torch.cat([log_rows(drawn, objective.plate) for drawn in sites])
    signal = weights.rows * _learning_signal(weights.log_w.detach(), bound)
    return total + ((score - score.detach()) * signal).sum()


def _learning_signal(log_w: Tensor, bound: Bound) -> Tensor:
    """How much each draw adds to the bound, against the geometric mean of the others in its place.

    ``(K, B)``.
    """
    particles = len(log_w)
    own = torch.eye(particles, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
    others = torch.where(own, 0.0, log_w.unsqueeze(1))
    return bound(log_w) - bound(torch.where(own, others.sum(0) / (particles - 1), others))
