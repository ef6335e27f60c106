"""Schedules against their definitions, and predictions against each other."""

import pytest
import torch

from probgen.distributions.diffusion.predictions import EDM, Epsilon, Original, Velocity
from probgen.distributions.diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    LearnedSchedule,
    LinearSchedule,
    TabulatedSchedule,
    VarianceExploding,
)
from probgen.distributions.diffusion.tables import from_betas
from probgen.distributions.diffusion.times import (
    KarrasSteps,
    LogNormalTimes,
    UniformTimes,
    log_snr_steps,
    quadratic_steps,
    uniform_steps,
)


def tabulated():
    return TabulatedSchedule(from_betas(torch.linspace(5e-4, 0.1, 200)))


SCHEDULES = [LinearSchedule, CosineSchedule, VarianceExploding, EDMSchedule, LearnedSchedule]
SCHEDULES += [tabulated]
PREDICTIONS = [Epsilon(), Original(), Velocity(), EDM(0.7)]


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    torch.manual_seed(0)
    schedule = request.param()
    for parameter in schedule.parameters():  # a learned one somewhere else than at its start
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return schedule


def test_log_snr_falls_and_agrees_with_the_levels_in_both_precisions(schedule):
    t = torch.linspace(0, 1, 1001)
    single, double = schedule.log_snr(t), schedule.double().log_snr(t.double())
    assert (single.diff() < 0).all()
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    alpha, sigma = schedule(t.double())
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), double)
    preserving = not isinstance(schedule, VarianceExploding | EDMSchedule)
    torch.testing.assert_close(
        alpha.square() + preserving * sigma.square(), torch.ones_like(t.double())
    )


def test_time_inverts_log_snr(schedule):
    t = torch.linspace(0, 1, 101).double()
    torch.testing.assert_close(schedule.double().time(schedule.log_snr(t)), t, atol=1e-8, rtol=0)


def test_linear_schedule_is_the_product_of_the_steps_of_ddpm():
    betas = torch.linspace(1e-4, 0.02, 1000).double()
    ours = LinearSchedule(beta_min=0.1, beta_max=20.0).double()(
        torch.linspace(0, 1, 1000).double()
    )[0]
    assert (ours.square() - (1 - betas).cumprod(0)).abs().max() < 2e-3


def test_edm_schedule_in_even_steps_is_karras_grid():
    index = torch.arange(19).double() / 18
    karras = (80 ** (1 / 7) + index * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    schedule = EDMSchedule()
    torch.testing.assert_close(schedule(uniform_steps(18, schedule, index[0]))[1], karras)
    cosine = CosineSchedule()
    alpha, sigma = cosine(KarrasSteps(7.0)(18, cosine, index[0]))
    roots = (sigma / alpha) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(18))


def test_grids_fall_from_one_to_zero_and_keep_their_rule(schedule):
    like = torch.zeros((), dtype=torch.double)
    for steps in (uniform_steps, quadratic_steps, log_snr_steps, KarrasSteps()):
        times = steps(12, schedule.double(), like)
        assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    levels = schedule.log_snr(log_snr_steps(12, schedule, like)).diff()
    torch.testing.assert_close(levels, levels.mean().expand(12), rtol=1e-6, atol=1e-6)


def test_stratified_times_have_one_row_in_each_stratum_and_are_uniform():
    torch.manual_seed(0)
    draws = torch.stack(
        [UniformTimes()(torch.Size([2, 3]), None, torch.zeros(())).flatten() for _ in range(3000)]
    )
    assert ((draws * 6).floor().sort(-1).values == torch.arange(6)).all()
    row = draws[:, 2].sort().values
    assert (
        row - torch.linspace(0, 1, 3000)
    ).abs().max() < 1.63 / 3000**0.5  # Kolmogorov-Smirnov at one per cent
    assert UniformTimes(stratified=False)(torch.Size([5]), None, torch.zeros(())).shape == (5,)


def test_log_normal_times_give_log_normal_noise():
    torch.manual_seed(0)
    schedule = EDMSchedule()
    t = LogNormalTimes(-1.2, 1.2)(torch.Size([20000]), schedule, torch.zeros(()).double())
    log_sigma = schedule(t)[1].log()
    assert (log_sigma.mean() + 1.2).abs() < 0.03 and (log_sigma.std() - 1.2).abs() < 0.03


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_outputs_tell_the_data_and_errors_weigh_alike(prediction, schedule):
    torch.manual_seed(0)
    alpha, sigma = (
        level.detach()[:, None] for level in schedule.double()(torch.linspace(0, 1, 9).double())
    )
    x, other, noise = torch.randn(3, 9, 4).double()
    z = alpha * x + sigma * noise
    outputs = [prediction.output(value, z, alpha, sigma) for value in (x, other)]
    for value, output in zip((x, other), outputs, strict=True):
        torch.testing.assert_close(prediction.original(output, z, alpha, sigma), value)
    by_outputs = (outputs[0] - outputs[1]).square()
    torch.testing.assert_close(by_outputs, prediction.weight(alpha, sigma) * (x - other).square())


def test_predictions_have_their_textbook_targets():
    torch.manual_seed(0)
    alpha, sigma = (
        level[:, None] for level in CosineSchedule().double()(torch.linspace(0, 1, 9).double())
    )
    x, noise = torch.randn(2, 9, 4).double()
    z = alpha * x + sigma * noise
    torch.testing.assert_close(Epsilon().output(x, z, alpha, sigma), noise)
    torch.testing.assert_close(Velocity().output(x, z, alpha, sigma), alpha * noise - sigma * x)
    edm, ratio = EDM(0.7), sigma / alpha
    total = ratio.square() + 0.49
    torch.testing.assert_close(
        edm.output(x, z, alpha, sigma),
        (x - 0.49 / total * z / alpha) / (0.7 * ratio / total.sqrt()),
    )
    torch.testing.assert_close(edm.inputs(z, alpha, sigma), z / alpha / total.sqrt())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearSchedule(beta_min=3.0, beta_max=1.0),
        lambda: CosineSchedule(-5.0, 5.0),
        lambda: LearnedSchedule(0.0, 1.0),
        lambda: EDMSchedule(80.0, 0.002),
        lambda: VarianceExploding(0.0, 1.0),
    ],
)
def test_ends_in_the_wrong_order_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
