"""Recurrent networks over sequences of vectors, and the small networks of deep Markov models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class RNN(Recorded, nn.Module):
    """Recurrent network, ``(*batch, T, inputs) -> (*batch, T, hidden)``.

    Output t depends on inputs 1, ..., t.

    Parameters
    ----------
    inputs : int
        Length of the vectors of the sequence.
    hidden : int
        Length of the state of a layer, and of the output.
    layers : int
        Number of layers, one upon the other.
    cell : callable
        Makes a layer from the lengths of its input and state: ``nn.GRUCell``, ``nn.LSTMCell``,
        ``nn.RNNCell``.
    dropout : float
        Probability with which entries of the input and of the output of every layer are dropped in
        training; states pass from step to step undropped (Zaremba, Sutskever, Vinyals 2014,
        https://arxiv.org/abs/1409.2329).

    Raises
    ------
    ValueError
        If the rightmost dim of the input is not ``inputs``.

    References
    ----------
    Cho et al. (2014), https://arxiv.org/abs/1406.1078 (GRU);
    Hochreiter, Schmidhuber (1997), https://doi.org/10.1162/neco.1997.9.8.1735 (LSTM)

    >>> rnn = RNN(3, 8, layers=2, cell=nn.LSTMCell)
    >>> rnn(torch.zeros(4, 7, 10, 3)).shape
    torch.Size([4, 7, 10, 8])
    >>> output, state = rnn.step(torch.zeros(4, 7, 3))
    >>> output.shape
    torch.Size([4, 7, 8])
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        layers: int = 1,
        cell: Callable[[int, int], nn.Module] = nn.GRUCell,
        dropout: float = 0.0,
    ):
        checks.at_least(1, inputs=inputs, hidden=hidden, layers=layers)
        checks.factory(cell=cell)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden
        self.drop = nn.Dropout(dropout)
        self.cells = nn.ModuleList(
            cell(hidden if layer else inputs, hidden) for layer in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self._check(x).reshape(-1, *x.shape[-2:])
        for cell in self.cells:
            state = None
            outputs = []
            for entry in self.drop(h).unbind(-2):
                state = cell(entry, state)
                outputs.append(_output(state))
            h = torch.stack(outputs, -2)
        return self.drop(h).view(*x.shape[:-1], self.hidden)

    def step(self, x: Tensor, states: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """One step, ``(*batch, inputs) -> (*batch, hidden)``, and the states to give to the next.

        At first None.
        """
        h = self._check(x).reshape(-1, self.inputs)
        kept = []
        for index, cell in enumerate(self.cells):
            kept.append(cell(self.drop(h), states[index] if states else None))
            h = _output(kept[-1])
        return self.drop(h).view(*x.shape[:-1], self.hidden), kept

    def _check(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected vectors of length {self.inputs}, got {tuple(x.shape)}; build the RNN "
                "with "
                f"inputs={x.shape[-1]} (for a sequence model: length of a frame + length of the "
                "context)"
            )
        return x


def _output(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """What a cell shows of its state: an LSTM keeps a second tensor to itself."""
    return state[0] if isinstance(state, tuple) else state


class GatedTransition(Recorded, nn.Module):
    r"""Raw parameters of a Gaussian transition between latents.

    ``(*batch, Z + C) -> (*batch, 2 Z)``.

    .. math:: g = \sigma(\text{MLP}_g(z)), \quad h = \text{MLP}_h(z), \quad
              \mu = (1 - g) \odot (W z + b) + g \odot h, \quad \text{scale} = W_s\, \text{relu}(h) +
              b_s

    Each dim chooses between a linear map, which starts as the identity, and a nonlinear one. For
    the head ``Gaussian``; entries behind the first Z (a context) are seen by all maps.

    Parameters
    ----------
    latent : int
        Number Z of latents.
    hidden : int
        Hidden units of either perceptron.
    context : int
        Length C of what stands behind the latents.

    References
    ----------
    Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models,
    https://arxiv.org/abs/1609.09869

    >>> GatedTransition(3, 16)(torch.zeros(4, 7, 3)).shape
    torch.Size([4, 7, 6])
    """

    def __init__(self, latent: int, hidden: int, context: int = 0):
        checks.at_least(1, latent=latent, hidden=hidden)
        checks.at_least(0, context=context)
        super().__init__()
        self.inputs = inputs = latent + context
        self.gate = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, latent), nn.Sigmoid()
        )
        self.proposal = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, latent)
        )
        self.linear = nn.Linear(inputs, latent)
        self.scale = nn.Linear(latent, latent)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(latent, inputs))
            self.linear.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        gate = self.gate(z)
        proposal = self.proposal(z)
        loc = torch.lerp(self.linear(z), proposal, gate)
        return torch.cat((loc, self.scale(proposal.relu())), -1)


class Combiner(Recorded, nn.Module):
    r"""Raw parameters of a Gaussian guide of latents, ``(*batch, Z + H) -> (*batch, 2 Z)``.

    .. math:: h = \tfrac12 (\tanh(W z + b) + g), \quad \mu = W_\mu h + b_\mu, \quad \text{scale} = W_s h + b_s

    for z the first Z entries of the input (the last latents), and g the other H (a summary of
    data).

    Parameters
    ----------
    latent : int
        Number Z of latents.
    summary : int
        Length H of the summary.

    References
    ----------
    Krishnan, Shalit, Sontag (2017), https://arxiv.org/abs/1609.09869

    >>> Combiner(3, 16)(torch.zeros(4, 7, 19)).shape
    torch.Size([4, 7, 6])
    """

    def __init__(self, latent: int, summary: int):
        checks.at_least(1, latent=latent, summary=summary)
        super().__init__()
        self.inputs = latent + summary
        self.sizes = (latent, summary)
        self.widen = nn.Linear(latent, summary)
        self.last = nn.Linear(summary, 2 * latent)

    def forward(self, both: Tensor) -> Tensor:
        z, summary = both.split(self.sizes, -1)
        return self.last((self.widen(z).tanh() + summary) / 2)
