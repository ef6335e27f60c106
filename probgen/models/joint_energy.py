"""A classifier as a joint density of rows and labels."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from probgen.core.given_labels import check_label_batch
from probgen.distributions.energy.labeled import LabeledEnergy
from probgen.distributions.energy.module import EnergyModule


class JointEnergyModel(EnergyModule):
    r"""Joint energy model (JEM).

    The logits of a classifier give a density of rows and labels, up to its constant.

    .. math:: p(x, y) = \frac{e^{f_y(x)}}{Z}, \qquad p(x) = \frac{\sum_y e^{f_y(x)}}{Z}, \qquad
              p(y \mid x) = \operatorname{softmax}(f(x))_y

    times a base density :math:`p_0(x)` where there is one. The context is the label, as for
    :class:`SemiSupervisedVAE <probgen.SemiSupervisedVAE>`: ``(N,)`` integers or numbers 0, ...,
    K - 1, NaN where it is not known; without a context the distribution is the marginal.
    ``fit(gen, Labeled(x, y), Hybrid(ContrastiveDivergence(...)))`` maximizes
    log p(x) + log p(y | x), rows without a label included.

    Parameters
    ----------
    net : nn.Module
        The logits f: ``(*batch, *event) -> (*batch, K)``.
    shape, kernel, base, start, num_steps, annealing
        As in :class:`EnergyBasedModel <probgen.models.energy.EnergyBasedModel>`.

    Raises
    ------
    ValueError
        At the call, for labels of another shape, and others than 0, ..., K - 1 and NaN.

    References
    ----------
    Grathwohl et al. (2020), Your classifier is secretly an energy based model and you should treat
    it like one, https://arxiv.org/abs/1912.03263

    >>> import torch
    >>> from probgen.nn import MLP
    >>> gen = JointEnergyModel(MLP(2, [16], 3), (2,))
    >>> gen.classify(torch.zeros(5, 2)).probs.shape, gen().log_prob(torch.zeros(5, 2)).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    context_ndim = 0
    unknown_contexts = True

    def forward(self, context: Tensor | None = None) -> LabeledEnergy:
        check_label_batch(context)
        start = self.start(None)
        options = {"tilted": self.tilted, "annealing": self.annealing}
        return LabeledEnergy(self.net, context, start, self.kernel, self.num_steps, **options)

    def classify(self, x: Tensor) -> dist.Categorical:
        """The distribution of the label given rows.

        ``(*batch, *event) -> batch_shape (*batch,)``.
        """
        return dist.Categorical(logits=self.net(x))
