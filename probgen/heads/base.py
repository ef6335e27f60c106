"""What all heads share.

Raw parameters from a network, with errors that say which width it must have.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.foreign import row_by_row
from probgen.core.missing import MissingAware
from probgen.core.module import DistributionModule


class Head(DistributionModule):
    r"""A network's raw parameters as a distribution of independent variables.

    A subclass writes ``__init__`` and ``distribution``.

    .. math:: p(x \mid c) = \prod_d p(x_d;\, r_{1d}, \dots, r_{Rd}), \qquad r = \text{net}(c)

    The network gives R raw values per variable, stacked along the first event dim: ``(*batch, R *
    D)`` for vectors, ``(*batch, R * C, H, W)`` for images; the first D (or C) entries are the first
    parameter of every variable.

    Parameters
    ----------
    net : callable or None
        Network from the context to the raw values; ``None``: the context itself holds them.
        Convolutions, batch norms and networks from elsewhere get all leading dims as one.
    raw : tuple of str
        Names of the R raw parameters of one variable.
    event_ndim : int
        1 for vectors, 3 for images.
    context_ndim : int
        Number of event dims of the context that ``net`` takes: 1 for vectors, 3 for images.

    Raises
    ------
    ValueError
        If the network's output does not divide into R parameters, or does not have the batch dims
        of the context.
    """

    unknown_contexts = False
    context_net = "net"

    def __init__(
        self,
        net: nn.Module | None,
        raw: tuple[str, ...],
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.network(**checks.given(net=net))
        checks.at_least(1, event_ndim=event_ndim)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = nn.Identity() if net is None else net
        self.raw = raw
        self.event_ndim = event_ndim
        self.context_ndim = event_ndim if net is None else context_ndim

    @abstractmethod
    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        """The distribution of single variables, of batch shape ``(*batch, *event)``.

        Given raw parameters ``(R, *batch, *event)``.
        """

    def width(self, dims: int) -> int:
        """Number of values that the network must give for ``dims`` variables.

        For images: channels.
        """
        return len(self.raw) * dims

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        values = raw_values(self, context)
        dim = -self.event_ndim
        if values.shape[dim] % len(self.raw):
            raise ValueError(
                f"expected the network of {type(self).__name__} to give {len(self.raw)} values per "
                "variable "
                f"({_listed(self.raw)}) along dim {dim}, got {values.shape[dim]} in all; set its "
                "outputs to "
                "head.width(number of variables)"
            )
        if len(self.raw) == 1:
            return MissingAware(self.distribution(values[None]), self.event_ndim)
        raw = values.unflatten(dim, (len(self.raw), -1)).movedim(dim - 1, 0)
        return MissingAware(self.distribution(raw), self.event_ndim)


class HasNetwork(Protocol):
    """What :func:`raw_values` reads of a head."""

    net: nn.Module
    event_ndim: int
    context_ndim: int


def raw_values(head: HasNetwork, context: Tensor | None) -> Tensor:
    """The output of a head's network.

    Raises ``ValueError`` unless it has the batch dims of the context.
    """
    name = type(head).__name__
    values = (
        head.net(None)
        if context is None
        else row_by_row(head.net, context, ndims=[head.context_ndim])
    )
    if not torch.is_tensor(values):
        raise ValueError(
            f"expected a context for {name}, got {context}; give one, or use the network "
            "probgen.nn.Constant(head.width(D))"
        )
    if context is None:
        return values
    batch = context.shape[: max(context.ndim - head.context_ndim, 0)]
    if values.ndim < head.event_ndim or values.shape[: values.ndim - head.event_ndim] != batch:
        raise ValueError(
            f"expected the network of {name} to give {tuple(batch)} + {head.event_ndim} event dims "
            "for a context "
            f"of shape {tuple(context.shape)}, got {tuple(values.shape)}; keep all leading dims in "
            "the network, "
            f"or set event_ndim (now {head.event_ndim}) and context_ndim (now {head.context_ndim})"
        )
    return values


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) < 5 else (*names[:2], "...", names[-1]))


class Positive(Recorded, nn.Module):
    """A positive value shared by all rows.

    Fixed, or learned when it is given as an ``nn.Parameter``.

    A learned value is kept as its logarithm, in a new parameter.

    >>> Positive(nn.Parameter(torch.tensor(1.0)))()
    tensor(1., grad_fn=<ExpBackward0>)
    """

    def __init__(self, value: float | Tensor):
        checks.numeric(value=value)
        super().__init__()
        log = torch.as_tensor(value).detach().log()
        if not log.isfinite().all():
            raise ValueError(
                f"expected positive values, got {value}; give the value itself, not its logarithm"
            )
        if isinstance(value, nn.Parameter):
            self.log = nn.Parameter(log)
        else:
            self.register_buffer("log", log)

    def forward(self) -> Tensor:
        return self.log.exp()
