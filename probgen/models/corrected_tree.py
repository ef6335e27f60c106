"""A hidden tree of labels whose predictions a masked network corrects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.missing import values_are_known
from probgen.core.module import DistributionModule
from probgen.core.supports import check_values
from probgen.distributions.autoregressive import Autoregressive, Conditions
from probgen.distributions.graphical.hidden_tree import HiddenTree
from probgen.heads.distributions import Categorical
from probgen.nn.encodings import OneHot, Plain
from probgen.nn.masked import Degrees, MaskedMLP


class CorrectedTree(DistributionModule):
    r"""Hidden tree whose predictions are the offset of a masked autoencoder.

    .. math:: p(x_{o_t} = l \mid x_{o_1}, \dots, x_{o_{t-1}}) \propto
              q(x_{o_t} = l \mid x_{o_1}, \dots, x_{o_{t-1}})\, \exp f_{tl}(x_{o_1}, \dots, x_{o_{t-1}})

    with the exact predictions q of the tree, in an order along its edges, and a network f that is 0
    at first: training starts at the tree, and ends near it where rows tell no more, so that few rows
    do. The density is exact. Missing entries (NaN) are integrated out where they come last in the
    order, ``gen.order``.

    Fit the tree first, by :func:`probgen.em`. To train the network alone, hold the tree:
    ``tree.requires_grad_(False)``.

    Parameters
    ----------
    tree : DistributionModule
        :class:`HiddenChowLiu <probgen.HiddenChowLiu>` of columns of labels, fitted; or any family
        whose distribution is a :class:`HiddenTree`.
    hidden : sequence of int
        Sizes of the hidden layers of the network; ``[]``: a logistic regression of each column.
    seed : int
        Seed of the masks.
    **options
        ``activation``, ``dropout``, ``residual``, ``direct`` of
        :class:`probgen.nn.masked.MaskedMLP`.

    Raises
    ------
    TypeError
        If the distribution of the tree is no :class:`HiddenTree` of labels.
    ValueError
        If the tree has got other edges since.

    References
    ----------
    Liu, Van den Broeck (2021), Tractable regularization of probabilistic circuits,
    https://arxiv.org/abs/2106.02264; Germain, Gregor, Murray, Larochelle (2015), MADE,
    https://arxiv.org/abs/1502.03509

    >>> from probgen.models.hidden_chow_liu import HiddenChowLiu
    >>> tree = HiddenChowLiu(2, (2,) * 4)
    >>> gen = CorrectedTree(tree, [16])
    >>> rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    >>> torch.allclose(gen().log_prob(rows), tree().log_prob(rows), atol=1e-5)
    True
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(
        self,
        tree: DistributionModule,
        hidden: Sequence[int],
        *,
        seed: int = 0,
        **options: Any,
    ):
        checks.generative(tree=tree)
        checks.sizes(hidden=hidden)
        checks.is_seed(seed=seed)
        super().__init__()
        self.tree = tree
        with torch.no_grad():
            base = self._base()
            levels = next(base.predictions(1)).shape[-1]
        self.encode = Plain() if levels == 2 else OneHot(levels)
        degrees = Degrees.random(
            torch.tensor(base.order), hidden, 0, torch.Generator().manual_seed(int(seed))
        )
        self.net = MaskedMLP(
            len(base.order), hidden, levels, degrees, features=self.encode.features, **options
        )
        for layer in (self.net.last, self.net.direct):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def order(self) -> Tensor:
        """The columns in the order in which they are predicted, ``(D,)``."""
        return self.net.orders[0]

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        base = self._base()
        if base.order != self.order.tolist():
            raise ValueError(
                f"expected a tree whose columns are visited in the order {self.order.tolist()}, got "
                f"{base.order}: it was fitted again; build a new CorrectedTree of it"
            )

        def distributions(x: Tensor) -> dist.TorchDistribution:
            return Categorical((self._raw(x) + _offset(base, x)).log_softmax(-1))

        def steps(lead: torch.Size) -> Conditions:
            return self._steps(base, lead)

        return Autoregressive(distributions, steps, base.event_shape, order=self.order)

    def _base(self) -> HiddenTree:
        base = self.tree()
        if not isinstance(base, HiddenTree):
            raise TypeError(
                f"expected a tree whose distribution is a HiddenTree, got {type(base).__name__}; "
                "build it as HiddenChowLiu(states, levels)"
            )
        return base

    def _raw(self, x: Tensor) -> Tensor:
        """What the network adds to the logits, ``(*batch, D, L)``."""
        return self.net(self.encode(x.to(self.net.last.bias)).flatten(-2))

    def _steps(self, base: HiddenTree, lead: torch.Size) -> Conditions:
        predicted = base.predictions(lead.numel())
        corrected = self.net.steps(lead)
        offset, raw = next(predicted), next(corrected)
        for _ in range(len(base.order) - 1):
            value = yield _of_one(offset, raw, lead)
            offset = predicted.send(value.reshape(-1))
            raw = corrected.send(self.encode(value.unsqueeze(-1)))
        yield _of_one(offset, raw, lead)


def _of_one(offset: Tensor, raw: Tensor, lead: torch.Size) -> Categorical:
    """The distribution of one column."""
    return Categorical((raw + offset.reshape(*lead, -1)).log_softmax(-1))


def _offset(base: HiddenTree, x: Tensor) -> Tensor:
    """What the tree predicts of each column, ``(*lead, D, L)``."""
    rows = x.reshape(-1, x.shape[-1])
    if values_are_known():  # tables are looked up by them
        check_values("x", rows, base.support)
    steps = base.predictions(len(rows))
    columns = [next(steps)]
    for column in base.order[:-1]:
        columns.append(steps.send(rows[:, column]))
    place = torch.tensor(base.order, device=x.device).argsort()
    return torch.stack(columns, 1)[:, place].reshape(*x.shape, -1)
