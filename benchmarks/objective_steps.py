"""Time of a training step of the objectives for structured latents, games and translations.

Beside loops written by hand in torch.

Same networks (copies of one another), batch and optimizer in one process with one thread. The loop
takes a step after every step of ``fit``, so that what else the machine does falls on both alike;
numbers are milliseconds of processor time, of the median step, and the ratio of the medians. The
loops are plain torch: no distribution objects, divergences of normal distributions in closed form,
whatever two players both need computed once; those of games take two backward passes, the critic's
first. Before timing both losses are compared on a batch, by the mean over some draws: ``loss`` is
ours as a multiple of the loop's.

Measured on one core, five and a half minutes, milliseconds of the loop, and our ratio to it as it
is and compiled:

=========================  =====  =====  ========
VQVAE, ELBO                 18.8   1.40      0.79
HierarchicalVAE, ELBO       25.1   1.30      0.72
SemiSupervisedVAE           13.9   1.71      0.66
TotalCorrelation            13.1   1.30      0.64
FactorVAE                   11.2   1.26      0.72
CycleConsistency            39.6   1.15      0.74
AttributeTranslation        24.5   1.25      0.74
Denoising, classes          17.3   1.24      0.75
Adversarial, regularized    17.4   1.44      0.77
SoftTargets                 24.0   1.18      0.85
=========================  =====  =====  ========

What a step costs beside its networks is 2 to 4 ms there for any objective, and more for each site of
a program; SemiSupervisedVAE eliminates its labels by the general means for discrete sites, and
FeatureMatching runs the critic twice more.

    OMP_NUM_THREADS=1 python benchmarks/objective_steps.py
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from common import command_line
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import log_softmax, one_hot, softplus

import probgen as pg
from probgen.models.hierarchical_vae import Level
from probgen.models.info_gan import Codes
from probgen.nn import MLP, Codebook, SideBySide
from probgen.objectives import (
    Adversarial,
    AttributeTranslation,
    CycleConsistency,
    Denoising,
    DiversitySensitive,
    FactorVAE,
    FeatureMatching,
    SoftTargets,
    TotalCorrelation,
)
from probgen.train import Labeled, Unpaired, adam

PIXELS = 784
HIDDEN = 400
CLASSES = 10
ROWS = 2048
BATCH = 128
WARM = 5
Loss = Callable[..., Tensor]


class Player(NamedTuple):
    """What one optimizer minimizes: ``loss(memo, *batch)``, with others' networks held fixed."""

    networks: Sequence[Any]
    loss: Loss
    frozen: Sequence[nn.Module] = ()


class Case(NamedTuple):
    """A model, its objective and data, and the loop that does the same."""

    gen: Any
    objective: Any
    data: Any
    rows: tuple[Tensor, ...]  # that batches of the loop are drawn from
    players: Sequence[Player]
    batch: int = BATCH


class Loop:
    """The hand-written loop."""

    def __init__(self, case: Case):
        self.rows = case.rows
        self.batch = case.batch
        self.players = case.players
        self.optimizers = [
            torch.optim.Adam(
                [p for net in player.networks for p in net.parameters()], lr=1e-3, fused=True
            )
            for player in case.players
        ]

    def drawn(self) -> list[Tensor]:
        place = torch.randint(len(self.rows[0]), (self.batch,))
        return [rows[place] for rows in self.rows]

    def value(self, *batch: Tensor) -> float:
        """The sum of the players' losses."""
        memo: dict[str, Tensor] = {}
        return sum(player.loss(memo, *batch).item() for player in self.players)

    def step(self) -> None:
        batch = self.drawn()
        memo: dict[str, Tensor] = {}
        for player, optimizer in zip(self.players, self.optimizers, strict=True):
            for net in player.frozen:
                net.requires_grad_(False)
            loss = player.loss(memo, *batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            for net in player.frozen:
                net.requires_grad_(True)


class Turns:
    """A callback of fit, which lets the loop take a step after each of fit's, and times both."""

    def __init__(self, loop: Loop):
        self.loop = loop
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.began: float | None = None

    def __call__(self, run: object) -> None:
        now = time.process_time()
        if self.began is not None:
            self.ours.append(now - self.began)
        self.loop.step()
        self.began = time.process_time()
        self.theirs.append(self.began - now)

    def medians(self) -> tuple[float, float]:
        """Milliseconds of a step of ours, and of the loop, first ones left out."""
        kept = [times[len(times) // 4 + WARM :] for times in (self.ours, self.theirs)]
        first, second = (1e3 * statistics.median(times) for times in kept)
        return first, second


def bits(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.2).float()


def normal(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale as ``heads.Gaussian`` reads them."""
    loc, scale = raw.chunk(2, -1)
    return loc, softplus(scale) + 1e-3


def drawn(loc: Tensor, scale: Tensor) -> Tensor:
    return loc + scale * torch.randn_like(loc)


def divergence(loc: Tensor, scale: Tensor) -> Tensor:
    """From a standard normal distribution, of each row."""
    return (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(-1)


def log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((z - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def vqvae() -> Case:
    """16 codes of length 8 out of 64."""
    encode = nn.Sequential(MLP(PIXELS, [HIDDEN], 128), nn.Unflatten(-1, (8, 16)))
    decode = nn.Sequential(nn.Flatten(-2), MLP(128, [HIDDEN], PIXELS))
    prior = pg.Fixed(dist.Categorical, logits=torch.zeros(16, 64))
    likelihood = pg.heads.Bernoulli(decode, context_ndim=2)
    gen = pg.VQVAE(encode, likelihood, Codebook(64, 8), prior)
    encoder, decoder, codebook = copy.deepcopy((encode, decode, gen.quantizer))
    counts, sums, codes = codebook.counts, codebook.sums, codebook.codes

    def loss(memo: dict, x: Tensor) -> Tensor:
        z = encoder(x).transpose(1, 2)
        with torch.no_grad():
            flat = z.reshape(-1, 8)
            token = (codes.square().sum(1) - 2 * flat @ codes.T).argmin(1)
            used = one_hot(token, 64).float()
            counts.mul_(0.99).add_(used.sum(0), alpha=0.01)
            sums.mul_(0.99).add_(used.T @ flat, alpha=0.01)
            seen = counts[:, None] > 1e-6
            codes.copy_(torch.where(seen, sums / counts.clamp(min=1e-6)[:, None], codes))
            code = codes[token].view_as(z)
        commitment = 0.25 * (z - code).square().sum()
        quantized = z + (code - z).detach()
        error = cross_entropy(decoder(quantized.transpose(1, 2)), x, reduction="sum")
        return (error + commitment) / len(x) + 16 * math.log(64)

    x = bits(ROWS, PIXELS)
    return Case(gen, None, x, (x,), [Player([encoder, decoder], loss)])


def hierarchical() -> Case:
    """Two levels of 8 and 16 latents, with inference from the top."""
    gen = pg.HierarchicalVAE(
        Level.dense(PIXELS, [8, 16], width=200), pg.heads.Bernoulli(MLP(200, [HIDDEN], PIXELS))
    )
    (top, low), decoder = copy.deepcopy((list(gen.levels), gen.decoder.net))

    def loss(memo: dict, x: Tensor) -> Tensor:
        below = low.features(x)
        q1 = normal(top.posterior.net(top.features(below)))
        state = top.step(drawn(*q1))
        prior, prior_scale = normal(low.prior.net(state))
        loc, scale = normal(low.posterior.net(torch.cat((state, below), -1)))
        shown = low.step(torch.cat((state, drawn(loc, scale)), -1))
        second = (
            (prior_scale / scale).log()
            + (scale**2 + (loc - prior) ** 2) / (2 * prior_scale**2)
            - 0.5
        )
        kl = divergence(*q1).sum() + second.sum()
        return (cross_entropy(decoder(shown), x, reduction="sum") + kl) / len(x)

    x = bits(ROWS, PIXELS)
    networks = [top, low, decoder]
    return Case(gen, None, x, (x,), [Player(networks, loss)])


def semi_supervised() -> Case:
    """Ten classes, a tenth of the rows labeled; the others summed out."""
    decoder, encoder = MLP(8 + CLASSES, [200], PIXELS), MLP(PIXELS + CLASSES, [200], 16)
    gen = pg.SemiSupervisedVAE(
        pg.standard_normal(8),
        pg.heads.Bernoulli(decoder),
        pg.heads.Gaussian(encoder),
        MLP(PIXELS, [200], CLASSES),
        CLASSES,
    )
    decoder, encoder, classifier = copy.deepcopy((decoder, encoder, gen.classifier))
    prior = nn.ParameterList([torch.zeros(CLASSES)])

    def cost(x: Tensor, label: Tensor) -> Tensor:
        loc, scale = normal(encoder(torch.cat((x, label), -1)))
        logits = decoder(torch.cat((drawn(loc, scale), label), -1))
        error = cross_entropy(logits, x, reduction="none").sum(-1)
        return error + divergence(loc, scale) - (label * log_softmax(prior[0], -1)).sum(-1)

    few = BATCH // 4 // 10
    every = torch.eye(CLASSES)[:, None]

    def loss(memo: dict, x: Tensor, y: Tensor) -> Tensor:
        known = ~y.isnan()
        guessed = log_softmax(classifier(x), -1)
        label = one_hot(y[known].long(), CLASSES).float()
        labeled = cost(x[known], label) - (guessed[known] * label).sum(-1)
        rest = x[~known].expand(CLASSES, -1, -1)
        share = guessed[~known].T
        unlabeled = share.exp() * (cost(rest, every.expand(-1, rest.shape[1], -1)) + share)
        return (labeled.sum() + unlabeled.sum()) / len(x)

    x, y = bits(ROWS, PIXELS), torch.randint(CLASSES, (ROWS,)).float()
    y[torch.rand(ROWS) > few / (BATCH // 4)] = torch.nan
    networks = [decoder, encoder, classifier, prior]
    players = [Player(networks, loss)]
    return Case(gen, None, Labeled(x, y), (x, y), players, BATCH // 4)


def vae() -> pg.VAE:
    return pg.VAE(
        pg.standard_normal(10),
        pg.heads.Bernoulli(MLP(10, [HIDDEN], PIXELS)),
        pg.heads.Gaussian(MLP(PIXELS, [HIDDEN], 20)),
    )


def total_correlation() -> Case:
    gen = vae()
    encoder, decoder = copy.deepcopy((gen.encoder.net, gen.decoder.net))

    def loss(memo: dict, x: Tensor) -> Tensor:
        loc, scale = normal(encoder(x))
        z = drawn(loc, scale)
        error = cross_entropy(decoder(z), x, reduction="sum")
        own = log_normal(z, loc, scale)
        pairs = log_normal(z[:, None], loc, scale)
        others = math.log(ROWS - 1) - math.log(ROWS) - math.log(len(x) - 1)
        weights = torch.full((len(x), len(x)), others).fill_diagonal_(-math.log(ROWS))
        joint = (weights + pairs.sum(-1)).logsumexp(1)
        single = (weights[..., None] + pairs).logsumexp(1)
        information = own.sum() - joint.sum()
        dependence = joint.sum() - single.sum()
        rest = single.sum() - log_normal(z, torch.zeros(()), torch.ones(())).sum()
        return (error + information + 6 * dependence + rest) / len(x)

    x = bits(ROWS, PIXELS)
    return Case(gen, TotalCorrelation(ROWS), x, (x,), [Player([encoder, decoder], loss)])


def factor_vae() -> Case:
    gen = vae()
    seer = MLP(10, [200, 200], 1)
    encoder, decoder, critic = copy.deepcopy((gen.encoder.net, gen.decoder.net, seer))

    def model_loss(memo: dict, x: Tensor) -> Tensor:
        loc, scale = normal(encoder(x))
        z = drawn(loc, scale)
        memo["z"] = z.detach()
        error = cross_entropy(decoder(z), x, reduction="sum")
        return (error + divergence(loc, scale).sum() + 6 * critic(z).sum()) / len(x)

    def critic_loss(memo: dict, x: Tensor) -> Tensor:
        z = memo["z"]
        shuffled = z.gather(0, torch.rand_like(z).argsort(0))
        return softplus(-critic(z)).mean() + softplus(critic(shuffled)).mean()

    x = bits(ROWS, PIXELS)
    players = [Player([encoder, decoder], model_loss, [critic]), Player([critic], critic_loss)]
    return Case(gen, FactorVAE(seer), x, (x,), players)


def cycle() -> Case:
    net = lambda: MLP(PIXELS, [HIDDEN], PIXELS)  # noqa: E731
    judge = lambda: MLP(PIXELS, [HIDDEN], 1)  # noqa: E731
    gen = pg.CycleGAN(net(), net())
    objective = CycleConsistency(judge(), judge())
    to_b, to_a = copy.deepcopy((gen.to_b, gen.to_a))
    of_a, of_b = copy.deepcopy((objective.of_a.critic, objective.of_b.critic))

    def critics(memo: dict, a: Tensor, b: Tensor) -> Tensor:
        memo["b"], memo["a"] = to_b(a), to_a(b)
        losses = [
            0.5 * (seer(real) - 1).square().mean() + 0.5 * seer(made.detach()).square().mean()
            for seer, real, made in ((of_a, a, memo["a"]), (of_b, b, memo["b"]))
        ]
        return losses[0] + losses[1]

    def model(memo: dict, a: Tensor, b: Tensor) -> Tensor:
        fooled = 0.5 * (of_a(memo["a"]) - 1).square().mean()
        fooled = fooled + 0.5 * (of_b(memo["b"]) - 1).square().mean()
        gaps = (to_a(memo["b"]) - a).abs().mean() + (to_b(memo["a"]) - b).abs().mean()
        return fooled + 10 * gaps

    a, b = torch.randn(2, ROWS, PIXELS)
    players = [Player([of_a, of_b], critics), Player([to_a, to_b], model, [of_a, of_b])]
    return Case(gen, objective, Unpaired(a, b), (a, b), players)


def attributes() -> Case:
    """Four attributes of which one is asked for."""
    gen = pg.StarGAN(SideBySide(MLP(PIXELS + 4, [HIDDEN], PIXELS)), Codes([4]))
    recognizer = Codes([4], net=MLP(PIXELS, [HIDDEN], 4))
    objective = AttributeTranslation(MLP(PIXELS, [HIDDEN], 1), recognizer)
    change, tell = copy.deepcopy((gen.generator.net, recognizer.net))
    critic = copy.deepcopy(objective.adversary.critic)

    def players_loss(memo: dict, x: Tensor, c: Tensor) -> Tensor:
        memo["asked"] = torch.eye(4)[torch.randint(4, (len(x),))]
        memo["x"] = change(torch.cat((x, memo["asked"]), -1))
        game = 0.5 * (critic(x) - 1).square() + 0.5 * critic(memo["x"].detach()).square()
        return game.mean() - (log_softmax(tell(x), -1) * c).sum(-1).mean()

    def model(memo: dict, x: Tensor, c: Tensor) -> Tensor:
        made = memo["x"]
        fooled = 0.5 * (critic(made) - 1).square().mean()
        told = -(log_softmax(tell(made), -1) * memo["asked"]).sum(-1).mean()
        gap = (change(torch.cat((made, c), -1)) - x).abs().mean()
        return fooled + told + 10 * gap

    x, c = torch.randn(ROWS, PIXELS), torch.eye(4)[torch.randint(4, (ROWS,))]
    players = [Player([critic, tell], players_loss), Player([change], model, [critic, tell])]
    return Case(gen, objective, (x, c), (x, c), players)


def denoising() -> Case:
    """Of a class, which a tenth of the rows do not know."""
    net = pg.nn.TimeMLP(PIXELS, [HIDDEN] * 3, context=CLASSES)
    gen = pg.Diffusion(net, (PIXELS,), context_dropout=0.1)
    net = copy.deepcopy(net)

    def loss(memo: dict, x: Tensor, c: Tensor) -> Tensor:
        t = torch.rand(len(x))
        angle = (t * (torch.pi / 2 - 0.02) + 0.01)[:, None]
        alpha, sigma = angle.cos(), angle.sin()
        noise = torch.randn_like(x)
        c = torch.where(torch.rand(len(x), 1) < 0.1, torch.nan, c)
        target = alpha * noise - sigma * x
        return (net(alpha * x + sigma * noise, t, c) - target).square().sum() / len(x)

    x, c = torch.randn(ROWS, PIXELS), torch.eye(CLASSES)[torch.randint(CLASSES, (ROWS,))]
    return Case(gen, Denoising(), (x, c), (x, c), [Player([net], loss)])


def regularized_game() -> Case:
    """A conditional GAN whose generator is to differ, and to match the critic's features."""
    network = MLP(32 + CLASSES, [HIDDEN], PIXELS)
    gen = pg.GAN(SideBySide(network), pg.standard_normal(32), (PIXELS,))
    seer = SideBySide(MLP(PIXELS + CLASSES, [HIDDEN], 1))
    objective = Adversarial(
        seer, generator_regularizers=[DiversitySensitive(1.0), FeatureMatching(1.0)]
    )
    network, critic = copy.deepcopy((network, seer.net))
    trunk, last = critic.hidden[0], critic.last

    def critics(memo: dict, x: Tensor, c: Tensor) -> Tensor:
        memo["z"] = torch.randn(len(x), 32)
        memo["x"] = network(torch.cat((memo["z"], c), -1))
        seen = trunk(torch.cat((x, c), -1))
        memo["seen"] = seen.detach().mean(0)
        made = critic(torch.cat((memo["x"].detach(), c), -1))
        return softplus(-last(seen)).mean() + softplus(made).mean()

    def model(memo: dict, x: Tensor, c: Tensor) -> Tensor:
        z = torch.randn(len(x), 32)
        other = network(torch.cat((z, c), -1))
        moved = (memo["x"] - other).abs().mean(-1) / (memo["z"] - z).abs().mean(-1)
        seen = trunk(torch.cat((memo["x"], c), -1))
        matched = (seen.mean(0) - memo["seen"]).square().mean()
        return softplus(-last(seen)).mean() - moved.mean() + matched

    x, c = torch.rand(ROWS, PIXELS), torch.eye(CLASSES)[torch.randint(CLASSES, (ROWS,))]
    players = [Player([critic], critics), Player([network], model, [critic])]
    return Case(gen, objective, (x, c), (x, c), players)


def soft_targets() -> Case:
    """A MADE that learns the conditionals of a wider one."""
    teacher = pg.MADE(PIXELS, [2 * HIDDEN], pg.heads.Bernoulli())
    gen = pg.MADE(PIXELS, [HIDDEN], pg.heads.Bernoulli())
    learned, known = copy.deepcopy((gen.net, teacher.net))
    index = torch.zeros(1, dtype=torch.long)

    def loss(memo: dict, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = known(x, None, index).squeeze(-1)
        p = target.sigmoid()
        logits = learned(x, None, index).squeeze(-1)
        cross = cross_entropy(logits, p, reduction="sum")
        return (cross - cross_entropy(target, p, reduction="sum")) / len(x)

    x = bits(ROWS, PIXELS)
    return Case(gen, SoftTargets(teacher), x, (x,), [Player([learned], loss)])


CASES: dict[str, Callable[[], Case]] = {
    "VQVAE, ELBO": vqvae,
    "HierarchicalVAE, ELBO": hierarchical,
    "SemiSupervisedVAE": semi_supervised,
    "TotalCorrelation": total_correlation,
    "FactorVAE": factor_vae,
    "CycleConsistency": cycle,
    "AttributeTranslation": attributes,
    "Denoising, classes": denoising,
    "Adversarial, regularized": regularized_game,
    "SoftTargets": soft_targets,
}


def losses(case: Case, loop: Loop, draws: int = 20) -> float:
    """Our loss as a multiple of the loop's, means over draws of one batch."""
    batch = loop.drawn()
    objective = case.objective or pg.objectives.default_objective(case.gen, *batch)
    # a copy, because running means and codebooks move with every pass
    gen, objective = copy.deepcopy((case.gen, objective))
    ours = objective(gen.model, gen.guide)
    own = statistics.mean(ours(*batch).item() / len(batch[0]) for _ in range(draws))
    return own / statistics.mean(loop.value(*batch) for _ in range(draws))


def measured(make: Callable[[], Case], compiled: bool, steps: int) -> dict[str, Any]:
    """Milliseconds of a step of either, and whether ours was compiled."""
    torch.manual_seed(0)
    case = make()
    loop = Loop(case)
    turns = Turns(loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = pg.fit(
            case.gen,
            case.data,
            case.objective,
            steps=steps,
            batch_size=case.batch,
            optimizer=adam(1e-3),
            compile=compiled,
            callbacks=[turns],
            verdict=False,
            progress=False,
            seed=0,
        )
    ours, theirs = turns.medians()
    return {
        "ours": ours,
        "loop": theirs,
        "ratio": ours / theirs,
        "compiled": history.compiled if compiled else "",
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':26s}{'loss':>7s}{'loop, ms':>10s}{'eager':>8s}{'ratio':>7s}", end="")
    print(f"{'compiled':>10s}{'ratio':>7s}")
    found: dict[str, Any] = {}
    for name in options.cases:
        torch.manual_seed(0)
        case = CASES[name]()
        found[name] = {"loss": losses(case, Loop(case))}
        found[name]["eager"] = eager = measured(CASES[name], False, options.steps)
        line = f"{name:26s}{found[name]['loss']:7.3f}{eager['loop']:10.2f}{eager['ours']:8.2f}"
        line += f"{eager['ratio']:7.2f}"
        if not options.eager_only:
            found[name]["compiled"] = ours = measured(CASES[name], True, options.steps)
            line += f"{ours['ours']:10.2f}{ours['ratio']:7.2f}"
            if ours["compiled"].startswith("no"):
                line += f"  {ours['compiled']}"
        print(line, flush=True)
        if options.results is not None:
            options.results.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
