"""Diffusions in discrete time whose noise is not Gaussian, for numbers and for labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import asked_given, batch_of, over_draws, seen_in_training
from probgen.core.foreign import row_by_row
from probgen.core.module import DistributionModule
from probgen.distributions.diffusion.additive import AdditiveNoise
from probgen.distributions.diffusion.discrete_diffused import DiscreteDiffused
from probgen.distributions.diffusion.labels import LabelNoise
from probgen.distributions.diffusion.samplers import ReverseSampler
from probgen.nn.encodings import OneHot


class _DiscreteDiffusion(DistributionModule):
    """What both families share: a network, a process of T steps, and how it is sampled.

    ``process`` is checked where its kind is known.
    """

    unknown_contexts = True
    context_declared_by = "net"
    context_hint = "build its network with context={size}"

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        process: AdditiveNoise | LabelNoise,
        sampler: ReverseSampler | None,
        context_dropout: float,
        context_ndim: int,
    ):
        checks.network(net=net)
        checks.sizes(shape=shape)
        checks.function(**checks.given(sampler=sampler))
        checks.within("[0, 1)", context_dropout=context_dropout)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = net
        self.shape = torch.Size(shape)
        self.process = process
        self.sampler = sampler
        self.context_dropout = context_dropout
        self.context_ndim = context_ndim

    @abstractmethod
    def _predicted(self, z: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """What the network says of z, for any leading dims."""

    def forward(self, context: Tensor | None = None) -> DiscreteDiffused:
        return DiscreteDiffused(
            asked_given(self, context, self._call),
            self.process,
            self.shape,
            batch_of(context, self.context_ndim),
            sampler=self.sampler,
            context=seen_in_training(self, context),
            context_ndim=self.context_ndim,
        )

    def _call(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        context = over_draws(context, t.shape, self.context_ndim)
        return self._predicted(z, t) if context is None else self._predicted(z, t, context)


class NonGaussianDiffusion(_DiscreteDiffusion):
    r"""Diffusion of real data in T steps, with Gamma noise or a mixture of normal distributions.

    .. math:: p(x \mid c) = \int p(z_T)\, p(x \mid z_1, c) \prod_{i=2}^T p(z_{i-1} \mid z_i, c)\, dz

    A network predicts the noise in :math:`z_i`, the process makes distributions of it. The density
    is a *bound*. ``fit`` with the default objective maximizes it; the objective ``Denoising()``
    minimizes the squared error of the prediction, which weights the steps for better samples.
    Missing entries (NaN) are refused. With Gaussian noise it is :class:`Diffusion
    <probgen.models.diffusion.Diffusion>`.

    Parameters
    ----------
    net : nn.Module
        Called ``net(x, t, context=None)`` with x ``(*batch, *event)`` and times t / T in (0, 1]
        ``(*batch,)``; gives the shape of x. For instance ``TimeMLP`` or ``UNet``.
    shape : sequence of int
        Shape of an event.
    process : AdditiveNoise
        :class:`GammaNoise <probgen.distributions.diffusion.gamma.GammaNoise>` or
        :class:`MixtureNoise <probgen.distributions.diffusion.mixture.MixtureNoise>`, with its
        schedule.
    sampler : ReverseSampler, optional
        ``Ancestral(num_steps)``, ``DDIM(num_steps, eta)``, ``Heun(num_steps)``,
        ``DPMSolver(num_steps)``; default: ancestral, in all T steps. Fewer steps are another
        distribution than the one that the bound scores.
    context_dropout : float
        Probability with which a row's context is made unknown in training mode, for the rules of
        :mod:`probgen.guidance`: ``gen(context).using(guidance=3.0)``.
    context_ndim : int
        Number of event dims of a context.

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239; Nachmani, Roman, Wolf (2021), Non Gaussian denoising diffusion
    models, https://arxiv.org/abs/2106.07582

    >>> from probgen.distributions.diffusion.gamma import GammaNoise
    >>> from probgen.distributions.diffusion.samplers import DDIM
    >>> from probgen.distributions.diffusion.schedules import LinearSchedule
    >>> from probgen.nn.time import TimeMLP
    >>> process = GammaNoise(LinearSchedule(), theta=0.1, num_times=100)
    >>> gen = NonGaussianDiffusion(TimeMLP(2, [32]), (2,), process, sampler=DDIM(10, eta=1.0))
    >>> gen().sample((5,)).shape, gen().density_kind
    (torch.Size([5, 2]), 'bound')
    """

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        process: AdditiveNoise,
        *,
        sampler: ReverseSampler | None = None,
        context_dropout: float = 0.0,
        context_ndim: int = 1,
    ):
        checks.has(("marginal", "mean_and_scale"), "pass GammaNoise(schedule)", process=process)
        super().__init__(net, shape, process, sampler, context_dropout, context_ndim)

    def _predicted(self, z: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        ndims = [len(self.shape), 0, self.context_ndim][: 2 + len(context)]
        return row_by_row(self.net, z, t, *context, ndims=ndims)


class CategoricalDiffusion(_DiscreteDiffusion):
    r"""Diffusion of labels 0., ..., K - 1 in T steps.

    They are masked, or replaced at random, and brought back.

    .. math:: p(z_{i-1} \mid z_i, c) = \prod_d \sum_j \tilde p(x_d = j \mid z_i, i, c)\,
              q(z_{i-1, d} \mid z_{id}, x_d = j)

    The density is a *bound* of masses, every divergence in closed form. ``fit`` with the default
    objective maximizes it; the objective ``Denoising()`` minimizes the cross-entropy of the
    predicted labels at random steps. Missing entries (NaN) are refused in scores; with
    ``AbsorbingNoise`` :func:`probgen.impute` draws them (*heuristic*).

    Parameters
    ----------
    net : nn.Module
        Called ``net(h, t, context=None)``. With events ``(C, *rest)`` h is ``(*batch, C * F,
        *rest)``, the F features of a label beside each other; the output is ``(*batch, C * K,
        *rest)``, the K logits of a label likewise. For instance, with F = ``process.states``,
        ``TimeMLP(D * F, outputs=D * K)`` for events ``(D,)`` and ``UNet((C * F, H, W), outputs=C *
        K)`` for images.
    shape : sequence of int
        Shape of an event, at least one dim.
    process : LabelNoise
        :class:`AbsorbingNoise <probgen.distributions.diffusion.labels.AbsorbingNoise>` or
        :class:`UniformNoise <probgen.distributions.diffusion.labels.UniformNoise>`, with number of
        levels and schedule.
    encode : nn.Module, optional
        Features of labels, ``(*shape) -> (*shape, F)``; default: indicators of all values that
        noised labels have.
    sampler : ReverseSampler, optional
        ``Ancestral(num_steps)``; default: all T steps. Fewer are another distribution than the one
        that the bound scores.
    context_dropout : float
        Probability with which a row's context is made unknown in training mode, for the rules of
        :mod:`probgen.guidance`: ``gen(context).using(guidance=3.0)``.
    context_ndim : int
        Number of event dims of a context.

    Raises
    ------
    ValueError
        If events have no dims; at a call, if the output of the network does not split into K logits
        per entry.

    References
    ----------
    Austin, Johnson, Ho, Tarlow, van den Berg (2021), Structured denoising diffusion models in
    discrete state-spaces, https://arxiv.org/abs/2107.03006; Hoogeboom et al. (2021), Argmax flows
    and multinomial diffusion, https://arxiv.org/abs/2102.05379

    >>> from probgen.distributions.diffusion.labels import AbsorbingNoise
    >>> from probgen.distributions.diffusion.schedules import EvenSchedule
    >>> from probgen.nn.time import TimeMLP
    >>> net = TimeMLP(4 * 4, [32], outputs=4 * 3)
    >>> gen = CategoricalDiffusion(net, (4,), AbsorbingNoise(3, EvenSchedule(), num_times=20))
    >>> gen().sample((5,)).shape, gen().support.check(gen().sample())
    (torch.Size([5, 4]), tensor(True))
    """

    process: LabelNoise

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        process: LabelNoise,
        *,
        encode: nn.Module | None = None,
        sampler: ReverseSampler | None = None,
        context_dropout: float = 0.0,
        context_ndim: int = 1,
    ):
        checks.sizes(1, 1, shape=shape)
        checks.has(("marginal", "states"), "pass UniformNoise(levels, schedule)", process=process)
        checks.network(**checks.given(encode=encode))
        super().__init__(net, shape, process, sampler, context_dropout, context_ndim)
        self.encode = OneHot(process.states) if encode is None else encode

    def _predicted(self, z: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """The logits of all labels of every entry."""
        ndim = len(self.shape)
        levels = self.process.levels
        features = self.encode(z).movedim(-1, -ndim).flatten(-ndim - 1, -ndim)
        ndims = [ndim, 0, self.context_ndim][: 2 + len(context)]
        output = row_by_row(self.net, features, t, *context, ndims=ndims)
        wanted = (*z.shape[: z.ndim - ndim], self.shape[0] * levels, *self.shape[1:])
        if output.shape != wanted:
            raise ValueError(
                f"expected logits of shape {tuple(wanted)} from the network, {levels} for each of "
                f"{prod(self.shape)} "
                f"entries, got {tuple(output.shape)}; set its outputs to {self.shape[0] * levels}"
            )
        return output.unflatten(-ndim, (self.shape[0], levels)).movedim(-ndim, -1)
