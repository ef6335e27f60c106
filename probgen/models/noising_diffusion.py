"""Diffusions in discrete time, with noise of any closed distribution.

For numbers and for labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import pyro
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import received
from probgen.core.foreign import row_by_row
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.distributions.noising.additive import AdditiveNoise
from probgen.distributions.noising.chain import NoisingChain, Step, ancestral
from probgen.distributions.noising.labels import LabelNoise
from probgen.nn.encodings import OneHot


class NoisingDiffusion(DistributionModule):
    r"""Diffusion of continuous data in T steps, whose noise is Gaussian, Gamma.

    Or a mixture of normal distributions.

    .. math:: p(x_0 \mid c) = \int p(x_T) \prod_{t=1}^T p(x_{t-1} \mid x_t, c)\, dx_{1:T}

    A network predicts the noise in :math:`x_t`, the process makes distributions of it. The density
    is a *bound*. ``fit`` with the default objective maximizes it; the objective ``Denoising()``
    minimizes the squared error of the predicted noise, which weights the steps for better samples.
    Missing entries (NaN) are refused.

    Parameters
    ----------
    net : nn.Module
        Called ``net(x, t, context=None)`` with x ``(*batch, *event)`` and times t / T in (0, 1]
        ``(*batch,)``; gives the shape of x. For instance ``TimeMLP`` or ``UNet``.
    shape : sequence of int
        Shape of an event.
    process : AdditiveNoise
        :class:`GaussianNoise <probgen.distributions.noising.additive.GaussianNoise>`,
        :class:`GammaNoise <probgen.distributions.noising.gamma.GammaNoise>` or :class:`MixtureNoise
        <probgen.distributions.noising.mixture.MixtureNoise>`, with its schedule.
    calls : int, optional
        Calls of the network for a draw; default: all T. Fewer are another distribution than the one
        that the bound scores.
    step : callable
        :func:`ancestral <probgen.distributions.noising.chain.ancestral>`,
        :func:`deterministic <probgen.distributions.noising.chain.deterministic>` or
        :func:`with_own_noise <probgen.distributions.noising.chain.with_own_noise>`.
    context_ndim : int
        Number of event dims of a context.

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239; Nachmani, Roman, Wolf (2021), Non Gaussian denoising diffusion
    models, https://arxiv.org/abs/2106.07582

    >>> from probgen.distributions.noising.gamma import GammaNoise
    >>> from probgen.distributions.noising.schedules import linear_steps
    >>> from probgen.nn.time import TimeMLP
    >>> gen = NoisingDiffusion(TimeMLP(2, [32]), (2,), GammaNoise(linear_steps(100), theta=0.1), calls=10)
    >>> gen().sample((5,)).shape, gen().density_kind
    (torch.Size([5, 2]), 'bound')
    """

    unknown_contexts = True
    context_hint = "build its network with context={size}"

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        process: AdditiveNoise,
        *,
        calls: int | None = None,
        step: Step = ancestral,
        context_ndim: int = 1,
    ):
        checks.network(net=net)
        checks.sizes(shape=shape)
        checks.has(("marginal", "posterior"), "pass GaussianNoise(schedule)", process=process)
        checks.at_least(1, **checks.given(calls=calls))
        checks.function(step=step)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = net
        self.shape = torch.Size(shape)
        self.process = process
        self.context_ndim = context_ndim
        self.calls = calls
        self.step = step
        self()  # refuses what does not fit

    @property
    def context_size(self) -> int | None:  # type: ignore[override]
        """What the network declares."""
        return getattr(self.net, "context_size", None)

    def forward(self, context: Tensor | None = None) -> NoisingChain:
        predict = _given(self.net, context, len(self.shape), self.context_ndim)
        batch = _batch(context, self.context_ndim)
        return NoisingChain(
            predict, self.process, self.shape, batch, calls=self.calls, step=self.step
        )

    def chain(self) -> UnrolledDiffusion:
        """The same model, parameters shared, as a program with a site for each step."""
        return UnrolledDiffusion(self)


class CategoricalDiffusion(DistributionModule):
    r"""Diffusion of labels 0., ..., K - 1 in T steps.

    They are masked, or replaced at random, and brought back.

    .. math:: p(x_{t-1} \mid x_t, c) = \prod_d \sum_j \tilde p(x_{0d} = j \mid x_t, t, c)\,
              q(x_{t-1, d} \mid x_{td}, x_{0d} = j)

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
        :class:`AbsorbingNoise <probgen.distributions.noising.labels.AbsorbingNoise>` or
        :class:`UniformNoise <probgen.distributions.noising.labels.UniformNoise>`, with number of
        levels and schedule.
    encode : nn.Module, optional
        Features of labels, ``(*shape) -> (*shape, F)``; default: indicators of all values that
        noised labels have.
    calls : int, optional
        Calls of the network for a draw; default: all T. Fewer are another distribution than the one
        that the bound scores.
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

    >>> from probgen.distributions.noising.labels import AbsorbingNoise
    >>> from probgen.distributions.noising.schedules import even_steps
    >>> from probgen.nn.time import TimeMLP
    >>> net = TimeMLP(4 * 4, [32], outputs=4 * 3)
    >>> gen = CategoricalDiffusion(net, (4,), AbsorbingNoise(3, even_steps(20)))
    >>> gen().sample((5,)).shape, gen().support.check(gen().sample())
    (torch.Size([5, 4]), tensor(True))
    """

    unknown_contexts = True
    context_hint = "build its network with context={size}"

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        process: LabelNoise,
        *,
        encode: nn.Module | None = None,
        calls: int | None = None,
        context_ndim: int = 1,
    ):
        checks.network(net=net)
        checks.sizes(1, 1, shape=shape)
        checks.has(("marginal", "states"), "pass UniformNoise(levels, schedule)", process=process)
        checks.network(**checks.given(encode=encode))
        checks.at_least(1, **checks.given(calls=calls))
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = net
        self.shape = torch.Size(shape)
        self.process = process
        self.context_ndim = context_ndim
        self.encode = OneHot(process.states) if encode is None else encode
        self.calls = calls
        self()  # refuses what does not fit

    @property
    def context_size(self) -> int | None:  # type: ignore[override]
        """What the network declares."""
        return getattr(self.net, "context_size", None)

    def forward(self, context: Tensor | None = None) -> NoisingChain:
        predict = _given(self._logits, context, len(self.shape), self.context_ndim)
        return NoisingChain(
            predict,
            self.process,
            self.shape,
            _batch(context, self.context_ndim),
            calls=self.calls,
            step=ancestral,
        )

    def chain(self) -> UnrolledDiffusion:
        """The same model, parameters shared, as a program with a site for each step."""
        return UnrolledDiffusion(self)

    def _logits(self, x: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        ndim = len(self.shape)
        levels = self.process.levels
        features = self.encode(x).movedim(-1, -ndim).flatten(-ndim - 1, -ndim)
        ndims = [ndim, 0, self.context_ndim][: 2 + len(context)]
        output = row_by_row(self.net, features, t, *context, ndims=ndims)
        wanted = (*x.shape[: x.ndim - ndim], self.shape[0] * levels, *self.shape[1:])
        if output.shape != wanted:
            raise ValueError(
                f"expected logits of shape {tuple(wanted)} from the network, {levels} for each of "
                f"{prod(self.shape)} "
                f"entries, got {tuple(output.shape)}; set its outputs to {self.shape[0] * levels}"
            )
        return output.unflatten(-ndim, (self.shape[0], levels)).movedim(-ndim, -1)


class UnrolledDiffusion(LatentVariableModel):
    r"""A diffusion told as the chain that it is: a latent site for each step.

    .. math:: p(x_T) \prod_{t=T}^{2} p(x_{t-1} \mid x_t)\; p(x \mid x_1), \qquad
              q(x_T \mid x) \prod_{t=T}^{2} q(x_{t-1} \mid x_t, x)

    Sites: latent ``"x_T"``, ..., ``"x_1"``, observed ``"x"``, all in plate ``"data"``; the guide
    has no parameters. ``ELBO`` of it is the bound of the diffusion over all steps at once, at T
    calls of the network, and :func:`probgen.log_likelihood` averages importance weights of whole
    chains: for small T.

    Parameters
    ----------
    diffusion : NoisingDiffusion or CategoricalDiffusion
        The model; parameters are its own.

    >>> from probgen.distributions.noising.additive import GaussianNoise
    >>> from probgen.distributions.noising.schedules import linear_steps
    >>> from probgen.nn.time import TimeMLP
    >>> gen = NoisingDiffusion(TimeMLP(2, [8]), (2,), GaussianNoise(linear_steps(5))).chain()
    >>> gen().log_prob(torch.zeros(3, 2)).shape, gen().density_kind
    (torch.Size([3]), 'unbiased')
    """

    context_from = "diffusion"

    def __init__(self, diffusion: NoisingDiffusion | CategoricalDiffusion):
        checks.instance((NoisingDiffusion, CategoricalDiffusion), diffusion=diffusion)
        super().__init__()
        self.diffusion = diffusion
        self.context_ndim = diffusion.context_ndim

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        context = received(self, context)
        distribution = self.diffusion(context)
        steps = self.diffusion.process.steps
        with data_plate(x, context):
            state = pyro.sample(f"x_{steps}", distribution.process.prior(distribution.event_shape))
            for t in range(steps, 1, -1):
                state = pyro.sample(
                    f"x_{t - 1}", distribution.reverse(state, *self._steps(state, t))
                )
            return pyro.sample("x", distribution.reverse(state, *self._steps(state, 1)), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        context = received(self, context)
        if x is None:  # all latents belong to rows: no globals to draw
            return
        process = self.diffusion.process
        process.check(x)
        with data_plate(x, context):
            state = pyro.sample(
                f"x_{process.steps}", process.marginal(x, self._steps(x, process.steps)[0])
            )
            for t in range(process.steps, 1, -1):
                distribution = process.posterior(state, x, *self._steps(state, t))
                state = pyro.sample(f"x_{t - 1}", distribution)

    def _steps(self, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Steps t and t - 1 for each row of a state."""
        lead = state.shape[: state.ndim - len(self.diffusion.shape)]
        step = torch.full(lead, t, device=state.device)
        return step, step - 1


def _given(
    net: Callable[..., Tensor], context: Tensor | None, event_ndim: int, context_ndim: int
) -> Callable:
    """The network with its context, which is repeated over draws to the left of its rows."""
    given = () if context is None else (context,)
    ndims = (event_ndim, 0, context_ndim)[: 2 + len(given)]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - event_ndim]
        wide = [c.expand(*lead, *c.shape[c.ndim - context_ndim :]) for c in given]
        return row_by_row(net, x, t, *wide, ndims=ndims)

    return predict


def _batch(context: Tensor | None, context_ndim: int) -> torch.Size:
    return torch.Size() if context is None else context.shape[: context.ndim - context_ndim]
