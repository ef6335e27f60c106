"""What energy-based models are made of: a network, kernels of chains, and where chains start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from probgen.core import checks
from probgen.core.contexts import needs_beside, size_beside
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.energy.continuous import TransitionKernel
from probgen.samplers.hmc import HMC
from probgen.samplers.langevin import Langevin


class EnergyModule(DistributionModule):
    """The parts of :class:`EnergyBasedModel <probgen.models.energy.EnergyBasedModel>`.

    Whose arguments these are.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        *,
        kernel: TransitionKernel = Langevin(0.01),  # noqa: B008 (immutable)
        base: DistributionModule | None = None,
        start: DistributionModule | None = None,
        num_steps: int = 200,
        annealing: TransitionKernel = HMC(0.1),  # noqa: B008
    ):
        checks.network(net=net)
        checks.sizes(shape=shape)
        checks.function(kernel=kernel, annealing=annealing)
        checks.generative(**checks.given(base=base, start=start))
        checks.at_least(1, num_steps=num_steps)
        super().__init__()
        if base is not None and start is not None:
            raise ValueError(
                "expected a base or a start, got both: chains start from the base; drop one"
            )
        self.net = net
        self.shape = torch.Size(shape)
        self.kernel = kernel
        self.num_steps = num_steps
        self.annealing = annealing
        self.beside = size_beside(net, shape)
        self.needs_context = self.beside is None and needs_beside(net)
        self.tilted = base is not None
        self.start = (
            base if base is not None else standard_normal(*shape) if start is None else start
        )
