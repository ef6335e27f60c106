"""Diffusions of labels against powers of transition matrices.

And bounds against all chains enumerated.
"""

import itertools

import pytest
import torch
from torch.distributions import kl_divergence

from probgen.distributions.diffusion.discrete_diffused import DiscreteDiffused
from probgen.distributions.diffusion.labels import AbsorbingNoise, LabelDistribution, UniformNoise
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun
from probgen.distributions.diffusion.schedules import CosineSchedule, EvenSchedule, LinearSchedule
from probgen.distributions.diffusion.times import (
    KarrasSteps,
    log_snr_steps,
    quadratic_steps,
    uniform_steps,
)
from probgen.distributions.gibbs import completions

LEVELS, STEPS = 3, 3
PROCESSES = {
    "absorbing": AbsorbingNoise(LEVELS, EvenSchedule(), STEPS).double(),
    "absorbing, uneven": AbsorbingNoise(LEVELS, torch.tensor([0.9, 0.3, 0.0]).double()).double(),
    "uniform": UniformNoise(LEVELS, CosineSchedule(), STEPS).double(),
    "uniform, signal left": UniformNoise(LEVELS, torch.tensor([0.8, 0.5, 0.2]).double()).double(),
}
by_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def transition(process, t):
    """One step of the forward chain as a matrix, states in rows."""
    kept = process.signal[t] / process.signal[t - 1]
    matrix = kept * torch.eye(process.states).double()
    if isinstance(process, AbsorbingNoise):
        matrix[:, -1] += 1 - kept
        return matrix
    return matrix + (1 - kept) / LEVELS


def powers(process):
    """From the datum to each step: ``(T + 1, states, states)``."""
    made = [torch.eye(process.states).double()]
    for t in range(1, STEPS + 1):
        made.append(made[-1] @ transition(process, t))
    return torch.stack(made)


def states(values, count=2):
    return torch.tensor(list(itertools.product(range(values), repeat=count))).double()


def full(number, like):
    """The time of a number of steps for each row."""
    return torch.full(like.shape[:-1], number / STEPS)


def predict(x, t):
    """Logits of two variables that depend on both and on the time.

    ``(*batch, 2) -> (*batch, 2, 3)``.
    """
    seen = torch.stack((x, x.flip(-1), 2 * x + x.flip(-1)), -1)
    return torch.sin(1.3 * seen + torch.arange(3).double() + t[..., None, None])


@by_process
def test_marginals_are_powers_of_the_transition_matrix(process):
    labels, chain = torch.arange(LEVELS).double().unsqueeze(-1), powers(process)
    for t in range(1, STEPS + 1):
        distribution = process.marginal(labels, full(t, labels))
        assert torch.allclose(distribution.base_dist.probs[:, 0], chain[t][:LEVELS])
    assert torch.allclose(
        process.prior(torch.zeros(1).double()).base_dist.probs[0].sum(), torch.ones(()).double()
    )


@by_process
def test_posteriors_are_those_of_bayes(process):
    chain = powers(process)
    for t, s in ((3, 2), (2, 1), (3, 1), (1, 0), (3, 0)):
        between = torch.eye(process.states).double()
        for step in range(s + 1, t + 1):
            between = between @ transition(process, step)
        for x_0, x_t in itertools.product(range(LEVELS), range(process.states)):
            joint = chain[s][x_0] * between[:, x_t]
            if joint.sum() > 0:
                given = [torch.full((1,), float(value)).double() for value in (x_t, x_0)]
                distribution = process.posterior(
                    *given, torch.tensor(t / STEPS), torch.tensor(s / STEPS)
                )
                assert torch.allclose(
                    distribution.base_dist.probs[0], joint / joint.sum(), atol=1e-12
                )


@by_process
def test_reverse_distribution_of_the_true_posterior_is_the_true_reverse(process):
    """One variable with known masses.

    The model's distribution follows from Bayes' rule, whatever the step.
    """
    chain, masses = powers(process), torch.tensor([0.5, 0.2, 0.3]).double()
    for t, s in ((3, 2), (2, 1), (3, 1), (1, 0)):
        between = torch.eye(process.states).double()
        for step in range(s + 1, t + 1):
            between = between @ transition(process, step)
        for x_t in range(process.states):
            datum = masses * chain[t][:LEVELS, x_t]
            joint = (masses @ chain[s][:LEVELS]) * between[:, x_t]
            if joint.sum() > 0:
                x = torch.full((1,), float(x_t)).double()
                distribution = process.reverse(
                    x, datum.log().unsqueeze(0), torch.tensor(t / STEPS), torch.tensor(s / STEPS)
                )
                assert torch.allclose(
                    distribution.base_dist.probs[0], joint / joint.sum(), atol=1e-12
                )


def enumerated(process):
    """log p(x) of the model over all data, by sums over all chains.

    And the expected bound of each.
    """
    distribution, every, data = (
        DiscreteDiffused(predict, process, (2,)),
        states(process.states),
        states(LEVELS),
    )
    log_p = process.prior(torch.zeros(2).double()).log_prob(every)
    bound = torch.zeros(len(data)).double()
    for t in range(STEPS, 0, -1):
        reverse = distribution.denoiser.reverse(every, full(t, every), full(t - 1, every))
        ends = every if t > 1 else data
        log_p = (reverse.log_prob(ends.unsqueeze(1)) + log_p).logsumexp(-1)
        for number, x in enumerate(data):
            repeated = x.expand_as(every)
            here = process.marginal(repeated, full(t, every)).log_prob(every).exp()
            q = process.posterior(every, repeated, full(t, every), full(t - 1, every))
            bound[number] -= (here * kl_divergence(q, reverse)).nan_to_num().sum()
    last = process.marginal(data, full(STEPS, data))
    return log_p, bound - kl_divergence(
        last, process.prior(torch.zeros(2).double()).expand((len(data),))
    )


@pytest.mark.table(quick=1)
@by_process
def test_bound_is_the_enumerated_one_below_the_enumerated_truth(process):
    torch.manual_seed(0)
    truth, bound = enumerated(process)
    assert truth.exp().sum().item() == pytest.approx(1)
    assert (bound < truth).all()
    assert (bound > truth - 3).all()
    draws = DiscreteDiffused(predict, process, (2,)).log_prob(states(LEVELS).expand(10000, 9, 2))
    assert ((draws.mean(0) - bound).abs() < 4 * draws.std(0) / 100).all()


@by_process
def test_draws_have_the_enumerated_masses(process):
    torch.manual_seed(0)
    truth, _ = enumerated(process)
    x = DiscreteDiffused(predict, process, (2,)).sample((30000,))
    counts = torch.bincount((LEVELS * x[:, 0] + x[:, 1]).long(), minlength=9) / len(x)
    assert (counts - truth.exp()).abs().max() < 0.01


@by_process
def test_exact_predictions_give_the_data_back(process):
    """One variable: the reverse distribution is exact for any number of steps.

    The bound is tight but for the prior.
    """
    torch.manual_seed(0)
    masses, chain = torch.tensor([0.6, 0.1, 0.3]).double(), powers(process)

    def exact(x, t):
        count = (t * STEPS).round().long()
        likelihood = (
            chain[count][..., :LEVELS, :]
            .transpose(-1, -2)
            .take_along_dim(x.long().unsqueeze(-1), -2)
        )
        return (likelihood * masses).log()

    for count in (1, 3):
        distribution = DiscreteDiffused(exact, process, (1,), sampler=Ancestral(count))
        x = distribution.sample((30000,))
        counts = torch.bincount(x.flatten().long(), minlength=3) / len(x)
        signal_left = process.signal[-1].item()
        assert (counts - masses).abs().max() < 0.01 + 0.5 * signal_left
    data = torch.multinomial(masses, 40000, replacement=True).double().unsqueeze(-1)
    bound = distribution.log_prob(data)
    entropy = (masses * masses.log()).sum()
    last = masses @ chain[-1][:LEVELS]
    prior = process.prior(torch.zeros(1).double()).base_dist.logits[0]
    gap = torch.where(last > 0, last * (last.clamp(min=1e-30).log() - prior), 0.0).sum()
    assert bound.mean().item() == pytest.approx(
        (entropy - gap).item(), abs=4 * bound.std().item() / 200
    )


def test_simple_loss_is_the_cross_entropy_of_noised_labels():
    torch.manual_seed(0)
    x = torch.tensor([0.0, 2.0]).double().expand(20000, 2)
    for name in ("absorbing", "uniform"):
        process, total = PROCESSES[name], 0.0
        for t in range(1, STEPS + 1):
            every = states(process.states)
            here = process.marginal(x[: len(every)], full(t, every)).log_prob(every).exp()
            losses = -predict(every, full(t, every)).log_softmax(-1)
            losses = losses.take_along_dim(x[: len(every)].long().unsqueeze(-1), -1).squeeze(-1)
            counted = every == LEVELS if name == "absorbing" else torch.ones_like(every) > 0
            total += (here * torch.where(counted, losses, 0.0).sum(-1)).sum() / STEPS
        draws = DiscreteDiffused(predict, process, (2,)).denoising_loss(x)
        assert draws.mean().item() == pytest.approx(
            total.item(), abs=4 * draws.std().item() / 20000**0.5
        )


def test_absorbing_bound_is_the_mean_over_orders():
    """Many steps and predictions that ignore the time.

    An autoregressive model over random orders.
    """
    torch.manual_seed(0)

    def timeless(x, t):
        return predict(x, torch.zeros_like(t))

    x = torch.tensor([2.0, 1.0]).double()
    distribution = DiscreteDiffused(
        timeless, AbsorbingNoise(LEVELS, EvenSchedule(), 400).double(), (2,)
    )
    orders = []
    for first, second in ((0, 1), (1, 0)):
        state, total = torch.full((2,), float(LEVELS)).double(), 0.0
        for entry in (first, second):
            logits = timeless(state, torch.zeros(()).double())[entry].log_softmax(-1)
            total = total + logits[int(x[entry])]
            state = torch.where(torch.arange(2) == entry, x, state)
        orders.append(total)
    draws = distribution.log_prob(x.expand(40000, 2))
    assert draws.mean().item() == pytest.approx(
        torch.stack(orders).mean().item(), abs=4 * draws.std().item() / 200
    )


@pytest.mark.slow
def test_missing_labels_are_revealed_given_the_others():
    """Predictions that are the conditionals of one table, whatever is masked.

    Completions follow it.
    """
    torch.manual_seed(0)
    table = torch.rand(LEVELS, LEVELS).double() ** 3
    table = table / table.sum()

    def conditionals(x, t):
        first, second = x[..., 0].long(), x[..., 1].long()
        padded = torch.cat(
            (table, table.sum(0, keepdim=True))
        )  # the last row: the first variable masked
        columns = torch.cat((table, table.sum(1, keepdim=True)), 1).T
        return torch.stack((columns[second], padded[first]), -2).log()

    distribution = DiscreteDiffused(
        conditionals, AbsorbingNoise(LEVELS, EvenSchedule(), 50).double(), (2,)
    )
    x = torch.tensor(
        [[1.0, torch.nan], [torch.nan, 2.0], [torch.nan, torch.nan], [0.0, 1.0]]
    ).double()
    draws, kind = completions(distribution, x, 4000, 50)
    assert kind == "heuristic"
    assert torch.equal(draws[:, 0, 0], torch.ones(4000).double())
    assert torch.equal(draws[:, 3], x[3].expand(4000, 2))
    given = torch.bincount(draws[:, 0, 1].long(), minlength=3) / 4000
    assert (given - table[1] / table[1].sum()).abs().max() < 0.03
    given = torch.bincount(draws[:, 1, 0].long(), minlength=3) / 4000
    assert (given - table[:, 2] / table[:, 2].sum()).abs().max() < 0.03
    both = torch.bincount((3 * draws[:, 2, 0] + draws[:, 2, 1]).long(), minlength=9) / 4000
    assert (both - table.flatten()).abs().max() < 0.03


def test_masses_of_zero_have_finite_gradients():
    logits = torch.zeros(3).double().requires_grad_()
    masses = logits.softmax(-1) * torch.tensor([0.0, 1.0, 1.0])
    q = LabelDistribution(torch.tensor([0.0, 0.5, 0.5]).double())
    kl_divergence(q, LabelDistribution(masses)).backward()
    assert logits.grad.isfinite().all()
    assert LabelDistribution(masses).log_prob(torch.zeros(())).item() == -torch.inf


def test_what_does_not_fit_is_refused():
    distribution = DiscreteDiffused(predict, PROCESSES["absorbing"], (2,))
    with pytest.raises(ValueError, match="missing"):
        distribution.log_prob(torch.tensor([[0.0, torch.nan]]).double())
    with pytest.raises(ValueError, match=r"labels 0, 1, \.\.\., 2"):
        distribution.log_prob(torch.tensor([[0.0, 3.0]]).double())
    for sampler in (DDIM(2), DPMSolver(2), Heun(2)):
        with pytest.raises(TypeError, match=r"draw labels by Ancestral\(num_steps\)"):
            distribution.using(sampler).sample()
    for times in (log_snr_steps, KarrasSteps()):
        with pytest.raises(TypeError, match="take times=uniform_steps or quadratic_steps"):
            distribution.using(Ancestral(2, times)).sample()
    for times in (uniform_steps, quadratic_steps):
        assert distribution.using(Ancestral(2, times)).sample().shape == (2,)
    with pytest.raises(ValueError, match="ends at 0"):
        AbsorbingNoise(3, LinearSchedule(), num_times=10)
    with pytest.raises(ValueError, match="levels"):
        UniformNoise(1, LinearSchedule(), num_times=10)
