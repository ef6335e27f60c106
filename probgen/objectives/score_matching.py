"""Score matching: distributions of real variables learned from gradients of their log-density.

Which know no constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.missing import has_missing
from probgen.core.unions import atoms_of
from probgen.objectives.base import Objective, distribution_of_x


@runtime_checkable
class HasScore(Protocol):
    """A distribution whose log_prob, be it without its constant, has derivatives by x."""

    def log_prob(self, x: Tensor) -> Tensor:
        """``(*batch, *event) -> (*batch,)``."""


def _continuous(
    model: Callable[..., Any], guide: Callable[..., Any], batch: tuple, objective: Objective
) -> dict:
    """The site of x, whose distribution has a score."""
    site = distribution_of_x(
        model, guide, batch, HasScore, objective, "use an adversarial objective"
    )
    distribution = site["fn"]
    name = type(objective).__name__
    if (
        density_kind(distribution) not in ("exact", "unnormalized", "approximate")
        or distribution.support.is_discrete
        or atoms_of(distribution.support)
    ):
        raise ValueError(
            f"{name}: expected a distribution of real variables with a density up to its constant, "
            f"got {type(distribution).__name__} "
            f"({density_kind(distribution)}, {distribution.support}); use ELBO, PseudoLikelihood "
            "or contrastive divergence"
        )
    if has_missing(site["value"]):
        raise ValueError(
            f"{name}: expected complete rows, got NaN (missing); complete the rows first: impute()"
        )
    return site


def _score(distribution: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf, and the gradient of log_prob there, itself differentiable.

    ``(*batch, *event)`` each.
    """
    x = x.detach().requires_grad_()
    return x, _derivative(distribution.log_prob(x).sum(), x)


def _derivative(value: Tensor, x: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)[0]


def _total(each: Tensor, site: dict[str, Any]) -> Tensor:
    return scale_and_mask(each, site["scale"], site["mask"]).sum()


def _rows(value: Tensor) -> Tensor:
    """The sum over everything but the first dim."""
    return value.flatten(1).sum(-1)


class ScoreMatching(Objective):
    r"""Hyvarinen's score matching, with the exact trace: D + 1 derivatives of ``log_prob``.

    .. math:: \sum_b \operatorname{tr} \nabla^2 \log p^*(x_b) + \tfrac12 |\nabla \log p^*(x_b)|^2

    which is, up to a constant of the data, half the expected squared distance between the scores of
    model and data; for a normal distribution its minimum is the maximum of the likelihood. The
    distribution must be smooth with full support.

    Raises
    ------
    ValueError
        At the call, if the distribution is discrete or has no density, or an entry is missing
        (NaN).

    References
    ----------
    Hyvarinen (2005), Estimation of non-normalized statistical models by score matching,
    https://jmlr.org/papers/v6/hyvarinen05a.html

    >>> from probgen.core.module import standard_normal
    >>> normal = standard_normal(3)
    >>> float(ScoreMatching()(normal.model, normal.guide)(torch.ones(2, 3)).detach())  # 2 (3 / 2 - 3)
    -3.0
    """

    weighs_rows = True
    ignores_constants = True

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = _continuous(model, guide, batch, self)
        with torch.enable_grad():
            x, score = _score(site["fn"], site["value"])
            flat = score.flatten(1)
            curvature = [
                _derivative(flat[:, d].sum(), x).flatten(1)[:, d] for d in range(flat.shape[1])
            ]
            each = sum(curvature) + flat.square().sum(-1) / 2
        return _total(each, site)


class SlicedScoreMatching(Objective):
    r"""Score matching along random directions: two derivatives of ``log_prob`` for each of them.

    .. math:: \sum_b \mathbb E_v\big[v^\top \nabla^2 \log p^*(x_b)\, v\big] + \tfrac12 |\nabla \log p^*(x_b)|^2,
              \qquad v \in \{-1, 1\}^D

    an unbiased estimate of :class:`ScoreMatching`, in the form of reduced variance.

    Parameters
    ----------
    directions : int
        Number of directions for each row.

    References
    ----------
    Song, Garg, Shi, Ermon (2019), Sliced score matching, https://arxiv.org/abs/1905.07088

    >>> from probgen.core.module import standard_normal
    >>> normal = standard_normal(3)
    >>> float(SlicedScoreMatching()(normal.model, normal.guide)(torch.ones(2, 3)).detach())
    -3.0
    """

    weighs_rows = True
    ignores_constants = True

    def __init__(self, directions: int = 1):
        checks.at_least(1, directions=directions)
        super().__init__()
        self.directions = directions

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = _continuous(model, guide, batch, self)
        with torch.enable_grad():
            x, score = _score(site["fn"], site["value"])
            curvature: Tensor | float = 0.0
            for _ in range(self.directions):
                v = 1 - 2 * (torch.rand_like(x) < 0.5).to(x.dtype)
                curvature = curvature + _rows(v * _derivative((score * v).sum(), x))
            each = curvature / self.directions + _rows(score.square()) / 2
        return _total(each, site)


class DenoisingScoreMatching(Objective):
    r"""Score matching of data with normal noise: one derivative of ``log_prob``.

    .. math:: \tfrac12 \sum_b \big|\sigma_b \nabla \log p^*(x_b + \sigma_b \epsilon_b) + \epsilon_b\big|^2,
              \qquad \epsilon_b \sim N(0, I)

    Its minimum is the distribution of the data with that noise, so that :math:`\sigma` should be
    small beside their details. With several levels each row takes one at random: the distribution
    is then fitted to the mixture, which has a score far from the data, too.

    Parameters
    ----------
    scale : float or sequence of float
        Levels :math:`\sigma > 0`, in units of x.

    References
    ----------
    Vincent (2011), A connection between score matching and denoising autoencoders,
    https://doi.org/10.1162/NECO_a_00142; Song, Ermon (2019), https://arxiv.org/abs/1907.05600 (the
    weighting by :math:`\sigma^2`)

    >>> from probgen.core.module import standard_normal
    >>> normal = standard_normal(3)
    >>> DenoisingScoreMatching(0.1)(normal.model, normal.guide)(torch.ones(2, 3)).shape
    torch.Size([])
    """

    weighs_rows = True
    ignores_constants = True

    levels: Tensor

    def __init__(self, scale: float | Sequence[float]):
        checks.scales(scale=scale)
        super().__init__()
        levels = torch.as_tensor(scale, dtype=torch.get_default_dtype()).reshape(-1)
        if not len(levels) or not (levels > 0).all():
            raise ValueError(f"expected noise of scale > 0, got {scale}")
        self.register_buffer("levels", levels)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = _continuous(model, guide, batch, self)
        x = site["value"].detach()
        sigma = self._levels(x)
        noise = torch.randn_like(x)
        with torch.enable_grad():
            _, score = _score(site["fn"], x + sigma * noise)
            each = _rows((sigma * score + noise).square()) / 2
        return _total(each, site)

    def _levels(self, x: Tensor) -> Tensor:
        """A level for each row, that broadcasts to x."""
        which = (torch.rand(len(x), device=x.device) * len(self.levels)).long()
        return self.levels[which].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
