"""Coupling flows: one half of the variables transformed given the other half."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.contexts import distribution_given
from probgen.core.kinds import density_kind
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.flows.autoregressive_transform import CouplingTransform
from probgen.distributions.flows.bijection import ComposedTransform, transforms
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.univariate import Affine, Spline, Univariate
from probgen.nn import MLP


class CouplingLayer(Recorded, nn.Module):
    """One layer: a network of the first half gives the functions of the second half.

    In a given order of variables.

    ``context (*batch, C) -> Transform`` of ``(*batch, D)``. The halves change places: two layers
    move everything.

    Parameters
    ----------
    dims : int
        Number D of variables, 2 or more.
    univariate : Univariate
        The increasing functions.
    hidden : sequence of int
        Sizes of the hidden layers of the network.
    context : int
        Width C of the context.
    order : Tensor, optional
        ``(D,)``: variables are brought into this order first.
    network : keyword arguments
        Of :class:`MLP`: ``activation``, ``dropout``, ``norm``, ``residual``.
    """

    order: Tensor | None

    def __init__(
        self,
        dims: int,
        univariate: Univariate,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        order: Tensor | None = None,
        **network: Any,
    ):
        super().__init__()
        if dims < 2:
            raise ValueError(
                f"expected dims >= 2, got {dims}: one variable has no other half; use "
                "AutoregressiveFlow"
            )
        self.first = (dims + 1) // 2
        self.univariate = univariate
        self.net = MLP(
            self.first + context, hidden, (dims - self.first) * univariate.width, **network
        )
        self.context_size = context
        self.register_buffer("order", order)
        with torch.no_grad():  # start close to the identity
            self.net.last.weight.mul_(0.01)
            self.net.last.bias.mul_(0.01)

    def forward(self, context: Tensor | None = None) -> Transform:
        coupling = CouplingTransform(
            partial(self._elements, context), self.first, density_kind(self.univariate)
        )
        if self.order is None:
            return coupling
        return ComposedTransform(transforms.PermutationTransform(self.order), coupling)

    def _elements(self, context: Any, kept: Tensor) -> Transform:
        seen = kept.clamp(-10, 10)  # rows far out in the tails do not meet extreme parameters
        if self.context_size:
            checks.context(context, self.context_size)
            lead = torch.broadcast_shapes(seen.shape[:-1], context.shape[:-1])
            seen = torch.cat((seen.expand(*lead, -1), context.expand(*lead, -1)), -1)
        return self.univariate(self.net(seen).unflatten(-1, (-1, self.univariate.width)))


class CouplingFlow(DistributionModule):
    r"""Normalizing flow of coupling layers.

    Scoring and sampling both take one pass per layer, in parallel.

    .. math:: \log p(x) = \log p_0(z) + \sum_l \sum_d \log f'(x^l_{2d};\, r^l_d(x^l_1, c)), \qquad
              x^{l+1} = (f(x^l_2;\, r^l(x^l_1, c)),\, x^l_1),\quad x^1 = x,\ x^{L+1} = z

    The order of the variables is shuffled after every second layer, once and for all. Missing
    values are refused.

    Parameters
    ----------
    dims : int
        Number D of variables, 2 or more.
    univariate : Univariate
        The increasing functions f: ``Affine()``, ``Spline(bins=8)``, ... Modules are copied for
        every layer.
    layers : int
        Number L of layers.
    hidden : sequence of int
        Sizes of the hidden layers of each network.
    context : int
        Width of the context; 0 for none.
    base : DistributionModule, optional
        Distribution of z, events ``(D,)``; default: standard normal.
    activation, dropout, norm, residual
        Of the networks, see :class:`MLP`.

    References
    ----------
    Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP,
    https://arxiv.org/abs/1605.08803

    >>> flow = CouplingFlow(3, Spline(bins=4), context=2)
    >>> flow(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape, flow(torch.zeros(5, 2)).sample().shape
    (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        dims: int,
        univariate: Univariate,
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: DistributionModule | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
        residual: bool = False,
    ):
        checks.at_least(1, dims=dims, layers=layers)
        checks.function("pass Affine() or Spline()", univariate=univariate)
        checks.sizes(hidden=hidden)
        checks.at_least(0, context=context)
        checks.generative(**checks.given(base=base))
        checks.factory(activation=activation, **checks.given(norm=norm))
        checks.within("[0, 1)", dropout=dropout)
        checks.flag(residual=residual)
        super().__init__()
        self.context_size = context
        self.base = standard_normal(dims) if base is None else base
        network = {"activation": activation, "dropout": dropout, "norm": norm, "residual": residual}
        orders = [
            torch.randperm(dims) if layer and layer % 2 == 0 else None for layer in range(layers)
        ]
        self.layers = nn.ModuleList(
            CouplingLayer(dims, copy.deepcopy(univariate), hidden, context, order, **network)
            for order in orders
        )

    def forward(self, context: Tensor | None = None) -> Pushforward:
        return Pushforward.through(
            distribution_given(self.base, context), [layer(context) for layer in self.layers]
        )


class RealNVP(CouplingFlow):
    """Real-valued non-volume-preserving flow.

    Affine coupling layers (Dinh, Sohl-Dickstein, Bengio 2017).

    >>> RealNVP(3)().log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, dims: int, layers: int = 8, **options: Any):
        super().__init__(dims, Affine(), layers, **options)


class CouplingNSF(CouplingFlow):
    """Neural spline flow of coupling layers (Durkan, Bekasov, Murray, Papamakarios 2019).

    https://arxiv.org/abs/1906.04032. Standardize the data: outside of [-``bound``, ``bound``] a
    layer leaves them as they are.

    >>> CouplingNSF(3, bins=4)().log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(
        self, dims: int, layers: int = 6, bins: int = 8, bound: float = 5.0, **options: Any
    ):
        super().__init__(dims, Spline(bins, bound), layers, **options)
