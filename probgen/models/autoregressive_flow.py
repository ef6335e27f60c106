"""Autoregressive flows: every variable transformed given the variables before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.contexts import distribution_given
from probgen.core.kinds import density_kind
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.flows.array_steps import array_of, array_steps, only_values
from probgen.distributions.flows.autoregressive_transform import AutoregressiveTransform
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.univariate import (
    Affine,
    Bernstein,
    MonotonicIntegral,
    MonotonicNetwork,
    Spline,
    SumOfSquares,
    Univariate,
)
from probgen.distributions.orderings import check_orders
from probgen.nn.masked import Degrees, MaskedMLP

NEAR = 10.0  # size of variables beyond which a network sees no difference


class AutoregressiveLayer(Recorded, nn.Module):
    """One layer: a masked network gives the parameters of the univariate function of every variable.

    ``context (*batch, C) -> Transform`` of ``(*batch, D)``.

    Parameters
    ----------
    dims : int
        Number D of variables.
    univariate : Univariate
        The functions.
    inverse : bool
        Whether the transform or its inverse is the direction of one pass.
    hidden : sequence of int
        Sizes of the hidden layers of the network.
    context : int
        Width C of the context; 0 for none.
    order : Tensor, optional
        ``(D,)``: the variable that comes t-th; default 0, ..., D - 1.
    network : keyword arguments
        Of :class:`MaskedMLP`: ``activation``, ``dropout``, ``residual``.
    """

    def __init__(
        self,
        dims: int,
        univariate: Univariate,
        inverse: bool = False,
        *,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        order: Tensor | None = None,
        **network: Any,
    ):
        super().__init__()
        self.univariate = univariate
        self.inverse = inverse
        self.context_size = context
        # units that see nothing are of no use without a context
        degrees = Degrees.even(check_orders(order, dims)[0], hidden, -1 if context else 0)
        self.network = MaskedMLP(
            dims, hidden, univariate.width, degrees, context=context, direct=False, **network
        )
        with torch.no_grad():  # start close to the identity: nearly the same parameters for every x
            self.network.last.weight.mul_(0.01)
            self.network.last.bias.mul_(0.01)

    def forward(self, context: Tensor | None = None) -> Transform:
        checks.context(context, self.context_size)
        elements = partial(self._elements, context)
        steps = partial(self._steps, context)
        lines = self.univariate
        solve = partial(self._solved, lines, context) if isinstance(lines, Affine) else None
        transform = AutoregressiveTransform(
            elements, steps, self.network.turns[0].order, density_kind(self.univariate), solve
        )
        return transform.inv if self.inverse else transform

    def _elements(self, context: Tensor | None, x: Tensor) -> Transform:
        return self.univariate(self.network(_near(x), context))

    def _steps(
        self, context: Tensor | None, lead: torch.Size
    ) -> Generator[Transform, Tensor, None]:
        raw_values = self.network.steps(lead, context)
        raw = next(raw_values)
        while True:
            raw = raw_values.send(_near((yield self.univariate(raw))))

    def _solved(self, lines: Affine, context: Tensor | None, y: Tensor) -> Tensor | None:
        """The inverse of straight lines in NumPy, where nothing but values is asked for."""
        given = [] if context is None else [context]
        if not only_values([y, *given, *self.network.parameters()]):
            return None
        with torch.no_grad():
            layers = self.network.ordered(y.shape[:-1], context)
        columns = array_of(y.reshape(-1, y.shape[-1]).mT.contiguous())
        found = np.empty_like(columns)
        with np.errstate(all="ignore"):  # NaN and infinite numbers pass
            for variable, raw, value in array_steps(layers, columns.shape[1]):
                x = found[variable]
                lines.solve(raw, columns[variable], x)
                np.minimum(np.maximum(x, -NEAR, out=value), NEAR, out=value)
        return torch.from_numpy(found).mT.reshape(y.shape).contiguous()


def _near(x: Tensor) -> Tensor:
    """Variables as they enter the network: as if they were within ±:data:`NEAR`.

    A row far out in the tails does not meet extreme parameters, with which single precision could
    not find its way back.
    """
    return x.clamp(-NEAR, NEAR)


class AutoregressiveFlow(DistributionModule):
    r"""Normalizing flow of autoregressive layers, whose order is reversed from layer to layer.

    .. math:: \log p(x) = \log p_0(z) + \sum_l \sum_d \log f'(x^l_d;\, r^l_d(x^l_{<d}, c)), \qquad
              x^{l+1}_d = f(x^l_d;\, r^l_d(x^l_{<d}, c)),\quad x^1 = x,\ x^{L+1} = z

    Scoring takes one pass per layer. So does sampling, in D small steps: hidden units are computed
    once, when what they see is known. With ``fast_sampling`` the roles change: samples, and their
    own scores, are one pass in one step, while scoring any other x takes the D steps. Missing
    values are refused.

    Parameters
    ----------
    dims : int
        Number D of variables.
    univariate : Univariate
        The increasing functions f: ``Affine()``, ``Spline(bins=8)``, ``MonotonicNetwork()``, ...
        Modules are copied, so that every layer has its own.
    layers : int
        Number L of layers.
    hidden : sequence of int
        Sizes of the hidden layers of each network.
    context : int
        Width of the context; 0 for none.
    base : DistributionModule, optional
        Distribution of z, events ``(D,)``; default: standard normal.
    fast_sampling : bool
        Whether samples rather than scores are the direction of one pass.
    orders : sequence of Tensor, optional
        Orders of the variables, ``(D,)`` each, one per layer; default: forwards, backwards, and so
        on.
    activation, dropout, residual
        Of the networks, see :class:`probgen.nn.masked.MaskedMLP`.

    References
    ----------
    Papamakarios, Pavlakou, Murray (2017), Masked autoregressive flow,
    https://arxiv.org/abs/1705.07057

    >>> flow = AutoregressiveFlow(3, Spline(bins=4), context=2)
    >>> flow(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape, flow(torch.zeros(5, 2)).sample().shape
    (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        dims: int,
        univariate: Univariate,
        layers: int = 3,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: DistributionModule | None = None,
        fast_sampling: bool = False,
        orders: Sequence[Tensor] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        residual: bool = False,
    ):
        checks.at_least(1, dims=dims, layers=layers)
        checks.function("pass Affine() or Spline()", univariate=univariate)
        checks.sizes(hidden=hidden)
        checks.at_least(0, context=context)
        checks.generative(**checks.given(base=base))
        checks.flag(fast_sampling=fast_sampling, residual=residual)
        checks.instances(Tensor, **checks.given(orders=orders))
        checks.factory(activation=activation)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.context_size = context
        self.base = standard_normal(dims) if base is None else base
        if orders is None:
            orders = [
                torch.arange(dims) if layer % 2 == 0 else torch.arange(dims).flip(0)
                for layer in range(layers)
            ]
        if len(orders) != layers:
            raise ValueError(
                f"expected one order per layer, got {len(orders)} for {layers} layers; set layers "
                "too"
            )
        network: dict[str, Any] = {"hidden": hidden, "context": context}
        network |= {"activation": activation}
        network |= {"dropout": dropout, "residual": residual}
        self.layers = nn.ModuleList(
            AutoregressiveLayer(
                dims, copy.deepcopy(univariate), fast_sampling, order=order, **network
            )
            for order in orders
        )

    def forward(self, context: Tensor | None = None) -> Pushforward:
        return Pushforward.through(
            distribution_given(self.base, context), [layer(context) for layer in self.layers]
        )


class MAF(AutoregressiveFlow):
    """Masked autoregressive flow.

    Affine layers, scored in one pass (Papamakarios, Pavlakou, Murray 2017).

    >>> MAF(3)().log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, dims: int, layers: int = 5, **options: Any):
        checks.at_least(1, dims=dims, layers=layers)
        super().__init__(dims, Affine(), layers, **options)


class IAF(AutoregressiveFlow):
    """Inverse autoregressive flow.

    Affine layers, sampled and scored by itself in one pass; a guide's choice.

    Kingma, Salimans et al. (2016), Improving variational inference with inverse autoregressive
    flow, https://arxiv.org/abs/1606.04934

    >>> x, log_prob = IAF(3)().rsample_and_log_prob((5,))
    >>> x.shape, log_prob.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, dims: int, layers: int = 3, **options: Any):
        super().__init__(dims, Affine(), layers, fast_sampling=True, **options)


class NSF(AutoregressiveFlow):
    """Neural spline flow, autoregressive: rational-quadratic splines on [-``bound``, ``bound``].

    Durkan, Bekasov, Murray, Papamakarios (2019), Neural spline flows,
    https://arxiv.org/abs/1906.04032. Standardize the data: outside of the bound a layer leaves them
    as they are.

    >>> NSF(3, bins=4)().log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(
        self, dims: int, layers: int = 3, bins: int = 8, bound: float = 5.0, **options: Any
    ):
        super().__init__(dims, Spline(bins, bound), layers, **options)


class NAF(AutoregressiveFlow):
    """Neural autoregressive flow: increasing networks (Huang, Krueger, Lacoste, Courville 2018)."""

    def __init__(self, dims: int, layers: int = 3, signal: int = 16, **options: Any):
        super().__init__(dims, MonotonicNetwork(signal), layers, **options)


class UNAF(AutoregressiveFlow):
    """Neural autoregressive flow of integrals of positive networks (Wehenkel, Louppe 2019)."""

    def __init__(self, dims: int, layers: int = 3, signal: int = 16, **options: Any):
        super().__init__(dims, MonotonicIntegral(signal), layers, **options)


class SOSPF(AutoregressiveFlow):
    """Sum-of-squares polynomial flow (Jaini, Selby, Yu 2019)."""

    def __init__(
        self, dims: int, layers: int = 3, degree: int = 4, polynomials: int = 3, **options: Any
    ):
        super().__init__(dims, SumOfSquares(degree, polynomials), layers, **options)


class BPF(AutoregressiveFlow):
    """Bernstein polynomial flow (Sick, Hothorn, Dürr 2021)."""

    def __init__(self, dims: int, layers: int = 3, degree: int = 16, **options: Any):
        super().__init__(dims, Bernstein(degree), layers, **options)
