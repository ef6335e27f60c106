"""One good call of every function that draws, in axes that nobody keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import probgen as pg
from asked.parts import mixture, rows, vae


def axes(*shape: int) -> Axes | np.ndarray:
    """Axes of a figure that Matplotlib does not keep."""
    return Figure(layout="constrained").subplots(*shape)


def history() -> pg.History:
    """The record of twenty steps."""
    return pg.History(
        loss=[20.0 - step for step in range(20)],
        gradient_norm=[1.0 + step for step in range(20)],
        parts={"kl": [1.0] * 20},
        learning_rates=[[0.1] * 20],
        validation=[(9, 12.0), (19, 3.0)],
        stopped="20 steps done",
        stages=[0, 10],
    )


def flow() -> pg.NSF:
    """A flow of four variables, of which 2 x 2 images are made."""
    return pg.NSF(4, layers=1, hidden=(4,))


def matching() -> pg.FlowMatching:
    """Flow matching of two variables in three steps."""
    return pg.FlowMatching(pg.nn.TimeMLP(2, [4]), (2,), solver=pg.flows.Euler(3))


def network() -> pg.BayesianNetwork:
    """A cause with two states and its effect with two."""
    tables = {"a": torch.tensor([0.2, 0.8]), "b": torch.tensor([[0.5, 0.5], [0.1, 0.9]])}
    return pg.BayesianNetwork.from_tables(tables, {"b": ["a"]}, states={"a": ("no", "yes")})


def markov() -> pg.HiddenMarkovModel:
    """Two states behind nine steps of one column."""
    return pg.HiddenMarkovModel(2, 9, pg.sequences.GaussianEmission(2, dims=1))


# by name: a function that makes the arguments
PICTURES: dict[str, Callable[[], dict[str, Any]]] = {
    "loss_curve": lambda: {"history": history(), "ax": axes()},
    "gradient_norms": lambda: {"history": history(), "ax": axes()},
    "learning_rates": lambda: {"history": history(), "ax": axes()},
    "images": lambda: {"x": torch.rand(6, 2, 2), "ax": axes()},
    "embedding": lambda: {"points": rows(3), "ax": axes()},
    "latent_map": lambda: {
        "gen": pg.VAE(pg.standard_normal(2), _head(2, 3), _head(3, 2)),
        "*batch": (rows(3),),
        "ax": axes(),
    },
    "reconstructions": lambda: {
        "gen": flow(),
        "x": torch.rand(3, 4),
        "shape": (2, 2),
        "ax": axes(),
    },
    "interpolation": lambda: {
        "gen": flow(),
        "a": torch.zeros(2, 4),
        "b": torch.ones(2, 4),
        "shape": (2, 2),
        "columns": 3,
        "ax": axes(),
    },
    "traversal": lambda: {"gen": flow(), "shape": (2, 2), "columns": 3, "ax": axes()},
    "components": lambda: {"mixture": mixture(), "x": rows(2), "ax": axes()},
    "memberships": lambda: {"mixture": mixture(), "x": rows(2), "ax": axes()},
    "states": lambda: {"hmm": markov(), "x": rows(1, count=9), "ax": axes()},
    "forecast": lambda: {"draws": rows(12), "observed": torch.zeros(4), "ax": axes()},
    "curves": lambda: {"at": torch.arange(12.0), "draws": rows(12), "ax": axes()},
    "graph": lambda: {"network": network(), "ax": axes()},
    "density": lambda: {"gen": vae(), "x": rows(2), "points": 4, "particles": 2, "ax": axes()},
    "paths": lambda: {"gen": matching(), "n": 3, "x": rows(2), "ax": axes()},
    "columns": lambda: {
        "real": rows(2),
        "synthetic": rows(2, count=5),
        "axes": axes(1, 2),
    },
    "column_pairs": lambda: {"real": rows(2), "synthetic": rows(2, count=5)},
    "samples": lambda: {"real": rows(2), "synthetic": rows(2, count=5), "axes": axes(1, 1)},
    "scores": lambda: {"scores": pg.Score(torch.rand(9), "exact"), "ax": axes()},
    "leaderboard": lambda: {
        "comparison": pg.compare({"a": pg.Score(torch.rand(3), "exact")}),
        "ax": axes(),
    },
    "khats": lambda: {"values": torch.rand(20), "ax": axes()},
    "p_values": lambda: {"values": torch.rand(20), "ax": axes()},
    "reliability": lambda: {
        "probabilities": torch.rand(20),
        "outcomes": torch.arange(20) % 2,
        "ax": axes(),
    },
    "risk_coverage": lambda: {
        "confidence": torch.rand(20),
        "losses": torch.arange(20) % 2,
        "ax": axes(),
    },
}


def _head(inputs: int, dims: int) -> pg.heads.Gaussian:
    return pg.heads.Gaussian(pg.nn.MLP(inputs, [4], 2 * dims))
