"""Networks of points in space whose output turns and moves along with the points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.conditioning import Conditioning, check_context_argument
from probgen.nn.mlp import MLP


class EGNN(Recorded, nn.Module):
    r"""E(n)-equivariant graph network: velocities of points, ``(*batch, N, D) -> (*batch, N, D)``.

    .. math:: m_{ij} = \varphi_m(h_i, h_j, |x_i - x_j|^2), \quad
              x_i \leftarrow x_i + \frac{1}{N - 1} \sum_{j \ne i}
              \frac{x_i - x_j}{|x_i - x_j| + 1}\, \varphi_x(m_{ij}), \quad
              h_i \leftarrow h_i + \varphi_h\Big(h_i, \sum_{j \ne i} \varphi_a(m_{ij})\, m_{ij}\Big)

    in each layer, all points being neighbors, with features :math:`h_i` that begin with the time,
    the context and the type of the point. The output is how far the points were moved, less the mean
    of that: it turns with the points, is the same wherever they lie, and is numbered as they are
    (points of one type). Called as ``net(x, t, context=None)``, as :class:`FlowMatching
    <probgen.FlowMatching>` calls its network.

    Parameters
    ----------
    dims : int
        Number D of dimensions.
    width : int
        Number of features of a point, and of a message.
    layers : int
        Number of layers.
    types : sequence of int, optional
        Type of each point, 0, 1, ..., such as its chemical element; default: all of one type, and as
        many points as come.
    context : int or nn.Module
        Length of the context vectors, or an encoder of texts, as for :class:`TimeMLP
        <probgen.nn.TimeMLP>`.
    time : nn.Module, optional
        Features of the time; default: :class:`FourierTime <probgen.nn.conditioning.FourierTime>`.

    Raises
    ------
    ValueError
        If x is not ``(*batch, N, dims)`` with two points or more, or not one for each of ``types``.

    References
    ----------
    Satorras, Hoogeboom, Welling (2021), E(n) equivariant graph neural networks,
    https://arxiv.org/abs/2102.09844

    >>> net = EGNN(3, width=16, layers=2)
    >>> x, turn = torch.randn(5, 4, 3), torch.linalg.qr(torch.randn(3, 3))[0]
    >>> bool(torch.allclose(net(x @ turn + 1.0, torch.ones(5)), net(x, torch.ones(5)) @ turn, atol=1e-5))
    True
    """

    kinds: Tensor | None

    def __init__(
        self,
        dims: int = 3,
        width: int = 32,
        layers: int = 3,
        *,
        types: Sequence[int] | None = None,
        context: int | nn.Module = 0,
        time: nn.Module | None = None,
    ):
        checks.at_least(1, dims=dims, width=width, layers=layers)
        if types is not None:
            checks.sizes(0, 2, types=types)
        check_context_argument(context)
        checks.network(**checks.given(time=time))
        super().__init__()
        self.dims = dims
        self.conditioning = Conditioning(width, context, time)
        count = 1 if types is None else max(types) + 1
        self.types = nn.Parameter(torch.randn(count, width))
        self.register_buffer("kinds", None if types is None else torch.tensor([*types]))
        self.layers = nn.ModuleList(_Layer(width, layer + 1 == layers) for layer in range(layers))

    @property
    def context_size(self) -> int:
        """Length of the context vectors; of texts, the number of their tokens."""
        return self.conditioning.context

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return self.conditioning.encoder

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        self._check(x)
        kinds = x.new_zeros(x.shape[-2], dtype=torch.long) if self.kinds is None else self.kinds
        h = self.types[kinds] + self.conditioning(t, context).unsqueeze(-2)
        h = h.expand(*x.shape[:-1], h.shape[-1])
        place = x
        for layer in self.layers:
            place, h = layer(place, h)
        moved = place - x
        return moved - moved.mean(-2, keepdim=True)

    def _check(self, x: Tensor) -> None:
        points = None if self.kinds is None else len(self.kinds)
        fits = x.ndim >= 2 and x.shape[-1] == self.dims and x.shape[-2] >= 2
        if not fits or points not in (None, x.shape[-2]):
            raise ValueError(
                f"expected x of shape (*batch, {points or 'N'}, {self.dims}), two points or more, "
                f"got {tuple(x.shape)}; build the EGNN for the points that x has"
            )


class _Layer(nn.Module):
    """Messages between all points, which move them and, but for the last, what is known of them."""

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.message = MLP(2 * width + 1, [width], width, nn.SiLU)
        self.move = MLP(width, [width], 1, nn.SiLU)
        self.gate = None if last else nn.Linear(width, 1)
        self.change = None if last else MLP(2 * width, [width], width, nn.SiLU)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        count = x.shape[-2]
        apart = x.unsqueeze(-2) - x.unsqueeze(-3)
        squared = apart.square().sum(-1, keepdim=True)
        pair = (*h.shape[:-1], count, h.shape[-1])
        own, other = h.unsqueeze(-2).expand(pair), h.unsqueeze(-3).expand(pair)
        message = nn.functional.silu(self.message(torch.cat((own, other, squared), -1)))
        others = 1 - torch.eye(count, dtype=x.dtype, device=x.device).unsqueeze(-1)
        # the root has no slope at zero, where a point meets itself
        distance = (squared + 1e-8).sqrt()
        steps = others * apart / (distance + 1) * self.move(message)
        place = x + steps.sum(-2) / (count - 1)
        if self.gate is None or self.change is None:
            return place, h
        heard = (others * self.gate(message).sigmoid() * message).sum(-2)
        return place, h + self.change(torch.cat((h, heard), -1))
