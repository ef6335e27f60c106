"""Programs over documents, counts and tracks, and forecasts.

Those of ``sequences`` that are no chain.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.forecast import ForecastingModel
from pyro.contrib.forecast.util import time_reparam_haar
from pyro.contrib.tracking.assignment import MarginalAssignmentPersistent
from pyro.contrib.tracking.distributions import EKFDistribution
from pyro.contrib.tracking.dynamic_models import NcvContinuous
from pyro.distributions.util import gather
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoNormal,
    init_to_feasible,
    init_to_sample,
)
from pyro.ops.tensor_utils import periodic_cumsum, periodic_repeat
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softmax, softplus

from programs.case import Case, Pair

# Latent Dirichlet allocation, after examples/lda.py and tutorial/source/prodlda.ipynb


def lda_model(data=None, args=None, batch_size=None):
    """Documents along dim 1 of the data, word topics summed out.

    The subsample chosen by the guide alone.
    """
    with pyro.plate("topics", args.num_topics):
        topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / args.num_topics, 1.0))
        prior = dist.Dirichlet(torch.ones(args.num_words) / args.num_words)
        topic_words = pyro.sample("topic_words", prior)
    with pyro.plate("documents", args.num_docs) as ind:
        if data is not None:
            data = data[:, ind]
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
        with pyro.plate("words", args.num_words_per_doc):
            distribution = dist.Categorical(doc_topics)
            word_topics = pyro.sample("word_topics", distribution, infer={"enumerate": "parallel"})
            data = pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)
    return topic_weights, topic_words, data


def lda_guide(predictor, data, args, batch_size=None):
    """Conjugate globals, and a network of word counts that puts each document at one point."""
    size = (args.num_topics, args.num_words)
    ones = partial(torch.ones, size[0])
    weights = pyro.param("topic_weights_posterior", ones, constraint=constraints.positive)
    ones = partial(torch.ones, size)
    words = pyro.param("topic_words_posterior", ones, constraint=constraints.greater_than(0.5))
    with pyro.plate("topics", args.num_topics):
        pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
        pyro.sample("topic_words", dist.Dirichlet(words))
    pyro.module("predictor", predictor)
    with pyro.plate("documents", args.num_docs, batch_size) as ind:
        data = data[:, ind]
        counts = torch.zeros(args.num_words, ind.size(0)).scatter_add(
            0, data, torch.ones(data.shape)
        )
        pyro.sample("doc_topics", dist.Delta(predictor(counts.transpose(0, 1)), event_dim=1))


def _lda() -> Pair:
    args = SimpleNamespace(num_topics=3, num_words=7, num_docs=8, num_words_per_doc=5)
    layers = [nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 3), nn.Sigmoid(), nn.Softmax(dim=-1)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in (layers[0], layers[2]):
            layer.weight.data.normal_(0, 0.001)
            layer.bias.data.normal_(0, 0.001)
        _, _, data = lda_model(args=args)
    guide = partial(lda_guide, nn.Sequential(*layers))
    return Pair(lda_model, guide, (data,), {"args": args, "batch_size": 4})


class Encoder(nn.Module):
    """Counts of words to a Gaussian over topics, with dropout and batch norms."""

    def __init__(self, vocab: int, topics: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(vocab, hidden), nn.Linear(hidden, hidden)
        self.fcmu, self.fclv = nn.Linear(hidden, topics), nn.Linear(hidden, topics)
        self.bnmu, self.bnlv = (
            nn.BatchNorm1d(topics, affine=False),
            nn.BatchNorm1d(topics, affine=False),
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(softplus(self.fc2(softplus(self.fc1(counts)))))
        return self.bnmu(self.fcmu(h)), (0.5 * self.bnlv(self.fclv(h))).exp()


class Decoder(nn.Module):
    """Topic weights to probabilities of words, with dropout and a batch norm in the model."""

    def __init__(self, vocab: int, topics: int, dropout: float) -> None:
        super().__init__()
        self.beta = nn.Linear(topics, vocab, bias=False)
        self.bn = nn.BatchNorm1d(vocab, affine=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, theta: Tensor) -> Tensor:
        return softmax(self.bn(self.beta(self.drop(theta))), dim=1)


class ProdLDA(nn.Module):
    """Two methods that each register their own half, and a multinomial of inhomogeneous totals."""

    def __init__(self, vocab: int, topics: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.topics = topics
        self.encoder = Encoder(vocab, topics, hidden, dropout)
        self.decoder = Decoder(vocab, topics, dropout)

    def model(self, docs):
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", docs.shape[0]):
            loc = docs.new_zeros((docs.shape[0], self.topics))
            scale = docs.new_ones((docs.shape[0], self.topics))
            logtheta = pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))
            words = self.decoder(softmax(logtheta, -1))
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, words), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = self.encoder(docs)
            pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))


def _prodlda() -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ProdLDA(vocab=9, topics=3, hidden=6, dropout=0.2)
        docs = torch.poisson(torch.full((8, 9), 1.5))
    return Pair(net.model, net.guide, (docs,))


# Deep exponential families, after examples/sparse_gamma_def.py


def _near(shape, mean: float, sigma: float = 0.1) -> Tensor:
    return mean * torch.ones(shape) + sigma * torch.randn(shape)


class SparseGammaDEF:
    """Weights flat in plates of their own, three layers of local latents, Poisson counts."""

    top, mid, bottom, image = 3, 2, 2, 6

    def __init__(self) -> None:
        self.alpha_z, self.beta_z = torch.tensor(0.1), torch.tensor(0.1)
        self.alpha_w, self.beta_w = torch.tensor(0.1), torch.tensor(0.3)

    def weights(self, name, rows, columns):
        with pyro.plate(f"w_{name}_plate", rows * columns):
            w = pyro.sample(f"w_{name}", dist.Gamma(self.alpha_w, self.beta_w))
        return w.reshape(rows, columns) if w.dim() == 1 else w.reshape(-1, rows, columns)

    def model(self, x):
        w_top = self.weights("top", self.top, self.mid)
        w_mid = self.weights("mid", self.mid, self.bottom)
        w_bottom = self.weights("bottom", self.bottom, self.image)
        with pyro.plate("data", x.size(0)):
            z = pyro.sample(
                "z_top", dist.Gamma(self.alpha_z, self.beta_z).expand([self.top]).to_event(1)
            )
            mean = torch.matmul(z, w_top)
            z = pyro.sample("z_mid", dist.Gamma(self.alpha_z, self.beta_z / mean).to_event(1))
            mean = torch.matmul(z, w_mid)
            z = pyro.sample("z_bottom", dist.Gamma(self.alpha_z, self.beta_z / mean).to_event(1))
            pyro.sample("obs", dist.Poisson(torch.matmul(z, w_bottom)).to_event(1), obs=x)


class GammaGuide:
    """Mean-field gammas whose params are softplus of free values, one row for each data point."""

    def __init__(self, family: SparseGammaDEF) -> None:
        self.family = family

    def distribution(self, name, shape):
        alpha = softplus(pyro.param(f"alpha_q_{name}", lambda: _near(shape, 0.5)))
        mean = softplus(pyro.param(f"mean_q_{name}", lambda: _near(shape, 0.0)))
        return dist.Gamma(alpha, alpha / mean)

    def __call__(self, x):
        d = self.family
        for name, size in (
            ("top", d.top * d.mid),
            ("mid", d.mid * d.bottom),
            ("bottom", d.bottom * d.image),
        ):
            with pyro.plate(f"w_{name}_plate", size):
                pyro.sample(f"w_{name}", self.distribution(f"w_{name}", (size,)))
        with pyro.plate("data", x.size(0)):
            for name, size in (("top", d.top), ("mid", d.mid), ("bottom", d.bottom)):
                pyro.sample(
                    f"z_{name}", self.distribution(f"z_{name}", (x.size(0), size)).to_event(1)
                )


class GroupedGuide(EasyGuide):
    """EasyGuide: all weights in one group, all local latents in another inside the data plate."""

    def guide(self, x):
        group = self.group(match="w_.*")
        mean = pyro.param("w_mean", lambda: _near(group.event_shape, 0.5))
        scale = softplus(pyro.param("w_scale", lambda: _near(group.event_shape, 0.0)))
        group.sample("ws", dist.Normal(mean, scale).to_event(1))
        local = self.group(match="z_.*")
        shape = x.shape[:1] + local.event_shape
        with self.plate("data", x.size(0)):
            mean = pyro.param("z_mean", lambda: _near(shape, 0.5))
            scale = softplus(pyro.param("z_scale", lambda: _near(shape, 0.0)))
            local.sample("zs", dist.Normal(mean, scale).to_event(1))


def _gamma_def(kind: str) -> Pair:
    family = SparseGammaDEF()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.poisson(torch.full((5, 6), 3.0))
    guide = {
        "custom": GammaGuide,
        "auto": lambda family: AutoDiagonalNormal(family.model, init_loc_fn=init_to_feasible),
        "easy": lambda family: GroupedGuide(family.model),
    }[kind](family)
    return Pair(family.model, guide, (x,))


# Tracking, after tutorial/source/tracking_1d.ipynb and ekf.ipynb


def _dynamics(num_frames: int) -> Tensor:
    time = torch.arange(float(num_frames)) / 4
    return torch.stack([time.cos(), time.sin()], -1)


def tracking_model(args, observations):
    """A factor graph: observed values are computed from latent assignments.

    Masks from latent existence.
    """
    with pyro.plate("objects", args.max_num_objects):
        exists = pyro.sample(
            "exists", dist.Bernoulli(args.expected_num_objects / args.max_num_objects)
        )
        with poutine.mask(mask=exists.bool()):
            states = pyro.sample("states", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            positions = _dynamics(args.num_frames).mm(states.t())
    with pyro.plate("detections", observations.shape[1]), pyro.plate("time", args.num_frames):
        is_observed = observations[..., -1] > 0
        with poutine.mask(mask=is_observed):
            assign = pyro.sample("assign", dist.Categorical(torch.ones(args.max_num_objects + 1)))
        is_spurious = assign == args.max_num_objects
        is_real = is_observed & ~is_spurious
        count = is_observed.float().sum(-1, True)
        distribution = dist.Bernoulli(args.expected_num_objects / count)
        pyro.sample("is_real", distribution, obs=is_real.float())
        distribution = dist.Bernoulli(args.expected_num_spurious / count)
        pyro.sample("is_spurious", distribution, obs=is_spurious.float())
        with poutine.mask(mask=is_real):
            augmented = torch.cat([positions, positions.new_zeros(args.num_frames, 1)], -1)
            distribution = dist.Normal(gather(augmented, assign, -1), args.emission_noise_scale)
            pyro.sample("real_observations", distribution, obs=observations[..., 0])
        with poutine.mask(mask=is_spurious):
            pyro.sample("spurious_observations", dist.Normal(0.0, 1.0), obs=observations[..., 0])


def tracking_guide(args, observations):
    """Assignments solved exactly inside the guide and enumerated there."""
    loc = pyro.param("states_loc", lambda: torch.randn(args.max_num_objects, 2))
    start = args.emission_noise_scale
    scale = pyro.param(
        "states_scale", lambda: start * torch.ones(loc.shape), constraint=constraints.positive
    )
    positions = _dynamics(args.num_frames).mm(loc.t())
    is_observed = observations[..., -1] > 0
    where = observations[..., 0].unsqueeze(-1)
    odds = args.expected_num_objects * args.emission_prob / args.expected_num_spurious
    logits = dist.Normal(positions.unsqueeze(-2), args.emission_noise_scale).log_prob(where)
    logits = logits - dist.Normal(0.0, 1.0).log_prob(where) + math.log(odds)
    logits[~is_observed] = -float("inf")
    ratio = math.log(args.max_num_objects / args.expected_num_objects)
    assignment = MarginalAssignmentPersistent(torch.full((args.max_num_objects,), ratio), logits)
    with pyro.plate("objects", args.max_num_objects):
        exists = pyro.sample("exists", assignment.exists_dist, infer={"enumerate": "parallel"})
        with poutine.mask(mask=exists.bool()):
            pyro.sample("states", dist.Normal(loc, scale).to_event(1))
    with (
        pyro.plate("detections", observations.shape[1]),
        poutine.mask(mask=is_observed),
        pyro.plate("time", args.num_frames),
    ):
        pyro.sample("assign", assignment.assign_dist, infer={"enumerate": "parallel"})
    return assignment


def _tracking() -> Pair:
    args = SimpleNamespace(
        num_frames=4,
        max_num_objects=3,
        expected_num_objects=2.0,
        expected_num_spurious=1.0,
        emission_prob=0.8,
        emission_noise_scale=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        positions = _dynamics(4).mm(torch.randn(2, 2).t()) + 0.1 * torch.randn(4, 2)
        spurious = torch.randn(4, 1)
    observations = torch.stack([torch.cat([positions, spurious], -1), torch.ones(4, 3)], -1)
    observations[1, 2] = observations[3, 0] = 0.0  # fewer detections in two frames
    return Pair(tracking_model, tracking_guide, (args, observations))


def _ekf() -> Pair:
    num_frames, dt = 5, 1e-2
    dynamics = NcvContinuous(4, 2.0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        truth = [torch.tensor([0.0, 0.0, 1.0, 0.0])]
        for _ in range(num_frames - 1):
            truth.append(dynamics(truth[-1], dt=dt) + dynamics.process_noise_dist(dt).sample())
        measured = torch.stack(truth)[:, :2] + math.sqrt(1e-5) * torch.randn(num_frames, 2)

    def model(data):
        """One observed site for a whole track, whose distribution has a density but no sampler.

        No plate.
        """
        R = pyro.sample("pv_cov", dist.HalfCauchy(2e-6)) * torch.eye(4)
        Q = pyro.sample("measurement_cov", dist.HalfCauchy(1e-6)) * torch.eye(2)
        pyro.sample(
            "track", EKFDistribution(truth[0], R, dynamics, Q, time_steps=num_frames), obs=data
        )

    return Pair(model, AutoDelta(model), (measured,))


# Forecasting, after tutorial/source/forecasting_i.ipynb and examples/contrib/forecast/bart.py


class Trend(ForecastingModel):
    """A heavy-tailed trend with a latent drift for each step in the time plate of the base class."""

    def model(self, zero_data, covariates):
        bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
        scale = pyro.sample("drift_scale", dist.LogNormal(-2.0, 1.0))
        with self.time_plate:
            drift = pyro.sample("drift", dist.Normal(0.0, scale))
        prediction = (bias.unsqueeze(-1) + drift.cumsum(-1)).unsqueeze(-1)
        noise_scale = pyro.sample("noise_scale", dist.LogNormal(-2.0, 1.0)).unsqueeze(-1)
        self.predict(dist.StudentT(4.0, 0.0, noise_scale.unsqueeze(-1)), prediction)


class Ridership(ForecastingModel):
    """Two correlated series: seasons repeated and drifting, with a GaussianHMM as noise."""

    period = 4

    def model(self, zero_data, covariates):
        duration, dim = zero_data.shape[-2:]
        noise_scale = pyro.sample(
            "noise_scale", dist.LogNormal(torch.full((dim,), -3.0), 1.0).to_event(1)
        )
        timescale = pyro.sample(
            "trans_timescale", dist.LogNormal(torch.zeros(dim), 1.0).to_event(1)
        )
        trans_loc = pyro.sample("trans_loc", dist.Cauchy(0.0, 1 / self.period))
        trans_loc = trans_loc.unsqueeze(-1).expand((*trans_loc.shape, dim))
        distributions = {}
        for name, loc in (("trans", trans_loc), ("obs", torch.zeros(dim))):
            scale = pyro.sample(f"{name}_scale", dist.LogNormal(torch.zeros(dim), 0.1).to_event(1))
            corr = pyro.sample(f"{name}_corr", dist.LKJCholesky(dim, torch.ones(())))
            distributions[name] = dist.MultivariateNormal(
                loc, scale_tril=scale.unsqueeze(-1) * corr
            )
        with pyro.plate("season_plate", self.period, dim=-1):
            season_init = pyro.sample("season_init", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        with self.time_plate:
            season_noise = pyro.sample("season_noise", dist.Normal(0.0, noise_scale).to_event(1))
        prediction = periodic_repeat(season_init, duration, dim=-2)
        prediction = prediction + periodic_cumsum(season_noise, self.period, dim=-2)
        init_dist = dist.Normal(torch.zeros(dim), 100.0).to_event(1)
        trans_mat = timescale.neg().exp().diag_embed()
        noise = dist.GaussianHMM(
            init_dist,
            trans_mat,
            distributions["trans"],
            torch.eye(dim),
            distributions["obs"],
            duration=duration,
        )
        self.predict(noise, prediction)


def _forecast(kind: type[ForecastingModel], dim: int, reparam: bool = False) -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = 0.3 * torch.randn(8, dim).cumsum(-2) + torch.arange(8.0).cos().unsqueeze(-1)
    model = kind()
    if reparam:
        model = poutine.reparam(model, time_reparam_haar)
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.1)
    return Pair(model, guide, (data, torch.zeros(len(data), 0)))


_vectorized = partial(Trace_ELBO, num_particles=1, vectorize_particles=True)

TOPICS: list[Case] = [
    Case(
        "lda",
        _lda,
        partial(TraceEnum_ELBO, max_plate_nesting=2),
        nuts=True,
        refused={"khat": "point estimate"},
    ),
    Case(
        "prodlda", _prodlda, TraceMeanField_ELBO
    ),  # dropout in the decoder makes the density random
    Case("sparse_gamma_def_custom", partial(_gamma_def, "custom"), TraceMeanField_ELBO, nuts=True),
    Case("sparse_gamma_def_auto", partial(_gamma_def, "auto"), TraceMeanField_ELBO, nuts=True),
    Case("sparse_gamma_def_easy", partial(_gamma_def, "easy"), TraceMeanField_ELBO, nuts=True),
    # observed values are computed from latents, so that nothing generates them
    Case(
        "tracking_1d",
        _tracking,
        partial(TraceEnum_ELBO, max_plate_nesting=2),
        refused={"predictive": "latent"},
    ),
    Case(
        "ekf",
        _ekf,
        partial(Trace_ELBO, retain_graph=True),
        nuts=True,
        refused={"khat": "point estimate", "log_likelihood": "plate", "predictive": "sample"},
    ),
    # the residuals of a forecast are one event over time, outside the plate
    *(
        Case(name, make, _vectorized, nuts=True, refused={"log_likelihood": "plate"})
        for name, make in (
            ("forecast_trend", partial(_forecast, Trend, 1)),
            ("forecast_trend_reparam", partial(_forecast, Trend, 1, reparam=True)),
            ("forecast_ridership", partial(_forecast, Ridership, 2)),
        )
    ),
]
