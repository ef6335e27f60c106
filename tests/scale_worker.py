"""Trains by one strategy or another and prints what the first of two processes found as JSON.

Run by tests/test_scale_processes.py with all that is to be done: each by processes of its own.
"""

import json
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from ddp_worker import Taught
from forked import together
from lightning_fabric import Fabric
from pyro.distributions import Normal
from torch import nn

import probgen as pg
from probgen.heads import Gaussian
from probgen.nn import MLP, Constant
from probgen.train import fully_sharded

ROWS = torch.randn(101, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
HELD_OUT = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 2
STRATEGIES = {"ddp": lambda: "ddp", "sharded": fully_sharded}


class Batched(pg.core.DistributionModule):
    """A Gaussian whose mean goes through a network with a batch norm, a vector and a scalar."""

    context_size = 0

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.linspace(-1.0, 1.0, 5))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, context=None):
        loc = self.net(self.start) + self.shift
        return Normal(loc, 1.0 + self.scale**2).to_event(1)


class Sizes:
    """A callback that notes how much of the state this process holds."""

    def __init__(self):
        self.bytes = {}
        self.whole = None

    def __call__(self, run):
        if run.sharding is None or run.step != 3:
            return
        from probgen.train.sharding import own_part

        state = run.optimizer.optimizer.state
        kept = [v for each in state.values() for v in each.values() if torch.is_tensor(v)]
        for name, values in (
            ("parameters", run.parameters),
            ("optimizer", [v for v in kept if v.ndim]),
            ("average", run.average),
        ):
            self.bytes[name] = [
                sum(own_part(v).nbytes for v in values),
                sum(v.numel() * v.element_size() for v in values),
            ]
        with run.whole():
            self.whole = [tuple(run.gen.net[0].weight.shape), len(pg.sample(run.gen, 4))]


def fabric_of(strategy, processes, **options):
    if processes == 1:
        return Fabric(accelerator="cpu", devices=1, **options)
    fabric = Fabric(
        accelerator="cpu", devices=processes, strategy=STRATEGIES[strategy](), **options
    )
    fabric.launch()
    return fabric


def trained(fabric, seed=0, gen=None, **options):
    torch.manual_seed(seed)
    gen = gen or Batched()
    options = {
        "steps": 12,
        "optimizer": pg.train.adam(0.05),
        "ema": 0.9,
        "clip": 0.8,
        "validation": HELD_OUT,
        "validate_every": 6,
        "patience": 50,
        "compile": False,
        "progress": False,
    } | options
    history = pg.fit(gen, ROWS, fabric=fabric, seed=7, **options)
    values = torch.cat([p.detach().flatten() for p in gen.parameters()]).tolist()
    kinds = sorted({type(p).__name__ for p in gen.parameters()})
    return (
        gen,
        history,
        {
            "loss": history.loss,
            "norm": history.gradient_norm,
            "validation": [value for _, value in history.validation],
            "values": values,
            "kinds": kinds,
            "faults": [] if history.verdict is None else history.verdict.faults,
        },
    )


def curves(strategy, processes, folder):
    """Losses, norms, validation and weights, with and without accumulation."""
    fabric = fabric_of(strategy, processes)
    sizes = Sizes()
    _, _, one = trained(fabric, batch_size=32 // processes, callbacks=[sizes])
    _, _, several = trained(fabric, batch_size=8 // processes, accumulate=4)
    everywhere = [one["values"]]
    if processes > 1:
        everywhere = fabric.all_gather(torch.tensor(one["values"])).tolist()
    return {
        "one": one,
        "several": several,
        "bytes": sizes.bytes,
        "whole": sizes.whole,
        "everywhere": everywhere,
    }


def noisy(fabric, steps, path):
    """Losses of a model whose steps draw noise."""
    torch.manual_seed(0)
    encoder = Gaussian(nn.Linear(3, 4))
    decoder = Gaussian(nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 6)))
    gen = pg.VAE(pg.standard_normal(2), decoder, encoder)
    options = {"seed": 7, "verdict": False, "compile": False, "progress": False, "ema": 0.8}
    options |= {"batch_size": 8, "accumulate": 2, "checkpoint": path, "resume": True}
    return pg.fit(gen, ROWS, steps=steps, fabric=fabric, **options).loss


def resumed(strategy, processes, folder):
    """Runs that are made in pieces, by as many processes or another number of them."""
    fabric = fabric_of(strategy, processes)
    whole = noisy(fabric, 8, folder / "whole")
    noisy(fabric, 3, folder / "pieces")
    exact = [whole, noisy(fabric, 8, folder / "pieces")]
    options = {"batch_size": 32 // processes, "verdict": False}
    trained(fabric, steps=7, checkpoint=folder / f"{strategy}.checkpoint", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, _, longer = trained(
            fabric, seed=1, checkpoint=folder / f"one-{strategy}.checkpoint", resume=True, **options
        )
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        trained(
            fabric,
            steps=8,
            checkpoint=folder / f"odd-{strategy}.checkpoint",
            resume=True,
            **options | {"batch_size": 32},
        )
    told = [
        [str(each.message) for each in some if "goes on by" in str(each.message)]
        for some in (caught, others)
    ]
    return {"exact": exact, "longer": longer, "told": told}


def taught(fabric, processes):
    """Losses where the objective holds an average of the model and a teacher."""
    torch.manual_seed(0)
    gen, teacher = Gaussian(Constant(6)), Gaussian(Constant(6))
    objective = Taught(gen, teacher)
    options = {"seed": 7, "verdict": False, "compile": False, "progress": False}
    options |= {
        "steps": 8,
        "batch_size": 32 // processes,
        "optimizer": {"model": pg.train.adam(0.05)},
    }
    loss = pg.fit(gen, ROWS, objective, fabric=fabric, **options).loss
    return loss + torch.cat([p.flatten() for p in objective.mean.parameters()]).tolist()


def players(fabric):
    """Whether both players of a game have moved, and are whole."""
    torch.manual_seed(0)
    gan = pg.GAN(MLP(2, [8], 3), pg.standard_normal(2), (3,))
    critic = MLP(3, [8], 1)
    every = [*gan.parameters(), *critic.parameters()]
    before = [p.detach().clone() for p in every]
    optimizer = {"model": pg.train.adam(1e-3), "critic": pg.train.adam(4e-3)}
    options = {"seed": 7, "verdict": False, "compile": False, "progress": False, "steps": 4}
    game = pg.objectives.Adversarial(critic, regularizers=[pg.objectives.R1(1.0)], critic_steps=2)
    pg.fit(gan, ROWS, game, batch_size=8, optimizer=optimizer, fabric=fabric, **options)
    now = [*gan.parameters(), *critic.parameters()]
    same = all(one is other for one, other in zip(every, now, strict=True))
    moved = all(not torch.equal(one, other) for one, other in zip(before, now, strict=True))
    return [same, moved, pg.sample(gan, 3).shape[0]]


def fourth_powers(model, guide, x):
    return (x - model().mean(0)).pow(4).sum()


def refused(fabric):
    """What fails, in words, and whether the model is as it was."""
    told = []
    one, gen = torch.full((40, 3), 1e15), Batched()
    before = [p.detach().clone() for p in gen.parameters()]
    options = {"fabric": fabric, "verdict": False, "progress": False, "steps": 3, "compile": False}
    cases = [
        lambda: pg.fit(gen, one, fourth_powers, **options),
        lambda: pg.fit(gen, ROWS, stages=[pg.train.Stage(), pg.train.Stage()], **options),
        lambda: pg.fit(gen, ROWS[:1], **options),
    ]
    for case in cases:
        try:
            case()
        except (ValueError, pg.NonFiniteLoss) as error:
            told.append(f"{type(error).__name__}: {error}")
    kept = all(torch.equal(one, other) for one, other in zip(before, gen.parameters(), strict=True))
    return [told, kept]


def refused_files(fabric, folder):
    """What a file of another run says to a model, and whether that is whole and as it was."""
    gen = trained(fabric, steps=2, checkpoint=folder / "other", verdict=False)[0]
    before = {name: value.clone() for name, value in gen.state_dict().items()}
    told = []
    for rows in (ROWS[:90], ROWS.flip(0)):
        try:
            pg.fit(gen, rows, fabric=fabric, steps=5, checkpoint=folder / "other", resume=True)
        except pg.CheckpointError as error:
            told.append(str(error))
    kinds = {type(p) is nn.Parameter for p in gen.parameters()}
    same = {torch.equal(before[name], value) for name, value in gen.state_dict().items()}
    return [told, sorted(kinds), sorted(same), len(pg.sample(gen, 4))]


def parts(strategy, processes, folder):
    fabric = fabric_of(strategy, processes)
    return {
        "taught": taught(fabric, processes),
        "players": players(fabric),
        "refused": refused(fabric),
        "refused files": refused_files(fabric, folder),
    }


def main(what, strategy, folder):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    found = TASKS[what](strategy, 2, Path(folder) / strategy)
    if torch.distributed.get_rank() == 0:
        print("RESULT" + json.dumps([what, strategy, found]))


TASKS = {"curves": curves, "resumed": resumed, "parts": parts}

if __name__ == "__main__":
    import scale_worker  # whose classes checkpoints name by this module

    folder, asked = sys.argv[1:]
    works = [partial(scale_worker.main, *each, folder) for each in json.loads(asked)]
    sys.exit(any(code for each in works for code in together(each)))
