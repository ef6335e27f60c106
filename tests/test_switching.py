"""Markov-switching autoregressions against enumeration of all paths and against statsmodels."""

import itertools
import math

import pytest
import torch

from probgen.infer.forecast import forecast_series
from probgen.infer.maximum_likelihood import maximum_likelihood
from probgen.models.switching import SwitchingAutoregression


def made(states=2, order=2, length=4, dims=1, seed=0, **options) -> SwitchingAutoregression:
    """With parameters at random, in double precision."""
    torch.manual_seed(seed)
    gen = SwitchingAutoregression(states, order, length, dims=dims, **options).double()
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape))
        gen.center.copy_(torch.randn(dims))
        gen.unit.copy_(0.5 + torch.rand(dims))
    return gen


def path_terms(gen, x, paths):
    """Log densities of a series ``(T, D)`` with each path ``(P, p + T)`` of regimes."""
    p, system = gen.order, gen().system
    total = gen.stationary[paths[:, 0]].log()
    total = total + gen.transition_matrix.log()[paths[:, :-1], paths[:, 1:]].sum(-1)
    for t, value in enumerate(x):
        if t < p:
            start = torch.distributions.Normal(system.start_loc, system.start_scale)
            total = total + start.log_prob(value).sum()
            continue
        now = paths[:, t + p]
        loc = gen.means[now]
        for j in range(1, p + 1):
            level = gen.means[paths[:, t + p - j]] if gen.mean_adjusted else 0 * loc
            loc = loc + torch.einsum("nde,ne->nd", gen.coefs[now, j - 1], x[t - j] - level)
        noise = torch.distributions.MultivariateNormal(loc, gen.covariances[now])
        total = total + noise.log_prob(value)
    return total.detach()


CASES = {
    "Hamilton's": {},
    "all switches": {"switching_coefs": True, "switching_noise": True},
    "intercepts": {"mean_adjusted": False, "switching_noise": True},
    "vectors": {"dims": 2, "order": 1, "switching_coefs": True},
    "three regimes": {"states": 3, "order": 1},
    "one regime": {"states": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_density_regimes_and_ends_are_those_of_all_paths(name):
    gen = made(**CASES[name])
    x = torch.randn(4, gen.dims).double()
    paths = torch.tensor(list(itertools.product(range(gen.states), repeat=4 + gen.order)))
    terms = path_terms(gen, x, paths)
    torch.testing.assert_close(gen().log_prob(x), terms.logsumexp(0))
    shares = terms.softmax(0)
    now = paths[:, gen.order :]
    each = torch.nn.functional.one_hot(now, gen.states).double()
    torch.testing.assert_close(gen().smooth(x), torch.einsum("n,ntk->tk", shares, each))
    cut = x.clone()
    cut[3:] = torch.nan
    torch.testing.assert_close(gen().log_prob(cut), gen().log_prob(x[:3]))
    ahead = gen().forecast(x[:3], 1).log_prob(x[3:])
    torch.testing.assert_close(gen().log_prob(cut) + ahead, gen().log_prob(x))


def test_both_ways_of_the_passes_agree_with_gradients(monkeypatch):
    from probgen.distributions.sequences import switching

    found = []
    for few in (0, 10**9):
        monkeypatch.setattr(switching, "_FEW", few)
        gen = made(length=9, switching_noise=True)
        value = gen().log_prob(torch.linspace(-1, 2, 18).double().reshape(2, 9, 1)).sum()
        found.append(
            [value, *torch.autograd.grad(value, list(gen.parameters()), allow_unused=True)]
        )
    for one, other in zip(*found, strict=True):
        assert one is other or torch.allclose(one, other)


def test_one_series_is_fitted_as_well_as_by_statsmodels():
    regression = pytest.importorskip("statsmodels.tsa.regime_switching.markov_autoregression")
    torch.manual_seed(0)
    x = 2.0 * (torch.arange(80) // 20 % 2) + torch.randn(80)
    gen = SwitchingAutoregression(2, 1, 80).double()
    found = maximum_likelihood(gen, x.double()[None, :, None])
    peer = regression.MarkovAutoregression(x.double().numpy(), 2, 1, switching_ar=False)
    own = gen().log_prob_after_start(x.double()[:, None]).item()
    assert found.converged and own > peer.fit(disp=False).llf - 1e-3


def test_regimes_that_never_end_are_equally_likely_at_the_start():
    torch.manual_seed(0)
    gen = SwitchingAutoregression(2, 1, length=6)
    with torch.no_grad():
        gen.transition.copy_(400 * torch.eye(2) - 200)  # leaving one underflows
    torch.testing.assert_close(gen.stationary, torch.tensor([0.5, 0.5]))
    x = torch.randn(3, 6, 1)
    own = []
    for k in range(2):
        alone = SwitchingAutoregression(1, 1, length=6)
        with torch.no_grad():
            alone.level.copy_(gen.level[k : k + 1])
        own.append(alone().log_prob(x))
    expected = torch.stack(own).logsumexp(0) - math.log(2)
    found = gen().log_prob(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    found.sum().backward()
    assert gen.transition.grad.isfinite().all()


def test_draws_have_the_moments_of_the_regimes():
    gen = SwitchingAutoregression(2, 1, 40)
    with torch.no_grad():
        gen.level.copy_(torch.tensor([[-2.0], [3.0]]))
        gen.memory.fill_(0.5)
        gen.log_scale.fill_(math.log(0.7))
        gen.transition.copy_(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log())
    torch.manual_seed(0)
    x, regimes = gen().sample_with_states((6000,))
    last, first = x[:, -1, 0], x[:, -2, 0]
    level = gen.means[:, 0][regimes]
    noise = (last - level[:, -1]) - 0.5 * (first - level[:, -2])
    assert noise.mean().abs() < 0.05 and (noise.std() - 0.701).abs() < 0.03
    share = (regimes[:, -1] == 0).float().mean()
    assert (share - 0.75).abs() < 0.03 and (gen.stationary[0] - 0.75).abs() < 1e-5
    assert torch.allclose(gen.expected_durations, torch.tensor([10.0, 10 / 3]), rtol=1e-4)


def test_completed_ends_are_distributed_as_forecasts():
    gen = made(length=6).float()
    x = torch.randn(6, 1)
    x[4:] = torch.nan
    torch.manual_seed(1)
    drawn = gen().complete(x, (8000,))[:, 4:]
    ahead = gen().forecast(x[:4], 2).sample((8000,))
    assert torch.equal(gen().complete(x)[:4], x[:4])
    assert (drawn.mean(0) - ahead.mean(0)).abs().max() < 0.1
    assert (drawn.std(0) - ahead.std(0)).abs().max() < 0.1


@pytest.mark.parametrize(
    "options",
    [{}, {"switching_noise": True}, {"switching_coefs": True, "switching_noise": True}],
    ids=lambda options: ", ".join(options) or "means",
)
def test_likelihood_is_that_of_statsmodels(options):
    regression = pytest.importorskip("statsmodels.tsa.regime_switching.markov_autoregression")
    order = 1 if "switching_noise" in options else 2  # variances there are right for order 1 alone
    gen = made(length=30, order=order, seed=3, **options)
    x = gen().sample()
    known = {"switching_ar": "switching_coefs" in options}
    known["switching_variance"] = "switching_noise" in options
    peer = regression.MarkovAutoregression(x[:, 0].numpy(), k_regimes=2, order=order, **known)
    values = {"p[0->0]": gen.transition_matrix[0, 0], "p[1->0]": gen.transition_matrix[1, 0]}
    for k in range(2):
        values |= {f"const[{k}]": gen.means[k, 0], f"sigma2[{k}]": gen.covariances[k, 0, 0]}
        for j in range(order):
            values |= {f"ar.L{j + 1}[{k}]": gen.coefs[k, j, 0, 0]}
    values |= {"sigma2": values["sigma2[0]"]}
    values |= {f"ar.L{j + 1}": values[f"ar.L{j + 1}[0]"] for j in range(order)}
    params = [float(values[name]) for name in peer.param_names]
    own = gen().log_prob_after_start(x)
    assert own.item() == pytest.approx(peer.loglike(params), rel=1e-8)
    smoothed = peer.smooth(params).smoothed_marginal_probabilities
    torch.testing.assert_close(gen().smooth(x)[order:], torch.as_tensor(smoothed).double())


def test_fit_finds_the_regimes_and_forecasts_go_on():
    torch.manual_seed(0)
    true = SwitchingAutoregression(2, 1, 90, switching_noise=True)
    with torch.no_grad():
        true.level.copy_(torch.tensor([[-2.0], [2.0]]))
        true.memory.fill_(0.3)
        true.log_scale.copy_(torch.tensor([[-0.5], [-1.5]]))
    x, regimes = true().sample_with_states((1,))
    gen = SwitchingAutoregression(2, 1, 90, switching_noise=True)
    found = maximum_likelihood(gen, x, max_iter=25, tol=1e-2)
    gen.canonical()
    assert found.log_likelihood > true().log_prob(x).item()
    assert (gen().most_likely_states(x) == regimes).float().mean() > 0.95
    assert (gen.coefs[0, 0, 0, 0] - 0.3).abs() < 0.2
    ahead = forecast_series(gen, x[0], 6, draws=50, seed=0)
    assert ahead.mean.shape == (6, 1) and ahead.kind == "exact"
    assert gen.free_parameters == 2 + 2 + 1 + 2


def test_lists_of_series_go_on_from_their_own_ends():
    gen = made(length=6)
    x = torch.randn(2, 6, 1).double()
    ahead = gen().forecast([x[0, :3], x[1, :5]], 2)
    for row, n in enumerate((3, 5)):
        one = gen().forecast(x[row, :n], 2).log_prob(x[row, :2])
        torch.testing.assert_close(ahead.log_prob(x[:, :2])[row], one)


REFUSED = {
    "a gap": (lambda gen: gen().log_prob(torch.tensor([[0.0], [torch.nan], [0.0]])), "come last"),
    "too long": (lambda gen: gen().log_prob(torch.zeros(9, 1)), "with fewer steps"),
    "too short to go on": (lambda gen: gen().forecast(torch.zeros(1, 1), 2), "at least 2 steps"),
    "no end to go on": (
        lambda gen: gen().forecast(torch.tensor([[0.0], [0.0], [torch.nan]]), 2),
        "observed up to",
    ),
    "constant": (lambda gen: gen.initialize(torch.zeros(1, 5, 1)), "whose values differ"),
    "too many states": (lambda gen: SwitchingAutoregression(4, 8, 9), "at most 4096"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(made().float())
