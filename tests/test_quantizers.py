"""Quantizers against their definitions: nearest codes, moving averages, restarts, grids."""

import multiprocessing

import pytest
import torch
from torch import distributed as processes
from torch.multiprocessing import spawn
from torch.testing import assert_close

from probgen.nn import Codebook, FiniteScalarQuantizer


def quantizers():
    return [Codebook(7, 3), FiniteScalarQuantizer((4, 3, 5))]


@pytest.mark.parametrize("quantizer", quantizers(), ids=lambda made: type(made).__name__)
def test_codes_are_those_of_their_tokens(quantizer):
    torch.manual_seed(0)
    z = torch.randn(5, 4, 3, requires_grad=True)
    made = quantizer.eval()(z)
    assert torch.equal(made.code, quantizer.embed(made.token))
    assert made.token.shape == (5, 4) and made.token.max() < quantizer.num_codes
    every = quantizer.embed(torch.arange(quantizer.num_codes))
    assert len(every.unique(dim=0)) == quantizer.num_codes
    again = quantizer.embed(torch.arange(quantizer.num_codes).float())
    assert torch.equal(every, again)


def test_a_codebook_takes_the_nearest_code_and_passes_the_gradient():
    torch.manual_seed(0)
    codebook = Codebook(7, 3, commitment=0.5).eval()
    z = torch.randn(20, 3, requires_grad=True)
    made = codebook(z)
    distance = (z[:, None] - codebook.codes).square().sum(-1)
    assert_close(made.token, distance.argmin(-1))
    assert_close(made.commitment, 0.5 * distance.min(-1).values)
    weight = torch.randn(20, 3)
    (passed,) = torch.autograd.grad((made.code * weight).sum(), z, retain_graph=True)
    assert_close(passed, weight)
    (pulled,) = torch.autograd.grad(made.commitment.sum(), z)
    assert_close(pulled, (z - made.code).detach())


def test_codes_follow_the_moving_averages_of_their_vectors():
    torch.manual_seed(0)
    codebook = Codebook(4, 2, decay=0.9, restart=0.0)
    counts, sums = torch.zeros(4), torch.zeros(4, 2)
    codes = codebook.codes.clone()
    for _ in range(20):
        z = torch.randn(30, 2)
        token = (z[:, None] - codes).square().sum(-1).argmin(-1)
        made = codebook(z)
        assert_close(made.token, token)
        for j in range(4):
            counts[j] = 0.9 * counts[j] + 0.1 * (token == j).sum()
            sums[j] = 0.9 * sums[j] + 0.1 * z[token == j].sum(0)
            codes[j] = sums[j] / counts[j] if counts[j] > 1e-6 else codes[j]
        assert_close(codebook.codes, codes)
        assert_close(made.code, codes[token])


def test_mixed_precision_leaves_the_averages_alone():
    torch.manual_seed(0)
    z = torch.randn(200, 2)
    plain, mixed = Codebook(4, 2, restart=0.0), Codebook(4, 2, restart=0.0)
    mixed.load_state_dict(plain.state_dict())
    plain(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed(z)
    assert torch.equal(plain.sums, mixed.sums)
    assert torch.equal(plain.codes, mixed.codes)


def test_eval_mode_leaves_the_codebook_and_the_random_state_alone():
    codebook = Codebook(4, 2).eval()
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    state = torch.get_rng_state()
    codebook(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in codebook.state_dict().items())


def test_codes_without_use_start_anew_at_vectors_of_the_batch():
    torch.manual_seed(0)
    codebook = Codebook(16, 2)
    z = 100 + torch.randn(64, 2)
    codebook(z)
    rows = {tuple(row) for row in z.tolist()}
    restarted = [tuple(code) in rows for code in codebook.codes.tolist()]
    assert sum(restarted) == 15  # all but the one code that was nearest to all of them
    for _ in range(300):
        codebook(100 + torch.randn(64, 2))
    used = codebook.eval()(100 + torch.randn(4000, 2)).token.unique()
    assert len(used) >= 14


def test_without_restarts_dead_codes_stay():
    torch.manual_seed(0)
    codebook = Codebook(16, 2, restart=0.0)
    before = codebook.codes.clone()
    for _ in range(300):
        codebook(100 + torch.randn(64, 2))
    assert (codebook.codes == before).all(-1).sum() == 15


@pytest.mark.parametrize("levels", [(2, 2), (3, 4, 5), (8, 6, 5)])
def test_a_grid_rounds_every_entry_to_its_levels(levels):
    quantizer = FiniteScalarQuantizer(levels)
    torch.manual_seed(0)
    z = (3 * torch.randn(4000, len(levels))).requires_grad_()
    made = quantizer(z)
    for at, count in enumerate(levels):
        steps = torch.arange(count) - count // 2
        assert_close(made.code[:, at].detach().unique(), steps / (count // 2))
    assert (made.commitment == 0).all()
    order = z[:, 0].detach().argsort()
    assert (made.code[order, 0].diff() >= 0).all()
    (slope,) = torch.autograd.grad(made.code.sum(), z)
    assert (slope >= 0).all() and slope.max() > 0
    assert_close(quantizer(torch.zeros(1, len(levels))).code, torch.zeros(1, len(levels)))


def test_vectors_of_another_length_are_refused():
    for quantizer in quantizers():
        with pytest.raises(ValueError, match="build the encoder for 3 outputs"):
            quantizer(torch.zeros(5, 2))


def _half_of_the_vectors(rank, address, restart, found):
    """One of two processes: a few steps of a codebook on half of the vectors of each batch."""
    processes.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    codebook = Codebook(6, 2, decay=0.5, restart=restart)
    batches = torch.randn(5, 40, 2) + 3
    torch.manual_seed(rank)
    for batch in batches:
        codebook(batch[rank::2])
    found[rank] = codebook.codes.tolist()
    processes.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("restart", [0.0, 0.5])
def test_two_processes_have_one_codebook_of_all_vectors(restart, tmp_path):
    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        address = f"file://{tmp_path}/together"
        spawn(_half_of_the_vectors, (address, restart, found), nprocs=2)
        one, other = torch.tensor(found[0]), torch.tensor(found[1])
    assert torch.equal(one, other)
    torch.manual_seed(0)
    codebook = Codebook(6, 2, decay=0.5, restart=restart)
    batches = torch.randn(5, 40, 2) + 3
    for batch in batches:
        codebook(batch)
    if restart:  # at vectors that each draws for itself
        assert not torch.equal(one, codebook.codes)
    else:
        assert_close(one, codebook.codes)
