"""Noise schedules given as numbers: betas or shares of signal, in every kind of diffusion."""

import re
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen.compile.tracing import record_operations
from probgen.distributions.diffusion.predictions import Original
from probgen.distributions.diffusion.tables import alphas_bar

T = 50
BETAS = np.linspace(1e-3, 0.25, T)
SHARES = np.cumprod(1 - BETAS)
FORMS = {
    "list of betas": BETAS.tolist(),
    "tuple of shares": tuple(SHARES.tolist()),
    "array of betas": BETAS,
    "array of shares": SHARES,
    "tensor of betas": torch.tensor(BETAS),
    "tensor of shares": torch.tensor(SHARES),
    "single precision": BETAS.astype("float32"),
    "from_betas": pg.diffusion.from_betas(BETAS),
}


def net(dims=2):
    return pg.nn.TimeMLP(dims, [8], embedding=8)


def diffusion(schedule):
    return pg.Diffusion(net(), (2,), schedule=schedule, num_times=T - 1)


# each kind of diffusion, and the shares of signal that it has at the steps 1, ..., T
KINDS = {
    "Diffusion": (
        diffusion,
        lambda gen: gen.schedule(torch.arange(T) / (T - 1))[0].square(),
    ),
    "GammaNoise": (pg.diffusion.GammaNoise, lambda process: process.log_signal[1:].exp()),
    "MixtureNoise": (
        lambda schedule: pg.diffusion.MixtureNoise(schedule, [1.0, 1.0], [-1.0, 1.0], [0.5, 0.5]),
        lambda process: process.log_signal[1:].exp(),
    ),
    "UniformNoise": (
        lambda schedule: pg.diffusion.UniformNoise(3, schedule),
        lambda p: p.signal[1:],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_schedule_means_the_same(kind, form):
    make, shares = KINDS[kind]
    expected = torch.tensor(SHARES).float()
    torch.testing.assert_close(shares(make(FORMS[form])), expected, rtol=1e-4, atol=1e-6)


def test_labels_may_lose_all_signal():
    process = pg.diffusion.AbsorbingNoise(3, [0.25, 0.5, 1.0])
    torch.testing.assert_close(process.signal, torch.tensor([1.0, 0.75, 0.375, 0.0]))
    assert torch.equal(process.signal, pg.diffusion.AbsorbingNoise(3, [0.75, 0.375, 0.0]).signal)


def test_steps_are_those_of_ddpm():
    process = diffusion(BETAS).double().process
    x, z = torch.randn(2).double(), torch.randn(2).double()
    for step in range(1, T):  # from state step + 1 to state step, in the numbers of DDPM
        t, s = (torch.tensor(number / (T - 1)).double() for number in (step, step - 1))
        beta, here, there = BETAS[step], SHARES[step], SHARES[step - 1]
        mean = there**0.5 * beta / (1 - here) * x
        mean = mean + (1 - beta) ** 0.5 * (1 - there) / (1 - here) * z
        torch.testing.assert_close(process.posterior(z, x, t, s).mean, mean, rtol=1e-4, atol=1e-5)
        variance = process.log_variances(t, s)[0].exp().item()
        assert variance == pytest.approx((1 - there) / (1 - here) * beta, rel=1e-3)


def test_between_the_steps_the_schedule_is_a_line_and_time_its_inverse():
    schedule = pg.diffusion.TabulatedSchedule(torch.tensor(SHARES)).double()
    t = torch.linspace(0, 1, 1001).double()
    expected = np.interp(t.numpy() * (T - 1), np.arange(T), np.log(SHARES / (1 - SHARES)))
    torch.testing.assert_close(schedule.log_snr(t), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t)
    alpha, sigma = schedule(t.reshape(7, 11, 13))
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(7, 11, 13).double())


def test_slopes_in_time():
    schedule = pg.diffusion.TabulatedSchedule(torch.tensor(SHARES)).double()
    t = ((torch.arange(T - 1) + 0.37) / (T - 1)).double().requires_grad_()
    slope = torch.autograd.grad(schedule.log_snr(t).sum(), t)[0]
    logit = torch.tensor(np.log(SHARES / (1 - SHARES)))
    torch.testing.assert_close(slope, logit.diff() * (T - 1), rtol=1e-4, atol=1e-3)


class ExactDenoiser(nn.Module):
    """E[x | z_t] of standard normal data, whose states have the same variance at all times."""

    def __init__(self):
        super().__init__()
        self.schedule = pg.diffusion.TabulatedSchedule(torch.tensor(SHARES))

    def forward(self, z, t, context=None):
        return self.schedule(t)[0].unsqueeze(-1) * z


@pytest.mark.parametrize("steps", [T - 1, None])
def test_the_bound_of_an_exact_denoiser(steps):
    torch.manual_seed(0)
    exact = {} if steps is None else {"variance": pg.diffusion.ForwardVariance()}
    options = {"schedule": BETAS, "prediction": Original(), "num_times": steps}
    options["sampler"] = pg.diffusion.Ancestral(200 if steps is None else steps)
    gen = pg.Diffusion(ExactDenoiser(), (1,), **options, **exact)
    x = torch.randn(20_000, 1)
    bound, truth = gen().log_prob(x).mean(), dist.Normal(0.0, 1.0).log_prob(x).mean()
    assert truth - 0.1 < bound < truth + 0.05
    drawn = pg.sample(gen, 5_000, seed=0)
    assert drawn.std().item() == pytest.approx(1, abs=0.05)


def test_the_schedule_is_saved_and_loaded():
    gen, other = diffusion(BETAS), diffusion(np.linspace(1e-2, 0.1, T))
    t = torch.linspace(0, 1, 9)
    assert not torch.allclose(gen.schedule.log_snr(t), other.schedule.log_snr(t))
    other.load_state_dict(gen.state_dict())
    assert torch.equal(gen.schedule.log_snr(t), other.schedule.log_snr(t))
    with pytest.raises(RuntimeError, match=r"size mismatch for schedule\.ratios"):
        diffusion(BETAS[:-1]).load_state_dict(gen.state_dict())


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_a_graph_can_be_recorded(shape):
    schedule = pg.diffusion.TabulatedSchedule(torch.tensor(SHARES))
    both = lambda t: (*schedule(t), schedule.time(schedule.log_snr(t)))  # noqa: E731
    graph = record_operations(both, torch.rand(shape))
    t = torch.rand(shape)
    torch.testing.assert_close(graph(t), both(t))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [T - 1, None])
@pytest.mark.parametrize("objective", [pg.objectives.Denoising, pg.ELBO])
def test_training_compiles(objective, steps, replayed):
    torch.manual_seed(0)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        gen = pg.Diffusion(net(), (2,), schedule=BETAS, num_times=steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pg.FitWarning)
            options = {"steps": 4, "batch_size": 8, "seed": 0, "progress": False}
            history = pg.fit(gen, torch.randn(16, 2), objective(), compile=compiled, **options)
        losses.append(history.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# -- refusals
# --------------------------------------------------------------------------------------------------

ORDER = "expected a schedule of shares of signal that fall or of betas that rise, got "
READY = "take LinearSchedule(), CosineSchedule() or, for labels, EvenSchedule()"
WRONG = {
    "neither": ([0.1, 0.3, 0.2], ORDER + "0.2 after 0.3 at place 2"),
    "nor": ([0.9, 0.95, 0.2], ORDER + "0.2 after 0.95 at place 2"),
    "rises again": ([0.9, 0.5, 0.6], ORDER + "0.6 after 0.5 at place 2"),
    "data": (
        [1.0, 0.5],
        "expected a schedule of shares of signal that fall within [0, 1), got 1 to",
    ),
    "below": (
        [0.5, -0.1],
        "expected a schedule of shares of signal that fall within [0, 1), got 0.5",
    ),
    "no noise": ([0.0, 0.1], "expected betas in (0, 1), got 0 at place 0"),
    "too much": ([0.1, 1.2], "expected betas in (0, 1), got 1.2 at place 1"),
    "one": ([0.1], "expected a schedule of 2 or more numbers (T,), got shape (1,); " + READY),
    "matrix": ([[0.1, 0.2]], "expected a schedule of 2 or more numbers (T,), got shape (1, 2)"),
    "NaN": ([0.1, float("nan")], "expected a schedule of finite numbers, got nan at place 1"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_are_refused_in_one_sentence(kind, name):
    numbers, text = WRONG[name]
    for form in (numbers, np.array(numbers), torch.tensor(numbers)):
        with pytest.raises(ValueError, match=re.escape(text)) as error:
            KINDS[kind][0](form)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["linear", ["a", "b"], 3j])
def test_what_is_no_numbers(kind, value):
    with pytest.raises((TypeError, ValueError), match="expected a"):
        KINDS[kind][0](value)


@pytest.mark.parametrize("kind", ["Diffusion", "GammaNoise", "MixtureNoise"])
def test_numbers_keep_some_signal(kind):
    with pytest.raises(ValueError, match=r"fall (strictly )?within \(0, 1\)"):
        KINDS[kind][0]([0.5, 0.3, 0.0])


def test_betas_in_any_order_are_given_as_the_message_says():
    betas = [0.3, 0.1, 0.2]
    torch.testing.assert_close(
        alphas_bar(pg.diffusion.from_betas(betas)), torch.tensor([0.7, 0.63, 0.504]).double()
    )
