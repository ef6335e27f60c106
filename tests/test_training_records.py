"""What trained a model stands beside it, in memory and in files; what did not train stays so."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import probgen as pg
from probgen.heads import Gaussian
from probgen.nn import MLP, Constant
from probgen.train import TrainingRecord, training_records
from probgen.train.checkpoint import CheckpointError, read, write

QUIET = {"progress": False, "compile": False, "verdict": False, "seed": 0}


def gaussian():
    return Gaussian(Constant(4))


def vae(prior=None):
    prior = prior or pg.standard_normal(2)
    return pg.VAE(prior, Gaussian(MLP(2, [4], 6)), Gaussian(MLP(3, [4], 4)))


def test_fit_leaves_what_it_did():
    x = torch.randn(40, 2)
    gen = gaussian()
    history = pg.fit(gen, x, steps=6, validation=x[:9], validate_every=2, batch_size=8, **QUIET)
    (record,) = training_records(gen)
    assert (record.by, record.steps, record.rows, record.stopped) == ("fit", 6, 40, "6 steps done")
    assert record.objective.startswith("ELBO(") and record.loss == history.loss[-1]
    assert record.validation == min(value for _, value in history.validation)
    assert record.seconds == history.seconds > 0
    assert record.settings["batch_size"] == 8 and record.settings["learning_rate"] == 1e-3
    assert record.versions["torch"] == torch.__version__
    with torch.no_grad():  # exact: the last validation is the log-likelihood of the model
        truth = -gen().log_prob(x[:9]).mean().item()
    assert record.kind == "exact" and history.validation[-1][1] == pytest.approx(truth, abs=1e-5)


def test_em_leaves_what_it_did():
    x = torch.randn(60, 2)
    gen = pg.GaussianMixture(2, 2)
    result = pg.em(gen, x, weights=torch.full((60,), 2.0), max_iter=3, tol=0.0, seed=0)
    (record,) = training_records(gen)
    assert (record.by, record.steps, record.rows) == ("em", 3, 120.0)
    assert record.loss == -result.log_likelihood[-1] and record.kind == "exact"
    assert record.settings == {"max_iter": 3, "tol": 0.0, "n_init": 1}


KINDS = {
    "a density": (gaussian, None, 2, "exact"),
    "a density by several particles": (gaussian, lambda: pg.ELBO(particles=2), 2, "exact"),
    "a latent-variable model": (vae, None, 3, "bound"),
    "importance weights": (vae, lambda: pg.objectives.IWAE(particles=2), 3, "bound"),
    "another weight of the divergence": (vae, lambda: pg.ELBO(beta=0.5), 3, ""),
    "free bits": (vae, lambda: pg.ELBO(free_bits=0.1), 3, ""),
    "no likelihood": (gaussian, lambda: pg.objectives.ScoreMatching(), 2, ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_says_what_it_is(kind):
    make, objective, dims, expected = KINDS[kind]
    x = torch.randn(20, dims)
    gen = make()
    pg.fit(gen, x, objective and objective(), steps=1, validation=x, validate_every=1, **QUIET)
    (record,) = training_records(gen)
    assert record.kind == expected and record.validation is not None


def test_records_of_parts_and_of_what_came_before_are_saved(tmp_path):
    prior = pg.GaussianMixture(2, 2)
    pg.em(prior, torch.randn(30, 2), max_iter=2, tol=0.0, seed=0)
    gen = vae(prior)
    pg.fit(gen, torch.randn(20, 3), steps=1, **QUIET)
    pg.fit(gen, torch.randn(20, 3), steps=2, **QUIET)
    pg.save(gen, tmp_path / "m")
    again = pg.load(tmp_path / "m")
    assert training_records(again) == training_records(gen) and len(training_records(gen)) == 2
    assert training_records(again.prior) == training_records(prior) != []
    into = vae(pg.GaussianMixture(2, 2))
    pg.fit(into, torch.randn(20, 3), steps=3, **QUIET)  # of weights that are overwritten
    pg.load(tmp_path / "m", into=into)
    assert training_records(into) == training_records(gen)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(gen)))
    assert training_records(copied) == training_records(gen)
    assert json.loads(json.dumps(read(tmp_path / "m")[1]["training"])).keys() == {"", "prior"}


def test_a_checkpoint_tells_as_fit_does(tmp_path):
    x = torch.randn(40, 2)
    gen = pg.GaussianMixture(2, 2)
    pg.em(gen, x, max_iter=1, tol=0.0, seed=0)
    pg.fit(gen, x, steps=3, validation=x, checkpoint=tmp_path / "c", **QUIET)
    again = pg.load(tmp_path / "c")
    told = [(record.by, record.steps, record.kind) for record in training_records(again)]
    assert told == [("em", 1, "exact"), ("fit", 3, "exact")]
    assert training_records(again)[1].validation == training_records(gen)[1].validation
    # a run that goes on is one run
    pg.fit(again, x, steps=5, validation=x, checkpoint=tmp_path / "c", resume=True, **QUIET)
    assert [(r.by, r.steps) for r in training_records(again)] == [("em", 1), ("fit", 5)]


def test_a_run_that_failed_is_told_too():
    x = torch.randn(10, 2)
    gen = gaussian()

    calls = []

    def loss(model, guide, x):
        calls.append(x)
        return gen().log_prob(x).sum() * (torch.nan if len(calls) > 4 else 1.0)

    with pytest.raises(pg.NonFiniteLoss):
        pg.fit(gen, x, loss, steps=9, **QUIET)
    (record,) = training_records(gen)
    assert record.stopped == "the loss was not finite" and record.objective.endswith("loss")


def test_what_is_random_is_left_alone():
    x = torch.randn(40, 3)
    states = []
    for validation in (None, x[:5]):
        torch.manual_seed(3)
        gen = vae()
        pg.fit(gen, x, steps=3, validation=validation, **(QUIET | {"seed": None}))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_models_without_a_record_say_so(tmp_path):
    pg.save(nn.Linear(1, 1), tmp_path / "m")
    assert training_records(pg.load(tmp_path / "m")) == []
    tensors, metadata = read(tmp_path / "m")
    for name in ("training", "frozen"):  # as files of before
        metadata.pop(name)
    write(tmp_path / "m", tensors, metadata)
    assert training_records(pg.load(tmp_path / "m")) == []
    with pytest.raises(TypeError, match="expected a model, got str; pass the module"):
        training_records("m")


DAMAGED = {
    "no records": {"training": 3},
    "a record that is none": {"training": {"": [3]}},
    "a record without a name": {"training": {"": [{"by": "fit"}]}},
    "steps that are no number": {"training": {"": [{"by": "fit", "objective": "", "steps": "3"}]}},
    "frozen parameters that are none": {"frozen": [3]},
    "frozen parameters in another form": {"frozen": "weight"},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_records_are_said(kind, tmp_path):
    layer = nn.Linear(1, 1)
    pg.save(layer, tmp_path / "m")
    tensors, metadata = read(tmp_path / "m")
    write(tmp_path / "m", tensors, metadata | DAMAGED[kind])
    for into in (None, layer):
        with pytest.raises(CheckpointError, match="is damaged"):
            pg.load(tmp_path / "m", into=into)


def test_entries_of_later_versions_are_left_out(tmp_path):
    pg.save(nn.Linear(1, 1), tmp_path / "m")
    tensors, metadata = read(tmp_path / "m")
    record = {"by": "fit", "objective": "ELBO()", "steps": 2, "weather": "fine"}
    write(tmp_path / "m", tensors, metadata | {"training": {"": [record]}})
    expected = TrainingRecord("fit", "ELBO()", 2)
    assert training_records(pg.load(tmp_path / "m")) == [expected]


# -- what does not train


def trained(gen):
    return {name for name, parameter in gen.named_parameters() if parameter.requires_grad}


def test_what_is_frozen_stays_frozen(tmp_path):
    gen = vae(pg.GaussianMixture(2, 2))
    gen.prior.requires_grad_(False)
    pg.save(gen, tmp_path / "m")
    again = pg.load(tmp_path / "m")
    assert trained(again) == trained(gen) != trained(vae(pg.GaussianMixture(2, 2)))
    before = [value.clone() for value in again.prior.parameters()]
    pg.fit(again, torch.randn(20, 3), steps=2, **QUIET)
    assert all(map(torch.equal, before, again.prior.parameters()))


def test_a_checkpoint_keeps_it_too(tmp_path):
    gen = vae(pg.GaussianMixture(2, 2))
    gen.prior.requires_grad_(False)
    pg.fit(gen, torch.randn(20, 3), steps=2, checkpoint=tmp_path / "c", **QUIET)
    assert trained(pg.load(tmp_path / "c")) == trained(gen)


def test_into_a_model_nothing_thaws(tmp_path):
    gen = vae(pg.GaussianMixture(2, 2))
    gen.prior.requires_grad_(False)
    pg.save(gen, tmp_path / "m")
    into = vae(pg.GaussianMixture(2, 2))
    into.encoder.requires_grad_(False)
    pg.load(tmp_path / "m", into=into)
    assert trained(into) == {name for name in trained(gen) if not name.startswith("encoder.")}


def test_what_was_thawed_trains(tmp_path):
    layer = nn.Linear(2, 2).requires_grad_(False)
    gen = Gaussian(nn.Sequential(layer))
    layer.requires_grad_(True)
    pg.save(gen, tmp_path / "m")
    assert trained(pg.load(tmp_path / "m")) == {"net.0.weight", "net.0.bias"}


# -- what is no model


class Found:
    """A result that holds a model, as those of a search do."""

    def __init__(self):
        self.model = gaussian()


NO_MODELS = {
    "a history": (lambda: pg.History(), "the model that fit trained"),
    "a state dict": (lambda: gaussian().state_dict(), "the model that it is of"),
    "a result": (Found, r"the model of the Found: result\.model"),
    "several models": (lambda: [gaussian(), gaussian()], r"torch\.nn\.ModuleList\(models\)"),
    "the path": (lambda: "m", r"the model first: pg\.save\(model, path\)"),
    "a class": (lambda: pg.GaussianMixture, r"call it: GaussianMixture\(\.\.\.\)"),
    "nothing": (lambda: None, "pass a model, a torch.nn.Module"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_is_told_what_to_save(kind, tmp_path):
    make, advice = NO_MODELS[kind]
    with pytest.raises(TypeError, match=advice):
        pg.save(make(), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_advice_works(tmp_path):
    pg.save(Found().model, tmp_path / "m")
    pg.save(nn.ModuleList([gaussian(), gaussian()]), tmp_path / "m")
    assert len(pg.load(tmp_path / "m")) == 2
