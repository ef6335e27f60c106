"""The terms of the variational bound of a diffusion, each one row's share in nats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from probgen.distributions.diffusion.process import Process


def prior_divergence(process: Process, x: Tensor) -> Tensor:
    r"""What the noisiest state still tells of the data, :math:`\mathrm{KL}(q(z_1 \mid x) \,\|\, p(z_1))`.

    .. math:: \frac12 \sum_d u x_d^2 - u - \log(1 - u), \qquad u = \operatorname{sigmoid}(\lambda_1)

    with a prior of variance :math:`\alpha_1^2 + \sigma_1^2`: ``(*batch, *event) -> (*batch,)``.
    """
    log_snr = process.schedule.log_snr(torch.ones_like(x[(0,) * x.ndim]))
    share = log_snr.sigmoid()
    return process.total(share * (x.square() - 1) + softplus(log_snr)) / 2


def step_divergence(process: Process, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""One draw of a step's divergence, :math:`\mathrm{KL}(q(z_s \mid z_t, x) \,\|\, p(z_s \mid z_t))` for times s < t.

    .. math:: \frac12 \sum_d \rho_d - 1 - \log \rho_d
              + \rho_d \big(e^{\lambda_s} - e^{\lambda_t}\big) (x_d - \hat x_d)^2

    with the ratio :math:`\rho` of both variances; for the posterior variance it is one, and the squared error stands
    alone (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equation 14).
    """
    guess, raw = process.outputs(noised(process, x, t), t)
    return divergence_of(process, x, guess, raw, t, s)


def divergence_of(process: Process, x: Tensor, guess: Tensor, raw: Tensor | None, t: Tensor, s: Tensor) -> Tensor:
    """The same for data already estimated."""
    early, late = process.schedule.log_snr(s), process.schedule.log_snr(t)
    factor = process.wide(-early.exp() * torch.expm1(late - early))
    errors = factor * (x - guess).square()
    small, large = process.log_variances(t, s)
    log_ratio = small - process.variance.log_variance(raw, small, large)
    return process.total(torch.expm1(log_ratio) - log_ratio + log_ratio.exp() * errors) / 2


def error_rate(process: Process, x: Tensor, t: Tensor) -> Tensor:
    r"""The divergence of an infinitesimal step at time t, per unit of time.

    .. math:: -\frac12 \frac{d e^{\lambda_t}}{dt}\, |x - \hat x|^2

    Kingma et al. (2021), https://arxiv.org/abs/2107.00630, equation 17.
    """
    guess, log_snr = process.denoise(noised(process, x, t), t), process.schedule.log_snr(t)
    return -process.log_snr_rate(t) * log_snr.exp() * process.total((x - guess).square()) / 2


def noised(process: Process, x: Tensor, t: Tensor) -> Tensor:
    r"""A draw of :math:`q(z_t \mid x)`."""
    alpha, sigma = process.levels(t)
    return alpha * x + sigma * torch.randn_like(x)
