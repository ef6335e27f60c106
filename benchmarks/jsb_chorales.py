r"""Polyphonic music: models of the JSB chorales, 88 keys a frame, beside published scores.

Splits and unit are those of Boulanger-Lewandowski, Bengio, Vincent (2012),
https://arxiv.org/abs/1206.6392: negative log-likelihood in nats per frame, averaged over all frames
of the test chorales. Models are trained on the training chorales as they are (the setting of the
published models), or with ``--transpose`` on these in twelve keys. The weights that do best on the
validation chorales are kept.

    python benchmarks/jsb_chorales.py --data DIR --models rnn_made --steps 1200 --rate 4e-3 \
        --dropout 0.15
    python benchmarks/jsb_chorales.py --data DIR --models tcn_made --steps 1000 --rate 3e-3 \
        --dropout 0.15
    python benchmarks/jsb_chorales.py --data DIR --models deep_markov_made --steps 1400 \
        --rate 3e-3 --patience 16
    python benchmarks/jsb_chorales.py --data DIR --models rnn_made --transpose --dropout 0 \
        --steps 3600 --rate 5e-3 --seed 2
    python benchmarks/jsb_chorales.py --data DIR --models tied --steps 1000000 --minutes 13 \
        --batch 10 --muon 1e-2 --rate 4e-3 --decay 0.1 --dropout 0.3 --precision bf16-mixed \
        --patience 1000 --every 100

``tied`` shares all weights over keys and trains on the chorales as they are: 4.628 (exact; 8.9
minutes of one core, seed 0, scored once; validation 4.624, best after 700 of 1,481 steps: later
ones learn the chorales by heart, validation rises to 5.0). With ``--dropout 0.1 --decay 0.05``
validation was 233.5 nats per piece after 500 steps, 240.1 with the above after 700. Those without
shared weights: GRU with MADE frames 5.70, in twelve keys 5.47.

``--data`` is a folder with ``jsb_chorales.npz``: ``train``, ``valid``, ``test`` of shape (frames,
88), chorales laid end to end, and ``train_lengths``, ... Checkpoints go to ``--checkpoints``;
``--resume`` continues from them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Deadline, adamw, command_line, cosine
from lightning_fabric import Fabric
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

import probgen as pg
from probgen.datasets import Splits
from probgen.distributions.network_distributions import autoregression, entry_head
from probgen.heads import Bernoulli, Gaussian
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.made import MADE
from probgen.models.nade import NADE
from probgen.models.sequence import SequenceModel
from probgen.nn import MLP, Constant
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.temporal import TemporalConvolution

KEYS, LONGEST, WINDOW = (
    88,
    160,
    72,
)  # frames of the longest chorale, and of the pieces that models are trained on
KEYS_OF_MUSIC = range(-5, 7)  # half-tones up
SOUNDING = range(20, 78)  # keys that sound in the training chorales, 22 to 75, and two on each side
PUBLISHED = {
    "deep Markov model of Pyro's tutorial, bound, 0 / 1 / 2 IAFs (6.87 / 6.82 / 6.80)": 6.80,
    "deep Markov model, bound (Krishnan et al. 2017)": 6.39,
}


def load(path: Path, window: int) -> Splits:
    """Chorales cut into rows of at most ``window`` frames, ``(N, window, KEYS)``, padded by NaN."""
    data = np.load(path / "jsb_chorales.npz")

    def padded(split: str) -> Tensor:
        frames = torch.from_numpy(data[split]).float()
        lengths = data[f"{split}_lengths"].tolist()
        pieces = [piece for chorale in frames.split(lengths) for piece in chorale.split(window)]
        rows = torch.full((len(pieces), window, KEYS), torch.nan)
        for row, piece in zip(rows, pieces, strict=True):
            row[: len(piece)] = piece
        return rows

    return Splits(*map(padded, ("train", "valid", "test")))


def transposed(x: Tensor) -> Tensor:
    """Every chorale in twelve keys."""
    return torch.cat([x.roll(shift, -1) for shift in KEYS_OF_MUSIC])


def per_frame(score: pg.Score, x: Tensor) -> float:
    """Negative log-likelihood in nats per frame, over all frames of all rows."""
    return -score.value.sum().item() / frames(x)


def recurrent(emission: Callable[[int], nn.Module], dropout: float, length: int) -> SequenceModel:
    return SequenceModel(RNN(KEYS, 200, dropout=dropout), emission(200), (length, KEYS))


def convolutional(
    emission: Callable[[int], nn.Module], dropout: float, length: int
) -> SequenceModel:
    network = TemporalConvolution(KEYS, 128, (1, 2, 4, 8, 16), dropout=dropout)
    return SequenceModel(network, emission(128), (length, KEYS))


class Reader(nn.Module):
    """A recurrent summary of the frames, with the present frame as it is.

    ``(*batch, T, KEYS) -> (*batch, T, H)``.
    """

    def __init__(self, summary: int, dropout: float):
        super().__init__()
        self.memory = RNN(KEYS, summary, dropout=dropout)
        self.here = MLP(KEYS, [200], summary)

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(x) + self.here(x)


def deep_markov(
    emission: Callable[[int], nn.Module], dropout: float, length: int
) -> DeepMarkovModel:
    latent = 32
    summary = 160
    return DeepMarkovModel(
        Gaussian(GatedTransition(latent, 128)),
        emission(latent),
        Reader(summary, dropout),
        Gaussian(Combiner(latent, summary)),
        (length, latent),
    )


def independent(state: int) -> Bernoulli:
    return Bernoulli(MLP(state, [200], KEYS))


def made(state: int) -> MADE:
    return MADE(KEYS, [200], Bernoulli(), context=state, direct=True)


def nade(state: int) -> NADE:
    return NADE(KEYS, 100, Bernoulli(), context=state)


class TiedMemory(nn.Module):
    """One recurrent network for all keys, each seen from where it lies.

    ``(*batch, T, KEYS) -> (*batch, T, H * count)``. A key is told the keys around it, how many keys
    of each of the twelve classes sound, counted from its own, and a learned vector of its own.

    Parameters
    ----------
    keys : range
        Those that have a state.
    hidden : int
        Length of a state.
    reach : int
        How many keys on either side it is shown.
    dropout : float
        Probability with which entries of states are dropped.
    """

    def __init__(self, keys: range, hidden: int, reach: int = 24, dropout: float = 0.0):
        super().__init__()
        self.keys, self.reach = keys, reach
        self.own = nn.Parameter(torch.randn(len(keys), 8) * 0.1)
        self.memory = nn.GRU(2 * reach + 1 + 12 + 8, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def seen(self, x: Tensor) -> Tensor:
        """What each key is told of a frame, ``(*batch, KEYS) -> (*batch, count, S)``."""
        first = self.keys[0]
        wide = pad(x, (self.reach, self.reach))[
            ..., first : first + len(self.keys) + 2 * self.reach
        ]
        classes = pad(x, (0, -KEYS % 12)).unflatten(-1, (-1, 12)).sum(-2)
        turned = torch.tensor([[(key + i) % 12 for i in range(12)] for key in self.keys])
        own = self.own.expand(*x.shape[:-1], *self.own.shape)
        return torch.cat((wide.unfold(-1, 2 * self.reach + 1, 1), classes[..., turned], own), -1)

    def forward(self, x: Tensor) -> Tensor:
        told = self.seen(x).movedim(-2, -3)
        states, _ = self.memory(told.flatten(0, -3))
        return self.dropout(states).unflatten(0, told.shape[:-2]).movedim(-3, -2).flatten(-2)

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        told = self.seen(x)
        states, state = self.memory(told.flatten(0, -2).unsqueeze(1), state)
        return self.dropout(states).reshape(*told.shape[:-1], -1).flatten(-2), state


class TiedKeys(pg.DistributionModule):
    """The keys of a frame one after the other from below, by one network for all.

    It is told the state of a key, ``H`` of the context's ``H * count`` numbers, the three octaves
    below, and how many keys sound below; others than ``keys`` sound with one probability each.
    """

    below, most = 36, 6

    def __init__(self, keys: range, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.keys = keys
        self.context_size = hidden * len(keys)
        self.network = nn.Sequential(
            nn.Linear(hidden + self.below + self.most, 2 * hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(2 * hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )  # fmt: skip
        self.never = nn.Parameter(torch.full((KEYS,), -11.0))
        nn.init.constant_(self.network[-1].bias, -2.5)

    def forward(self, context: Tensor) -> TorchDistribution:
        head = entry_head(Bernoulli())
        return autoregression(self.parallel, self.walk, head, (KEYS,), context)

    def parallel(self, x: Tensor, context: Tensor) -> Tensor:
        inside = x[:, self.keys[0] : self.keys[-1] + 1]
        around = pad(inside, (self.below, 0))[:, :-1].unfold(-1, self.below, 1)
        count = (inside.cumsum(-1) - inside).long().clamp_max(self.most - 1)
        told = (context.unflatten(-1, (len(self.keys), -1)), around, one_hot(count, self.most))
        logits = self.network(torch.cat(told, -1)).squeeze(-1)
        never = self.never.expand(len(x), -1)
        parts = (never[:, : self.keys[0]], logits, never[:, self.keys[-1] + 1 :])
        return torch.cat(parts, 1).unsqueeze(1)

    def walk(self, batch: int, context: Tensor) -> Generator[Tensor, Tensor, None]:
        x = context.new_zeros(batch, KEYS)
        for key in range(KEYS):
            value = yield self.parallel(x, context)[:, :, key]
            x = torch.cat((x[:, :key], value.unsqueeze(1), x[:, key + 1 :]), 1)


def tied(hidden: int, dropout: float, length: int) -> SequenceModel:
    """Weights are shared over keys: what holds in one key of music holds in all.

    Source: Johnson (2017), Generating polyphonic music using tied parallel networks.
    """
    network = TiedMemory(SOUNDING, hidden, dropout=dropout)
    return SequenceModel(network, TiedKeys(SOUNDING, hidden, dropout), (length, KEYS))


def annealed() -> pg.ELBO:
    return pg.ELBO(beta=pg.objectives.linear_warmup(400, start=0.1))


MODELS: dict[str, tuple[Callable, float, Callable[[], pg.objectives.Objective]]] = {
    "rnn": (partial(recurrent, independent), 0.3, pg.ELBO),
    "rnn_made": (partial(recurrent, made), 0.3, pg.ELBO),
    "rnn_nade": (partial(recurrent, nade), 0.3, pg.ELBO),
    "tcn_made": (partial(convolutional, made), 0.3, pg.ELBO),
    "tied": (partial(tied, 64), 0.2, pg.ELBO),
    "deep_markov": (partial(deep_markov, independent), 0.1, annealed),
    "deep_markov_made": (partial(deep_markov, made), 0.1, annealed),
}


def train(name: str, pieces: Splits, arguments: argparse.Namespace) -> nn.Module:
    make, dropout, objective = MODELS[name]
    dropout = dropout if arguments.dropout is None else arguments.dropout
    torch.manual_seed(arguments.seed)
    gen = make(dropout, WINDOW)

    path = (
        arguments.checkpoints
        / f"jsb_{name}{'_transposed' * arguments.transpose}_{arguments.seed}.safetensors"
    )
    clock = Deadline(arguments.minutes)
    falling = cosine(arguments.steps, arguments.rate / 50)
    history = pg.fit(
        gen, pieces.train, objective(), steps=arguments.steps, batch_size=arguments.batch,
        optimizer=optimizer(gen, arguments),
        scheduler=clock.scheduler if arguments.minutes < math.inf else falling, clip=300.0, ema=0.99,
        validation=pieces.validation, validate_every=arguments.every,
        patience=arguments.patience, checkpoint=path, checkpoint_every=200, resume=arguments.resume,
        fabric=Fabric(accelerator="cpu", devices=1, precision=arguments.precision),
        compile=arguments.compile, seed=arguments.seed, verdict=False, callbacks=[tell, clock],
    )  # fmt: skip
    spent = f"{history.seconds / 60:.1f} min ({time.process_time() / 60:.1f} of the processor)"
    print(f"{name}: {history.stopped}, {history.steps} steps, {spent}", flush=True)
    whole = make(dropout, LONGEST)  # no parameter depends on the number of frames
    whole.load_state_dict(gen.state_dict())
    return whole.eval()


def optimizer(gen: nn.Module, arguments: argparse.Namespace) -> Callable:
    if not arguments.muon:
        return adamw(arguments.rate, weight_decay=arguments.decay, fused=True)
    kinds = (nn.GRU, nn.Linear)
    layers = [
        m for m in gen.modules() if isinstance(m, kinds) and all(len(p) > 1 for p in m.parameters())
    ]
    return pg.train.muon(
        layers, arguments.muon, weight_decay=arguments.decay, others=arguments.rate
    )


def tell(run) -> None:
    if run.step % 100 == 0 and run.history.validation:
        step, value = run.history.validation[-1]
        print(
            f"  step {step}: validation {value:.1f} nats per piece, train "
            f"{run.history.loss[-1]:.1f}",
            flush=True,
        )


@torch.no_grad()
def averaged(gens: list[SequenceModel], x: Tensor, shifts: range = range(1)) -> float:
    """Nats per frame of several models as one.

    Probabilities of a frame given its past, averaged over models and keys.

    A model that moves chorales by some half-tones before it scores them is a model too: no
    probability is lost.
    """
    terms = torch.stack([gen().terms(x.roll(shift, -1)) for gen in gens for shift in shifts])
    return -(terms.logsumexp(0) - math.log(len(terms))).sum().item() / frames(x)


def frames(x: Tensor) -> int:
    return int((~x[..., 0].isnan()).sum())


def scores(name: str, gen: nn.Module, rows: Splits, particles: int) -> dict[str, float]:
    """Scores of one model.

    Exact, or the bound (mean of 20 draws) and an average of importance samples.
    """
    print(
        f"{name}: validation "
        f"{per_frame(pg.log_likelihood(gen, rows.validation, particles=1), rows.validation):.3f}"
    )
    draws = [pg.log_likelihood(gen, rows.test, particles=1)]
    if draws[0].kind == "exact":
        return {f"{name}, exact": per_frame(draws[0], rows.test)}
    draws += [pg.log_likelihood(gen, rows.test, particles=1) for _ in range(19)]
    many = pg.log_likelihood(gen, rows.test, particles=particles)
    return {
        f"{name}, bound": sum(per_frame(draw, rows.test) for draw in draws) / len(draws),
        f"{name}, {particles} importance samples": per_frame(many, rows.test),
    }


def independent_keys(x: Tensor) -> Bernoulli:
    """Every key by its frequency in the training frames, kept off zero."""
    p = x.nanmean((0, 1)).clamp(1e-4, 1 - 1e-4)
    return Bernoulli(Constant(LONGEST, KEYS, initial=p.logit()), event_ndim=2)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(MODELS),
        default=["rnn_made", "tcn_made", "deep_markov_made"],
    )
    parser.add_argument(
        "--transpose", action="store_true", help="train on the chorales in twelve keys"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="on the wall; the rate falls by them then"
    )
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--muon", type=float, default=0.0, help="rate of Muon for the layers; 0: AdamW"
    )
    parser.add_argument("--precision", default="32-true", help="bf16-mixed where it is faster")
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--every", type=int, default=50, help="steps between validations")
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--particles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoints", type=Path, default=Path())
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    rows = load(arguments.data, LONGEST)
    pieces = load(arguments.data, WINDOW)
    pieces = pieces._replace(train=transposed(pieces.train)) if arguments.transpose else pieces
    table = {
        "independent keys": per_frame(
            pg.log_likelihood(independent_keys(rows.train), rows.test), rows.test
        )
    }
    exact = []
    for name in arguments.models:
        gen = train(name, pieces, arguments)
        table |= scores(name, gen, rows, arguments.particles)
        exact += [gen] if isinstance(gen, SequenceModel) else []
    if len(exact) > 1:
        table[f"average of {len(exact)} models"] = averaged(exact, rows.test)
    if exact and arguments.transpose:
        table[f"average in twelve keys of {', '.join(arguments.models)}"] = averaged(
            exact, rows.test, KEYS_OF_MUSIC
        )
    print(
        f"\nJSB chorales{', trained in twelve keys' * arguments.transpose}: nats per frame, lower "
        "is better"
    )
    for name, value in sorted((PUBLISHED | table).items(), key=lambda row: -row[1]):
        print(f"  {value:7.3f}  {name}")


if __name__ == "__main__":
    main()
