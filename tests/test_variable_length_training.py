"""Training of models of sequences whose lengths vary: lists, mini-batches, graphs, files."""

import pytest
import torch
from ragged import EXACT, NAN, every_row
from zoo import VARIABLE_LENGTH

import probgen as pg


def made(name: str, padding: float = NAN):
    torch.manual_seed(0)
    return EXACT[name](padding)


LEARNED = [member for member in VARIABLE_LENGTH if "EndToken transformer" in member.name]


@pytest.mark.slow
@pytest.mark.parametrize("member", LEARNED, ids=lambda member: member.name)
def test_recorded_steps_train_as_the_program_does(member, replayed):
    parameters = []
    for compile in (False, True):
        torch.manual_seed(0)
        gen, data = member.gen(), member.data()
        pg.fit(gen, data, steps=4, batch_size=3, compile=compile, seed=0, verdict=False)
        parameters.append(torch.cat([p.detach().flatten() for p in gen.parameters()]))
    torch.testing.assert_close(*parameters, atol=1e-5, rtol=1e-4)


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("name", EXACT)
def test_training_on_a_list_of_sequences_raises_the_likelihood(name):
    gen = made(name, -5.0)
    torch.manual_seed(2)
    sequences = [torch.ones(n, *gen().event_shape[1:]) for n in (2, 2, 2, 3)] * 10
    before = pg.log_likelihood(gen, sequences).value.mean()
    pg.fit(gen, sequences, steps=15, batch_size=20, compile=False, seed=0, verdict=False,
           optimizer=lambda p: torch.optim.Adam(p, 0.05))  # fmt: skip
    assert pg.log_likelihood(gen, sequences).value.mean() > before + 0.2


def test_training_goes_on_where_it_stopped(tmp_path):
    torch.manual_seed(0)
    x = made("end of a recurrent model").forward().sample((30,))
    finals = []
    for parts in ((8,), (4, 8)):
        gen = made("end of a recurrent model")
        path = tmp_path / f"{len(parts)}.safetensors"
        for steps in parts:
            pg.fit(gen, x, steps=steps, batch_size=10, compile=False, seed=0, verdict=False,
                   checkpoint=path, resume=path.exists())  # fmt: skip
        finals.append(torch.cat([p.detach().flatten() for p in gen.parameters()]))
    assert torch.equal(*finals)


def test_saved_and_loaded_models_are_the_same(tmp_path):
    for name in ("lengths of a transformer", "end of a recurrent model"):
        gen, other = made(name), EXACT[name](NAN)
        pg.save(gen, tmp_path / "model.safetensors")
        pg.load(tmp_path / "model.safetensors", into=other)
        x = every_row(gen)
        assert torch.equal(gen().log_prob(x), other().log_prob(x))
