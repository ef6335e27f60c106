"""A discrete model given uncertain evidence, as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from probgen.core.module import DistributionModule
from probgen.distributions.graphical.discrete_network import _DiscreteDistribution


class Given(DistributionModule):
    r"""A discrete model given likelihoods of the values of some variables.

    .. math:: p(x \mid e) \propto p(x) \prod_v \lambda_v(x_v)

    It is sampled, imputed and scored like any model.

    Parameters
    ----------
    gen : DistributionModule
        A model of discrete variables with exact sums: a network of discrete nodes, a Chow-Liu tree,
        a Markov random field that is narrow enough.
    likelihoods : mapping of int to Tensor
        Likelihoods ``(K,)`` of the values of variables, by their places; ``(n, K)`` for n rows that
        each have their own.

    Raises
    ------
    TypeError
        When called, if the model's distribution has no exact sums.
    ValueError
        When called, if the evidence is impossible.

    >>> import torch
    >>> from probgen.models.chow_liu import ChowLiu
    >>> gen = Given(ChowLiu((2, 2)), {0: torch.tensor([0.9, 0.1])})
    >>> gen().log_prob(torch.tensor([0.0, torch.nan])).exp()
    tensor(0.9000, grad_fn=<ExpBackward0>)
    """

    context_from = "gen"

    def __init__(self, gen: DistributionModule, likelihoods: Mapping[int, Tensor]):
        super().__init__()
        self.gen = gen
        self.places = tuple(likelihoods)
        self.any_rows = all(value.ndim == 1 for value in likelihoods.values())
        for place, value in likelihoods.items():
            self.register_buffer(f"likelihood_{place}", value)

    def forward(self, context: Tensor | None = None) -> _DiscreteDistribution:
        distribution = self.gen(context)
        if not isinstance(distribution, _DiscreteDistribution):
            raise TypeError(
                "expected a model of discrete variables with exact sums, got "
                f"{type(distribution).__name__}; "
                "add an observed child of the variable instead"
            )
        return distribution.given(
            {v: self.get_buffer(f"likelihood_{v}").log() for v in self.places}
        )
