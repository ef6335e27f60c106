"""Confidence that is right on average: temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.conversion import rows_from

COLDEST, HOTTEST = 1e-3, 1e6
SURE = 0.999
BINS = 10


@dataclass(frozen=True)
class TemperatureScaling:
    """A temperature that was fitted on held-out rows, and what it changed on these.

    Attributes
    ----------
    temperature : float
        Above 1 where the classifier was too sure.
    log_loss : (float, float)
        Mean of ``-log p(true class | x)`` before and after, in nats.
    calibration_error : (float, float)
        :func:`calibration_error` before and after.
    sure : (float, float)
        Share of the rows with a confidence above 0.999, before and after.
    rows : int
        Number of held-out rows.
    """

    temperature: float
    log_loss: tuple[float, float]
    calibration_error: tuple[float, float]
    sure: tuple[float, float]
    rows: int

    def __str__(self) -> str:
        lines = (
            ("log loss, nats", "log_loss", ".4f"),
            ("calibration error", "calibration_error", ".4f"),
            (f"confidence above {SURE}", "sure", ".1%"),
        )
        head = f"temperature {self.temperature:.4g}, by {self.rows} held-out rows"
        shown = [
            f"  {name:22s} {format(before, how)} -> {format(after, how)}"
            for name, field, how in lines
            for before, after in [getattr(self, field)]
        ]
        return "\n".join([head, *shown])


def fitted_temperature(log_likelihood: Tensor, log_prior: Tensor, truth: Tensor) -> float:
    r"""The temperature T of the highest likelihood of held-out classes.

    .. math:: p_T(c \mid x) \propto p(c)\, p(x \mid c)^{1 / T}

    The log loss is convex in 1 / T: its derivative is bisected.

    Parameters
    ----------
    log_likelihood : Tensor
        :math:`\log p(x \mid c)`, ``(N, C)``.
    log_prior : Tensor
        :math:`\log p(c)`, ``(C,)``.
    truth : Tensor
        Numbers of the true classes, ``(N,)``.

    Returns
    -------
    float
        From 1e-3 to 1e6; one of these ends where the loss falls all the way: perfect answers ask
        for a temperature of 0, useless ones for an infinite one.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks,
    https://arxiv.org/abs/1706.04599

    >>> ratio = torch.tensor([[2.0, 0.0]] * 4, dtype=torch.float64)
    >>> T = fitted_temperature(ratio, torch.full((2,), 0.5).log(), torch.tensor([0, 0, 0, 1]))
    >>> round(T, 4), round(2 / torch.tensor(3.0).log().item(), 4)  # three of four are right
    (1.8205, 1.8205)
    """
    right = log_likelihood.gather(1, truth[:, None])
    # an impossible class stays impossible at any temperature: it has no part in the slope
    relative = (log_likelihood - right).clamp(min=torch.finfo(torch.float64).min)

    if not relative.any():  # the same density for all classes: nothing to scale
        return 1.0
    if (relative <= 0).all():  # the loss falls for ever, by less than its rounding at last
        return COLDEST

    def slope(log_inverse: float) -> float:
        """Derivative of the log loss by 1 / T."""
        scaled = relative * torch.tensor(log_inverse).double().exp() + log_prior
        share = scaled.softmax(-1)
        return torch.where(share > 0, share * relative, 0.0).sum(-1).mean().item()

    low, high = -torch.tensor([HOTTEST, COLDEST]).double().log()
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle.item()) < 0 else (low, middle)
    return (-(low + high) / 2).exp().item()


def calibration_error(probability: Tensor, truth: Tensor, bins: int = BINS) -> float:
    r"""Expected calibration error: how far confidence lies from accuracy, bin by bin.

    .. math:: \sum_b \frac{n_b}{N} \left| \frac1{n_b} \sum_{n \in b} 1[\hat y_n = y_n]
              - \frac1{n_b} \sum_{n \in b} \max_c p(c \mid x_n) \right|

    over bins of equal width of the confidence. It is biased upwards by the noise of the bins.

    Parameters
    ----------
    probability : Tensor
        ``(N, C)``.
    truth : Tensor
        Numbers of the true classes, ``(N,)``.
    bins : int
        Number of bins.

    References
    ----------
    Naeini, Cooper, Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian
    binning, https://doi.org/10.1609/aaai.v29i1.9602

    >>> calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1]))
    0.0
    """
    checks.at_least(1, bins=bins)
    probability = rows_from("probability", probability).double()
    truth = rows_from("truth", truth)
    if probability.ndim != 2 or truth.shape != probability.shape[:1] or not len(truth):
        raise ValueError(
            "expected probability of shape (N, C) and truth of shape (N,), got "
            f"{tuple(probability.shape)} and {tuple(truth.shape)}; give the number of the true "
            "class of each row"
        )
    total = probability.sum(-1)
    if not ((probability >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-3)):
        raise ValueError(
            "expected probability with rows of numbers from 0 to 1 whose sum is 1, got others; give "
            "softmax(-1) of logits, and leave out rows with NaN"
        )
    wrong = ~torch.isin(truth, torch.arange(probability.shape[1], device=truth.device))
    if wrong.any():
        raise ValueError(
            f"expected truth from 0 to {probability.shape[1] - 1}, the numbers of the columns of "
            f"probability, got {truth[wrong][0].item():g} in row {int(wrong.nonzero()[0])}; number the "
            "classes in their order"
        )
    confidence, answer = probability.max(-1)
    right = (answer == truth).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(int(bins), dtype=torch.float64).index_add(0, place, right - confidence)
    return (gap.abs().sum() / len(truth)).item()


def temperature_scaling(
    log_likelihood: Tensor, log_prior: Tensor, truth: Tensor
) -> TemperatureScaling:
    """Fits a temperature, and says what it changes."""
    temperature = fitted_temperature(log_likelihood, log_prior, truth)
    posteriors = [
        (log_likelihood / heat + log_prior).log_softmax(-1) for heat in (1.0, temperature)
    ]
    losses = [-each.gather(1, truth[:, None]).mean().item() for each in posteriors]
    errors = [calibration_error(each.exp(), truth) for each in posteriors]
    sure = [(each.amax(-1).exp() > SURE).double().mean().item() for each in posteriors]
    (loss, loss_after), (error, error_after), (share, share_after) = losses, errors, sure
    return TemperatureScaling(
        temperature, (loss, loss_after), (error, error_after), (share, share_after), len(truth)
    )
