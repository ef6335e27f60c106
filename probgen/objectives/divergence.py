"""What a site adds to an evidence lower bound.

A divergence in closed form, or estimated on its draw.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributions as td
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor

from probgen.core.bare import bare_pair
from probgen.core.recording import log_prob, score_function
from probgen.core.sums import scaled

# A Delta's divergence leaves its log density out, a mask's need not be a tensor, transforms are
# compared by value.
_SAMPLED = (Delta, MaskedDistribution, td.TransformedDistribution)


class Cost(NamedTuple):
    """What one site adds to the loss, entry by entry.

    ``(*batch, *dims)``, for a divergence that splits into dims.
    """

    site: dict[str, Any]
    entries: Tensor
    size: int = 1  # latent dims in one entry
    closed: bool = False
    score: Tensor | None = None
    weight: float | Tensor = 1.0
    charged: Tensor | None = None
    spent: Tensor | None = None  # the divergence itself, where another number is charged

    @property
    def dims(self) -> int:
        return self.entries.ndim - len(self.site["fn"].batch_shape)

    def sum(self) -> Tensor:
        """All entries together, before the weight."""
        total = self.entries.sum()
        return total if self.charged is None else total + self.charged

    def caused(self) -> Tensor:
        return scale_and_mask(sum_rightmost(self.entries, self.dims), self.weight).detach()


def site_divergence(site: dict[str, Any], prior: dict[str, Any] | None, ordered: bool) -> Cost:
    """KL(q || p) of a guide site.

    In closed form, or log q - log p of its draw, log q alone for a helper variable.
    """
    distribution = site["fn"]
    closed = closed_form(site, prior) if ordered and prior is not None else None
    if closed is not None:
        return Cost(site, *closed, closed=True, score=score_function(site))
    parts = distribution.score_parts(site["value"], *site["args"], **site["kwargs"])
    log_q = parts.log_prob
    path = parts.entropy_term
    score = parts.score_function
    if path is not log_q:  # the expected gradient of what is left out is zero
        log_q = log_q.detach() + (path - path.detach() if torch.is_tensor(path) else path)
    entries = scaled(log_q, site["scale"], site["mask"])
    entries = entries if prior is None else entries - log_prob(prior)
    return Cost(
        site,
        entries,
        distribution.event_shape.numel(),
        score=score if torch.is_tensor(score) else None,
    )


def closed_form(site: dict[str, Any], prior: dict[str, Any]) -> tuple[Tensor, int] | None:
    """KL(q || p) for every entry and, where it splits so, every dim.

    And the latent dims that one number covers.
    """
    q = site["fn"]
    p = prior["fn"]
    scale = site["scale"]
    mask = site["mask"]
    alike = q.batch_shape == p.batch_shape and q.event_shape == p.event_shape
    if not alike or mask is not prior["mask"] or not _same(scale, prior["scale"]):
        return None
    batch = len(q.batch_shape)
    q, p, shape = bare_pair(q, p)
    if isinstance(q, _SAMPLED) and not isinstance(q, td.LogNormal):
        return None
    try:
        if type(q.support) is not type(p.support) and p.support is not td.constraints.real:
            # a guide that may leave the support: infinite in closed form, finite on the draws that
            # stay
            return None
        divergence = td.kl_divergence(q, p).expand(shape)
    except NotImplementedError:
        return None
    split = len(shape) - batch
    return (
        scaled(divergence, _by_dim(scale, split), _by_dim(mask, split)),
        q.event_shape.numel(),
    )


def _by_dim(factor: Any, split: int) -> Any:
    """A factor of entries, beside entries that are split into dims."""
    return factor.reshape(factor.shape + (1,) * split) if torch.is_tensor(factor) else factor


def _same(a: float | Tensor, b: float | Tensor) -> bool:
    return a is b or (not torch.is_tensor(a) and not torch.is_tensor(b) and a == b)
