"""Small building blocks: learned constants, fixed standardization, skip connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class Constant(Recorded, nn.Module):
    """A learned raw parameter that ignores the values of its context and takes its batch shape.

    ``(*batch, *context_event) -> (*batch, *shape)``; without context the batch shape is empty. It
    makes a head unconditional: ``Bernoulli(Constant(64))()`` is a learned product of Bernoulli
    distributions.

    Parameters
    ----------
    *shape : int
        Shape of the parameter.
    initial : float or Tensor
        Initial values, broadcast to ``shape``.
    context_ndim : int
        How many of the rightmost dims of a context are event dims.

    >>> constant = Constant(5)
    >>> constant().shape, constant(torch.zeros(7, 2)).shape
    (torch.Size([5]), torch.Size([7, 5]))
    """

    ignores_contexts = True

    def __init__(self, *shape: int, initial: float | Tensor = 0.0, context_ndim: int = 1):
        checks.sizes(0, shape=shape)
        checks.numeric(initial=initial)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.value = nn.Parameter(
            torch.as_tensor(initial, dtype=torch.get_default_dtype()).expand(shape).clone()
        )
        self.context_ndim = context_ndim

    def forward(self, context: Tensor | None = None) -> Tensor:
        if context is None:
            return self.value
        return self.value.expand(
            *context.shape[: context.ndim - self.context_ndim], *self.value.shape
        )


class Standardize(Recorded, nn.Module):
    """``(x - mean) / std`` with fixed numbers.

    In front of a network whose data are in other units, such as 0 to 255.

    >>> Standardize(127.5, 127.5)(torch.tensor([0.0, 255.0]))
    tensor([-1., 1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Tensor, std: float | Tensor):
        checks.numeric(mean=mean, std=std)
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("std", torch.as_tensor(std))
        if not (self.std > 0).all():
            raise ValueError(
                f"expected positive std, got {std}; drop constant variables, or give them a std of "
                "1"
            )

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class SkipConnection(Recorded, nn.Module):
    """What a network makes of its input, and a part of the input itself, side by side.

    ``(*batch, D) -> (*batch, F + kept)``: the last ``kept`` entries pass undamped, however weak the
    signal is that an untrained network carries.

    Parameters
    ----------
    net : nn.Module
        ``(*batch, D) -> (*batch, F)``.
    kept : int
        How many entries pass.

    Raises
    ------
    ValueError
        At the call, if the input has fewer entries.

    Source: Huang, Liu, van der Maaten, Weinberger (2017), Densely connected convolutional networks,
    https://arxiv.org/abs/1608.06993 (concatenation in place of a sum)

    >>> SkipConnection(nn.Linear(3, 4), kept=2)(torch.tensor([[1.0, 2.0, 3.0]]))[:, 4:]
    tensor([[2., 3.]], grad_fn=...)
    """

    def __init__(self, net: nn.Module, *, kept: int):
        checks.network(net=net)
        checks.at_least(1, kept=kept)
        super().__init__()
        self.net = net
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < self.kept:
            raise ValueError(
                f"expected {self.kept} entries or more, got {tuple(x.shape)}; keep fewer: "
                f"kept={x.shape[-1]}"
            )
        return torch.cat((self.net(x), x[..., x.shape[-1] - self.kept :]), -1)
