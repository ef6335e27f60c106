"""Programs over time.

Hidden Markov models, capture histories, deep Markov models and state spaces.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.infer.reparam import HaarReparam, LinearHMMReparam, SplitReparam, StudentTReparam
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from programs.case import Case, Pair
from programs.topics import TOPICS

ENUMERATED = {"enumerate": "parallel"}


# Hidden Markov models of chorales, after examples/hmm.py


def _sticky(size: int) -> dist.Dirichlet:
    return dist.Dirichlet(0.9 * torch.eye(size) + 0.1)


def _rare(*shape: int) -> dist.Independent:
    return dist.Beta(0.1, 0.9).expand(list(shape)).to_event(len(shape))


def hmm_0(sequences, lengths, args, batch_size=None, include_prior=True):
    """A sequential plate over sequences, each cut to its own length.

    And a plate of tones inside it.
    """
    with poutine.mask(mask=include_prior):
        probs_x = pyro.sample("probs_x", _sticky(args.hidden_dim).to_event(1))
        probs_y = pyro.sample("probs_y", _rare(args.hidden_dim, sequences.shape[-1]))
    tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
    for i in pyro.plate("sequences", len(sequences), batch_size):
        sequence = sequences[i, : lengths[i]]
        x = 0
        for t in pyro.markov(range(lengths[i])):
            x = pyro.sample(f"x_{i}_{t}", dist.Categorical(probs_x[x]), infer=ENUMERATED)
            with tones_plate:
                pyro.sample(f"y_{i}_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequence[t])


def hmm_1(sequences, lengths, args, batch_size=None, include_prior=True):
    """Padded sequences in a subsampled plate at dim -2, masked past their lengths."""
    with poutine.mask(mask=include_prior):
        probs_x = pyro.sample("probs_x", _sticky(args.hidden_dim).to_event(1))
        probs_y = pyro.sample("probs_y", _rare(args.hidden_dim, sequences.shape[-1]))
    tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
    with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        x = 0
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=ENUMERATED)
                with tones_plate:
                    probs = probs_y[x.squeeze(-1)]
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs), obs=sequences[batch, t])


def hmm_2(sequences, lengths, args, batch_size=None, include_prior=True):
    """Observed tones carried from step to step, and the index of the tones plate used to gather."""
    with poutine.mask(mask=include_prior):
        probs_x = pyro.sample("probs_x", _sticky(args.hidden_dim).to_event(1))
        probs_y = pyro.sample("probs_y", _rare(args.hidden_dim, 2, sequences.shape[-1]))
    tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
    with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        x, y = 0, 0
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=ENUMERATED)
                with tones_plate as tones:
                    probs = probs_y[x, y, tones]
                    y = pyro.sample(f"y_{t}", dist.Bernoulli(probs), obs=sequences[batch, t]).long()


def hmm_3(sequences, lengths, args, batch_size=None, include_prior=True):
    """Two independent chains of enumerated states with joint emissions."""
    hidden_dim = int(args.hidden_dim**0.5)
    with poutine.mask(mask=include_prior):
        probs_w = pyro.sample("probs_w", _sticky(hidden_dim).to_event(1))
        probs_x = pyro.sample("probs_x", _sticky(hidden_dim).to_event(1))
        probs_y = pyro.sample("probs_y", _rare(hidden_dim, hidden_dim, sequences.shape[-1]))
    tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
    with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        w, x = 0, 0
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=ENUMERATED)
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=ENUMERATED)
                with tones_plate as tones:
                    pyro.sample(
                        f"y_{t}", dist.Bernoulli(probs_y[w, x, tones]), obs=sequences[batch, t]
                    )


def hmm_4(sequences, lengths, args, batch_size=None, include_prior=True):
    """Two chains of enumerated states, the second gathered with Vindex from the first."""
    hidden_dim = int(args.hidden_dim**0.5)
    with poutine.mask(mask=include_prior):
        probs_w = pyro.sample("probs_w", _sticky(hidden_dim).to_event(1))
        probs_x = pyro.sample("probs_x", _sticky(hidden_dim).expand_by([hidden_dim]).to_event(2))
        probs_y = pyro.sample("probs_y", _rare(hidden_dim, hidden_dim, sequences.shape[-1]))
    tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
    with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        w = x = torch.tensor(0)
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=ENUMERATED)
                x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(probs_x)[w, x]), infer=ENUMERATED)
                with tones_plate as tones:
                    pyro.sample(
                        f"y_{t}", dist.Bernoulli(probs_y[w, x, tones]), obs=sequences[batch, t]
                    )


def hmm_6(sequences, lengths, args, batch_size=None, include_prior=False):
    """A second-order chain (``history=2``) whose tables are params in the model.

    The guide is empty.
    """
    hidden_dim = args.hidden_dim
    table = partial(pyro.param, constraint=constraints.simplex)
    if args.raftery_parameterization:
        probs_x1 = table("probs_x1", torch.rand(hidden_dim, hidden_dim))
        probs_x2 = table("probs_x2", torch.rand(hidden_dim, hidden_dim))
        mix = pyro.param("mix_lambda", torch.tensor(0.5), constraint=constraints.unit_interval)
        probs_x = mix * probs_x1 + (1.0 - mix) * probs_x2.unsqueeze(-2)
    else:
        probs_x = table("probs_x", torch.rand(hidden_dim, hidden_dim, hidden_dim))
    start = torch.rand(hidden_dim, sequences.shape[-1])
    probs_y = pyro.param("probs_y", start, constraint=constraints.unit_interval)
    tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
    with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        current, previous = torch.tensor(0), torch.tensor(0)
        for t in pyro.markov(range(lengths.max()), history=2):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                probs = Vindex(probs_x)[previous, current]
                state = pyro.sample(f"x_{t}", dist.Categorical(probs), infer=ENUMERATED)
                previous, current = current, state
                with tones_plate:
                    probs = probs_y[current.squeeze(-1)]
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs), obs=sequences[batch, t])


class TonesGenerator(nn.Module):
    """Logits of the tones from a state, one-hot, and the tones of the step before, convolved."""

    def __init__(self, args, data_dim: int) -> None:
        super().__init__()
        self.hidden_dim = args.hidden_dim
        self.x_to_hidden = nn.Linear(args.hidden_dim, args.nn_dim)
        self.y_to_hidden = nn.Linear(args.nn_channels * data_dim, args.nn_dim)
        self.conv = nn.Conv1d(1, args.nn_channels, 3, padding=1)
        self.hidden_to_logits = nn.Linear(args.nn_dim, data_dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one_hot = y.new_zeros((*x.shape[:-1], self.hidden_dim)).scatter_(-1, x, 1)
        features = self.conv(y.reshape(-1, 1, y.shape[-1])).relu().reshape((*y.shape[:-1], -1))
        return self.hidden_to_logits(
            (self.x_to_hidden(one_hot) + self.y_to_hidden(features)).relu()
        )


def neural_hmms() -> dict:
    """Models 5 and 7: their network is made at the first call, kept outside the model.

    And registered.
    """
    network = None

    def tones_generator(args, data_dim):
        nonlocal network
        if network is None:
            network = TonesGenerator(args, data_dim)
        pyro.module("tones_generator", network)
        return network

    def hmm_5(sequences, lengths, args, batch_size=None, include_prior=True):
        """A neural emission with pyro.module, and one plate of tones for each step."""
        net = tones_generator(args, sequences.shape[-1])
        with poutine.mask(mask=include_prior):
            probs_x = pyro.sample("probs_x", _sticky(args.hidden_dim).to_event(1))
        with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
            lengths = lengths[batch]
            x, y = 0, torch.zeros(sequences.shape[-1])
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=ENUMERATED)
                    with pyro.plate(f"tones_{t}", sequences.shape[-1], dim=-1):
                        emission = dist.Bernoulli(logits=net(x, y))
                        y = pyro.sample(f"y_{t}", emission, obs=sequences[batch, t])

    def hmm_7(sequences, lengths, args, batch_size=None, include_prior=True):
        """The neural chain as one DiscreteHMM whose emission is masked past the lengths."""
        net = tones_generator(args, sequences.shape[-1])
        with poutine.mask(mask=include_prior):
            probs_x = pyro.sample("probs_x", _sticky(args.hidden_dim).to_event(1))
        with pyro.plate("sequences", len(sequences), batch_size, dim=-1) as batch:
            lengths = lengths[batch]
            y = sequences[batch, : lengths.max()]
            init_logits = torch.full((args.hidden_dim,), -float("inf"))
            init_logits[0] = 0
            states = torch.arange(args.hidden_dim).unsqueeze(-1)
            inside = torch.arange(y.size(1)) < lengths.unsqueeze(-1)
            emission = dist.Bernoulli(logits=net(states, y.unsqueeze(-2))).to_event(1)
            emission = emission.mask(inside.unsqueeze(-1))
            pyro.sample("y", dist.DiscreteHMM(init_logits, probs_x.log(), emission), obs=y)

    return {"5": hmm_5, "7": hmm_7}


def _hmm(number: str, batch_size: int | None = None, raftery: bool = False) -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lengths = torch.tensor([5, 3, 4, 2, 5, 4])
        sequences = torch.bernoulli(torch.full((6, 5, 3), 0.4))
    sequences = sequences * (torch.arange(5) < lengths.unsqueeze(-1)).unsqueeze(-1)
    args = SimpleNamespace(hidden_dim=4, nn_dim=5, nn_channels=2, raftery_parameterization=raftery)
    model = {
        "0": hmm_0,
        "1": hmm_1,
        "2": hmm_2,
        "3": hmm_3,
        "4": hmm_4,
        "6": hmm_6,
        **neural_hmms(),
    }[number]
    guide = AutoDelta(poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("probs_")))
    return Pair(model, guide, (sequences, lengths), {"args": args, "batch_size": batch_size})


def _chorales(number: str, suffix: str = "", **settings) -> Case:
    loss = partial(
        TraceEnum_ELBO,
        max_plate_nesting=1 if number == "0" else 2,
        strict_enumeration_warning=number != "7",
    )
    refused = dict(NO_LATENTS) if number == "6" else {"khat": "point estimate"}
    if settings["batch_size"] < 6:
        refused["mcmc"] = "subsampl"  # the density of a random mini-batch is no target
    return Case(
        name=f"hmm_{number}{suffix}",
        make=partial(_hmm, number, **settings),
        loss=loss,
        nuts="mcmc" not in refused,
        refused=refused,
    )


def _binary_hmm() -> Pair:
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    emission = torch.tensor([0.9, 0.2])

    def model(sequences, lengths):
        """Known tables and nothing to learn: only enumerated states, masked past each length."""
        with pyro.plate("sequences", len(sequences)):
            state = torch.tensor(0)
            for t in pyro.markov(range(sequences.shape[1])):
                with poutine.mask(mask=t < lengths):
                    state = pyro.sample(
                        f"x_{t}", dist.Categorical(transition[state]), infer=ENUMERATED
                    )
                    pyro.sample(f"y_{t}", dist.Bernoulli(emission[state]), obs=sequences[:, t])

    def guide(sequences, lengths):
        pass

    with torch.random.fork_rng():
        torch.manual_seed(0)
        lengths = torch.arange(12) % 6 + 1
        sequences = torch.bernoulli(torch.full((12, 6), 0.6)) * (
            torch.arange(6) < lengths.unsqueeze(-1)
        )
    return Pair(model, guide, (sequences, lengths))


# Mixed hidden Markov models of seals, after examples/mixed_hmm


@config_enumerate
def mixed_model(config):
    """Group and individual effects over masked plates at dims -1 and -2.

    The data stand in a config.
    """
    sizes, groups = config["sizes"], config["sizes"]["group"]
    states, square = sizes["state"], sizes["state"] ** 2
    by_group, by_individual = config["group"]["random"], config["individual"]["random"]

    if by_group == "discrete":
        probs_g, theta_g = _seal_kinds("group", (sizes["random"],), square)
    if by_individual == "discrete":
        probs_i, theta_i = _seal_kinds("individual", (groups, sizes["random"]), square)
    observe = _seal_observations(config)

    gamma = torch.zeros(square)
    with pyro.plate("group", groups, dim=-1):
        if by_group == "discrete":
            gamma = gamma + theta_g[pyro.sample("e_g", dist.Categorical(probs_g)), :]
        elif by_group == "continuous":
            prior = dist.Normal(torch.zeros(square), torch.ones(square)).to_event(1)
            gamma = gamma + pyro.sample("eps_g", prior)
        with (
            pyro.plate("individual", sizes["individual"], dim=-2),
            poutine.mask(mask=config["individual"]["mask"]),
        ):
            if by_individual == "discrete":
                e_i = pyro.sample("e_i", dist.Categorical(probs_i))
                gamma = gamma + theta_i[torch.arange(groups), e_i, :]
            elif by_individual == "continuous":
                prior = dist.Normal(
                    torch.zeros(groups, square), torch.ones(groups, square)
                ).to_event(1)
                gamma = gamma + pyro.sample("eps_i", prior)
            gamma = gamma.reshape((*gamma.shape[:-1], states, states))
            y = torch.tensor(0)
            for t in pyro.markov(range(sizes["timesteps"])):
                with poutine.mask(mask=config["timestep"]["mask"][..., t]):
                    y = pyro.sample(f"y_{t}", dist.Categorical(logits=Vindex(gamma)[..., y, :]))
                    observe(t, y)


def _seal_kinds(name, shape, square):
    """Params of a discrete effect.

    Probabilities of the kinds, and what each adds to the transitions.
    """
    start = partial(torch.rand, shape)
    probs = pyro.param(f"probs_e_{name}", start, constraint=constraints.simplex)
    return probs, Vindex(pyro.param(f"theta_{name}", partial(torch.randn, *shape, square)))


def _seal_observations(config):
    """Registers the params of the emissions and gives what observes a step.

    Zeros by a masked mixture.
    """
    states, missing = config["sizes"]["state"], config["MISSING"]

    def positive(name):
        return pyro.param(name, lambda: torch.randn(states).abs(), constraint=constraints.positive)

    step_zi = pyro.param("step_zi_param", lambda: torch.ones(states, 2))
    step_shape, step_rate = positive("step_param_concentration"), positive("step_param_rate")
    angle_concentration = positive("angle_param_concentration")
    angle_loc = pyro.param("angle_param_loc", lambda: torch.randn(states).abs())
    omega_zi = pyro.param("omega_zi_param", lambda: torch.ones(states, 2))
    omega_0, omega_1 = (
        positive("omega_param_concentration0"),
        positive("omega_param_concentration1"),
    )

    def inflated(name, t, distribution, logits):
        value = config["observations"][name][..., t]
        is_zero = (value == missing).long()
        is_zero = pyro.sample(f"{name}_zi_{t}", dist.Categorical(logits=logits), obs=is_zero)
        distribution = dist.MaskedMixture(
            is_zero.bool(), distribution, dist.Delta(torch.tensor(missing))
        )
        pyro.sample(f"{name}_{t}", distribution, obs=value)

    def observe(t, y):
        inflated("step", t, dist.Gamma(step_shape[y], step_rate[y]), step_zi[y])
        angle = dist.VonMises(angle_loc[y], angle_concentration[y])
        pyro.sample(f"angle_{t}", angle, obs=config["observations"]["angle"][..., t])
        inflated("omega", t, dist.Beta(omega_1[y], omega_0[y]), omega_zi[y])

    return observe


def mixed_guide(config):
    """Mean field over continuous effects; plates without any site where there are none."""
    sizes = config["sizes"]
    square = sizes["state"] ** 2

    def effect(name, *shape):
        loc = pyro.param(f"loc_{name}", lambda: torch.zeros(shape))
        scale = pyro.param(
            f"scale_{name}", lambda: torch.ones(shape), constraint=constraints.positive
        )
        return dist.Normal(loc, scale).to_event(1)

    with pyro.plate("group", sizes["group"], dim=-1):
        if config["group"]["random"] == "continuous":
            pyro.sample("eps_g", effect("group", square))
        with (
            pyro.plate("individual", sizes["individual"], dim=-2),
            poutine.mask(mask=config["individual"]["mask"]),
        ):
            if config["individual"]["random"] == "continuous":
                pyro.sample("eps_i", effect("individual", sizes["group"], square))


def _mixed_hmm(effects: str | None) -> Pair:
    missing, absent = 1e-6, -float("inf")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        observations = torch.rand(3, 2, 4, 3) * 0.9 + 0.05
    observations[0, 0, 3:] = observations[1, 1, 2:] = absent
    if (
        effects != "continuous"
    ):  # groups of different size; a masked continuous effect would have no density
        observations[2, 1] = absent
    observations[0, 1, 1, 0] = 0.0
    there = observations > absent
    observations[~there | (observations == 0)] = missing
    config = {
        "MISSING": missing,
        "sizes": {"state": 2, "random": 3, "group": 2, "individual": 3, "timesteps": 4},
        "group": {"random": effects, "fixed": None},
        "individual": {"random": effects, "fixed": None, "mask": there.any(-1).any(-1)},
        "timestep": {"random": None, "fixed": None, "mask": there.all(-1)},
        "observations": dict(zip(("step", "angle", "omega"), observations.unbind(-1), strict=True)),
    }
    return Pair(partial(mixed_model, config), partial(mixed_guide, config))


# Capture and recapture, after examples/capture_recapture/cjs.py


def _recapture(t, history, seen, z, phi, rho):
    survives = seen.float() * phi * z + (1 - seen.float())
    z = pyro.sample(f"z_{t}", dist.Bernoulli(survives), infer=ENUMERATED)
    pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
    return z


def cjs_1(capture_history, sex):
    """Global latents, a plate around the loop, and a mask that is updated in place."""
    animals, times = capture_history.shape
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", animals, dim=-1):
        z, first_capture_mask = torch.ones(animals), torch.zeros(animals).bool()
        for t in pyro.markov(range(times)):
            with poutine.mask(mask=first_capture_mask):
                z = _recapture(t, capture_history, first_capture_mask, z, phi, rho)
            first_capture_mask |= capture_history[:, t].bool()


def cjs_2(capture_history, sex):
    """A latent for each step outside the plate, which is entered again at each step."""
    animals, times = capture_history.shape
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    z, first_capture_mask = torch.ones(animals), torch.zeros(animals).bool()
    animals_plate = pyro.plate("animals", animals, dim=-1)
    for t in pyro.markov(range(times)):
        phi = pyro.sample(f"phi_{t}", dist.Uniform(0.0, 1.0)) if t > 0 else 1.0
        with animals_plate, poutine.mask(mask=first_capture_mask):
            z = _recapture(t, capture_history, first_capture_mask, z, phi, rho)
        first_capture_mask |= capture_history[:, t].bool()


def cjs_3(capture_history, sex):
    """A random effect of time with global mean and scale."""
    animals, times = capture_history.shape
    phi_mean = pyro.sample("phi_mean", dist.Uniform(0.0, 1.0))
    phi_sigma = pyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    z, first_capture_mask = torch.ones(animals), torch.zeros(animals).bool()
    animals_plate = pyro.plate("animals", animals, dim=-1)
    for t in pyro.markov(range(times)):
        effect = dist.Normal(torch.logit(phi_mean), phi_sigma)
        phi = torch.sigmoid(pyro.sample(f"phi_logit_{t}", effect) if t > 0 else torch.tensor(0.0))
        with animals_plate, poutine.mask(mask=first_capture_mask):
            z = _recapture(t, capture_history, first_capture_mask, z, phi, rho)
        first_capture_mask |= capture_history[:, t].bool()


def cjs_4(capture_history, sex):
    """A fixed effect of a covariate of the rows, which is an argument of its own."""
    animals, times = capture_history.shape
    phi_male = pyro.sample("phi_male", dist.Uniform(0.0, 1.0))
    phi_female = pyro.sample("phi_female", dist.Uniform(0.0, 1.0))
    phi = sex * phi_male + (1.0 - sex) * phi_female
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", animals, dim=-1):
        z, first_capture_mask = torch.ones(animals), torch.zeros(animals).bool()
        for t in pyro.markov(range(times)):
            with poutine.mask(mask=first_capture_mask):
                z = _recapture(t, capture_history, first_capture_mask, z, phi, rho)
            first_capture_mask |= capture_history[:, t].bool()


def cjs_5(capture_history, sex):
    """Effects of rows and of time added on the scale of logits."""
    animals, times = capture_history.shape
    phi_beta = sex * pyro.sample("phi_beta", dist.Normal(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    z, first_capture_mask = torch.ones(animals), torch.zeros(animals).bool()
    animals_plate = pyro.plate("animals", animals, dim=-1)
    for t in pyro.markov(range(times)):
        phi_gamma = pyro.sample(f"phi_gamma_{t}", dist.Normal(0.0, 10.0)) if t > 0 else 0.0
        phi = torch.sigmoid(phi_beta + phi_gamma)
        with animals_plate, poutine.mask(mask=first_capture_mask):
            z = _recapture(t, capture_history, first_capture_mask, z, phi, rho)
        first_capture_mask |= capture_history[:, t].bool()


def _cjs(number: int) -> Pair:
    model = (cjs_1, cjs_2, cjs_3, cjs_4, cjs_5)[number - 1]
    guide = AutoDiagonalNormal(
        poutine.block(model, expose_fn=lambda msg: msg["name"][0:3] in ["phi", "rho"])
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        history = torch.bernoulli(torch.full((8, 5), 0.5))
    history[torch.arange(8), torch.arange(8) % 3] = 1.0  # each animal was caught at least once
    sex = (torch.arange(8) % 2).float() if number > 3 else None
    return Pair(model, guide, (history, sex))


# Deep Markov models, after examples/dmm.py


class Gaussian(nn.Module):
    """Location and scale from one hidden layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.loc = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.scale = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.hidden(x))
        return self.loc(h), nn.functional.softplus(self.scale(h))


class DMM(nn.Module):
    """Model and guide as methods of one registered module, padded mini-batches.

    Masked distributions.

    Annealed KL.
    """

    def __init__(self, input_dim=4, z_dim=2, rnn_dim=5, num_iafs=0) -> None:
        super().__init__()
        self.emitter = nn.Sequential(
            nn.Linear(z_dim, 6), nn.ReLU(), nn.Linear(6, input_dim), nn.Sigmoid()
        )
        self.trans = Gaussian(z_dim, 6, z_dim)
        self.combiner = Gaussian(z_dim + rnn_dim, 6, z_dim)
        self.rnn = nn.RNN(input_dim, rnn_dim, nonlinearity="relu", batch_first=True)
        iaf = dist.transforms.affine_autoregressive
        self.iafs = [iaf(z_dim, hidden_dims=[4]) for _ in range(num_iafs)]
        self.iafs_modules = nn.ModuleList(self.iafs)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(z_dim)), nn.Parameter(torch.zeros(z_dim))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, rnn_dim))

    def model(
        self, mini_batch, mini_batch_reversed, mini_batch_mask, seq_lengths, annealing_factor=1.0
    ):
        pyro.module("dmm", self)
        z = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.size(1) + 1)):
                inside = mini_batch_mask[:, t - 1 : t]
                with poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t}", dist.Normal(*self.trans(z)).mask(inside).to_event(1))
                emission = dist.Bernoulli(self.emitter(z)).mask(inside).to_event(1)
                pyro.sample(f"obs_x_{t}", emission, obs=mini_batch[:, t - 1, :])

    def guide(
        self, mini_batch, mini_batch_reversed, mini_batch_mask, seq_lengths, annealing_factor=1.0
    ):
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        h, _ = self.rnn(mini_batch_reversed, h_0)
        if isinstance(h, PackedSequence):
            h, _ = pad_packed_sequence(h, batch_first=True)
        h = _reversed(h, seq_lengths)
        z = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.size(1) + 1)):
                step = h[:, t - 1].expand(z.shape[:-1] + h.shape[-1:])
                distribution = dist.Normal(*self.combiner(torch.cat([z, step], -1)))
                if self.iafs:
                    distribution = dist.TransformedDistribution(distribution, self.iafs).mask(
                        mini_batch_mask[:, t - 1]
                    )
                else:
                    distribution = distribution.mask(mini_batch_mask[:, t - 1 : t]).to_event(1)
                with poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t}", distribution)


def _reversed(padded: Tensor, lengths: Tensor) -> Tensor:
    out = torch.zeros_like(padded)
    for row, length in enumerate(lengths):
        out[row, :length] = padded[row, :length].flip(0)
    return out


def _dmm(packed: bool, num_iafs: int = 0) -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DMM(num_iafs=num_iafs)
        lengths = torch.tensor([4, 3, 3, 1])
        mask = (torch.arange(4) < lengths.unsqueeze(-1)).float()
        mini_batch = torch.bernoulli(torch.full((4, 4, 4), 0.5)) * mask.unsqueeze(-1)
    backwards = _reversed(mini_batch, lengths)
    if packed:
        backwards = pack_padded_sequence(backwards, lengths, batch_first=True)
    return Pair(net.model, net.guide, (mini_batch, backwards, mask, lengths, 0.5))


# States carried through pyro.markov


def _walks(rows: int = 5, steps: int = 6) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.randn(rows, steps).cumsum(-1) + 0.3 * torch.randn(rows, steps)


def _markov_continuous() -> Pair:
    def model(y):
        """Continuous states carried through pyro.markov, one site for each step."""
        drift = pyro.sample("drift_scale", dist.LogNormal(0.0, 0.5))
        noise = pyro.sample("noise_scale", dist.LogNormal(-1.0, 0.5))
        with pyro.plate("series", len(y)):
            x = torch.zeros(len(y))
            for t in pyro.markov(range(y.shape[1])):
                x = pyro.sample(f"x_{t}", dist.Normal(x, drift))
                pyro.sample(f"y_{t}", dist.Normal(x, noise), obs=y[:, t])

    def guide(y):
        """A chain of its own that looks at the data, with params made lazily."""
        for name in ("drift_scale", "noise_scale"):
            loc = pyro.param(f"{name}_loc", torch.tensor(-0.5))
            scale = pyro.param(f"{name}_scale", torch.tensor(0.2), constraint=constraints.positive)
            pyro.sample(name, dist.LogNormal(loc, scale))
        half = torch.full((y.shape[1],), 0.5)
        gain = pyro.param("gain", half, constraint=constraints.unit_interval)
        scale = pyro.param(
            "x_scale", lambda: torch.ones(y.shape[1]), constraint=constraints.positive
        )
        with pyro.plate("series", len(y)):
            x = torch.zeros(len(y))
            for t in pyro.markov(range(y.shape[1])):
                x = pyro.sample(f"x_{t}", dist.Normal(x + gain[t] * (y[:, t] - x), scale[t]))

    return Pair(model, guide, (_walks(),))


def _markov_discrete() -> Pair:
    @config_enumerate
    def model(y):
        """One sequence without a plate.

        States enumerated by a decorator, hidden from the guide by name.
        """
        rows = dist.Dirichlet(torch.eye(2) + 1.0).to_event(1)
        transition = pyro.sample("transition", rows)
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        state = 0
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]))
            pyro.sample(f"y_{t}", dist.Normal(loc[state], scale), obs=y[t])

    y = _walks(1, 8)[0]
    return Pair(
        model, AutoNormal(poutine.block(model, hide=[f"state_{t}" for t in range(len(y))])), (y,)
    )


def _markov_switching() -> Pair:
    def model(y):
        """Discrete regimes, summed out, drive continuous states, drawn by the guide.

        In one loop.
        """
        stay = pyro.sample("stay", dist.Beta(4.0, 1.0))
        drift = pyro.sample("drift", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1))
        probs = torch.stack(
            [torch.stack([stay, 1 - stay], -1), torch.stack([1 - stay, stay], -1)], -2
        )
        with pyro.plate("series", len(y)):
            regime, x = torch.tensor(0), torch.zeros(len(y))
            for t in pyro.markov(range(y.shape[1])):
                distribution = dist.Categorical(Vindex(probs)[..., regime, :])
                regime = pyro.sample(f"regime_{t}", distribution, infer=ENUMERATED)
                x = pyro.sample(f"x_{t}", dist.Normal(x + Vindex(drift)[..., regime], 1.0))
                pyro.sample(f"y_{t}", dist.Normal(x, 0.3), obs=y[:, t])

    hidden = poutine.block(model, hide_fn=lambda msg: msg["name"].startswith("regime"))
    return Pair(model, AutoNormal(hidden), (_walks(4, 4),))


# The same, vectorized over time


def _discrete_hmm() -> Pair:
    def model(y):
        """A whole chain as one site with an event of time, fitted by its modes."""
        transition = pyro.sample("transition", dist.Dirichlet(torch.eye(2) + 1.0).to_event(1))
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("series", len(y)):
            emission = dist.Normal(loc, 1.0)
            hmm = dist.DiscreteHMM(torch.zeros(2), transition.log(), emission, duration=y.shape[1])
            pyro.sample("y", hmm, obs=y)

    return Pair(model, AutoDelta(model), (_walks(),))


def _gaussian_hmm() -> Pair:
    def model(y):
        """States summed out in closed form, scales with a posterior."""
        drift = pyro.sample("drift_scale", dist.LogNormal(0.0, 0.5))
        noise = pyro.sample("noise_scale", dist.LogNormal(-1.0, 0.5))
        zero, eye = torch.zeros(1), torch.eye(1)
        hmm = dist.GaussianHMM(
            dist.Normal(zero, 1.0).to_event(1),
            eye,
            dist.Normal(zero, drift.unsqueeze(-1)).to_event(1),
            eye,
            dist.Normal(zero, noise.unsqueeze(-1)).to_event(1),
            duration=y.shape[-2],
        )
        with pyro.plate("series", len(y)):
            pyro.sample("y", hmm, obs=y)

    return Pair(model, AutoNormal(model), (_walks().unsqueeze(-1),))


def _linear_hmm() -> Pair:
    def model(y):
        """Heavy tails in states and observations, made Gaussian by reparameterizers.

        No plate at all.
        """
        drift = pyro.sample("drift_scale", dist.LogNormal(0.0, 0.5))
        zero, eye = torch.zeros(1), torch.eye(1)
        hmm = dist.LinearHMM(
            dist.Normal(zero, 1.0).to_event(1),
            eye,
            dist.StudentT(3.0, zero, drift.unsqueeze(-1)).to_event(1),
            eye,
            dist.StudentT(3.0, zero, 0.5).to_event(1),
            duration=y.shape[-2],
        )
        pyro.sample("y", hmm, obs=y)

    model = poutine.reparam(
        model, {"y": LinearHMMReparam(trans=StudentTReparam(), obs=StudentTReparam())}
    )
    return Pair(model, AutoNormal(model), (_walks(1, 6)[0].unsqueeze(-1),))


def _split_reparam() -> Pair:
    def model(y):
        """Steps of a walk in one site, sent to wavelets and split into slow and fast parts."""
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        steps = pyro.sample("steps", dist.Normal(0.0, scale).expand([len(y)]).to_event(1))
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(steps.cumsum(-1), 0.3), obs=y)

    config = {"steps": HaarReparam(dim=-1), "steps_haar": SplitReparam([2, 6], dim=-1)}
    model = poutine.reparam(model, config)
    return Pair(model, AutoNormal(model), (_walks(1, 8)[0],))


def _enum(nesting: int, **settings) -> partial:
    return partial(TraceEnum_ELBO, max_plate_nesting=nesting, **settings)


NO_LATENTS = {"khat": "latents", "mcmc": "latent"}  # nothing is left once the states are summed out

SEQUENCES: list[Case] = [
    _chorales("0", batch_size=6),
    _chorales("1", batch_size=3),
    _chorales("2", batch_size=6),
    _chorales("3", batch_size=6),
    _chorales("4", batch_size=6),
    _chorales("5", batch_size=3),
    _chorales("6", batch_size=6),
    _chorales("6", "_raftery", batch_size=6, raftery=True),
    _chorales("7", batch_size=6),
    Case("hmm_binary_lengths", _binary_hmm, _enum(1), refused=NO_LATENTS),
    Case("mixed_hmm_none", partial(_mixed_hmm, None), _enum(2), refused=NO_LATENTS),
    Case("mixed_hmm_discrete", partial(_mixed_hmm, "discrete"), _enum(2), refused=NO_LATENTS),
    Case("mixed_hmm_continuous", partial(_mixed_hmm, "continuous"), _enum(2), nuts=True),
    *(
        Case(
            f"cjs_{number}",
            partial(_cjs, number),
            _enum(1, num_particles=20, vectorize_particles=True),
            nuts=True,
        )
        for number in range(1, 6)
    ),
    # padded steps are masked in model and guide alike: they have no density that NUTS could sample
    Case("dmm_padded", partial(_dmm, packed=False), Trace_ELBO),
    Case("dmm_packed", partial(_dmm, packed=True), Trace_ELBO),
    Case("dmm_flows", partial(_dmm, packed=True, num_iafs=1), Trace_ELBO),
    Case("markov_continuous", _markov_continuous, Trace_ELBO, nuts=True),
    Case(
        "markov_discrete",
        _markov_discrete,
        _enum(0),
        nuts=True,
        refused={"log_likelihood": "plate"},
    ),
    Case("markov_switching", _markov_switching, _enum(1), nuts=True),
    Case("discrete_hmm", _discrete_hmm, Trace_ELBO, nuts=True, refused={"khat": "point estimate"}),
    Case("gaussian_hmm", _gaussian_hmm, Trace_ELBO, nuts=True),
    Case(
        "linear_hmm_student",
        _linear_hmm,
        Trace_ELBO,
        nuts=True,
        refused={"log_likelihood": "plate"},
    ),
    Case(
        "split_reparam", _split_reparam, Trace_ELBO
    ),  # NUTS of Pyro starts from draws, parts have none
]
SEQUENCES += TOPICS
