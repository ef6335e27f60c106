"""Diffusion models: a network takes Gaussian noise away, step by step or in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import asked_given, batch_of, over_draws, seen_in_training
from probgen.core.foreign import row_by_row
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.predictions import Prediction, Velocity
from probgen.distributions.diffusion.probability_flow import ReverseFlow
from probgen.distributions.diffusion.reconstruction import GaussianReconstruction, Reconstruction
from probgen.distributions.diffusion.samplers import Ancestral, ReverseSampler
from probgen.distributions.diffusion.schedules import CosineSchedule, Schedule, TabulatedSchedule
from probgen.distributions.diffusion.tables import Shares, alphas_bar
from probgen.distributions.diffusion.thresholds import Limit, StaticThreshold, Threshold
from probgen.distributions.diffusion.times import Times, UniformTimes
from probgen.distributions.diffusion.variances import PosteriorVariance, Variance
from probgen.distributions.flows.ode import Adaptive, Solver, basis


class Diffusion(DistributionModule):
    r"""Diffusion model.

    Noise is added to data by a fixed process, and a network learns to take it away.

    .. math:: z_t = \alpha_t x + \sigma_t \varepsilon, \qquad
              \hat x(z_t, t) \approx E[x \mid z_t], \qquad p(x) = \int p(z_1) \prod p(z_s \mid
              z_t)\, p(x \mid z_0)\, dz

    Train it by ``fit(gen, x, Denoising())`` for samples, or by the default objective, the
    variational bound, for likelihoods. ``log_prob`` is an estimate of that bound at one random
    time, in nats: its kind is *bound*. The network sees data in the units that they have:
    standardize them (:class:`Standardized <probgen.models.standardized.Standardized>`), scale
    pixels to [-1, 1], or give ``reconstruction= LevelReconstruction(levels)`` for integers, which
    are then scored by their mass, best with ``LevelPrediction``.

    ``gen(context).using(DDIM(20), guidance=3.0).sample((n,))`` samples in another way than
    ``gen.sampler``, guided by a rule of :mod:`probgen.guidance`, a number being the weight of
    classifier-free guidance; ``impute`` draws missing entries by RePaint; ``gen(context).encode(x)``
    and ``decode(z)`` follow the probability-flow equation, of which :class:`ProbabilityFlow` is the
    density; :class:`DiffusionChain <probgen.models.diffusion_chain.DiffusionChain>` tells the same
    model as a chain of latent sites. For draws of one to four calls distill it:
    :class:`Consistency <probgen.objectives.Consistency>`, :class:`ProgressiveDistillation
    <probgen.objectives.ProgressiveDistillation>`.

    Parameters
    ----------
    net : nn.Module
        ``net(z, t, context=None)``: states ``(*batch, *event)``, times ``(*batch,)`` and contexts
        ``(*batch, C)`` to the shape of z, or with ``LearnedVariance`` to twice as many along the
        first event dim. Where contexts may be unknown, it takes ``None`` and rows of NaN for that,
        as the networks of :mod:`probgen.nn` do.
    shape : sequence of int
        Shape of an event.
    schedule : Schedule, or sequence of float or Tensor
        Levels of signal and noise; default: :class:`CosineSchedule
        <probgen.distributions.diffusion.schedules.CosineSchedule>`. Numbers ``(N,)`` are the shares
        of signal :math:`\bar\alpha_t` of a published model where they fall, and its
        :math:`\beta_t` where they rise or stay: a :class:`TabulatedSchedule
        <probgen.distributions.diffusion.schedules.TabulatedSchedule>`, whose chain is that of
        ``num_times=N - 1`` and ``GaussianReconstruction(denoised=True)``.
    prediction : Prediction
        What the network predicts: ``Velocity()``, ``Epsilon()``, ``Original()``,
        ``EDM(sigma_data)``; for integers ``LevelPrediction(levels)``.
    num_times : int, optional
        Number T of times 1 / T, ..., 1 of the chain that is scored; ``None``: continuous time.
    sampler : ReverseSampler, optional
        ``Ancestral(num_steps)``, ``DDIM(num_steps, eta)``, ``Heun(num_steps, churn)``,
        ``DPMSolver(num_steps)``, ``PredictorCorrector(num_steps)``; default: ancestral in T steps,
        or 256.
    times : callable
        Times of the simple loss: ``UniformTimes()``, ``LogNormalTimes(mean, std)``.
    variance : Variance
        Of the reverse steps: ``PosteriorVariance()``, and with ``num_times`` also ``ForwardVariance()``
        and ``LearnedVariance()``.
    reconstruction : Reconstruction
        The distribution of the data given the least noisy state.
    threshold : Threshold, optional
        Bounds the data that the network expects, in sampling: ``StaticThreshold()`` to the range of
        the training data, ``DynamicThreshold(quantile)`` for strong guidance, ``None``: no bound.
    context_dropout : float
        Probability with which a row's context is made unknown in training mode, for guidance.
    context_ndim : int
        Number of event dims of a context.

    Raises
    ------
    ValueError
        If other variances than the posterior's are asked for in continuous time, or numbers of a
        schedule are neither betas nor shares of signal.

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239; Kingma, Salimans, Poole, Ho (2021), Variational diffusion
    models, https://arxiv.org/abs/2107.00630

    >>> import torch
    >>> from probgen.nn.time import TimeMLP
    >>> gen = Diffusion(TimeMLP(2, [16]), (2,), sampler=Ancestral(10))
    >>> gen().sample((5,)).shape, gen().log_prob(torch.zeros(5, 2)).shape, gen().density_kind
    (torch.Size([5, 2]), torch.Size([5]), 'bound')
    """

    unknown_contexts = True
    context_declared_by = "net"
    context_hint = "build its network with context={size}"
    noise: Any  # a standard normal of the shape of the rows

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        *,
        schedule: Schedule | Shares | None = None,
        prediction: Prediction = Velocity(),  # noqa: B008 (immutable)
        num_times: int | None = None,
        sampler: ReverseSampler | None = None,
        times: Times = UniformTimes(),  # noqa: B008
        variance: Variance = PosteriorVariance(),  # noqa: B008
        reconstruction: Reconstruction = GaussianReconstruction(),  # noqa: B008
        threshold: Threshold | None = StaticThreshold(),  # noqa: B008
        context_dropout: float = 0.0,
        context_ndim: int = 1,
    ):
        checks.network(net=net)
        checks.sizes(shape=shape)
        if schedule is not None and not callable(schedule):
            shares: Any = schedule
            schedule = TabulatedSchedule(alphas_bar(shares))
        checks.function(
            times=times, **checks.given(schedule=schedule, sampler=sampler, threshold=threshold)
        )
        checks.has(("inputs", "original"), "pass Velocity() or Epsilon()", prediction=prediction)
        checks.at_least(1, **checks.given(num_times=num_times))
        checks.has(("log_variance",), "pass PosteriorVariance()", variance=variance)
        checks.has(("support",), "pass GaussianReconstruction()", reconstruction=reconstruction)
        checks.within("[0, 1)", context_dropout=context_dropout)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        if num_times is None and not isinstance(variance, PosteriorVariance):
            raise ValueError(
                "expected PosteriorVariance() in continuous time, the limit of all variances, got "
                f"{variance}; give num_times, those of a chain"
            )
        self.net = net
        self.schedule = CosineSchedule() if schedule is None else schedule
        self.prediction = prediction
        self.variance = variance
        self.reconstruction = reconstruction
        self.sampler = Ancestral(num_times or 256) if sampler is None else sampler
        self.num_times = num_times
        self.times = times
        self.context_dropout = context_dropout
        self.context_ndim = context_ndim
        self.noise = standard_normal(*shape)
        self.limit = Limit(threshold)

    def forward(self, context: Tensor | None = None) -> GaussianDiffused:
        batch = batch_of(context, self.context_ndim)
        return GaussianDiffused(
            asked_given(self, context, self._call),
            self.process,
            self.noise(),
            batch,
            sampler=self.sampler,
            times=self.times,
            reconstruction=self.reconstruction,
            context=seen_in_training(self, context),
            context_ndim=self.context_ndim,
            limit=self.limit,
        )

    @property
    def process(self) -> GaussianNoise:
        """The noise that is added."""
        return GaussianNoise(
            self.schedule,
            self.prediction,
            self.variance,
            len(self.noise.loc.shape),
            self.num_times,
        )

    def _call(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        context = over_draws(context, t.shape, self.context_ndim)
        return row_by_row(
            self.net, z, t, context, ndims=[len(self.noise.loc.shape), 0, self.context_ndim]
        )


class ProbabilityFlow(DistributionModule):
    r"""The distribution of the ordinary differential equation that has the marginals of a diffusion.

    With its density.

    .. math:: \frac{dz}{dt} = \dot\alpha_t\, \hat x(z, t) + \dot\sigma_t\, \frac{z - \alpha_t \hat x(z, t)}{\sigma_t},
              \qquad \log p(x) = \log p_1(z_1) + D \log \alpha_0 + \int_0^1 \operatorname{tr}
              \frac{\partial \dot z} {\partial z}\, dt

    Were the denoiser the exact conditional expectation, both distributions were one. As it is not,
    this is the distribution of another model than the diffusion, whose density is therefore called
    *approximate*, whatever the solver. Its ``Denoising`` loss is that of the diffusion, whose
    parameters are shared.

    Parameters
    ----------
    diffusion : Diffusion
        Of real data.
    solver : Solver
        ``Adaptive(atol, rtol)`` or ``RungeKutta(num_steps)``.
    probes : callable
        ``basis`` for the trace, D products of vector and Jacobian; ``Rademacher(count)`` for an
        estimate of it.

    References
    ----------
    Song et al. (2021), Score-based generative modeling through stochastic differential equations,
    https://arxiv.org/abs/2011.13456, section 4.3

    >>> import torch
    >>> from probgen.nn.time import TimeMLP
    >>> flow = ProbabilityFlow(Diffusion(TimeMLP(2, [16]), (2,)))
    >>> flow().log_prob(torch.zeros(5, 2)).shape, flow().density_kind
    (torch.Size([5]), 'approximate')
    """

    context_from = "diffusion"

    def __init__(
        self,
        diffusion: Diffusion,
        solver: Solver = Adaptive(),  # noqa: B008 (immutable)
        probes: Callable[[Tensor], Tensor] = basis,
    ):
        checks.instance(Diffusion, diffusion=diffusion)
        checks.function(solver=solver, probes=probes)
        super().__init__()
        self.diffusion = diffusion
        self.solver = solver
        self.probes = probes
        self.context_ndim = diffusion.context_ndim

    def forward(self, context: Tensor | None = None) -> ReverseFlow:
        parameters = lambda: [*self.diffusion.parameters(), *([] if context is None else [context])]  # noqa: E731
        return ReverseFlow(self.diffusion(context), self.solver, self.probes, parameters)
