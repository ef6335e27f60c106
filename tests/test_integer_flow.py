"""Integer flows: bijections by enumeration, masses that sum to 1.

A distribution known in closed form.
"""

import itertools
from functools import partial

import pytest
import torch
from torch.distributions.transforms import SigmoidTransform

import probgen as pg
from probgen.distributions.flows.integer_logistic import IntegerLogisticMixture
from probgen.models.integer_flow import IntegerFlow
from probgen.nn.invertible import CouplingNet, IntegerCoupling

SMALL = partial(CouplingNet, hidden=8)


def flow(steps: int = 2, narrow: float = 0.0, **options) -> IntegerFlow:
    gen = IntegerFlow(
        (1, 2, 2), levels=4, scales=1, flow_steps=steps, components=2, network=SMALL, **options
    )
    with torch.no_grad():
        for name, parameter in gen.named_parameters():
            if "offset" not in name or "network" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        gen.scales[0].offset[-8:] -= narrow  # log scales of 2 components of 4 latents
    return gen


def grid(low: int, high: int) -> torch.Tensor:
    """All images of four pixels."""
    levels = torch.arange(low, high + 1.0)
    return torch.cartesian_prod(*[levels] * 4).view(-1, 1, 2, 2)


def test_encoding_is_a_bijection_of_integers():
    torch.manual_seed(0)
    gen, x = flow(steps=4), grid(-2, 3)
    _, latents, _ = gen.scales[0].encode(x, None)
    assert torch.equal(latents, latents.round())
    assert len(latents.flatten(1).unique(dim=0)) == len(x)
    assert not torch.equal(
        latents.flatten(1).sort(-1).values, x.flatten(1).sort(-1).values
    )  # more than a permutation
    assert torch.equal(gen.scales[0].decode(latents[:, :0], latents, None), x)


def test_masses_sum_to_one():
    torch.manual_seed(1)
    gen = flow(narrow=1.5)
    total = gen().log_prob(grid(-8, 11)).double().exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), atol=1e-4, rtol=0)


def test_samples_have_the_masses_that_are_scored():
    torch.manual_seed(2)
    gen = flow(narrow=1.5)
    draws, counts = gen().sample((20_000,)).unique(dim=0, return_counts=True)
    often = counts > 200
    masses, frequencies = gen().log_prob(draws[often]).exp().detach(), counts[often] / 20_000
    assert often.sum() > 5
    assert ((masses - frequencies).abs() < 5 * (masses / 20_000).sqrt()).all()


def test_gradients_pass_the_rounding():
    torch.manual_seed(3)
    coupling = IntegerCoupling((4, 2, 2), SMALL, half=3.0)
    x = torch.randint(5, (6, 4, 2, 2)).float()
    y, _ = coupling(x)
    y.sum().backward()
    assert torch.equal(y, y.round())
    assert coupling.network.last.bias.grad.abs().min() > 0


def test_mixture_of_logistic_distributions_is_a_difference_of_distribution_functions():
    torch.manual_seed(4)
    logits, loc, log_scale = torch.randn(3, 7, 2, dtype=torch.float64).unbind(0)
    x = torch.arange(-3.0, 4.0, dtype=torch.float64)
    cdf = lambda t: SigmoidTransform()((t[:, None] - loc) / log_scale.exp())  # noqa: E731
    truth = (logits.softmax(-1) * (cdf(x + 0.5) - cdf(x - 0.5))).sum(-1)
    torch.testing.assert_close(
        IntegerLogisticMixture(logits, loc, log_scale).log_prob(x).exp(), truth
    )


def test_far_tails_are_finite_in_single_precision():
    loc = torch.zeros(1, requires_grad=True)
    value = IntegerLogisticMixture(torch.zeros(1), loc, torch.full((1,), -3.0)).log_prob(
        torch.tensor([-500.0, 500.0])
    )
    value.sum().backward()
    scale = torch.tensor(-3.0).exp()
    torch.testing.assert_close(
        value, (-499.5 / scale + torch.log1p(-torch.exp(-1 / scale))).expand(2)
    )
    assert loc.grad.isfinite().all()


@pytest.mark.slow
def test_dependent_integers_are_learned():
    torch.manual_seed(5)
    first = torch.randint(8, (3000, 1)).float()
    steps = torch.randint(2, (3000, 3)).float()
    x = torch.cat((first, first + steps), 1).view(-1, 1, 2, 2)
    truth = -torch.tensor([8.0, 2.0, 2.0, 2.0]).log().sum()
    gen = IntegerFlow((1, 2, 2), levels=9, scales=1, flow_steps=3, network=SMALL)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-2)  # noqa: E731
    pg.fit(gen, x, steps=250, batch_size=300, optimizer=adam, compile=False, seed=0)
    every = torch.tensor(
        [
            (a, a + b, a + c, a + d)
            for a in range(8)
            for b, c, d in itertools.product((0, 1), repeat=3)
        ]
    )
    reached = gen().log_prob(every.float().view(-1, 1, 2, 2)).mean()
    independent = 4 * truth.new_tensor(1 / 8).log()
    assert independent + 1.5 < reached <= truth


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="levels >= 2"):
        IntegerFlow((1, 4, 4), levels=1)
    with pytest.raises(ValueError, match="NaN"):
        flow()().log_prob(torch.full((1, 1, 2, 2), torch.nan))
