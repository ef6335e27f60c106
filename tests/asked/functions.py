"""One good call of every public function that takes more than tensors."""

from __future__ import annotations

import pandas
import pyro.distributions as dist
import torch

import probgen as pg
from asked.families import table
from asked.parts import (
    bayesian,
    energy,
    gaussian,
    mean_of,
    mixture,
    normal,
    program,
    rows,
    vae,
)
from asked.pictures import PICTURES

BIF = """network n { } variable a { type discrete [ 2 ] { x, y }; }
probability ( a ) { table 0.5, 0.5; }"""
Y = torch.tensor([0.5, 1.0, -0.5, 0.2])


def _pair(**options: object) -> dict:
    return {"samples": rows(2, count=50), "real": rows(2, count=60) + 0.1, **options}


def _frame(count: int) -> object:
    """A number and a label in each row."""
    return pandas.DataFrame({"a": range(count), "b": ["u", "v", "w"] * (count // 3)})


def _candidates() -> dict:
    def build(table: pg.Table, x: torch.Tensor) -> pg.heads.Mixed:
        heads = table.heads()
        return pg.heads.Mixed(pg.nn.Constant(pg.heads.Mixed(None, heads).width), heads)

    return {"alone": pg.Candidate(build)}


def _tables() -> object:
    return pg.graphical.parse_bif(BIF)


def _fitted(x: torch.Tensor) -> object:
    return gaussian()


# "FOLDER" becomes a temporary folder
GOOD = {
    "fit": lambda: {
        "gen": gaussian(),
        "data": rows(2),
        "steps": 1,
        "progress": False,
        "verdict": False,
        "compile": False,
    },
    "adam": lambda: {"lr": 0.1},
    "muon": lambda: {"hidden": torch.nn.Linear(2, 2), "lr": 0.1},
    "fully_sharded": dict,
    "Every": lambda: {"steps": 5, "function": print},
    "snapshots": lambda: {"draw": print, "to": "FOLDER/pictures", "every": 5},
    "report": lambda: {
        "gen": gaussian(),
        "data": rows(2, count=50),
        "path": "FOLDER/report.html",
        "particles": 2,
        "names": ("a", "b"),
    },
    "Stage": lambda: {"data": rows(2), "steps": 1},
    "Unpaired": lambda: {"*sets": (rows(2), rows(2, count=9))},
    "Labeled": lambda: {"x": rows(2, count=4), "y": Y, "unknown": 0.5, "labeled_share": 0.5},
    "Parquet": lambda: {"paths": "FOLDER/rows.parquet", "columns": ["a"], "weights": "b"},
    "Arrays": lambda: {"x": rows(2).numpy(), "run": 2},
    "Indexed": lambda: {"dataset": rows(2), "run": 2},
    "Iterated": lambda: {"dataset": rows(2), "rows": 8},
    "Pairs": lambda: {"make": torch.zeros, "rows": 4, "pool": 2},
    "NormalInverseWishart": lambda: {
        "mean": torch.zeros(2),
        "strength": 0.1,
        "df": 4.0,
        "scatter": torch.eye(2),
    },
    "dirichlet_process_mixture": lambda: {
        "x": rows(2, count=9),
        "draws": 2,
        "tune": 0,
        "chains": 1,
        "seed": 0,
    },
    "em": lambda: {"gen": mixture(), "x": rows(2, count=30), "max_iter": 200, "seed": 0},
    "mcmc": lambda: {
        "gen": bayesian,
        "*batch": (Y,),
        "draws": 2,
        "tune": 2,
        "chains": 1,
        "sampler": pg.PyroNUTS(),
        "progress": False,
        "seed": 0,
    },
    "simulation_based_calibration": lambda: {
        "gen": bayesian,
        "*batch": (Y,),
        "sims": 2,
        "draws": 3,
        "thin": 1,
        "tune": 4,
        "sampler": pg.PyroNUTS(),
        "progress": False,
    },
    "bootstrap": lambda: {
        "statistic": torch.mean,
        "*batch": (Y,),
        "resamples": 2,
        "progress": False,
    },
    "kfold": lambda: {
        "refit": _fitted,
        "*batch": (rows(2),),
        "folds": 2,
        "particles": 1,
        "progress": False,
    },
    "reloo": lambda: {
        "result": pg.diagnostics.LooResult(torch.zeros(8), torch.ones(8), 0.0),
        "refit": _fitted,
        "*batch": (rows(2, count=8),),
        "particles": 1,
        "progress": False,
    },
    "sample": lambda: {"gen": gaussian(), "n": 2},
    "compare": lambda: {"models": {"vae": vae()}, "*batch": (rows(2),), "particles": 2},
    "log_likelihood": lambda: {"gen": vae(), "*batch": (rows(2),), "particles": 2},
    "by_blocks": lambda: {
        "function": pg.log_likelihood,
        "gen": mixture(),
        "data": rows(2),
        "max_rows": 4,
        "seed": 0,
    },
    "log_weights": lambda: {"gen": vae(), "*batch": (rows(2),)},
    "posterior": lambda: {"gen": vae(), "*batch": (rows(2),), "draws": 2},
    "predictive": lambda: {"gen": program(), "*batch": (Y,), "draws": 2},
    "prior_predictive": lambda: {"gen": program(), "*batch": (Y,), "draws": 2},
    "predictive_check": lambda: {
        "gen": program(),
        "*batch": (Y,),
        "statistic": mean_of,
        "draws": 2,
    },
    "to_arviz": lambda: {"gen": program(), "*batch": (Y,), "draws": 4},
    "loo": lambda: {"data": pg.to_arviz(vae(), rows(2), draws=30), "var_name": None},
    "forecast_series": lambda: {
        "gen": pg.LinearGaussianStateSpace(1, 1, 12),
        "x": rows(1),
        "steps": 2,
        "draws": 3,
    },
    "maximum_likelihood": lambda: {"gen": gaussian(), "x": rows(2)},
    "impute": lambda: {"gen": mixture(), "x": rows(2), "draws": 2, "num_steps": 3},
    "active_units": lambda: {"gen": vae(), "*batch": (rows(2),), "particles": 4},
    "ess": lambda: {"gen": vae(), "*batch": (rows(2),), "particles": 60},
    "total_correlation": lambda: {"gen": vae(), "*batch": (rows(2),), "draws": 2},
    "compress": lambda: {"gen": pg.MarkovChain(3), "x": torch.zeros(2, 3)},
    "decompress": lambda: {
        "gen": pg.MarkovChain(3),
        "data": pg.compress(pg.MarkovChain(3), torch.zeros(2, 3)),
    },
    "divergence": lambda: {"p": normal(), "q": gaussian(), "draws": 100},
    "cluster": lambda: {"gen": mixture(), "x": rows(2), "draws": 2},
    "encode": lambda: {"gen": vae(), "x": rows(2), "draws": 2},
    "reconstruct": lambda: {"gen": vae(), "x": rows(2), "draws": 2},
    "interpolate": lambda: {"gen": vae(), "a": rows(2), "b": -rows(2), "n": 3},
    "conformal_p_values": lambda: {"scores": Y, "usual": torch.rand(9)},
    "false_discovery_threshold": lambda: {"p_values": torch.rand(9), "rate": 0.2},
    "calibration_error": lambda: {
        "probability": torch.full((4, 2), 0.5),
        "truth": torch.tensor([0, 1, 1, 0]),
        "bins": 5,
    },
    "khat": lambda: {"gen": vae(), "*batch": (rows(2),), "particles": 60},
    "verdict": lambda: {"gen": vae(), "*batch": (rows(2),), "particles": 60, "seconds": 0.1},
    "annealed_importance": lambda: {
        "gen": energy(),
        "temperatures": 3,
        "chains": 2,
        "settle": 1,
    },
    "reverse_annealing": lambda: {
        "gen": energy(),
        "x": torch.ones(2, 3),
        "temperatures": 3,
        "chains": 2,
    },
    "relabel": lambda: {
        "draws": {"weights": torch.rand(2, 5, 3), "means": torch.rand(2, 5, 3, 2)},
        "leading": 2,
    },
    "check_generative": lambda: {"gen": gaussian(), "x": rows(2)},
    "save": lambda: {"model": gaussian(), "path": "FOLDER/model"},
    "training_records": lambda: {"model": gaussian()},
    "export_density": lambda: {"gen": gaussian(), "x": rows(2)},
    "export_sampler": lambda: {"gen": gaussian()},
    "load_exported": lambda: {"path": "FOLDER/exported.pt2"},
    "model_card": lambda: {"gen": gaussian(), "name": "a", "license": "mit", "tags": ("b",)},
    "save_to_folder": lambda: {"gen": gaussian(), "folder": "FOLDER/shared"},
    "from_hub": lambda: {"source": "FOLDER/hub", "into": gaussian()},
    "load": lambda: {"path": "FOLDER/saved", "into": gaussian()},
    "parse_bif": lambda: {"text": BIF},
    "read_bif": lambda: {"path": "FOLDER/network.bif"},
    "write_bif": lambda: {"network": _tables(), "path": "FOLDER/written.bif"},
    "format_bif": lambda: {"network": _tables()},
    "load_digits": lambda: {"labels": True},
    "load_mnist": lambda: {"path": "FOLDER/mnist.npz"},
    "grid_edges": lambda: {"*shape": (2, 2)},
    "random_orders": lambda: {"count": 2, "dims": 3},
    "conditional": lambda: {
        "distribution": dist.Normal(torch.zeros(2), 1.0).to_event(1),
        "x": torch.zeros(2),
        "mask": torch.tensor([True, False]),
    },
    "gibbs": lambda: {
        "distribution": pg.MarkovChain(3)(),
        "x": torch.zeros(1, 3),
        "mask": torch.tensor([[True, True, False]]),
        "num_steps": 1,
    },
    "truncated": lambda: {
        "distribution": dist.Categorical(torch.ones(3)),
        "rule": pg.Truncation(0.5),
    },
    "from_betas": lambda: {"betas": (0.1, 0.2)},
    "uniform_steps": lambda: {
        "num_steps": 4,
        "schedule": pg.diffusion.CosineSchedule(),
        "like": torch.zeros(1),
    },
    "quadratic_steps": lambda: {
        "num_steps": 4,
        "schedule": pg.diffusion.CosineSchedule(),
        "like": torch.zeros(1),
    },
    "log_snr_steps": lambda: {
        "num_steps": 4,
        "schedule": pg.diffusion.CosineSchedule(),
        "like": torch.zeros(1),
    },
    "gaussian_frechet": lambda: {
        "mean": torch.zeros(2),
        "covariance": torch.eye(2),
        "other_mean": torch.ones(2),
        "other_covariance": torch.eye(2),
    },
    "classifier_features": lambda: {
        "x": rows(3, count=20),
        "labels": torch.arange(20) % 2,
        "width": 4,
        "steps": 2,
        "batch_size": 4,
        "held_out": 0.2,
        "cache": "FOLDER",
    },
    "classifier_two_sample_test": lambda: _pair(permutations=3, folds=2),
    "copying_test": lambda: {
        "samples": rows(2, count=24),
        "train": rows(2, count=20) + 0.1,
        "held_out": rows(2, count=16) - 0.1,
    },
    "density_coverage": _pair,
    "precision_recall": _pair,
    "energy_test": lambda: _pair(permutations=3),
    "mmd_test": lambda: _pair(permutations=3),
    "kernel_distance": _pair,
    "frechet_distance": _pair,
    "wasserstein_distance": _pair,
    "sliced_wasserstein_distance": lambda: _pair(projections=4),
    "sample_report": lambda: _pair(permutations=3),
    "search": lambda: {"frame": _frame(24), "budget": 0.2, "candidates": _candidates()},
    "portfolio": lambda: {"table": table()},
    "table_quality": lambda: {"samples": _frame(9), "real": _frame(12), "splits": 2},
    "table_privacy": lambda: {
        "samples": _frame(9),
        "train": _frame(12),
        "held_out": _frame(6),
        "judged_rows": 8,
    },
    **PICTURES,
}
