"""Score matching and noise-contrastive estimation against closed forms."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.core.module import Fixed, standard_normal
from probgen.distributions.energy.visible import BernoulliUnits
from probgen.heads import Bernoulli, Gaussian
from probgen.models.autoregressive_flow import MAF
from probgen.models.energy import EnergyBasedModel
from probgen.models.rbm import RBM
from probgen.nn import MLP, Constant
from probgen.objectives.noise_contrastive import NoiseContrastive
from probgen.objectives.score_matching import (
    DenoisingScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from probgen.train.fit import adam, fit

QUIET = {"progress": False, "verdict": False, "compile": False}
OBJECTIVES = [ScoreMatching(), SlicedScoreMatching(2), DenoisingScoreMatching([0.1, 0.3])]


class Quartic(nn.Module):
    """E = a |x|^4 / 4 + b |x|^2 / 2, whose score and its trace are simple."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.4))

    def forward(self, x):
        square = x.square().sum(-1)
        return self.a * square.square() / 4 + self.b * square / 2


def test_exact_loss_is_the_formula():
    gen, x = EnergyBasedModel(Quartic(), (3,)), torch.randn(5, 3)
    a, b, square = gen.net.a, gen.net.b, x.square().sum(-1)
    score = -(a * square + b)[:, None] * x
    trace = -(3 * (a * square + b) + 2 * a * square)
    expected = (trace + score.square().sum(-1) / 2).sum()
    found = ScoreMatching()(gen.model, gen.guide)(x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(
        *(torch.autograd.grad(v, (a, b), retain_graph=True) for v in (found, expected)), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-4)


def test_sliced_loss_is_unbiased():
    gen, x = EnergyBasedModel(Quartic(), (3,)), torch.randn(2, 3)
    exact = ScoreMatching()(gen.model, gen.guide)(x).item()
    rows = x.repeat(4000, 1)
    sliced = SlicedScoreMatching()(gen.model, gen.guide)(rows).item() / 4000
    assert sliced == pytest.approx(exact, abs=0.1)


def test_denoising_loss_is_the_expected_distance_of_scores():
    # a standard normal with noise s has the score -x / (1 + s^2); the model's is -x
    normal, s = standard_normal(1), 0.5
    x = torch.randn(40_000, 1)
    found = DenoisingScoreMatching(s)(normal.model, normal.guide)(x).item() / 40_000
    residual = -s * (1 + s**2) ** 0.5  # s * score at a noisy row of unit normal scale
    expected = (residual**2 + 1 - 2 * s * s) / 2  # E (s score + e)^2 = s^2 (1 + s^2) - 2 s^2 + 1
    assert found == pytest.approx(expected, abs=4 * 1.0 / math.sqrt(40_000))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=["exact", "sliced"])
def test_a_gaussian_gets_the_moments_of_the_data(objective):
    x = torch.randn(300, 2) * torch.tensor([0.5, 0.9]) + torch.tensor([1.0, -1.0])
    gen = Gaussian(Constant(4))
    fit(
        gen,
        x,
        objective,
        steps=200,
        optimizer=adam(0.05),
        batch_size=300,
        ema=0.95,
        seed=0,
        **QUIET,
    )
    distribution = gen()
    assert torch.allclose(distribution.mean, x.mean(0), atol=0.02)
    assert torch.allclose(distribution.stddev, x.std(0, correction=0), rtol=0.03)


def test_denoising_gives_the_moments_of_the_noisy_data():
    x = torch.randn(300, 1) * 0.5
    gen = Gaussian(Constant(2))
    fit(
        gen,
        x,
        DenoisingScoreMatching(0.5),
        steps=300,
        optimizer=adam(0.03),
        ema=0.98,
        batch_size=300,
        seed=0,
        **QUIET,
    )
    assert gen().variance.item() == pytest.approx(x.var().item() + 0.25, rel=0.15)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_flows_learn_by_it_in_training_and_score_in_validation(objective):
    x = torch.randn(100, 2) * 0.5 + 1
    gen = MAF(2, layers=2, hidden=(8,))
    history = fit(gen, x, objective, steps=30, optimizer=adam(0.01), validation=x, seed=0, **QUIET)
    assert history.validation[-1][1] < history.validation[0][1] or len(history.validation) == 1
    assert all(p.grad is None or p.grad.isfinite().all() for p in gen.parameters())


def test_score_matching_is_compiled():
    from probgen.compile.tracing import record_operations
    from probgen.core.missing import assume_missing

    gen, x = EnergyBasedModel(MLP(3, [8], 1), (3,)), torch.randn(5, 3)
    for objective in OBJECTIVES:
        loss = objective(gen.model, gen.guide)
        with assume_missing(False):
            recording = record_operations(loss, x)
        values = []
        for run in (recording, loss):
            torch.manual_seed(0)
            values.append(run(x).item())
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_refusals_of_scores_say_what_to_do():
    bits = Bernoulli(Constant(3))
    with pytest.raises(ValueError, match="real variables"):
        ScoreMatching()(bits.model, bits.guide)(torch.zeros(2, 3))
    gaussian = Gaussian(Constant(4))
    with pytest.raises(ValueError, match=r"NaN \(missing\)"):
        SlicedScoreMatching()(gaussian.model, gaussian.guide)(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="scale > 0"):
        DenoisingScoreMatching(0.0)


# -- noise contrast
# ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_constant_of_a_gaussian_is_learned():
    x = torch.randn(2000, 2) * 0.7 + 0.5

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.log_precision = (
                nn.Parameter(torch.zeros(2)),
                nn.Parameter(torch.zeros(2)),
            )

        def forward(self, x):
            return (self.log_precision.exp() * (x - self.mean).square()).sum(-1) / 2

    gen, objective = (
        EnergyBasedModel(Quadratic(), (2,)),
        NoiseContrastive(standard_normal(2), ratio=4),
    )
    fit(
        gen,
        x,
        objective,
        steps=400,
        optimizer=adam(0.03),
        batch_size=1000,
        ema=0.98,
        seed=0,
        **QUIET,
    )
    log_z = (math.log(2 * math.pi) - gen.net.log_precision).sum().item() / 2
    assert objective.log_normalizer.item() == pytest.approx(log_z, abs=0.1)
    assert torch.allclose(gen.net.log_precision.exp().rsqrt(), x.std(0), rtol=0.1)


def test_the_optimum_is_where_the_distribution_is_that_of_the_data():
    # at p* / e^c = p_data the expected gradient is zero: an RBM scored against its own draws
    rbm = RBM(BernoulliUnits(3), 2, scale=1.0)
    x = rbm().sample((40_000,))
    free = RBM(BernoulliUnits(3), 2, limit=1)
    free.load_state_dict(rbm.state_dict())
    objective = NoiseContrastive(Fixed(dist.Bernoulli, logits=torch.zeros(3)), ratio=2)
    with torch.no_grad():
        objective.log_normalizer.fill_(rbm().log_z())
    loss = objective(free.model, free.guide)(x) / len(x)
    gradients = torch.autograd.grad(loss, [*free.parameters(), objective.log_normalizer])
    assert all(g.abs().max() < 4 / math.sqrt(40_000) for g in gradients)


def test_noise_given_a_context_and_its_own_parameters():
    noise = Gaussian(MLP(2, [], 6))

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(5, [4], 1)

        def forward(self, x, context):
            return self.net(torch.cat([x, context], -1))

    gen, objective = EnergyBasedModel(Joined(), (3,)), NoiseContrastive(noise, ratio=3)
    objective(gen.model, gen.guide)(torch.randn(4, 3), torch.randn(4, 2)).backward()
    assert (
        all(p.grad is None for p in noise.parameters())
        and objective.log_normalizer.grad is not None
    )


def test_resumed_runs_are_the_same_run(tmp_path):
    x, results = torch.randn(40, 2), []
    for parts in ((8,), (4, 8)):
        for index, steps in enumerate(parts):
            torch.manual_seed(index)
            gen, objective = (
                EnergyBasedModel(MLP(2, [4], 1), (2,)),
                NoiseContrastive(standard_normal(2)),
            )
            if not index:
                torch.manual_seed(0), [nn.init.constant_(p, 0.1) for p in gen.parameters()]
            path = tmp_path / f"{len(parts)}.safetensors"
            fit(
                gen,
                x,
                objective,
                steps=steps,
                batch_size=10,
                checkpoint=path,
                resume=True,
                seed=0,
                **QUIET,
            )
        results.append([*gen.parameters(), objective.log_normalizer])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_noise_without_a_density_is_refused():
    gen = EnergyBasedModel(MLP(2, [4], 1), (2,))
    with pytest.raises(ValueError, match="noise with an exact density"):
        NoiseContrastive(gen)(gen.model, gen.guide)(torch.zeros(3, 2))
