"""A diffusion as a hierarchical latent-variable model."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import received
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.distributions.diffusion.diffused import Diffused


class DiffusionChain(LatentVariableModel):
    r"""A diffusion in discrete time as a hierarchical latent-variable model: a latent site for each time.

    .. math:: p(x, z) = p(z_T)\, p(x \mid z_k) \prod_{i=k+1}^T p(z_{i-1} \mid z_i), \qquad
              q(z \mid x) = q(z_T \mid x) \prod_{i=k+1}^T q(z_{i-1} \mid z_i, x)

    with k = 0 for Gaussian noise, whose state at time 0 still has some, and k = 1 for other noise.
    Sites ``"zT"`` (the number T), ..., ``"z0"`` or ``"z1"``, and ``"x"``; the guide is the process,
    in the order from its noisy end, and has no parameters. Any objective, inference or diagnostic of
    latent-variable models applies, at T calls of the network: ``ELBO`` is the bound of the diffusion
    over all steps at once, and :func:`probgen.log_likelihood` averages importance weights of whole
    chains. For small T.

    Parameters
    ----------
    diffusion : Diffusion, NonGaussianDiffusion or CategoricalDiffusion
        In discrete time; parameters are shared.

    Raises
    ------
    ValueError
        If the diffusion is one in continuous time.

    >>> import torch
    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> chain = DiffusionChain(Diffusion(TimeMLP(2, [16]), (2,), num_times=3))
    >>> list(pyro.poutine.trace(chain.guide).get_trace(torch.zeros(5, 2)).nodes)[1:-1]
    ['z3', 'z2', 'z1', 'z0']
    """

    context_from = "diffusion"

    diffusion: Any  # Diffusion

    def __init__(self, diffusion: DistributionModule):
        checks.has(("net", "process"), "pass a Diffusion(net, shape)", diffusion=diffusion)
        super().__init__()
        process: Any = diffusion.process
        if process.num_times is None:
            raise ValueError(
                "expected a diffusion in discrete time, got one in continuous time; make it with "
                "num_times=T"
            )
        self.diffusion = diffusion
        self.context_ndim = diffusion.context_ndim

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        diffused = self.diffusion(received(self, context))
        ndim = len(diffused.event_shape)
        with data_plate(x, context):
            numbers = self._numbers(diffused)
            z = pyro.sample(f"z{next(numbers)}", diffused.prior())
            for t, s in itertools.pairwise(diffused.states()):
                wide = z.shape[: z.ndim - ndim]
                distribution = diffused.denoiser.reverse(z, t.expand(wide), s.expand(wide))
                z = pyro.sample(f"z{next(numbers)}", distribution)
            return pyro.sample("x", diffused.likelihood(z), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        context = received(self, context)
        if x is None:  # all latents belong to rows: no globals to draw
            return
        diffused = self.diffusion(context)
        y = diffused.embed(x)
        ndim = len(diffused.event_shape)
        rows = y.shape[: y.ndim - ndim]
        times = diffused.states()
        with data_plate(x, context):
            numbers = self._numbers(diffused)
            z = pyro.sample(
                f"z{next(numbers)}", diffused.process.marginal(y, times[0].expand(rows))
            )
            for t, s in itertools.pairwise(times):
                lead = z.shape[: z.ndim - ndim]
                distribution = diffused.process.posterior(z, y, t.expand(lead), s.expand(lead))
                z = pyro.sample(f"z{next(numbers)}", distribution)

    def _numbers(self, diffused: Diffused) -> itertools.count:
        """Numbers of the states, falling from T."""
        return itertools.count(diffused.process.num_times, -1)
