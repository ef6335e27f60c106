"""Autoregressive models of sequences of vectors: recurrent, convolutional, any causal network."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import batch_of, beside_size
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.sequences.latent_chain import with_inputs


class CausalNetwork(Protocol):
    """What a sequence model needs of its network, an ``nn.Module``.

    All steps at once, and one after the other.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """``(*batch, T, inputs) -> (*batch, T, hidden)``.

        Output t depends on inputs 1, ..., t alone.
        """

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """``(*batch, inputs) -> (*batch, hidden)``, and the state to give to the next step."""


class SequenceModel(DistributionModule):
    r"""Autoregressive model of sequences.

    The distribution of a frame depends on the earlier frames through a network's state.

    .. math:: p(x_{1:T} \mid c) = \prod_{t=1}^{T} p(x_t \mid h_t), \quad h_t = \text{net}([x_0, c], \dots, [x_{t-1}, c])

    The first input :math:`x_0` is learned. With ``RNN`` it is a recurrent model, with
    ``TemporalConvolution`` a WaveNet. The distribution of a frame is any conditional distribution:
    independent variables (a head), or dependent ones (NADE given the state: the RNN-NADE). A
    context, ``(*batch, C)``, stands beside every input.

    Shorter sequences are padded at the end by NaN; frames are observed or missing as a whole. Draws
    have full length, unless :class:`EndToken` (with :class:`StopOr`) or :class:`VariableLength` is
    around it.

    Parameters
    ----------
    network : CausalNetwork
        ``RNN(D + C, H)``, ``TemporalConvolution(D + C, H)`` or any module with their methods.
    emission : DistributionModule
        Distribution of a frame, events ``(D,)``, given a state ``(*batch, H)``; its density must be
        exact.
    shape : (int, int)
        Number T of frames and length D of a frame.

    References
    ----------
    Boulanger-Lewandowski, Bengio, Vincent (2012), Modeling temporal dependencies in
    high-dimensional sequences, https://arxiv.org/abs/1206.6392; van den Oord et al. (2016),
    WaveNet, https://arxiv.org/abs/1609.03499

    >>> from probgen.heads import Bernoulli
    >>> from probgen.nn.recurrent import RNN
    >>> gen = SequenceModel(RNN(4, 16), Bernoulli(nn.Linear(16, 4)), (10, 4))
    >>> gen().sample((5,)).shape
    torch.Size([5, 10, 4])
    """

    unknown_contexts = False
    context_hint = "build its network for {size} more inputs"

    def __init__(
        self, network: CausalNetwork, emission: DistributionModule, shape: tuple[int, int]
    ):
        checks.has(("step",), "pass RNN(...) or TemporalConvolution(...)", network=network)
        checks.generative(emission=emission)
        checks.sizes(shape=shape)
        checks.length(2, shape=shape)
        super().__init__()
        self.network = network
        self.emission = emission
        self.shape = tuple(shape)
        self.start = nn.Parameter(torch.zeros(shape[1]))

    @property
    def context_size(self) -> int | None:
        """What the network takes beside a frame."""
        return beside_size(self.network, self.shape[1])

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        return Ragged(self.shape[0], self.shape[1:], longer=f"shape=({{0}}, {self.shape[1]})")

    def forward(self, context: Tensor | None = None) -> Autoregressive:
        batch = batch_of(context)
        distributions = partial(self._distributions, context)
        steps = partial(self._steps, context)
        return Autoregressive(distributions, steps, self.shape, batch_shape=batch, entry_ndim=1)

    def _distributions(self, context: Tensor | None, x: Tensor) -> dist.TorchDistribution:
        start = self.start.expand(*x.shape[:-2], 1, -1)
        context = None if context is None else context.unsqueeze(-2)
        return self.emission(
            self.network(with_inputs(torch.cat((start, x[..., :-1, :]), -2), context))
        )

    def _steps(
        self, context: Tensor | None, lead: torch.Size
    ) -> Generator[dist.TorchDistribution, Tensor, None]:
        x = self.start.expand(*lead, -1)
        state = None
        for _ in range(self.shape[0]):
            hidden, state = self.network.step(with_inputs(x, context), state)
            x = yield self.emission(hidden)
