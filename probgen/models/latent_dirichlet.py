"""Latent Dirichlet allocation: documents as mixtures of topics."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.entry import as_rows
from probgen.core.missing import MissingAware
from probgen.core.module import LatentVariableModel, data_plate
from probgen.core.score import Score
from probgen.distributions.frozen import put, thawed
from probgen.heads import distributions

_NUMBERS = 2**24  # of a block of documents
_TINY = 1e-30


class _Documents(NamedTuple):
    """What the coordinate updates find of documents."""

    weights: Tensor  # concentrations of the posteriors of their topics, (N, K)
    bound: Tensor  # on the log probability of their words in order, given how many, (N,)
    counts: Tensor  # expected counts of each word from each topic, (K, V)


class LatentDirichletAllocation(LatentVariableModel):
    r"""Latent Dirichlet allocation: topics are distributions of words, documents mix a few topics.

    .. math::
        \beta_k \sim \mathrm{Dirichlet}(\eta), \qquad \theta_b \sim \mathrm{Dirichlet}(\alpha), \quad
        n_b \sim \mathrm{Poisson}(\xi), \quad x_b \sim \mathrm{Multinomial}\Bigl(n_b, \sum_k
        \theta_{bk} \beta_k\Bigr)

    A row counts the words of a document, :math:`(V,)` numbers: ``Vocabulary.counts(texts)``. The
    topic of each word is summed out, so that counts are independent Poisson variables given the
    sites ``"topics"`` (K, V) and ``"weights"`` (B, K). The guide has a Dirichlet distribution of each
    topic, learned by :meth:`solve` (closed-form coordinate updates over all documents) or by
    :func:`probgen.fit` (mini-batches), and for each document the Dirichlet distribution that the
    coordinate updates find: there is no network to train, new documents need none.

    Parameters
    ----------
    topics : int
        Number K of topics.
    words : int
        Number V of words.
    weights_prior, topics_prior : float
        :math:`\alpha` and :math:`\eta`, below 1 for documents of few topics, topics of few words;
        default: 1 / K.
    max_iter : int
        Coordinate updates of a document at most.

    References
    ----------
    Blei, Ng, Jordan (2003), Latent Dirichlet allocation, https://www.jmlr.org/papers/v3/blei03a.html;
    with priors of the topics: Hoffman, Blei, Bach (2010), Online learning for latent Dirichlet
    allocation,
    https://papers.nips.cc/paper/2010/hash/71f6278d140af599e06ad9bf1ba03cb0-Abstract.html

    >>> _ = torch.manual_seed(0)
    >>> even = torch.tensor([[5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]]).repeat(20, 1)
    >>> gen = LatentDirichletAllocation(2, 4).solve(even, seed=0)
    >>> gen.topic_weights(even[:2]).max(-1).values > 0.9
    tensor([True, True])
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(
        self,
        topics: int,
        words: int,
        *,
        weights_prior: float | None = None,
        topics_prior: float | None = None,
        max_iter: int = 100,
    ):
        checks.at_least(1, topics=topics, words=words, max_iter=max_iter)
        checks.positive(**checks.given(weights_prior=weights_prior, topics_prior=topics_prior))
        super().__init__()
        self.topics_count = topics
        self.words = words
        self.weights_prior = 1 / topics if weights_prior is None else weights_prior
        self.topics_prior = 1 / topics if topics_prior is None else topics_prior
        self.max_iter = max_iter
        self.log_concentration = nn.Parameter(0.1 * torch.randn(topics, words))
        self.log_length = nn.Parameter(torch.tensor(float(words)).log())

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        like = self.log_concentration
        prior = torch.full_like(like, self.topics_prior)
        topics = pyro.sample("topics", dist.Dirichlet(prior).to_event(1))
        with data_plate(x, context):
            prior = torch.full_like(like[:, 0], self.weights_prior)
            weights = pyro.sample("weights", dist.Dirichlet(prior))
            shares = torch.einsum("...k,...kv->...v", weights, topics)
            log_rate = shares.clamp(min=_TINY).log() + self.log_length
            return pyro.sample("x", MissingAware(distributions.Poisson(log_rate), 1), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        pyro.sample("topics", dist.Dirichlet(self.log_concentration.exp()).to_event(1))
        if x is None:
            return
        with data_plate(x, context):
            pyro.sample("weights", dist.Dirichlet(self._documents(x).weights))

    @property
    def topics(self) -> Tensor:
        """Expected probabilities of the words of each topic: ``(K, V)``."""
        return self.log_concentration.detach().softmax(-1)

    @torch.no_grad()
    def topic_weights(self, x: Any) -> Tensor:
        """Expected shares of the topics in documents: ``(N, V) -> (N, K)``."""
        x = self._complete(x)
        weights = torch.cat([self._documents(block).weights for block in self._blocks(x)])
        return weights / weights.sum(-1, keepdim=True)

    @torch.no_grad()
    def bound(self, x: Any) -> Score:
        """Lower bounds on log p(x) of documents ``(N, V)``, of kind *bound*, without any draws.

        That of Blei, Ng, Jordan: looser than ``log_likelihood``, which sums the topics of words out.
        """
        x = self._complete(x)
        found = [self._documents(block).bound + self._orders(block) for block in self._blocks(x)]
        return Score(torch.cat(found), "bound", measure="mass")

    @torch.no_grad()
    def perplexity(self, x: Any) -> float:
        r"""An upper bound on the perplexity of the words of documents ``(N, V)``, in order.

        .. math:: \exp\Bigl(-\frac{\sum_b \log p(w_{b1}, \dots, w_{bn_b})}{\sum_b n_b}\Bigr)

        As many equally likely words are as surprising. Posteriors are those of the documents
        themselves, as is usual; what the topics have cost is not counted.

        Raises
        ------
        ValueError
            If there are no words.
        """
        x = self._complete(x)
        words = x.sum(dtype=torch.float64)
        if not words > 0:
            raise ValueError(
                f"expected documents with words, got {len(x)} empty ones; leave them out"
            )
        bound = sum(self._documents(block).bound.double().sum() for block in self._blocks(x))
        return math.exp(-float(bound / words))

    @torch.no_grad()
    def solve(
        self, x: Any, *, max_iter: int = 100, tol: float = 1e-5, seed: int = 0
    ) -> LatentDirichletAllocation:
        """Finds the topics of documents ``(N, V)`` by variational EM, and returns itself.

        In turn, the posteriors of all documents given those of the topics, and the other way round:
        each step raises the evidence lower bound. The length parameter becomes the mean length.

        Parameters
        ----------
        x : Tensor, array or frame
            Counts ``(N, V)``, none missing.
        max_iter : int
            Largest number of passes over all documents.
        tol : float
            Stop when a pass raises the bound by less than this, in nats a word.
        seed : int
            Of the topics that the search starts from.

        Raises
        ------
        ValueError
            If there are no words, or counts are missing.
        """
        checks.at_least(1, max_iter=max_iter)
        checks.not_negative(tol=tol)
        checks.is_seed(seed=seed)
        x = self._complete(x)
        words = x.sum(dtype=torch.float64)
        if not words > 0:
            raise ValueError(
                f"expected documents with words, got {len(x)} empty ones; leave them out"
            )
        with thawed(self):
            put(self.log_length, (words / len(x)).log())
            self._start(torch.Generator().manual_seed(seed))
            before = -math.inf
            for _ in range(max_iter):
                value = self._pass(x)
                if value - before < tol * words:
                    break
                before = value
        return self

    def _start(self, generator: torch.Generator) -> None:
        """Topics of a word or so each, at random: posteriors of documents tell them apart soon."""
        noise = 1 + 0.1 * torch.randn(self.log_concentration.shape, generator=generator)
        put(self.log_concentration, noise.clamp(min=0.1).log())

    def _pass(self, x: Tensor) -> float:
        """The evidence lower bound of all documents, after which the topics are updated."""
        prior = dist.Dirichlet(torch.full_like(self.log_concentration, self.topics_prior))
        own = dist.Dirichlet(self.log_concentration.exp())
        value = -kl_divergence(own, prior).sum(dtype=torch.float64)
        counts = torch.zeros_like(self.log_concentration)
        for block in self._blocks(x):
            found = self._documents(block)
            value = value + found.bound.sum(dtype=torch.float64)
            counts += found.counts
        put(self.log_concentration, (self.topics_prior + counts).log())
        return value.item()

    def _complete(self, x: Any) -> Tensor:
        (x,) = as_rows(self, x)
        if x.isnan().any():
            raise ValueError(
                "expected complete counts, got NaN in x: the coordinate updates would take them for "
                "0; put 0 for words that do not occur, or take log_likelihood or impute, which "
                "integrate missing counts out"
            )
        return x

    def _blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(max(1, _NUMBERS // self.words))

    @torch.no_grad()
    def _documents(self, x: Tensor) -> _Documents:
        r"""Coordinate updates of documents ``(N, V)``.

        With :math:`\phi_{bvk} \propto \exp(E \log \theta_{bk} + E \log \beta_{kv})`, the topic of a
        word, :math:`\gamma_b = \alpha + \sum_v x_{bv} \phi_{bv}`.
        """
        x = x.nan_to_num(0.0)
        likely = _exp_expected_log(self.log_concentration.exp())
        alpha = self.weights_prior
        weights = alpha + x.sum(-1, keepdim=True).expand(-1, self.topics_count) / self.topics_count
        for _ in range(self.max_iter):
            before = weights
            share = _exp_expected_log(weights)
            weights = alpha + share * ((x / (share @ likely + _TINY)) @ likely.mT)
            if (weights - before).abs().mean(-1).max() < 1e-3:
                break
        share = _exp_expected_log(weights)
        norm = share @ likely + _TINY
        prior = dist.Dirichlet(torch.full_like(weights, alpha))
        told = (x * norm.log()).sum(-1) - kl_divergence(dist.Dirichlet(weights), prior)
        return _Documents(weights, told, likely * (share.mT @ (x / norm)))

    def _orders(self, x: Tensor) -> Tensor:
        """Log probability of so many words, times the number of their orders: ``(N,)``."""
        x = x.nan_to_num(0.0)
        return (
            x.sum(-1) * self.log_length - self.log_length.exp() - (1 + x).lgamma().sum(-1)
        ).detach()


def _exp_expected_log(concentration: Tensor) -> Tensor:
    r""":math:`\exp E \log p` of a Dirichlet distribution."""
    return (concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()).exp()
