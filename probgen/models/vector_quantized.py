"""Vector-quantized variational autoencoder: images as few tokens, and any family over tokens."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.contexts import distribution_given, zero_context
from probgen.core.missing import fill_missing
from probgen.core.modes import infers
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.penalty import penalty
from probgen.core.supports import support_of
from probgen.core.turns import same_random_state
from probgen.distributions.straight_through import straight_through
from probgen.nn.quantizers import Quantization, Quantizer


class VQVAE(LatentVariableModel):
    r"""Vector-quantized variational autoencoder, with discrete latents that are numbers of codes.

    .. math:: p(x, k \mid c) = p(k \mid c)\; p(x \mid e_k), \qquad
              q(k \mid x) = \delta\big(k - k(x)\big), \quad
              k(x)_i = \arg\min_j \lVert \operatorname{enc}(x)_i - e_j \rVert

    Sites: latents ``"k"`` (the tokens) and ``"code"`` (their codes), observed ``"x"``, in plate
    ``"data"``. The encoder chooses one configuration of tokens for each row, so that scores are
    :math:`\log p(x \mid e_{k(x)}) + \log p(k(x)) \le \log p(x)`, of kind *bound*.

    Training with the usual objective trains all parts at once: the gradient of the reconstruction
    passes straight through the quantizer to the encoder (a *biased* gradient), which the
    commitment, a part of the loss but not of scores, keeps near the codes; tokens have no gradient,
    so that the prior learns them as they come. In two stages, each a plain fit, the first one has a
    prior that need not learn::

        uniform = Fixed(dist.Categorical, event_ndim=2, logits=torch.zeros(7, 7, 256))
        first = VQVAE(encoder, decoder, Codebook(256, 32), uniform)
        fit(first, x)
        prior = Transformer((7, 7), Categorical(levels=256), Tokens(256, 64))
        fit(prior, first.tokens(x))
        gen = VQVAE(encoder, decoder, first.quantizer, prior)

    Missing entries of x (NaN) enter the encoder as 0, and are integrated out by a decoder that does
    so. Contexts are those of the prior.

    Parameters
    ----------
    encoder : nn.Module
        ``(*batch, *event) -> (*batch, dim, *places)``: images of dim channels for tokens ``(h,
        w)``, or ``(*batch, dim, length)``.
    decoder : DistributionModule
        p(x | codes), with contexts ``(dim, *places)``: ``Bernoulli(net, event_ndim=3,
        context_ndim=3)``.
    quantizer : Quantizer
        :class:`~probgen.nn.Codebook`, or :class:`~probgen.nn.FiniteScalarQuantizer`.
    prior : DistributionModule
        p(k) of integers 0 to ``num_codes - 1`` in events ``(*places)``, or ``(1, h, w)``:
        ``Transformer``, ``PixelCNN``, ``MADE``, or a uniform one.

    References
    ----------
    van den Oord, Vinyals, Kavukcuoglu (2017), Neural discrete representation learning,
    https://arxiv.org/abs/1711.00937; Razavi, van den Oord, Vinyals (2019), Generating diverse
    high-fidelity images with VQ-VAE-2, https://arxiv.org/abs/1906.00446

    >>> from probgen.core.module import Fixed
    >>> from probgen.heads import Bernoulli
    >>> from probgen.nn import MLP, Codebook
    >>> encoder = nn.Sequential(MLP(6, [8], 4), nn.Unflatten(-1, (2, 2)))
    >>> decoder = nn.Sequential(nn.Flatten(-2), MLP(4, [8], 6))
    >>> prior = Fixed(dist.Categorical, logits=torch.zeros(2, 5))
    >>> gen = VQVAE(encoder, Bernoulli(decoder, context_ndim=2), Codebook(5, 2), prior)
    >>> gen.tokens(torch.ones(7, 6)).shape, gen().sample((3,)).shape
    (torch.Size([7, 2]), torch.Size([3, 6]))
    """

    context_from = "prior"
    marginal_kind = "bound"

    def __init__(
        self,
        encoder: nn.Module,
        decoder: DistributionModule,
        quantizer: Quantizer,
        prior: DistributionModule,
    ):
        checks.network(encoder=encoder, quantizer=quantizer)
        checks.generative(decoder=decoder, prior=prior)
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        self.prior = prior
        self.context_ndim = prior.context_ndim
        self._places = decoder.context_ndim - 1
        self._prior_ndim = _event_ndim(prior, self._places)
        _check_levels(prior, quantizer.num_codes)

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with data_plate(x, context):
            token = pyro.sample("k", distribution_given(self.prior, context))
            event_ndim = self._places + 1
            code = dist.Delta(self.embed(token), event_dim=event_ndim)
            return pyro.sample("x", self.decoder(pyro.sample("code", code)), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        if x is None:  # all latents belong to rows: no globals to draw
            return
        with data_plate(x, context):
            made = self.encode(x)
            token = self._as_events(made.token.to(made.code.dtype))
            pyro.sample("k", dist.Delta(token, event_dim=self._prior_ndim))
            code = made.code.movedim(-1, -1 - self._places)
            pyro.sample("code", straight_through(dist.Delta(code, event_dim=self._places + 1)))
            weight = made.commitment
            penalty("commitment", weight.flatten(-self._places).sum(-1) if self._places else weight)

    def encode(self, x: Tensor) -> Quantization:
        """Codes ``(*batch, *places, dim)``, tokens and commitment ``(*batch, *places)``; NaN enters as 0."""
        z = self.encoder(fill_missing(x))
        return self.quantizer(z.movedim(-1 - self._places, -1))

    def embed(self, token: Tensor) -> Tensor:
        """The codes of tokens as the decoder takes them.

        ``(*batch, *event of the prior) -> (*batch, dim, *places)``.
        """
        lead = token.shape[: token.ndim - self._prior_ndim]
        code = self.quantizer.embed(token.reshape(*lead, *token.shape[token.ndim - self._places :]))
        return code.movedim(-1, -1 - self._places)

    @infers
    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        """The tokens of rows, ``(B, *event) -> (B, *event of the prior)``: data for the prior."""
        (x,) = self.settle((x,))
        return self._as_events(self.encode(x).token)

    def decode(self, token: Tensor) -> dist.TorchDistribution:
        """p(x | k) of tokens ``(*batch, *event of the prior)``."""
        return self.decoder(self.embed(token))

    def _as_events(self, token: Tensor) -> Tensor:
        """Tokens ``(*batch, *places)`` as events of the prior."""
        lead = token.shape[: token.ndim - self._places]
        ones = (1,) * (self._prior_ndim - self._places)
        return token.reshape(*lead, *ones, *token.shape[len(lead) :])


def _given_nothing(prior: DistributionModule) -> Any:
    """The distribution of a prior as it is now; ``None`` where it cannot tell without a context."""
    context = zero_context(prior) if prior.context_ndim == 1 else None
    try:
        with torch.no_grad(), same_random_state():
            return prior(context)
    except (RuntimeError, ValueError, TypeError):
        return None


def _check_levels(prior: DistributionModule, num_codes: int) -> None:
    """Refuses a prior of other numbers than those of the codes, where it tells them."""
    distribution = _given_nothing(prior)
    support = None if distribution is None else support_of(distribution)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    low, high = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    ends = [
        int(end) for end in (low, high) if end is not None and torch.as_tensor(end).numel() == 1
    ]
    if len(ends) == 2 and ends != [0, num_codes - 1]:
        raise ValueError(
            f"expected a prior of tokens 0, 1, ..., {num_codes - 1}, the numbers of the codes, got "
            f"one of {ends[0]}, ..., {ends[1]}; give prior and quantizer one number of them"
        )


def _event_ndim(prior: DistributionModule, places: int) -> int:
    """Event dims of the prior: those of the places, or one for a single channel before them."""
    distribution = _given_nothing(prior)
    if distribution is None:
        return places
    event = distribution.event_shape
    fits = len(event) == places or (len(event) == places + 1 and event[0] == 1)
    if not fits:
        raise ValueError(
            f"expected a prior of tokens in {places} dims, or 1 channel of them, as the decoder "
            f"takes their codes (context_ndim={places + 1}), got events {tuple(event)}; set "
            "context_ndim of the decoder, or reshape the prior"
        )
    return len(event)
