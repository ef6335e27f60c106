"""Energy-based models: any network as a density up to its constant."""

from __future__ import annotations

from torch import Tensor

from probgen.core.contexts import batch_of, check_given, distribution_given
from probgen.core.foreign import row_by_row
from probgen.distributions.energy.continuous import EnergyDistribution
from probgen.distributions.energy.module import EnergyModule


class EnergyBasedModel(EnergyModule):
    r"""Energy-based model: the density that a network gives, up to its constant.

    .. math:: p(x \mid c) = \frac{1}{Z(c)}\, e^{-f(x, c)} \quad\text{or, with a base,}\quad
              p(x \mid c) = \frac{1}{Z(c)}\, p_0(x)\, e^{-f(x, c)}

    Its density is *unnormalized*; draws and imputations are ends of Markov chains. ``fit`` takes
    ``ContrastiveDivergence()`` (chains, a replay buffer), ``NoiseContrastive(noise)`` or a score
    matching objective; :func:`probgen.energy.annealed_importance` brackets log Z. Without a base,
    energies have to rise far from the data; with a normal base the density is normalizable for
    every bounded network.

    Parameters
    ----------
    net : nn.Module
        The energy f: ``net(x)``, or ``net(x, context)`` where a context is given; ``(*batch,
        *event)`` to ``(*batch,)`` or ``(*batch, 1)``.
    shape : sequence of int
        Shape of an event.
    kernel : TransitionKernel
        Steps of the chains: ``Langevin``, ``MALA``, ``HMC``.
    base : DistributionModule, optional
        The distribution :math:`p_0` with exact density, which chains start from.
    start : DistributionModule, optional
        The distribution that chains start from without a base; default: independent standard
        normals.
    num_steps : int
        Length of the chains that make draws.
    annealing : TransitionKernel
        Steps of annealed chains, of a kernel that leaves distributions invariant.

    Raises
    ------
    ValueError
        If both a base and a start are given; without a context where the network needs one.

    References
    ----------
    LeCun et al. (2006), A tutorial on energy-based learning; Xie et al. (2016), A theory of
    generative ConvNet, https://arxiv.org/abs/1602.03264 (the normal base); Du, Mordatch (2019),
    https://arxiv.org/abs/1903.08689

    >>> import torch
    >>> from probgen.core.module import standard_normal
    >>> from probgen.nn import MLP
    >>> from probgen.samplers.langevin import Langevin
    >>> gen = EnergyBasedModel(MLP(2, [16], 1), (2,), kernel=Langevin(0.1), base=standard_normal(2))
    >>> gen().log_prob(torch.zeros(5, 2)).shape, gen().sample((5,)).shape
    (torch.Size([5]), torch.Size([5, 2]))
    """

    unknown_contexts = False
    context_hint = "build its network as SideBySide(network) of {size} more inputs"

    @property
    def context_size(self) -> int | None:
        """What the network takes beside an event."""
        return self.beside

    def forward(self, context: Tensor | None = None) -> EnergyDistribution:
        check_given(context, self.needs_context, "net")
        batch = batch_of(context)

        def energy(x: Tensor) -> Tensor:
            lead = x.shape[: x.ndim - len(self.shape)]
            inputs = (x,) if context is None else (x, context.expand(*lead, -1))
            return row_by_row(self.net, *inputs, ndims=[len(self.shape), 1][: len(inputs)]).reshape(
                lead
            )

        return EnergyDistribution(
            energy,
            distribution_given(self.start, context),
            self.kernel,
            self.num_steps,
            tilted=self.tilted,
            batch_shape=batch,
            annealing=self.annealing,
        )
