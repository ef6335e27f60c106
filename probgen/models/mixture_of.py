"""Mixtures of any families: of flows, of a flow and a Gaussian, of experts chosen by a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import common_size, distribution_given
from probgen.core.entry import as_rows
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.mixture_of import MixtureOf
from probgen.distributions.support import responsibilities
from probgen.nn import Constant


class Mixture(DistributionModule):
    r"""A mixture of families.

    Each row comes from one of K components, which need not be of one kind.

    .. math:: p(x \mid c) = \sum_k w_k(c)\, p_k(x \mid c)

    Its density is of the weakest kind of those of its components (a *bound* becomes *approximate*).
    Closed-form conditionals, and imputation by them, work where they do for every component.

    Parameters
    ----------
    components : sequence of DistributionModule
        The families, all of the same events; all are called with the context.
    weights : nn.Module, optional
        Network from the context to K logits; default: learned weights that are the same for all
        rows. A network makes a mixture of experts.

    Raises
    ------
    ValueError
        If there is no component, or components take contexts of different numbers of dims.

    References
    ----------
    Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive mixtures of local experts,
    https://doi.org/10.1162/neco.1991.3.1.79

    >>> import torch
    >>> from probgen.heads import Gaussian, StudentT
    >>> gen = Mixture([Gaussian(Constant(4)), StudentT(Constant(6, initial=1.0))])
    >>> gen().log_prob(torch.zeros(5, 2)).shape, gen.responsibilities(torch.zeros(5, 2)).sum(-1)
    (torch.Size([5]), tensor([1., 1., 1., 1., 1.], grad_fn=<SumBackward1>))
    """

    context_hint = "build its parts with context={size}"
    summed_out = "components: gen.responsibilities(x), gen.predict(x)"

    def __init__(self, components: Sequence[DistributionModule], weights: nn.Module | None = None):
        checks.families(components=components)
        checks.network(**checks.given(weights=weights))
        super().__init__()
        ndims = {component.context_ndim for component in components}
        if len(ndims) != 1:
            raise ValueError(
                "expected components whose contexts have one number of event dims, got "
                f"{sorted(ndims)}"
            )
        self.components: Any = nn.ModuleList(components)
        self.context_ndim = ndims.pop()
        self.weights = (
            Constant(len(components), context_ndim=self.context_ndim)
            if weights is None
            else weights
        )

    @property
    def context_size(self) -> int | None:
        """What a component declares, or the network of the weights."""
        return common_size([*self.components, self.weights])

    @property
    def ragged(self) -> Ragged | None:  # type: ignore[override]
        """How a list of sequences becomes rows, if the components are of sequences."""
        own = [component.ragged for component in self.components]
        return None if None in own else own[0]

    def forward(self, context: Tensor | None = None) -> MixtureOf:
        return MixtureOf(
            self.weights(context),
            [distribution_given(component, context) for component in self.components],
        )

    def responsibilities(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The distribution :math:`p(k \mid x, c)` of the component of each row.

        ``(N, *event) -> (N, K)``.
        """
        x, context = (*as_rows(self, x, context), None)[:2]
        return responsibilities(self(context).joint(x))

    def predict(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The most probable component of each row: ``(N, *event) -> (N,)``, integers."""
        x, context = (*as_rows(self, x, context), None)[:2]
        return self(context).joint(x).argmax(-1)
