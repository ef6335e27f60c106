"""Independent component analysis: data as a linear mixture of independent sources."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.entry import as_rows
from probgen.core.module import DistributionModule, Fixed
from probgen.distributions.flows.bijection import Bijection
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.frozen import put, thawed
from probgen.distributions.support import check_columns

_LEAST = 1e-2  # curvature that a step assumes
_HALVINGS = 12


class ICA(DistributionModule):
    r"""Independent component analysis, by maximum likelihood.

    As many independent sources as variables, mixed by an invertible matrix A.

    .. math:: x = A s + \mu, \qquad p(x) = |\det W| \prod_{d=1}^D p_d\bigl((W (x - \mu))_d\bigr), \quad W = A^{-1}

    Density and sources are exact: ``gen.sources(x)``. :meth:`solve` finds W for sources whose
    distribution is given; :func:`probgen.fit` and ``maximum_likelihood`` (after
    ``gen.initialize(x)``) learn the distributions of the sources as well. Sources are found up to
    their order, sign and scale, and provided that at most one of them is normal.

    Parameters
    ----------
    dims : int
        Number D of variables, and of sources.
    source : DistributionModule, optional
        Distribution of independent sources, events ``(D,)``: ``heads.StudentT(Constant(3 * D))``,
        ``heads.MixtureOfGaussians(...)`` for sources of any shape. Default: logistic ones, which
        suit sources with heavier tails than normal ones (sounds, edges in images). Sources with
        lighter tails (uniform, binary) need a source that can be such.

    Raises
    ------
    ValueError
        If the source has other events than ``(D,)``.

    References
    ----------
    Bell, Sejnowski (1995), An information-maximization approach to blind separation,
    https://doi.org/10.1162/neco.1995.7.6.1129; Amari, Cichocki, Yang (1996), A new learning algorithm
    for blind signal separation,
    https://papers.nips.cc/paper/1995/hash/e19347e1c3ca0c0b97de5fb3b690855a-Abstract.html; the steps
    of ``solve``: Ablin, Cardoso, Gramfort (2018), Faster independent component analysis by
    preconditioning with Hessian approximations, https://arxiv.org/abs/1706.08171

    >>> _ = torch.manual_seed(0)
    >>> s = dist.Laplace(0.0, 1.0).sample((2000, 2))
    >>> mixing = torch.tensor([[1.0, 0.5], [0.2, 1.0]])
    >>> gen = ICA(2).solve(s @ mixing.mT)
    >>> product = (gen.unmixing @ mixing).detach().abs()
    >>> bool((product.min(0).values < 0.1 * product.max(0).values).all())     # one source a row
    True
    """

    context_size = 0
    context_hint = WITHOUT
    prepares = frozenset({"scale"})

    def __init__(self, dims: int, source: DistributionModule | None = None):
        checks.at_least(1, dims=dims)
        checks.generative(**checks.given(source=source))
        super().__init__()
        logistic = Fixed(dist.Logistic, loc=torch.zeros(dims), scale=1.0)
        self.source = logistic if source is None else source
        with torch.no_grad():
            event = self.source().event_shape
        if event != (dims,):
            raise ValueError(
                f"expected a source with events of shape ({dims},), got {tuple(event)}; give it a "
                "distribution for each variable"
            )
        self.dims = dims
        self.mean = nn.Parameter(torch.zeros(dims))
        self.unmixing = nn.Parameter(torch.eye(dims) + 0.1 * torch.randn(dims, dims))

    def forward(self, context: Tensor | None = None) -> Pushforward:
        return Pushforward(self.source(), Unmixing(self.unmixing, self.mean))

    @property
    def mixing(self) -> Tensor:
        """The matrix A, whose columns say where each source is heard: ``(D, D)``."""
        return torch.linalg.inv(self.unmixing.detach())

    @torch.no_grad()
    def sources(self, x: Tensor) -> Tensor:
        r"""The sources of rows, :math:`W (x - \mu)`: ``(N, D) -> (N, D)``."""
        (x,) = as_rows(self, x)
        return Unmixing(self.unmixing, self.mean)(x)

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """The mean of rows ``(N, D)``, and uncorrelated sources of variance one, turned at random.

        Raises
        ------
        ValueError
            If entries are missing, or rows lie in fewer than D dims.
        """
        (x,) = as_rows(self, x)
        x = x.double()
        check_columns(x)
        share = x.new_ones(len(x)) if weights is None else weights.to(x)
        share = share / share.sum()
        mean = share @ x
        spread = (share @ (x - mean).square()).sqrt()  # columns in units of very different sizes
        z = (x - mean) / spread
        values, vectors = torch.linalg.eigh((z.mT * share) @ z)
        if not values[0] > 1e-12 * values[-1]:
            raise ValueError(
                f"expected rows that spread over {self.dims} dims, got {len(x)} rows that lie in "
                "fewer; remove columns that are functions of others, or give more rows"
            )
        turn = torch.linalg.qr(torch.randn(self.dims, self.dims, generator=generator).to(x)).Q
        put(self.mean, mean)
        put(self.unmixing, turn @ (vectors / values.sqrt()).mT / spread)

    def solve(self, x: Tensor, *, max_iter: int = 200, tol: float = 1e-4, seed: int = 0) -> ICA:
        r"""Finds the unmixing matrix of complete rows ``(N, D)``, and returns itself.

        The mean is that of the rows, the distribution of the sources is left as it is. Steps
        :math:`W \leftarrow (I + E) W` are those of a Newton method whose Hessian is that of
        independent sources, halved until the likelihood rises.

        Parameters
        ----------
        x : Tensor
            ``(N, D)``.
        max_iter : int
            Largest number of steps.
        tol : float
            Stop when no entry of the relative gradient :math:`E[\psi(s) s^\top] - I`, with
            :math:`\psi = -(\log p)'`, is larger.
        seed : int
            Of the rotation that the search starts from.

        Raises
        ------
        ValueError
            As ``initialize``.
        """
        checks.at_least(1, max_iter=max_iter)
        checks.not_negative(tol=tol)
        checks.is_seed(seed=seed)
        with thawed(self):
            self.initialize(x, torch.Generator().manual_seed(seed))
            (x,) = as_rows(self, x)
            value, gradient, curvature = self._expansion(x)
            for _ in range(max_iter):
                if gradient.abs().max() <= tol:
                    break
                step = _newton(gradient, curvature)
                found = self._raised(x, value, step)
                if found is None:
                    break
                value, gradient, curvature = found
        return self

    def _raised(
        self, x: Tensor, value: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The expansion after the longest halved step that raises the likelihood, if there is one."""
        before = self.unmixing.detach().clone()
        for halving in range(_HALVINGS):
            put(self.unmixing, before + 0.5**halving * step @ before)
            found = self._expansion(x)
            if found[0] > value:
                return found
        put(self.unmixing, before)
        return None

    @torch.enable_grad()
    def _expansion(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Mean log-likelihood; gradient of its negative and :math:`E[\psi'(s_i) s_j^2]`, ``(D, D)``."""
        s = Unmixing(self.unmixing, self.mean)(x).detach().requires_grad_(True)
        density = self.source().log_prob(s)
        (slope,) = torch.autograd.grad(-density.sum(), s, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), s, allow_unused=True)
        s, slope = s.detach(), slope.detach()
        bend = torch.zeros_like(s) if bend is None else bend
        value = density.detach().mean() + torch.linalg.slogdet(self.unmixing.detach())[1]
        gradient = slope.mT @ s / len(s) - torch.eye(self.dims).to(s)
        return value, gradient, bend.mT @ s.square() / len(s)


def _newton(gradient: Tensor, curvature: Tensor) -> Tensor:
    """The step of pairs of entries (i, j), (j, i), whose Hessian has ones off its diagonal."""
    other = curvature.mT
    smallest = (curvature + other - ((curvature - other).square() + 4).sqrt()) / 2
    raised = (_LEAST - smallest).clamp(min=0.0)
    mine, theirs = curvature + raised, other + raised
    step = -(theirs * gradient - gradient.mT) / (mine * theirs - 1)
    alone = -gradient.diagonal() / (1 + curvature.diagonal()).clamp(min=_LEAST)
    return torch.where(torch.eye(len(step), dtype=torch.bool, device=step.device), alone, step)


class Unmixing(Bijection):
    r"""The linear map :math:`s = W (x - \mu)`.

    >>> s, ladj = Unmixing(torch.eye(2) * 2, torch.ones(2)).call_and_ladj(torch.zeros(2))
    >>> s, ladj.exp().round()
    (tensor([-2., -2.]), tensor(4.))
    """

    def __init__(self, matrix: Tensor, mean: Tensor):
        super().__init__()
        self.matrix = matrix
        self.mean = mean

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) @ self.matrix.mT, self._log_det(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.linalg.solve(self.matrix, y[..., None])[..., 0] + self.mean
        return x, -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return torch.linalg.slogdet(self.matrix).logabsdet.expand(x.shape[:-1])
