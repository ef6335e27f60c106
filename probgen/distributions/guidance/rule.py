"""What a rule of guidance is, and what it may ask of the network that it guides."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, Protocol

import torch
import torch.distributions as td
from torch import Tensor

from probgen.core import checks
from probgen.core.signatures import signature_of, takes

Weight = float | Callable[[Tensor], Tensor | float]
A_RULE = "pass a number, ClassifierFree(3.0), or another rule(net, z, t, context)"


class Predictor(Protocol):
    r"""The network of a diffusion or of flow matching, as a rule is shown it.

    Its prediction is what the family's network is trained to say (noise, velocity, data, logits of
    labels). States z are ``(*batch, *event)``, times t, 0 at the data and 1 at the noise, 0-dim or
    ``(*batch,)``.

    Attributes
    ----------
    event_ndim, context_ndim : int
        Number of event dims of a state, and of a context.
    terms : object
        What the network predicts. Predictions in equal terms may be added.
    """

    @property
    def event_ndim(self) -> int: ...

    @property
    def context_ndim(self) -> int: ...

    @property
    def terms(self) -> Any: ...

    def __call__(self, z: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """The prediction given a context; ``None``: as for rows whose context was dropped."""

    def original(self, z: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The expected data that a prediction tells, of the shape of z."""

    def retold(self, z: Tensor, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """A prediction with other expected data, and the same variance where it tells one."""

    def shifted(self, z: Tensor, prediction: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        r"""The prediction whose score :math:`\nabla_z \log p(z_t)` is larger by a slope."""

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """The ratio of the standard deviation of the noise to the signal."""


class Rule(Protocol):
    r"""What a sampler is told in place of the network's prediction.

    A function of that form, or an object with settings. A rule with a field ``base`` is applied to
    what another rule says. One whose draws depend on each other says so by ``joint = True``, one
    that is random by ``random = True``.

    >>> def halved(net, z, t, context):
    ...     return net(z, t, context) / 2
    """

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        """The prediction, of the shape of ``net(z, t, context)``."""


def plain(net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
    """No guidance: the network's prediction given the context."""
    return net(z, t, context)


def extrapolated(far: Tensor, near: Tensor, weight: Weight, t: Tensor) -> Tensor:
    r"""The prediction :math:`f + w (n - f)` with a weight that may depend on the time.

    >>> extrapolated(torch.zeros(2), torch.ones(2), lambda t: 4 * t, torch.tensor(0.5))
    tensor([2., 2.])
    """
    return far + weight_at(weight, t, far) * (near - far)


def weight_at(weight: Weight, t: Tensor, prediction: Tensor) -> Tensor | float:
    """A weight at some times, with as many dims as a prediction."""
    if not callable(weight):
        return weight
    value = torch.as_tensor(weight(t)).to(prediction)
    rows = value.reshape(value.shape + (1,) * (prediction.ndim - value.ndim))
    pairs = zip(rows.shape, prediction.shape, strict=False)
    if rows.ndim != prediction.ndim or not all(size in (1, wanted) for size, wanted in pairs):
        raise ValueError(
            f"expected a weight for each time, of shape {tuple(t.shape)}, got "
            f"{tuple(value.shape)}; let its function give one number for each entry of t"
        )
    return rows


def prediction_of(rule: Rule, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
    """What a rule says, if it is a prediction of the states.

    Raises ``TypeError`` for what is no tensor, ``ValueError`` for one of other states, which would
    broadcast with them unseen.

    >>> net = lambda z, t, context: z
    >>> net.event_ndim = 1
    >>> first = lambda net, z, t, context: net(z, t, context)[..., :1]
    >>> prediction_of(first, net, torch.zeros(5, 2), torch.ones(()), None)
    Traceback (most recent call last):
        ...
    ValueError: expected a rule that gives predictions of states (5, 2), got (5, 1); let it ...
    """
    prediction = rule(net, z, t, context)
    if rule is plain:  # what the network itself says
        return prediction
    if not torch.is_tensor(prediction):
        raise TypeError(
            "expected a rule that gives a prediction, got "
            f"{type(prediction).__name__}; let it return one, such as net(z, t, context)"
        )
    lead = leading(net, z)
    event, told = z.shape[len(lead) :], prediction.shape[len(lead) :]
    # a network may tell several numbers of an entry: its mean and variance, the logits of its values
    fewer = any(count < size for count, size in zip(told, event, strict=False))
    if prediction.shape[: len(lead)] != lead or len(told) < len(event) or fewer:
        raise ValueError(
            f"expected a rule that gives predictions of states {tuple(z.shape)}, got "
            f"{tuple(prediction.shape)}; let it return what is of the shape of net(z, t, context)"
        )
    return prediction


def leading(net: Predictor, z: Tensor) -> torch.Size:
    """The leading dims of states."""
    return z.shape[: z.ndim - net.event_ndim]


def draws_noise(rule: Any) -> bool:
    """Whether a rule is random, or one that it is applied to."""
    if rule is None:
        return False
    return getattr(rule, "random", False) or draws_noise(getattr(rule, "base", None))


@singledispatch
def guided(distribution: td.Distribution, rule: Rule) -> Any:
    """A distribution drawn under guidance, its density as before.

    A function by type of distribution (``functools.singledispatch``).

    Raises
    ------
    TypeError
        For a distribution that is not made of a network that could be guided.
    """
    raise TypeError(
        "expected a distribution that can be guided (a diffusion, flow matching), got "
        f"{type(distribution).__name__}; drop guidance"
    )


def check_weight(**weights: Any) -> None:
    """Refuses what is neither a finite number nor a function of the time.

    >>> check_weight(weight="strong")
    Traceback (most recent call last):
    TypeError: expected a finite number weight, got 'strong' (str); pass a number such as 0
    """
    for name, weight in weights.items():
        if callable(weight):
            checks.function("give a function of the time, or a number", **{name: weight})
        else:
            checks.finite(**{name: weight})


def check_rule(**rules: Any) -> None:
    """Refuses what is neither a rule nor the weight of classifier-free guidance."""
    for name, rule in rules.items():
        if checks.is_number(rule):
            checks.finite(**{name: rule})
            continue
        checks.function(A_RULE, **{name: rule})
        _check_takes(rule)


def _check_takes(rule: Any) -> None:
    """Refuses a function of other arguments than those of a rule; ``TypeError``."""
    if not takes(rule, 4):
        raise TypeError(
            f"expected a rule(net, z, t, context), got one that takes {signature_of(rule)}; let it "
            "take these four"
        )


def check_conditional(context: Any, rule: Any) -> None:
    """Refuses guidance by a context where there is none."""
    if context is None:
        raise ValueError(
            f"expected a context for {rule}, got None; give a context, and train with "
            "context_dropout=0.1"
        )
