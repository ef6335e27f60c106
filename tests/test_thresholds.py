"""What a denoiser expects stays where data are, in sampling alone."""

import pytest
import torch

import probgen as pg
from probgen.distributions.diffusion.thresholds import Limit


def ring(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (count,), generator=random) * torch.pi / 4
    return 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(
        count, 2, generator=random
    )


def trained(prediction, threshold, x):
    torch.manual_seed(0)
    gen = pg.Diffusion(pg.nn.TimeMLP(2, [64, 64]), (2,), prediction=prediction, threshold=threshold)
    pg.fit(
        gen,
        x,
        pg.objectives.Denoising(),
        steps=800,
        batch_size=256,
        seed=0,
        verdict=False,
        progress=False,
        compile=False,
    )
    return gen.eval()


@pytest.fixture(scope="module")
def models():
    x = ring(2000, 0)
    return {
        "velocity": trained(pg.diffusion.Velocity(), pg.diffusion.StaticThreshold(), x),
        "noise": trained(pg.diffusion.Epsilon(), pg.diffusion.StaticThreshold(), x),
        "noise, unbounded": trained(pg.diffusion.Epsilon(), None, x),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [pg.diffusion.DDIM(20), pg.diffusion.DPMSolver(20), pg.diffusion.Heun(20)],
    ids=lambda s: type(s).__name__,
)
def test_a_network_that_tells_the_noise_is_as_good_as_one_that_tells_the_velocity(models, sampler):
    test, away = ring(600, 1), {}
    for name, gen in models.items():
        torch.manual_seed(1)
        drawn = gen().using(sampler).sample((600,))
        away[name] = pg.evaluate.wasserstein_distance(drawn, test, splits=0).value
        if name != "noise, unbounded":
            assert drawn.abs().max() < 2.2
    assert (
        away["noise"] < away["velocity"] + 0.2
    )  # two samples of the distribution are 0.3 apart, give or take 0.1
    assert away["noise"] < 0.75 * away["noise, unbounded"]


@pytest.mark.slow
def test_velocities_are_left_as_they_are(models):
    gen = models["velocity"]
    draws = []
    for threshold in (gen.limit.threshold, None):
        gen.limit.threshold = threshold
        draws.append(pg.sample(gen, 200, seed=0))
    gen.limit.threshold = pg.diffusion.StaticThreshold()
    assert (draws[0] - draws[1]).abs().max() < 0.1


@pytest.mark.slow
def test_scores_and_codes_do_not_know_of_thresholds(models):
    gen, x = models["noise"], ring(50, 2)
    numbers = []
    for threshold in (pg.diffusion.StaticThreshold(-0.1, 0.1), None):
        gen.limit.threshold = threshold
        torch.manual_seed(0)
        numbers.append((gen().log_prob(x), gen().encode(x), gen().decode(x)))
    gen.limit.threshold = pg.diffusion.StaticThreshold()
    for one, other in zip(*numbers, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_the_range_is_that_of_the_training_data_and_is_saved(models):
    gen, x = models["noise"], ring(2000, 0)
    assert gen.limit.low == x.min() and gen.limit.high == x.max()
    twin = pg.Diffusion(pg.nn.TimeMLP(2, [64, 64]), (2,), prediction=pg.diffusion.Epsilon())
    twin.load_state_dict(gen.state_dict())
    assert twin.limit.low == x.min()
    gen().denoising_loss(10 * x[:3])  # in eval mode nothing is learned
    assert gen.limit.high == x.max()


def test_before_training_there_is_no_bound():
    x = torch.tensor([[-1e6, 3.0]])
    for threshold in (pg.diffusion.StaticThreshold(), pg.diffusion.DynamicThreshold(), None):
        assert torch.equal(Limit(threshold)(x, 1), x)


def test_static_thresholds_clip_and_dynamic_ones_draw_together():
    limit = Limit(None)
    limit.show(torch.tensor([-1.0, 1.0]))
    x = torch.tensor([[[0.5, -3.0]], [[0.5, -0.5]]])  # two images (1, 2)
    limit.threshold = pg.diffusion.StaticThreshold()
    assert torch.equal(limit(x, 2), x.clamp(-1, 1))
    limit.threshold = pg.diffusion.DynamicThreshold(1.0)
    torch.testing.assert_close(limit(x, 2), torch.stack([x[0] / 3, x[1]]))
    limit.threshold = pg.diffusion.DynamicThreshold(1.0, -6.0, 6.0)
    torch.testing.assert_close(limit(x, 2), x)


def test_a_share_of_all_is_asked_of_a_quantile():
    with pytest.raises(ValueError, match="quantile"):
        pg.diffusion.DynamicThreshold(0.0)
