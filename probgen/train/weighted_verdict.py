"""Rows with weights, as a verdict looks at them."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgen.core.first_run import MISFIT
from probgen.core.module import GenerativeModel
from probgen.core.program import Program
from probgen.core.reading import read
from probgen.core.runtime import evaluating
from probgen.core.sites import in_plate, latent_sites
from probgen.train.data import Source
from probgen.train.rehearsal import weighted_scale
from probgen.train.rows import Batch


class WeightedRows(Messenger):
    """Scales the sites in a plate by a weight for each of its rows, as a part of their density.

    >>> import pyro
    >>> with WeightedRows("data", torch.tensor([1.0, 3.0])), pyro.poutine.trace() as tracer:
    ...     with pyro.plate("data", 2):
    ...         _ = pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))
    >>> tracer.trace.nodes["x"]["scale"]
    tensor([1., 3.])
    """

    def __init__(self, plate: str, weights: Tensor):
        super().__init__()
        self.plate = plate
        self.weights = weights

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                msg["scale"] = weighted_scale(msg["scale"], self.weights, frame)


def judged_rows(
    gen: GenerativeModel, source: Source, batch: Batch
) -> tuple[GenerativeModel, Batch, int | None]:
    """The model, rows and number of rows that a verdict is told, for all rows of the data.

    Where all rows share all latent variables, weights are a part of their posterior, and one more
    argument. The posteriors of latent variables of rows know nothing of weights. Rows of a family
    are repeated as they weigh, for its score against a baseline of the same rows.
    """
    weights = source.weights
    if weights is None:
        return gen, batch, source.rows
    if _shared(gen, batch):
        return _weighted(gen), (weights.given.to(weights.values.device), *batch), source.rows
    if isinstance(gen, Program):
        return gen, batch, source.rows
    rows = weights.repeated(len(weights.used), torch.Generator().manual_seed(0))
    return gen, source.layout.take(batch, rows), source.rows


def _shared(gen: GenerativeModel, batch: Batch) -> bool:
    """Whether there are latent variables, all of them shared by all rows.

    A fit must not be lost to a pair that does not run on all rows at once.
    """
    try:
        with torch.no_grad(), evaluating():
            pair = read(gen.model, gen.guide, batch, None, gen.max_plate_nesting)
    except MISFIT:
        return False
    latent = latent_sites(pair.model).values()
    return bool(latent) and not any(in_plate(site, gen.plate) for site in latent)


def _weighted(gen: GenerativeModel) -> Program:
    """The same pair, with the weights of its rows before its other arguments."""

    def model(weights: Tensor, *batch: Any) -> Any:
        with WeightedRows(gen.plate, weights):
            return gen.model(*batch)

    def guide(weights: Tensor, *batch: Any) -> Any:
        return gen.guide(*batch)

    program = Program(
        model,
        guide,
        plate=gen.plate,
        max_plate_nesting=gen.max_plate_nesting,
        vectorized=gen.vectorized,
    )
    return program.train(gen.training)
