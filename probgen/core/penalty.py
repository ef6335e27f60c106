"""Terms that a guide adds to the loss, and that are no part of its density."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.distributions import Unit
from torch import Tensor

# under this key of ``site["infer"]`` a site says that it is such a term
PENALTY = "_penalty"


def penalty(name: str, value: Tensor) -> None:
    """A term of the loss, stated by a guide: what objectives minimize grows by it.

    In the plates around it, so that mini-batches and weights of rows count. Scores leave it out:
    log-likelihoods and log weights are those of the guide without it. Losses note it as a part of
    this name.

    Parameters
    ----------
    name : str
        What textbooks call it: ``"commitment"``.
    value : Tensor
        Nats, one number for each entry of the plates.

    >>> import torch
    >>> with pyro.poutine.trace() as traced:
    ...     penalty("commitment", torch.ones(3))
    >>> traced.trace.log_prob_sum()
    tensor(3.)
    """
    unit = Unit(value, has_rsample=True)
    infer: Any = {"is_auxiliary": True, PENALTY: True}
    pyro.sample(name, unit, obs=unit.sample(), infer=infer)


def is_penalty(site: Any) -> bool:
    """Whether a site is a term of the loss alone."""
    return bool(site["infer"].get(PENALTY))
