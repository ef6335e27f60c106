"""Normalizing flows.

Densities that integrate to 1, determinants, missing values, draws that are scored for nothing.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.core.kinds import density_kind
from probgen.core.module import Fixed
from probgen.distributions.flows.autoregressive_transform import AutoregressiveTransform
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.distributions.flows.ode import Adaptive, Rademacher, RungeKutta
from probgen.distributions.flows.univariate import Affine, MonotonicIntegral, Spline
from probgen.heads import Gaussian
from probgen.models.autoregressive_flow import (
    BPF,
    IAF,
    MAF,
    NAF,
    NSF,
    SOSPF,
    UNAF,
    AutoregressiveFlow,
)
from probgen.models.continuous_flow import FFJORD, ContinuousFlow
from probgen.models.coupling_flow import CouplingFlow, CouplingNSF, RealNVP
from probgen.models.mixture import GaussianMixture
from probgen.models.transformed import Transformed
from probgen.models.vae import VAE
from probgen.nn import MLP
from probgen.objectives.elbo import ELBO
from probgen.train.fit import adam, fit

FLOWS = {
    "MAF": lambda **options: MAF(2, hidden=(16,), **options),
    "IAF": lambda **options: IAF(2, hidden=(16,), **options),
    "NSF": lambda **options: NSF(2, hidden=(16,), **options),
    "NAF": lambda **options: NAF(2, layers=2, hidden=(16,), **options),
    "UNAF": lambda **options: AutoregressiveFlow(
        2, MonotonicIntegral(4, (8,)), layers=1, hidden=(16,), **options
    ),
    "SOSPF": lambda **options: SOSPF(2, layers=2, hidden=(16,), **options),
    "BPF": lambda **options: BPF(2, layers=2, hidden=(16,), **options),
    "RealNVP": lambda **options: RealNVP(2, layers=4, hidden=(16,), **options),
    "CouplingNSF": lambda **options: CouplingNSF(2, layers=4, hidden=(16,), **options),
    "continuous": lambda **options: ContinuousFlow(2, hidden=(16,), **options),
}


def far_from_the_identity(flow):
    """Parameters as large as training makes them."""
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            parameter.mul_(40 if ".last." in name and "layers" in name else 1)
    return flow


def built(name, **options):
    torch.manual_seed(0)
    return far_from_the_identity(FLOWS[name](**options))


def jacobians(f, x):
    """``(B, D) -> (B, D, D)`` by autograd."""
    full = torch.autograd.functional.jacobian(f, x)
    return full[torch.arange(len(x)), :, torch.arange(len(x))]


@pytest.mark.table(quick=8)
@pytest.mark.parametrize("name", FLOWS)
def test_the_density_is_that_of_a_change_of_variables(name):
    distribution = built(name).double()()
    x = torch.randn(6, 2, dtype=torch.double)
    z = distribution.transform(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    expected = normal + torch.linalg.slogdet(jacobians(distribution.transform, x)).logabsdet
    tolerance = 1e-4 if name == "continuous" else 1e-10
    torch.testing.assert_close(distribution.log_prob(x), expected, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_the_density_integrates_to_one_and_depends_on_the_context(name):
    flow = built(name, context=3).double()
    points = 121 if name in {"UNAF", "continuous"} else 241  # splines have finer structure
    axis = torch.linspace(-12, 12, points, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    context = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.double)
    with torch.no_grad():
        log_prob = flow(context).log_prob(grid)
        other = flow(-context).log_prob(grid)
    assert abs(log_prob.exp().sum() * (24 / (points - 1)) ** 2 - 1) < 3e-3
    assert (log_prob - other).abs().max() > 0.1


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", FLOWS)
def test_samples_have_the_density(name):
    """Frequencies of quadrants against integrals of the density."""
    distribution = built(name)()
    axis = torch.linspace(-10, 9.8, 100) + 0.1
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = distribution.log_prob(grid).exp() * 0.2**2
        draws = distribution.sample((10_000,))
    for sign in (torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 1.0]), torch.tensor([1.0, -1.0])):
        frequency = (draws * sign > 0).all(-1).float().mean()
        assert abs(frequency - mass[(grid * sign > 0).all(-1)].sum()) < 0.02


def test_an_affine_flow_of_gaussians_is_gaussian():
    """One layer without hidden units.

    X2 is linear in x1, in the range where inputs are not bent.
    """
    flow = MAF(2, layers=1, hidden=()).double()
    layer = flow.layers[0].network.last
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.5, 0.3, -1.0, -0.2]))
    x = torch.randn(5, 2, dtype=torch.double)
    scale = torch.tensor([-0.3, 0.2]).double().exp()
    expected = (
        dist.Normal(-torch.tensor([0.5, -1.0]).double() * scale, scale).to_event(1).log_prob(x)
    )
    torch.testing.assert_close(flow().log_prob(x), expected)


def test_kinds_are_told():
    assert (
        density_kind(NSF(2)())
        == density_kind(UNAF(2)())
        == density_kind(RealNVP(2)())
        == density_kind(ContinuousFlow(2)())
        == "exact"
    )
    assert density_kind(FFJORD(2)()) == "bound"
    rough = ContinuousFlow(2, solver=RungeKutta(4))
    assert (
        density_kind(rough())
        == density_kind(ContinuousFlow(2, solver=Adaptive(1e-2))())
        == "approximate"
    )
    assert (
        density_kind(Transformed(rough, Gaussianized(torch.ones(2, 3), 0.0, 3.0))())
        == "approximate"
    )
    assert density_kind(MAF(2, base=rough, fast_sampling=True)()) == "approximate"


def test_any_family_is_a_base():
    torch.manual_seed(0)
    flow = MAF(2, layers=1, hidden=(8,), base=GaussianMixture(3, 2))
    x = torch.randn(5, 2)
    distribution = flow()
    z, ladj = distribution.transform.call_and_ladj(x)
    torch.testing.assert_close(distribution.log_prob(x), flow.base().log_prob(z) + ladj)
    assert distribution.sample((4,)).shape == (4, 2)
    with pytest.raises(NotImplementedError, match="has no rsample"):
        distribution.rsample()
    nested = NSF(2, base=far_from_the_identity(MAF(2, context=3)), context=3)
    assert nested(torch.zeros(5, 3)).log_prob(x).shape == (5,)


class Counted(nn.Module):
    """A network that counts its passes."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0
        self.orders, self.steps, self.turns = net.orders, net.steps, net.turns

    def forward(self, *arguments):
        self.passes += 1
        return self.net(*arguments)


def test_scoring_the_last_draw_costs_nothing_and_changes_nothing():
    torch.manual_seed(0)
    flow = far_from_the_identity(IAF(3, layers=1, hidden=(16,))).double()
    layer = flow.layers[0]
    layer.network = network = Counted(layer.network)
    distribution = flow().expand((7,))
    x = distribution.rsample()
    free = distribution.log_prob(x)
    assert network.passes == 1
    fresh = flow().log_prob(x.clone())
    torch.testing.assert_close(free, fresh)
    parameters = list(network.net.parameters())
    expected = torch.autograd.grad(fresh.sum(), parameters, retain_graph=True)
    for got, true in zip(torch.autograd.grad(free.sum(), parameters), expected, strict=True):
        torch.testing.assert_close(got, true)


def test_only_the_last_draw_as_it_was_is_remembered():
    torch.manual_seed(0)
    flow = far_from_the_identity(IAF(3, hidden=(16,)))
    distribution = flow()
    x = distribution.rsample((5,))
    distribution.log_prob(x)
    with torch.no_grad():
        x += 1.0
    torch.testing.assert_close(distribution.log_prob(x), flow().log_prob(x.clone()))
    with torch.no_grad():
        x = distribution.rsample((5,))
    assert distribution.log_prob(x).requires_grad  # drawn without gradients, scored with them
    with torch.inference_mode():
        x = distribution.rsample((5,))
        torch.testing.assert_close(distribution.log_prob(x), flow().log_prob(x))


def test_draws_and_scores_together():
    distribution = built("IAF")()
    x, log_prob = distribution.rsample_and_log_prob((50,))
    torch.testing.assert_close(log_prob, built("IAF")().log_prob(x.clone()), atol=1e-5, rtol=1e-5)
    assert x.requires_grad and log_prob.requires_grad


def test_wrong_events_are_refused_with_advice():
    distribution = MAF(3)()
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 3\), got \(5, 2\)"):
        distribution.log_prob(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"got NaN.*impute"):
        distribution.log_prob(torch.tensor([0.0, torch.nan, 0.0]))
    for flow in (MAF(3, context=2), CouplingNSF(3, context=2), ContinuousFlow(3, context=2)):
        with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 2\)"):
            flow(None).log_prob(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="expected one order per layer"):
        MAF(3, orders=[torch.arange(3)])
    with pytest.raises(ValueError, match=r"a permutation of 0, \.\.\., 2, got \[0, 1, 1\]"):
        MAF(3, orders=[torch.tensor([0, 1, 1])], layers=1)
    with pytest.raises(ValueError, match="expected dims >= 2"):
        RealNVP(1)
    with pytest.raises(ValueError, match="domain of the flow"):
        histogram = Gaussianized(torch.ones(1, 4), 0.0, 4.0)
        distribution = Transformed(Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0), histogram)()
        distribution._validate_args = True
        distribution.log_prob(torch.tensor([5.0]))


def test_importing_flows_leaves_validation_as_it_was():
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="constraint"):
        dist.Normal(torch.zeros(()), -torch.ones(()))


def test_a_histogram_by_itself_is_the_model_of_its_bins():
    rows = torch.tensor([[0.2, 3.5], [0.9, 1.1], [2.0, 1.2]])
    histogram = Gaussianized.of(rows, 0.0, 4.0, bins=4, smoothing=0.5)
    gen = Transformed(Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0), histogram)
    counts = torch.tensor([[2.5, 0.5, 1.5, 0.5], [0.5, 2.5, 0.5, 1.5]])
    x = torch.tensor([[0.5, 3.1], [2.5, 1.9], [3.9, 0.1]])
    expected = (counts / counts.sum(-1, keepdim=True)).log()[torch.arange(2), x.long()].sum(-1)
    torch.testing.assert_close(gen().log_prob(x), expected, atol=1e-5, rtol=1e-5)
    draws = gen().sample((20_000,)).long()
    for value in range(4):
        share = (draws == value).float().mean(0)
        torch.testing.assert_close(share, counts[:, value] / counts.sum(-1), atol=0.02, rtol=0)


def test_estimates_of_the_trace_are_right_on_average():
    torch.manual_seed(0)
    flow = ContinuousFlow(3, hidden=(16,), solver=RungeKutta(4)).double()
    x = torch.randn(4, 1, 3, dtype=torch.double).expand(4, 400, 3).requires_grad_()
    exact = flow().log_prob(x[:, 0]).detach()
    flow.probes = Rademacher()
    draws = flow().log_prob(x).detach().T
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / 400**0.5 + 1e-12).all()
    assert draws.std(0).max() > 1e-4


@pytest.mark.slow
def test_solvers_agree_on_values_and_gradients():
    torch.manual_seed(0)
    flow, context = (
        ContinuousFlow(2, hidden=(8,), context=1).double(),
        torch.randn(3, 1, dtype=torch.double),
    )
    x = torch.randn(3, 2, dtype=torch.double)
    results = []
    for solver in (RungeKutta(32), Adaptive(1e-8, 1e-8)):
        flow.solver = solver
        given = context.clone().requires_grad_()
        value = flow(given).log_prob(x).sum()
        results.append([value, *torch.autograd.grad(value, [given, *flow.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        next(flow.parameters()).mul_(torch.nan)
    with pytest.raises(FloatingPointError, match="expected finite slopes"):
        flow(context).log_prob(x)


@pytest.mark.slow
def test_a_flow_learns_a_density_that_is_known():
    """A wave with noise, whose entropy is known."""
    torch.manual_seed(0)
    first = torch.randn(2, 1000)
    x, test = torch.stack((first, torch.sin(2 * first) + 0.3 * torch.randn(2, 1000)), -1)
    entropy = 2 * (0.5 + 0.5 * torch.log(torch.tensor(2 * torch.pi))) + torch.log(torch.tensor(0.3))
    flow = NSF(2, layers=2, hidden=(32,))
    fit(
        flow,
        x,
        steps=200,
        optimizer=adam(1e-2),
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    with torch.no_grad():
        assert -0.1 < -flow().log_prob(test).mean() - entropy < 0.2


@pytest.mark.slow
def test_compiled_steps_agree(replayed):
    torch.manual_seed(0)
    x, losses = torch.randn(64, 3), []
    for choice in (False, True):
        torch.manual_seed(1)
        flow = MAF(3, layers=1, hidden=(8,))
        options = {"batch_size": 32, "progress": False, "verdict": False, "seed": 0}
        losses.append(torch.as_tensor(fit(flow, x, steps=8, compile=choice, **options).loss))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)


def test_a_flow_as_encoder_and_as_prior():
    """The bound is log p(x) on average where the encoder is the posterior.

    A flow can be it for a linear model.
    """
    torch.manual_seed(0)
    x = torch.randn(200, 2) * 1.5
    decoder, encoder = Gaussian(nn.Linear(1, 4)), IAF(1, layers=1, hidden=(), context=2)
    vae = VAE(AutoregressiveFlow(1, Affine(), layers=1), decoder, encoder)
    fit(vae, x, ELBO(), steps=20, compile=False, progress=False, verdict=False, seed=0)
    assert vae.encode(x).rsample().shape == (200, 1)
    coupled = VAE(
        CouplingFlow(2, Spline(4)), Gaussian(MLP(2, [4], 4)), MAF(2, context=2, fast_sampling=True)
    )
    fit(coupled, x, ELBO(), steps=3, compile=False, progress=False, verdict=False, seed=0)


def test_distributions_of_other_transforms():
    """Torch's own transforms, elementwise ones on events of more dims included."""
    distribution = Pushforward(
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), torch.distributions.ExpTransform().inv
    )
    x = torch.rand(5, 2, 3) + 0.5
    torch.testing.assert_close(
        distribution.log_prob(x), dist.LogNormal(0.0, 1.0).log_prob(x).flatten(1).sum(-1)
    )
    assert distribution.support.event_dim == 2 and distribution.rsample((4,)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="expected x of shape"):
        distribution.log_prob(torch.ones(3))
    assert isinstance(MAF(2).layers[0](), AutoregressiveTransform)
