"""Deep NADE: one network that predicts any variable from any others.

So that it can factorize in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probgen.core import checks
from probgen.core.contexts import batch_of, received
from probgen.core.missing import MissingAware
from probgen.core.module import DistributionModule
from probgen.distributions.any_order import AllOrders, ObservedFirst
from probgen.distributions.autoregressive import Autoregressive, Conditions
from probgen.distributions.orderings import (
    OrderEnsemble,
    check_orders,
    entry_distribution,
    random_orders,
)
from probgen.heads import Head
from probgen.nn import MLP
from probgen.nn.encodings import Plain


class DeepNADE(DistributionModule):
    r"""Order-agnostic deep NADE.

    A perceptron of the observed values and of which they are, for all orders.

    .. math:: p_o(x \mid c) = \prod_t p\big(x_{o_t};\, r_{o_t}(m \odot x,\, m,\, c)\big), \qquad
              m = \text{indicator of } o_1, \dots, o_{t-1}

    In eval mode the distribution is the mixture of M given orders (an ensemble, EoNADE), with exact
    density; scoring a row takes D runs of the network for each order. In training mode it is the
    mixture over *all* D! orders, scored by one order and one cut drawn for every row,

    .. math:: \log \hat p(x) = \frac{D}{D - t} \sum_{d \notin o_{\le t}} \log p(x_d \mid x_{o_1}, \dots, x_{o_t}),
              \qquad \mathbb E[\log \hat p(x)] = \frac1{D!} \sum_o \log p_o(x) \le \log \frac1{D!}
              \sum_o p_o(x)

    a *bound* in expectation: unbiased for the mean of the log-densities, not for the density.

    Missing entries (NaN) are integrated out where they come last in every order; in training the
    orders put them last, and :meth:`completion` draws those of any pattern.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : sequence of int
        Sizes of the hidden layers, at least one.
    head : Head
        Distribution of one variable given R raw values.
    orders : Tensor, optional
        ``(M, D)`` orders of the ensemble in eval mode; default: one, drawn with seed 0. Not used in
        training: it may be replaced by another ensemble after it, ``gen.orders = random_orders(16,
        D)``.
    context : int
        Width of the context.
    encode : module
        Features of the variables, ``(*batch, D) -> (*batch, D, E)``, with attribute ``features``:
        ``OneHot(levels)`` for labels.
    activation, dropout, norm, residual
        As in :class:`probgen.nn.MLP`; the first layer has no normalization.

    Raises
    ------
    ValueError
        If ``orders`` are no permutations, there is no hidden layer, or the context has another
        width than the model.

    References
    ----------
    Uria, Murray, Larochelle (2014), A deep and tractable density estimator,
    https://arxiv.org/abs/1310.1757

    >>> from probgen.heads import Bernoulli
    >>> gen = DeepNADE(4, [16], Bernoulli(), orders=random_orders(2, 4)).eval()
    >>> rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    >>> round(gen().log_prob(rows).exp().sum().item(), 4)
    1.0
    """

    encode: Any  # a module with features
    orders: Tensor

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int],
        head: Head,
        *,
        orders: Tensor | None = None,
        context: int = 0,
        encode: nn.Module | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
        residual: bool = False,
    ):
        checks.at_least(1, dims=dims)
        checks.sizes(hidden=hidden)
        checks.instance(Head, head=head)
        checks.at_least(0, context=context)
        checks.network(**checks.given(encode=encode))
        checks.instance(Tensor, **checks.given(orders=orders))
        checks.factory(activation=activation, **checks.given(norm=norm))
        checks.within("[0, 1)", dropout=dropout)
        checks.flag(residual=residual)
        super().__init__()
        if not hidden:
            raise ValueError(
                "expected at least one hidden layer, got none; NADE and MADE have shallow forms"
            )
        self.dims = dims
        self.head = head
        self.encode = Plain() if encode is None else encode
        self.context_size = context
        self.register_buffer(
            "orders", check_orders(random_orders(1, dims) if orders is None else orders, dims)
        )
        self.first = nn.Linear(dims * (self.encode.features + 1) + context, hidden[0])
        self.net = MLP(hidden[0], hidden[1:], head.width(dims), activation, dropout, norm, residual)
        self.start = nn.Sequential(activation(), nn.Dropout(dropout))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        batch = batch_of(context)
        if self.training:
            given = partial(self.given, context=context)
            return AllOrders(given, self.dims, batch, self.first.bias)
        return OrderEnsemble(self._member, len(self.orders), (self.dims,), context)

    def given(
        self, x: Tensor, seen: Tensor, context: Tensor | None = None
    ) -> dist.TorchDistribution:
        """The distribution of every variable given those that are seen.

        ``(*batch, D), (*batch, D) -> batch_shape (*batch, D)``.

        Values that are not seen are not read; the distributions of variables that are seen mean
        nothing.
        """
        features = self.encode(torch.where(seen, x, 0.0).to(self.first.bias)) * seen.unsqueeze(-1)
        parts = [features.flatten(-2), seen.to(features)]
        parts += [] if context is None else [context.expand(*x.shape[:-1], -1)]
        raw = self.net(self.start(self.first(torch.cat(parts, -1))))
        return MissingAware(
            self.head.distribution(raw.unflatten(-1, (-1, self.dims)).movedim(-2, 0))
        )

    def ordered(self, order: Tensor, context: Tensor | None = None) -> Autoregressive:
        """The distribution in any order ``(D,)``, with exact density.

        Entries that are missing last in it are integrated out.
        """
        context = received(self, context)
        distributions = partial(self._distributions, order, context)
        steps = partial(self._steps, order, context)
        return Autoregressive(
            distributions,
            steps,
            (self.dims,),
            batch_shape=batch_of(context),
            order=order.to(self.orders.device),
        )

    def completion(self, x: Tensor, context: Tensor | None = None) -> ObservedFirst:
        """The distribution of complete rows given the observed entries of ``x`` ``(*batch, D)``.

        In any pattern; NaN = missing.

        Exact draws and densities of the model in the order "observed entries first, then missing
        ones in the first of ``orders``". That is another joint distribution than the ensemble's,
        and for each pattern of missing entries another one.
        """
        context = received(self, context)
        return ObservedFirst(partial(self.given, context=context), x, self.orders[0])

    def _member(self, index: Tensor, context: Tensor | None) -> Autoregressive:
        return self.ordered(self.orders.index_select(0, index.to(self.orders.device))[0], context)

    def _distributions(
        self, order: Tensor, context: Tensor | None, x: Tensor
    ) -> dist.TorchDistribution:
        lead = x.shape[:-1]
        places = order.tolist()
        features = self.encode(x.to(self.first.bias)).reshape(-1, self.dims, self.encode.features)
        raws = self._raws(places, context, lead)
        rows = [next(raws)] + [raws.send(features[:, at]) for at in places[:-1]]
        raw = torch.stack(rows, -1).index_select(-1, order.argsort())
        return self.head.distribution(raw.movedim(1, 0).unflatten(1, lead) if lead else raw[0])

    def _steps(self, order: Tensor, context: Tensor | None, lead: torch.Size) -> Conditions:
        raws = self._raws(order.tolist(), context, lead)
        raw = next(raws)
        for _ in range(self.dims - 1):
            x = yield entry_distribution(self.head, raw, lead)
            raw = raws.send(self.encode(x.reshape(-1, 1)).flatten(1))
        yield entry_distribution(self.head, raw, lead)

    def _raws(
        self, places: list[int], context: Tensor | None, lead: torch.Size
    ) -> Generator[Tensor, Tensor, None]:
        """Raw values ``(rows, R)`` of one variable after the other.

        The first layer is carried along.
        """
        size = self.encode.features
        inputs = self.dims * self.encode.features
        weight = self.first.weight
        running = self.first.bias.expand(lead.numel(), -1)
        if context is not None:
            running = running + (context @ weight[:, inputs + self.dims :].mT).expand(
                *lead, -1
            ).reshape(running.shape)
        for at in places:
            h = self._hidden(self.start(running))
            features = yield linear(
                h, self.net.last.weight[at :: self.dims], self.net.last.bias[at :: self.dims]
            )
            running = running + weight[:, inputs + at]
            running = running.addmm(features, weight[:, at * size : (at + 1) * size].mT)

    def _hidden(self, h: Tensor) -> Tensor:
        """What the last layer sees; it is asked for one variable at a time."""
        for layer in self.net.hidden:
            out = layer(h)
            h = h + out if self.net.residual and out.shape == h.shape else out
        return h
