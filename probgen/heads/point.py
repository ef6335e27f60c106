"""A point mass at what a network gives: deterministic encoders."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.heads.base import raw_values


class Point(DistributionModule):
    r"""Point mass at the output of a network, :math:`p(x \mid c) = \delta(x - \text{net}(c))`.

    As the encoder of a :class:`VAE <probgen.VAE>` it makes an autoencoder whose codes are no draws.
    Its ELBO with a standard normal prior is the objective of a regularized autoencoder: the
    reconstruction and half the squared norm of the code (``ELBO(beta=...)`` weights the latter).
    That is no bound of a likelihood, and a density that is fitted to the codes afterwards is what
    one samples from; ``MatchedLatents`` is the other objective for such an encoder.

    Parameters
    ----------
    net : callable or None
        Network from the context to the point; ``None``: the context itself.
    event_ndim : int
        1 for vectors, 3 for images.
    context_ndim : int
        Number of event dims of the context that ``net`` takes: 1 for vectors, 3 for images.

    Raises
    ------
    ValueError
        If the network's output does not have the batch dims of the context.

    References
    ----------
    Ghosh, Sajjadi, Vergari, Black, Schölkopf (2020), From variational to deterministic autoencoders,
    https://arxiv.org/abs/1903.12436

    >>> import torch
    >>> Point(nn.Linear(5, 2))(torch.zeros(7, 5)).sample().shape
    torch.Size([7, 2])
    """

    unknown_contexts = False
    context_net = "net"

    def __init__(self, net: nn.Module | None = None, *, event_ndim: int = 1, context_ndim: int = 1):
        checks.network(**checks.given(net=net))
        checks.at_least(1, event_ndim=event_ndim)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = nn.Identity() if net is None else net
        self.event_ndim = event_ndim
        self.context_ndim = event_ndim if net is None else context_ndim

    def width(self, dims: int) -> int:
        """Number of values that the network must give for ``dims`` variables."""
        return dims

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        values = raw_values(self, context)
        return dist.Delta(values, event_dim=self.event_ndim, validate_args=False)
