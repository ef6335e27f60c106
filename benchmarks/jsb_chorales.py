r"""Polyphonic music: models of the JSB chorales, 88 keys a frame, beside published scores.

Splits and unit are those of Boulanger-Lewandowski, Bengio, Vincent (2012),
https://arxiv.org/abs/1206.6392: negative log-likelihood in nats per frame, averaged over all frames
of the test chorales. Models are trained on the training chorales as they are (the setting of the
published models), or with ``--transpose`` on these in twelve keys. The weights that do best on the
validation chorales are kept.

    python benchmarks/jsb_chorales.py --data DIR --models rnn_made --steps 1200 --rate 4e-3
    --dropout 0.15 python benchmarks/jsb_chorales.py --data DIR --models tcn_made --steps 1000
    --rate 3e-3 --dropout 0.15 python benchmarks/jsb_chorales.py --data DIR --models
    deep_markov_made --steps 1400 --rate 3e-3 --patience 16 python benchmarks/jsb_chorales.py --data
    DIR --models rnn_made --transpose --dropout 0 \
        --steps 3600 --rate 5e-3 --seed 2

``--data`` is a folder with ``jsb_chorales.npz``: ``train``, ``valid``, ``test`` of shape (frames,
88), chorales laid end to end, and ``train_lengths``, ... Checkpoints go to ``--checkpoints``;
``--resume`` continues from them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import adamw, command_line, cosine
from torch import Tensor, nn

import probgen as pg
from probgen.datasets import Splits
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


def annealed() -> pg.ELBO:
    return pg.ELBO(beta=pg.objectives.linear_warmup(400, start=0.1))


MODELS: dict[str, tuple[Callable, float, Callable[[], pg.objectives.Objective]]] = {
    "rnn": (partial(recurrent, independent), 0.3, pg.ELBO),
    "rnn_made": (partial(recurrent, made), 0.3, pg.ELBO),
    "rnn_nade": (partial(recurrent, nade), 0.3, pg.ELBO),
    "tcn_made": (partial(convolutional, made), 0.3, pg.ELBO),
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
    history = pg.fit(
        gen, pieces.train, objective(), steps=arguments.steps, batch_size=arguments.batch,
        optimizer=adamw(arguments.rate, weight_decay=arguments.decay, fused=True),
        scheduler=cosine(arguments.steps, arguments.rate / 50), clip=300.0, ema=0.99,
        validation=pieces.validation, validate_every=50,
        patience=arguments.patience, checkpoint=path, checkpoint_every=200, resume=arguments.resume,
        compile=arguments.compile, seed=arguments.seed, verdict=False, callbacks=[tell],
    )  # fmt: skip
    print(f"{name}: {history.stopped}, {history.seconds / 60:.1f} min", flush=True)
    whole = make(dropout, LONGEST)  # no parameter depends on the number of frames
    whole.load_state_dict(gen.state_dict())
    return whole.eval()


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
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--dropout", type=float)
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
