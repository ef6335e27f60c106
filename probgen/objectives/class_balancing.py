"""Class-balancing diffusion: rare classes learn from frequent ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.objectives.base import Objective, distribution_of_x


@runtime_checkable
class HasDenoisedPair(Protocol):
    """A distribution learned by denoising, whose predictions can stand beside another's."""

    def denoised_pair(self, x: Tensor, other: Any) -> Any:
        """Its simple loss ``loss``, and what both say of the same noised rows.

        ``own`` and ``other`` ``(*batch, *event)`` in the unit of the loss, at times ``time``, and
        in which rows both contexts are ``known``: ``(*batch,)``.
        """


class ClassBalancing(Objective):
    r"""The simple loss of a class-balancing diffusion model.

    .. math:: \sum_b L_b + \tau t_b \Big(\big|f(z_b, t_b, c_b) - \bar f(z_b, t_b, c_b')\big|^2
              + \gamma \big|\bar f(z_b, t_b, c_b) - f(z_b, t_b, c_b')\big|^2\Big)

    beside the simple loss L of :class:`Denoising <probgen.objectives.Denoising>`, at the same
    noise, with predictions f in the terms in which L is their squared error, other contexts
    :math:`c'` drawn at random, and no gradient through :math:`\bar f`. Where classes have few rows,
    a network learns them by heart: their draws are alike. Predictions for one class are drawn here
    to those for the others where there is much noise, that is in what classes share. It trades how
    well draws fit their class for how diverse they are: a small share of guidance wins the first
    back.

    Contexts of the model stand beside rows, ``fit(gen, (x, context), ...)``. Rows whose context is
    dropped add L alone. Each step calls the network twice. A model that was trained without it needs
    only a part of the steps with it.

    Parameters
    ----------
    contexts : Tensor
        The contexts of all classes, ``(K, *context_event)``: ``torch.eye(10)`` where the model
        takes one-hot vectors, ``torch.arange(10)`` where it embeds labels.
    weight : float
        :math:`\tau`; times t go from 0 (data) to 1 (noise).
    commitment : float
        :math:`\gamma`, the share of the gradient through the other class.
    counts : Tensor, optional
        Numbers ``(K,)`` in proportion to which contexts are drawn: those of the rows of each class
        make :math:`c'` distributed as in the data. Default: all classes alike.

    Raises
    ------
    TypeError
        At the call, if the distribution of x is not learned by denoising, or its noise is not
        Gaussian.
    ValueError
        At the call, if there is no context, or one of another shape.

    References
    ----------
    Qin, Zheng, Yao, Zhou, Zhang (2023), Class-balancing diffusion models,
    https://arxiv.org/abs/2305.00562

    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> gen = Diffusion(TimeMLP(2, [16], context=3), (2,))
    >>> x, context = torch.randn(8, 2), torch.eye(3)[torch.randint(3, (8,))]
    >>> ClassBalancing(torch.eye(3))(gen.model, gen.guide)(x, context).shape
    torch.Size([])
    """

    weighs_rows = True
    contexts: Tensor
    ends: Tensor

    def __init__(
        self,
        contexts: Tensor,
        weight: float = 1.0,
        *,
        commitment: float = 0.25,
        counts: Tensor | None = None,
    ):
        checks.instance(Tensor, "pass torch.eye(10)", contexts=contexts)
        checks.instance(Tensor, "pass labels.bincount()", **checks.given(counts=counts))
        checks.not_negative(weight=weight, commitment=commitment)
        if contexts.ndim < 1 or len(contexts) < 2:
            raise ValueError(
                "expected contexts of 2 classes or more, (K, *context_event), got shape "
                f"{tuple(contexts.shape)}; give each class's once: torch.eye(K)"
            )
        if counts is not None:
            _check_counts(counts, len(contexts))
        super().__init__()
        shares = torch.ones(len(contexts)) if counts is None else counts.detach().double()
        self.weight = weight
        self.commitment = commitment
        self.register_buffer("contexts", contexts.detach().clone())
        self.register_buffer("ends", (shares.cumsum(0) / shares.sum()).float())

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        advice = "use a Diffusion or FlowMatching given a context"
        site = distribution_of_x(model, guide, batch, HasDenoisedPair, self, advice)
        beside = (batch[0], self._others(*batch[1:]))
        other = distribution_of_x(model, guide, beside, HasDenoisedPair, self, advice)["fn"]
        pair = site["fn"].denoised_pair(site["value"], other)
        lead = pair.loss.ndim
        drawn = _squared(pair.own - pair.other.detach(), lead)
        drawing = _squared(pair.own.detach() - pair.other, lead)
        gap = pair.time * (drawn + self.commitment * drawing)
        gap = torch.where(pair.known, gap, 0.0)
        loss = scale_and_mask(pair.loss, site["scale"], site["mask"]).sum()
        balance = scale_and_mask(gap, site["scale"], site["mask"]).sum()
        note("denoising", loss)
        note("balance", balance, self.weight)
        return loss + self.weight * balance

    def _others(self, *contexts: Any) -> Tensor:
        """Contexts of classes drawn at random, as many as there are."""
        if len(contexts) != 1 or not torch.is_tensor(contexts[0]):
            got = len(contexts) if len(contexts) != 1 else f"a {type(contexts[0]).__name__}"
            raise ValueError(
                f"ClassBalancing: expected a context tensor beside the rows, got {got or 'none'}; "
                "give fit(gen, (x, context), ...), or use Denoising()"
            )
        (context,) = contexts
        if context.shape[1:] != self.contexts.shape[1:]:
            raise ValueError(
                f"ClassBalancing: expected contexts of shape {tuple(self.contexts.shape[1:])}, as "
                f"those of the classes, got {tuple(context.shape[1:])}; give the classes in the "
                "form of the rows' contexts"
            )
        place = torch.rand(len(context), device=self.ends.device)
        classes = torch.searchsorted(self.ends, place, right=True).clamp(max=len(self.ends) - 1)
        return self.contexts[classes].to(context.dtype)

    def extra_repr(self) -> str:
        return f"classes={len(self.contexts)}, weight={self.weight}, commitment={self.commitment}"


def _squared(gap: Tensor, lead: int) -> Tensor:
    return gap.square().flatten(lead).sum(-1) if gap.ndim > lead else gap.square()


def _check_counts(counts: Tensor, classes: int) -> None:
    if counts.shape != (classes,):
        raise ValueError(
            f"expected counts of shape ({classes},), one for each context, got "
            f"{tuple(counts.shape)}; give labels.bincount(minlength={classes})"
        )
    if not bool((counts >= 0).all()) or not 0 < float(counts.sum()) < float("inf"):
        raise ValueError(
            "expected finite counts >= 0 with a positive sum, got "
            f"{counts.tolist()}; leave them out for classes drawn alike"
        )
