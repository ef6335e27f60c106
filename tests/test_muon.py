"""Muon beside torch's optimizers, singular values, and runs that go on from a file."""

import sys

import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core.stacked import maps_of
from probgen.models.transformer import Transformer
from probgen.nn.causal import GatedLayer
from probgen.nn.transformer import Attention, Tokens
from probgen.train.muon import MuonAdamW, muon, orthogonalized


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 1))


def step(model, optimizers, seed):
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
    for optimizer in optimizers:
        optimizer.zero_grad()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_it_is_muon_of_torch_for_matrices_and_adamw_for_the_rest():
    ours, theirs = net(), net()
    matrices = [theirs[0].weight, theirs[2].weight]
    others = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    optimizers = [
        muon([ours[0], ours[2]], 0.02, others=0.01)(ours.parameters()),
        torch.optim.Muon(matrices, lr=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    start = list(net().parameters())
    for p, mine, other in zip(start, ours.parameters(), theirs.parameters(), strict=True):
        apart = (mine - other).norm() / (mine - p).norm()
        assert apart < (0.05 if any(other is m for m in matrices) else 1e-6)  # bfloat16


@pytest.mark.parametrize("shape", [(6, 6), (3, 4, 9), (2, 9, 4)])
def test_directions_stay_and_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalized(matrices) @ v.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert ((values > 0.4) & (values < 1.3)).all()
    assert (found - torch.diag_embed(values)).abs().max() < 0.06  # bfloat16
    assert not orthogonalized(torch.zeros(2, 3)).any()


def test_stacked_maps_are_orthogonalized_one_by_one():
    attention = Attention(8, 2)
    apart = [nn.Parameter(part.clone()) for part in attention.inputs.weight.detach().chunk(3)]
    gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    attention.inputs.weight.grad = gradient
    for part, own in zip(apart, gradient.chunk(3), strict=True):
        part.grad = own
    muon(attention)(attention.parameters()).step()
    muon(nn.ParameterList(apart))(apart).step()
    torch.testing.assert_close(attention.inputs.weight.data, torch.cat([p.data for p in apart]))


def test_layers_tell_how_many_maps_their_weights_hold():
    layer = GatedLayer(4)
    assert maps_of(layer) == {
        id(weight): 2
        for weight in (layer.vertical.weight, layer.horizontal.weight, layer.link.weight)
    }
    apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
    assert maps_of(nn.Sequential(nn.Linear(2, 2), apart)) == {}
    for kind, gates in ((nn.GRU, 3), (nn.LSTMCell, 4)):
        cells = kind(4, 2)
        weights = [p for p in cells.parameters() if p.ndim > 1]
        assert maps_of(cells) == {id(weight): gates for weight in weights}
    groups = muon(layer)(layer.parameters()).param_groups
    assert [(group["maps"], len(group["params"])) for group in groups] == [(1, 1), (2, 3), (0, 3)]


ROWS = torch.randint(3, (40, 6), generator=torch.Generator().manual_seed(0)).float()


def trained(steps, compile=False, **settings):
    torch.manual_seed(0)
    gen = Transformer((6,), pg.heads.Categorical(levels=3), Tokens(3, 8), layers=1, heads=2)
    optimizer = muon(gen.net.blocks, 0.01, others=3e-3)
    falling = lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 12)  # noqa: E731
    pg.fit(
        gen, ROWS, steps=steps, batch_size=8, optimizer=optimizer, scheduler=falling, ema=0.9,
        seed=0, compile=compile, verdict=False, progress=False, **settings,
    )  # fmt: skip
    return gen.state_dict()


def test_a_run_goes_on_from_a_file_bit_for_bit(tmp_path):
    whole = trained(8)
    path = tmp_path / "run.safetensors"
    trained(4, checkpoint=path)
    rest = trained(8, checkpoint=path, resume=True)
    assert all(torch.equal(whole[key], rest[key]) for key in whole)


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one():
    whole, compiled = trained(8), trained(8, compile=True)
    for key in whole:
        torch.testing.assert_close(compiled[key], whole[key], atol=2e-3, rtol=0.0)


def test_settings_of_another_optimizer_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    trained(2, checkpoint=path)
    gen = Transformer((6,), pg.heads.Categorical(levels=3), Tokens(3, 8), layers=1, heads=2)
    with pytest.raises(pg.train.CheckpointError, match=r"expected the optimizer .*MuonAdamW"):
        pg.fit(
            gen, ROWS, steps=4, batch_size=8, checkpoint=path, resume=True, seed=0, verdict=False
        )


def test_layers_of_another_model_are_refused_and_the_advice_works():
    gen = Transformer((6,), pg.heads.Categorical(levels=3), Tokens(3, 8), layers=1, heads=2)
    with pytest.raises(ValueError, match=r"pass muon\(gen.net.blocks\)"):
        muon(net())(gen.parameters())
    assert isinstance(muon(gen.net.blocks)(gen.parameters()), MuonAdamW)


def test_shards_of_matrices_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules[MuonAdamW.__module__], "is_sharded", lambda p: True)
    model = net()
    with pytest.raises(ValueError, match="expected whole matrices"):
        step(model, [muon(model[0])(model.parameters())], 0)


def test_a_game_may_give_each_player_one():
    """Groups of both stand in one optimizer."""
    one, two = net(), net()
    made = muon(one[0])(one.parameters())
    for group in muon(two[0], 0.2)(two.parameters()).param_groups:
        made.add_param_group({**group, "name": "two"})
    before = two[0].weight.clone()
    step(two, [made], 0)
    assert (two[0].weight - before).norm() > 0.1
