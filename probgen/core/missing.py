"""Missing values: NaN in x, integrated out exactly where the variables are independent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from probgen.core.inside import point_inside
from probgen.core.precision import of_own_precision
from probgen.core.private_torch import get_proxy_mode
from probgen.core.support_words import in_words

_assumed: ContextVar[bool | None] = ContextVar("assumed_missing", default=None)
_complete: ContextVar[Mapping[int, int]] = ContextVar("complete", default=MappingProxyType({}))


def has_missing(x: Tensor) -> bool:
    """Whether a floating tensor has any NaN; other tensors have none.

    The one place in the library that branches on the values of data: it decides for the slower path
    that handles missing values. Where values cannot be read (a graph that is being compiled) the
    answer is yes, since that path is right for complete data too; :func:`assume_missing` gives
    another answer.

    >>> has_missing(torch.tensor([0.0, torch.nan])), has_missing(torch.ones(3)), has_missing(torch.tensor([1, 2]))
    (True, False, False)
    """
    if not x.is_floating_point() or is_known_complete(x):
        return False
    if (assumed := _assumed.get()) is not None:
        return assumed
    if torch.compiler.is_compiling():
        return True
    # a sum is several times faster than isnan().any(); it is NaN too where +inf meets -inf, hence
    # the second look
    return bool(x.detach().sum().isnan()) and bool(x.isnan().any())


def assumed_missing() -> bool | None:
    """What :func:`assume_missing` has said, if anything."""
    return _assumed.get()


def values_are_known() -> bool:
    """Whether tensors have values to look at: not in a graph that is being recorded.

    >>> values_are_known()
    True
    """
    return _assumed.get() is None and not torch.compiler.is_compiling() and get_proxy_mode() is None


class Complete:
    """Tensors that are known to have no NaN, and are not looked at inside the block.

    A step of training knows it of its batch, from one look at all data. What is written to one of
    them in place makes it unknown again.

    >>> x = torch.ones(3)
    >>> with Complete([x]):
    ...     print(has_missing(x), has_missing(x.mul_(torch.nan)))
    False True
    """

    def __init__(self, tensors: Iterable[Tensor]):
        # those of inference mode do not count what is written to them
        self._known = {id(x): x._version for x in tensors if not x.is_inference()}

    def __enter__(self) -> None:
        self._token = _complete.set(self._known)

    def __exit__(self, *_: object) -> None:
        _complete.reset(self._token)


def is_known_complete(x: Tensor) -> bool:
    """Whether :class:`Complete` has said so of this very tensor."""
    known = _complete.get().get(id(x))
    return known is not None and known == x._version


class MissingSearch:
    """Whether some tensors have missing values: looked for once, and again after a write in place.

    >>> x, search = torch.ones(3), MissingSearch()
    >>> search([x]), search([x.mul_(torch.nan)]), search([x.fill_(1.0)])
    (False, True, False)
    """

    def __init__(self) -> None:
        self._known: list[int] | None = None
        self._found = False

    def __call__(self, tensors: Iterable[Tensor]) -> bool:
        given = list(tensors)
        versions = [0 if x.is_inference() else x._version for x in given]
        if versions != self._known:
            self._found = any(map(has_missing, given))
            self._known = versions
        return self._found


@contextmanager
def assume_missing(answer: bool) -> Iterator[None]:
    """What :func:`has_missing` answers inside the block.

    For graphs traced once and run on data known beforehand.

    ``True`` is always right, ``False`` only for data without NaN.

    >>> with assume_missing(True):
    ...     has_missing(torch.ones(3))
    True
    """
    token = _assumed.set(answer)
    try:
        yield
    finally:
        _assumed.reset(token)


def fill_missing(x: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """``x`` with ``value`` in place of NaN; the very tensor when nothing is missing.

    >>> fill_missing(torch.tensor([1.0, torch.nan]))
    tensor([1., 0.])
    """
    return torch.where(x.isnan(), value, x) if has_missing(x) else x


class MissingAware(dist.Independent):
    r"""Independent variables, any of which may be missing.

    Those entries are integrated out exactly.

    .. math:: \log p(x) = \sum_{d: x_d \text{ observed}} \log p_d(x_d)

    An :class:`~torch.distributions.Independent` in all other respects (``base_dist``,
    Kullback-Leibler divergences, moments, ``density``). Missing entries meet the base distribution
    as a constant inside its support, so that gradients are finite; complete data take the path of
    ``Independent``.

    Parameters
    ----------
    base : TorchDistribution
        A distribution of single variables: its own ``event_shape`` is empty.
    event_ndim : int
        How many of the rightmost batch dims of ``base`` are event dims.

    Raises
    ------
    ValueError
        From ``log_prob``: if the rightmost dims of ``x`` are not ``event_shape``, or, under
        validation, if ``x`` has entries that are neither in the support nor NaN.

    >>> distribution = MissingAware(dist.Normal(torch.zeros(3), 1.0), 1)
    >>> distribution.log_prob(torch.tensor([[0.0, 0.0, 0.0], [0.0, torch.nan, torch.nan]]))
    tensor([-2.7568, -0.9189])
    """

    def __init__(self, base: dist.TorchDistribution, event_ndim: int = 0):
        if base.event_shape:
            raise ValueError(
                "expected a distribution of single variables, got events of shape "
                f"{tuple(base.event_shape)}; only independent "
                "variables can be left out one by one: pass the distribution before .to_event()"
            )
        super().__init__(base, event_ndim)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> MissingAware:
        """The distribution with more event dims, still aware of missing values.

        ``None``: all batch dims.
        """
        more = (
            len(self.batch_shape)
            if reinterpreted_batch_ndims is None
            else reinterpreted_batch_ndims
        )
        return MissingAware(self.base_dist, self.reinterpreted_batch_ndims + more)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MissingAware:
        event = self.event_shape[: self.reinterpreted_batch_ndims]
        return MissingAware(
            self.base_dist.expand(torch.Size(batch_shape) + event), self.reinterpreted_batch_ndims
        )

    @of_own_precision
    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if self._validate_args:
            _check_support(x, self.base_dist.support)
        if not has_missing(x):
            return super().log_prob(x)
        missing = x.isnan()
        entries = self.base_dist.log_prob(
            torch.where(missing, point_inside(self.base_dist.support, torch.Size(), x), x)
        )
        return _sum_events(torch.where(missing, 0.0, entries), self.reinterpreted_batch_ndims)


def check_event(x: Tensor, event_shape: torch.Size) -> None:
    """Raises ``ValueError`` unless the rightmost dims of ``x`` are ``event_shape``."""
    if x.shape[x.ndim - len(event_shape) :] != event_shape or x.ndim < len(event_shape):
        expected = "(*batch" + "".join(f", {size}" for size in event_shape) + ")"
        raise ValueError(
            f"expected x of shape {expected}, got {tuple(x.shape)}; reshape x to events of shape "
            f"{tuple(event_shape)}, "
            "or give the distribution parameters for the events that x has"
        )


def _check_support(x: Tensor, support: Constraint) -> None:
    """A clear refusal of values outside the support; NaN passes."""
    inside = support.check(x) | x.isnan()
    if not inside.all():
        wrong = x.expand(inside.shape)[~inside][0].item()
        raise ValueError(
            f"expected values that are {in_words(support)}, or NaN (missing), got {wrong:g}; recode x "
            "or choose another head"
        )


def _sum_events(entries: Tensor, ndim: int) -> Tensor:
    return entries.flatten(-ndim).sum(-1) if ndim else entries
