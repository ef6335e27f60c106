"""p(x | context) of a latent-variable model as a distribution: sampled exactly, scored by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.contexts import batch_of
from probgen.core.kinds import average, density_kind, worst
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.core.runtime import isolated
from probgen.core.sites import density_sites, in_plate, latent_sites
from probgen.core.tempered import Tempered
from probgen.core.truncation import Truncation, changed_by, truncated
from probgen.core.weights import row_weights

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


class Marginal(BatchedDistribution):
    r"""The marginal :math:`p(x \mid c) = \int p(x, z \mid c)\,dz` of a model.

    Integrated by its own guide.

    ``sample`` runs the program forward; ``log_prob`` averages ``particles`` importance weights in
    probability space, an *unbiased* estimate of p(x), or what the weakest site makes of it: a
    *bound* under a diffusion prior. A fitted model's globals are drawn from its guide, in both.

    Parameters
    ----------
    gen : LatentVariableModel
        The model; its guide is called with ``x=None`` to draw globals, if it has any.
    context : Tensor, optional
        ``(*batch, C)`` gives ``batch_shape == batch``.
    particles : int
        Draws per row in ``log_prob``.
    """

    def __init__(self, gen: GenerativeModel, context: Tensor | None = None, particles: int = 16):
        checks.generative(gen=gen)
        checks.at_least(1, particles=particles)
        self.gen = gen
        self.context = context
        self.particles = particles
        batch = batch_of(context, gen.context_ndim)
        sites = self._probe()
        probe = sites["x"]
        distributions = [site["fn"] for site in sites.values()]
        kinds = (
            "unnormalized" if isinstance(distribution, dist.Unit) else density_kind(distribution)
            for distribution in distributions
        )
        self._support = probe["fn"].support
        self.density_kind = worst(getattr(gen, "marginal_kind", "unbiased"), *kinds)
        super().__init__(torch.Size(batch), probe["fn"].event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._support

    def _probe(self) -> dict[str, dict[str, Any]]:
        """The sites of one run on one row of context, with x drawn."""
        row = None if self.context is None else self._rows(self.context)[:1]
        with torch.no_grad(), isolated():
            sites = density_sites(poutine.trace(self.gen.model).get_trace(None, row))
        if "x" not in sites:
            raise ValueError(
                "expected a model with a site 'x' drawn when x is not given, got sites "
                f"{list(sites)}; rename the "
                "observed site, or use probgen.predictive(gen, ...) for programs with other "
                "arguments"
            )
        return sites

    def _rows(self, context: Tensor) -> Tensor:
        return context.reshape(-1, *context.shape[context.ndim - self.gen.context_ndim :])

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        draws = math.prod(shape)
        with torch.no_grad(), isolated():
            if self.context is not None:
                event = self.context.shape[self.context.ndim - self.gen.context_ndim :]
                x = self._with_globals(self.context.expand(*shape, *event).reshape(draws, *event))
            elif self.gen.vectorized:
                with pyro.plate("draws", draws, dim=-self.gen.max_plate_nesting - 1):
                    x = self._with_globals(None)
            else:
                x = torch.stack([self._with_globals(None) for _ in range(draws)])
        return x.reshape(shape + self.event_shape)

    def _with_globals(self, context: Tensor | None) -> Tensor:
        """Runs the model with globals from the guide; a model without globals runs as it is."""
        trace = poutine.trace(self.gen.model).get_trace(None, context)
        if all(in_plate(site, self.gen.plate) for site in latent_sites(trace).values()):
            drawn: Any = trace.nodes["_RETURN"]["value"]
            return drawn
        given = poutine.trace(self.gen.guide).get_trace(None, context)
        return poutine.replay(self.gen.model, trace=given)(None, context)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        shape = self.lead(x)
        rows = x.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        context = None
        if self.context is not None:
            tail = self.context.shape[self.context.ndim - self.gen.context_ndim :]
            context = self.context.expand(*shape, *tail).reshape(-1, *tail)
        batch = self.gen.settle((rows, context))
        observed = None if getattr(self.gen, "context_site", None) is None else ["x"]
        weights, kind = row_weights(self.gen, batch, self.particles, observed)
        value = average(weights, kind).reshape(shape)
        if values_are_known() and has_missing(value) and has_missing(x):
            raise ValueError(
                "expected complete rows, got NaN (missing values), which the distribution of x "
                "cannot integrate out; "
                "use a likelihood head of probgen, which can, or fill them in first"
            )
        return value

    def using(self, rule: Truncation) -> Marginal:
        """The marginal of the model with its latents at another temperature.

        ``log_prob`` is that of the changed model, scored by the same guide.
        """
        return changed_by(self, rule)


@truncated.register(Marginal)
def _(distribution: Marginal, rule: Truncation) -> Marginal:
    gen: Any = Tempered(distribution.gen, rule)
    changed = Marginal(gen, distribution.context, distribution.particles)
    return changed.expand(distribution.batch_shape)
