"""Cluster moves and parallel tempering against enumeration, and Kaufman's energy at criticality."""

import math

import pytest
import torch
from test_markov_random_field import energies, ising, kaufman, random_field, states

import probgen as pg
from probgen.graphical import grid_edges
from probgen.samplers import HMC, Langevin, ParallelTempering, SwendsenWang, TemperedGibbs, Wolff
from probgen.samplers.clusters import _clusters
from probgen.samplers.tempering import parallel_tempering

CHAINS = 3000


def of_two_values():
    """Random tables: fields, and couplings of both signs."""
    return random_field((2, 3), grid_edges(2, 3))


def of_three_values():
    """Potts couplings of both signs, with fields."""
    gen = pg.MarkovRandomField((2, 2), grid_edges(2, 2), levels=3).double()
    gen.unary.data.normal_()
    gen.pairs.data.copy_(torch.tensor([1.5, -1.0, 0.7, 0.2])[:, None, None] * torch.eye(3))
    return gen


def without_field():
    return ising(2, 3, 0.6, periodic=False)


FIELDS = {"two values": of_two_values, "Potts": of_three_values, "no field": without_field}
KERNELS = {
    "Swendsen-Wang": (SwendsenWang(), 12),
    "Wolff": (Wolff(), 30),
    "tempered": (TemperedGibbs((1.0, 0.5, 0.25)), 15),
}


def shares(x, levels):
    """How often each state of few variables occurs."""
    code = (x.flatten(1) @ float(levels) ** torch.arange(x[0].numel() - 1, -1, -1).double()).long()
    return code.bincount(minlength=levels ** x[0].numel()) / len(x)


CASES = [(field, kernel) for field in FIELDS for kernel in ("Swendsen-Wang", "Wolff")]


@pytest.mark.parametrize(("field", "kernel"), [*CASES, ("two values", "tempered")])
def test_draws_have_the_distribution_of_all_states(field, kernel):
    torch.manual_seed(0)
    gen = FIELDS[field]()
    gen.limit, (gen.kernel, gen.sweeps) = 1, KERNELS[kernel]
    every = states(gen.nodes, gen.levels)
    truth = energies(gen, every).softmax(0)
    found = shares(gen().sample((CHAINS,)), gen.levels)
    assert (found - truth).abs().max() < 5 * (truth.max() / CHAINS) ** 0.5
    given = torch.full((CHAINS, *gen.shape), torch.nan).double()
    given[:, 0, 0] = 1.0
    truth = truth * (every[:, 0] == 1.0)
    found = shares(gen().completed(given, gen.sweeps), gen.levels)
    assert (found - truth / truth.sum()).abs().max() < 5 * (
        truth.max() / truth.sum() / CHAINS
    ) ** 0.5


def test_critical_energy_of_a_torus_is_that_of_kaufman():
    critical, size = 0.5 * math.log(1 + math.sqrt(2)), 12
    slope = (kaufman(size, size, critical + 1e-4) - kaufman(size, size, critical - 1e-4)) / 2e-4
    torch.manual_seed(0)
    gen = ising(size, size, critical, limit=1, kernel=SwendsenWang(), sweeps=25)
    x = 2 * gen().sample((300,)) - 1
    neighbors = (x * x.roll(1, -1) + x * x.roll(1, -2)).sum((-2, -1))
    error = neighbors.std() / len(x) ** 0.5
    assert (neighbors.mean() - slope).abs() < 4 * error
    assert abs(slope / size**2 - math.sqrt(2)) < 0.1  # Onsager's, of the infinite grid


def test_clusters_are_the_components_of_the_bonds():
    edges = torch.tensor(grid_edges(5, 7))
    x = torch.randint(2, (40, 35), generator=torch.Generator().manual_seed(0))
    found = _clusters(x, torch.full((len(edges),), torch.inf), edges)  # each equal pair is a bond
    for row, label in zip(x, found, strict=True):
        least = torch.arange(35)
        for _ in range(35):
            for a, b in edges.tolist():
                if row[a] == row[b]:
                    least[a] = least[b] = min(least[a], least[b])
        assert torch.equal(least, label)


def test_tables_of_another_kind_are_refused():
    gen = random_field((2, 2), grid_edges(2, 2), levels=3, limit=1, kernel=SwendsenWang())
    with pytest.raises(ValueError, match="as of a Potts model, got others at edge"):
        gen().sample()


def test_tempered_chains_of_a_network_pass_between_modes():
    torch.manual_seed(0)
    weight = lambda x: -8 * (x.square() - 1).square().sum(-1) + x.sum(-1) / 4  # noqa: E731
    grid = torch.linspace(-2.5, 2.5, 2001)[:, None].double()
    truth = weight(grid).softmax(0)[grid[:, 0] > 0].sum()
    kernel = ParallelTempering(HMC(0.15, leapfrogs=5), (1.0, 0.4, 0.15, 0.05))
    ends = kernel(weight, -torch.ones(1500, 1), 60)
    assert ((ends.x > 0).float().mean() - truth).abs() < 4 * (0.25 / 1500) ** 0.5
    assert (ends.acceptance > 0.5).all()
    alone = HMC(0.15, leapfrogs=5)(weight, -torch.ones(1500, 1), 60).x
    assert (alone > 0).float().mean() < 0.5 * truth


REFUSED = {
    "no temperatures": (lambda: TemperedGibbs(()), "at least one"),
    "one temperature": (lambda: TemperedGibbs((1.0,)), "from 1 downwards"),
    "upwards": (lambda: TemperedGibbs((1.0, 2.0)), "from 1 downwards"),
    "not adjusted": (lambda: ParallelTempering(Langevin(0.1)), "leaves distributions invariant"),
    "starts of one": (
        lambda: parallel_tempering(len, len, torch.zeros(3, 2), 1, (1.0, 0.5)),
        "starts of each temperature",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_ladder_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
