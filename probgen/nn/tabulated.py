"""A noise schedule from a table of levels, as published models give theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks
from probgen.nn.schedules import VariancePreserving


class TabulatedSchedule(VariancePreserving):
    r"""Given shares of signal at evenly spaced times, and what lies between them on a line.

    .. math:: \lambda_{(i - 1) / (T - 1)} = \log \frac{\bar\alpha_i}{1 - \bar\alpha_i},
              \qquad i = 1, \dots, T

    with log signal-to-noise ratios linear in time from one to the next. The least noisy state of
    the table, :math:`x_1` in the notation of DDPM, stands at time 0 and the noisiest one at time 1:
    a chain through all of them has T - 1 steps, ``Diffusion(..., steps=T - 1)``, and the
    reconstruction. The table is a buffer: it is saved and loaded with the model.

    Parameters
    ----------
    alphas_bar : Tensor
        :math:`1 > \bar\alpha_1 > \dots > \bar\alpha_T > 0`, shape ``(T,)``, best in double
        precision.

    Raises
    ------
    ValueError
        If there are fewer than two, or they do not fall within (0, 1).

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239

    >>> alpha, sigma = TabulatedSchedule(torch.tensor([0.99, 0.5, 0.01]))(torch.tensor([0.0, 0.5, 1.0]))
    >>> alpha.square(), sigma.square()
    (tensor([0.9900, 0.5000, 0.0100]), tensor([0.0100, 0.5000, 0.9900]))
    """

    ratios: Tensor

    def __init__(self, alphas_bar: Tensor):
        checks.vector(alphas_bar=alphas_bar)
        super().__init__()
        shape = tuple(alphas_bar.shape)
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(
                f"expected alphas_bar of shape (T,), T >= 2, got {shape}; give one share a step"
            )
        ratios = alphas_bar.double().logit()
        if not (ratios.isfinite().all() and (ratios.diff() < 0).all()):
            raise ValueError(
                "expected alphas_bar that fall strictly within (0, 1), got "
                f"{alphas_bar[0].item():g} to "
                f"{alphas_bar[-1].item():g}; from_betas(betas) gives such"
            )
        self.register_buffer("ratios", ratios.to(torch.get_default_dtype()))

    def log_snr(self, t: Tensor) -> Tensor:
        place = t * (len(self.ratios) - 1)
        before = self._before(place.detach().floor().long())
        start = self._at(before)
        end = self._at(before + 1)
        return start + (place - before) * (end - start)  # beyond the ends the line goes on

    def time(self, log_snr: Tensor) -> Tensor:
        after = torch.searchsorted(-self.ratios, -log_snr.detach().contiguous(), right=True)
        before = self._before(after - 1)
        start = self._at(before)
        end = self._at(before + 1)
        return (before + (log_snr - start) / (end - start)) / (len(self.ratios) - 1)

    def _before(self, place: Tensor) -> Tensor:
        """Places that have one after them."""
        return place.clamp(0, len(self.ratios) - 2)

    def _at(self, place: Tensor) -> Tensor:
        # not by brackets, which read the value of a place without dims: no graph could be recorded
        return self.ratios.index_select(0, place.reshape(-1)).reshape(place.shape)
