"""Neural autoregressive distribution estimator.

Hidden layers that share their weights along the order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import batch_of
from probgen.core.module import DistributionModule
from probgen.distributions.autoregressive import Autoregressive, Conditions
from probgen.distributions.orderings import check_orders, entry_distribution
from probgen.heads import Head
from probgen.nn.encodings import Plain


class NADE(DistributionModule):
    r"""Neural autoregressive distribution estimator.

    One hidden layer per variable, each made from the one before it.

    .. math:: p(x \mid u) = \prod_t p\big(x_{o_t};\, b_{o_t} + V_{o_t} h_t\big), \qquad h_t = \phi(a_t), \quad
              a_1 = c + A u, \quad a_{t+1} = a_t + W_{o_t} x_{o_t}

    Exact density in O(D H): training forms all running activations at once by a cumulative sum, a
    draw carries them along. Missing entries (NaN) are integrated out where they come last in the
    order.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : int
        Number H of hidden units.
    head : Head
        Distribution of one variable given R raw values: ``Bernoulli()``, ``Categorical(levels=4)``,
        ``MixtureOfGaussians(components=10)`` (with it the model is called RNADE).
    order : Tensor, optional
        ``(D,)`` permutation; default the order of the variables.
    context : int
        Width of the context u.
    encode : module
        Features of the variables, ``(*batch, D) -> (*batch, D, E)``, with attribute ``features``:
        ``OneHot(levels)`` for labels.
    activation : callable
        Makes the elementwise activation.
    rescale : bool
        Whether each step has a learned factor for its activations, :math:`h_t = \phi(\rho_t a_t)`,
        as in RNADE: sums grow along the order.

    Raises
    ------
    ValueError
        If ``order`` is no permutation of the variables, or the context does not have the width of
        the model.

    References
    ----------
    Larochelle, Murray (2011), The neural autoregressive distribution estimator,
    https://proceedings.mlr.press/v15/larochelle11a.html;
    Uria, Murray, Larochelle (2013), RNADE, https://arxiv.org/abs/1306.0186

    >>> from probgen.heads import Bernoulli
    >>> gen = NADE(4, 8, Bernoulli())
    >>> rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    >>> round(gen().log_prob(rows).exp().sum().item(), 4)
    1.0
    >>> gen().sample((5,)).shape
    torch.Size([5, 4])
    """

    encode: Any  # a module with features
    order: Tensor

    def __init__(
        self,
        dims: int,
        hidden: int,
        head: Head,
        *,
        order: Tensor | None = None,
        context: int = 0,
        encode: nn.Module | None = None,
        activation: Callable[[], nn.Module] = nn.Sigmoid,
        rescale: bool = False,
    ):
        checks.at_least(1, dims=dims, hidden=hidden)
        checks.instance(Head, head=head)
        checks.instance(Tensor, **checks.given(order=order))
        checks.at_least(0, context=context)
        checks.network(**checks.given(encode=encode))
        checks.factory(activation=activation)
        checks.flag(rescale=rescale)
        super().__init__()
        self.dims = dims
        self.head = head
        self.encode = Plain() if encode is None else encode
        self.context_size = context
        self.register_buffer("order", check_orders(order, dims)[0])
        inputs = dims * self.encode.features
        outputs = head.width(1)
        self.weight = nn.Parameter(torch.randn(dims, self.encode.features, hidden) / inputs**0.5)
        self.offset = nn.Parameter(torch.zeros(hidden))
        self.out = nn.Parameter(torch.randn(dims, outputs, hidden) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(dims, outputs))
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.scale = nn.Parameter(torch.ones(dims)) if rescale else None
        self.activation = activation()

    def forward(self, context: Tensor | None = None) -> Autoregressive:
        distributions = partial(self._distributions, context)
        steps = partial(self._steps, context)
        batch = batch_of(context)
        return Autoregressive(
            distributions, steps, (self.dims,), batch_shape=batch, order=self.order
        )

    def _start(self, context: Tensor | None) -> Tensor:
        """Activations before the first variable: ``(*batch, H)``."""
        return self.offset if self.context is None else self.offset + self.context(context)

    def _distributions(self, context: Tensor | None, x: Tensor) -> dist.TorchDistribution:
        features = self.encode(x.to(self.offset)).index_select(-2, self.order)
        added = torch.einsum("...te,teh->...th", features, self.weight.index_select(0, self.order))
        running = added.cumsum(-2) - added + self._start(context).unsqueeze(-2)
        raw = torch.einsum(
            "...th,trh->...tr", self._hidden(running), self.out.index_select(0, self.order)
        )
        return self.head.distribution(
            raw.index_select(-2, self.order.argsort()).add(self.bias).movedim(-1, 0)
        )

    def _hidden(self, running: Tensor) -> Tensor:
        return self.activation(
            running if self.scale is None else running * self.scale.unsqueeze(-1)
        )

    def _steps(self, context: Tensor | None, lead: torch.Size) -> Conditions:
        running = self._start(context).expand(*lead, -1).reshape(lead.numel(), -1)
        scales = [1.0] * self.dims if self.scale is None else self.scale
        for at, scale in zip(self.order.tolist(), scales, strict=True):
            raw = torch.addmm(self.bias[at], self.activation(running * scale), self.out[at].mT)
            x = yield entry_distribution(self.head, raw, lead)
            running = running.addmm(self.encode(x.reshape(-1, 1)).flatten(1), self.weight[at])
