"""What is refused says what was expected, what came and what to do; the advice is run."""

import inspect
import re
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.distributions.constraints as pyros
import pytest
import torch
from asked.public import public
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints as torchs
from torch.distributions.constraints import Constraint

import probgen as pg
from probgen.core.keywords import MEANINGS, advice, taken, taken_by
from probgen.core.module import DistributionModule, LatentVariableModel
from probgen.core.support_words import in_words
from probgen.distributions.codes import _CodeVectors
from probgen.distributions.flows.complete import INCOMPLETE
from probgen.distributions.mixture_of import AnyOf
from probgen.distributions.sequences.ends import SupportOrPadding
from probgen.graphical import ProbabilityTable
from probgen.heads import Bernoulli, Categorical, Gaussian, Poisson
from probgen.nn import MLP, Constant
from probgen.objectives import Objective

QUIET = {"steps": 2, "progress": False, "verdict": False, "compile": False}
X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
NAN = float("nan")


def refused(kind, *parts):
    return pytest.raises(kind, match=".*".join(map(re.escape, parts)))


def gaussian():
    return Gaussian(Constant(4))


def conditional_gaussian():
    return Gaussian(MLP(3, [4], 4))


# Bayesian networks

RAIN = torch.tensor([0.8, 0.2])
WET = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
STATES = {"rain": ("no", "yes"), "wet": ("no", "yes")}


def network():
    tables = {"rain": RAIN, "wet": WET}
    return pg.BayesianNetwork.from_tables(tables, {"wet": ["rain"]}, states=STATES)


def test_questions_without_rows_are_about_the_prior():
    gen = network()
    found = gen.marginals()
    torch.testing.assert_close(found["rain"], RAIN[None])
    torch.testing.assert_close(found["wet"], (RAIN @ WET)[None])
    assert gen.log_evidence().abs().item() < 1e-6
    best = max(((r, w) for r in range(2) for w in range(2)), key=lambda p: RAIN[p[0]] * WET[p])
    assert gen.mode().tolist() == [list(best)]
    torch.testing.assert_close(gen.joint(None, "rain", "wet")[0], RAIN[:, None] * WET)


def test_contexts_give_the_rows_where_none_are_given():
    parts = {"a": Categorical(MLP(2, [4], 3), levels=3), "b": ProbabilityTable(2, (3,))}
    gen = pg.BayesianNetwork(parts, {"a": ["context"], "b": ["a"]}, context=2)
    context = torch.randn(5, 2)
    rows = gen.row().expand(5, -1)
    torch.testing.assert_close(
        gen.marginals(context=context)["b"], gen.marginals(rows, context)["b"]
    )


QUESTIONS = {
    "a state by keyword": (lambda n: n.marginals(wet="yes"), TypeError, "x=network.row(wet=...)"),
    "an unknown node by keyword": (lambda n: n.mode(weet="yes"), TypeError, "network.row(weet="),
    "an unknown state": (
        lambda n: n.marginals(n.row(wet="maybe")),
        ValueError,
        "give one of these",
    ),
    "an unknown node": (lambda n: n.marginals(n.row(weet=1)), ValueError, "did you mean 'wet'"),
    "unknown nodes": (lambda n: n.marginals(nodes=["weet"]), ValueError, "did you mean 'wet'"),
    "names for rows": (lambda n: n.joint("wet"), TypeError, "network.row() if nothing is"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_that_cannot_be_answered(name):
    ask, kind, text = QUESTIONS[name]
    with refused(kind, "expected", "got", text):
        ask(network())


@pytest.mark.parametrize("states", [None, STATES])
@pytest.mark.parametrize("table", [RAIN, torch.full((2, 2, 2), 0.5)], ids=["too few", "too many"])
def test_tables_of_other_dims_than_their_parents(states, table):
    tables = {"rain": RAIN, "wet": table}
    with refused(
        ValueError, "expected a table of 2 dims at 'wet'", "('rain',)", "got one of shape"
    ):
        pg.BayesianNetwork.from_tables(tables, {"wet": ["rain"]}, states=states)


# arguments of programs


def regression(g, x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x + g, 1.0), obs=y)


def program(model=regression):
    return pg.Program(model, AutoNormal(pyro.poutine.block(model, hide=["y"])))


G, A, Y = torch.tensor(0.5), X[:, 0], X[:, 1]
WRONG = {
    "one forgotten": (G, A),
    "two forgotten": (Y,),
    "one too many": (G, A, Y, Y),
    "all in one tuple": ((G, A, Y),),
}
CALLS = {
    "fit": lambda gen, args: pg.fit(gen, args, **QUIET),
    "log_likelihood": lambda gen, args: pg.log_likelihood(gen, *args),
    "posterior": lambda gen, args: pg.posterior(gen, *args, draws=2),
    "predictive": lambda gen, args: pg.predictive(gen, *args, draws=2),
    "khat": lambda gen, args: pg.khat(gen, *args),
    "mcmc": lambda gen, args: pg.mcmc(gen, *args, draws=2, tune=2),
    "verdict": lambda gen, args: pg.verdict(gen, *args),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", WRONG)
def test_arguments_that_a_model_does_not_take(wrong, call):
    form = "(gen, (g, x, y))" if call == "fit" else "(gen, g, x, y)"
    with refused(TypeError, "expected the arguments of the model (g, x, y), got", call + form):
        CALLS[call](program(), WRONG[wrong])


@pytest.mark.filterwarnings("ignore")
def test_the_call_that_is_advised_works():
    gen, args = program(), (G, A, Y)
    pg.fit(gen, args, **QUIET)
    assert pg.log_likelihood(gen, *args).value.shape == (20,)


OTHERS = {
    "a model without arguments": (lambda: None, None, (Y,), "model ()"),
    "a guide of fewer": (regression, lambda x: None, (G, A, Y), "guide (x)"),
    "by name": (regression, None, ({"g": G, "x": A, "z": Y},), "got 1 (a dict of 3)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_signatures_that_do_not_fit(name):
    model, guide, args, text = OTHERS[name]
    with refused(TypeError, "expected the arguments of the", text):
        pg.fit(pg.Program(model, guide), args, **QUIET)


def test_samples_of_a_program_of_other_arguments():
    with refused(TypeError, "(x=None, context=None)", "predictive(gen, g, x, y)"):
        pg.sample(program(), 3)


# keywords

KNOWN = {
    ("fit", "lr"): "optimizer=",
    ("fit", "learning_rate"): "optimizer=",
    ("fit", "n_iter"): "steps=",
    ("fit", "num_steps"): "steps=",
    ("fit", "max_epochs"): "epochs=",
    ("fit", "batchsize"): "batch_size=",
    ("fit", "verbose"): "progress=",
    ("fit", "callback"): "callbacks=",
    ("fit", "random_state"): "seed=",
    ("fit", "device"): "fabric=",
    ("fit", "loss_fn"): "objective=",
    ("fit", "early_stopping"): "patience=",
    ("fit", "epoches"): "did you mean epochs?",
    ("fit", "n_components"): "it takes gen, data, objective",
    ("em", "n_iter"): "max_iter=",
    ("em", "epochs"): "max_iter=",
    ("em", "restarts"): "n_init=",
    ("em", "chunk_size"): "max_rows=",
    ("sample", "n_samples"): "n=",
    ("posterior", "num_samples"): "draws=",
    ("log_likelihood", "n_samples"): "particles=",
    ("mcmc", "warmup"): "tune=",
    ("mcmc", "num_chains"): "chains=",
    ("impute", "n_samples"): "draws=",
    ("impute", "steps"): "num_steps=",
    ("log_likelihood", "batch_rows"): "max_rows=",
    ("pad", "maxlen"): "length=",
    ("verdict", "draws"): "particles=",
    ("predictive_check", "rng"): "seed=",
}


@pytest.mark.parametrize(("function", "word"), KNOWN)
def test_keywords_of_other_libraries(function, word):
    with refused(TypeError, f"expected arguments that {function} takes, got {word}; ") as caught:
        getattr(pg, function)(gaussian(), X, **{word: 1})
    assert KNOWN[function, word] in str(caught.value)


BUILT = {
    "components of a mixture": (lambda: pg.GaussianMixture(n_components=3, dims=2), "components="),
    "dims": (lambda: pg.MAF(n_features=2), "dims="),
    "layers": (lambda: pg.NSF(2, n_flows=3), "layers="),
    "hidden, passed on": (lambda: pg.NSF(2, hidden_features=(8,)), "hidden="),
    "factors": (lambda: pg.FactorAnalysis(4, latent_dim=2), "factors="),
    "a typing error": (
        lambda: pg.GaussianMixture(3, 2, covarience=None),
        "did you mean covariance",
    ),
    "an objective": (lambda: pg.ELBO(num_particles=3), "particles="),
    "steps of chains": (lambda: pg.objectives.ContrastiveDivergence(k=5), "num_steps="),
    "steps of flow": (lambda: pg.Glow((1, 4, 4), steps=2), "flow_steps="),
    "a head": (lambda: Categorical(Constant(3), n_levels=3), "did you mean levels?"),
}


@pytest.mark.parametrize("name", BUILT)
def test_keywords_of_constructors(name):
    build, text = BUILT[name]
    with refused(TypeError, "expected arguments that", "takes, got", text):
        build()


FUNCTIONS = {
    name: value
    for name, value in public().items()
    if inspect.isfunction(value)
    and any(p.kind is p.KEYWORD_ONLY for p in inspect.signature(value).parameters.values())
    and not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(value).parameters.values())
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_explains_its_keywords(name):
    with refused(TypeError, f"expected arguments that {name} takes, got no_such_word; "):
        FUNCTIONS[name](no_such_word=1)


@pytest.mark.parametrize("meaning", MEANINGS, ids=lambda meaning: min(meaning.words))
def test_advice_names_a_parameter_that_there_is(meaning):
    classes = [value for value in public().values() if inspect.isclass(value)]
    known = {name for value in FUNCTIONS.values() for name in taken(value) or ()}
    known |= {name for value in classes for name in inspect.signature(value.__init__).parameters}
    assert set(meaning.does) <= known
    for parameter, text in meaning.does.items():
        assert text.startswith(f"{parameter}=")
        for word in meaning.words - {parameter}:
            assert advice(word, (parameter,)).startswith("give ")


def test_the_advice_about_learning_rates_works():
    text = advice("lr", taken(pg.fit))
    optimizer = eval(text.removeprefix("give optimizer="), {"probgen": pg})
    assert pg.fit(gaussian(), X, optimizer=optimizer, **QUIET).steps == 2


# contexts

FORMS = {
    "fit": (lambda gen: pg.fit(gen, X, **QUIET), "fit(gen, (x, context))"),
    "validation": (
        lambda gen: pg.fit(gen, (X, torch.randn(20, 3)), validation=X, **QUIET),
        "validation=(x, context)",
    ),
    "no data": (lambda gen: pg.fit(gen, None, pg.ELBO(), **QUIET), "fit(gen, (x, context))"),
    "log_likelihood": (lambda gen: pg.log_likelihood(gen, X), "log_likelihood(gen, x, context)"),
    "impute": (lambda gen: pg.impute(gen, X), "impute(gen, x, context)"),
    "posterior": (lambda gen: pg.posterior(gen, X), "posterior(gen, x, context)"),
    "sample": (lambda gen: pg.sample(gen, 3), "sample(gen, n, context)"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_forgotten_context_is_told_in_the_form_of_the_call(name):
    call, form = FORMS[name]
    with refused(ValueError, "expected a context of shape (*batch, 3), got None; give one", form):
        call(conditional_gaussian())


@pytest.mark.filterwarnings("ignore")
def test_those_forms_work():
    gen, context = conditional_gaussian(), torch.randn(20, 3)
    pg.fit(gen, (X, context), validation=(X, context), **QUIET)
    assert pg.log_likelihood(gen, X, context).value.shape == (20,)
    assert pg.sample(gen, 4, context).shape == (4, 20, 2)


# data that are not there

OBJECTIVES = {
    name: value
    for name, value in vars(pg.objectives).items()
    if inspect.isclass(value) and issubclass(value, Objective) and value is not Objective
}
NEEDING = {
    "AttributeTranslation": None,  # it asks for attributes first
    "Adversarial": lambda: pg.objectives.Adversarial(
        pg.objectives.Adversary(MLP(2, [4], 1), pg.objectives.NonSaturating())
    ),
    "ClassBalancing": lambda: pg.objectives.ClassBalancing(torch.eye(2)),
    "CycleConsistency": None,  # it asks for rows of two sets
    "DReG": lambda: pg.objectives.DReG(4),
    "DenoisingScoreMatching": lambda: pg.objectives.DenoisingScoreMatching(0.1),
    "FactorVAE": lambda: pg.objectives.FactorVAE(MLP(2, [4], 1)),
    "Hybrid": lambda: pg.objectives.Hybrid(pg.ELBO()),
    "IWAE": lambda: pg.objectives.IWAE(4),
    "MatchedLatents": None,  # it asks for latents first
    "NoiseContrastive": lambda: pg.objectives.NoiseContrastive(pg.standard_normal(2)),
    "ProgressiveDistillation": lambda: pg.objectives.ProgressiveDistillation(gaussian(), 2),
    "Reflow": lambda: pg.objectives.Reflow(gaussian()),
    "Renyi": lambda: pg.objectives.Renyi(0.5, 4),
    "SoftTargets": lambda: pg.objectives.SoftTargets(gaussian()),
    "TotalCorrelation": lambda: pg.objectives.TotalCorrelation(4),
    "TrajectoryBalance": None,  # it draws what it needs
    "WakeSleep": lambda: pg.objectives.WakeSleep(4),
}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objectives_of_data_refuse_none(name):
    make = NEEDING.get(name, OBJECTIVES[name])
    if make is None:
        return
    with pytest.raises(ValueError, match=r"expected data, got none: .* fit\(gen, x\)"):
        pg.fit(gaussian(), None, make(), **QUIET)


UNDER = {
    "EnergyBasedModel": (
        lambda: pg.EnergyBasedModel(MLP(2, [4], 1), (2,)),
        pg.objectives.ContrastiveDivergence,
    ),
    "FlowMatching": (
        lambda: pg.FlowMatching(pg.nn.TimeMLP(2, [4]), (2,)),
        pg.objectives.Denoising,
    ),
}


@pytest.mark.parametrize("name", UNDER)
def test_families_that_are_trained_otherwise_refuse_none(name):
    make, objective = UNDER[name]
    with refused(ValueError, "expected data, got none", "fit(gen, x)"):
        pg.fit(make(), None, objective(), **QUIET)


def forgetting(x, y=None):
    return regression(0.0, x, y)


@pytest.mark.parametrize("hidden", [[], ["y"]], ids=["drawn by the guide", "hidden from it"])
def test_a_program_that_observes_nothing_is_refused(hidden):
    gen = pg.Program(forgetting, AutoNormal(pyro.poutine.block(forgetting, hide=hidden)))
    with refused(ValueError, "nothing is observed", "w, y", "fit(gen, (x, y))"):
        pg.fit(gen, A, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observing = pg.Program(forgetting, AutoNormal(pyro.poutine.block(forgetting, hide=["y"])))
        pg.fit(observing, (A, Y), **QUIET)


class Centered(Objective):
    """An objective that needs no data."""

    def differentiable_loss(self, model, guide, *batch):
        return pyro.poutine.trace(guide).get_trace(*batch).nodes["w"]["value"].square().sum()


def alone():
    pyro.sample("w", dist.Normal(0.0, 1.0))


def weighed(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("fit", -(x - w).square().sum())


def test_programs_without_observations_that_are_meant():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pg.fit(pg.Program(alone, AutoNormal(alone)), None, **QUIET)
        pg.fit(pg.Program(alone, AutoNormal(alone)), None, Centered(), **QUIET)
        pg.fit(pg.Program(weighed, AutoNormal(weighed)), A, batch_size=20, **QUIET)
    gen = pg.Program(forgetting, AutoNormal(forgetting))
    with pytest.warns(pg.FitWarning, match="nothing is observed"):
        pg.fit(gen, A, Centered(), **QUIET)


# other units

DISCRETE = {
    "trees": lambda: pg.MixtureOfTrees(2, (2, 2)),
    "Bernoulli": lambda: Bernoulli(Constant(2)),
    "Poisson": lambda: Poisson(Constant(2)),
    "Categorical given a context": lambda: Categorical(MLP(3, [4], 6), levels=3),
    "RBM": lambda: pg.RBM(pg.energy.BernoulliUnits(2), 2),
    "network": network,
}
BOUNDED = {
    "positive": lambda: pg.Fixed(dist.Exponential, rate=torch.ones(2)),
    "sphere": lambda: pg.SphereFlow(transforms=1, bins=4),
}
FITTED = {
    "Standardized": pg.Standardized.fitted,
    "Preprocessed": pg.Preprocessed.fitted,
}


@pytest.mark.parametrize("way", FITTED)
@pytest.mark.parametrize("name", DISCRETE)
def test_labels_have_no_units(name, way):
    with refused(ValueError, "expected a family of continuous variables, got", "whose values are"):
        FITTED[way](DISCRETE[name](), X.sign().clamp(min=0))
    with refused(ValueError, "expected a family of continuous variables"):
        pg.Standardized(DISCRETE[name](), loc=1.0)


@pytest.mark.parametrize("way", FITTED)
@pytest.mark.parametrize("name", BOUNDED)
def test_families_of_some_numbers_are_not_centered(name, way):
    rows = torch.rand(20, 3 if name == "sphere" else 2)
    with refused(ValueError, "expected a family on all real numbers, got"):
        FITTED[way](BOUNDED[name](), rows)


def test_families_of_some_numbers_may_be_rescaled():
    gen = pg.Standardized(BOUNDED["positive"](), scale=2.0)
    x = torch.tensor([[1.0, 3.0]])
    expected = dist.Exponential(0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(gen().log_prob(x), expected)


def test_labels_as_contexts_of_preprocessed_families():
    labels = torch.arange(20) % 3
    with refused(ValueError, "got integer labels of shape (20,); one-hot them: "):
        pg.Preprocessed.fitted(conditional_gaussian(), X, labels)
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    assert pg.Preprocessed.fitted(conditional_gaussian(), X, one_hot)(one_hot).batch_shape == (20,)


def infinite(rows):
    return rows.index_fill(0, torch.tensor([3]), torch.inf)


INFINITE = {
    "fit": lambda: pg.fit(gaussian(), infinite(X), **QUIET),
    "em": lambda: pg.em(pg.GaussianMixture(2, 2), infinite(X)),
    "log_likelihood": lambda: pg.log_likelihood(gaussian(), infinite(X)),
    "Standardized": lambda: pg.Standardized.fitted(gaussian(), infinite(X)),
    "Preprocessed": lambda: pg.Preprocessed.fitted(gaussian(), infinite(X)),
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinities_are_to_be_corrected_or_marked_missing(name):
    with refused(ValueError, "got inf in row 3", "correct it, or mark it missing (NaN)"):
        INFINITE[name]()


def test_infinite_contexts_are_to_be_corrected():
    context = infinite(torch.randn(20, 3))
    for call in (
        lambda: pg.log_likelihood(conditional_gaussian(), X, context),
        lambda: pg.Preprocessed.fitted(conditional_gaussian(), X, context),
    ):
        with refused(ValueError, "expected finite contexts, got inf in row 3; correct it"):
            call()


# imputation

GAPS = torch.where(torch.arange(40).reshape(20, 2) % 7 == 0, NAN, X)
FLOWS = {
    "plain": lambda: pg.MAF(2),
    "Standardized": lambda: pg.Standardized.fitted(pg.MAF(2), X),
    "Preprocessed": lambda: pg.Preprocessed.fitted(pg.MAF(2), X),
    "Preprocessed, on a grid": lambda: pg.Preprocessed.fitted(pg.MAF(2), (3 * X).round()),
    "twice": lambda: pg.Standardized(pg.Standardized(pg.MAF(2))),
    "Transformed": lambda: pg.Transformed(pg.MAF(2), pg.Gaussianized.of(X, -4.0, 4.0, 5)),
    "Mixture": lambda: pg.Mixture([pg.MAF(2), pg.MAF(2)]),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_in_any_wrapper_say_that_they_want_complete_rows(name):
    x = (3 * GAPS).round() if "grid" in name else GAPS
    with pytest.raises((NotImplementedError, ValueError), match=re.escape(INCOMPLETE)):
        pg.impute(FLOWS[name](), x)


PRECISE = {
    "float64": (GAPS.double(), torch.float64),
    "float32": (GAPS, torch.float32),
    "an array": (GAPS.double().numpy(), torch.float64),
    "an array of float32": (GAPS.numpy(), torch.float32),
    "a frame": (pd.DataFrame(GAPS.double().numpy(), columns=["a", "b"]), torch.float64),
    "lists": ([[1.0, None], [0.5, 2.0]], torch.float32),
}


@pytest.mark.parametrize("name", PRECISE)
def test_imputations_keep_the_precision_of_the_data(name):
    x, dtype = PRECISE[name]
    given = torch.as_tensor(np.array(x, dtype=float))
    given = given + 1e-12 if dtype == torch.float64 and name == "float64" else given
    x = given if name == "float64" else x
    done = pg.impute(pg.GaussianMixture(2, 2), x, draws=2)
    assert done.draws.dtype == done.mean().dtype == dtype
    assert (done.draws[:, ~done.missing] == given[~done.missing].to(dtype)).all()


# labels

DIGITS = torch.arange(20) % 3
SOME = torch.where(DIGITS == 2, -1, DIGITS)  # -1 where the label is unknown


def semi_supervised():
    decoder = Gaussian(MLP(2 + 3, [4], 4))
    encoder = Gaussian(MLP(2 + 3, [4], 4))
    return pg.SemiSupervisedVAE(pg.standard_normal(2), decoder, encoder, MLP(2, [4], 3), 3)


def partly_labeled(unknown=None):
    def model(x, y):
        with pyro.plate("data", len(x)):
            label = pg.observe("y", dist.Categorical(torch.ones(3)), y, unknown=unknown)
            pyro.sample("x", dist.Normal(1.0 * label, 1.0), obs=x)

    return pg.Program(model)


LABEL_DOORS = {
    "sample": lambda gen, y: pg.sample(gen, 2, y),
    "the distribution": lambda gen, y: gen(y),
    "fit": lambda gen, y: pg.fit(gen, (X, y), **QUIET),
    "log_likelihood": lambda gen, y: pg.log_likelihood(gen, X, y),
    "posterior": lambda gen, y: pg.posterior(gen, X, y, draws=2),
    "predictive": lambda gen, y: pg.predictive(gen, X, y, draws=2),
    "impute": lambda gen, y: pg.impute(gen, X, y),
}


@pytest.mark.parametrize("door", LABEL_DOORS)
def test_one_hot_labels_are_refused_in_one_sentence_everywhere(door):
    text = "expected labels y of shape (N,), got (20, 3); give one number for each row: of one-hot"
    with refused(ValueError, text, "y.argmax(-1)") as caught:
        LABEL_DOORS[door](semi_supervised(), torch.eye(3)[DIGITS])
    assert "\n" not in str(caught.value)


def test_labels_of_several_batch_dims_are_no_one_hot_ones():
    assert semi_supervised()(torch.tensor([[0, 1, 2], [2, 1, 1]])).batch_shape == (2, 3)
    assert pg.sample(semi_supervised(), 2, torch.tensor(1)).shape == (2, 2)


UNKNOWN = {
    "a family, fit": (semi_supervised, LABEL_DOORS["fit"], "Labeled(x, y, unknown=-1)"),
    "a family": (semi_supervised, LABEL_DOORS["log_likelihood"], "its .y elsewhere"),
    "a program, fit": (
        partly_labeled,
        lambda gen, y: pg.fit(gen, (X[:, 0], y), **QUIET),
        "observe(..., unknown=-1)",
    ),
    "a program": (
        partly_labeled,
        lambda gen, y: pg.log_likelihood(gen, X[:, 0], y),
        "observe(..., unknown=-1)",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_stands_for_an_unknown_label_is_to_be_said(name):
    make, call, how = UNKNOWN[name]
    with refused(ValueError, "got -1 in row 2; where", "NaN", how) as caught:
        call(make(), SOME)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_the_advice_about_unknown_labels_works():
    labeled = pg.train.Labeled(X, SOME, unknown=-1)
    pg.fit(semi_supervised(), labeled, **QUIET)
    assert pg.log_likelihood(semi_supervised(), X, labeled.y).value.isfinite().all()
    assert pg.log_likelihood(partly_labeled(-1), X[:, 0], SOME).value.isfinite().all()


# advice of families and rules


def cycle():
    return pg.CycleGAN(MLP(2, [4], 3), MLP(3, [4], 2))


def star():
    return pg.StarGAN(pg.nn.SideBySide(MLP(2 + 3, [4], 2)), pg.Codes([3]))


def flat():
    return X * torch.tensor([0.0, 1.0])


THREE = torch.zeros(20, 3)
NAMED = {
    "CycleGAN, fit": (
        lambda: pg.fit(cycle(), pg.train.Unpaired(X, THREE), **QUIET),
        ValueError,
        "use CycleConsistency(critic_a, critic_b)",
    ),
    "CycleGAN, log_likelihood": (
        lambda: pg.log_likelihood(cycle(), X, THREE),
        NotImplementedError,
        "To train it use CycleConsistency(critic_a, critic_b);",
    ),
    "StarGAN, fit": (
        lambda: pg.fit(star(), (X, torch.eye(3)[DIGITS]), **QUIET),
        ValueError,
        "use AttributeTranslation(critic, recognizer)",
    ),
    "StarGAN, labels": (
        lambda: star().translate(X, DIGITS),
        ValueError,
        "got torch.int64 of shape (20,); ",
        "torch.nn.functional.one_hot(torch.as_tensor(labels), 3).float()",
    ),
    "StarGAN, labels of as many rows as attributes": (
        lambda: star().translate(X[:3], torch.tensor([2, 0, 1])),
        ValueError,
        "one_hot(torch.as_tensor(labels), 3)",
    ),
    "StarGAN, other attributes": (
        lambda: star().translate(X, torch.eye(4)[1]),
        ValueError,
        "expected attributes (20, 3), or (3,) for all rows, got torch.float32 of shape (4,)",
    ),
    "constant columns": (
        lambda: pg.em(pg.GaussianMixture(2, 2), flat()),
        ValueError,
        "GaussianMixture(..., regularization=1e-3)",
    ),
    "a pair in the other order": (
        lambda: pg.guidance.Interval(3.0, between=(0.7, 0.2)),
        ValueError,
        "pass such as (0.2, 0.7)",
    ),
    "a number for a pair": (
        lambda: pg.guidance.Interval(3.0, between=0.5),
        TypeError,
        "pass such as (0.2, 0.7)",
    ),
    "rows and contexts beside labels": (
        lambda: pg.train.Labeled((X, THREE), DIGITS),
        TypeError,
        "expected rows x and labels y alone, got a tuple of 2 for x",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_advice_that_names_what_helps(name):
    call, kind, *text = NAMED[name]
    with refused(kind, *text):
        call()


@pytest.mark.filterwarnings("ignore")
def test_what_is_named_there_helps():
    assert star().translate(X, torch.nn.functional.one_hot(DIGITS, 3).float()).shape == (20, 2)
    pg.em(pg.GaussianMixture(2, 2, regularization=1e-3), flat())
    assert pg.guidance.Interval(3.0, between=(0.2, 0.7)).between == (0.2, 0.7)
    assert pg.train.Labeled(torch.cat((X, THREE), -1), DIGITS).x.shape == (20, 5)
    objective = pg.objectives.CycleConsistency(MLP(2, [4], 1), MLP(3, [4], 1))
    pg.fit(cycle(), pg.train.Unpaired(X, THREE), objective, **QUIET)


GUIDED = {
    "Diffusion": lambda net, share: pg.Diffusion(
        net, (2,), sampler=pg.diffusion.DDIM(3), context_dropout=share
    ),
    "FlowMatching": lambda net, share: pg.FlowMatching(
        net, (2,), solver=pg.flows.Midpoint(2), context_dropout=share
    ),
}
RULES = {
    "a weight": (3.0, True),
    "inside of another rule": (pg.guidance.Interval(3.0, between=(0.0, 1.0)), True),
    "the weight 1": (1.0, False),
    "another context": (pg.guidance.Negative(torch.tensor([0.0, 0.0, 1.0]), 3.0), False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", GUIDED)
def test_networks_that_never_saw_an_unknown_context_are_guided_with_a_warning(family, rule):
    guidance, warned = RULES[rule]
    for share in (0.0, 0.1):
        gen = GUIDED[family](pg.nn.TimeMLP(2, [4], context=3), share)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            pg.sample(gen, 2, torch.eye(3), guidance=guidance)
        told = [str(each.message) for each in caught if "context_dropout=0 " in str(each.message)]
        assert len(told) == (warned and share == 0.0)


# supports

LINES = {
    "0 or 1": torchs.boolean,
    "integers from 0 to 9": torchs.integer_interval(0, 9),
    "integers of at least 0": torchs.nonnegative_integer,
    "integers of at least 1": torchs.positive_integer,
    "integers": pyros.integer,
    "finite numbers": torchs.real,
    "positive numbers": torchs.positive,
    "numbers of at least 0": torchs.nonnegative,
    "numbers greater than -1.5": torchs.greater_than(-1.5),
    "numbers less than 2": torchs.less_than(torch.tensor(2.0)),
    "numbers from 0 to 1": torchs.unit_interval,
    "numbers from 0 to less than 4": torchs.half_open_interval(0, 4),
    "numbers from 0 to a bound of each entry": torchs.interval(0, torch.tensor([1.0, 2.0])),
    "counts that sum to 7": torchs.multinomial(7),
    "0 or 1, or positive numbers": AnyOf([torchs.boolean, torchs.positive, torchs.boolean]),
    "positive numbers, or -1 (padding)": SupportOrPadding(torchs.positive, -1.0),
    "column by column finite numbers, 0 or 1": torchs.cat(
        [torchs.real, torchs.boolean, torchs.real], -1
    ),
    "blocks of one-hot vectors, then finite numbers": _CodeVectors((2, 1)),
}
BY_LIBRARY = {
    f"{module.__name__}.{name}": value
    for module in (torchs, pyros)
    for name, value in vars(module).items()
    if isinstance(value, Constraint)
}


@pytest.mark.parametrize("words", LINES)
def test_supports_in_words(words):
    assert in_words(LINES[words]) == words
    assert in_words(torchs.independent(LINES[words], 1)) == words


@pytest.mark.parametrize("name", BY_LIBRARY)
def test_every_support_of_torch_and_pyro_has_words(name):
    words = in_words(BY_LIBRARY[name])
    assert re.fullmatch(r"[a-zA-Z0-9][a-z0-9 ,()-]+", words), words
    assert "bound" not in words and "greater than 0" not in words


FAMILIES = {
    "Poisson": (lambda: Poisson(Constant(2)), "integers of at least 0"),
    "Bernoulli": (lambda: Bernoulli(Constant(2)), "0 or 1"),
    "Categorical": (lambda: Categorical(Constant(6), levels=3), "integers from 0 to 2"),
    "Gaussian": (gaussian, "finite numbers"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_values_outside_of_a_support_are_refused_in_those_words(name):
    make, words = FAMILIES[name]
    wrong = torch.inf if name == "Gaussian" else -0.5
    x = torch.zeros(5, 2).index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(wrong))
    with refused(ValueError, f"expected x with values that are {words}, or NaN (missing), got"):
        pg.log_likelihood(make(), x)


def test_families_explain_their_keywords():
    found = [value for value in public().values() if inspect.isclass(value)]
    bases = (DistributionModule, LatentVariableModel, Objective)
    known = [each for each in found if issubclass(each, bases) and taken_by(each) is not None]
    assert len(known) > 70
    for each in known:
        with refused(TypeError, f"expected arguments that {each.__name__} takes, got no_such_word"):
            each(no_such_word=1)
