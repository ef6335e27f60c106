"""Public functions that take rows, each called so that it ends in a moment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probgen as pg
from probgen.diagnostics import ess

QUIET = {"progress": False, "compile": False, "verdict": False, "seed": 0}


@dataclass(frozen=True)
class Door:
    """A public function: ``call(gen, objective, x, context, clean)`` gives its numbers.

    ``clean`` are good rows and contexts, for what is passed beside the input.

    Attributes
    ----------
    takes : frozenset of str
        Cases that are bad elsewhere and good here.
    tensors : bool
        Whether it is a distribution of torch, which takes nothing but tensors and says in torch's
        words what it refuses.
    """

    name: str
    call: Callable[..., Any]
    takes: frozenset[str] = frozenset()
    tensors: bool = False


LOADERS = frozenset({"loader", "dataset"})
NO_ROWS = frozenset({"None"})
STREAMS = frozenset({"loader"})
TAKES = {
    "fit": LOADERS,
    "fit, validation": LOADERS | NO_ROWS | {"generator"},
    "em": STREAMS,
    "log_likelihood": STREAMS,
    "impute": STREAMS,
    "posterior": STREAMS | NO_ROWS,
    "predictive": STREAMS | NO_ROWS,
    "prior_predictive": NO_ROWS,
    "verdict": NO_ROWS,
    "annealed_importance": NO_ROWS,
    "mcmc": frozenset({"tensor float64"}),  # a program is drawn in the precision of its data
}


def arguments(x: Any, context: Any) -> tuple:
    return (x,) if context is None else (x, context)


def fit(gen, objective, x, context, clean):
    data = x if context is None else (x, context)
    made = objective() if objective else None
    return torch.as_tensor(pg.fit(gen, data, made, steps=2, batch_size=None, **QUIET).loss)


def fit_by_name(gen, objective, x, context, clean):
    made = objective() if objective else None
    data = {"x": x} if context is None else {"x": x, "context": context}
    return torch.as_tensor(pg.fit(gen, data, made, steps=2, **QUIET).loss)


def validation(gen, objective, x, context, clean):
    made = objective() if objective else None
    data = clean[0] if clean[1] is None else clean
    held_out = x if context is None else (x, context)
    found = pg.fit(gen, data, made, steps=1, validation=held_out, validate_every=1, **QUIET)
    return numbers(found.validation)


def em(gen, objective, x, context, clean):
    no_context(clean, context)
    return pg.em(gen, x, max_iter=2, tol=0.0, seed=0).log_likelihood


def no_context(clean: tuple, context: Any) -> None:
    if clean[1] is not None or context is not None:
        raise NotApplicable


class NotApplicable(Exception):
    """A door that this family, or this input, has not."""


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ``(gen, *batch)`` as a door."""
    return lambda gen, objective, x, context, clean: function(gen, *arguments(x, context))


def score(gen, *batch):
    found = pg.log_likelihood(gen, *batch, particles=2, compile=False)
    return torch.tensor(found.mean) if isinstance(found, pg.MeanScore) else found.value


def blocks(found: Any) -> Any:
    """What is found for each block of a stream, read now."""
    return [block.result for block in found] if isinstance(found, Iterator) else found


def posterior(gen, *batch):
    return blocks(pg.posterior(gen, *batch, draws=2, compile=False))


def predictive(gen, *batch):
    return blocks(pg.predictive(gen, *batch, draws=2, compile=False))


def prior_predictive(gen, *batch):
    return pg.prior_predictive(gen, *batch, draws=2, compile=False)


def impute(gen, *batch):
    found = blocks(pg.impute(gen, *batch, draws=2, num_steps=3, compile=False))
    return [each.draws for each in (found if isinstance(found, list) else [found])]


def verdict(gen, *batch):
    found = pg.verdict(gen, *batch, particles=20)
    return [torch.as_tensor(value) for value in (found.khat, found.ess) if value is not None]


def to_arviz(gen, *batch):
    return numbers(pg.to_arviz(gen, *batch, draws=3, particles=2))


def check(gen, *batch):
    found = pg.predictive_check(gen, *batch, statistic=lambda x: x.double().mean(), draws=3)
    return found.observed, found.replicated


def mcmc(gen, *batch):
    sampler = pg.PyroNUTS()
    how = {"draws": 2, "tune": 2, "chains": 1, "seed": 0, "max_tree_depth": 2}
    return pg.mcmc(gen, *batch, sampler=sampler, progress=False, **how).draws


def log_prob(gen, x, context=None):
    return gen.eval()(context).log_prob(x)


def log_weights(gen, *batch):
    return pg.core.log_weights(gen.eval(), *batch, particles=2)[0]


def conditional(gen, x, context=None):
    mask = torch.zeros(gen(context).event_shape, dtype=torch.bool)
    mask.view(-1)[:1] = True
    return pg.conditional(gen.eval()(context), x, mask).sample()


def khat(gen, *batch):
    return pg.khat(gen, *batch, particles=20)


def sizes(gen, *batch):
    return ess(gen, *batch, particles=20)


def active(gen, *batch):
    return pg.diagnostics.active_units(gen, *batch, particles=20)


def annealed(gen, x, context=None):
    of_rows_alone(arguments(x, context))
    return pg.energy.annealed_importance(gen, x, temperatures=3, chains=4, settle=2).forwards


def reverse(gen, x, context=None):
    of_rows_alone(arguments(x, context))
    return pg.energy.reverse_annealing(gen, x, temperatures=3, chains=2).value


def method(name: str) -> Callable[..., Any]:
    """A method that takes rows, of the families that have it."""

    def call(gen, *batch):
        of_rows_alone(batch)
        found = getattr(gen.eval(), name, None)
        if found is None or (name == "initialize" and getattr(gen, "expect", None)):  # em's own
            raise NotApplicable
        return numbers(found(*batch))

    return call


def of_rows_alone(batch: tuple) -> None:
    if len(batch) > 1:
        raise NotApplicable


def standardized(gen, *batch):
    of_rows_alone(batch)
    made = pg.Standardized.fitted(copy.deepcopy(gen), batch[0])
    return [value for name, value in made.state_dict().items() if "gen" not in name]


def numbers(found: Any) -> list[Tensor]:
    """Numbers in whatever a function gives."""
    if torch.is_tensor(found):
        return [found]
    if isinstance(found, np.ndarray | float | int):
        return [torch.as_tensor(found)]
    if isinstance(found, dict):
        return [each for value in found.values() for each in numbers(value)]
    if isinstance(found, list | tuple):
        return [each for value in found for each in numbers(value)]
    groups = getattr(found, "groups", None)
    if callable(groups):
        datasets = [found[name] for name in groups() if "data" not in name]  # these have the NaN
        arrays = [each[name].values for each in datasets for name in each.data_vars]
        return [torch.as_tensor(array) for array in arrays if array.dtype.kind in "fiub"]
    for name in ("probs", "loc", "mean"):
        value = getattr(found, name, None)
        if torch.is_tensor(value):
            return [value]
    return []


METHODS = ("responsibilities", "predict", "aic", "bic", "initialize")
OF_TORCH = ("log_prob", "conditional")
DOORS = {
    door.name: door
    for door in (
        Door("fit", fit, TAKES["fit"]),
        Door("fit, by name", fit_by_name),
        Door("fit, validation", validation, TAKES["fit, validation"]),
        Door("em", em, TAKES["em"]),
        *(
            Door(name, batched(function), TAKES.get(name, frozenset()), name in OF_TORCH)
            for name, function in {
                "log_likelihood": score,
                "log_weights": log_weights,
                "log_prob": log_prob,
                "posterior": posterior,
                "predictive": predictive,
                "prior_predictive": prior_predictive,
                "impute": impute,
                "conditional": conditional,
                "khat": khat,
                "ess": sizes,
                "active_units": active,
                "verdict": verdict,
                "to_arviz": to_arviz,
                "predictive_check": check,
                "mcmc": mcmc,
                "annealed_importance": annealed,
                "reverse_annealing": reverse,
                "Standardized.fitted": standardized,
            }.items()
        ),
        *(Door(f".{name}", batched(method(name))) for name in METHODS),
    )
}


def against(test: Callable[..., Any], **options: Any) -> Callable[[Any, Tensor], Any]:
    """A test of samples, which stand in both places."""

    def call(x: Any, clean: Tensor) -> list[Tensor]:
        return values(test(x, clean, **options)) + values(test(clean, x, **options))

    return call


def values(found: Any) -> list[Tensor]:
    """Numbers of a result, of one or more statistics."""
    single = getattr(found, "value", None)
    if single is not None:
        return [torch.as_tensor(single)]
    parts = found if isinstance(found, tuple) else vars(found).values()
    return [
        torch.as_tensor(part.value) for part in parts if isinstance(part, pg.evaluate.TwoSample)
    ]


def copying(x: Any, clean: Tensor) -> list[Tensor]:
    other = clean.flip(0) + 0.125
    found = [pg.evaluate.copying_test(*rows) for rows in ((x, clean, other), (clean, x, other))]
    return [each for one in found for each in values(one)]


def report(x: Any, clean: Tensor) -> list[Tensor]:
    return values(pg.sample_report(x, clean, permutations=10))


def empirical(x: Any, clean: Tensor) -> Tensor:
    return pg.Empirical(x)().sample((4,))


def trained(x: Any, clean: Tensor) -> list[Tensor]:
    labels = torch.arange(len(clean)) % 2
    found = pg.evaluate.classifier_features(x, labels, width=4, steps=2, batch_size=8)
    return numbers(found(clean))


def random_features(x: Any, clean: Tensor) -> Tensor:
    return pg.evaluate.RandomFeatures.fitted(x)(clean)


FEW = {"permutations": 10, "splits": 1}
SAMPLE_DOORS = {
    "mmd_test": against(pg.evaluate.mmd_test, **FEW),
    "energy_test": against(pg.evaluate.energy_test, **FEW),
    "frechet_distance": against(pg.evaluate.frechet_distance, splits=1),
    "kernel_distance": against(pg.evaluate.kernel_distance, block=10),
    "precision_recall": against(pg.evaluate.precision_recall),
    "density_coverage": against(pg.evaluate.density_coverage),
    "sliced_wasserstein_distance": against(
        pg.evaluate.sliced_wasserstein_distance, projections=8, splits=1
    ),
    "wasserstein_distance": against(pg.evaluate.wasserstein_distance),
    "classifier_two_sample_test": against(pg.evaluate.classifier_two_sample_test, permutations=10),
    "copying_test": copying,
    "sample_report": report,
    "Empirical": empirical,
    "classifier_features": trained,
    "RandomFeatures.fitted": random_features,
}
