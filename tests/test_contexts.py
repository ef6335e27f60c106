"""One meaning of contexts in every family.

Known, unknown, of another size, of integers, or none at all.
"""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import ZOO, Member, constant

import probgen as pg
from probgen import heads
from probgen.core.contexts import (
    check_context,
    check_known,
    common_size,
    distribution_given,
    ignores,
    input_size,
    received,
    size_of,
)
from probgen.core.kinds import density_kind
from probgen.core.missing import assume_missing
from probgen.core.module import DistributionModule, Fixed, Independent, standard_normal
from probgen.core.program import Program
from probgen.core.weights import log_weights
from probgen.distributions.diffusion.gamma import GammaNoise
from probgen.distributions.diffusion.labels import UniformNoise
from probgen.distributions.diffusion.schedules import LinearSchedule
from probgen.models.coupling_flow import RealNVP
from probgen.models.deep_nade import DeepNADE
from probgen.models.diffusion import Diffusion
from probgen.models.discrete_diffusion import CategoricalDiffusion, NonGaussianDiffusion
from probgen.models.flow_matching import FlowMatching
from probgen.models.gan import GAN
from probgen.models.glow import Glow
from probgen.models.joint_energy import JointEnergyModel
from probgen.models.made import MADE
from probgen.models.mixture import GaussianMixture
from probgen.models.standardized import Standardized
from probgen.models.vae import VAE
from probgen.nn import MLP, Constant, TimeMLP, UNet
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.denoising import Denoising

UNKNOWN = {
    "Diffusion of images given texts",
    "Diffusion by class balancing, in units of the data",
    "Diffusion by denoising, given a context",
    "DiffusionChain given a context",
    "FlowMatching given a context",
    "RiemannianFlowMatching on a torus given a context",
    "NonGaussianDiffusion, Gamma, given a context",
    "CategoricalDiffusion, absorbing, given a context",
    "DiffusionChain, Gamma",
    "JointEnergyModel",
    "SemiSupervisedVAE",
    "SemiSupervisedVAE with a prior of labels",
}
NAN = r"expected a context without missing values, got NaN in 1 of \d+ rows \(first: row \d+\); fill them in, leave "
NONE = r"expected no context \(\w+ was built without one\), got one of shape \(6, 3\); "


def told(gen) -> bool:
    """Whether the values of contexts mean something, or are refused.

    Not so in priors, and in stories of others.
    """
    parts = gen.modules() if isinstance(gen, Independent) else [gen]
    return not isinstance(gen, Program) and not any(ignores(part) for part in parts)


GIVEN = [member for member in ZOO if len(member.data()) == 2 and told(member.gen())]
BARE = [member for member in ZOO if len(member.data()) == 1 and told(member.gen())]
NAMES = {"ids": lambda member: member.name}


def made(member: Member, seed: int = 0):
    torch.manual_seed(seed)
    return member.gen().eval(), *member.data()


def answer(gen, x, context):
    """The same number for the same distribution."""
    torch.manual_seed(1)
    distribution = gen(context)
    return (
        distribution.sample()
        if density_kind(distribution) == "implicit"
        else distribution.log_prob(x)
    )


@pytest.mark.parametrize("member", GIVEN, **NAMES)
def test_nan_is_unknown_or_refused_in_one_sentence(member):
    gen, x, context = made(member)
    holes = context.nan_to_num()
    holes[(2, *[0] * (holes.ndim - 1))] = torch.nan
    if member.name in UNKNOWN:
        assert answer(gen, x, holes).isfinite().all()
        return
    for call in (
        gen,
        lambda holes: gen.model(x, holes),
        lambda holes: gen.guide(x, holes) or gen.model(x, holes),
    ):
        with pytest.raises(ValueError, match=NAN):
            call(holes)


@pytest.mark.parametrize("member", [member for member in GIVEN if member.name in UNKNOWN], **NAMES)
def test_an_unknown_context_is_none(member):
    gen, x, context = made(member)
    torch.testing.assert_close(
        answer(gen, x, torch.full_like(context, torch.nan)),
        answer(gen, x, None).expand(len(x)),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.table(quick=21)
@pytest.mark.parametrize("member", GIVEN, **NAMES)
def test_integers_are_numbers(member):
    gen, x, context = made(member)
    integers = context.nan_to_num().sign().clamp(min=0).long()
    torch.testing.assert_close(answer(gen, x, integers), answer(gen, x, integers.to(x.dtype)))


@pytest.mark.parametrize("member", GIVEN, **NAMES)
def test_another_size_is_refused(member):
    gen, _, context = made(member)
    at = -3 if gen.context_ndim == 3 else -1
    wide = torch.cat([context, context], at)
    if size_of(gen) is None and not isinstance(gen, Independent):
        pytest.skip("the size is the affair of the network")
    with pytest.raises(
        ValueError, match=r"expected a context of shape \(\*batch, .*, got \(6, "
    ) as error:
        gen(wide)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("member", GIVEN, **NAMES)
def test_a_context_that_is_lacking_is_unknown_or_refused(member):
    gen, x, _ = made(member)
    if member.name in UNKNOWN:
        assert answer(gen, x, None).isfinite().all()
    elif size_of(gen):
        with pytest.raises(
            ValueError, match=r"expected a context of shape \(\*batch, .*got None; give one"
        ):
            gen(None)


@pytest.mark.parametrize("member", BARE, **NAMES)
def test_a_context_that_is_not_declared_is_refused_in_one_sentence(member):
    gen, x = made(member)
    with pytest.raises(ValueError, match=NONE) as error:
        gen(torch.randn(6, 3))
    assert "\n" not in str(error.value)
    if not type(gen).__module__.startswith("zoo"):
        with pytest.raises(ValueError, match=NONE):
            gen.model(x, torch.randn(6, 3))


@pytest.mark.parametrize(
    "gen",
    [
        heads.Gaussian(Constant(6)),
        heads.Poisson(Constant(3)),
        heads.Mixed(Constant(3), [heads.Gaussian(), heads.Bernoulli()]),
        Standardized(heads.Gaussian(Constant(6)), torch.zeros(3), torch.ones(3)),
    ],
    ids=lambda gen: type(gen).__name__,
)
@pytest.mark.parametrize(
    "use",
    [lambda gen, rows: pg.fit(gen, rows, steps=1), lambda gen, rows: pg.log_likelihood(gen, *rows)],
    ids=["fit", "log_likelihood"],
)
def test_a_context_that_would_change_nothing_is_refused(gen, use):
    width = gen(None).event_shape[0]
    use(gen, (torch.ones(4, width),))
    with pytest.raises(ValueError, match=r"expected no context: .* leave it out"):
        use(gen, (torch.ones(4, width), torch.randn(4, 2)))


LABELS = (
    "expected a context of shape (*batch, 10), got integer labels of shape (128,); one-hot them: "
)


@pytest.mark.parametrize(
    "gen",
    [
        Diffusion(TimeMLP(3, [8], context=10), (3,)),
        FlowMatching(TimeMLP(3, [8], context=10), (3,)),
        RealNVP(3, context=10),
        heads.Gaussian(MLP(10, [4], 6)),
    ],
    ids=lambda gen: type(gen).__name__,
)
def test_labels_are_to_be_encoded(gen):
    labels = torch.arange(128) % 10
    with pytest.raises(
        ValueError,
        match=re.escape(
            LABELS + "torch.nn.functional.one_hot(torch.as_tensor(labels), 10).float()"
        ),
    ):
        gen(labels)
    assert gen(nn.functional.one_hot(labels, 10).float()).batch_shape == (128,)
    with pytest.raises(ValueError, match=re.escape(LABELS)):
        gen.model(torch.randn(128, 3), labels)


def tiny(context):
    return TimeMLP(3, [8], context=context)


def side_by_side(context):
    net = MLP(2 + context, [8], 3)
    return SideBySide(net) if context else net


def conditional_vae(context):
    decoder, encoder = MLP(2 + context, [8], 6), MLP(3 + context, [8], 4)
    return VAE(standard_normal(2), heads.Gaussian(decoder), heads.Gaussian(encoder))


# families that are built for contexts of a size, 0 for none
BUILDS = {
    "Diffusion": lambda size: Diffusion(tiny(size), (3,)),
    "FlowMatching": lambda size: FlowMatching(tiny(size), (3,)),
    "NonGaussianDiffusion": lambda size: NonGaussianDiffusion(
        tiny(size), (3,), GammaNoise(LinearSchedule(), num_times=5)
    ),
    "CategoricalDiffusion": lambda size: CategoricalDiffusion(
        TimeMLP(3 * 2, [8], outputs=3 * 2, context=size),
        (3,),
        UniformNoise(2, LinearSchedule(), num_times=5),
    ),
    "GAN": lambda size: GAN(side_by_side(size), standard_normal(2), event_shape=(3,)),
    "VAE": conditional_vae,
    "RealNVP": lambda size: RealNVP(3, context=size),
    "MADE": lambda size: MADE(3, [8], heads.Bernoulli(), context=size),
    "DeepNADE": lambda size: DeepNADE(3, [8], heads.Bernoulli(), context=size),
}


@pytest.mark.table(quick=13)
@pytest.mark.parametrize(
    "form", [torch.Tensor.long, torch.Tensor.float, lambda x: x.long()[:, None]]
)
@pytest.mark.parametrize("rows", [10, 128])
@pytest.mark.parametrize("name", BUILDS)
def test_labels_are_understood_and_the_advice_works(name, rows, form):
    """Also where there happen to be as many rows as classes."""
    labels = form(torch.arange(rows) % 10)
    for size in (0, 4, 10):
        gen = BUILDS[name](size)
        if size == rows and labels.ndim == 1 and labels.is_floating_point():
            continue  # one row of ten numbers
        with pytest.raises(ValueError, match="labels of shape") as error:
            gen(labels)
        text = str(error.value)
        assert "\n" not in text and "=128" not in text and "128 " not in text
        call = re.search(r"torch\.nn\.functional\.one_hot\(.*\)\.float\(\)", text).group()
        context = eval(call, {"torch": torch, "labels": labels})
        assert context.shape == (rows, 10)
        if size != 10:
            assert "10" in text.replace("one_hot(torch.as_tensor(labels), 10)", "")
        assert BUILDS[name](10)(context).batch_shape == (rows,)


def test_one_number_a_row_is_a_column():
    for size, advice in (
        (0, r"context=1, and give context\[:, None\]"),
        (1, r"context\[:, None\]"),
    ):
        with pytest.raises(ValueError, match=advice):
            RealNVP(3, context=size)(torch.rand(128))
    assert RealNVP(3, context=1)(torch.rand(128)[:, None]).batch_shape == (128,)


class OwnNetwork(nn.Module):
    """Says nothing of the contexts that it takes."""

    def forward(self, z, t, context=None):
        return z + context.sum(-1, keepdim=True)


def test_labels_for_a_network_that_does_not_tell_its_contexts():
    labels = torch.arange(6) % 4
    gen = Diffusion(OwnNetwork(), (3,))
    with pytest.raises(
        ValueError, match=r"as_tensor\(labels\), 4\)\.float\(\), or build Diffusion with"
    ):
        gen(labels)
    assert gen(nn.functional.one_hot(labels, 4).float()).sample().shape == (6, 3)
    assert Diffusion(OwnNetwork(), (3,), context_ndim=0)(labels).batch_shape == (6,)


def test_labels_for_images():
    with pytest.raises(ValueError, match=r"\[:, :, None, None\]\.expand\(-1, -1, H, W\)"):
        check_context(torch.arange(6), 6, 3)


def semi_supervised():
    decoder = heads.Bernoulli(MLP(2 + 4, [8], 3))
    encoder = heads.Gaussian(MLP(3 + 4, [8], 4))
    return pg.SemiSupervisedVAE(pg.standard_normal(2), decoder, encoder, MLP(3, [8], 4), 4)


TAKE_LABELS = {
    "JointEnergyModel": lambda: JointEnergyModel(MLP(3, [8], 4), (3,)),
    "SemiSupervisedVAE": semi_supervised,
}
OF_ROWS = torch.tensor([0, 3, 1, 2, 2, 0])


@pytest.mark.parametrize("make", TAKE_LABELS.values(), ids=TAKE_LABELS)
def test_labels_of_rows_are_one_number_each_of_any_dtype(make):
    gen = make()
    x = torch.rand(6, 3).round()
    torch.manual_seed(0)
    truth = log_weights(gen, x, OF_ROWS.float())[0]
    for labels in (OF_ROWS, OF_ROWS.double()):
        torch.manual_seed(0)
        torch.testing.assert_close(log_weights(gen, x, labels)[0], truth)
    others = torch.where(OF_ROWS == 3, torch.nan, OF_ROWS.float())
    torch.manual_seed(0)
    assert (log_weights(gen, x, others)[0] != truth).sum() == 1


@pytest.mark.parametrize("make", TAKE_LABELS.values(), ids=TAKE_LABELS)
@pytest.mark.parametrize(
    ("labels", "message", "mended"),
    [
        (OF_ROWS[:, None], r"shape \(N,\), got \(6, 1\); .*: y\[:, 0\]", lambda y: y[:, 0]),
        (nn.functional.one_hot(OF_ROWS), r"got \(6, 4\); .*y.argmax\(-1\)", lambda y: y.argmax(-1)),
        (OF_ROWS + 1, r"integers from 0 to 3, or NaN \(missing\), got 4 in row 1", lambda y: y - 1),
        (OF_ROWS / 2, r"got 1.5 in row 1", lambda y: 2 * y),
    ],
    ids=["a column", "one-hot", "no such class", "between two classes"],
)
def test_other_labels_of_rows_are_refused_with_what_to_do(make, labels, message, mended):
    gen = make()
    x = torch.rand(6, 3).round()
    with pytest.raises(ValueError, match=message):
        log_weights(gen, x, labels)
    assert log_weights(gen, x, mended(labels))[0].isfinite().all()


@pytest.mark.parametrize("family", [Diffusion, FlowMatching])
def test_integers_are_dropped_like_numbers(family):
    gen = family(TimeMLP(3, [8], context=4), (3,), context_dropout=0.5)
    labels = nn.functional.one_hot(torch.arange(6) % 4, 4)
    loss = Denoising()(gen.model, gen.guide)(torch.randn(6, 3), labels)
    assert loss.isfinite()


def test_an_embedding_keeps_its_labels():
    net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 6))
    gen = heads.Gaussian(net, context_ndim=0)
    assert gen(torch.arange(7)).batch_shape == (7,)


@pytest.mark.parametrize(
    "net", [TimeMLP(3, [8], context=2), UNet((1, 4, 4), width=8, multipliers=(1,), context=2)]
)
def test_networks_of_diffusions_read_integers(net):
    x = torch.randn(5, *getattr(net, "shape", (3,)))
    t, context = torch.rand(5), torch.ones(5, 2)
    torch.testing.assert_close(net(x, t, context.long()), net(x, t, context))


@pytest.mark.parametrize("answer", [True, False])
def test_no_values_are_read_where_none_are_known(answer):
    gen, context = RealNVP(2, context=2), torch.full((3, 2), torch.nan)
    with assume_missing(answer):
        assert gen(context).batch_shape == (3,)


def test_a_context_with_gradients_is_not_looked_at():
    check_known(torch.full((3, 2), torch.nan, requires_grad=True))


def test_methods_beside_the_call_check_too():
    gen = DeepNADE(3, [4], heads.Bernoulli())
    for call in (
        lambda c: gen.ordered(torch.arange(3), c),
        lambda c: gen.completion(torch.zeros(6, 3), c),
    ):
        with pytest.raises(ValueError, match=NONE):
            call(torch.randn(6, 3))
    flow = Glow((1, 4, 4), flow_steps=1)
    with pytest.raises(ValueError, match=NONE):
        flow.initialize(torch.randn(6, 1, 4, 4), torch.randn(6, 3))


def test_a_context_by_name_is_checked():
    with pytest.raises(ValueError, match=NONE):
        GaussianMixture(3, 2)(context=torch.randn(6, 3))


def test_images_count_channels():
    check_context(torch.zeros(5, 2, 4, 4), 2, 3)
    with pytest.raises(
        ValueError, match=r"expected a context of shape \(\*batch, 2, H, W\), got \(5, 3, 4, 4\)"
    ):
        check_context(torch.zeros(5, 3, 4, 4), 2, 3)


def test_priors_without_a_context_are_repeated_for_its_rows():
    gen = VAE(GaussianMixture(3, 2), heads.Gaussian(MLP(5, [8], 8)), heads.Gaussian(MLP(7, [8], 4)))
    assert gen.context_size == 3
    assert gen(torch.randn(6, 3)).log_prob(torch.randn(6, 4)).isfinite().all()
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 3\), got None"):
        gen()


def test_distributions_of_parts():
    context = torch.randn(6, 3)
    assert distribution_given(GaussianMixture(3, 2), context).batch_shape == (6,)
    assert distribution_given(
        Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0), context
    ).batch_shape == (6,)
    assert distribution_given(heads.Gaussian(MLP(3, [4], 4)), context).batch_shape == (6,)
    assert distribution_given(GaussianMixture(3, 2), None).batch_shape == ()


def test_sizes_of_networks():
    assert input_size(nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 1))) == 3
    assert input_size(constant(4)) is None
    assert common_size([Constant(4), nn.Linear(3, 2)]) == 3
    assert common_size([nn.Flatten(), GaussianMixture(3, 2)]) is None


class Own(DistributionModule):
    """A family of a user who declares nothing."""

    def forward(self, context=None):
        distribution = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        return distribution if context is None else distribution.expand(context.shape[:-1])


def test_what_is_not_declared_is_not_judged():
    context = torch.full((6, 3), torch.nan)
    assert received(Own(), context) is context
    assert Own()(context).batch_shape == (6,)


class Beside(nn.Module):
    """A network from elsewhere of two arguments, which tells no sizes."""

    def __init__(self, out):
        super().__init__()
        self.layer = nn.Linear(5, out)

    def forward(self, x, context):
        return self.layer(torch.cat([x, context], -1))


NEEDED = {
    "energies": lambda: pg.EnergyBasedModel(Beside(1), (3,), base=standard_normal(3)),
    "generators": lambda: GAN(Beside(3), standard_normal(3), event_shape=(3,)),
}


@pytest.mark.parametrize("make", NEEDED.values(), ids=NEEDED)
def test_a_context_that_a_network_from_elsewhere_needs_is_asked_for(make):
    torch.manual_seed(0)
    gen = make()
    asked = {
        "the call": gen,
        "sample": lambda context=None: pg.sample(gen, 2, context),
    }
    for ask in asked.values():
        with pytest.raises(ValueError, match=r"expected a context, which (net|generator) takes"):
            ask()
        ask(torch.zeros(2, 2))


def test_a_program_of_other_arguments_is_no_part_of_a_family():
    def other(y):
        with pg.data_plate(y):
            return pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def own(x=None, context=None):
        with pg.data_plate(x, context):
            return pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    x = 3 + 2 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    for around in (
        lambda family: pg.Standardized.fitted(family, x),
        pg.Standardized,
        lambda family: Independent(family),
        lambda family: pg.EnergyBasedModel(nn.Linear(2, 1), (2,), base=family),
    ):
        with pytest.raises(TypeError, match=r"of \(x=None, context=None\) as \w+, .* \(y\); let"):
            around(Program(other))
        around(Program(own))  # which takes both
    truth = dist.Normal(x.mean(0), x.std(0, correction=0)).to_event(1)
    gen = pg.Standardized.fitted(Program(own), x)
    torch.testing.assert_close(gen().log_prob(x), truth.log_prob(x))


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist()])
def test_booleans_are_numbers_in_other_units_too(form):
    x = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)) > 0.4
    gen = pg.Standardized.fitted(heads.Gaussian(nn.Linear(3, 4)), form(x))
    torch.testing.assert_close(gen.loc, x.float().mean(0))
    torch.testing.assert_close(gen.scale, x.float().std(0, correction=0))


OTHERS = {"a number": 1.5, "a whole number": 2, "a boolean": True, "a string": "a"}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("context", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    "door",
    [
        lambda gen, x, context: pg.log_likelihood(gen, x, context),
        lambda gen, x, context: pg.sample(gen, 2, context),
        lambda gen, x, context: gen(context),
    ],
    ids=["score", "sample", "call"],
)
def test_a_context_that_is_no_tensor_is_refused_in_one_sentence(context, door):
    for member in GIVEN + BARE:
        gen, x, *_ = made(member)
        with pytest.raises((TypeError, ValueError), match=r"^expected [^\n]* got [^\n]*; "):
            door(gen, x, context)


def test_the_advice_for_a_number_is_true():
    gen = pg.MAF(3, context=2)
    x = torch.zeros(5, 3)
    with pytest.raises(TypeError) as caught:
        pg.log_likelihood(gen, x, 1.5)
    advice = str(caught.value).rpartition(": ")[2]
    assert advice == "torch.full((len(x), 2), 1.5)"
    assert pg.log_likelihood(gen, x, torch.full((len(x), 2), 1.5)).value.shape == (5,)


FORMS = {
    "integers": lambda labels: labels,
    "integers of another type": lambda labels: labels.int(),
    "numbers": lambda labels: labels.float(),
    "a column": lambda labels: labels[:, None],
    "an array": lambda labels: labels.numpy(),
    "a list": lambda labels: labels.tolist(),
    "below zero": lambda labels: labels - 1,
}


@pytest.mark.parametrize("form", FORMS)
def test_advice_about_labels_runs_as_it_is_printed(form):
    gen = heads.Gaussian(MLP(3, [4], 4))
    truth = torch.arange(12) % 3
    labels = FORMS[form](truth)
    x = torch.zeros(12, 2)
    with pytest.raises(ValueError, match="labels of shape") as caught:
        pg.log_likelihood(gen, x, labels)
    names = {"torch": torch, "labels": labels}
    if form == "below zero":
        exec(str(caught.value).partition("from 0 on: ")[2].partition(", or")[0], names)
        with pytest.raises(ValueError, match="one-hot them") as caught:
            pg.log_likelihood(gen, x, names["labels"])
    context = eval(str(caught.value).partition("one-hot them: ")[2], names)
    assert torch.equal(context, nn.functional.one_hot(truth, 3).float())
    assert pg.log_likelihood(gen, x, context).value.shape == (12,)


NUMBERS = {"a label": 2, "a label as a tensor": torch.tensor(2), "no label": 1.5}
DOORS = {
    "score": lambda gen, x, context: pg.log_likelihood(gen, x, context).value,
    "sample": lambda gen, x, context: pg.sample(gen, 4, context),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", NUMBERS)
def test_advice_for_one_number_means_what_was_meant(name, door):
    gen = heads.Gaussian(MLP(3, [4], 4))
    x = torch.zeros(5, 2)
    with pytest.raises(TypeError, match="got the number") as caught:
        DOORS[door](gen, x, NUMBERS[name])
    context = eval(str(caught.value).rpartition(": ")[2], {"torch": torch, "x": x})
    meant = torch.tensor([0.0, 0.0, 1.0]) if name != "no label" else torch.full((3,), 1.5)
    assert (context == meant).all() and context.shape == (5 if door == "score" else 1, 3)
    DOORS[door](gen, x, context)


@pytest.mark.parametrize("ndim", [1, 2])
def test_copies_are_counted_by_a_context(ndim):
    gen = Independent(standard_normal(3), ndim)
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, T, .*got None; "):
        gen()
    shape = (4, *(5, 6)[:ndim], 2)
    assert gen(torch.zeros(shape)).event_shape == (*shape[1:-1], 3)
    held = Fixed(dist.Normal, loc=torch.zeros(*(5, 6)[:ndim], 3), scale=1.0)
    assert Independent(held, ndim)().event_shape == (*shape[1:-1], 3)
