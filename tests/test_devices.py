"""Models run where they are: no tensor of theirs stays behind on the CPU.

Every family runs on a stand-in for a second device, which needs no GPU (``stand_in_device``), and
on a GPU where there is one (``test_zoo.py``).
"""

import copy
from dataclasses import replace

import pandas
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from stand_in_device import MixedDevices, stand_in_device
from zoo import ZOO, Member

import probgen as pg
from probgen.core.in_memory import in_memory
from probgen.core.module import DistributionModule
from probgen.core.ragged import ragged
from probgen.core.supports import check_rescalable
from probgen.infer.em import SupportsEM
from probgen.testing import agreement, distribution, missing, program
from probgen.testing.case import run

ON_DEVICES = (
    distribution.draws_have_shapes,
    distribution.supports,
    distribution.scores_have_shapes,
    agreement.agrees_with_program,
    program.learns,
    missing.integrates,
)


NOT_STOOD_IN = {
    "Program with an AutoGuide",  # tensors that guides of Pyro's refer to cannot be exchanged
    "FlowMatching of mean velocities",  # derivatives forward, of a stand-in, end the process in torch
}
MEMBERS = [member for member in ZOO if member.name not in NOT_STOOD_IN]


@pytest.mark.table(quick=20)
@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_member_runs_on_another_device(member: Member):
    with stand_in_device() as device:
        case = member.on(device)
        if not isinstance(case.gen, DistributionModule):
            run(program.runs, case, 0)
        for check in ON_DEVICES:
            run(check, replace(case, gen=copy.deepcopy(case.gen).eval()), 0)


NO_EM = {  # what they are built around has none, and em says so
    "HiddenChowLiu of numbers",
    "HiddenMarkovModel of flows",
    "VariableLength Markov chain, of Poisson lengths",
}


def maximizes_expectations(member):
    return (
        member.name not in NO_EM
        and len(member.data()) == 1
        and isinstance(member.gen(), SupportsEM)
    )


BY_EM = [member for member in ZOO if maximizes_expectations(member)]


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("member", BY_EM, ids=lambda member: member.name)
def test_em_runs_on_another_device(member: Member):
    with stand_in_device() as device:
        case = member.on(device)
        x = case.distribution.sample((40,))
        found = pg.em(case.gen, x, max_iter=2, tol=1e9, seed=0)
        assert next(case.gen.parameters()).device == device
        assert found.log_likelihood.isfinite().all()


class Anywhere(CPUAccelerator):
    """Fabric's accelerator of whatever device."""

    def setup_device(self, device):
        pass


def fitted(device, gen, x, **options):
    fabric = Fabric(strategy=SingleDeviceStrategy(device=device, accelerator=Anywhere()))
    options = {"verdict": False, **options}  # a fused optimizer asks for the names of devices
    usual = {"optimizer": torch.optim.Adam, "compile": False, "progress": False, "seed": 0}
    history = pg.fit(gen, x, steps=3, batch_size=20, fabric=fabric, **usual, **options)
    assert next(gen.parameters()).device == device
    return history


def numbers(*event):
    return torch.randn(40, *event)


def with_gaps():
    x = numbers(3)
    x[::4, 1] = torch.nan
    return x


def mixture(device):
    return pg.GaussianMixture(2, dims=3).to(device)


def vae(device):
    decoder, encoder = pg.nn.MLP(2, [4], 6), pg.nn.MLP(3, [4], 4)
    prior = pg.standard_normal(2)
    return pg.VAE(prior, pg.heads.Gaussian(decoder), pg.heads.Gaussian(encoder)).to(device)


def tabular(device):
    frame = pandas.DataFrame({"a": [0.5, None, 1.5, 2.5], "b": [1, 0, 1, 0]})
    table = pg.Table.read(frame)
    return pg.Tabular(table, pg.heads.Mixed(pg.nn.Constant(3), table.heads())).to(device)


def judged(function, **options):
    return lambda device: function(numbers(3).to(device), numbers(3).to(device), **options)


evaluate = pg.evaluate
CALLS = {
    "fit": lambda device: fitted(device, vae("cpu"), numbers(3), validation=numbers(3), ema=0.9),
    "fit, with a verdict": lambda device: fitted(device, vae("cpu"), numbers(3), verdict=True),
    "em": lambda device: pg.em(mixture(device), with_gaps().to(device), max_iter=2, seed=0),
    "em, rows elsewhere": lambda device: pg.em(mixture(device), numbers(3), max_iter=2, seed=0),
    "impute": lambda device: pg.impute(mixture(device), with_gaps().to(device), seed=0),
    "impute, chains": lambda device: pg.impute(
        vae(device), with_gaps().to(device), num_steps=2, seed=0
    ),
    "posterior": lambda device: pg.posterior(vae(device), numbers(3).to(device), draws=2, seed=0),
    "log_likelihood": lambda device: pg.log_likelihood(
        vae(device), numbers(3).to(device), particles=2, seed=0
    ),
    "sample": lambda device: pg.sample(vae(device), 3, seed=0),
    "sample of a table": lambda device: pg.sample(tabular(device), 3, seed=0),
    "compare": lambda device: pg.compare(
        {"a": mixture(device), "b": mixture(device)}, numbers(3).to(device)
    ),
    "cluster": lambda device: pg.decisions.cluster(mixture(device), numbers(3).to(device)),
    "encode": lambda device: pg.decisions.encode(vae(device), numbers(3).to(device)),
    "divergence": lambda device: evaluate.divergence(mixture(device), mixture(device), seed=0),
    "frechet_distance": judged(evaluate.frechet_distance),
    "kernel_distance": judged(evaluate.kernel_distance),
    "mmd_test": judged(evaluate.mmd_test, permutations=10),
    "energy_test": judged(evaluate.energy_test, permutations=10),
    "sliced_wasserstein_distance": judged(evaluate.sliced_wasserstein_distance),
    "precision_recall": judged(evaluate.precision_recall),
    "density_coverage": judged(evaluate.density_coverage),
    "classifier_two_sample_test": judged(evaluate.classifier_two_sample_test, permutations=10),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_work_where_the_model_is(name: str):
    with stand_in_device() as device:
        CALLS[name](device)


def conditional_flow(device):
    return pg.MAF(3, layers=1, hidden=[4], context=2).to(device)


def is_refused(family):
    with pytest.raises(ValueError, match="whose values are 0 or 1"):
        check_rescalable(family)
    return True


ASKED_WITHOUT_ROWS = {  # what families tell of themselves, given zeros as their context
    "shape of events": lambda device: ragged(conditional_flow(device), 0.0).length == 3,
    "events are vectors": lambda device: in_memory([torch.zeros(3)], conditional_flow(device)),
    "support": lambda device: is_refused(pg.heads.Bernoulli(pg.nn.MLP(2, [4], 3)).to(device)),
}


@pytest.mark.parametrize("name", ASKED_WITHOUT_ROWS)
def test_families_are_asked_where_they_are(name: str):
    with stand_in_device() as device:
        assert ASKED_WITHOUT_ROWS[name](device)


class Forgetful(torch.nn.Module):
    """A tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.loc = torch.zeros(3)

    def forward(self, x):
        return x - self.loc


REFUSED = {
    "a sum": lambda x: x + torch.ones(3),
    "one matrix": lambda x: x @ torch.ones(3, 2),
    "side by side": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "single numbers side by side": lambda x: torch.stack([x.sum(), torch.zeros(())]),
    "a choice": lambda x: torch.where(torch.ones(3) > 0, x, 0.0),
    "a single number there": lambda x: torch.ones(3) * x.sum(),
    "an index there": lambda x: torch.ones(3)[x[0].long()],
    "in place": lambda x: x.add_(torch.ones(3)),
    "a generator": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
    "a module's own tensor": lambda x: Forgetful().to(x.device)(x),
}
TAKEN = {
    "a number": lambda x: (x + 1.0).sum(),
    "a single number here": lambda x: (x + torch.tensor(1.0)).sum(),
    "an index here": lambda x: x[torch.tensor([0, 1])].sum(),
    "a list": lambda x: x[[0, 1]].sum(),
    "a mask": lambda x: x[x > 0.5].sum(),
    "new numbers": lambda x: (x + x.new_tensor([0.0, 0.0, 3.0])).sum(),
    "made there": lambda x: (x + torch.tensor([[1.0, 1, 1], [1, 1, 1]], device=x.device)).sum(),
    "brought there": lambda x: (x + torch.ones(3).to(x)).sum(),
    "a copy": lambda x: x.copy_(torch.ones(2, 3)).sum() * 2,
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_stand_in_refuses_what_a_gpu_refuses(name: str):
    with stand_in_device() as device, pytest.raises(MixedDevices):
        REFUSED[name](torch.ones(2, 3).to(device))


@pytest.mark.parametrize("name", TAKEN)
def test_the_stand_in_computes_what_the_cpu_computes(name: str):
    here = TAKEN[name](torch.ones(2, 3))
    with stand_in_device() as device:
        there = TAKEN[name](torch.ones(2, 3).to(device))
        assert there.device == device and there.item() == here.item()


def test_the_stand_in_gives_no_arrays():
    with stand_in_device() as device:
        x = torch.ones(2).to(device)
        with pytest.raises(TypeError, match="cpu"):
            x.numpy()
        assert x.cpu().numpy().tolist() == [1.0, 1.0]


def test_a_step_there_is_a_step_here():
    torch.manual_seed(0)
    net, x = torch.nn.Linear(3, 2), torch.randn(5, 3)
    with stand_in_device() as device:
        twin = copy.deepcopy(net).to(device)
        for part, rows in ((net, x), (twin, x.to(device))):
            part(rows).square().sum().backward()
            torch.optim.Adam(part.parameters(), 0.1).step()
        assert torch.equal(twin.weight.detach().cpu(), net.weight.detach())
