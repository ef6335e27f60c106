"""The base of distributions of complete events given some of their entries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probgen.core.batched import BatchedDistribution, NoClosedForm
from probgen.core.kinds import density_kind
from probgen.core.missing import check_event, values_are_known


class Conditioned(BatchedDistribution):
    r"""The distribution of complete events some of whose entries are given.

    .. math:: p(x \mid x_o = \text{given}) = \delta(x_o - \text{given})\; p(x_m \mid x_o = \text{given})

    A subclass says how missing entries are drawn, scored, and, where that has a closed form,
    averaged. Samples hold the observed entries as they were given; ``log_prob`` is the density of
    the missing ones, and minus infinity where the observed entries of a value are others.

    Parameters
    ----------
    joint : TorchDistribution
        The distribution of complete events.
    x : Tensor
        ``(*batch, *event)``; entries that are not observed are not read.
    mask : Tensor of bool
        True = observed, broadcastable to ``x``.

    Raises
    ------
    NotImplementedError
        From ``mean`` and ``variance``, where they have no closed form.
    ValueError
        If an observed entry of ``x`` is NaN.
    """

    batched = {"joint": 0, "x": None, "seen": None}

    def __init__(self, joint: Any, x: Tensor, mask: Tensor):
        x, mask = given_entries(x, mask)
        event = joint.event_shape
        batch = torch.broadcast_shapes(x.shape[: x.ndim - len(event)], joint.batch_shape)
        self.joint = joint.expand(batch)
        self.x = x.expand(batch + event)
        self.seen = mask.expand(batch + event)
        self.density_kind = density_kind(joint)
        super().__init__(batch, event, validate_args=False)

    @abstractmethod
    def _draw(self, sample_shape: torch.Size) -> Tensor:
        """Draws of all entries, of which those that are missing are kept."""

    @abstractmethod
    def _log_prob_missing(self, value: Tensor) -> Tensor:
        """Log-density of the missing entries; rows whose observed entries differ are not read."""

    @abstractmethod
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of all entries, of which those of missing ones are kept."""

    @property
    def support(self) -> Any:
        return self.joint.support

    @property
    def observed(self) -> Tensor:
        """The observed entries, with NaN in place of the others: ``(*batch, *event)``."""
        return torch.where(self.seen, self.x, torch.nan)

    @property
    def mean(self) -> Tensor:
        return torch.where(self.seen, self.x, self._closed_form()[0])

    @property
    def variance(self) -> Tensor:
        return torch.where(self.seen, 0.0, self._closed_form()[1])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return torch.where(self.seen, self.x, self._draw(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        check_event(value, self.event_shape)
        differs = (value != self.x) & self.seen
        if self.event_shape:
            differs = differs.flatten(-len(self.event_shape)).any(-1)
        return torch.where(differs, -torch.inf, self._log_prob_missing(value))

    def completed(self, value: Tensor) -> Tensor:
        """Events whose observed entries are those that are given."""
        return torch.where(self.seen, self.x, value)

    def _closed_form(self) -> tuple[Tensor, Tensor]:
        try:
            return self._moments()
        except NotImplementedError as error:
            own = str(error) and not isinstance(error, NoClosedForm)
            raise (error if own else no_closed_form(self.joint)) from error


def given_entries(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Values and mask of one shape; ``ValueError`` where an entry is missing that is said to be observed."""
    x, mask = torch.broadcast_tensors(x, mask)
    if values_are_known() and (x.isnan() & mask).any():
        raise ValueError(
            "expected observed entries of x to be numbers, got NaN where mask is True; use "
            "~x.isnan()"
        )
    return x, mask


def no_closed_form(joint: Distribution) -> NotImplementedError:
    """The error of distributions whose moments given observed entries are not known."""
    return NotImplementedError(
        f"the mean and variance of {type(joint).__name__} given observed entries have no closed "
        "form; use draws: conditional(distribution, x, mask).sample((1000,)).mean(0)"
    )
