"""Masked autoencoder for distribution estimation.

An autoregressive model of vectors in one pass of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import batch_of
from probgen.core.module import DistributionModule
from probgen.distributions.autoregressive import Autoregressive, Conditions
from probgen.distributions.orderings import (
    OrderEnsemble,
    RandomOrder,
    check_orders,
)
from probgen.heads import Head
from probgen.nn.encodings import Plain
from probgen.nn.masked import Degrees, MaskedMLP


class MADE(DistributionModule):
    r"""Masked autoencoder.

    A perceptron whose masks make each output depend on the variables before it alone.

    .. math:: p(x \mid c) = \frac1M \sum_{m=1}^{M} \prod_t p\big(x_{o_{mt}};\, r_{o_{mt}}(x_{o_{m1}}, \dots,
              x_{o_{m,t-1}}, c)\big)

    with one network for all M orders, each with its own masks. In eval mode the density is exact,
    that of the mixture over the orders; in training mode with several orders, every call scores all
    rows in one order drawn at random (order-agnostic and connectivity-agnostic training), an
    unbiased estimate of the mixture's probability.

    Missing entries (NaN) are integrated out where they come last in every order.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : sequence of int
        Sizes of the hidden layers.
    head : Head
        Distribution of one variable given R raw values: ``Bernoulli()``, ``Categorical(levels=4)``,
        ``MixtureOfGaussians(components=10)`` (with it the model is called RNADE).
    orders : Tensor, optional
        ``(D,)`` or ``(M, D)`` permutations; default the order of the variables. ``random_orders(M,
        D, seed)``.
    context : int
        Width of the context.
    encode : module
        Features of the variables, ``(*batch, D) -> (*batch, D, E)``, with attribute ``features``:
        ``OneHot(levels)`` for labels.
    seed : int
        Seed of the masks.
    **options
        ``activation``, ``dropout``, ``residual``, ``direct`` of
        :class:`probgen.nn.masked.MaskedMLP`.

    Raises
    ------
    ValueError
        If ``orders`` are not permutations of the variables, or the context does not have the width
        of the model.

    References
    ----------
    Germain, Gregor, Murray, Larochelle (2015), MADE: masked autoencoder for distribution
    estimation, https://arxiv.org/abs/1502.03509

    >>> from probgen.heads import Bernoulli
    >>> gen = MADE(4, [16], Bernoulli())
    >>> rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    >>> round(gen().log_prob(rows).exp().sum().item(), 4)
    1.0
    >>> gen().sample((5,)).shape
    torch.Size([5, 4])
    """

    encode: Any  # a module with features

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int],
        head: Head,
        *,
        orders: Tensor | None = None,
        context: int = 0,
        encode: nn.Module | None = None,
        seed: int = 0,
        **options: float | bool | Callable[[], nn.Module],
    ):
        checks.at_least(1, dims=dims)
        checks.sizes(hidden=hidden)
        checks.instance(Head, head=head)
        checks.instance(Tensor, **checks.given(orders=orders))
        checks.at_least(0, context=context)
        checks.network(**checks.given(encode=encode))
        checks.is_seed(seed=seed)
        super().__init__()
        self.dims = dims
        self.head = head
        self.encode = Plain() if encode is None else encode
        self.context_size = context
        generator = torch.Generator().manual_seed(int(seed))
        lowest = -1 if context else 0
        network: dict[str, Any] = options
        self.net = MaskedMLP(
            dims,
            hidden,
            head.width(1),
            [
                Degrees.random(order, hidden, lowest, generator)
                for order in check_orders(orders, dims)
            ],
            features=self.encode.features,
            context=context,
            **network,
        )

    @property
    def orders(self) -> Tensor:
        """The orders of the variables, ``(M, D)``."""
        return self.net.orders

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        if len(self.orders) == 1:
            return self.ordered(torch.zeros(1, dtype=torch.long), context)
        mixture = OrderEnsemble(self.ordered, len(self.orders), (self.dims,), context)
        return RandomOrder(mixture) if self.training else mixture

    def ordered(self, index: Tensor, context: Tensor | None = None) -> Autoregressive:
        """The distribution of one of the orders, by its index, a tensor ``(1,)``."""
        distributions = partial(self._distributions, index, context)
        steps = partial(self._steps, index, context)
        order = self.orders.index_select(0, index.to(self.orders.device))[0]
        return Autoregressive(
            distributions, steps, (self.dims,), batch_shape=batch_of(context), order=order
        )

    def _distributions(
        self, index: Tensor, context: Tensor | None, x: Tensor
    ) -> dist.TorchDistribution:
        features = self.encode(x.to(self.net.last.bias))
        raw = self.net(features.flatten(-2), context, index)
        return self.head.distribution(raw.movedim(-1, 0))

    def _steps(self, index: Tensor, context: Tensor | None, lead: torch.Size) -> Conditions:
        steps = self.net.steps(lead, context, index)
        raw = next(steps)
        for _ in range(self.dims - 1):
            value = yield self.head.distribution(raw.movedim(-1, 0))
            raw = steps.send(self.encode(value.unsqueeze(-1)))
        yield self.head.distribution(raw.movedim(-1, 0))
