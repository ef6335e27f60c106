"""Chains driven by noise that is a mixture of normal distributions."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.diffusion.additive import AdditiveNoise
from probgen.distributions.diffusion.predictions import Epsilon, Prediction
from probgen.distributions.diffusion.process import independent, wide
from probgen.distributions.diffusion.tables import Shares
from probgen.distributions.diffusion.times import NoiseSchedule


class DifferentiableMixture(dist.MixtureSameFamily):
    r"""A mixture of distributions of single variables whose draws take gradients.

    By implicit reparameterization.

    .. math:: \nabla_\phi x = -\frac{\nabla_\phi F_\phi(x)}{p_\phi(x)}

    with the distribution function F. Figurnov, Mohamed, Mnih (2018),
    https://arxiv.org/abs/1805.08498

    >>> loc = torch.zeros(2, requires_grad=True)
    >>> distribution = DifferentiableMixture(dist.Categorical(torch.ones(2)), dist.Normal(loc, 1.0))
    >>> distribution.rsample().backward()
    >>> loc.grad.sum().round(decimals=4)
    tensor(1.)
    """

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        x = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return x
        below = self.cdf(x)
        return x - (below - below.detach()) / self.log_prob(x).exp().detach()


class MixtureNoise(AdditiveNoise):
    r"""Noise that is a mixture of K normal distributions, brought to mean 0 and variance 1.

    At every step alike.

    .. math:: q(z_t \mid x) = \sum_k w_k\, N\big(\sqrt{\bar\alpha_t}\, x + \sigma_t m_k,\; \sigma_t^2 v_k\big),
              \qquad \sigma_t^2 = 1 - \bar\alpha_t

    Each entry has one component for all steps: given it, the chain is a Gaussian one whose noise is
    moved by :math:`\sigma_t m_k` and stretched by :math:`\sqrt{v_k}`. So

    .. math:: q(z_s \mid z_t, x) = \sum_k r_k\, N\big(\sqrt{\bar\alpha_s}\, x + \sigma_s m_k + c\,
              (\epsilon_t - m_k),\; v_k \tilde\beta\big), \qquad c = \sigma_t
              \sqrt{\tfrac{\bar\alpha_t}{\bar\alpha_s}} \tfrac{\sigma_s^2}{\sigma_t^2}, \quad r_k
              \propto w_k\, N(\epsilon_t; m_k, v_k)

    The process of the bound is :math:`q(z_1 \mid x) \prod_t q(z_{t-1} \mid z_t, x)`, as in
    denoising diffusion implicit models: it has these very marginals, because each factor takes the
    one of z_t to that of z_{t-1}, though the components of an entry are drawn anew at each step.
    The model puts :math:`\hat x` in place of the datum, :math:`p(z_s \mid z_t) = q(z_s \mid z_t,
    \hat x)`, and starts from the noise itself. Divergences of mixtures have no closed form: the
    bound takes the log-ratio of one draw.

    Since r is not linear in the datum, :math:`p(z_s \mid z_t)` has another mean than the true
    reverse distribution even where :math:`\hat x` is the exact mean of the datum: for skewed
    noise ancestral draws stay off, however small the steps. Draws by ``DDIM(num_steps)`` do not.

    Parameters
    ----------
    schedule, num_times, prediction, bounds
        As in :class:`AdditiveNoise <probgen.distributions.diffusion.additive.AdditiveNoise>`.
    weights, locs, scales : sequence of float
        One number for each component; weights are made to sum to one.

    Raises
    ------
    ValueError
        If weights or scales are not positive, or their numbers differ.

    References
    ----------
    Nachmani, Roman, Wolf (2021), Non Gaussian denoising diffusion models,
    https://arxiv.org/abs/2106.07582 (mixtures of normal distributions as noise); Song, Meng, Ermon
    (2021), Denoising diffusion implicit models, https://arxiv.org/abs/2010.02502 (processes given
    by their posteriors)

    >>> from probgen.distributions.diffusion.schedules import LinearSchedule
    >>> two = {"weights": [1, 1], "locs": [-1, 1], "scales": [1, 1]}
    >>> noise = MixtureNoise(LinearSchedule(), **two, num_times=100)
    >>> noise.marginal(torch.zeros(3, 1), torch.tensor([0.01, 0.5, 1.0])).variance[:, 0]
    tensor([0.0023, 0.9213, 1.0000])
    """

    log_weights: Tensor
    locs: Tensor
    spreads: Tensor

    def __init__(
        self,
        schedule: NoiseSchedule | Shares,
        weights: Sequence[float],
        locs: Sequence[float],
        scales: Sequence[float],
        num_times: int | None = None,
        prediction: Prediction = Epsilon(),  # noqa: B008 (immutable)
        bounds: tuple[float, float] | None = None,
    ):
        checks.numbers("positive", weights=weights, scales=scales)
        checks.numbers(locs=locs)
        super().__init__(schedule, num_times, prediction, bounds)
        values = [torch.as_tensor(value, dtype=torch.float64) for value in (weights, locs, scales)]
        if (
            len({value.shape for value in values}) > 1
            or not ((values[0] > 0) & (values[2] > 0)).all()
        ):
            raise ValueError(
                f"expected as many weights > 0 as locs and scales > 0, got {weights=}, {locs=}, "
                f"{scales=}; one number "
                "for each component"
            )
        share = values[0] / values[0].sum()
        locs_ = values[1]
        variances = values[2].square()
        mean = share @ locs_
        spread = (share @ (variances + locs_.square()) - mean.square()).sqrt()
        standard = (share.log(), (locs_ - mean) / spread, variances.sqrt() / spread)
        for name, value in zip(("log_weights", "locs", "spreads"), standard, strict=True):
            self.register_buffer(name, value.to(torch.get_default_dtype()))

    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        signal, noise = (level.unsqueeze(-1) for level in self.levels(t, x))
        loc = signal * x.unsqueeze(-1) + noise * self.locs
        return self._mixture(self.log_weights.expand(loc.shape), loc, noise * self.spreads, t)

    def posterior(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        mean, scale = self.mean_and_scale(z, x, t, s)
        signal, noise = self.levels(t, z)
        signal_s, noise_s = self.levels(s, z)
        kept = noise * signal / signal_s * (noise_s / noise).square()
        epsilon = ((z - signal * x) / noise).unsqueeze(-1)
        logits = (
            self.log_weights
            - self.spreads.log()
            - 0.5 * ((epsilon - self.locs) / self.spreads).square()
        )
        loc = mean.unsqueeze(-1) + (noise_s - kept).unsqueeze(-1) * self.locs
        shrunk = torch.where(wide(s, loc) == 0, 1.0, self.spreads)
        return self._mixture(logits, loc, scale.unsqueeze(-1) * shrunk, t)

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        return self.standard_noise(like, like.new_ones(()))

    def reverse(self, z: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        return self.posterior(z, self.estimate(z, output, t), t, s)

    def standard_noise(self, z: Tensor, t: Tensor) -> dist.TorchDistribution:
        shape = (*z.shape, len(self.locs))
        return self._mixture(
            self.log_weights.expand(shape), self.locs.expand(shape), self.spreads, t
        )

    def _mixture(
        self, logits: Tensor, loc: Tensor, scale: Tensor, t: Tensor
    ) -> dist.TorchDistribution:
        labels = dist.Categorical(logits=logits, validate_args=False)
        parts = dist.Normal(loc, scale, validate_args=False)
        return independent(DifferentiableMixture(labels, parts, validate_args=False), t.ndim)
