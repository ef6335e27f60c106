"""The conformance suite rejects what breaks a promise: each check can fail."""

import copy
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from toys import Head, N, Stated

from probgen.core.module import DistributionModule, Fixed, LatentVariableModel, data_plate
from probgen.testing import ConformanceError, check_generative


class Distribution(dist.TorchDistribution):
    """A normal vector of two learned means, done right.

    The broken distributions override one thing each.
    """

    arg_constraints: ClassVar[dict] = {}
    support = dist.constraints.real_vector
    density_kind = "exact"

    def __init__(self, loc, batch_shape=()):
        self.loc = loc
        super().__init__(torch.Size(batch_shape), loc.shape, validate_args=False)

    def sample(self, sample_shape=()):
        return self.loc.detach() + torch.randn(self.shape(sample_shape)).to(self.loc)

    def log_prob(self, x):
        value = N(self.loc, 1.0).log_prob(x).sum(-1)
        return value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc, batch_shape)


class Module(DistributionModule):
    """States a distribution of that sort."""

    context_size = 0

    def __init__(self, distribution=Distribution):
        super().__init__()
        self.loc, self.distribution = nn.Parameter(torch.tensor([0.5, -0.5])), distribution

    def forward(self, context=None):
        return self.distribution(self.loc)


def distribution(**attributes):
    """A module whose distribution has other attributes."""
    return Module(type("Broken", (Distribution,), attributes))


def module(**attributes):
    """A module with other attributes."""
    return type("Broken", (Module,), attributes)()


class Observed(LatentVariableModel):
    """z ~ N(0, 1), x ~ N(a z, 1), done right; the broken ones override one program."""

    context_size = 0

    def __init__(self):
        super().__init__()
        self.loc, self.slope = (
            nn.Parameter(torch.tensor(0.3)),
            nn.Parameter(torch.tensor([1.0, 0.5])),
        )

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", N(torch.zeros_like(self.loc), 1.0))
            return pyro.sample("x", N(z[..., None] * self.slope, 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        if x is not None:
            with data_plate(x, context):
                pyro.sample("z", N(self.loc + x[..., 0], 1.0))


def program(**attributes):
    """A story with another model or guide."""
    return type("Broken", (Observed,), attributes)()


def model_that_observes_nothing(self, x=None, context=None):
    with data_plate(x, context):
        z = pyro.sample("z", N(self.loc, 1.0))
        return pyro.sample("x", N(z[..., None] * self.slope, 1.0).to_event(1))


def model_of_another_site(self, x=None, context=None):
    with data_plate(x, context):
        z = pyro.sample("z", N(self.loc, 1.0))
        return pyro.sample("y", N(z[..., None] * self.slope, 1.0).to_event(1), obs=x)


def model_in_another_plate(self, x=None, context=None):
    with pyro.plate("rows", 1 if x is None else len(x)):
        z = pyro.sample("z", N(self.loc, 1.0))
        return pyro.sample("x", N(z[..., None] * self.slope, 1.0).to_event(1), obs=x)


def model_that_returns_nothing(self, x=None, context=None):
    Observed.model(self, x, context)


def model_that_returns_the_mean(self, x=None, context=None):
    return Observed.model(self, x, context) if x is not None else torch.zeros(2)


def model_that_indexes_from_the_left(self, x=None, context=None):
    with data_plate(x, context):
        z = pyro.sample("z", N(torch.zeros_like(self.loc), 1.0))
        return pyro.sample("x", N(z.unsqueeze(1) * self.slope, 1.0).to_event(1), obs=x)


def guide_of_another_site(self, x=None, context=None):
    if x is not None:
        with data_plate(x, context):
            pyro.sample("w", N(self.loc + x[..., 0], 1.0))


def guide_of_nothing(self, x=None, context=None):
    pass


def guide_that_needs_rows(self, x=None, context=None):
    with data_plate(x, context):
        pyro.sample("z", N(self.loc, 1.0))


class Ignoring(Module):
    """Takes contexts, declares nothing, and looks at none."""

    context_size = None

    def forward(self, context=None):
        distribution = self.distribution(self.loc)
        return distribution if context is None else distribution.expand(context.shape[:-1])


class Prior(Ignoring):
    """The same by intention."""

    ignores_contexts = True


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("context", [None, torch.randn(6, 3)])
def test_a_family_that_ignores_contexts_is_told(context):
    x = torch.randn(6, 2)
    check_generative(Prior(), x, context)
    with pytest.raises(
        ConformanceError, match=r"depends on the context.* context_size = 0 in the class"
    ):
        check_generative(Ignoring(), x, context)


class Running(Distribution):
    """Runs its program among the handlers of whoever asks for a sample."""

    density_kind = "unbiased"

    def sample(self, sample_shape=()):
        Observed().model()
        return super().sample(sample_shape)


def numpy_draws(self, sample_shape=()):
    return torch.as_tensor(np.random.standard_normal(self.shape(sample_shape))).to(self.loc)  # noqa: NPY002


def silent_refusal(self, x):
    raise NotImplementedError


def refusal_of_nan(message):
    def log_prob(self, x):
        if x.isnan().any():
            raise ValueError(message)
        return Distribution.log_prob(self, x)

    return log_prob


def silent_nan(self, x):
    value = N(self.loc, 1.0, validate_args=False).log_prob(x).sum(-1)
    return value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))


def where_nan(self, x):
    """The mask comes after the density: right in value, NaN in gradient."""
    each = N(self.loc, 1.0, validate_args=False).log_prob(x).masked_fill(x.isnan(), 0.0)
    return each.sum(-1).expand(torch.broadcast_shapes(x.shape[:-1], self.batch_shape))


def filled(value, factor=1.0):
    def log_prob(self, x):
        each = N(self.loc, 1.0).log_prob(x.nan_to_num(value))
        each = (
            torch.where(x.isnan(), factor * each, each)
            if factor
            else each.masked_fill(x.isnan(), 0.0)
        )
        return each.sum(-1).expand(torch.broadcast_shapes(x.shape[:-1], self.batch_shape))

    return log_prob


def coupled(self, x):
    """Variables that depend on each other.

    Scored without their missing partner as if they did not.
    """
    missing, x = x.isnan(), x.nan_to_num() - self.loc
    each = torch.stack([N(0.0, 1.0).log_prob(x[..., 0]), N(x[..., 0], 1.0).log_prob(x[..., 1])], -1)
    return (
        each.masked_fill(missing, 0.0)
        .sum(-1)
        .expand(torch.broadcast_shapes(x.shape[:-1], self.batch_shape))
    )


def coupled_sample(self, sample_shape=()):
    noise = torch.randn(self.shape(sample_shape)).to(self.loc)
    return self.loc.detach() + torch.stack([noise[..., 0], noise.sum(-1)], -1)


class Loose(Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.zeros(2)


class Hidden(Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2)]


class Forgetful(Module):
    def state_dict(self, *args, **kwargs):
        return {}

    def load_state_dict(self, state, strict=True):
        return None


class Noisy(Module):
    """Dropout that does not know the eval mode."""

    def forward(self, context=None):
        return Distribution(self.loc + 0.1 * torch.randn(2))


class Idle(Module):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Parameter(torch.zeros(3))


class Root(Module):
    """The derivative of an absolute value, at zero."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.zeros(()))

    def forward(self, context=None):
        return Distribution(self.loc + self.power.square().sqrt())


class RowMixer(DistributionModule):
    """Takes the first row of the context for all."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, context=None):
        return N(self.linear(context[..., :1, :]).expand(*context.shape[:-1], 2), 1.0).to_event(1)


class FlatContext(Head):
    def forward(self, context=None):
        return super().forward(context.flatten(0, -2))


def frozen_draw(self, sample_shape=()):
    return Distribution.sample(self, sample_shape) + self.loc - self.loc.detach()


X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
C = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
NO_NAN = refusal_of_nan("no NaN please")
REJECTED = [
    # what is given
    ("rows, and context as many", Module(), (X[:1],)),
    ("rows, and context as many", Head(outputs=2), (X, C[:3])),
    ("forward, model and guide", nn.Linear(2, 2), (X,)),
    ("model and guide run", program(model=lambda self, x=None, context=None: 1 / 0), (X,)),
    # state
    ("parameters or buffers", Loose(), (X,)),
    ("parts submodules", Hidden(), (X,)),
    ("deepcopy", module(__deepcopy__=lambda self, memo: self), (X,)),
    ("state_dict", Forgetful(), (X,)),
    (".double()", distribution(sample=lambda self, shape=(): torch.randn(self.shape(shape))), (X,)),
    (
        ".double()",
        distribution(log_prob=lambda self, x: Distribution.log_prob(self, x) + 1e5 - 1e5),
        (X,),
    ),
    # distribution
    ("a distribution over rows", module(forward=lambda self, context=None: N(self.loc, 1.0)), (X,)),
    ("a distribution over rows", distribution(density_kind="precise"), (X,)),
    ("a distribution over rows", module(forward=lambda self, context=None: self.loc), (X,)),
    ("a distribution over rows", Module(), (X, C)),
    ("a distribution over rows", Module(), (torch.randn(6, 3),)),
    ("more leading dims", FlatContext(outputs=2), (X, C)),
    (
        "sample(shape)",
        distribution(sample=lambda self, shape=(): Distribution.sample(self, shape).double()),
        (X,),
    ),
    (
        "sample(shape)",
        distribution(sample=lambda self, shape=(): Distribution.sample(self, shape)[..., :1]),
        (X,),
    ),
    (
        "sample(shape)",
        distribution(sample=lambda self, shape=(): Distribution.sample(self, shape) * torch.inf),
        (X,),
    ),
    ("sample(shape)", distribution(sample=frozen_draw), (X,)),
    ("lie in the support", distribution(support=dist.constraints.positive), (X.exp(),)),
    ("lie in the support", Fixed(dist.Exponential, rate=torch.ones(2)), (X,)),
    ("same seed", distribution(sample=numpy_draws), (X,)),
    (
        "one finite number",
        distribution(log_prob=lambda self, x: N(self.loc, 1.0).log_prob(x)),
        (X,),
    ),
    (
        "one finite number",
        distribution(log_prob=lambda self, x: Distribution.log_prob(self, x).log()),
        (X,),
    ),
    (
        "one finite number",
        distribution(log_prob=lambda self, x: Distribution.log_prob(self, x) + torch.randn(())),
        (X,),
    ),
    ("one finite number", distribution(density_kind="implicit"), (X,)),
    ("one finite number", distribution(density_kind="implicit", log_prob=silent_refusal), (X,)),
    (
        "the other rows",
        distribution(
            log_prob=lambda self, x: Distribution.log_prob(self, x - x.mean(-2, keepdim=True))
        ),
        (X,),
    ),
    (
        "draws to the left",
        distribution(log_prob=lambda self, x: Distribution.log_prob(self, x.reshape(-1, 2)[-6:])),
        (X,),
    ),
    ("expand(shape)", distribution(expand=torch.distributions.Distribution.expand), (X,)),
    ("expand(shape)", distribution(expand=lambda self, shape, _instance=None: self), (X,)),
    (
        "log_likelihood gives",
        module(
            model=lambda self, x=None, context=None: Stated(Distribution(0 * self.loc)).model(x)
        ),
        (X,),
    ),
    (
        "samples follow",
        distribution(sample=lambda self, shape=(): 2 * Distribution.sample(self, shape)),
        (X,),
    ),
    (
        "samples follow",
        distribution(log_prob=lambda self, x: 2 * Distribution.log_prob(self, x)),
        (X,),
    ),
    # program
    ('site "x"', program(model=model_that_observes_nothing), (X,)),
    ('site "x"', program(model=model_of_another_site), (X,)),
    ('site "x"', program(model=model_in_another_plate), (X,)),
    ('site "x"', program(model=model_that_returns_nothing), (X,)),
    ("model without x", program(model=model_that_returns_the_mean), (X,)),
    ("guide draws", program(guide=guide_of_another_site), (X,)),
    ("guide draws", program(guide=guide_of_nothing), (X,)),
    ("guide draws", program(guide=guide_that_needs_rows), (X,)),
    ("log weights", program(model=model_that_indexes_from_the_left), (X,)),
    ("finite gradient", Idle(), (X,)),
    ("finite gradient", Root(), (X,)),
    (
        "part of any other program",
        program(forward=lambda self, context=None: Running(self.slope)),
        (X,),
    ),
    # missing values
    ("missing values", distribution(log_prob=silent_nan), (X,)),
    ("missing values", distribution(log_prob=refusal_of_nan("bad input")), (X,)),
    ("missing values", distribution(log_prob=where_nan), (X,)),
    ("missing values", distribution(log_prob=filled(0.0)), (X,)),
    ("missing values", distribution(log_prob=coupled, sample=coupled_sample), (X,)),
]


@pytest.mark.table(quick=12)
@pytest.mark.parametrize(
    ("promise", "gen", "batch"), REJECTED, ids=[f"{n} {r[0]}" for n, r in enumerate(REJECTED)]
)
def test_a_broken_promise_is_named(promise, gen, batch):
    with pytest.raises(ConformanceError) as raised:
        check_generative(gen, *batch)
    assert promise in str(raised.value).split(": ")[0]


@pytest.mark.parametrize(
    ("gen", "batch"),
    [
        (Module(distribution(log_prob=NO_NAN).distribution), (X,)),
        (Observed(), (X,)),
        (Head(outputs=2), (X, C)),
        (Fixed(dist.Laplace, event_ndim=0, loc=0.0, scale=1.0), (X[:, 0],)),
        (distribution(log_prob=filled(0.0, factor=0.0)), (X,)),
    ],
)
def test_what_is_right_passes(gen, batch):
    check_generative(gen, *batch)


def spoken_refusal(self, x):
    raise NotImplementedError("implicit: train it with an adversary, compare samples")


def mean_of_samples(model, guide):
    """An objective that needs no density."""

    def loss(x):
        distribution = poutine.trace(model).get_trace(None).nodes["x"]["fn"]
        return (distribution.loc.sum() - x.mean(0).sum()).square()

    return loss


def test_distributions_without_a_normalized_density_pass():
    check_generative(
        distribution(density_kind="implicit", log_prob=spoken_refusal), X, objective=mean_of_samples
    )
    for kind in ("unbiased", "bound", "approximate"):
        noisy = distribution(
            density_kind=kind,
            log_prob=lambda self, x: Distribution.log_prob(self, x) + 0.1 * torch.randn(()),
        )
        check_generative(noisy, X, objective=mean_of_samples)
    check_generative(
        distribution(
            density_kind="unnormalized",
            log_prob=lambda self, x: Distribution.log_prob(self, x) + 5.0,
        ),
        X,
        objective=mean_of_samples,
    )


def test_the_model_and_the_generators_stay_as_they_were():
    gen, before = Observed().train(), torch.get_rng_state()
    state = copy.deepcopy(gen.state_dict())
    check_generative(gen, X)
    assert gen.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[name], value) for name, value in gen.state_dict().items())
    assert all(parameter.grad is None for parameter in gen.parameters())
