"""Generative adversarial networks: the family, whatever objective trains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.contexts import check_given, needs_beside, size_beside
from probgen.core.module import DistributionModule
from probgen.core.turns import same_random_state
from probgen.distributions.implicit import Implicit


class GAN(DistributionModule):
    r"""A network of noise, an implicit model: it is sampled in one pass, and has no density.

    .. math:: x = g(z), \quad z \sim p_0; \qquad \text{with a context} \quad x = g(z, c)

    Trained by ``Adversarial(critic)`` or ``Discrepancy(MMD())``. The critic belongs to the
    objective: the same network of noise learns from any of them. With a context the generator is
    called with two arguments, ``generator(z, context)`` (:class:`SideBySide
    <probgen.nn.side_by_side.SideBySide>` makes one of any network of one argument), and so is the
    critic. Of texts both see what an encoder makes of them as one vector: ``SideBySide(network,
    encode=Pooled(TextEncoder(levels, length)))`` and ``DCGANCritic(shape, context=TextEncoder(levels,
    length))``.

    Parameters
    ----------
    generator : nn.Module
        ``(*batch, *noise) -> (*batch, *event)``, in whose eval mode rows do not depend on each
        other.
    base : DistributionModule
        The distribution of the noise z, without context.
    event_shape : sequence of int, optional
        Shape of x; without it the generator is run once to see. To be given for a generator that
        needs a context.
    context_ndim : int
        Number of event dims of a context: 1 for vectors, 3 for images.
    support : Constraint
        Where the entries of x lie, for instance ``constraints.interval(-1, 1)`` after a last layer
        of tanh.

    Raises
    ------
    ValueError
        If the event shape is not given and the generator does not run on noise alone.

    References
    ----------
    Goodfellow et al. (2014), Generative adversarial networks, https://arxiv.org/abs/1406.2661;
    Mirza, Osindero (2014), Conditional generative adversarial nets, https://arxiv.org/abs/1411.1784

    >>> from probgen.core.module import standard_normal
    >>> from probgen.nn.mlp import MLP
    >>> gan = GAN(MLP(2, [16], 3), standard_normal(2))
    >>> gan().sample((5,)).shape, gan().density_kind
    (torch.Size([5, 3]), 'implicit')
    """

    unknown_contexts = False
    context_declared_by = "generator"
    context_hint = (
        "build its generator as SideBySide(network) of {size} more inputs, and give event_shape="
    )

    def __init__(
        self,
        generator: nn.Module,
        base: DistributionModule,
        event_shape: Sequence[int] | None = None,
        *,
        context_ndim: int = 1,
        support: constraints.Constraint = constraints.real,
    ):
        checks.network(generator=generator)
        checks.generative(base=base)
        checks.sizes(**checks.given(event_shape=event_shape))
        checks.at_least(0, context_ndim=context_ndim)
        checks.instance(constraints.Constraint, support=support)
        super().__init__()
        self.generator = generator
        self.base = base
        self.context_ndim = context_ndim
        self.support = support
        self.event_shape = self._seen() if event_shape is None else torch.Size(event_shape)
        self.context_size = size_beside(generator, base().event_shape)
        self.needs_context = self.context_size is None and needs_beside(generator)

    def forward(self, context: Tensor | None = None) -> Implicit:
        check_given(context, self.needs_context, "generator")
        return Implicit(
            self.generator,
            self.base(),
            self.event_shape,
            context=context,
            context_ndim=self.context_ndim,
            support=self.support,
        )

    @torch.no_grad()
    def _seen(self) -> torch.Size:
        """The event shape of one run, which leaves random state and mode as they were."""
        training = self.generator.training
        self.generator.eval()
        try:
            with same_random_state():
                return self.generator(self.base().sample((2,))).shape[1:]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"expected a generator that runs on noise alone, got {type(error).__name__}: "
                f"{error}; for one that "
                "takes a context give event_shape=..."
            ) from error
        finally:
            self.generator.train(training)
