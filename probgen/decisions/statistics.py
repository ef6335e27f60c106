"""Numbers about rows that tell odd ones from usual ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.described import described
from probgen.core.score import Score
from probgen.scoring import log_likelihood


@described
class Statistic(nn.Module, ABC):
    """A number for each row, of a model: write ``forward``.

    Attributes
    ----------
    two_sided : bool
        Whether values on both sides of the usual ones are odd; else low ones are.
    """

    two_sided = False

    @abstractmethod
    def forward(self, gen: Any, *batch: Any) -> Tensor:
        """The numbers of rows, ``(N,)``."""


class LogLikelihood(Statistic):
    r"""The log-likelihood :math:`\log p(x)`: low where a row is odd.

    Of bounds and unnormalized densities too, as rows are compared with rows of the same model. In
    many dims it may be high for rows of another kind (Nalisnick et al. 2019): see
    :class:`Typicality` and :class:`LikelihoodRatio`.

    Parameters
    ----------
    particles : int
        Draws of latents per row.
    seed : int
        Of these draws.

    References
    ----------
    Bishop (1994), Novelty detection and neural network validation,
    https://doi.org/10.1049/ip-vis:19941330

    >>> import torch
    >>> from probgen.core.module import standard_normal
    >>> LogLikelihood()(standard_normal(2), torch.zeros(1, 2))
    tensor([-1.8379])
    """

    def __init__(self, *, particles: int = 64, seed: int = 0):
        checks.at_least(1, particles=particles)
        checks.is_seed(seed=seed)
        super().__init__()
        self.particles = particles
        self.seed = seed

    def forward(self, gen: Any, *batch: Any) -> Tensor:
        return _score(self, gen, batch).value


class Typicality(LogLikelihood):
    r"""The log-likelihood, odd where it is far from its mean over usual rows on either side.

    .. math:: -\left| \log p(x) - \mathbb E \log p(x') \right|

    A row may be too likely: the typical set of a distribution of many dims does not contain its
    mode.

    Parameters
    ----------
    particles, seed
        As in :class:`LogLikelihood`.

    References
    ----------
    Nalisnick, Matsukawa, Teh, Lakshminarayanan (2019), Detecting out-of-distribution inputs to deep
    generative models using typicality, https://arxiv.org/abs/1906.02994

    >>> Typicality().two_sided
    True
    """

    two_sided = True


class LikelihoodRatio(Statistic):
    r"""How much better the model explains a row than a background model.

    .. math:: \log p(x) - \log p_0(x)

    What both know (smooth images, wide margins) cancels. The background is a simpler family of the
    same rows, or the same one fitted to perturbed or more general rows.

    Parameters
    ----------
    background : GenerativeModel
        :math:`p_0`.
    particles, seed
        As in :class:`LogLikelihood`.

    Raises
    ------
    TypeError
        At the call, where one is a density and the other a mass.

    References
    ----------
    Ren et al. (2019), Likelihood ratios for out-of-distribution detection,
    https://arxiv.org/abs/1906.02845

    >>> import pyro.distributions as dist
    >>> import torch
    >>> from probgen.core.module import Fixed
    >>> narrow, wide = (Fixed(dist.Normal, loc=torch.zeros(1), scale=scale) for scale in (1.0, 2.0))
    >>> LikelihoodRatio(wide)(narrow, torch.zeros(1, 1)).exp()
    tensor([2.])
    """

    def __init__(self, background: nn.Module, *, particles: int = 64, seed: int = 0):
        checks.generative(background=background)
        checks.at_least(1, particles=particles)
        checks.is_seed(seed=seed)
        super().__init__()
        self.background = background
        self.particles = particles
        self.seed = seed

    def forward(self, gen: Any, *batch: Any) -> Tensor:
        own = _score(self, gen, batch)
        other = _score(self, self.background, batch)
        own.difference(other)  # refuses what does not compare
        return own.value - other.value


def _score(statistic: Any, gen: Any, batch: tuple) -> Score:
    return log_likelihood(gen, *batch, particles=statistic.particles, seed=statistic.seed)
