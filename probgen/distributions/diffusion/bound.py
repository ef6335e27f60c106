"""The variational bound of a diffusion, row by row in nats, at one random level of noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.process import Denoiser


def prior_divergence(process: GaussianNoise, x: Tensor) -> Tensor:
    r"""What the noisiest state still tells of the data.

    :math:`\mathrm{KL}(q(z_1 \mid x) \,\|\, p(z_1))`.

    .. math:: \frac12 \sum_d u x_d^2 - u - \log(1 - u), \qquad u = \operatorname{sigmoid}(\lambda_1)

    with a prior of variance :math:`\alpha_1^2 + \sigma_1^2`: ``(*batch, *event) -> (*batch,)``.
    """
    log_snr = process.schedule.log_snr(torch.ones_like(x[(0,) * x.ndim]))
    share = log_snr.sigmoid()
    return process.total(share * (x.square() - 1) + softplus(log_snr)) / 2


def integrated_error(denoiser: Denoiser, x: Tensor, shares: Tensor, resolved: float) -> Tensor:
    r"""The divergence of infinitely many steps, which depends on the ends of the schedule alone.

    .. math:: \frac12 \int_{\lambda_1}^{\lambda_0} e^\lambda\, E |x - \hat x|^2\, d\lambda

    estimated at :math:`\lambda_1 + r (\lambda_0 - \lambda_1)` for uniform ``shares`` r
    ``(*batch,)``. What the best denoiser of standard normal data would lose at that level, of which
    the integral is known, is taken off as a control variate: it has most of the variance. Above the
    ratio ``resolved`` it is not: there, nothing is lost.

    Kingma, Salimans, Poole, Ho (2021), https://arxiv.org/abs/2107.00630, equation 18.
    """
    process = denoiser.process
    low, high = _ends(process, x)
    log_snr = low + shares * (high - low)
    t = process.schedule.time(log_snr).clamp(0, 1)
    noise = torch.randn_like(x)
    guess = denoiser.denoise(process.noised(x, noise, t), t)
    off = process.wide(log_snr < resolved) * _linear_error(process, x, noise, log_snr)
    errors = process.wide(log_snr.exp()) * (x - guess).square() - off
    top = high.clamp(max=resolved)
    known = top.sigmoid() - low.sigmoid()
    rest = softplus(top) - softplus(low) - known
    return process.total((high - low) * errors + known * x.square() + rest) / 2


def summed_divergence(denoiser: Denoiser, x: Tensor, shares: Tensor, resolved: float) -> Tensor:
    r"""The sum of the divergences of all steps of a chain.

    .. math:: \sum_{i=1}^T \mathrm{KL}\big(q(z_{i-1} \mid z_i, x) \,\|\, p(z_{i-1} \mid z_i)\big)

    Estimated at one step, drawn with a probability that is half uniform and half in proportion to
    :math:`e^{\lambda_{i-1} - \lambda_i} - 1`, and with the control variate of
    :func:`integrated_error`.
    """
    process = denoiser.process
    steps = process.num_times
    places = torch.arange(steps + 1, dtype=x.dtype, device=x.device) / steps
    levels = process.schedule.log_snr(places)
    gains = torch.expm1(levels[:-1] - levels[1:])
    shown = levels[1:].sigmoid()
    noise = torch.randn_like(x)
    probabilities = (0.5 / steps + 0.5 * gains / gains.sum()).detach()
    index = torch.bucketize(shares, probabilities.cumsum(0)[:-1])
    t = places[index + 1]
    s = places[index]
    z = process.noised(x, noise, t)
    guess, raw = process.read(z, denoiser.predict(z, t), t)
    used = gains * (levels[1:] < resolved)
    off = process.wide(used[index]) * _linear_error(process, x, noise, levels[index + 1]) / 2
    entries = (divergences(process, x, guess, raw, t, s) - off) / process.wide(probabilities[index])
    known = (used * shown * (1 - shown)).sum()
    rest = (used * shown.square()).sum()
    return process.total(entries + (known * x.square() + rest) / 2)


def divergences(
    process: GaussianNoise, x: Tensor, guess: Tensor, raw: Tensor | None, t: Tensor, s: Tensor
) -> Tensor:
    r"""The divergence of a step from time t to time s < t, variable by variable.

    .. math:: \frac12 \Big(\rho - 1 - \log \rho + \rho \big(e^{\lambda_s} - e^{\lambda_t}\big) (x - \hat x)^2\Big)

    with the ratio :math:`\rho` of both variances; for the posterior variance it is one, and the
    squared error stands alone (Kingma et al. 2021, equation 14).
    """
    early = process.schedule.log_snr(s)
    late = process.schedule.log_snr(t)
    small, large = process.log_variances(t, s)
    log_ratio = small - process.variance.log_variance(raw, small, large)
    errors = process.wide(-early.exp() * torch.expm1(late - early)) * (x - guess).square()
    return (torch.expm1(log_ratio) - log_ratio + log_ratio.exp() * errors) / 2


def _linear_error(process: GaussianNoise, x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    r"""The error :math:`e^\lambda (x - \hat x)^2` of the best denoiser of standard normal data.

    Its expectation over the noise is :math:`u (1 - u) x^2 + u^2`, :math:`u =
    \operatorname{sigmoid}(\lambda)`.
    """
    share = process.wide(log_snr).sigmoid()
    return ((share * (1 - share)).sqrt() * x - share * noise).square()


def _ends(process: GaussianNoise, x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest log signal-to-noise ratio."""
    zero = torch.zeros_like(x[(0,) * x.ndim])
    return process.schedule.log_snr(zero + 1), process.schedule.log_snr(zero)
