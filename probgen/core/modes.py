"""Training and eval mode, and torch's modes of gradients.

Inference runs a model in eval mode, whatever mode it is in, and leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from probgen.core.private_torch import BatchNorm, Dropout
from probgen.core.turns import turn


@contextmanager
def inference_mode_of(gen: Any) -> Iterator[None]:
    """Eval mode inside the block, in a turn of this thread.

    Random layers and running averages stay out; each part's mode is put back after it. Another
    thread that trains the model, or infers with it, waits meanwhile.

    What is no module has no mode.

    >>> net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3).eval())
    >>> with inference_mode_of(net):
    ...     print([part.training for part in net])
    [False, False]
    >>> [part.training for part in net]
    [True, False]
    """
    with turn():
        if not isinstance(gen, nn.Module):
            yield
            return
        modes = [(part, part.training) for part in gen.modules()]
        gen.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def infers(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a model, its first argument, that is inference: it runs in eval mode.

    A decorator.

    >>> infers(lambda net: net.training)(nn.Dropout())
    False
    """

    @wraps(function)
    def inferring(gen: Any, *arguments: Any, **options: Any) -> Any:
        with inference_mode_of(gen):
            return function(gen, *arguments, **options)

    return inferring


def depends_on_mode(gen: Any) -> bool:
    """Whether numbers differ from call to call, or with the other rows.

    Because a layer is in training mode.

    Dropout of values and of contexts, and normalization by the batch.

    >>> net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))
    >>> depends_on_mode(net), depends_on_mode(net.eval())
    (True, False)
    """
    return isinstance(gen, nn.Module) and any(
        part.training and _is_random(part) for part in gen.modules()
    )


def check_gradients(function: str, gen: Any = None) -> None:
    """Refuses inference mode, and parameters made in it, which can have no gradients.

    ``torch.no_grad()`` is another matter: what needs gradients asks for them inside of it.

    >>> with torch.inference_mode():
    ...     check_gradients("fit")
    Traceback (most recent call last):
        ...
    ValueError: expected gradients, which fit needs, got torch.inference_mode(); call fit outside of it
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"expected gradients, which {function} needs, got torch.inference_mode(); call "
            f"{function} outside of it"
        )
    parameters = gen.named_parameters() if isinstance(gen, nn.Module) else ()
    made = next((name for name, value in parameters if value.is_inference()), None)
    if made is not None:
        raise ValueError(
            f"expected parameters that can have gradients, got {made}, which was made in "
            "torch.inference_mode(); build the model outside of it"
        )


def _is_random(part: nn.Module) -> bool:
    if isinstance(part, Dropout):
        return part.p > 0
    rates = (
        getattr(part, name, 0.0) for name in ("dropout", "context_dropout")
    )  # of attention, recurrence, families
    return isinstance(part, BatchNorm | nn.RReLU) or any(
        isinstance(rate, float) and rate > 0 for rate in rates
    )
