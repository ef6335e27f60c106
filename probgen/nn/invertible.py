"""Invertible layers of images: each gives ``y`` and ``log |det dy/dx|``, and goes back exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from probgen.core import checks
from probgen.core.construction import Recorded

Shape = tuple[int, int, int]
NetworkMaker = Callable[[Shape, int], nn.Module]


class CouplingNet(Recorded, nn.Module):
    """Convolutions with a learned offset at every position.

    ``(*batch, C, H, W) -> (*batch, outputs, H, W)``.

    The last one starts at 0, and so does the output.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the input.
    outputs : int
        Channels of the output.
    hidden : int
        Channels in between.
    dropout : float
        Probability with which hidden channels are dropped in training.

    >>> CouplingNet((2, 4, 4), 6)(torch.ones(5, 7, 2, 4, 4)).shape
    torch.Size([5, 7, 6, 4, 4])
    """

    def __init__(self, shape: Shape, outputs: int, hidden: int = 64, dropout: float = 0.0):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.at_least(1, outputs=outputs, hidden=hidden)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.first = nn.Conv2d(shape[0], hidden, 3, padding=1)
        self.offset = nn.Parameter(torch.zeros(hidden, *shape[1:]))
        self.between = nn.Sequential(
            nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.SiLU(), nn.Dropout2d(dropout)
        )
        self.last = nn.Conv2d(hidden, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, *x.shape[-3:])
        out = self.last(self.between(self.first(rows) + self.offset))
        return out.view(*x.shape[:-3], *out.shape[1:])


class ActNorm(Recorded, nn.Module):
    r"""Scale and shift of every channel, :math:`y_c = e^{s_c} (x_c + b_c)`.

    The identity until it is initialized.

    >>> norm, x = ActNorm(3), 5 + 2 * torch.randn(100, 3, 4, 4)
    >>> norm.initialize(x)
    >>> torch.allclose(norm(x)[0].std((0, 2, 3)), torch.ones(3))
    True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = (x + self.shift[:, None, None]) * self.log_scale.exp()[:, None, None]
        return y, (self.log_scale.sum() * x.shape[-1] * x.shape[-2]).expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y * (-self.log_scale).exp()[:, None, None] - self.shift[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets mean 0 and standard deviation 1 of every channel over these rows.

        Constant channels are not scaled.
        """
        scale = x.std((0, 2, 3))
        self.shift.copy_(-x.mean((0, 2, 3)))
        self.log_scale.copy_(-torch.where(scale > 0, scale, 1.0).log())


class InvertibleConv(Recorded, nn.Module):
    r"""Linear map of the channels of a pixel, :math:`W = P L (U + \operatorname{diag}(\pm e^s))`.

    Starts as a rotation.

    P is a fixed permutation, L and U are triangular without their diagonals (L has ones there), so
    that :math:`\log|\det W| = \sum_c s_c` costs nothing and the inverse is two triangular
    solutions.

    >>> layer, x = InvertibleConv(4), torch.randn(2, 4, 3, 3)
    >>> torch.allclose(layer.inverse(layer(x)[0]), x, atol=1e-5)
    True
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diag().sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_scale = nn.Parameter(upper.diag().abs().log())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        weight = self.permutation @ lower @ upper
        return conv2d(x, weight[..., None, None]), (
            self.log_scale.sum() * x.shape[-1] * x.shape[-2]
        ).expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        lower, upper = self._factors()
        columns = self.permutation.mT @ y.flatten(2)
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, columns, upper=True).view_as(y)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        return lower, self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())


class AffineCoupling(Recorded, nn.Module):
    r"""The second half of the channels, scaled and shifted by functions of the first.

    Starts as the identity.

    .. math:: y_1 = x_1, \qquad y_2 = e^{s(x_1, c)} x_2 + t(x_1, c), \qquad |s| < 2

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width.
    network : callable
        ``network(shape, outputs)`` makes the network of s and t; the default's last layer starts at
        0.
    context : int
        Channels of the context.
    """

    def __init__(self, shape: Shape, network: NetworkMaker = CouplingNet, context: int = 0):
        super().__init__()
        self.first = shape[0] // 2
        self.network = network((self.first + context, *shape[1:]), 2 * (shape[0] - self.first))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first = x[:, : self.first]
        second = x[:, self.first :]
        log_scale, shift = self._affine(first, context)
        return torch.cat((first, second * log_scale.exp() + shift), 1), log_scale.flatten(1).sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        first = y[:, : self.first]
        second = y[:, self.first :]
        log_scale, shift = self._affine(first, context)
        return torch.cat((first, (second - shift) * (-log_scale).exp()), 1)

    def _affine(self, first: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(with_channels(first, context)).chunk(2, 1)
        return 2 * torch.tanh(raw / 2), shift


class IntegerCoupling(Recorded, nn.Module):
    r"""The second half of integer channels, shifted by a rounded function of the first.

    A bijection of integers.

    .. math:: y_1 = x_1, \qquad y_2 = x_2 + \operatorname{round}\bigl(h\, t((x_1 - m) / h, c)\bigr)

    Gradients pass the rounding as if it were the identity (straight-through, a biased gradient of
    an exact mass). The inverse is exact as long as the network gives the same numbers again; next
    to halves, arithmetic of another precision, device or batch size may round to the other side.

    Parameters
    ----------
    shape, network, context
        As in :class:`AffineCoupling`.
    center, half : float
        Middle m and half range h of the integers, the units of the network.
    """

    def __init__(
        self,
        shape: Shape,
        network: NetworkMaker = CouplingNet,
        context: int = 0,
        center: float = 0.0,
        half: float = 1.0,
    ):
        super().__init__()
        self.first = shape[0] // 2
        self.center = center
        self.half_range = half
        self.network = network((self.first + context, *shape[1:]), shape[0] - self.first)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first = x[:, : self.first]
        second = x[:, self.first :]
        return torch.cat((first, second + self._shift(first, context)), 1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        first = y[:, : self.first]
        second = y[:, self.first :]
        return torch.cat((first, second - self._shift(first, context)), 1)

    def _shift(self, first: Tensor, context: Tensor | None) -> Tensor:
        shift = self.half_range * self.network(
            with_channels((first - self.center) / self.half_range, context)
        )
        return shift.round().detach() + (
            shift - shift.detach()
        )  # in this order the value is an integer exactly


class Shuffle(Recorded, nn.Module):
    """A fixed random permutation of the channels."""

    order: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y[:, self.order.argsort()]


def with_channels(x: Tensor, context: Tensor | None) -> Tensor:
    """Channels and those of a context ``(N, K, H or 1, W or 1)``, side by side."""
    return x if context is None else torch.cat((x, context.expand(-1, -1, *x.shape[2:])), 1)
