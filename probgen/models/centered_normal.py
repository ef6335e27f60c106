"""Normal points without a place: the base of flows of molecules and other clouds of points."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.module import DistributionModule
from probgen.distributions.centered import CenteredPoints


class CenteredNormal(DistributionModule):
    r"""N normal points of D dimensions whose mean is taken away, with nothing to learn.

    .. math:: \log p(x) = -\frac{1}{2 \sigma^2} \sum_n |x_n - \bar x|^2 - \frac{(N - 1) D}{2} \log(2 \pi \sigma^2)

    The base of a flow whose density is the same however points are moved, turned or numbered::

        FlowMatching(EGNN(dims=3), (5, 3), base=CenteredNormal(5, 3))

    as a velocity that turns and moves along (:class:`EGNN <probgen.nn.EGNN>`) takes such a base to
    such a distribution. Densities are those of points moved to their mean, with respect to the
    volume of the (N - 1) D dimensions that they then have; draws are centered.

    Parameters
    ----------
    points, dims : int
        N, at least 2, and D.
    scale : float
        :math:`\sigma`.

    Raises
    ------
    ValueError
        If there are too few points or dims, or the scale is not positive.

    References
    ----------
    Köhler, Klein, Noé (2020), Equivariant flows: exact likelihood generative learning for symmetric
    densities, https://arxiv.org/abs/2006.02425; Garcia Satorras, Hoogeboom, Fuchs, Posner, Welling
    (2021), E(n) equivariant normalizing flows, https://arxiv.org/abs/2105.09016

    >>> x = torch.randn(6, 4, 2)
    >>> base = CenteredNormal(4, 2)
    >>> bool(torch.allclose(base().log_prob(x), base().log_prob(x + 3.0), atol=1e-4))
    True
    """

    context_size = 0
    context_hint = WITHOUT

    scale: Tensor

    def __init__(self, points: int, dims: int, scale: float = 1.0):
        checks.at_least(2, points=points)
        checks.at_least(1, dims=dims)
        checks.positive(scale=scale)
        super().__init__()
        self.shape = (points, dims)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, context: Tensor | None = None) -> CenteredPoints:
        return CenteredPoints(self.scale, self.shape)
