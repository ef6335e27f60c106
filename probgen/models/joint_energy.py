"""A classifier as a joint density of rows and labels."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.energy.continuous import Kernel
from probgen.distributions.energy.labelled import LabelledEnergy
from probgen.samplers.hmc import HMC
from probgen.samplers.langevin import Langevin


class JointEnergyModel(DistributionModule):
    r"""Joint energy model (JEM): the logits of a classifier give a density of rows and labels, up to its constant.

    .. math:: p(x, y) = \frac{e^{f_y(x)}}{Z}, \qquad p(x) = \frac{\sum_y e^{f_y(x)}}{Z}, \qquad
              p(y \mid x) = \operatorname{softmax}(f(x))_y

    times a base density :math:`p_0(x)` where there is one. The context is the label, ``(*batch, 1)`` with values
    0., ..., K - 1 and NaN where it is not known; without a context the law is the marginal. ``fit(gen, (x, label),
    Hybrid(ContrastiveDivergence(...)))`` maximises log p(x) + log p(y | x), rows without a label included.

    Parameters
    ----------
    net : nn.Module
        The logits f: ``(*batch, *event) -> (*batch, K)``.
    shape : sequence of int
        Shape of an event.
    kernel, base, start, steps, annealing
        As in ``EnergyBasedModel``.

    References
    ----------
    Grathwohl et al. (2020), Your classifier is secretly an energy based model and you should treat it like one,
    https://arxiv.org/abs/1912.03263

    >>> from probgen.nn import MLP
    >>> gen = JointEnergyModel(MLP(2, [16], 3), (2,))
    >>> gen.classify(torch.zeros(5, 2)).probs.shape, gen().log_prob(torch.zeros(5, 2)).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        *,
        kernel: Kernel = Langevin(0.01),  # noqa: B008 (immutable)
        base: DistributionModule | None = None,
        start: DistributionModule | None = None,
        steps: int = 200,
        annealing: Kernel = HMC(0.1),  # noqa: B008
    ):
        super().__init__()
        if base is not None and start is not None:
            raise ValueError("expected a base or a start, got both: chains start from the base; drop one")
        self.net, self.shape, self.kernel, self.steps, self.annealing = net, torch.Size(shape), kernel, steps, annealing
        self.tilted = base is not None
        self.start = base if base is not None else standard_normal(*shape) if start is None else start

    def forward(self, context: Tensor | None = None) -> LabelledEnergy:
        label = None if context is None else context.squeeze(-1)
        start, options = self.start(None), {"tilted": self.tilted, "annealing": self.annealing}
        return LabelledEnergy(self.net, label, start, self.kernel, self.steps, **options)

    def classify(self, x: Tensor) -> dist.Categorical:
        """The law of the label given rows: ``(*batch, *event) -> batch_shape (*batch,)``."""
        return dist.Categorical(logits=self.net(x))
