"""Restricted Boltzmann machines with visible units of any kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import for_each_context, input_size
from probgen.core.entry import as_rows
from probgen.core.foreign import row_by_row
from probgen.core.module import DistributionModule
from probgen.distributions.energy.bipartite import Bipartite
from probgen.distributions.energy.boltzmann import ChainedBoltzmann, ExactBoltzmann, boltzmann
from probgen.distributions.energy.visible import Visible


class RBM(DistributionModule):
    r"""Restricted Boltzmann machine.

    Visible units and binary hidden ones, connected across but not within layers.

    .. math:: p(v, h) = \frac1Z \exp\Big(\sum_i u_i(v_i) + c^\top h + (\phi(v) - \mu)^\top W (h - \nu)\Big)

    with u, :math:`\phi` of the visible units: :math:`u = b v, \phi = v` for bits. The offsets
    :math:`\mu, \nu` are constants; those of :meth:`initialize` make gradients of weights and biases
    nearly independent of each other.

    Where one layer has at most ``limit`` states the density is *exact*: log Z, missing entries,
    independent draws, maximum likelihood by ``fit``. Elsewhere it is *unnormalized*: draws and
    imputations are ends of block Gibbs chains, and ``fit`` takes ``ContrastiveDivergence()``, or
    ``PseudoLikelihood()`` for discrete units; :func:`probgen.energy.annealed_importance` brackets
    log Z.

    Parameters
    ----------
    visible : Visible
        ``BernoulliUnits(*shape)``, ``GaussianUnits(*shape)`` or ``CategoricalUnits(*shape,
        levels=K)``.
    hidden : int
        Number H of hidden units.
    biases : nn.Module, optional
        Network from a context to the raw parameters of the visible units and the hidden biases,
        ``(*batch, C) -> (*batch, visible.raw + H)``: a conditional machine.
    scale : float, optional
        Standard deviation of the first weights; default :math:`0.1 / \sqrt{F + H}` of F features.
    limit : int
        Most states of a layer that is enumerated.
    sweeps : int
        Length of the Gibbs chains that make draws, where none is.

    References
    ----------
    Smolensky (1986), Information processing in dynamical systems: foundations of harmony theory;
    Hinton (2002), https://doi.org/10.1162/089976602760128018; Melchior, Fischer, Wiskott (2016),
    How to center deep Boltzmann machines, https://jmlr.org/papers/v17/14-237.html; Mnih,
    Larochelle, Hinton (2011), Conditional restricted Boltzmann machines for structured output
    prediction, https://arxiv.org/abs/1202.3748

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> rbm = RBM(BernoulliUnits(2, 3), hidden=4)
    >>> rbm().density_kind, rbm().sample((5,)).shape, RBM(BernoulliUnits(784), hidden=500)().density_kind
    ('exact', torch.Size([5, 2, 3]), 'unnormalized')
    """

    unknown_contexts = False
    context_hint = "build it with biases=, a network of {size} inputs"

    offset: Tensor
    middle: Tensor

    def __init__(
        self,
        visible: Visible,
        hidden: int,
        *,
        biases: nn.Module | None = None,
        scale: float | None = None,
        limit: int = 2**12,
        sweeps: int = 200,
    ):
        checks.has(("width", "bind"), "pass BernoulliUnits(dims)", visible=visible)
        checks.at_least(1, hidden=hidden)
        checks.network(**checks.given(biases=biases))
        checks.not_negative(**checks.given(scale=scale))
        checks.at_least(0, limit=limit)
        checks.at_least(1, sweeps=sweeps)
        super().__init__()
        self.visible = visible
        self.hidden = hidden
        self.limit = limit
        self.sweeps = sweeps
        scale = 0.1 / (visible.width + hidden) ** 0.5 if scale is None else scale
        self.weight = nn.Parameter(scale * torch.randn(visible.width, hidden))
        self.net = biases
        if biases is None:
            self.raw = nn.Parameter(torch.zeros(visible.raw))
            self.bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("offset", torch.zeros(visible.width))
        self.register_buffer("middle", torch.zeros(hidden))

    @property
    def context_size(self) -> int | None:
        """What the network of the biases takes."""
        return 0 if self.net is None else input_size(self.net)

    def forward(self, context: Tensor | None = None) -> ExactBoltzmann | ChainedBoltzmann:
        distribution = boltzmann(self.field(context), self.visible, self.sweeps, self.limit)
        return for_each_context(distribution, context)

    def field(self, context: Tensor | None = None) -> Bipartite:
        """The potentials, offsets multiplied out."""
        raw, bias = self._biases(context)
        visible = self.visible.bind(raw).shifted(-(self.weight @ self.middle))
        return Bipartite(visible, self.weight, bias - self.offset @ self.weight)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Biases that give the visible units the moments of rows ``(N, *event)``.

        And offsets in their middle.
        """
        if self.net is not None:
            raise ValueError(
                "expected a machine without a network for its biases, got one; train it from its "
                "start"
            )
        start = self.visible.start(as_rows(self, x)[0].flatten(1))
        self.raw.copy_(start)
        self.middle.fill_(0.5)
        self.offset.copy_(self.visible.bind(start).mean())

    def _biases(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.net is None:
            return self.raw, self.bias
        checks.context(context, self.context_size or None)
        return row_by_row(self.net, context, ndims=[1]).split((self.visible.raw, self.hidden), -1)
