"""Deep Boltzmann machines: several hidden layers, each connected to the next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.entry import as_rows
from probgen.core.module import DistributionModule
from probgen.distributions.energy.bipartite import Bipartite
from probgen.distributions.energy.boltzmann import ChainedBoltzmann, ExactBoltzmann, boltzmann
from probgen.distributions.energy.units import Binary, Stacked
from probgen.distributions.energy.visible import Visible


class DeepBoltzmannMachine(DistributionModule):
    r"""Deep Boltzmann machine: undirected layers of binary hidden units above visible units.

    .. math:: p(v, h^1, \dots, h^L) = \frac1Z \exp\Big(u(v) + \sum_l c_l^\top h^l
              + (\phi(v) - \mu)^\top W_1 (h^1 - \nu_1)
              + \sum_{l \ge 2} (h^{l-1} - \nu_{l-1})^\top W_l (h^l - \nu_l)\Big)

    Given the odd layers the even ones (v among them) are independent, and conversely: chains draw
    them in turn. Where one of the two groups has at most ``limit`` states the density is *exact*.
    Elsewhere it is *unnormalized*, and ``log_prob`` the log weight of v, exact where a group of
    hidden layers has at most 1,024 states given v, else its mean-field lower bound. ``fit`` then
    takes ``ContrastiveDivergence(num_steps, chains=M)``: the gradient of that bound at the data,
    persistent chains of all layers for log Z, which is the procedure of Salakhutdinov and Hinton
    (2009); centering (the offsets :math:`\mu, \nu` of :meth:`initialize`) makes their layerwise
    pretraining unnecessary. :func:`probgen.energy.annealed_importance` brackets log Z.

    Parameters
    ----------
    visible : Visible
        As in ``RBM``.
    hidden : sequence of int
        Number of units of each hidden layer, from the lowest one.
    scale : float, optional
        Standard deviation of the first weights; default :math:`0.1 / \sqrt{m + n}` between layers
        of m and n units.
    limit : int
        Most states of a group of layers that is enumerated.
    sweeps : int
        Length of the Gibbs chains that make draws, where none is.

    References
    ----------
    Salakhutdinov, Hinton (2009), Deep Boltzmann machines,
    https://proceedings.mlr.press/v5/salakhutdinov09a.html; Montavon, Mueller (2012), Deep Boltzmann
    machines and the centering trick, https://doi.org/10.1007/978-3-642-35289-8_33

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> machine = DeepBoltzmannMachine(BernoulliUnits(6), hidden=(4, 3))
    >>> machine().density_kind, machine().log_prob(torch.ones(2, 6)).shape
    ('exact', torch.Size([2]))
    """

    context_size = 0
    context_hint = WITHOUT

    offset: Tensor
    middle: Tensor

    def __init__(
        self,
        visible: Visible,
        hidden: Sequence[int],
        *,
        scale: float | None = None,
        limit: int = 2**12,
        sweeps: int = 200,
    ):
        checks.has(("width", "bind"), "pass BernoulliUnits(dims)", visible=visible)
        checks.sizes(1, 1, hidden=hidden)
        checks.positive(**checks.given(scale=scale))
        checks.at_least(0, limit=limit)
        checks.at_least(1, sweeps=sweeps)
        super().__init__()
        if len(hidden) < 2 or min(hidden) < 1:
            raise ValueError(
                f"expected two or more hidden layers of one or more units, got {hidden}; one is an "
                "RBM"
            )
        self.visible = visible
        self.hidden = tuple(hidden)
        self.limit = limit
        self.sweeps = sweeps
        sizes = (visible.width, *hidden)
        self.weights = nn.ParameterList(
            (0.1 / (below + above) ** 0.5 if scale is None else scale) * torch.randn(below, above)
            for below, above in itertools.pairwise(sizes)
        )
        self.raw = nn.Parameter(torch.zeros(visible.raw))
        self.biases = nn.ParameterList(torch.zeros(size) for size in hidden)
        self.register_buffer("offset", torch.zeros(visible.width + sum(hidden[1::2])))
        self.register_buffer("middle", torch.zeros(sum(hidden[::2])))

    def forward(self, context: Tensor | None = None) -> ExactBoltzmann | ChainedBoltzmann:
        return boltzmann(self.field(), self.visible, self.sweeps, self.limit)

    def field(self) -> Bipartite:
        """The potentials between even and odd layers, offsets multiplied out."""
        weight = self._between()
        even = Stacked(
            (self.visible.bind(self.raw), *(Binary(bias) for bias in self.biases[1::2])),
            (self.visible.shape.numel(), *self.hidden[1::2]),
            (self.visible.width, *self.hidden[1::2]),
        )
        odd = torch.cat(list(self.biases[::2]))
        visible: Any = even.shifted(-(weight @ self.middle))
        return Bipartite(visible, weight, odd - self.offset @ weight)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Biases that give the visible units the moments of rows ``(N, *event)``.

        And offsets in their middle.
        """
        start = self.visible.start(as_rows(self, x)[0].flatten(1))
        self.raw.copy_(start)
        self.middle.fill_(0.5)
        self.offset.fill_(0.5)[: self.visible.width].copy_(self.visible.bind(start).mean())

    def _between(self) -> Tensor:
        """All weights as one matrix from even to odd layers: ``(F + H2 + H4 ..., H1 + H3 ...)``."""
        depth = len(self.hidden)
        rows = []
        sizes = (self.visible.width, *self.hidden)
        for even in range(0, depth + 1, 2):
            row = [self.raw.new_zeros(sizes[even], sizes[odd]) for odd in range(1, depth + 1, 2)]
            if even > 0:
                row[even // 2 - 1] = self.weights[even - 1].T
            if even < depth:
                row[even // 2] = self.weights[even]
            rows.append(torch.cat(row, 1))
        return torch.cat(rows)
