"""The distribution that a network and the process it leads back give, whatever the noise."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.batched import refuse_moments
from probgen.core.missing import check_event
from probgen.core.precision import of_own_precision
from probgen.core.signatures import takes
from probgen.core.sums import sum_of
from probgen.core.truncation import Truncation, using
from probgen.distributions.diffusion.process import (
    Denoiser,
    DiffusionPredictor,
    NoiseNetwork,
    Process,
    refuse_missing,
)
from probgen.distributions.diffusion.samplers import ReverseSampler
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import Rule, check_rule


@refuse_moments
class Diffused(dist.TorchDistribution):
    r"""The distribution of data from which a network has learned to take noise away.

    .. math:: p(x) = \int p(z_1) \prod p(z_s \mid z_t)\; p(x \mid z)\, dz

    ``log_prob`` is an estimate of its variational bound at one random time: its kind is *bound*.
    Draws under guidance are of another distribution, whose density is not known: ``log_prob`` stays
    that of the model.

    Parameters
    ----------
    net : callable
        The network, ``net(inputs, time)`` without a context and ``net(inputs, time, context)`` with
        one.
    process : Process
        Its distributions.
    event_shape, batch_shape : sequence of int
        Shapes of the distribution.
    sampler : ReverseSampler
        How ``sample`` takes noise away.
    context : optional
        What the network is given, leading dims the ``batch_shape``.
    context_ndim : int
        Number of event dims of a context.

    Raises
    ------
    ValueError
        From ``log_prob``: if an entry is missing (NaN), or the rightmost dims of x are not
        ``event_shape``.
    """

    arg_constraints: dict = {}
    has_rsample = False
    density_kind = "bound"

    def __init__(
        self,
        net: NoiseNetwork,
        process: Process,
        event_shape: Sequence[int],
        batch_shape: Sequence[int],
        *,
        sampler: ReverseSampler,
        context: Any = None,
        context_ndim: int = 1,
    ):
        self.denoiser = Denoiser(net, process, len(event_shape), context, context_ndim)
        self.sampler = sampler
        self.guidance: Rule | None = None
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def process(self) -> Any:
        """The noise that was added."""
        return self.denoiser.process

    @property
    def predictor(self) -> DiffusionPredictor:
        """The network, as rules of guidance are shown it."""
        return self.denoiser.predictor

    @abstractmethod
    def bound_terms(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of ``log_prob``, by name: ``(*batch, *event) -> (*batch,)`` each."""

    @abstractmethod
    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss at one random time per row: ``(*batch, *event) -> (*batch,)``."""

    @abstractmethod
    def prior(self) -> dist.TorchDistribution:
        """The noise p(z_1), one event."""

    @abstractmethod
    def states(self) -> list[Tensor]:
        """The times of the latent states of the chain, from 1 to the least noisy state."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Checked data in the units in which noise is added to them."""

    @abstractmethod
    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """The distribution of the data given the least noisy state."""

    @abstractmethod
    def sampled(self) -> Denoiser:
        """What samplers ask, guided and bounded as draws are to be."""

    @abstractmethod
    def ended(self, z: Tensor, denoiser: Denoiser) -> Tensor:
        """The data, from the state in which a sampler ends."""

    @of_own_precision
    def log_prob(self, x: Tensor) -> Tensor:
        return sum_of(self.bound_terms(x).values())

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        lead = torch.Size(sample_shape) + self.batch_shape
        denoiser = self.sampled()
        return self.ended(self.sampler(denoiser, self.prior().sample(lead)), denoiser)

    def using(
        self, sampler: ReverseSampler | None = None, guidance: Rule | float | None = None
    ) -> Diffused:
        """The same distribution sampled in another way, or guided by a rule.

        A number is the weight of classifier-free guidance. Scores never use it.
        """
        if isinstance(sampler, Truncation):
            return using(self, sampler)
        check_rule(**checks.given(guidance=guidance))
        if sampler is not None and not takes(sampler, 2):
            raise TypeError(
                f"expected a sampler of a diffusion, got {sampler!r}; pass one such as DDIM(20) or "
                "DPMSolver(20), solvers of differential equations go with ProbabilityFlow"
            )
        new = copy.copy(self)
        new.sampler = self.sampler if sampler is None else sampler
        new.guidance = self.guidance if guidance is None else as_rule(guidance)
        return new

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Diffused:
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def guided(self) -> Denoiser:
        """The network and its process, guided where guidance is asked for."""
        return self.denoiser.guided(self.guidance)

    def complete(self, x: Tensor) -> Tensor:
        """Rows x with the dims of the batch; missing entries are refused."""
        check_event(x, self.event_shape)
        refuse_missing(x)
        return x.expand(torch.broadcast_shapes(x.shape, self.shape()))
