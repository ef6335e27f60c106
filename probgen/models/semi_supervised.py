"""Variational autoencoder of rows and labels, few of which are known."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from probgen.core import checks
from probgen.core.arguments import dtype_of
from probgen.core.contexts import beside, distribution_given
from probgen.core.conversion import rows_from
from probgen.core.foreign import row_by_row
from probgen.core.given_labels import check_classes, check_labels
from probgen.core.missing import fill_missing
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.partly_observed import observe
from probgen.core.penalty import penalty


class SemiSupervisedVAE(LatentVariableModel):
    r"""Semi-supervised variational autoencoder (M2): the label is a latent variable, known in some rows.

    .. math:: p(x, y, z) = p(y)\, p(z \mid y)\, p(x \mid y, z), \qquad
              q(y, z \mid x) = q(y \mid x)\, q(z \mid x, y)

    Sites: ``"y"``, latent where the label is missing, ``"z"``, and observed ``"x"``, in plate
    ``"data"``. ``fit(gen, Labeled(x, y))`` maximizes the bounds of Kingma et al. with the labels of
    the other rows summed out (:class:`EnumeratedELBO <probgen.objectives.EnumeratedELBO>`, the
    default),

    .. math:: \sum_{b: y_b \text{ known}} \mathcal L(x_b, y_b) + \sum_{b: y_b \text{ missing}}
              \sum_y q(y \mid x_b) \Big(\mathcal L(x_b, y) - \log q(y \mid x_b)\Big)
              + \alpha \sum_{b: y_b \text{ known}} \log q(y_b \mid x_b),

    where :math:`\mathcal L(x, y)` is the bound of :math:`\log p(x, y)`. The last term trains the
    classifier on the labels, which the bounds do not. It is a term of the loss alone: scores, also
    those of ``EnumeratedELBO`` without labels, bound the evidence whatever :math:`\alpha` is.

    The label is the second argument of the programs, in the place of a context: integers or numbers
    ``(N,)``, NaN where it is not known. ``log_likelihood(gen, x, y)`` estimates log p(x, y) of rows
    with a label, log p(x) of the others; the distribution ``gen(y)`` is p(x | y), ``gen()`` the
    marginal p(x). Networks get labels one-hot, beside their other input: along the last dim of
    vectors, along the channels of images. Missing entries of x (NaN) are left to a decoder that
    integrates them out, and are 0 for encoder and classifier; :func:`probgen.impute` draws them.

    Where x has many entries the bounds move a classifier that knows the labels away from them as
    long as the decoder does not: train it on the labeled rows first, hold it while the decoder
    learns, then train all (:class:`~probgen.train.Stage`). Trained on the codes of a VAE in place
    of x it is the second stage of M1+M2.

    Parameters
    ----------
    prior : DistributionModule or LatentVariableModel
        p(z) of events ``(Z,)``, or p(z | y): called with the labels where it takes a context.
    decoder : DistributionModule
        p(x | y, z): called with z and label, ``(*batch, Z + K)``.
    encoder : DistributionModule
        q(z | x, y) with exact density: called with x and label, ``(*batch, D + K)``, or images
        ``(*batch, C + K, H, W)``.
    classifier : nn.Module
        Logits of q(y | x): ``(*batch, *event) -> (*batch, K)``.
    classes : int
        Number K of labels 0, ..., K - 1. Their probabilities p(y) are learned;
        ``gen.logits.requires_grad_(False)`` keeps them equal.
    alpha : float
        Weight of the classifier's log-likelihood of a known label, beside the bound of one row. The
        paper's choice is 0.1 N / L for L labels in N rows: as much as a tenth of all rows.

    Raises
    ------
    ValueError
        At the call, for labels other than 0, ..., K - 1 and NaN.

    References
    ----------
    Kingma, Rezende, Mohamed, Welling (2014), Semi-supervised learning with deep generative models,
    https://arxiv.org/abs/1406.5298

    >>> from probgen.core.module import standard_normal
    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.nn import MLP
    >>> decoder, encoder = Bernoulli(MLP(2 + 3, [16], 9)), Gaussian(MLP(9 + 3, [16], 4))
    >>> gen = SemiSupervisedVAE(standard_normal(2), decoder, encoder, MLP(9, [16], 3), 3)
    >>> gen.predict(torch.ones(5, 9)).shape, gen(torch.tensor([0, 2])).sample().shape
    (torch.Size([5]), torch.Size([2, 9]))
    """

    context_ndim = 0
    unknown_contexts = True
    context_site = "y_observed"

    def __init__(
        self,
        prior: DistributionModule | LatentVariableModel,
        decoder: DistributionModule,
        encoder: DistributionModule,
        classifier: nn.Module,
        classes: int,
        *,
        alpha: float = 1.0,
    ):
        checks.generative(prior=prior, decoder=decoder, encoder=encoder)
        checks.network(classifier=classifier)
        checks.at_least(2, classes=classes)
        checks.not_negative(alpha=alpha)
        super().__init__()
        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.classifier = classifier
        self.classes = classes
        self.alpha = alpha
        self.logits = nn.Parameter(torch.zeros(classes))

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        self._check(context)
        with data_plate(x, context):
            y = observe("y", dist.Categorical(logits=self.logits), context)
            label = self._one_hot(y)
            z = pyro.sample("z", distribution_given(self.prior, label))
            return pyro.sample("x", self.decode(z, label), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        if x is None:  # all latents belong to rows: no globals to draw
            return
        self._check(context)
        with data_plate(x, context):
            classified = self.classify(x)
            if context is None:
                y = _unobserved(classified.logits)
            else:
                y = self._partly_known(classified, context)
            pyro.sample("z", self.encode(x, self._one_hot(y)))

    def context_check(self, context: Tensor) -> None:
        """Refuses what are no labels before a program runs on them; ``ValueError``."""
        check_classes(context, self.classes)

    def _check(self, labels: Tensor | None) -> None:
        """Refuses labels that are not one of 0, ..., K - 1, or NaN, for each row; ``ValueError``."""
        check_labels(labels)
        if labels is not None:
            check_classes(labels, self.classes)

    def _partly_known(self, classified: dist.Categorical, context: Tensor) -> Tensor:
        """The labels, those that are missing drawn; the classifier pays for those that are known."""
        known = ~context.isnan()
        label = torch.where(known, context, 0.0).long()
        error = -self.alpha * classified.log_prob(label)
        penalty("classification", torch.where(known, error, 0.0))
        # which value is drawn beside a known label counts nothing: nothing to learn from it
        logits = torch.where(known[:, None], classified.logits.detach(), classified.logits)
        return torch.where(known, label, _unobserved(logits))

    def classify(self, x: Tensor) -> dist.Categorical:
        """The distribution q(y | x) of the label: ``(*batch, *event) -> batch_shape (*batch,)``."""
        ndims = [self.encoder.context_ndim]
        return dist.Categorical(logits=row_by_row(self.classifier, fill_missing(x), ndims=ndims))

    def predict(self, x: Tensor) -> Tensor:
        """The most probable label of each row: ``(*batch, *event) -> (*batch,)``, integers."""
        return self.classify(rows_from("x", x).to(dtype_of(self))).logits.argmax(-1)

    def encode(self, x: Tensor, label: Tensor) -> dist.TorchDistribution:
        """q(z | x, y) given one-hot labels: ``(*batch, *event), (*batch, K) -> batch_shape (*batch,)``."""
        return self.encoder(beside(fill_missing(x), label, self.encoder.context_ndim))

    def decode(self, z: Tensor, label: Tensor) -> dist.TorchDistribution:
        """p(x | y, z) given one-hot labels: ``(*batch, Z), (*batch, K) -> batch_shape (*batch,)``."""
        return self.decoder(beside(z, label, self.decoder.context_ndim))

    def _one_hot(self, y: Tensor) -> Tensor:
        return one_hot(y.long(), self.classes).to(self.logits.dtype)


def _unobserved(logits: Tensor) -> Tensor:
    """The labels that are missing, summed out by objectives that enumerate."""
    drawn: Any = pyro.sample(
        "y_unobserved", dist.Categorical(logits=logits), infer={"enumerate": "parallel"}
    )
    return drawn
