"""A family for data that are brought into its range by fixed or learned invertible maps."""

from __future__ import annotations

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import common_size, distribution_given
from probgen.core.module import DistributionModule
from probgen.distributions.flows.flow import Pushforward


class Transformed(DistributionModule):
    r"""Data x whose image under invertible maps follows a family.

    :math:`f_L(\dots f_1(x)) \sim p_0(\cdot \mid c)`.

    .. math:: \log p(x \mid c) = \log p_0(z \mid c) + \log\left|\det \frac{\partial z}{\partial x}\right|,
              \qquad z = f_L(\dots f_1(x))

    The way to model data in their own units: scores are densities of x, with the determinant
    counted. Any layers do, those of flows included: modules whose ``forward(context)`` is a
    transform.

    Parameters
    ----------
    family : DistributionModule
        The distribution of z.
    *layers : nn.Module
        The maps, first first: ``Gaussianized.of(rows, ...)``, ``CouplingLayer(...)``, ....

    >>> import pyro.distributions as dist, torch
    >>> from probgen.core.module import Fixed
    >>> from probgen.distributions.flows.marginal_transform import Gaussianized
    >>> histogram = Gaussianized(torch.tensor([[3.0, 1.0]]), 0.0, 2.0)
    >>> Transformed(Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0), histogram)().log_prob(torch.tensor([0.5])).exp()
    tensor(0.7500)
    """

    prepares = frozenset({"scale", "tails", "bounds"})
    context_hint = "build its parts with context={size}"

    def __init__(self, family: DistributionModule, *layers: nn.Module):
        checks.generative(family=family)
        checks.instances(nn.Module, layers=layers)
        super().__init__()
        self.family = family
        self.layers = nn.ModuleList(layers)
        self.context_ndim = family.context_ndim

    @property
    def context_size(self) -> int | None:
        """What the family declares, or one of the maps."""
        return common_size([self.family, *self.layers])

    def forward(self, context: Tensor | None = None) -> Pushforward:
        return Pushforward.through(
            distribution_given(self.family, context), [layer(context) for layer in self.layers]
        )
