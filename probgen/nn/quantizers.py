"""Vector and scalar quantization: continuous vectors to the codes of a finite set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch import distributed as processes

from probgen.core import checks
from probgen.core.construction import Recorded

TINY = 1e-6  # average uses below which a code keeps its place


class Quantization(NamedTuple):
    """What a quantizer makes of vectors ``(*batch, dim)``.

    Attributes
    ----------
    code : Tensor
        ``(*batch, dim)``: exactly codes of the set; their gradient is passed on to the vectors.
    token : Tensor
        Number of each code, ``(*batch,)``, integers.
    commitment : Tensor
        What keeps the vectors near their codes, ``(*batch,)``, with its weight; 0 where the set is
        fixed.
    """

    code: Tensor
    token: Tensor
    commitment: Tensor


@runtime_checkable
class Quantizer(Protocol):
    """A finite set of vectors, and the way to it."""

    dim: int
    num_codes: int

    def __call__(self, z: Tensor) -> Quantization:
        """The codes of vectors, ``(*batch, dim)``."""

    def embed(self, token: Tensor) -> Tensor:
        """The codes of these numbers, ``(*batch,) -> (*batch, dim)``."""


def pass_gradient(code: Tensor, source: Tensor) -> Tensor:
    """The very values of ``code``, with the gradient passed straight through to ``source``.

    Source: Bengio, Léonard, Courville (2013), https://arxiv.org/abs/1308.3432.

    >>> source = torch.tensor([0.2, 0.9], requires_grad=True)
    >>> code = pass_gradient(source.round(), source)
    >>> code.detach(), torch.autograd.grad(code.square().sum(), source)[0]
    (tensor([0., 1.]), tensor([0., 2.]))
    """
    return code.detach() + (source - source.detach())


class Codebook(Recorded, nn.Module):
    r"""Vector quantization with a codebook that follows exponential moving averages.

    .. math:: k(z) = \arg\min_j \lVert z - e_j \rVert, \qquad
              N_j \leftarrow \gamma N_j + (1 - \gamma) n_j, \quad
              m_j \leftarrow \gamma m_j + (1 - \gamma) \sum_{b: k(z_b) = j} z_b, \quad
              e_j = m_j / N_j

    The averages are buffers that each pass in training mode updates, before it gives the codes out,
    as batch normalization does: no gradient reaches the codes, that of what is made of them goes
    straight through to z, and :math:`\beta \lVert z - \operatorname{sg}(e_{k(z)}) \rVert^2` keeps z
    near them. A code that no vector of a batch is nearest to, and that has long been used less than
    ``restart`` times the even share, starts anew at a random vector of the batch: so a codebook
    starts from data, and stays in use. Where ``torch.distributed`` is initialized, counts and sums
    are those of all processes.

    Parameters
    ----------
    num_codes : int
        Number K of codes.
    dim : int
        Their length.
    decay : float
        :math:`\gamma`.
    commitment : float
        :math:`\beta`.
    restart : float
        Share of the even use :math:`n / K` below which codes start anew; 0: none does.

    References
    ----------
    van den Oord, Vinyals, Kavukcuoglu (2017), Neural discrete representation learning,
    https://arxiv.org/abs/1711.00937 (appendix A.1: moving averages); Razavi, van den Oord, Vinyals
    (2019), https://arxiv.org/abs/1906.00446; Dhariwal et al. (2020), Jukebox,
    https://arxiv.org/abs/2005.00341 (restarts)

    >>> _ = torch.manual_seed(0)
    >>> codebook = Codebook(8, 2)
    >>> made = codebook(torch.randn(5, 3, 2))
    >>> made.code.shape, made.token.shape, bool((codebook.embed(made.token) == made.code).all())
    (torch.Size([5, 3, 2]), torch.Size([5, 3]), True)
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        commitment: float = 0.25,
        restart: float = 0.03,
    ):
        checks.at_least(1, num_codes=num_codes, dim=dim)
        checks.within("[0, 1)", decay=decay, restart=restart)
        checks.not_negative(commitment=commitment)
        super().__init__()
        self.num_codes = num_codes
        self.dim = dim
        self.decay = decay
        self.commitment = commitment
        self.restart = restart
        codes = torch.randn(num_codes, dim)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, dim))

    def forward(self, z: Tensor) -> Quantization:
        check_length(z, self.dim)
        token = self.nearest(z)
        if self.training:
            self._follow(z.detach().reshape(-1, self.dim), token.reshape(-1))
        code = self.embed(token)
        return Quantization(
            pass_gradient(code, z), token, self.commitment * (z - code).square().sum(-1)
        )

    def embed(self, token: Tensor) -> Tensor:
        """The codes of these numbers, ``(*batch,) -> (*batch, dim)``."""
        return self.codes[token.long()]

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Numbers of the nearest codes, ``(*batch, dim) -> (*batch,)``."""
        with in_full_precision(z):
            center = self.codes.mean(0)  # products lose differences of far points
            z, codes = z.to(self.codes.dtype) - center, self.codes - center
            return (codes.square().sum(-1) - 2 * z @ codes.mT).argmin(-1)

    @torch.no_grad()
    def _follow(self, z: Tensor, token: Tensor) -> None:
        """One step of the moving averages, and of the restarts."""
        z = z.to(self.codes.dtype)
        one_hot = (token[:, None] == torch.arange(self.num_codes, device=z.device)).to(z.dtype)
        fresh = z[torch.randint(len(z), (self.num_codes,), device=z.device)]
        counts = one_hot.sum(0)
        with in_full_precision(z):
            sums = one_hot.mT @ z
        if processes.is_available() and processes.is_initialized():
            processes.all_reduce(counts)
            processes.all_reduce(sums)
            processes.broadcast(fresh, 0)
        averages = self.decay * self.counts + (1 - self.decay) * counts
        moments = self.decay * self.sums + (1 - self.decay) * sums
        followed = torch.where(
            averages[:, None] > TINY, moments / averages.clamp(min=TINY)[:, None], self.codes
        )
        even = counts.sum() / self.num_codes
        dead = (counts == 0) & (averages < self.restart * even)
        # with the even share a new code is not dead again before it could have been used
        self.counts.copy_(torch.where(dead, even, averages))
        self.sums.copy_(torch.where(dead[:, None], even * fresh, moments))
        self.codes.copy_(torch.where(dead[:, None], fresh, followed))


class FiniteScalarQuantizer(Recorded, nn.Module):
    r"""Finite scalar quantization: every entry of a vector is rounded to one of a few levels.

    .. math:: c_d = \operatorname{round}\big(h_d \tanh(z_d + s_d) - o_d\big) / \lfloor L_d / 2 \rfloor

    with :math:`h_d \approx (L_d - 1) / 2`, and an offset o of one half, and the shift s that keeps 0
    in place, for even numbers of levels. The codes are the :math:`\prod_d L_d` points of a grid:
    there is no codebook to learn, none that collapses, and no commitment to it. The gradient passes
    straight through the rounding.

    Parameters
    ----------
    levels : sequence of int
        Numbers of levels :math:`L_d`, at least 2 each: ``(8, 6, 5)`` makes 240 codes, ``(8, 5, 5,
        5)`` 1000.

    References
    ----------
    Mentzer, Minnen, Agustsson, Tschannen (2023), Finite scalar quantization: VQ-VAE made simple,
    https://arxiv.org/abs/2309.15505 (appendix A.1: code, whose shift is a tangent; that of the
    inverse of tanh here leaves 0 where it is)

    >>> quantizer = FiniteScalarQuantizer((3, 4))
    >>> made = quantizer(torch.tensor([[-9.0, -9.0], [0.0, 0.1], [9.0, 9.0]]))
    >>> made.code, made.token
    (tensor([[-1.0000, -1.0000],
            [ 0.0000,  0.0000],
            [ 1.0000,  0.5000]]), tensor([ 0,  6, 11]))
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int]):
        checks.sizes(2, 1, levels=levels)
        super().__init__()
        sizes = torch.tensor(list(levels))
        self.dim = len(sizes)
        self.num_codes = math.prod(sizes.tolist())
        self.register_buffer("levels", sizes, persistent=False)
        strides = self.num_codes // sizes.cumprod(0)
        self.register_buffer("strides", strides, persistent=False)

    def forward(self, z: Tensor) -> Quantization:
        check_length(z, self.dim)
        source = self._bounded(z)
        half = self.levels // 2
        steps = source.detach().round()
        token = ((steps + half).long() * self.strides).sum(-1)
        code = pass_gradient(steps / half, source / half)
        return Quantization(code, token, torch.zeros_like(source[..., 0]))

    def embed(self, token: Tensor) -> Tensor:
        """The codes of these numbers, ``(*batch,) -> (*batch, dim)``."""
        steps = token.long()[..., None] // self.strides % self.levels
        half = self.levels // 2
        dtype = token.dtype if token.is_floating_point() else torch.get_default_dtype()
        return (steps - half).to(dtype) / half

    def _bounded(self, z: Tensor) -> Tensor:
        """z within the range that rounds to the levels."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = (offset / half).atanh()
        return (half * (z + shift).tanh() - offset).to(z.dtype)


def in_full_precision(z: Tensor) -> torch.autocast:
    """No automatic casts inside the block: averages need more digits than bfloat16 has.

    >>> with torch.autocast("cpu", torch.bfloat16), in_full_precision(torch.zeros(2)):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    return torch.autocast(z.device.type, enabled=False)


def check_length(z: Tensor, dim: int) -> None:
    """Refuses vectors of another length than the codes.

    >>> check_length(torch.zeros(5, 3), 2)
    Traceback (most recent call last):
        ...
    ValueError: expected vectors of shape (*batch, 2), got (5, 3); build the encoder for 2 outputs
    """
    if z.ndim < 1 or z.shape[-1] != dim:
        raise ValueError(
            f"expected vectors of shape (*batch, {dim}), got {tuple(z.shape)}; build the encoder "
            f"for {dim} outputs"
        )
