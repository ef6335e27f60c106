"""One scalar against two hand-written backward passes.

Games against known divergences; training that resumes.
"""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from probgen.compile.tracing import record_operations
from probgen.core.missing import assume_missing
from probgen.core.module import standard_normal
from probgen.core.program import Program
from probgen.heads import Gaussian
from probgen.models.coupling_flow import RealNVP
from probgen.models.factorized import Factorized
from probgen.models.gan import GAN
from probgen.models.info_gan import Codes, InfoGAN
from probgen.models.mixture import GaussianMixture
from probgen.models.vae import VAE
from probgen.nn import MLP
from probgen.nn.augment import Jitter
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.adversary import Adversary
from probgen.objectives.games import (
    FDivergence,
    Hinge,
    LeastSquares,
    NonSaturating,
    Relativistic,
    Wasserstein,
)
from probgen.objectives.regularizers import R1, R2, GradientPenalty
from probgen.objectives.schedules import linear_warmup
from probgen.train.fit import adam, fit

ROWS = 12


def ones(s):
    return torch.ones_like(s)


HAND_WRITTEN = {
    "non-saturating": (
        NonSaturating(),
        lambda real, fake: cross_entropy(real, ones(real)) + cross_entropy(fake, 0 * fake),
        lambda real, fake: cross_entropy(fake, ones(fake)),
    ),
    "smoothed": (
        NonSaturating(0.1),
        lambda real, fake: cross_entropy(real, 0.9 * ones(real)) + cross_entropy(fake, 0 * fake),
        lambda real, fake: cross_entropy(fake, ones(fake)),
    ),
    "least squares": (
        LeastSquares(),
        lambda real, fake: ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
        lambda real, fake: ((fake - 1) ** 2).mean() / 2,
    ),
    "hinge": (
        Hinge(),
        lambda real, fake: (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(),
        lambda real, fake: -fake.mean(),
    ),
    "Wasserstein": (
        Wasserstein(),
        lambda real, fake: fake.mean() - real.mean(),
        lambda real, fake: -fake.mean(),
    ),
    "relativistic": (
        Relativistic(),
        lambda real, fake: -(real - fake).sigmoid().log().mean(),
        lambda real, fake: -(fake - real).sigmoid().log().mean(),
    ),
    "Kullback-Leibler": (
        FDivergence.kullback_leibler(),
        lambda real, fake: (fake - 1).exp().mean() - real.mean(),
        lambda real, fake: -(fake - 1).exp().mean(),
    ),
    "reverse Kullback-Leibler": (
        FDivergence.reverse_kullback_leibler(),
        lambda real, fake: (-1 - (-fake).exp().log()).mean() + (-real).exp().mean(),
        lambda real, fake: -(-1 - (-fake).exp().log()).mean(),
    ),
    "Jensen-Shannon": (
        FDivergence.jensen_shannon(),
        lambda real, fake: (
            -(2 - 2 * fake.sigmoid()).log().mean() - (2 * real.sigmoid()).log().mean()
        ),
        lambda real, fake: (2 - 2 * fake.sigmoid()).log().mean(),
    ),
    "Pearson": (
        FDivergence.pearson(),
        lambda real, fake: (fake**2 / 4 + fake).mean() - real.mean(),
        lambda real, fake: -(fake**2 / 4 + fake).mean(),
    ),
    "squared Hellinger": (
        FDivergence.squared_hellinger(),
        lambda real, fake: (
            ((1 - (-fake).exp()) / (-fake).exp()).mean() - (1 - (-real).exp()).mean()
        ),
        lambda real, fake: -((1 - (-fake).exp()) / (-fake).exp()).mean(),
    ),
    "squared Hellinger, alternative": (
        FDivergence.squared_hellinger(alternative=True),
        lambda real, fake: (
            ((1 - (-fake).exp()) / (-fake).exp()).mean() - (1 - (-real).exp()).mean()
        ),
        lambda real, fake: -(1 - (-fake).exp()).mean(),
    ),
}


def players(inputs=2):
    return GAN(MLP(3, [8], 2), standard_normal(3)).double(), MLP(inputs, [8], 1).double()


def draws(gan, seed, context=None):
    """The fakes of a loss that was seeded so."""
    torch.manual_seed(seed)
    return gan(context).expand(torch.Size([ROWS])).rsample()


def two_backwards(gan, critic, fake, critic_loss, generator_loss, *context):
    """Gradients of critic and generator from separate losses, times the number of rows."""
    by_critic = torch.autograd.grad(ROWS * critic_loss(fake.detach()), list(critic.parameters()))
    by_generator = torch.autograd.grad(ROWS * generator_loss(fake), list(gan.parameters()))
    return [*by_critic, *by_generator]


def gradients(objective, gan, critic, *batch, seed=7):
    for p in (*critic.parameters(), *gan.parameters()):
        p.grad = None
    torch.manual_seed(seed)
    loss = objective(gan.model, gan.guide)(*batch)
    loss.backward()
    return loss.detach(), [p.grad for p in (*critic.parameters(), *gan.parameters())]


def assert_same(found, expected):
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_one_backward_is_two(name):
    game, critic_loss, generator_loss = HAND_WRITTEN[name]
    (gan, critic), x = players(), torch.randn(ROWS, 2).double()
    value, found = gradients(Adversarial(critic, game), gan, critic, x)
    fake = draws(gan, 7)
    of_critic = lambda fake: critic_loss(critic(x), critic(fake))  # noqa: E731
    of_generator = lambda fake: generator_loss(critic(x), critic(fake))  # noqa: E731
    assert_same(found, two_backwards(gan, critic, fake, of_critic, of_generator))
    torch.testing.assert_close(value, ROWS * (of_critic(fake) + of_generator(fake)).detach())


def squared_slope(critic, x):
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (slope**2).sum(-1)


@pytest.mark.parametrize("turn", ["both", "critic"])
def test_penalties_are_those_of_autograd(turn):
    (gan, critic), x = players(), torch.randn(ROWS, 2).double()
    objective = Adversarial(
        critic, Wasserstein(), regularizers=[R1(3.0), R2(5.0), GradientPenalty(7.0)], critic_steps=2
    )
    objective.step += turn == "both"
    _, found = gradients(objective, gan, critic, x)
    fake = draws(gan, 7)
    share = torch.rand(ROWS, 1, dtype=torch.float64)

    def of_critic(fake):
        between = share * x + (1 - share) * fake
        penalty = 7.0 * (squared_slope(critic, between).sqrt() - 1) ** 2
        zero_centered = 1.5 * squared_slope(critic, x) + 2.5 * squared_slope(critic, fake)
        return (critic(fake) - critic(x)).mean() + (penalty + zero_centered).mean()

    expected = two_backwards(gan, critic, fake, of_critic, lambda fake: -critic(fake).mean())
    if turn == "critic":
        assert all(p.grad is None for p in gan.parameters())
        found, expected = (
            found[: len(list(critic.parameters()))],
            expected[: len(list(critic.parameters()))],
        )
    assert_same(found, expected)


def test_both_players_see_the_context():
    gan = GAN(SideBySide(MLP(3 + 1, [8], 2)), standard_normal(3), (2,)).double()
    critic = SideBySide(MLP(2 + 1, [8], 1)).double()
    x, c = torch.randn(ROWS, 2).double(), torch.randn(ROWS, 1).double()
    _, found = gradients(Adversarial(critic, Hinge()), gan, critic, x, c)
    fake = draws(gan, 7, c)
    of_critic = lambda fake: (1 - critic(x, c)).relu().mean() + (1 + critic(fake, c)).relu().mean()  # noqa: E731
    assert_same(
        found, two_backwards(gan, critic, fake, of_critic, lambda fake: -critic(fake, c).mean())
    )


def conditional_players(inputs=2):
    gan = GAN(SideBySide(MLP(3 + 1, [8], 2)), standard_normal(3), (2,)).double()
    return gan, SideBySide(MLP(inputs + inputs // 2, [8], 1)).double()


@pytest.mark.parametrize("name", ["non-saturating", "hinge", "relativistic"])
def test_mismatched_contexts_are_fakes_as_well(name):
    """Of each row by itself: some neighbors have the same context, and then no mismatch to show."""
    game, critic_loss, generator_loss = HAND_WRITTEN[name]
    gan, critic = conditional_players()
    x = torch.randn(ROWS, 2).double()
    c = torch.tensor([0.0, 0, 1, 2, 2, 2, 5, 6, 6, 4, 3, 0]).double()[:, None]
    _, found = gradients(Adversarial(critic, game, mismatched=0.3), gan, critic, x, c)
    fake = draws(gan, 7, c)

    def of_critic(fake):
        total = 0.0
        for row in range(ROWS):
            one = slice(row, row + 1)
            real = critic(x[one], c[one])
            loss = critic_loss(real, critic(fake[one], c[one]))
            if c[row] != c[row - 1]:
                wrong = critic(x[one], c[row - 1][None])
                loss = 0.7 * loss + 0.3 * critic_loss(real, wrong)
            total = total + loss / ROWS
        return total

    of_generator = lambda fake: generator_loss(critic(x, c), critic(fake, c))  # noqa: E731
    assert_same(found, two_backwards(gan, critic, fake, of_critic, of_generator))


def test_the_best_critic_of_mismatched_contexts():
    """log p(x | c) - log m(x | c), m the mixture of draws and of real rows of other contexts."""
    torch.manual_seed(0)
    weight, rows = 0.5, 60_000
    p_c = torch.tensor([0.5, 0.3, 0.2]).double()
    p, q = (1.5 * torch.randn(2, 3, 4)).double().softmax(-1)
    c = torch.multinomial(p_c, rows, replacement=True)
    real, fake = (torch.multinomial(table[c], 1).double() for table in (p, q))
    others = (p_c[:, None] * p).sum(0) - p_c[:, None] * p  # of rows with another context
    mixture = (1 - weight * (1 - p_c[:, None])) * q + weight * others

    class Table(nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.scores = nn.Parameter(scores)

        def forward(self, x, context):
            return self.scores[context[:, 0], x[:, 0].long()]

    slopes = []
    for scores in ((p / mixture).log(), (p / q).log()):
        critic = Table(scores)
        Adversary(critic, mismatched=weight)(real, fake, c[:, None], both=False).backward()
        slopes.append(critic.scores.grad.abs().max().item())
    assert slopes[0] < 0.002 < 0.01 < slopes[1]


def test_mismatched_packs_have_the_contexts_of_other_packs():
    _, critic = conditional_players(inputs=4)
    real, fake = torch.randn(2, 6, 2).double()
    c = torch.arange(6.0)[:, None].double()
    adversary = Adversary(critic, LeastSquares(), packing=2, mismatched=0.5)
    sides, told = real.view(3, 4), c.view(3, 2)
    right = (critic(sides, told) - 1) ** 2 / 2
    wrong = critic(sides, told[[2, 0, 1]]) ** 2 / 2
    made = critic(fake.view(3, 4), told) ** 2 / 2
    expected = (right + (wrong + made) / 2).mean()
    torch.testing.assert_close(adversary(real, fake, c, both=False), expected)


@pytest.mark.slow
def test_games_with_mismatched_contexts_compile_and_resume(tmp_path, replayed):
    x, c = torch.randn(50, 2), torch.randint(3, (50, 1)).float()

    def run(steps, compile, **files):
        torch.manual_seed(3)
        gan = GAN(SideBySide(MLP(3 + 1, [4], 2)), standard_normal(3), (2,))
        critic = SideBySide(MLP(2 + 1, [4], 1))
        game = Adversarial(critic, regularizers=[R1(1.0)], mismatched=0.5)
        options = {"batch_size": 16, "seed": 0, "verdict": False, "progress": False}
        history = fit(gan, (x, c), game, steps=steps, compile=compile, **options, **files)
        parts = [p.detach().flatten() for p in (*gan.parameters(), *critic.parameters())]
        return history, torch.cat(parts)

    _, whole = run(6, False, checkpoint=tmp_path / "whole")
    run(3, False, checkpoint=tmp_path / "parts")
    assert torch.equal(run(6, False, checkpoint=tmp_path / "parts", resume=True)[1], whole)
    history, compiled = run(6, True)
    assert not history.compiled.startswith("no"), history.compiled
    torch.testing.assert_close(compiled, whole)


def test_mismatched_contexts_have_to_be_there():
    (gan, critic), x = players(), torch.randn(ROWS, 2).double()
    with pytest.raises(ValueError, match=r"expected contexts for mismatched=0\.5"):
        Adversarial(critic, mismatched=0.5)(gan.model, gan.guide)(x)
    Adversarial(critic)(gan.model, gan.guide)(x)
    gan, critic = conditional_players()
    Adversarial(critic, mismatched=0.5)(gan.model, gan.guide)(x, x[:, :1])


def test_packs_are_rows_side_by_side():
    (gan, critic), x = (
        players(inputs=6),
        torch.randn(ROWS + 1, 2).double(),
    )  # the last row fills no pack of three
    torch.manual_seed(7)
    Adversarial(critic, LeastSquares(), packing=3)(gan.model, gan.guide)(x).backward()
    torch.manual_seed(7)
    fake = gan().expand(torch.Size([ROWS + 1])).rsample()
    pack = lambda rows: torch.stack([rows[3 * i : 3 * i + 3].flatten() for i in range(4)])  # noqa: E731
    loss = ((critic(pack(x)) - 1) ** 2 / 2 + critic(pack(fake.detach())) ** 2 / 2).mean() * (
        ROWS + 1
    )
    assert_same(
        [p.grad for p in critic.parameters()], torch.autograd.grad(loss, list(critic.parameters()))
    )
    loss = (ROWS + 1) * ((critic(pack(fake)) - 1) ** 2 / 2).mean()
    assert_same(
        [p.grad for p in gan.parameters()], torch.autograd.grad(loss, list(gan.parameters()))
    )


def test_packs_of_images_have_more_channels_and_need_enough_rows():
    seen = []

    class Critic(nn.Module):
        def forward(self, x, context):
            seen.append((x.shape, context.shape))
            return x.flatten(1).sum(1)

    adversary = Adversary(Critic(), packing=2)
    adversary(torch.zeros(7, 3, 4, 5), torch.zeros(7, 3, 4, 5), torch.zeros(7, 2))
    assert seen == [((3, 6, 4, 5), (3, 4))] * 2
    with pytest.raises(ValueError, match="at least 2 rows"):
        adversary(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5))


def test_scores_of_patches_count_alike():
    critic = nn.Conv2d(1, 1, 3)
    real, fake = torch.randn(5, 1, 6, 6), torch.randn(5, 1, 6, 6)
    expected = ((critic(real) - 1) ** 2 / 2 + critic(fake) ** 2 / 2).mean()
    torch.testing.assert_close(Adversary(critic, LeastSquares())(real, fake, both=False), expected)
    with pytest.raises(ValueError, match="expected the critic to give"):
        Adversary(nn.Flatten(0))(real, fake)


def test_augmentation_is_seen_through_and_only_in_training():
    critic, real, fake = nn.Linear(2, 1), torch.randn(5, 2), torch.randn(5, 2, requires_grad=True)
    adversary = Adversary(critic, Wasserstein(), augment=lambda x: 3 * x)
    adversary(real, fake).backward()
    torch.testing.assert_close(fake.grad, -3 * critic.weight.detach().expand(5, 2) / 5)
    adversary.eval()
    plain = Adversary(critic, Wasserstein())
    torch.testing.assert_close(adversary(real, fake), plain(real, fake))


def test_validation_without_gradients_gives_the_same_value():
    (gan, critic), x = players(), torch.randn(ROWS, 2).double()
    objective = Adversarial(
        critic, regularizers=[R1(3.0), R2(5.0), GradientPenalty(7.0)], critic_steps=3
    ).eval()
    torch.manual_seed(7)
    value = objective(gan.model, gan.guide)(x)
    with torch.no_grad():
        torch.manual_seed(7)
        torch.testing.assert_close(objective(gan.model, gan.guide)(x), value)
    assert objective.step == 0


P, Q = dist.Normal(0.0, 1.0), dist.Normal(0.7, 1.2)
GRID = torch.linspace(-15, 15, 20001, dtype=torch.float64)
DIVERGENCES = {
    "kullback_leibler": (lambda p, q: p * (p / q).log(), lambda r: 1 + r.log()),
    "reverse_kullback_leibler": (lambda p, q: q * (q / p).log(), lambda r: r.log()),
    "jensen_shannon": (
        lambda p, q: p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log(),
        lambda r: r.log(),
    ),
    "pearson": (lambda p, q: (p - q) ** 2 / q, lambda r: 2 * (r - 1)),
    "squared_hellinger": (lambda p, q: (p.sqrt() - q.sqrt()) ** 2, lambda r: r.log() / 2),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_best_critic_reaches_the_divergence(name):
    """Of two normal distributions, by quadrature.

    The bound at the best scores is the divergence, and no others do better.
    """
    game, (integrand, best) = getattr(FDivergence, name)(), DIVERGENCES[name]
    p, q = P.log_prob(GRID).exp(), Q.log_prob(GRID).exp()
    truth = torch.trapezoid(integrand(p, q), GRID)

    def bound(scores):
        return torch.trapezoid(p * game.statistic(scores) - q * game.conjugate(scores), GRID)

    scores = best(p / q)
    torch.testing.assert_close(bound(scores), truth, rtol=1e-6, atol=1e-9)
    for shift in (0.1 * GRID.sin(), -0.1 * GRID.cos()):
        assert bound(scores + shift) < truth


def test_a_trained_critic_finds_the_divergence():
    """Discrete distributions with a score for every value: the bound converges to KL(p || q)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    real, fake = (
        torch.eye(3).repeat_interleave(torch.tensor([50, 30, 20]), 0),
        torch.eye(3).repeat_interleave(torch.tensor([20, 20, 60]), 0),
    )
    game, critic = FDivergence.kullback_leibler(), nn.Linear(3, 1, bias=False)
    adversary, optimizer = Adversary(critic, game), torch.optim.Adam(critic.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        adversary(real, fake, both=False).backward()
        optimizer.step()
    torch.testing.assert_close(
        game.bound(critic(real), critic(fake)), (p * (p / q).log()).sum(), atol=1e-4, rtol=0
    )


def test_critic_only_steps_leave_the_generator_alone():
    gan, critic = GAN(MLP(2, [4], 2), standard_normal(2)), MLP(2, [4], 1)
    moved = []

    def watch(run):
        now = [
            torch.cat([p.detach().flatten() for p in m.parameters()]).clone() for m in (gan, critic)
        ]
        if watch.before is not None:
            moved.append([not torch.equal(a, b) for a, b in zip(watch.before, now, strict=True)])
        watch.before = now

    watch.before = None
    options = {
        "steps": 10,
        "batch_size": 8,
        "compile": False,
        "seed": 0,
        "callbacks": [watch],
        "verdict": False,
    }
    fit(gan, torch.randn(64, 2), Adversarial(critic, critic_steps=3), **options)
    assert moved == [[step % 3 == 0, True] for step in range(2, 11)]


@pytest.mark.parametrize("critic_steps", [1, 2])
def test_training_resumes_bit_for_bit(tmp_path, critic_steps):
    x = torch.randn(50, 2)

    def run(steps, path, resume=False):
        torch.manual_seed(3)
        gan = GAN(MLP(2, [4], 2), standard_normal(2))
        critic = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 1))
        objective = Adversarial(
            critic, regularizers=[GradientPenalty()], packing=2, critic_steps=critic_steps
        )
        files = {"checkpoint": path, "resume": resume}
        fit(
            gan,
            x,
            objective,
            steps=steps,
            batch_size=16,
            compile=False,
            seed=0,
            ema=0.9,
            verdict=False,
            **files,
        )
        return torch.cat(
            [p.detach().flatten() for p in (*gan.parameters(), *objective.parameters())]
        )

    whole = run(10, tmp_path / "whole")
    run(5, tmp_path / "parts")
    assert torch.equal(run(10, tmp_path / "parts", resume=True), whole)


def test_players_have_learning_rates_of_their_own():
    gan, critic = GAN(MLP(2, [4], 2), standard_normal(2)), MLP(2, [4], 1)
    before = [p.clone() for p in gan.parameters()], [p.clone() for p in critic.parameters()]
    groups = [{"params": gan.parameters(), "lr": 0.0}, {"params": critic.parameters(), "lr": 0.1}]
    optimizer = lambda _: torch.optim.SGD(groups)  # noqa: E731
    fit(
        gan,
        torch.randn(20, 2),
        Adversarial(critic),
        steps=2,
        optimizer=optimizer,
        compile=False,
        verdict=False,
    )
    assert all(torch.equal(a, b) for a, b in zip(before[0], gan.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before[1], critic.parameters(), strict=True))


def test_the_whole_loss_is_one_graph():
    """Recorded once, with both players' gradients, and run on other rows."""
    gan, critic = players(inputs=4)
    objective = Adversarial(
        critic, regularizers=[R1(1.0), R2(2.0), GradientPenalty()], packing=2, augment=Jitter(0.1)
    )
    parts = [*gan.parameters(), *critic.parameters()]

    def step(x):
        with torch.enable_grad():
            loss = objective(gan.model, gan.guide)(x)
            return loss.detach(), torch.autograd.grad(loss, parts)

    with assume_missing(False):
        recording = record_operations(step, torch.zeros(ROWS, 2).double())
    results = []
    for run in (step, recording):
        torch.manual_seed(5)
        value, slopes = run(torch.ones(ROWS, 2).double())
        results.append([value, *slopes])
    assert recording.refusal is None
    assert_same(*results)


@pytest.mark.slow
def test_a_flow_learns_by_a_critic():
    """Any distribution with rsample has fakes to give."""
    loc, scale = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 1.0])
    flow, critic = RealNVP(2, layers=2, hidden=[8]), MLP(2, [16], 1)
    objective, optimizer = Adversarial(critic, regularizers=[R1(0.5)]), adam(1e-2, betas=(0.0, 0.9))
    options = {
        "steps": 300,
        "optimizer": optimizer,
        "ema": 0.98,
        "compile": False,
        "verdict": False,
        "seed": 0,
    }
    fit(flow, loc + scale * torch.randn(400, 2), objective, **options)
    draws = flow().sample((4000,))
    assert (draws.mean(0) - loc).abs().max() < 0.2 and (draws.std(0) / scale - 1).abs().max() < 0.25


def test_a_latent_variable_model_learns_by_its_draws():
    vae = VAE(standard_normal(2), Gaussian(MLP(2, [4], 4)), Gaussian(MLP(2, [4], 4)))
    Adversarial(MLP(2, [4], 1))(vae.model, vae.guide)(torch.randn(8, 2)).backward()
    assert all(p.grad is not None for p in vae.decoder.parameters())
    assert all(p.grad is None for p in vae.encoder.parameters())


def test_distributions_without_gradients_are_refused():
    objective, x = Adversarial(MLP(2, [4], 1)), torch.randn(8, 2)
    for distribution in (GaussianMixture(2, 3), Factorized(2)):
        if not distribution().has_rsample:
            with pytest.raises(TypeError, match="expected a distribution with rsample at site 'x'"):
                objective(distribution.model, distribution.guide)(x)
    nameless = Program(lambda x: None)
    with pytest.raises(TypeError, match="observed site named 'x'"):
        objective(nameless.model, nameless.guide)(x)


def test_incomplete_rows_are_refused():
    gan, x = GAN(MLP(2, [4], 2), standard_normal(2)), torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    with pytest.raises(ValueError, match=r"NaN \(missing\)"):
        Adversarial(MLP(2, [4], 1))(gan.model, gan.guide)(x)


def test_information_is_the_log_probability_of_the_code_of_a_dream():
    """Against the same draws by hand.

    Gradients reach generator and recognizer, as those of one plain loss.
    """
    generator = GAN(SideBySide(MLP(2 + 4, [6], 2)), standard_normal(2), (2,))
    gen = InfoGAN(generator, Codes([3], 1), Codes([3], 1, MLP(2, [6], 5))).double()
    critic, x = MLP(2, [6], 1).double(), torch.randn(ROWS, 2).double()
    parts = list(gen.parameters())
    terms = []
    for weight in (0.0, 2.5):
        torch.manual_seed(7)
        loss = Adversarial(critic, information=weight)(gen.model, gen.guide)(x)
        terms.append(
            (loss, torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True))
        )
    torch.manual_seed(7)
    code = gen.codes().expand(torch.Size([ROWS])).sample()
    log_q = gen.recognize(gen.generator(code).rsample()).log_prob(code).sum()
    expected = torch.autograd.grad(-2.5 * log_q, parts)
    torch.testing.assert_close(terms[1][0] - terms[0][0], -2.5 * log_q)
    assert_same([b - a for a, b in zip(terms[0][1], terms[1][1], strict=True)], expected)


def test_information_may_wait():
    """A weight that rises with the steps, in a graph too.

    The first loss has none of it, the second has half.
    """
    generator = GAN(SideBySide(MLP(2 + 3, [6], 2)), standard_normal(2), (2,))
    gen, critic = InfoGAN(generator, Codes([3]), Codes([3], net=MLP(2, [6], 3))), MLP(2, [6], 1)
    x, losses = torch.randn(ROWS, 2), {}
    for information in (0.0, 2.0, linear_warmup(2, 0.0, 2.0)):
        objective = Adversarial(critic, information=information)
        with assume_missing(False):
            run = (
                record_operations(objective(gen.model, gen.guide), x)
                if callable(information)
                else objective(gen.model, gen.guide)
            )
        objective.step.zero_()  # recording is a run
        for _ in range(2):
            torch.manual_seed(7)
            losses.setdefault(information, []).append(run(x).detach())
        torch.manual_seed(7)
        losses[information].append(objective.eval()(gen.model, gen.guide)(x).detach())
    none, all_, rising = losses.values()
    torch.testing.assert_close(
        torch.stack(rising), torch.stack([none[0], (none[0] + all_[0]) / 2, all_[0]])
    )


def test_information_needs_a_guide():
    gan = GAN(MLP(2, [4], 2), standard_normal(2))
    with pytest.raises(ValueError, match="information"):
        Adversarial(MLP(2, [4], 1), information=1.0)(gan.model, gan.guide)(torch.randn(4, 2))


@pytest.mark.slow
def test_a_code_is_found_without_labels():
    """Two clusters and a category of two levels: the recognizer names them."""
    label = torch.arange(200) % 2
    x = torch.randn(200, 2) * 0.2 + torch.where(label[:, None] > 0, 1.0, -1.0)
    generator = GAN(SideBySide(MLP(2 + 2, [16], 2)), standard_normal(2), (2,))
    gen, critic = InfoGAN(generator, Codes([2]), Codes([2], net=MLP(2, [16], 2))), MLP(2, [16], 1)
    objective = Adversarial(critic, regularizers=[R1(0.1)], information=1.0)
    optimizer = adam(5e-3, betas=(0.0, 0.9))
    fit(
        gen,
        x,
        objective,
        steps=300,
        batch_size=64,
        optimizer=optimizer,
        compile=False,
        verdict=False,
        seed=1,
    )
    right = (gen.recognize(x).probabilities()[0].argmax(-1) == label).float().mean()
    assert max(right, 1 - right) > 0.97


def test_lazy_critics_are_made_before_the_optimizer():
    gan, critic = (
        GAN(MLP(2, [4], 2), standard_normal(2)),
        nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1)),
    )
    fit(gan, torch.randn(20, 2), Adversarial(critic), steps=2, compile=False, verdict=False)
    assert critic[0].weight.shape == (4, 2)


def test_arguments_are_checked():
    for wrong in ({"critic_steps": 0}, {"information": -1.0}, {"packing": 0}, {"mismatched": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            Adversarial(MLP(2, [4], 1), **wrong)
    with pytest.raises(ValueError, match="patience"):
        gan = GAN(MLP(2, [4], 2), standard_normal(2))
        x = torch.randn(20, 2)
        fit(gan, x, Adversarial(MLP(2, [4], 1)), steps=2, validation=x, patience=1)
