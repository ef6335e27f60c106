"""The peers of compiled_svi.py.

Every one trains one model and goes on where it stopped at the turn before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from svi_models import Pair, Problem
from torch import Tensor

import probgen as pg


class Turn(NamedTuple):
    """Seconds for some steps, the losses per row.

    And the part of the seconds that went into compilation if known.
    """

    seconds: float
    losses: np.ndarray
    compilation: float = 0.0


Peer = Callable[[int], Turn]
FAST = ("probgen compiled", "NumPyro")  # where steps may take microseconds: more of them in a turn


def minibatches(problem: Problem, steps: int) -> Iterator[Tensor]:
    """Row indices of shuffled whole batches."""
    whole = problem.rows // problem.batch
    while True:
        for chosen in torch.randperm(problem.rows)[: whole * problem.batch].split(problem.batch):
            if steps == 0:
                return
            steps -= 1
            yield chosen


def batches(problem: Problem, steps: int) -> Iterator[tuple[Tensor, ...]]:
    if problem.batch is None:
        yield from (problem.data for _ in range(steps))
    else:
        yield from (
            tuple(part[chosen] for part in problem.data) for chosen in minibatches(problem, steps)
        )


def timed(step: Callable[..., Any], problem: Problem, steps: int, rows: int) -> Turn:
    began = time.perf_counter()
    losses = [step(*batch) for batch in batches(problem, steps)]
    return Turn(time.perf_counter() - began, np.array(losses) / rows)


# -- probgen
# -------------------------------------------------------------------------------------------------------


def probgen(problem: Problem, make: Callable[[], Any], **options: Any) -> Peer:
    """fit() of the same object again and again; the optimizer starts anew."""
    gen = make()

    def turn(steps: int) -> Turn:
        size = problem.batch or problem.rows
        adam = pg.train.adam(problem.lr)
        shared = {
            "steps": steps,
            "batch_size": size,
            "optimizer": adam,
            "drop_last": problem.batch is not None,  # whole batches, as the others have
            "verdict": False,
            "progress": False,
        }
        history = pg.fit(gen, problem.data, **shared, **options)
        return Turn(history.seconds, np.array(history.loss), history.compile_seconds)

    return turn


# -- Pyro
# ----------------------------------------------------------------------------------------------------------


@contextmanager
def pyro_defaults(store: dict[str, Any]) -> Iterator[None]:
    """Pyro as it comes, with a parameter store of the peer's own.

    And without its checks of values.
    """
    with (
        pyro.settings.context(module_local_params=False),
        pyro.get_param_store().scope(store),
        pyro.validation_enabled(False),
    ):
        yield


def pyro_svi(problem: Problem, pair: Callable[[], Pair]) -> Peer:
    """SVI.step with Pyro's Adam."""
    store: dict[str, Any] = {"params": {}, "constraints": {}}
    svi = SVI(*pair(), pyro.optim.Adam({"lr": problem.lr}), problem.elbo())
    total = {} if problem.batch is None else {"total": problem.rows}

    def turn(steps: int) -> Turn:
        with pyro_defaults(store):
            return timed(lambda *batch: svi.step(*batch, **total), problem, steps, problem.rows)

    return turn


def pyro_fused(problem: Problem, pair: Callable[[], Pair]) -> Peer:
    """Pyro's differentiable loss with all parameters in one fused torch Adam, written as a loop."""
    store: dict[str, Any] = {"params": {}, "constraints": {}}
    (model, guide), elbo = pair(), problem.elbo()
    total = {} if problem.batch is None else {"total": problem.rows}

    def loss(*batch: Tensor) -> Tensor:
        return elbo.differentiable_loss(model, guide, *batch, **total)

    with pyro_defaults(store), pyro.poutine.trace(param_only=True) as found:
        loss(*next(batches(problem, 1)))
        parameters = [site["value"].unconstrained() for site in found.trace.nodes.values()]
    loop = torch_loop(problem, loss, dict.fromkeys(parameters), problem.rows)

    def turn(steps: int) -> Turn:
        with pyro_defaults(store):
            return loop(steps)

    return turn


def torch_loop(problem: Problem, loss: Callable, parameters: Iterable[Tensor], rows: int) -> Peer:
    optimizer = torch.optim.Adam(parameters, lr=problem.lr, fused=True)

    def step(*batch: Tensor) -> float:
        optimizer.zero_grad()
        value = loss(*batch)
        value.backward()
        optimizer.step()
        return value.item()

    def turn(steps: int) -> Turn:
        return timed(step, problem, steps, rows)

    return turn


# -- NumPyro
# -------------------------------------------------------------------------------------------------------


def numpyro_peers(problem: Problem, name: str) -> dict[str, Peer]:
    if not all(map(find_spec, ("jax", "numpyro"))):
        return {}
    from svi_numpyro import FORMS

    forms = FORMS[name]() if name in FORMS else {}
    if not find_spec("funsor"):  # NumPyro's own enumeration needs it
        forms = {
            label: form
            for label, form in forms.items()
            if type(form.elbo).__name__ != "TraceEnum_ELBO"
        }
    return {
        f"NumPyro {label} {how}".replace("  ", " "): numpyro_svi(problem, form, how == "scan")
        for label, form in forms.items()
        for how in ("SVI.update", "scan")
    }


def numpyro_svi(problem: Problem, form: Any, scanned: bool) -> Peer:
    """SVI.update jitted and called step by step, or all steps of a turn in one jitted lax.scan.

    As SVI.run does.
    """
    import jax
    from numpyro.infer import SVI
    from numpyro.optim import Adam

    data = tuple(jax.numpy.asarray(part.numpy()) for part in problem.data)
    svi = SVI(form.model, form.guide, Adam(problem.lr), form.elbo)
    size = problem.batch or problem.rows
    state = svi.init(jax.random.key(0), *(part[:size] for part in data), total=problem.rows)

    def step(state: Any, chosen: Any, data: tuple) -> tuple[Any, Any]:
        batch = data if chosen is None else tuple(part[chosen] for part in data)
        return svi.update(state, *batch, total=problem.rows)

    one = jax.jit(step)
    many = jax.jit(
        lambda state, chosen, data, steps: jax.lax.scan(
            lambda s, c: step(s, c, data), state, chosen, length=steps
        ),
        static_argnums=3,
    )

    def turn(steps: int) -> Turn:
        nonlocal state
        began = time.perf_counter()
        chosen = (
            None
            if problem.batch is None
            else torch.stack(list(minibatches(problem, steps))).int().numpy()
        )
        if scanned:
            state, losses = many(state, chosen, data, steps)
        else:
            losses = []
            for at in range(steps):
                state, loss = one(state, None if chosen is None else chosen[at], data)
                losses.append(loss)
        losses = np.array(jax.device_get(losses))
        return Turn(time.perf_counter() - began, losses / problem.rows)

    return turn


# -- all
# -----------------------------------------------------------------------------------------------------------


def peers(problem: Problem, name: str, all_forms: bool) -> dict[str, Peer]:
    """Every peer of one model; names start with the library."""
    found: dict[str, Peer] = {}
    for form, pair in problem.pairs(all_forms).items():
        make = problem.gen or (lambda pair=pair: pg.Program(*pair()))
        at = f", {form}" if form else ""
        found[f"probgen compiled{at}"] = probgen(problem, make, compile=True)
        found[f"probgen eager{at}"] = probgen(problem, make, compile=False)
        found[f"Pyro SVI.step{at}"] = pyro_svi(problem, pair)
        found[f"Pyro loss, fused Adam{at}"] = pyro_fused(problem, pair)
    if problem.module is not None:
        for label, wrap in {
            "torch loop": lambda loss: loss,
            "torch loop, torch.compile": torch.compile,
        }.items():
            loss = problem.module()
            found[label] = torch_loop(problem, wrap(loss), loss.parameters(), 1)
    return found | numpyro_peers(problem, name)
