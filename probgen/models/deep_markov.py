"""Deep Markov model: a nonlinear state space model with a structured guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import beside_size, received
from probgen.core.missing import fill_missing, has_missing
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.ragged import Ragged
from probgen.distributions.sequences.latent_chain import LatentChain, with_inputs


class DeepMarkovModel(LatentVariableModel):
    r"""State space model with neural transition and emission.

    Its guide reads the present and later frames.

    .. math:: p(x, z \mid c) = \prod_{t=1}^{T} p(z_t \mid z_{t-1}, c)\, p(x_t \mid z_t, c), \qquad
              q(z \mid x, c) = \prod_{t=1}^{T} q(z_t \mid z_{t-1}, g_t), \quad g_t = \text{net}(x_T,
              \dots, x_t)

    Given the last latents, the posterior of :math:`z_t` depends on the frames from t on alone: the
    guide has the structure of the posterior. Sites: ``"z"`` of events ``(T, Z)``, ``"x"`` of events
    ``(T, D)``. A context ``(*batch, C)`` stands behind the inputs of transition, emission and
    network. Annealing: ``ELBO(beta=linear_warmup(steps))``.

    Missing entries of x (NaN) are integrated out by an emission that does so (every head); the
    network sees them as 0. Sequences end with their last frame that is not missing as a whole: what
    stands after it leaves the guide as it is and costs nothing, and draws of ``"z"`` go on by the
    transition.

    Parameters
    ----------
    transition : DistributionModule
        :math:`p(z_t \mid z_{t-1})`, events ``(Z,)``: ``Gaussian(GatedTransition(Z, 64))``.
    emission : DistributionModule
        :math:`p(x_t \mid z_t)`, events ``(D,)``: ``Bernoulli(MLP(Z, [64], D))``.
    network : nn.Module
        Summary of the frames, last frame first: ``(*batch, T, D) -> (*batch, T, H)``, ``RNN(D,
        H)``. Output t may depend on its inputs 1, ..., t alone.
    combiner : DistributionModule
        :math:`q(z_t \mid z_{t-1}, g_t)` with exact density, given ``(*batch, Z + H)``:
        ``Gaussian(Combiner(Z, H))``, or a conditional flow whose draws have gradients.
    shape : (int, int)
        Number T of frames and length Z of the latents.

    References
    ----------
    Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models,
    https://arxiv.org/abs/1609.09869

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.nn.recurrent import RNN, Combiner, GatedTransition
    >>> transition, combiner = Gaussian(GatedTransition(2, 8)), Gaussian(Combiner(2, 8))
    >>> gen = DeepMarkovModel(transition, Bernoulli(nn.Linear(2, 4)), RNN(4, 8), combiner, (10, 2))
    >>> gen().sample((5,)).shape
    torch.Size([5, 10, 4])
    """

    unknown_contexts = False
    context_hint = "build its networks for {size} more inputs"

    def __init__(
        self,
        transition: DistributionModule,
        emission: DistributionModule,
        network: nn.Module,
        combiner: DistributionModule,
        shape: tuple[int, int],
    ):
        checks.generative(transition=transition, emission=emission, combiner=combiner)
        checks.network(network=network)
        checks.sizes(shape=shape)
        checks.length(2, shape=shape)
        super().__init__()
        self.transition = transition
        self.emission = emission
        self.network = network
        self.combiner = combiner
        self.length, self.start, self.guide_start = (
            shape[0],
            *(nn.Parameter(torch.zeros(shape[1])) for _ in range(2)),
        )

    @property
    def context_size(self) -> int | None:
        """What the transition or the emission takes beside the latents."""
        latents = len(self.start)
        sizes = [beside_size(part, latents) for part in (self.transition, self.emission)]
        return next((size for size in sizes if size is not None), None)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        size = self.context_size
        context = self.start.new_zeros(size) if size else None
        with torch.no_grad():
            entry = self.decode(self.start.expand(self.length, -1), context).event_shape[1:]
        return Ragged(self.length, entry, longer=f"shape=({{0}}, {len(self.start)})")

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        context = received(self, context)
        with data_plate(x, context):
            z = pyro.sample("z", self.prior(context, _counts(x)))
            return pyro.sample("x", self.decode(z, context), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        if x is None:  # all latents belong to rows: no globals to draw
            return
        context = received(self, context)
        with data_plate(x, context):
            pyro.sample("z", self.encode(x, context))

    def prior(self, context: Tensor | None = None, counts: Tensor | None = None) -> LatentChain:
        """The distribution of the latents.

        ``counts`` says which steps of every row belong to its sequence, ``(*batch, T)``.
        """
        inputs = (
            None
            if context is None
            else _each_step(context).expand(*context.shape[:-1], self.length, -1)
        )
        return LatentChain(self.transition, self.start, self.length, inputs, counts)

    def decode(self, z: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """The likelihood p(x | z, c): ``(*batch, T, Z) -> batch_shape (*batch,)``, events ``(T, D)``."""
        return self.emission(
            with_inputs(z, None if context is None else _each_step(context))
        ).to_event(1)

    def encode(self, x: Tensor, context: Tensor | None = None) -> LatentChain:
        """The approximate posterior q(z | x, c): ``(*batch, T, D) -> batch_shape (*batch,)``, events ``(T, Z)``."""
        counts = _counts(x)
        frames = with_inputs(fill_missing(x), None if context is None else _each_step(context))
        summary = _backwards(self.network(_backwards(frames, counts)), counts)
        beyond = None if counts is None else self.prior(context)
        return LatentChain(self.combiner, self.guide_start, self.length, summary, counts, beyond)


def _each_step(context: Tensor) -> Tensor:
    return context.unsqueeze(-2)


def _counts(x: Tensor | None) -> Tensor | None:
    """Which steps have an observed value at them or after them, ``(*batch, T, D) -> (*batch, T)``.

    None for all.
    """
    if x is None or not has_missing(x):
        return None
    return (~x.isnan()).any(-1).flip(-1).cumsum(-1).flip(-1) > 0


def _backwards(x: Tensor, counts: Tensor | None) -> Tensor:
    """The steps that count in reverse order, the others where they are.

    ``(*batch, T, D)``; its own inverse.
    """
    if counts is None:
        return x.flip(-2)
    here = torch.arange(x.shape[-2], device=x.device)
    index = torch.where(counts, counts.sum(-1, keepdim=True) - 1 - here, here)
    return x.take_along_dim(index.unsqueeze(-1), -2)
