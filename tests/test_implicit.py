"""Implicit distributions, the networks that make them, codes and augmentations."""

import pyro.distributions as dist
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.distributions import constraints
from torch.nn.utils.parametrizations import spectral_norm

from probgen.core.module import standard_normal
from probgen.distributions.codes import CodeDistribution
from probgen.distributions.implicit import Implicit
from probgen.infer.impute import impute
from probgen.models.gan import GAN
from probgen.models.info_gan import Codes, InfoGAN
from probgen.nn import MLP
from probgen.nn.augment import Color, Cutout, Jitter, RandomAffine, Thickness, Translation
from probgen.nn.dcgan import DCGANCritic, DCGANGenerator
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.elbo import ELBO
from probgen.sampling import sample
from probgen.scoring import log_likelihood


def test_draws_are_the_generator_of_the_noise():
    net, c = nn.Linear(2 + 1, 3), torch.randn(4, 1)
    distribution = Implicit(
        SideBySide(net), dist.Normal(torch.zeros(2), 1.0).to_event(1), (3,), context=c
    )
    assert distribution.batch_shape == (4,) and distribution.event_shape == (3,)
    torch.manual_seed(1)
    x = distribution.rsample((5,))
    torch.manual_seed(1)
    z = torch.randn(5, 4, 2)
    torch.testing.assert_close(x, net(torch.cat([z, c.expand(5, 4, 1)], -1)))
    assert x.requires_grad and not distribution.sample((5,)).requires_grad
    wide = distribution.expand(torch.Size([6, 4]))
    assert wide.sample((2,)).shape == (2, 6, 4, 3)


def test_noise_without_gradients_still_gives_the_generator_some():
    distribution = Implicit(
        nn.Linear(2, 3), dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), (3,)
    )
    assert distribution.rsample((5,)).requires_grad


def test_every_question_for_a_density_says_what_to_do():
    gan, x = GAN(MLP(2, [4], 3), standard_normal(2)), torch.randn(4, 3)
    for ask in (lambda: gan().log_prob(x), lambda: log_likelihood(gan, x)):
        with pytest.raises(
            NotImplementedError, match=r"Adversarial\(critic\) or Discrepancy\(MMD\(\)\)"
        ):
            ask()
    with pytest.raises(ValueError, match=r"got implicit \(Implicit\); use Adversarial\(critic\)"):
        ELBO()(gan.model, gan.guide)(x)
    with pytest.raises(NotImplementedError, match="Missing"):
        impute(gan, torch.tensor([[0.0, torch.nan, 0.0]]))


def test_an_info_gan_refuses_likewise():
    generator = GAN(SideBySide(MLP(2 + 3, [4], 3)), standard_normal(2), (3,))
    gen, x = InfoGAN(generator, Codes([3]), Codes([3], net=MLP(3, [4], 3))), torch.randn(4, 3)
    for ask in (lambda: gen().log_prob(x), lambda: log_likelihood(gen, x)):
        with pytest.raises(NotImplementedError, match="implicit"):
            ask()
    with pytest.raises(ValueError, match="got implicit"):
        ELBO()(gen.model, gen.guide)(x)
    with pytest.raises(ValueError, match="expected no context"):
        gen.model(x, torch.zeros(4, 1))
    assert sample(gen, 5).shape == (5, 3) and gen().density_kind == "implicit"


def test_event_shapes_are_seen_or_asked_for():
    net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Unflatten(-1, (2, 3)))
    state = torch.get_rng_state()
    gan = GAN(net, standard_normal(2), support=constraints.interval(-1, 1))
    assert torch.equal(state, torch.get_rng_state()) and net.training
    assert gan.event_shape == (2, 3) and gan().support.event_dim == 2
    assert gan.eval()().expand(torch.Size([5])).sample().shape == (5, 2, 3)
    with pytest.raises(ValueError, match="event_shape="):
        GAN(SideBySide(MLP(5, [4], 2)), standard_normal(2))
    with pytest.raises(ValueError, match="correct the event shape"):
        GAN(MLP(2, [4], 2), standard_normal(2), (3,))().sample()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 8), (2, 7, 3)])
@pytest.mark.parametrize("wrap", [None, spectral_norm])
def test_dcgan_makes_and_judges_images_of_any_size(shape, wrap):
    options = {} if wrap is None else {"wrap": wrap}
    generator = DCGANGenerator(4, shape, hidden=(6, 5), **options)
    critic = DCGANCritic(shape, hidden=(5, 6), norm=nn.BatchNorm2d, context=3, **options)
    images = generator(torch.randn(2, 3, 4))
    assert images.shape == (2, 3, *shape) and images.abs().max() <= 1
    scores = critic(images, torch.randn(2, 3, 3))
    assert scores.shape == (2, 3)
    scores.sum().backward()
    assert all(p.grad is not None for p in (*generator.parameters(), *critic.parameters()))


def test_every_pixel_is_seen_and_made():
    """The critic depends on every pixel, and every pixel on the noise, where sizes are odd too."""
    shape = (1, 7, 5)
    generator, critic = (
        DCGANGenerator(4, shape, hidden=(8, 8), norm=None),
        DCGANCritic(shape, hidden=(8, 8)),
    )
    x = torch.randn(4, *shape, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    assert (slope.abs().sum(0) > 0).all()
    assert (generator(torch.randn(8, 4)).std(0) > 0).all()


def test_leading_dims_do_not_matter():
    generator, critic = (
        DCGANGenerator(4, (1, 6, 6), hidden=(4,)).eval(),
        DCGANCritic((1, 6, 6), hidden=(4,)),
    )
    z = torch.randn(2, 3, 4)
    torch.testing.assert_close(generator(z)[1], generator(z[1]))
    torch.testing.assert_close(critic(generator(z))[1], critic(generator(z[1])))
    torch.testing.assert_close(generator(z[0, 0]), generator(z[0, :1])[0])


def test_spectral_norm_bounds_every_layer():
    critic = DCGANCritic((1, 8, 8), hidden=(4, 4), wrap=spectral_norm)
    for _ in range(50):
        critic(torch.randn(2, 1, 8, 8))
    layers = [m for m in critic.eval().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in layers]
    assert len(norms) == 3 and all(abs(norm - 1) < 0.01 for norm in norms)


def test_projection_is_an_inner_product():
    critic = DCGANCritic((1, 6, 6), hidden=(4,), context=2)
    x, c = torch.randn(3, 1, 6, 6), torch.randn(3, 2)
    h = critic.features(x)
    expected = (critic.last.weight + c @ critic.projection.weight.T).mul(h).sum(
        -1
    ) + critic.last.bias
    torch.testing.assert_close(critic(x, c), expected)


def test_wrong_shapes_are_refused():
    generator, critic = (
        DCGANGenerator(4, (1, 6, 6), hidden=(4,)),
        DCGANCritic((1, 6, 6), hidden=(4,), context=2),
    )
    with pytest.raises(ValueError, match="inputs=3"):
        generator(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected images of shape"):
        critic(torch.zeros(2, 1, 5, 6), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"expected a context of shape \(2, 2\), got None"):
        critic(torch.zeros(2, 1, 6, 6))
    with pytest.raises(ValueError, match="fewer stages"):
        DCGANCritic((1, 2, 2), hidden=(4, 4, 4))
    with pytest.raises(ValueError, match=r"expected a context of shape \(2, C\), got \(3, 1\)"):
        SideBySide(nn.Linear(3, 1))(torch.zeros(2, 2), torch.zeros(3, 1))


def test_side_by_side_of_images():
    net = SideBySide(nn.Identity(), event_ndim=3)
    x, c = torch.randn(2, 1, 3, 4), torch.randn(2, 5)
    both = net(x, c)
    assert both.shape == (2, 6, 3, 4) and (both[:, 1:] == c[..., None, None]).all()
    torch.testing.assert_close(net(x, x), torch.cat([x, x], 1))
    torch.testing.assert_close(net(x), x)


def test_code_distributions_are_products():
    logits, loc, scale = (
        [torch.randn(4, 3), torch.randn(4, 2)],
        torch.randn(4, 1),
        torch.rand(4, 1) + 0.5,
    )
    distribution = CodeDistribution(logits, loc, scale)
    code = distribution.sample((7,))
    parts = [dist.OneHotCategorical(logits=block) for block in logits]
    expected = sum(
        part.log_prob(block)
        for part, block in zip(parts, code[..., :5].split([3, 2], -1), strict=True)
    )
    expected = expected + dist.Normal(loc, scale).to_event(1).log_prob(code[..., 5:])
    torch.testing.assert_close(distribution.log_prob(code), expected)
    assert (
        distribution.support.check(code).all() and not distribution.support.check(code + 0.5).any()
    )
    draws = distribution.sample((20000,))
    assert (draws.mean(0) - distribution.mean).abs().max() < 0.05
    with pytest.raises(ValueError, match="missing"):
        distribution.log_prob(code * torch.nan)


def test_a_network_of_zeros_says_what_the_prior_says():
    prior, net = Codes([3], 2), MLP(2, [4], Codes.width([3], 2))
    for p in net.parameters():
        nn.init.zeros_(p)
    code = prior().sample((5,))
    torch.testing.assert_close(
        Codes([3], 2, net)(torch.randn(5, 2)).log_prob(code), prior().log_prob(code)
    )
    with pytest.raises(ValueError, match="7 raw values"):
        Codes([3], 2, MLP(2, [4], 5))(torch.randn(5, 2))
    with pytest.raises(ValueError, match="got neither"):
        Codes()


def test_augmentations_do_what_they_say():
    x = torch.rand(200, 3, 8, 6) + 1
    moved = Translation(0.25, fill=0.0)(x)
    best = torch.stack(
        [
            (moved - torch.roll(x, (i, j), (2, 3))).abs().mul(moved > 0).sum((1, 2, 3))
            for i in range(-2, 3)
            for j in range(-2, 3)
        ]
    )
    assert (best.min(0).values == 0).all() and (best.argmin(0).unique().numel() == 25)
    cut = Cutout(0.5, fill=-1.0)(x) == -1
    assert (cut == cut[:, :1]).all() and cut[:, 0].sum((1, 2)).max() == 4 * 3
    colored = Color()(x)
    assert (colored.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() < 0.5
    torch.testing.assert_close(Color(0.0)(x), x)
    assert abs((Jitter(0.3)(x) - x).std() - 0.3) < 0.01


def test_affine_maps_move_what_is_inside():
    """A turn by exactly a quarter, and a shift by exactly a pixel, against rolls and rot90."""
    x = torch.zeros(300, 1, 9, 9)
    x[:, 0, 4, 6] = 1.0
    turned = RandomAffine(90.0, 0.0, 0.0, 0.0)(x)
    coordinates = torch.arange(9.0) - 4
    center = torch.stack(
        [(turned * coordinates[:, None]).sum((1, 2, 3)), (turned * coordinates).sum((1, 2, 3))], 1
    )
    assert ((center.norm(dim=1) - 2).abs() < 0.3).all() and (center[:, 1] > -0.2).all()
    assert (center[:, 0] > 1).any() and (center[:, 0] < -1).any()
    moved = RandomAffine(0.0, 0.0, 0.0, 1 / 9, fill=0.0)(x)
    assert (moved.sum((1, 2, 3)) - 1).abs().max() < 1e-5 and (
        moved[:, 0, 3:6, 5:8].sum((1, 2)) > 1 - 1e-5
    ).all()


def test_strokes_go_a_share_of_the_way_to_their_dilation_or_erosion():
    x = torch.rand(40, 1, 7, 6)
    moves = []
    for filtered in (ndimage.grey_dilation, ndimage.grey_erosion):
        extreme = torch.as_tensor(filtered(x.numpy(), size=(1, 1, 3, 3), mode="nearest"))
        moves.append((extreme - x).flatten(1))
    change = (Thickness(0.8)(x) - x).flatten(1)
    towards = torch.stack(
        [(change * move).sum(1) / move.square().sum(1) for move in moves]
    )  # by least squares
    share, which = towards.max(0)
    move = torch.where(which[:, None] == 0, *moves)
    torch.testing.assert_close(change, share[:, None] * move, atol=1e-5, rtol=0)
    assert which.unique().tolist() == [0, 1] and 0.7 < share.max() <= 0.8
    with pytest.raises(ValueError, match=r"\[0, 1\], got 2"):
        Thickness(2.0)


def test_augmentations_have_gradients():
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    augment = nn.Sequential(
        Color(), RandomAffine(), Translation(), Cutout(), Thickness(), Jitter(0.1)
    )
    (slope,) = torch.autograd.grad(augment(x).sum(), x)
    assert slope.isfinite().all() and (slope != 0).any()
