"""Programs that do not say whether they take several draws at once: tried, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from probgen.core.program import Program
from probgen.core.reading import Reading, read
from probgen.core.runtime import as_guide, evaluating, isolated
from probgen.core.sites import (
    Sites,
    density_sites,
    is_deterministic,
    is_enumerated,
    latent_sites,
    sample_sites,
    shape_of,
    unwrapped,
)

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

Model = Callable[..., Any]
Numbers = dict[str, Tensor]
Draws = dict[str, Tensor]
TRIED = (3, 5, 7, 11, 13)  # draws of a trial: so many as no tensor of the program has entries
RELATIVE = 1e-4  # by which densities may differ, beside what rounding explains


@contextmanager
def drawn_together(gen: GenerativeModel, batch: tuple, *forward: Model) -> Iterator[None]:
    """Inside the block a program that takes several draws in one run counts as vectorized.

    A pair may be written for one draw at a time. Whether it takes several in a plate to the left
    of its own plates is seen by a few draws made so: each of them, put through the pair by itself,
    has to have the same densities, of the model, of the guide and of each row. Otherwise, and where
    the pair fails, nothing changes. Torch's random state is left as it was.

    ``forward``: programs that are run without a guide inside the block, and are tried as well. Then
    what follows from draws (deterministic sites) has to be the same, too.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> gen = Program(model)
    >>> with drawn_together(gen, gen.settle((torch.zeros(4),))):
    ...     gen.vectorized
    True
    >>> gen.vectorized
    False
    """
    if gen.vectorized or not isinstance(gen, Program) or not _takes_several(gen, batch, forward):
        yield
        return
    gen.vectorized = True
    try:
        yield
    finally:
        gen.vectorized = False


@torch.no_grad()
def _takes_several(gen: Program, batch: tuple, forward: tuple[Model, ...]) -> bool:
    try:
        with isolated(), evaluating(), torch.random.fork_rng(_devices(batch)):
            pairs = [(gen.model, _guide_of(gen, batch))]
            pairs += [(each, _drawing(each, batch)) for each in forward]
            return all(_agrees(gen, *pair, batch, bool(forward)) for pair in pairs)
    except Exception:  # whatever a program does with dims that it does not know
        return False


def _agrees(gen: Program, of: Model, guide: Model, batch: tuple, determined: bool) -> bool:
    """Whether draws made in one run have the densities that they have one by one.

    And, if asked, whether the same follows from them.
    """
    once = poutine.trace(guide).get_trace(*batch)
    shapes = {name: shape_of(site) for name, site in _drawn(once).items()}
    if not shapes:
        return False
    model = poutine.trace(poutine.replay(of, trace=once)).get_trace(*batch)
    following = _following(model) if determined else {}
    used = {size for trace in (once, model) for value in _tensors(trace) for size in value.shape}
    count = next((count for count in TRIED if count not in used), None)
    if count is None:
        return False
    many = read(of, guide, batch, count, gen.max_plate_nesting)
    drawn = _drawn(many.guide)
    values = {name: drawn[name]["value"].reshape(count, *shape) for name, shape in shapes.items()}
    together = _numbers(many, gen.plate, count) | _told(many, following, count)
    together |= {f"value of {name}": value for name, value in values.items()}
    for draw in range(count):
        alone = read(
            of,
            _replayed(guide, once, {name: value[draw] for name, value in values.items()}),
            batch,
            None,
            gen.max_plate_nesting,
        )
        one = _numbers(alone, gen.plate, 1) | _told(alone, following, 1)
        one |= {
            f"value of {name}": _value(alone.guide.nodes[name]).reshape(1, *shape)
            for name, shape in shapes.items()
        }
        if not _same({name: value[draw] for name, value in together.items()}, one):
            return False
    return True


def _replayed(guide: Callable[..., Any], once: poutine.Trace, values: Draws) -> Callable[..., Any]:
    """The guide with given draws.

    What follows from them (a point, the image of another draw) is computed again, as it has a
    density nowhere else.
    """
    given = once.copy()
    for name, value in values.items():
        site = given.nodes[name]
        if isinstance(unwrapped(site["fn"]), Delta):
            given.remove_node(name)
        else:
            site["value"] = value.reshape(_value(site).shape)
    replayed: Callable[..., Any] = poutine.replay(guide, trace=given)
    return replayed


def _following(model: poutine.Trace) -> dict[str, torch.Size]:
    """Shapes of what follows from draws."""
    sites = sample_sites(model).items()
    return {name: shape_of(site) for name, site in sites if is_deterministic(site)}


def _told(reading: Reading, following: Mapping[str, torch.Size], count: int) -> Numbers:
    """What followed, ``(count, *shape)`` each; what no draw changes is repeated."""
    values = {name: _value(reading.model.nodes[name]) for name in following}
    return {
        f"value of {name}": value.expand(count, *shape)
        if value.shape == (shape := following[name])
        else value.reshape(count, *shape)
        for name, value in values.items()
    }


def _drawing(model: Model, batch: tuple) -> Model:
    """A model as the guide of itself: it draws all that the model draws."""
    drawn = _drawn(poutine.trace(model).get_trace(*batch))
    own: Model = poutine.block(model, expose=list(drawn))
    return own


def _drawn(trace: poutine.Trace) -> Sites:
    """All that a guide draws: also what latents are only images of."""
    return {name: site for name, site in density_sites(trace).items() if not site["is_observed"]}


def _guide_of(gen: Program, batch: tuple) -> Callable[..., Any]:
    """What draws the latents: the guide; the model itself where there is none."""
    guide = as_guide(gen.guide)
    if latent_sites(poutine.trace(guide).get_trace(*batch)):
        return guide
    sites = latent_sites(poutine.trace(gen.model).get_trace(*batch))
    drawn = [name for name, site in sites.items() if not is_enumerated(site)]
    return poutine.block(gen.model, expose=drawn)


def _value(site: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(site["value"])


def _tensors(trace: poutine.Trace) -> list[Tensor]:
    return [value for site in trace.nodes.values() if torch.is_tensor(value := site.get("value"))]


def _numbers(reading: Reading, plate: str, count: int) -> Numbers:
    """The densities of draws, ``(count, ...)`` each, with what rounding may put them off."""
    found = {
        "model": reading.log_joint().expand(count),
        "guide": reading.log_guide().expand(count),
        "rounding": reading.rounding().expand(count),
    }
    try:
        found["rows"] = reading.by_row(plate).double().expand(count, -1)
    except ValueError:  # rows without numbers of their own have none either way
        return found
    return found


def _same(one: Numbers, other: Numbers) -> bool:
    if one.keys() != other.keys():
        return False
    slack = 4 * (one["rounding"] + other["rounding"][0]).item()
    return all(
        one[name].shape == other[name][0].shape
        and torch.allclose(one[name], other[name][0], RELATIVE, RELATIVE + slack, equal_nan=True)
        for name in one
        if name != "rounding"
    )


def _devices(batch: tuple) -> list[torch.device]:
    return list({each.device for each in batch if torch.is_tensor(each) and each.is_cuda})
