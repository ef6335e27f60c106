"""Pseudo-likelihood: what trains Markov random fields whose constant cannot be computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.objectives.base import Objective, distribution_of_x


@runtime_checkable
class HasPseudoLikelihood(Protocol):
    """A distribution that knows the conditional distributions of its variables given all others."""

    def pseudo_log_prob(self, x: Tensor) -> Tensor:
        """The sum of their log masses: ``(*batch, *event) -> (*batch,)``."""


class PseudoLikelihood(Objective):
    r"""The negative log pseudo-likelihood of the site ``"x"``.

    Its minimum is consistent, and needs no constant.

    .. math:: -\sum_b \sum_i \log p(x_{bi} \mid x_{b,-i})

    Raises
    ------
    TypeError
        At the call, if the distribution of x has no ``pseudo_log_prob``.

    References
    ----------
    Besag (1975), Statistical analysis of non-lattice data, https://doi.org/10.2307/2987782

    >>> import torch
    >>> from probgen.models.markov_random_field import MarkovRandomField, grid_edges
    >>> field = MarkovRandomField((4, 4), grid_edges(4, 4))
    >>> PseudoLikelihood()(field.model, field.guide)(torch.ones(1, 4, 4))  # 16 log 2
    tensor(11.0904, grad_fn=<NegBackward0>)
    """

    weighs_rows = True
    ignores_constants = True

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(
            model, guide, batch, HasPseudoLikelihood, self, "use ELBO, or another objective"
        )
        return -scale_and_mask(
            site["fn"].pseudo_log_prob(site["value"]), site["scale"], site["mask"]
        ).sum()
