"""Markov random fields against enumeration.

The transfer matrix and Kaufman's solution of the Ising model.
"""

import itertools
import math

import pytest
import torch

import probgen as pg
from probgen.core.kinds import density_kind
from probgen.models.markov_random_field import MarkovRandomField, grid_edges
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from probgen.samplers.belief_propagation import belief_propagation
from probgen.samplers.gibbs_discrete import coloring


def ising(height, width, coupling, periodic=True, **arguments):
    """Spins 0 and 1 with weight exp(coupling) for equal neighbors, exp(-coupling) for others."""
    gen = MarkovRandomField(
        (height, width), grid_edges(height, width, periodic=periodic), shared=True, **arguments
    )
    gen = gen.double()
    gen.pairs.data.copy_(coupling * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double())
    return gen


def random_field(shape, edges, **arguments):
    gen = MarkovRandomField(shape, edges, **arguments).double()
    for parameter in gen.parameters():
        parameter.data.normal_()
    return gen


def states(nodes, levels=2):
    return torch.tensor(list(itertools.product(range(levels), repeat=nodes))).double()


def energies(gen, x):
    """The sum of potentials, term by term."""
    unary, pairs, edges, _ = gen.potentials()
    flat = x.flatten(1).long()
    total = sum(unary[d, flat[:, d]] for d in range(flat.shape[1]))
    return (
        total + sum(pairs[e, flat[:, i], flat[:, j]] for e, (i, j) in enumerate(edges.tolist()))
    ).detach()


def kaufman(rows, columns, coupling):
    """log Z of the Ising model on a torus.

    Kaufman 1949, https://doi.org/10.1103/PhysRev.76.1232.
    """
    gammas = []
    for r in range(2 * columns):
        cosine = math.cosh(2 * coupling) / math.tanh(2 * coupling) - math.cos(math.pi * r / columns)
        gammas.append(math.acosh(cosine))
    gammas[0] = 2 * coupling + math.log(math.tanh(coupling))
    odd, even = gammas[1::2], gammas[0::2]
    products = [
        math.prod(2 * f(rows * gamma / 2) for gamma in group)
        for group in (odd, even)
        for f in (math.cosh, math.sinh)
    ]
    return math.log(sum(products) / 2) + rows * columns / 2 * math.log(2 * math.sinh(2 * coupling))


@pytest.mark.parametrize("coupling", [0.2, 0.44])
def test_log_partition_of_an_ising_torus_is_that_of_kaufman(coupling):
    for side in (4, 6):
        distribution = ising(side, side, coupling)().expand(())
        assert density_kind(distribution) == "exact"
        assert distribution.log_partition().item() == pytest.approx(
            kaufman(side, side, coupling), rel=1e-10
        )


def test_log_partition_of_an_open_grid_is_enumerated():
    gen = random_field((4, 4), grid_edges(4, 4))
    x = states(16).reshape(-1, 4, 4)
    energy = energies(gen, x)
    assert gen().log_partition().item() == pytest.approx(energy.logsumexp(0).item(), abs=1e-9)
    assert torch.allclose(gen().log_prob(x), energy - energy.logsumexp(0), atol=1e-9)


def test_log_partition_of_a_long_strip_is_that_of_the_transfer_matrix():
    """7 x 40 spins: 2 ** 280 states, a transfer matrix of 128."""
    height, length, coupling = 7, 40, 0.4
    spins = 2 * states(height) - 1
    within = coupling * (spins[:, 1:] * spins[:, :-1]).sum(-1)
    between = coupling * spins @ spins.mT
    weights = within
    for _ in range(length - 1):
        weights = (weights[:, None] + between).logsumexp(0) + within
    distribution = ising(height, length, coupling, periodic=False)()
    assert distribution.log_partition().item() == pytest.approx(
        weights.logsumexp(0).item(), rel=1e-12
    )


def test_missing_spins_are_summed_out_and_drawn():
    torch.manual_seed(0)
    gen, x = random_field((2, 3), grid_edges(2, 3), levels=3), states(6, 3).reshape(-1, 2, 3)
    log_p = energies(gen, x).log_softmax(0)
    row = torch.tensor([[[torch.nan, 1.0, 2.0], [0.0, torch.nan, torch.nan]]], dtype=torch.float64)
    match = ((x == row) | row.isnan()).flatten(1).all(-1)
    assert gen().log_prob(row).item() == pytest.approx(log_p[match].logsumexp(0).item(), abs=1e-10)
    done = pg.impute(gen, row, draws=20_000)
    truth = log_p[match].softmax(0)
    shares = torch.stack(
        [(done.draws[:, 0] == state).flatten(1).all(-1).double().mean() for state in x[match]]
    )
    assert done.kind == "exact" and (shares - truth).abs().max() < 5 * (0.25 / 20_000) ** 0.5


@pytest.mark.slow
def test_maximum_likelihood_matches_moments():
    """At the optimum of an exponential family the model's marginals of edges are those of the data."""
    torch.manual_seed(0)
    x = random_field((6,), [(i, i + 1) for i in range(5)] + [(0, 5)])().sample((400,)).float()
    gen = MarkovRandomField((6,), [(i, i + 1) for i in range(5)] + [(0, 5)])
    pg.fit(
        gen,
        x,
        steps=150,
        batch_size=400,
        optimizer=pg.train.adam(0.1),
        compile=False,
        progress=False,
        seed=0,
    )
    everything = states(6).float()
    p = gen().log_prob(everything).exp().detach()
    for i, j in gen.neighbors:
        assert (
            abs((p * everything[:, i] * everything[:, j]).sum() - (x[:, i] * x[:, j]).mean()) < 5e-3
        )


def test_too_wide_fields_are_unnormalized_and_elbo_refuses_them():
    gen = ising(4, 4, 0.3, limit=4)
    x = states(4).reshape(-1, 4, 1).expand(-1, 4, 4)
    assert density_kind(gen()) == "unnormalized"
    assert torch.allclose(gen().log_prob(x), energies(gen, x), atol=1e-12)
    with pytest.raises(ValueError, match="unnormalized"):
        pg.fit(gen, x, steps=1, compile=False)
    with pytest.raises(ValueError, match=r"got NaN \(missing\)"):
        gen().log_prob(torch.full((1, 4, 4), torch.nan))


@pytest.mark.slow
def test_gibbs_chains_have_the_distribution_of_the_exact_field():
    torch.manual_seed(0)
    gen = random_field((2, 3), grid_edges(2, 3), levels=3)
    gen.limit, gen.sweeps = 1, 30
    x = states(6, 3).reshape(-1, 2, 3)
    truth = energies(gen, x).softmax(0)
    draws = gen().sample((10_000,))
    code = (draws.flatten(1) @ 3.0 ** torch.arange(5, -1, -1).double()).long()
    shares = code.bincount(minlength=3**6) / len(draws)
    assert (shares - truth).abs().max() < 5 * (truth.max() / len(draws)) ** 0.5


def test_a_wide_field_is_imputed_by_chains():
    torch.manual_seed(0)
    gen, x = random_field((2, 3), grid_edges(2, 3)).float(), states(6).reshape(-1, 2, 3).float()
    rows = torch.tensor(
        [
            [[torch.nan, 1.0, 0.0], [torch.nan, torch.nan, 1.0]],
            [[1.0, torch.nan, 0.0], [0.0, 1.0, 0.0]],
        ]
    )
    truth, gen.limit = energies(gen, x), 1
    done = pg.impute(gen, rows, draws=5000, num_steps=20)
    assert done.kind == "asymptotic"
    for row, draws in zip(rows, done.draws.unbind(1), strict=True):
        match = ((x == row) | row.isnan()).flatten(1).all(-1)
        shares = torch.stack(
            [(draws == state).flatten(1).all(-1).float().mean() for state in x[match]]
        )
        assert shares.sum() == pytest.approx(1.0)
        assert (shares - truth[match].softmax(0)).abs().max() < 5 * (0.25 / 5000) ** 0.5


def test_pseudo_likelihood_is_the_sum_of_conditionals():
    torch.manual_seed(0)
    gen, x = random_field((2, 3), grid_edges(2, 3), levels=3), torch.randint(3, (5, 2, 3)).double()
    total = torch.zeros(5, dtype=torch.float64)
    for i, j in itertools.product(range(2), range(3)):
        others = x.repeat(3, 1, 1, 1)
        others[:, :, i, j] = torch.arange(3.0)[:, None]
        logits = torch.stack([energies(gen, other) for other in others], -1)
        total += logits.log_softmax(-1).gather(-1, x[:, i, j].long()[:, None])[:, 0]
    assert torch.allclose(gen().pseudo_log_prob(x), total, atol=1e-10)
    assert torch.allclose(PseudoLikelihood()(gen.model, gen.guide)(x), -total.sum(), atol=1e-10)


def test_pseudo_likelihood_recovers_the_coupling_of_a_wide_field():
    """Consistent: 60 exact draws of 8 x 8 spins, fitted without log Z."""
    torch.manual_seed(0)
    x = ising(8, 8, 0.3, periodic=False)().sample((60,)).float()
    gen = MarkovRandomField((8, 8), grid_edges(8, 8), shared=True, limit=1)
    pg.fit(
        gen,
        x,
        PseudoLikelihood(),
        steps=150,
        optimizer=pg.train.adam(0.05),
        compile=False,
        progress=False,
        seed=0,
    )
    w = gen.pairs[0].detach()
    coupling = (w[0, 0] + w[1, 1] - w[0, 1] - w[1, 0]).item() / 4
    assert coupling == pytest.approx(0.3, abs=0.05)  # standard error about 0.015


def test_pseudo_likelihood_needs_a_distribution_that_has_one():
    gen = pg.standard_normal(2)
    with pytest.raises(TypeError, match="pseudo_log_prob at site 'x', got"):
        PseudoLikelihood()(gen.model, gen.guide)(torch.zeros(1, 2))


def test_belief_propagation_is_exact_on_trees():
    torch.manual_seed(0)
    tree = [(0, 1), (1, 2), (1, 3), (3, 4), (5, 3)]
    gen = random_field((6,), tree, levels=3)
    found, distribution = gen.belief_propagation(tol=1e-12), gen()
    assert found.log_partition.item() == pytest.approx(
        distribution.log_partition().item(), abs=1e-10
    )
    assert torch.allclose(
        found.nodes[0], distribution.marginals(torch.full((6,), torch.nan)), atol=1e-10
    )
    assert found.n_iter <= 7  # the longest path, and a round that sees no change


def test_belief_propagation_on_loops_is_a_fixed_point_near_the_truth():
    """Weak coupling on a torus.

    Bethe's value is close, and its marginals agree with those of the edges.
    """
    gen = ising(4, 4, 0.15)
    gen.unary.data[:, 1] = 0.3
    found = gen.belief_propagation(damping=0.3, max_iter=500, tol=1e-12)
    assert found.residual < 1e-12
    edges = gen.edges
    assert torch.allclose(found.edges.sum(-1), found.nodes[:, edges[:, 0]], atol=1e-9)
    assert torch.allclose(found.edges.sum(-2), found.nodes[:, edges[:, 1]], atol=1e-9)
    assert found.log_partition.item() == pytest.approx(gen().log_partition().item(), abs=0.1)
    with pytest.raises(ValueError, match="0 <= damping < 1"):
        belief_propagation(gen.unary[None], gen.pairs, edges, damping=1.0)


def test_a_conditional_field_takes_its_unary_potentials_from_the_context():
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 8)
    gen = MarkovRandomField((4,), [(0, 1), (1, 2), (2, 3)], unary=net).double()
    gen.pairs.data.normal_()
    context, x = torch.randn(3, 2).double(), states(4)
    for c, distribution in zip(context, [gen(c[None]) for c in context], strict=True):
        alone = MarkovRandomField((4,), gen.neighbors).double()
        alone.pairs.data, alone.unary.data = gen.pairs.data, net(c).reshape(4, 2).detach()
        assert torch.allclose(
            distribution.log_prob(x), energies(alone, x).log_softmax(0), atol=1e-10
        )
    with pytest.raises(ValueError, match="expected a context"):
        gen()


def test_grids_and_colors():
    assert len(grid_edges(3, 4)) == 3 * 3 + 2 * 4 and len(grid_edges(3, 4, periodic=True)) == 2 * 12
    assert len(set(map(frozenset, grid_edges(2, 3, periodic=True)))) == len(
        grid_edges(2, 3, periodic=True)
    )
    assert len(grid_edges(2, 3, 4)) == 1 * 12 + 2 * 8 + 3 * 6
    groups = coloring(torch.tensor(grid_edges(5, 6)), 30)
    assert [len(group) for group in groups] == [15, 15]
    with pytest.raises(
        ValueError,
        match=r"edges between two of the variables 0, ..., 3, got levels 2 and \[\(1, 1\)\]",
    ):
        MarkovRandomField((4,), [(0, 1), (1, 1)])
