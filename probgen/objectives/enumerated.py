"""The evidence lower bound of programs with sites that are summed out instead of drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note, noting
from probgen.core.modes import infers
from probgen.core.recording import EnumeratedBound, enumerated_bound, enumerated_runs
from probgen.core.runtime import isolated
from probgen.core.sites import densities, is_enumerated
from probgen.core.sums import sum_of
from probgen.objectives.base import Objective, check_pair
from probgen.objectives.baselines import refuse_baselines
from probgen.objectives.denoising import Denoising, HasDenoisingLoss
from probgen.objectives.elbo import ELBO

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


class EnumeratedELBO(Objective):
    r"""The negative evidence lower bound with the sites marked ``infer={"enumerate": "parallel"}`` summed out.

    .. math:: -\mathbb E_{q(u)} \Big[\sum_{d} q(d \mid u) \log \frac{\sum_c p(x, c, d, u)}{q(d \mid u)\, q(u)} \Big]

    where c are enumerated sites of the model that the guide leaves out, d those of the guide, and u
    is drawn. The sum over c is exact inference by tensor elimination, the one over d removes the
    noise of discrete draws. Guide sites drawn without reparameterization get score-function terms,
    without baselines. Scales may be numbers or weights of rows. Mark a whole program with
    :func:`pyro.infer.config_enumerate`.

    Parameters
    ----------
    particles : int
        Draws of u per row.
    max_plate_nesting : int
        Number of dims that the programs' plates use; enumerated values take dims further left.
    vectorized : bool
        Whether the programs accept particles to the left of their plates; otherwise they run once
        per particle.

    Raises
    ------
    ValueError
        At the call, if a model site's density is weaker than a bound, a guide site's is not exact,
        their latent sites do not match, sites that depend on an enumerated one differ in scale, or
        a drawn site asks for a baseline; from Pyro, if enumerated sites depend on each other across
        plates that are not nested.

    References
    ----------
    Obermeyer et al. (2019), Tensor variable elimination, https://arxiv.org/abs/1902.03210; Foerster
    et al. (2018), DiCE, https://arxiv.org/abs/1802.05098

    >>> import pyro, pyro.distributions as dist
    >>> def mixture(x):
    ...     with pyro.plate("data", len(x), dim=-1):
    ...         c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    ...         pyro.sample("x", dist.Normal(4 * c, 1.0), obs=x)
    >>> x = torch.tensor([0.0, 4.0])
    >>> densities = 0.5 * dist.Normal(0.0, 1.0).log_prob(x).exp() + 0.5 * dist.Normal(4.0, 1.0).log_prob(x).exp()
    >>> EnumeratedELBO()(mixture, lambda x: None)(x), -densities.log().sum()
    (tensor(3.2235), tensor(3.2235))
    """

    weighs_rows = True

    def __init__(self, particles: int = 1, *, max_plate_nesting: int = 1, vectorized: bool = True):
        checks.at_least(1, particles=particles)
        checks.at_least(0, max_plate_nesting=max_plate_nesting)
        checks.flag(vectorized=vectorized)
        super().__init__()
        self.particles = particles
        self.max_plate_nesting = max_plate_nesting
        self.vectorized = vectorized

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        together = self.vectorized and self.particles > 1
        loss: Any = 0.0
        bounds = []
        for _ in range(1 if together else self.particles):
            inside = self.particles if together else None
            for p, q in enumerated_runs(model, guide, batch, inside, self.max_plate_nesting):
                check_pair(densities(p.nodes), densities(q.nodes), "bound", "EnumeratedELBO")
                refuse_baselines(densities(q.nodes), "EnumeratedELBO")
                bound = enumerated_bound(p, q)
                loss = loss - bound.value
                bounds.append(bound)
        loss = loss / self.particles
        if noting():
            self._note(loss.detach(), bounds)
        return loss

    def _note(self, loss: Tensor, bounds: list[EnumeratedBound]) -> None:
        """Notes the parts of the loss: penalties, and the divergence where it has a value."""
        divergences = [bound.divergence for bound in bounds if bound.divergence is not None]
        if len(divergences) < len(bounds):
            return
        kl = sum_of(divergences) / self.particles
        penalties = {
            name: sum_of(bound.penalties[name] for bound in bounds) / self.particles
            for name in bounds[0].penalties
        }
        note("reconstruction", loss - kl - sum(penalties.values()))
        note("kl", kl)
        for name, value in penalties.items():
            note(name, value)


@infers
def default_objective(gen: GenerativeModel, *batch: Any) -> Objective:
    """The evidence lower bound for a model, or the loss that its family is named after.

    :class:`EnumeratedELBO` if it has sites to enumerate; :class:`Denoising
    <probgen.objectives.Denoising>` for rows whose density costs the solution of an equation, while
    their own loss does not (flow matching); else :class:`ELBO`.

    Runs guide and model once on the batch, in eval mode; the random state is left as it was.

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> type(default_objective(Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0), torch.zeros(3, 1)))
    <class 'probgen.objectives.elbo.ELBO'>
    """
    devices = {value.device for value in batch if torch.is_tensor(value) and value.is_cuda}
    with isolated(), torch.random.fork_rng(devices), torch.no_grad():
        run = next(enumerated_runs(gen.model, gen.guide, batch, None, gen.max_plate_nesting))
    latent = [
        site for trace in run for site in densities(trace.nodes).values() if not site["is_observed"]
    ]
    options: dict[str, Any] = {"max_plate_nesting": gen.max_plate_nesting}
    options |= {"vectorized": gen.vectorized}
    if any(is_enumerated(site) for site in latent):
        return EnumeratedELBO(**options)
    if not latent and _is_matched(run[0].nodes.get("x")):
        return Denoising()
    return ELBO(plate=gen.plate, **options)


def _is_matched(site: Any) -> bool:
    """Whether rows have a loss of their own that is far cheaper than their density."""
    distribution = None if site is None else site["fn"]
    cheap = isinstance(distribution, HasDenoisingLoss)
    return cheap and getattr(distribution, "costly_density", False)
