"""InfoGAN: codes that a recognizer can read off what the generator makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.core.contexts import received
from probgen.core.foreign import row_by_row
from probgen.core.missing import fill_missing
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.distributions.codes import CodeDistribution


class Codes(DistributionModule):
    r"""Distribution of code vectors.

    K one-hot categories, then D continuous codes; the prior, or with a network the recognizer.

    .. math:: p(c) = \prod_k \mathrm{Categorical}(c_k; \pi_k) \prod_d \mathcal N(c_d; \mu_d, \sigma_d^2), \qquad
              \sigma = m + (1 - m) \operatorname{softplus}(\text{raw}) / \log 2

    Without network uniform categories and standard normal continuous codes, which is what a network
    that gives zeros says too.

    Parameters
    ----------
    categories : sequence of int
        Number of levels of each category.
    continuous : int
        Number D of continuous codes.
    net : nn.Module, optional
        From the context to raw values ``(*batch, width)``: logits, locations, raw scales. See
        :meth:`width`.
    min_scale : float
        Smallest scale m of continuous codes: without one the density of a code that is read off
        exactly has no bound.
    context_ndim : int
        Number of event dims of the context: 3 for images.

    >>> Codes([10], 2)().sample((5,)).shape, Codes.width([10], 2)
    (torch.Size([5, 12]), 14)
    """

    zeros: Tensor

    def __init__(
        self,
        categories: Sequence[int] = (),
        continuous: int = 0,
        net: nn.Module | None = None,
        *,
        min_scale: float = 0.1,
        context_ndim: int = 1,
    ):
        checks.sizes(categories=categories)
        checks.at_least(0, continuous=continuous)
        checks.network(**checks.given(net=net))
        checks.not_negative(min_scale=min_scale)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        if not categories and not continuous:
            raise ValueError(
                "expected categories or continuous codes, got neither; Codes([10]) is one category "
                "of ten levels"
            )
        self.categories = tuple(categories)
        self.continuous = continuous
        self.min_scale = min_scale
        self.net = net
        self.context_ndim = context_ndim
        self.register_buffer(
            "zeros", torch.zeros(self.width(categories, continuous)), persistent=False
        )

    @staticmethod
    def width(categories: Sequence[int], continuous: int = 0) -> int:
        """Number of raw values that a network has to give."""
        return sum(categories) + 2 * continuous

    @property
    def ignores_contexts(self) -> bool:
        return self.net is None

    def forward(self, context: Tensor | None = None) -> CodeDistribution:
        raw = self._raw(context)
        *logits, loc, scale = raw.split([*self.categories, self.continuous, self.continuous], -1)
        scale = self.min_scale + (1 - self.min_scale) / math.log(2) * softplus(scale)
        return CodeDistribution(logits, loc, scale)

    def _raw(self, context: Tensor | None) -> Tensor:
        if self.net is None:
            return (
                self.zeros
                if context is None
                else self.zeros.expand(*context.shape[: -self.context_ndim], -1)
            )
        raw = row_by_row(self.net, context, ndims=[self.context_ndim])
        if raw.shape[-1:] != self.zeros.shape:
            raise ValueError(
                f"expected a network that gives {len(self.zeros)} raw values, got "
                f"{tuple(raw.shape)}; set its outputs "
                f"to Codes.width({list(self.categories)}, {self.continuous})"
            )
        return raw


class InfoGAN(LatentVariableModel):
    r"""A generator of noise and a code, with a recognizer of the code: what it varies gets names.

    .. math:: p(c)\, p(x \mid c), \quad x = g(z, c), \; z \sim p_0; \qquad q(c \mid x)

    Sites: latent ``"code"``, observed ``"x"``, both in plate ``"data"``; the noise z is inside the
    implicit distribution of x. Trained by ``Adversarial(critic, information=1.0)``: the mutual
    information of code and x is bounded from below by :math:`\mathbb E \log q(c \mid x) + H(c)`,
    whose first term is that of an unconditioned run (c, x); generator and recognizer raise it together. What the
    levels of a category name is left open by that: ``InvariantInformation(views,
    Adversarial(...))`` makes it what the views of a real row have in common, on digits their
    classes. The recognizer of a trained model is ``gen.recognize(x)``.

    Parameters
    ----------
    generator : DistributionModule
        The distribution of x given the code as its context: ``GAN(SideBySide(network), base,
        event_shape)``.
    codes : DistributionModule
        The prior of the code, for instance ``Codes([10], 2)``: a category of ten levels and two
        continuous codes.
    recognizer : DistributionModule
        q(c | x), for instance ``Codes([10], 2, network)``.

    References
    ----------
    Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel (2016), InfoGAN,
    https://arxiv.org/abs/1606.03657

    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.gan import GAN
    >>> from probgen.nn import MLP
    >>> from probgen.nn.side_by_side import SideBySide
    >>> generator = GAN(SideBySide(MLP(4 + 3, [8], 2)), standard_normal(4), (2,))
    >>> gen = InfoGAN(generator, Codes([3]), Codes([3], net=MLP(2, [8], 3)))
    >>> gen().sample((5,)).shape, gen.recognize(torch.zeros(5, 2)).probabilities()[0].shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    context_size = 0
    context_hint = (
        "InfoGAN finds its codes by itself: a generator of labels is GAN(network, base, "
        "event_shape), and "
        "VAE(codes, generator, recognizer) is InfoGAN given a context"
    )

    def __init__(
        self,
        generator: DistributionModule,
        codes: DistributionModule,
        recognizer: DistributionModule,
    ):
        checks.generative(generator=generator, codes=codes, recognizer=recognizer)
        super().__init__()
        self.generator = generator
        self.codes = codes
        self.recognizer = recognizer

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        with data_plate(x):
            code = pyro.sample("code", self.codes())
            return pyro.sample("x", self.generator(code), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        if x is None:  # the code belongs to rows: no globals to draw
            return
        with data_plate(x):
            pyro.sample("code", self.recognize(x))

    def recognize(self, x: Tensor) -> CodeDistribution:
        """The distribution q(c | x) of the code of rows; NaN enters as 0.

        ``(*batch, *event) -> batch_shape (*batch,)``.
        """
        return self.recognizer(fill_missing(x))
