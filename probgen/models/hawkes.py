"""Hawkes processes: events in time that excite each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put
from probgen.distributions.sequences.hawkes import NO_EVENT, HawkesEvents

_EXCITED = 0.5  # expected number of events that one leads to, at the start of a fit


class HawkesProcess(DistributionModule):
    r"""Multivariate Hawkes process with exponential kernels: each event makes others likelier.

    .. math:: \lambda_k(t) = \mu_k + \sum_{t_i < t} a_{k m_i}\, \beta_{k m_i} e^{-\beta_{k m_i} (t - t_i)}

    Earthquakes and aftershocks, orders, messages, spikes. Exact density in a time that grows with
    the number of events, exact gradients, so that :func:`probgen.maximum_likelihood` fits it; draws
    by thinning. Events of a row are ``(most, 1)``, times in order, or ``(most, 2)``, times and marks
    0., ..., K - 1, with -1 after the last event; a list of sequences is padded so. The
    distribution, :class:`HawkesEvents`, also gives ``gen().intensities(x)``, and ``gen().rescaled(x)``,
    waiting times that are exponential where the model is right.

    Parameters
    ----------
    marks : int
        Number K of kinds of events.
    horizon : float
        Time T up to which sequences are observed, from 0.
    most : int
        Largest number of events of a sequence.

    References
    ----------
    Hawkes (1971), Spectra of some self-exciting and mutually exciting point processes,
    https://doi.org/10.1093/biomet/58.1.83; Ozaki (1979), Maximum likelihood estimation of Hawkes'
    self-exciting point processes, https://doi.org/10.1007/BF02480272

    >>> from probgen.infer.maximum_likelihood import maximum_likelihood
    >>> _ = torch.manual_seed(0)
    >>> gen = HawkesProcess(1, horizon=100.0, most=400)
    >>> x = gen.set(rates=0.5, branching=0.6, decay=2.0)().sample((8,))
    >>> _ = maximum_likelihood(gen, x, tol=1e-3)
    >>> (gen.branching - 0.6).abs().item() < 0.15
    True
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(self, marks: int, horizon: float, most: int):
        checks.at_least(1, marks=marks, most=most)
        checks.positive(horizon=horizon)
        super().__init__()
        self.marks, self.horizon, self.most = marks, float(horizon), most
        self.log_rates = nn.Parameter(torch.full((marks,), -math.log(horizon)))
        self.log_branching = nn.Parameter(torch.full((marks, marks), math.log(_EXCITED / marks)))
        self.log_decay = nn.Parameter(torch.full((marks, marks), math.log(10 / horizon)))

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: -1 after their last events."""
        return Ragged(self.most, (1 if self.marks == 1 else 2,), NO_EVENT, longer="most={0}")

    def forward(self, context: Tensor | None = None) -> HawkesEvents:
        rates, branching = self.log_rates.exp(), self.log_branching.exp()
        return HawkesEvents(rates, branching, self.log_decay.exp(), self.horizon, self.most)

    @property
    def rates(self) -> Tensor:
        """mu, events a unit of time that no other led to: ``(K,)``."""
        return self.log_rates.detach().exp()

    @property
    def branching(self) -> Tensor:
        """a, expected number of events of each mark (rows) that one event (columns) leads to: ``(K, K)``."""
        return self.log_branching.detach().exp()

    @property
    def decay(self) -> Tensor:
        """beta, in 1 / time: ``(K, K)``."""
        return self.log_decay.detach().exp()

    @property
    def branching_ratio(self) -> float:
        """Largest eigenvalue of the branching; from 1 on, numbers of events explode."""
        return torch.linalg.eigvals(self.branching.double()).abs().max().item()

    @torch.no_grad()
    def set(
        self,
        *,
        rates: float | Tensor | None = None,
        branching: float | Tensor | None = None,
        decay: float | Tensor | None = None,
    ) -> HawkesProcess:
        """Puts parameters in place of those that there are, positive each; returns the process.

        Each one number, or as many as there are: rates ``(K,)``, the others ``(K, K)``.
        """
        named = {"rates": rates, "branching": branching, "decay": decay}
        given = checks.given(**named)
        checks.scales(**given)
        for name, value in given.items():
            own, new = getattr(self, f"log_{name}"), torch.as_tensor(value)
            if new.ndim and new.shape != own.shape:
                raise ValueError(
                    f"expected {name} of shape {tuple(own.shape)}, or one number, got "
                    f"{tuple(new.shape)}; give one for each {'pair of marks' if own.ndim > 1 else 'mark'}"
                )
            own.copy_(new.log())
        return self

    @property
    def free_parameters(self) -> int:
        """Number of free parameters."""
        return trained(self)

    aic = aic
    bic = bic

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Half of the events ``(N, most, 1 or 2)`` led to by others, within some waiting times.

        With a generator, each parameter is multiplied by a number between 1/2 and 2.
        """
        seen = x[..., 0] != NO_EVENT
        marks = x[..., 1] if self.marks > 1 else torch.zeros_like(x[..., 0])
        each = torch.stack([(seen & (marks == k)).sum() for k in range(self.marks)])
        rate = each.clamp(min=0.5).to(x) / (len(x) * self.horizon)
        starts = {
            "rates": (1 - _EXCITED) * rate,
            "branching": torch.full_like(self.log_branching, _EXCITED / self.marks),
            "decay": rate.sum() * torch.ones_like(self.log_decay),
        }
        for name, start in starts.items():
            parameter = getattr(self, f"log_{name}")
            factor = torch.zeros(parameter.shape, dtype=torch.float64)
            if generator is not None:
                factor = 2 * torch.rand(parameter.shape, generator=generator).double() - 1
            put(parameter, start.to(parameter).log() + math.log(2) * factor.to(parameter))
