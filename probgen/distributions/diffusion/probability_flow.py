"""The probability-flow equation of a diffusion as a normalizing flow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import refuse_moments
from probgen.core.missing import check_event
from probgen.core.precision import of_own_precision
from probgen.core.truncation import Truncation, tempered, truncated, using
from probgen.distributions.denoised import DenoisedPair
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.process import Denoiser, DiffusionPredictor
from probgen.distributions.diffusion.reconstruction import GaussianReconstruction
from probgen.distributions.flows.complete import refuse_incomplete
from probgen.distributions.flows.ode import ContinuousTransform, Solver
from probgen.distributions.guidance.rule import Rule, check_rule, draws_noise


@refuse_moments
class ReverseFlow(dist.TorchDistribution):
    r"""Data that the probability-flow equation takes to pure noise.

    .. math:: \frac{dz}{dt} = \dot\alpha_t\, \hat x(z, t) + \dot\sigma_t\, \hat\varepsilon(z, t), \qquad
              z_0 = \alpha_0 x

    Parameters
    ----------
    diffused : GaussianDiffused
        A diffusion of real data.
    solver, probes, parameters
        As for :class:`ContinuousTransform <probgen.distributions.flows.ode.ContinuousTransform>`.

    Raises
    ------
    ValueError
        If the data are integers; from ``log_prob``, if an entry is missing (NaN).

    References
    ----------
    Song et al. (2021), https://arxiv.org/abs/2011.13456, section 4.3
    """

    arg_constraints: dict = {}
    has_rsample = False
    density_kind = "approximate"
    costly_density = True

    def __init__(
        self,
        diffused: GaussianDiffused,
        solver: Solver,
        probes: Callable[[Tensor], Tensor],
        parameters: Callable[[], Sequence[Tensor]] = tuple,
    ):
        if not isinstance(diffused.reconstruction, GaussianReconstruction):
            raise ValueError(
                f"expected a diffusion of real data, got {diffused.reconstruction}; integers have "
                "masses: use "
                "Quantized(ProbabilityFlow(...)) with a GaussianReconstruction"
            )
        self.diffused = diffused
        self.transform = ContinuousTransform(
            self._velocity, solver, probes, parameters, len(diffused.event_shape)
        )
        super().__init__(diffused.batch_shape, diffused.event_shape, validate_args=False)

    @property
    def predictor(self) -> DiffusionPredictor:
        """The network, as rules of guidance are shown it."""
        return self.diffused.predictor

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @of_own_precision
    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        refuse_incomplete(x)
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))
        alpha, scale = self._ends(x)
        z, ladj = self.transform.call_and_ladj(alpha * x)
        standard = self.diffused.noise.log_prob(z / scale)
        return standard + ladj + self.event_shape.numel() * (alpha.log() - scale.log())

    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss of the diffusion: ``(*batch, *event) -> (*batch,)``."""
        return self.diffused.denoising_loss(x)

    def denoised_pair(self, x: Tensor, other: ReverseFlow) -> DenoisedPair:
        """What the diffusion and that of another flow say of the same noised rows."""
        return self.diffused.denoised_pair(x, other.diffused)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        noise = self.diffused.noise.sample(torch.Size(sample_shape) + self.batch_shape)
        alpha, scale = self._ends(noise)
        guided = self.diffused.guided()
        random = draws_noise(self.diffused.guidance)
        transform = self.transform.along(partial(self._slope, guided), random)
        return transform.inv(scale * noise) / alpha

    def using(
        self, solver: Solver | Truncation | None = None, guidance: Rule | float | None = None
    ) -> ReverseFlow:
        """The same distribution with its equation solved in another way.

        Or drawn under guidance, of which ``log_prob`` knows nothing; or, with
        ``Truncation(temperature=0.7)``, that of noise of less deviation.
        """
        if isinstance(solver, Truncation):
            return using(self, solver)
        check_rule(**checks.given(guidance=guidance))
        new = copy.copy(self)
        new.diffused = self.diffused.using(guidance=guidance)
        if solver is not None:
            new.transform = self.transform.using(solver)
        return new

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ReverseFlow:
        new = copy.copy(self)
        new.diffused = self.diffused.expand(batch_shape)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _velocity(self, t: Tensor, z: Tensor) -> Tensor:
        return self._slope(self.diffused.denoiser, t, z)

    def _slope(self, denoiser: Denoiser, t: Tensor, z: Tensor) -> Tensor:
        process = self.diffused.process
        t = t.to(z.dtype)
        x = denoiser.denoise(z, t)
        alpha, sigma = process.schedule(t)
        signal, noise = process.rates(t)
        return signal * x + noise * (z - alpha * x) / sigma

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The signal at time 0, and the standard deviation at time 1."""
        zero = torch.zeros_like(like[(0,) * like.ndim])
        return self.diffused.process.schedule(zero)[0], self.diffused.process.prior_scale(zero)


@truncated.register(ReverseFlow)
def _(distribution: ReverseFlow, rule: Truncation) -> ReverseFlow:
    new = copy.copy(distribution)
    new.diffused = copy.copy(distribution.diffused)
    new.diffused.noise = tempered(distribution.diffused.noise, rule)
    return new
