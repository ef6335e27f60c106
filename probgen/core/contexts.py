"""One meaning of contexts: declared by a family, received in one place, refused in one sentence."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.arguments import own_number
from probgen.core.keywords import draws_rows
from probgen.core.missing import has_missing, is_known_complete, values_are_known

Kinds = dict[Any, bool]  # of contexts that a family takes: whether their values are looked at
_fixed: ContextVar[Mapping[int, Kinds]] = ContextVar("fixed families", default=MappingProxyType({}))
WITHOUT = "leave it out, or take a family that is built with context={size}"


def declares_contexts(cls: type) -> type:
    """A base of families, as a decorator.

    What they say about contexts, which every call of one checks.

    Attributes
    ----------
    context_ndim : int
        Number of event dims of a context: 1 for vectors, 3 for images.
    context_size : int or None
        Length of the context vectors (channels, for images); 0: there is no context, and one is
        refused; ``None``: not told, and what ``forward`` makes of a context is its own affair.
    unknown_contexts : bool or None
        Whether NaN in a context, and a context of ``None``, mean that it is unknown. If not they
        are refused; ``None``: refused where a size is told.
    ignores_contexts : bool
        Whether the values of contexts have no meaning by intention: the distribution is the same
        for each row, as in a prior.
    context_hint : str
        What to do instead of giving a context to a family without one.
    context_net : str or None
        Name of a network whose first layer tells the size of context vectors, if nothing else does.
    context_declared_by : str or None
        Name of a network, called with contexts beside other inputs, whose own ``context_size`` it
        is, if nothing else tells; its ``context_encoder`` tells that contexts are tokens.
    context_check : method or None
        Called with a context that was given, raises ``ValueError`` for values it refuses.
    context_from : str or None
        Name of the part to whose contexts all of this applies, in a family around another one.

    >>> @declares_contexts
    ... class Sum(nn.Module):
    ...     def forward(self, context=None):
    ...         return context.sum(-1)
    >>> class OfTwo(Sum):
    ...     context_size = 2
    >>> OfTwo()(torch.tensor([[1, 2]]))
    tensor([3.])
    """
    parent: Any = cls

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        if arguments:
            arguments = (received(self, arguments[0]), *arguments[1:])
        elif "context" in options:
            options["context"] = received(self, options["context"])
        else:
            received(self, None)
        return super(parent, self).__call__(*arguments, **options)

    cls.__call__ = called  # type: ignore[method-assign]  # what it replaces, it calls
    defaults = {
        "context_ndim": 1,
        "context_size": None,
        "unknown_contexts": None,
        "ignores_contexts": False,
    }
    parts = {"context_net": None, "context_declared_by": None, "context_from": None}
    parts["context_check"] = None
    for name, value in (defaults | {"context_hint": checks.BUILD} | parts).items():
        setattr(cls, name, value)
    return cls


def size_of(family: Any) -> int | None:
    """The size of contexts that a family, or the part that it is around, declares.

    ``None`` where it does not.

    >>> from probgen.heads import Gaussian
    >>> size_of(Gaussian(nn.Linear(3, 2)))
    3
    """
    family = _source(family)
    size = getattr(family, "context_size", None)
    if size is not None:
        return size
    if net := getattr(family, "context_declared_by", None):
        return getattr(getattr(family, net), "context_size", None)
    net = getattr(family, "context_net", None)
    if net and family.context_ndim == 1:
        return input_size(getattr(family, net)) or None
    return None


def zero_context(family: Any) -> Tensor | None:
    """Zeros as the context of one row, of the type and on the device of a family's parameters.

    For what a family tells whatever it is given. ``None`` where it takes no context, or does not
    declare its size.

    >>> from probgen.heads import Gaussian
    >>> zero_context(Gaussian(nn.Linear(3, 2)).double())
    tensor([[0., 0., 0.]], dtype=torch.float64)
    """
    size = size_of(family)
    if not size:
        return None
    own = own_number(family) if isinstance(family, nn.Module) else None
    shape = (1,) * getattr(family, "context_ndim", 1) + (size,)
    return torch.zeros(shape) if own is None else own.new_zeros(shape)


def ignores(part: Any) -> bool:
    """Whether the values of contexts have no meaning by intention.

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> ignores(Gaussian(Constant(2))), ignores(Gaussian(nn.Linear(3, 2)))
    (True, False)
    """
    part = _source(part)
    net = getattr(part, "context_net", None)
    return getattr(part, "ignores_contexts", False) or (
        net is not None and ignores(getattr(part, net))
    )


def received(family: Any, context: Any, how: str = "give one") -> Any:
    """The context as a family takes it: integers as numbers of its dtype, anything else as it is.

    Tokens of a network with an encoder of texts stay integers too, see :func:`encoder_of`. ``how``
    says what to do where there is none.

    Raises
    ------
    ValueError
        If the context is not what the family declares, see :func:`declares_contexts`.
    TypeError
        If it is no tensor, where the family says of contexts what they are.

    >>> from probgen.models.autoregressive_flow import MAF
    >>> received(MAF(3, context=2), torch.zeros(5, 2, dtype=torch.long)).dtype
    torch.float32
    """
    kinds = _fixed.get().get(id(family))
    if kinds is None or not (
        context is None or (isinstance(context, Tensor) and context.is_floating_point())
    ):
        return _checked(family, context, how)
    kind = None if context is None else (context.shape, context.dtype)
    if kind in kinds and not (kinds[kind] and _has_unknown(context)):
        return context
    taken = _checked(family, context, how)
    source = _source(family)
    by_value = encoder_of(family) is not None or getattr(source, "context_check", None) is not None
    if not by_value:  # tokens, and what a family refuses itself, are looked at each time
        unknown = getattr(source, "unknown_contexts", None)
        kinds[kind] = context is not None and _refuses_unknown(unknown, size_of(family))
    return taken


def _checked(family: Any, context: Any, how: str) -> Any:
    """The context as a family takes it, compared with all that the family declares."""
    source = _source(family)
    size = size_of(family)
    unknown = getattr(source, "unknown_contexts", None)
    ndim = getattr(source, "context_ndim", 1)
    if context is None and size and not unknown:
        check_context(None, size, ndim, how=how)
    context = _number_of(context, size, ndim)
    if not torch.is_tensor(context):
        if context is not None and (size is not None or ignores(source)):
            why = "was built without one" if size == 0 else "gives every row the same distribution"
            without = "" if size else f"{type(source).__name__} {why}"
            raise TypeError(_advice_for_others(context, size, ndim, without))
        return context
    if (encoder := encoder_of(family)) is not None:
        check_tokens(context, encoder, type(source).__name__)
    elif size is not None:
        hint = getattr(source, "context_hint", WITHOUT)
        check_context(context, size, ndim, type(source).__name__, hint)
        context = as_numbers(context, family)
    elif is_labels(context, ndim) and not ignores(source):
        raise ValueError(
            _advice_for_labels(context, None, ndim, type(source).__name__, checks.BUILD)
        )
    if _refuses_unknown(unknown, size):
        check_known(context, ndim)
    _check_by_family(source, context)
    return context


def _number_of(context: Any, size: int | None, ndim: int) -> Any:
    """A tensor of one number as that number, where a vector is expected; all else as it is."""
    lone = torch.is_tensor(context) and context.ndim == 0 and bool(size) and ndim == 1
    return context.item() if lone and values_are_known() else context


def _check_by_family(source: Any, context: Tensor) -> None:
    """What a family itself refuses of contexts."""
    check = getattr(source, "context_check", None)
    if check is not None:
        check(context)


def _refuses_unknown(unknown: bool | None, size: int | None) -> bool:
    return unknown is False or (unknown is None and size is not None)


@contextmanager
def fixed_families(module: nn.Module) -> Iterator[None]:
    """The families in a module stay what they are inside the block.

    What each of them declares is compared once with each kind of context that it gets, of a shape
    and a dtype; values of contexts are looked at each time. A run makes its steps so: nothing but
    its callbacks changes what a family is made of.

    >>> from probgen.heads import Gaussian
    >>> head = Gaussian(nn.Linear(3, 2))
    >>> with fixed_families(head):
    ...     [received(head, torch.zeros(5, 3)).shape for _ in range(2)]
    [torch.Size([5, 3]), torch.Size([5, 3])]
    """
    parts = list(module.modules())  # kept, so that each has an identity of its own
    token = _fixed.set({id(part): {} for part in parts})
    try:
        yield
    finally:
        _fixed.reset(token)


def encoder_of(family: Any) -> Any:
    """The encoder of a family whose contexts are tokens; ``None`` where they are numbers.

    That is what the network of its contexts says: ``context_encoder``, which has ``levels`` (how
    many tokens there are) and ``padding`` (the one that stands for none).

    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn import TextEncoder, TimeMLP
    >>> gen = Diffusion(TimeMLP(2, [8], context=TextEncoder(9, 4, 16, padding=0)), (2,))
    >>> encoder_of(gen).padding
    0
    """
    source = _source(family)
    for attribute in ("context_declared_by", "context_net"):
        if name := getattr(source, attribute, None):
            encoder = _token_encoder(getattr(source, name, None))
            if encoder is not None:
                return encoder
    return None


def _token_encoder(net: Any) -> Any:
    if isinstance(net, nn.Sequential):
        return _token_encoder(next(iter(net), None))
    encoder = getattr(net, "context_encoder", None)
    return None if getattr(encoder, "padding", None) is None else encoder


def check_no_texts(family: Any, context: Any) -> None:
    """Refuses texts where a family takes tokens; ``TypeError``.

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Pooled, TextEncoder
    >>> net = nn.Sequential(Pooled(TextEncoder(9, 4, 16)), nn.Linear(16, 2))
    >>> check_no_texts(Gaussian(net), ["two red sevens"])
    Traceback (most recent call last):
        ...
    TypeError: expected a context of tokens, got the text 'two red sevens'; encode texts: ...
    """
    encoder = encoder_of(family)
    found = context[:1] if isinstance(context, list | tuple) else [context]
    for text in found if encoder is not None else ():
        if isinstance(text, str):
            raise TypeError(
                f"expected a context of tokens, got the text {text!r}; encode texts: "
                f"vocabulary.encode(texts, length={encoder.context_size})"
            )


def check_tokens(context: Tensor, encoder: Any, name: str = "the network") -> None:
    """Raises ``ValueError`` unless a context is tokens that an encoder knows.

    Missing ones are NaN, or its padding.

    >>> from probgen.nn import TextEncoder
    >>> check_tokens(torch.tensor([[3, 12]]), TextEncoder(9, 2, 16))
    Traceback (most recent call last):
        ...
    ValueError: expected tokens 0, 1, ..., 8, got 12; encode texts by the vocabulary that the encoder was built for
    """
    checks.context(context, encoder.context_size, 1, name, "build its network with context={size}")
    if not values_are_known() or encoder.levels is None or not context.numel():
        return
    outside = (context < 0) | (context >= encoder.levels)
    if context.is_floating_point():
        outside |= (context != context.floor()) & ~context.isnan()
    if outside.any():
        raise ValueError(
            f"expected tokens 0, 1, ..., {encoder.levels - 1}, got {context[outside][0]:g}; encode "
            "texts by the vocabulary that the encoder was built for"
        )


def distribution_given(part: Any, context: Tensor | None) -> Any:
    """The distribution of a part of a family, a prior say, for each row of a context.

    A part without one has the same for all.

    >>> from probgen.models.mixture import GaussianMixture
    >>> distribution_given(GaussianMixture(3, 2), torch.zeros(5, 4)).batch_shape
    torch.Size([5])
    """
    if context is None or size_of(part) != 0:
        return part(context)
    return for_each_context(part(), context, part.context_ndim)


def for_each_context(distribution: Any, context: Tensor | None, ndim: int = 1) -> Any:
    """A distribution whatever the context, for each row of one whose event dims are ``ndim``.

    >>> for_each_context(torch.distributions.Normal(0.0, 1.0), torch.zeros(5, 4)).batch_shape
    torch.Size([5])
    """
    if context is None:
        return distribution
    lead = context.shape[: context.ndim - ndim]
    return distribution if distribution.batch_shape == lead else distribution.expand(lead)


def depends_on(net: nn.Module, context: Tensor | None) -> list[Tensor]:
    """What a network's output depends on beside its input: parameters, and a context if there is one.

    >>> len(depends_on(nn.Linear(3, 2), None)), len(depends_on(nn.Linear(3, 2), torch.zeros(1)))
    (2, 3)
    """
    return [*net.parameters(), *([] if context is None else [context])]


def check_context(
    context: Tensor | None,
    size: int | None,
    ndim: int = 1,
    name: str = "the network",
    hint: str = checks.BUILD,
    how: str = "give one",
) -> None:
    """:func:`probgen.core.checks.context`, with advice for labels, which are not numbers.

    >>> check_context(torch.tensor([2, 0, 1]), 3)
    Traceback (most recent call last):
        ...
    ValueError: expected a context of shape (*batch, 3), got integer labels of shape (3,); one-hot them: ...
    """
    if context is not None and size is not None:
        fits = context.ndim >= ndim and context.shape[-3 if ndim >= 3 else -1] == size
        if is_labels(context, ndim, size, fits):
            raise ValueError(_advice_for_labels(context, size, ndim, name, hint))
    checks.context(context, size, ndim, name, hint, how)


def is_labels(context: Tensor, ndim: int = 1, size: int | None = None, fits: bool = False) -> bool:
    """Whether a context is the labels of N rows, where the numbers of a vector are expected.

    Integers ``(N,)``, also where N happens to be the size of contexts, or ``(N, 1)``; whole numbers
    in floating point, where they do not fit.

    >>> is_labels(torch.tensor([2, 0, 1])), is_labels(torch.tensor([[0, 0, 1]]), size=3, fits=True)
    (True, False)
    """
    column = context.ndim == 2 and context.shape[1] == 1 and ndim == 1
    if (
        ndim == 0
        or context.dtype == torch.bool
        or not (context.ndim == 1 or (column and size != 1))
    ):
        return False
    if not context.is_floating_point():
        return not fits or size != 1
    if fits or size is None or column or not values_are_known():
        return False
    return bool(((context >= 0) & (context == context.floor())).all())


def _advice_for_labels(labels: Tensor, size: int | None, ndim: int, name: str, hint: str) -> str:
    """What to do with labels: one sentence with the number of classes."""
    kind = "labels" if labels.is_floating_point() else "integer labels"
    got = f"got {kind} of shape {tuple(labels.shape)}"
    if size == 0:
        wanted = f"expected no context ({name} was built without one)"
    else:
        wanted = f"expected a context of shape {checks.context_words(size, ndim)}"
    if size == 1 and ndim == 1:
        return f"{wanted}, {got}; give them: labels[:, None]"
    known = values_are_known() and labels.numel() > 0
    if known and labels.min() < 0:
        count = len(labels.unique())
        renumber = "labels = torch.unique(torch.as_tensor(labels), return_inverse=True)[1]"
        return (
            f"{wanted}, {got} of which some are negative; number the {count} classes from 0 on: "
            f"{renumber}, or leave out the rows without a class"
        )
    seen = int(labels.max()) + 1 if known else 0
    classes = max(seen, size or 1)
    how = one_hot_call(labels, classes, ndim)
    if size is None:
        embed = f"build {name} with context_ndim=0 around a network that embeds labels"
        return f"{wanted}, {got}; one-hot them: {how}, or {embed}"
    if size == 0:
        return f"{wanted}, {got}; {hint.format(size=classes)}, and give {how}"
    if seen > size:
        build = f"build {name} for contexts of {seen} entries"
        return f"{wanted}, {got} up to {seen - 1}; {build}, and give {how}"
    return f"{wanted}, {got}; one-hot them: {how}"


def _advice_for_others(context: Any, size: int | None, ndim: int, without: str = "") -> str:
    """What to do with a context that is no tensor, or why there is none: one sentence."""
    number = isinstance(context, int | float)
    got = f"got the number {context}" if number else f"got a {type(context).__name__}"
    if without:
        return f"expected no context ({without}), {got}; leave it out"
    wanted = f"expected a context of shape {checks.context_words(size, ndim)}"
    if number and size and ndim == 1:
        return f"{wanted}, {got}; {_advice_for_number(context, size)}"
    return f"{wanted}, {got}; give a tensor of that shape"


def _advice_for_number(number: float, size: int) -> str:
    """What to do with one number for all rows: a label is one of several entries."""
    rows = "1" if draws_rows() else "len(x)"
    if size == 1 or not float(number).is_integer():
        return f"give every row its own: torch.full(({rows}, {size}), {float(number)})"
    if not 0 <= number < size:
        return f"give every row its own, a tensor of shape ({rows}, {size})"
    one_hot = f"torch.nn.functional.one_hot(torch.tensor([{int(number)}]), {size}).float()"
    copies = "" if draws_rows() else ".expand(len(x), -1)"
    return f"give every row its own, of a label one-hot: {one_hot}{copies}"


def one_hot_call(labels: Tensor, classes: int, ndim: int = 1) -> str:
    """The call that makes contexts of labels, as vectors, sequences or images.

    Labels may be an array or a list, too.

    >>> one_hot_call(torch.zeros(5, 1), 3)
    'torch.nn.functional.one_hot(torch.as_tensor(labels)[:, 0].long(), 3).float()'
    """
    given = "torch.as_tensor(labels)" + "[:, 0]" * (labels.ndim > 1)
    given += ".long()" * (labels.dtype != torch.int64)
    room = ("", "", "[:, None].expand(-1, T, -1)", "[:, :, None, None].expand(-1, -1, H, W)")
    return f"torch.nn.functional.one_hot({given}, {classes}).float(){room[min(ndim, 3)]}"


def batch_of(context: Tensor | None, ndim: int = 1) -> torch.Size:
    """The batch shape that a context ``(*batch, *event)`` with that many event dims gives.

    >>> batch_of(torch.zeros(7, 2)), batch_of(None)
    (torch.Size([7]), torch.Size([]))
    """
    if context is None:
        return torch.Size()
    if not torch.is_tensor(context):
        raise TypeError(_advice_for_others(context, None, ndim))
    return context.shape[: context.ndim - ndim]


def check_known(context: Tensor, ndim: int = 1) -> None:
    """Raises ``ValueError`` if a context has NaN.

    One that carries gradients was computed, and is not looked at.

    >>> check_known(torch.tensor([[0.0], [torch.nan]]))
    Traceback (most recent call last):
        ...
    ValueError: expected a context without missing values, got NaN in 1 of 2 rows (first: row 1); fill them in, ...
    """
    if not _has_unknown(context):
        return
    lead = context.shape[: max(context.ndim - ndim, 0)]
    rows = context.isnan().reshape(lead.numel(), -1).any(-1)
    raise ValueError(
        f"expected a context without missing values, got NaN in {int(rows.sum())} of {len(rows)} "
        "rows (first: row "
        f"{int(rows.nonzero()[0])}); fill them in, leave the rows out, or use a family that learns "
        "an unknown context "
        "(context_dropout=...)"
    )


def _has_unknown(context: Tensor | None) -> bool:
    """Whether a context that was given, and not computed, has NaN."""
    if context is None or context.requires_grad or is_known_complete(context):
        return False
    return values_are_known() and has_missing(context)


def check_finite(context: Tensor) -> None:
    """Raises ``ValueError`` if a context has infinities.

    >>> check_finite(torch.tensor([[0.0], [torch.inf]]))
    Traceback (most recent call last):
        ...
    ValueError: expected finite contexts, got inf in row 1; correct it, or leave the row out
    """
    if context.is_floating_point() and context.isinf().any():
        row = int(context.isinf().nonzero()[0, 0])
        raise ValueError(
            f"expected finite contexts, got inf in row {row}; correct it, or leave the row out"
        )


def as_numbers(context: Tensor, module: nn.Module) -> Tensor:
    """Integers as numbers of the dtype of a module's parameters.

    Floating-point contexts as they are.

    >>> as_numbers(torch.tensor([1, 0]), nn.Linear(2, 1))
    tensor([1., 0.])
    """
    if context.is_floating_point() or context.is_complex():
        return context
    dtypes = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return context.to(next(dtypes, torch.get_default_dtype()))


def dropped(context: Tensor, ndim: int, probability: float, module: nn.Module) -> Tensor:
    """A context some of whose rows, at random, are unknown.

    They are NaN, or the padding where they are tokens.

    >>> dropped(torch.ones(2, 3, dtype=torch.long), 1, 0.0, nn.Linear(3, 1))
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    encoder = encoder_of(module)
    context = as_numbers(context, module) if encoder is None else context
    missing = torch.nan if context.is_floating_point() else encoder.padding
    unknown = torch.rand(context.shape[: context.ndim - ndim], device=context.device) < probability
    return context.masked_fill(unknown.reshape(*unknown.shape, *[1] * ndim), missing)


def seen_in_training(family: Any, context: Tensor | None) -> Tensor | None:
    """The context as a family's network sees it.

    In training mode some rows, a share of ``context_dropout``, are unknown.

    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> gen = Diffusion(TimeMLP(2, [8], context=1), (2,), context_dropout=0.5)
    >>> _ = torch.manual_seed(0)
    >>> seen_in_training(gen, torch.ones(4, 1)).isnan().sum()
    tensor(3)
    >>> seen_in_training(gen.eval(), torch.ones(4, 1)).isnan().sum()
    tensor(0)
    """
    if context is None or not family.training or not family.context_dropout:
        return context
    return dropped(context, family.context_ndim, family.context_dropout, family)


def asked_given(family: Any, context: Any, net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The network of a family, called ``net(z, t, context)``, at a context that is given.

    Other contexts, those of a rule of guidance, are received as that of the family is. It warns
    where a rule asks it without one, and the family has never dropped one.

    >>> family = nn.Module().eval()
    >>> family.context_dropout, family.context_size = 0.1, 3
    >>> net = asked_given(family, torch.ones(3), lambda z, t, context: z + t * context)
    >>> net(torch.zeros(3), torch.ones(()), torch.eye(3)[1])
    tensor([0., 1., 0.])
    >>> net(torch.zeros(3), torch.ones(()), torch.full((2,), 0.5))
    Traceback (most recent call last):
        ...
    ValueError: expected a context of shape (*batch, 3), got (2,); give a row of it for each datum
    """
    if family.training:
        return net
    return partial(_asked, family, context, net)


def _asked(family: Any, own: Any, net: Callable[..., Tensor], *given: Any) -> Tensor:
    """What a network says; the context is the last of three."""
    *states, other = given if len(given) > 2 else (*given, None)
    if other is None:
        if own is not None and not family.context_dropout:
            _warn_of_never_dropped()
        return net(*given)
    return net(*states, other if other is own else _received_with(family, other, states[0]))


def _received_with(family: Any, context: Any, state: Tensor) -> Any:
    """A context as a family takes it, in the precision of a state."""
    taken = received(family, context)
    real = isinstance(taken, Tensor) and taken.is_floating_point() and state.is_floating_point()
    return taken.to(state.dtype) if real else taken


def _warn_of_never_dropped() -> None:
    warnings.warn(
        "guidance asks the network without a context, which it has not learned with "
        "context_dropout=0 unless contexts of the data were unknown (NaN): build it with "
        "context_dropout=0.1 and train it again, or take a rule that does not ask so",
        stacklevel=1,  # one place: told once
    )


def known_rows(context: Any, ndim: int = 1) -> Tensor:
    """Which rows of a context are known, that is, have no NaN: ``(*batch, *event) -> (*batch,)``.

    All of them, ``()``, where it is no tensor of real numbers.

    >>> known_rows(torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])), known_rows(None)
    (tensor([ True, False]), tensor(True))
    """
    if not torch.is_tensor(context) or not context.is_floating_point():
        return torch.tensor(True)
    missing = context.isnan()
    return ~(missing.flatten(-ndim).any(-1) if ndim else missing)


def over_draws(context: Tensor | None, lead: Sequence[int], ndim: int = 1) -> Tensor | None:
    """A context repeated over draws to the left of its rows: leading dims become ``lead``.

    Raises ``ValueError`` where they do not broadcast to it.

    >>> over_draws(torch.zeros(5, 2), (7, 5)).shape
    torch.Size([7, 5, 2])
    """
    if context is None:
        return None
    event = context.shape[max(context.ndim - ndim, 0) :]
    try:
        return context.expand(*lead, *event)
    except RuntimeError as error:
        own = tuple(context.shape[: context.ndim - ndim])
        raise ValueError(
            f"expected a context whose leading dims broadcast to those of the states, "
            f"{tuple(lead)}, got {own}; give one context for all, or one for each row"
        ) from error


def input_size(net: Any) -> int | None:
    """How many features or channels a network takes, as its first layer tells.

    ``None`` where that is not known.

    >>> input_size(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))), input_size(nn.Flatten())
    (3, None)
    """
    if isinstance(net, nn.Sequential):
        layers = (layer for layer in net if not isinstance(layer, nn.Identity | nn.Dropout))
        return input_size(next(layers, None))
    if isinstance(net, nn.Linear):
        return net.in_features
    if isinstance(net, nn.Conv1d | nn.Conv2d):
        return net.in_channels
    inputs = getattr(net, "inputs", None)
    return inputs if isinstance(inputs, int) else size_of(net)


def beside(value: Tensor, context: Tensor | None, event_ndim: int) -> Tensor:
    """``(*batch, *event)`` and ``(*batch, K)`` as one tensor.

    Along channels of images, else along the last dim; batch dims broadcast.

    >>> beside(torch.zeros(5, 2), torch.zeros(3, 1, 4), 1).shape
    torch.Size([3, 5, 6])
    >>> beside(torch.zeros(5, 1, 8, 8), torch.zeros(5, 4), 3).shape
    torch.Size([5, 5, 8, 8])
    """
    return all_beside((value, event_ndim), (context, 1))


def all_beside(*parts: tuple[Tensor | None, int]) -> Tensor:
    """Values ``(*batch, *event)``, with their numbers of event dims, as one; ``None`` are left out.

    Along the channels of images, else along the last dim. A vector beside events of more dims is
    repeated over the others of them; batch dims broadcast.

    >>> image, vector = torch.zeros(5, 2, 8, 8), torch.zeros(3, 1, 4)
    >>> all_beside((image, 3), (None, 3), (vector, 1), (image, 3)).shape
    torch.Size([3, 5, 8, 8, 8])
    """
    there = [(value, ndim) for value, ndim in parts if value is not None]
    if len(there) == 1:
        return there[0][0]
    whole, most = max(there, key=lambda part: part[1])
    at = -3 if most >= 3 else -1
    leads = [value.shape[: value.ndim - ndim] for value, ndim in there]
    batch = torch.broadcast_shapes(*leads)
    wide = []
    for (value, ndim), lead in zip(there, leads, strict=True):
        if ndim < most:
            value = value.reshape(*lead, *(1,) * (most + at), -1, *(1,) * (-1 - at))
        event = list(whole.shape[whole.ndim - most :])
        event[at] = value.shape[at]
        wide.append(value.expand(*batch, *event))
    return torch.cat(wide, at)


def beside_size(part: Any, own: int) -> int | None:
    """Length of the contexts that a network takes beside ``own`` numbers.

    ``None`` where that is not known.

    >>> beside_size(nn.Linear(5, 1), 3)
    2
    """
    size = input_size(part)
    return None if size is None or size < own else size - own


def common_size(parts: Iterable[Any]) -> int | None:
    """Length of the contexts of parts that all get the same one.

    0 if none takes any, ``None`` where that is not known.

    >>> from probgen.models.mixture import GaussianMixture
    >>> common_size([GaussianMixture(3, 2), nn.Linear(4, 3)])
    4
    """
    sizes = [input_size(part) for part in parts if not ignores(part)]
    largest = max((size for size in sizes if size), default=0)
    return None if largest == 0 and None in sizes else largest


def size_beside(net: Any, shape: Sequence[int]) -> int | None:
    """Length of the contexts that a network takes as its second argument beside events.

    ``None`` where not known.

    >>> from probgen.nn.side_by_side import SideBySide
    >>> size_beside(SideBySide(nn.Linear(5, 1)), (2,)), size_beside(nn.Linear(2, 1), (2,))
    (3, 0)
    """
    if getattr(net, "side_by_side", False):
        if net.encode is not None:
            return size_of(net.encode)
        return beside_size(net.net, shape[-net.event_ndim])
    arguments = inspect.signature(net.forward).parameters.values()
    return (
        0
        if len(arguments) == 1 and all(a.kind is not a.VAR_POSITIONAL for a in arguments)
        else None
    )


def needs_beside(net: nn.Module) -> bool:
    """Whether a network has to be given a context as its second argument beside events.

    >>> from probgen.nn.side_by_side import SideBySide
    >>> needs_beside(nn.Bilinear(2, 3, 1)), needs_beside(nn.Linear(2, 1))
    (True, False)
    >>> needs_beside(SideBySide(nn.Linear(5, 1)))  # which says so itself
    False
    """
    try:
        signature = inspect.signature(net.forward)
    except ValueError:  # it does not tell
        return False
    try:
        signature.bind(None)
    except TypeError:
        return True
    return False


def check_given(context: Tensor | None, needed: bool, part: str) -> None:
    """Raises ``ValueError`` where a part has to be given a context and there is none.

    >>> check_given(None, True, "net")
    Traceback (most recent call last):
    ValueError: expected a context, which net takes as its second argument, got None; give one
    """
    if needed and context is None:
        raise ValueError(
            f"expected a context, which {part} takes as its second argument, got None; give one"
        )


def _source(family: Any) -> Any:
    """The part of a family to whose contexts its declarations apply."""
    while name := getattr(family, "context_from", None):
        family = getattr(family, name)
    return family
