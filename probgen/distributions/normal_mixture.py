"""A mixture of multivariate normals whose density costs what the E-step of EM costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.missing import check_event, values_are_known
from probgen.distributions.mixture_moments import log_marginal
from probgen.distributions.mixture_steps import MixtureParameters


class NormalMixture(dist.MixtureSameFamily):
    r"""Mixture of K multivariate normals; missing entries (NaN) are integrated out.

    .. math:: \log p(x) = \log \sum_k w_k\, N(x; \mu_k, \Sigma_k)

    Where no gradient is asked for, densities are two matrix products over blocks of rows
    (:func:`probgen.distributions.mixture_moments.log_marginal`), else the general formula.

    Parameters
    ----------
    weights : Distribution
        A categorical distribution over K components.
    components : Distribution
        Batch shape ``(K,)``, event shape ``(D,)``.
    parameters : callable
        Gives the same as :class:`MixtureParameters`; called where it is needed.

    >>> from probgen.models.mixture import GaussianMixture
    >>> gen, x = GaussianMixture(3, 2), torch.randn(5, 2)
    >>> with torch.no_grad():
    ...     torch.allclose(gen().log_prob(x), gen().expand((5,)).log_prob(x))
    True
    """

    def __init__(
        self,
        weights: dist.Categorical,
        components: Any,
        parameters: Callable[[], MixtureParameters],
    ):
        # components know NaN, so the mixture itself checks no values
        super().__init__(weights, components, validate_args=False)
        self._parameters = parameters

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NormalMixture:
        """The same for every place of a batch."""
        new: Any = self._get_checked_instance(NormalMixture, _instance)
        new._parameters = self._parameters
        return super().expand(torch.Size(batch_shape), new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats: ``(..., D) -> (...)``."""
        check_event(value, self.event_shape)
        found = self._without_gradient(value) if values_are_known() else None
        return super().log_prob(value) if found is None else found

    def _without_gradient(self, value: Tensor) -> Tensor | None:
        """The density by matrix products, where that is all that is wanted, and finite."""
        mixture = self._parameters()
        tensors = (value, *mixture[:2], *mixture.covariance.parameters())
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return None
        if not value.numel() or len({tensor.dtype for tensor in tensors}) > 1:
            return None
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        found = log_marginal(value.reshape(-1, value.shape[-1]), mixture)
        if not found.isfinite().all():  # differences of infinite terms
            return None
        return found.reshape(value.shape[:-1]).expand(batch)
