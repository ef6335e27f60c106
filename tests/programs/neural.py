"""Programs with networks.

Autoencoders, semi-supervised ones, attention, flows and amortized guides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.testing import fakes
from pyro.distributions.transforms import conditional_affine_autoregressive
from pyro.distributions.util import broadcast_shape
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from programs.case import Case, Pair
from programs.modules import MODULES, enumerated, seeded


def two(features: Tensor) -> tuple[Tensor, Tensor]:
    """Read a location and a positive scale from the halves of the last dimension."""
    loc, log_scale = features.chunk(2, dim=-1)
    return loc, (0.3 * log_scale).exp()


def joined(*parts: Tensor) -> Tensor:
    """Concatenate along the last dimension what may have more dimensions by enumeration."""
    shape = broadcast_shape(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(shape + part.shape[-1:]) for part in parts], dim=-1)


def pixels(n: int, width: int) -> Tensor:
    """Give binary rows."""
    return torch.bernoulli(torch.full((n, width), 0.4))


class Encoder(nn.Module):
    """Flatten images and give the mean and the scale of their code."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.width = width
        self.hidden = nn.Linear(width, 5)
        self.loc = nn.Linear(5, codes)
        self.log_scale = nn.Linear(5, codes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(self.hidden(x.reshape(-1, self.width)))
        return self.loc(hidden), self.log_scale(hidden).exp()


class Decoder(nn.Module):
    """Give the probabilities of pixels from a code."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(codes, 5), nn.Softplus(), nn.Linear(5, width), nn.Sigmoid()
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class VAE(nn.Module):
    """A module whose methods are the model and the guide, each of which announces its own half."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(9, 2)
        self.decoder = Decoder(2, 9)

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            picture = self.decoder.forward(z)
            pyro.sample(
                "obs",
                dist.Bernoulli(picture, validate_args=False).to_event(1),
                obs=x.reshape(-1, 9),
            )
            return picture

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def vae() -> Pair:
    net = VAE()
    return Pair(net.model, net.guide, (pixels(6, 9).reshape(6, 1, 3, 3),))


class CVAE(nn.Module):
    """Pixels marked by -1 are filled: the plate has no size, and one network was fitted before."""

    def __init__(self, baseline: nn.Module) -> None:
        super().__init__()
        self.baseline_net = baseline
        self.prior_net = Encoder(16, 2)
        self.generation_net = Decoder(2, 16)
        self.recognition_net = Encoder(16, 2)

    @staticmethod
    def filled(xs: Tensor, ys: Tensor) -> Tensor:
        both = xs.clone()
        both[xs == -1] = ys[xs == -1]
        return both

    def model(self, xs: Tensor, ys: Tensor | None = None) -> Tensor:
        pyro.module("generation_net", self)
        batch_size = xs.shape[0]
        with pyro.plate("data"):
            with torch.no_grad():
                first = self.baseline_net(xs.flatten(1)).view(xs.shape)
            prior_loc, prior_scale = self.prior_net(self.filled(xs, first))
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            loc = self.generation_net(zs)
            if ys is not None:
                mask_loc = loc[(xs == -1).view(-1, 16)].view(batch_size, -1)
                mask_ys = ys[xs == -1].view(batch_size, -1)
                pyro.sample(
                    "y", dist.Bernoulli(mask_loc, validate_args=False).to_event(1), obs=mask_ys
                )
            else:
                pyro.deterministic("y", loc.detach())
            return loc

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None:
                first = self.baseline_net(xs.flatten(1)).view(xs.shape)
                loc, scale = self.prior_net(self.filled(xs, first))
            else:
                loc, scale = self.recognition_net(self.filled(xs, ys))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def cvae() -> Pair:
    net = CVAE(nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()))
    ys = pixels(5, 16).reshape(5, 4, 4)
    xs = torch.full_like(ys, -1.0)
    xs[:, :2] = ys[:, :2]
    return Pair(net.model, net.guide, (xs, ys))


class M2(nn.Module):
    """Labels are passed where known, and else enumerated in the guide; the plate has no size."""

    classes, codes, width = 3, 2, 6

    def __init__(self) -> None:
        super().__init__()
        self.encoder_y = nn.Sequential(nn.Linear(self.width, self.classes), nn.Softmax(-1))
        self.encoder_z = nn.Linear(self.width + self.classes, 2 * self.codes)
        self.decoder = nn.Sequential(nn.Linear(self.codes + self.classes, self.width), nn.Sigmoid())

    def model(self, xs: Tensor, ys: Tensor | None = None) -> Tensor:
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        options = {"dtype": xs.dtype, "device": xs.device}
        with pyro.plate("data"):
            prior_loc = torch.zeros(batch_size, self.codes, **options)
            prior_scale = torch.ones(batch_size, self.codes, **options)
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = torch.ones(batch_size, self.classes, **options) / self.classes
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            loc = self.decoder.forward(joined(zs, ys))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)
            return loc

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None:
                alpha = self.encoder_y.forward(xs)
                ys = pyro.sample("y", dist.OneHotCategorical(alpha))
            loc, scale = two(self.encoder_z.forward(joined(xs, ys)))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def model_classify(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            if ys is not None:
                alpha = self.encoder_y.forward(xs)
                with pyro.poutine.scale(scale=46.0):
                    pyro.sample("y_aux", dist.OneHotCategorical(alpha), obs=ys)

    def guide_classify(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pass


def m2(part: str) -> Pair:
    net = M2()
    xs, ys = pixels(6, 6), F.one_hot(torch.arange(6) % 3, 3).float()
    if part == "auxiliary":
        return Pair(net.model_classify, net.guide_classify, (xs, ys))
    guide = config_enumerate(net.guide, "parallel", expand=True)
    return Pair(net.model, guide, (xs, ys) if part == "supervised" else (xs,))


class Normed(nn.Module):
    """A network with batch normalization that takes inputs of any number of dimensions."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.fc = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        flat = self.fc(x.reshape(-1, x.size(-1)))
        return flat.reshape(x.shape[:-1] + flat.shape[-1:])


class ScanVI(nn.Module):
    """Counts with a scaled plate, a constrained parameter.

    Normalized networks and a factor in the guide.
    """

    def __init__(self, genes: int, labels: int, codes: int, scale_factor: float) -> None:
        super().__init__()
        self.genes, self.labels, self.codes, self.scale_factor = genes, labels, codes, scale_factor
        self.z2_decoder = Normed(codes + labels, 4, 2 * codes)
        self.x_decoder = Normed(codes, 4, 2 * genes)
        self.z2l_encoder = Normed(genes, 4, 2 * codes + 2)
        self.classifier = Normed(codes, 4, labels)
        self.z1_encoder = Normed(codes + labels, 4, 2 * codes)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("scanvi", self)
        start = 10.0 * x.new_ones(self.genes)
        theta = pyro.param("inverse_dispersion", start, constraint=constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=self.scale_factor):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(self.codes)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.labels)), obs=y)
            z2_loc, z2_scale = two(self.z2_decoder(torch.cat([z1, y], dim=-1)))
            z2 = pyro.sample("z2", dist.Normal(z2_loc, z2_scale).to_event(1))
            size = pyro.sample("l", dist.LogNormal(2.0, 0.5 * x.new_ones(1)).to_event(1))
            gate_logits, mu = self.x_decoder(z2).chunk(2, dim=-1)
            nb_logits = (size * mu.softmax(dim=-1) + 1e-4).log() - (theta + 1e-4).log()
            x_dist = dist.ZeroInflatedNegativeBinomial(
                gate_logits=gate_logits, total_count=theta, logits=nb_logits, validate_args=False
            )
            pyro.sample("x", x_dist.to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=self.scale_factor):
            loc, scale = two(self.z2l_encoder(x.log1p()))
            pyro.sample("l", dist.LogNormal(loc[..., :1], scale[..., :1]).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(loc[..., 1:], scale[..., 1:]).to_event(1))
            y_dist = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", y_dist)
            else:
                pyro.factor("classification_loss", -0.1 * y_dist.log_prob(y), has_rsample=False)
            z1_loc, z1_scale = two(self.z1_encoder(joined(z2, y)))
            pyro.sample("z1", dist.Normal(z1_loc, z1_scale).to_event(1))


def scanvi(labeled: bool) -> Pair:
    net = ScanVI(genes=5, labels=3, codes=2, scale_factor=1.0 / (6 * 5))
    x, y = torch.poisson(torch.full((6, 5), 2.0)), F.one_hot(torch.arange(6) % 3, 3).float()
    guide = config_enumerate(net.guide, "parallel", expand=True)
    return Pair(net.model, guide, (x, y if labeled else None))


class Step(NamedTuple):
    """What the guide of the attention program carries from an object to the next one."""

    h: Tensor
    c: Tensor
    bl_h: Tensor
    bl_c: Tensor
    z_pres: Tensor
    z_where: Tensor
    z_what: Tensor


def grid(images: Tensor, where: Tensor, side: int) -> Tensor:
    """Resample square images, given a scale and a shift for each."""
    n, before = len(images), math.isqrt(images[0].numel())
    zero = torch.zeros_like(where[:, :1])
    rows = torch.cat((where[:, :1], zero, where[:, 1:2], zero, where[:, :1], where[:, 2:]), 1)
    at = F.affine_grid(rows.view(n, 2, 3), [n, 1, side, side], align_corners=False)
    return F.grid_sample(images.view(n, 1, before, before), at, align_corners=False).view(
        n, side, side
    )


class AIR(nn.Module):
    """Objects in sequence with masked sites, a mini-batch that the guide draws.

    And neural baselines.
    """

    side, window, what, hidden, steps = 6, 3, 2, 5, 2

    def __init__(self, baseline: str) -> None:
        super().__init__()
        self.baseline = baseline
        self.z_where_loc_prior = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]), requires_grad=False)
        self.z_where_scale_prior = nn.Parameter(torch.tensor([0.1, 1.0, 1.0]), requires_grad=False)
        inputs = self.side**2 + 3 + self.what + 1
        self.rnn = nn.LSTMCell(inputs, self.hidden)
        self.encode = nn.Linear(self.window**2, 2 * self.what)
        self.decode = nn.Sequential(nn.Linear(self.what, self.window**2), nn.Sigmoid())
        self.predict = nn.Linear(self.hidden, 7)
        self.bl_rnn = nn.LSTMCell(inputs, self.hidden)
        self.bl_predict = nn.Linear(self.hidden, 1)
        self.bl_net = nn.Sequential(nn.Linear(inputs, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
        self.h_init = nn.Parameter(torch.zeros(1, self.hidden))
        self.c_init = nn.Parameter(torch.zeros(1, self.hidden))

    def prior(self, n: int, z_pres_prior_p: Callable[[int], float]) -> Tensor:
        x, present = torch.zeros(n, self.side, self.side), torch.ones(n, 1)
        for t in range(self.steps):
            present = pyro.sample(
                f"z_pres_{t}", dist.Bernoulli(z_pres_prior_p(t) * present).to_event(1)
            )
            where = dist.Normal(
                self.z_where_loc_prior.expand(n, 3), self.z_where_scale_prior.expand(n, 3)
            )
            z_where = pyro.sample(f"z_where_{t}", where.mask(present).to_event(1))
            what = dist.Normal(torch.zeros(n, self.what), torch.ones(n, self.what))
            z_what = pyro.sample(f"z_what_{t}", what.mask(present).to_event(1))
            x = x + grid(self.decode(z_what), z_where, self.side) * present.view(-1, 1, 1)
        return x

    def model(self, data: Tensor, batch_size: int, **kwargs: Any) -> None:
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0), device=data.device) as ix:
            batch = data[ix]
            n = batch.size(0)
            x = self.prior(n, **kwargs)
            scale = 0.3 * torch.ones(n, self.side**2)
            pyro.sample("obs", dist.Normal(x.view(n, -1), scale).to_event(1), obs=batch.view(n, -1))

    def guide(
        self, data: Tensor, batch_size: int, **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        for name in ("rnn", "predict", "encode", "bl_rnn", "bl_predict", "bl_net"):
            pyro.module(name, getattr(self, name))
        pyro.param("h_init", self.h_init)
        pyro.param("c_init", self.c_init)
        with pyro.plate("data", data.size(0), subsample_size=batch_size, device=data.device) as ix:
            batch = data[ix]
            n = batch.size(0)
            state = Step(
                self.h_init.expand(n, -1),
                self.c_init.expand(n, -1),
                torch.zeros(n, self.hidden),
                torch.zeros(n, self.hidden),
                torch.ones(n, 1),
                torch.zeros(n, 3),
                torch.zeros(n, self.what),
            )
            z_where, z_pres = [], []
            for t in range(self.steps):
                state = self.guide_step(t, state, batch)
                z_where.append(state.z_where)
                z_pres.append(state.z_pres)
            return z_where, z_pres

    def guide_step(self, t: int, prev: Step, batch: Tensor) -> Step:
        seen = torch.cat((batch.flatten(1), prev.z_where, prev.z_what, prev.z_pres), 1)
        h, c = self.rnn(seen, (prev.h, prev.c))
        logit, where = self.predict(h).split([1, 6], dim=1)
        bl_h, bl_c = self.bl_rnn(seen.detach(), (prev.bl_h, prev.bl_c))
        if self.baseline == "value":
            options = {"baseline_value": (self.bl_predict(bl_h) * prev.z_pres.detach()).squeeze(-1)}
        else:
            options = {"nn_baseline": self.bl_net, "nn_baseline_input": seen.detach()}
        z_pres = pyro.sample(
            f"z_pres_{t}",
            dist.Bernoulli(logit.sigmoid() * prev.z_pres).to_event(1),
            infer={"baseline": options},
        )
        loc, scale = two(where)
        at = dist.Normal(loc + self.z_where_loc_prior, scale * self.z_where_scale_prior)
        z_where = pyro.sample(f"z_where_{t}", at.mask(z_pres).to_event(1))
        inverse = torch.cat((torch.ones_like(z_where[:, :1]), -z_where[:, 1:]), 1) / z_where[:, :1]
        code = dist.Normal(*two(self.encode(grid(batch, inverse, self.window).flatten(1))))
        z_what = pyro.sample(f"z_what_{t}", code.mask(z_pres).to_event(1))
        return Step(h, c, bl_h, bl_c, z_pres, z_where, z_what)


def present(step: int, t: int) -> float:
    """Give the prior probability of one more object at a step of training."""
    return max(0.1, 0.6 - 0.1 * t - 1e-3 * step)


def air(baseline: str) -> Pair:
    net = AIR(baseline)
    kwargs = {"batch_size": 4, "z_pres_prior_p": partial(present, 1)}
    return Pair(net.model, net.guide, (torch.rand(8, 6, 6),), kwargs)


def likelihood(z: Tensor) -> dist.MultivariateNormal:
    """Two correlated coordinates whose correlation is a latent too."""
    rho = 0.9 * z[..., 2].tanh()
    rows = torch.stack([torch.ones_like(rho), rho, rho, torch.ones_like(rho)], dim=-1)
    return dist.MultivariateNormal(z[..., :2], 0.1 * rows.unflatten(-1, (2, 2)))


def flow_model(x: Tensor) -> None:
    """A prior built once at the top of the script.

    And a plate of observations within the batch's one.
    """
    prior = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", prior)
        with pyro.plate("obs", 4):
            pyro.sample("x", likelihood(z), obs=x.transpose(0, 1))


def flow_guide() -> Pair:
    flow = conditional_affine_autoregressive(3, 8, hidden_dims=[6])

    def guide(x: Tensor) -> None:
        """A flow of Pyro, conditioned on a row's own observations."""
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(3), torch.ones(3))
        given = dist.ConditionalTransformedDistribution(base, [flow]).condition(x.flatten(-2))
        with pyro.plate("batch", len(x)):
            pyro.sample("z", given)

    return Pair(flow_model, guide, (torch.randn(6, 4, 2),))


def zuko_guide() -> Pair:
    import zuko
    from pyro.contrib.zuko import ZukoToPyro

    flow = zuko.flows.MAF(features=3, context=8, transforms=1, hidden_features=(6,))
    flow.transform = flow.transform.inv

    def guide(x: Tensor) -> None:
        """A flow of Zuko within Pyro's wrapper."""
        pyro.module("flow", flow)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", ZukoToPyro(flow(x.flatten(-2))))

    return Pair(flow_model, guide, (torch.randn(6, 4, 2),))


ZERO: Mapping[str, Any] = {"x1": 0, "x2": 0}


def csis_model(prior_mean: Tensor, observations: Mapping[str, Any] = ZERO) -> Tensor:
    """Observations come in a dictionary that is a keyword argument with a default."""
    x = pyro.sample("z", dist.Normal(prior_mean, torch.tensor(5**0.5)))
    pyro.sample("x1", dist.Normal(x, torch.tensor(2**0.5)), obs=observations["x1"])
    pyro.sample("x2", dist.Normal(x, torch.tensor(2**0.5)), obs=observations["x2"])
    return x


class Compiled(nn.Module):
    """A guide that is a module, called as one, which announces itself."""

    def __init__(self) -> None:
        super().__init__()
        self.neural_net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, prior_mean: Tensor, observations: Mapping[str, Any] = ZERO) -> None:
        pyro.module("guide", self)
        v = torch.cat((observations["x1"].view(1, 1), observations["x2"].view(1, 1)), 1)
        v = self.neural_net(v)
        pyro.sample("z", dist.Normal(v[0, 0], v[0, 1].exp()))


def csis() -> Pair:
    seen = {"x1": torch.tensor(2.0), "x2": torch.tensor(3.0)}
    return Pair(csis_model, Compiled(), (torch.tensor(1.0),), {"observations": seen})


def closures() -> Pair:
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        """A plain function with its network in a closure."""
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        """As the model, with a network of its own."""
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*two(encoder(x))).to_event(1))

    return Pair(model, guide, (torch.randn(6, 3),))


def minibatch() -> Pair:
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        """All data are passed, and a plate draws the rows of a step."""
        pyro.module("decoder", decoder)
        spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), spread).to_event(1), obs=x[rows])

    def guide(x: Tensor) -> None:
        """A global site with parameters, and local ones by a network of the drawn rows."""
        pyro.module("encoder", encoder)
        loc = pyro.param("spread_loc", torch.tensor(0.0))
        scale = pyro.param("spread_scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("spread", dist.LogNormal(loc, scale))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("z", dist.Normal(*two(encoder(x[rows]))).to_event(1))

    return Pair(model, guide, (torch.randn(12, 3),))


def normalized_guide() -> Pair:
    encoder, decoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        """A decoder without modes."""
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        """An encoder that has buffers and a mode for training."""
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*two(encoder(x))).to_event(1))

    return Pair(model, guide, (torch.randn(8, 3),))


class ProdLDA(nn.Module):
    """Topics of documents.

    Batch normalization and dropout in both networks, and counts of unequal totals.
    """

    def __init__(self, words: int, topics: int) -> None:
        super().__init__()
        self.topics = topics
        self.encoder = nn.Sequential(
            nn.Linear(words, 5), nn.Softplus(), nn.Dropout(0.2), nn.Linear(5, 2 * topics),
            nn.BatchNorm1d(2 * topics, affine=False),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(topics, words, bias=False),
            nn.BatchNorm1d(words, affine=False),
        )

    def model(self, docs: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", docs.shape[0]):
            loc = docs.new_zeros((docs.shape[0], self.topics))
            scale = docs.new_ones((docs.shape[0], self.topics))
            logtheta = pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))
            words = F.softmax(self.decoder(F.softmax(logtheta, -1)), dim=1)
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, words), obs=docs)

    def guide(self, docs: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = two(self.encoder(docs))
            pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))


def prodlda() -> Pair:
    net = ProdLDA(7, 3)
    return Pair(net.model, net.guide, (torch.poisson(torch.full((8, 7), 2.0)),))


def inner_model(x: Tensor, y: Tensor) -> None:
    """A network that the model builds anew at every call.

    And whose weights are those of the store.
    """
    net = pyro.module("net", nn.Linear(2, 1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(net(x).squeeze(-1) + bias, 0.5), obs=y)


def inner_guide(x: Tensor, y: Tensor) -> None:
    """Parameters given by a callable that builds them."""
    loc = pyro.param("loc", lambda: torch.zeros(()))
    scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
    pyro.sample("bias", dist.Normal(loc, scale))


def inner() -> Pair:
    return Pair(inner_model, inner_guide, (torch.randn(8, 2), torch.randn(8)))


def codes(kind: str) -> Pair:
    encoder, book = nn.Linear(3, 4), nn.Embedding(4, 3)

    def model(x: Tensor) -> None:
        """Discrete codes with learned logits and an embedding that decodes them."""
        pyro.module("book", book)
        logits = pyro.param("logits", torch.zeros(4))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(book(k), 0.5).to_event(1), obs=x)

    def nearest(x: Tensor) -> None:
        """The code is a function of the data: a guide without spread over a discrete latent."""
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Delta(encoder(x).argmax(-1)))

    def drawn(x: Tensor) -> None:
        """The code is drawn and its gradient is that of the score."""
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=encoder(x)))

    def lowered(x: Tensor) -> None:
        """As the drawn one, with a running average as its baseline."""
        pyro.module("encoder", encoder)
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=encoder(x)), infer={"baseline": baseline})

    guides = {
        "nearest": nearest,
        "drawn": drawn,
        "lowered": lowered,
        "summed": config_enumerate(drawn),
    }
    return Pair(model, guides[kind], (torch.randn(8, 3),))


class BetaBernoulli:
    """Methods of a plain object.

    A site without pathwise gradients, and baselines that a flag chooses.
    """

    def __init__(self, decaying: bool) -> None:
        self.decaying = decaying

    def model(self, data: Tensor) -> None:
        fairness = pyro.sample("latent_fairness", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        with pyro.plate("data_plate"):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=data)

    def guide(self, data: Tensor) -> None:
        alpha_q = pyro.param("alpha_q", torch.tensor(15.0), constraint=constraints.positive)
        beta_q = pyro.param("beta_q", torch.tensor(15.0), constraint=constraints.positive)
        baseline = {"use_decaying_avg_baseline": self.decaying, "baseline_beta": 0.9}
        distribution = fakes.NonreparameterizedBeta(alpha_q, beta_q)
        pyro.sample("latent_fairness", distribution, infer={"baseline": baseline})


def beta_bernoulli() -> Pair:
    toss = BetaBernoulli(decaying=True)
    return Pair(toss.model, toss.guide, (torch.bernoulli(torch.full((10,), 0.6)),))


def pieces_model(xs: list[Tensor], ys: list[Tensor], noise: str = "normal") -> None:
    """Groups of unequal sizes in lists, and a string that chooses the distribution of the noise."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    distribution = {"normal": dist.Normal, "laplace": dist.Laplace}[noise]
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        level = pyro.sample(f"level_{i}", dist.Normal(0.0, 1.0))
        with pyro.plate(f"rows_{i}", len(x)):
            pyro.sample(f"y_{i}", distribution(level + slope * x, scale), obs=y)


def pieces_guide(xs: list[Tensor], ys: list[Tensor], noise: str = "normal") -> None:
    """One site for each group, by a loop over the list."""
    loc = pyro.param("slope_loc", torch.tensor(0.0))
    scale = pyro.param("slope_scale", torch.tensor(0.3), constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))
    pyro.sample("scale", dist.LogNormal(pyro.param("scale_loc", torch.tensor(0.0)), 0.2))
    for i in range(len(xs)):
        pyro.sample(f"level_{i}", dist.Normal(pyro.param(f"level_loc_{i}", torch.tensor(0.0)), 0.3))


def pieces() -> Pair:
    xs = [torch.randn(n) for n in (4, 6, 3)]
    ys = [x + 0.3 * torch.randn_like(x) for x in xs]
    return Pair(pieces_model, pieces_guide, (xs, ys), {"noise": "laplace"})


NOTHING = {"khat": "latent", "to_arviz": "latent", "mcmc": "latent"}
DISCRETE = {"mcmc": "latent"}
NEAREST = {"khat": "Delta", **DISCRETE}

NEURAL: list[Case] = [
    Case("vae", seeded(vae), Trace_ELBO, nuts=True),
    Case("vae_mean_field", seeded(vae), TraceMeanField_ELBO, nuts=True),
    Case("cvae", seeded(cvae), Trace_ELBO, nuts=True),
    Case("ss_vae_unsupervised", seeded(partial(m2, "unsupervised")), enumerated, nuts=True),
    Case("ss_vae_supervised", seeded(partial(m2, "supervised")), enumerated, nuts=True),
    Case("ss_vae_auxiliary", seeded(partial(m2, "auxiliary")), Trace_ELBO, refused=NOTHING),
    Case("scanvi_unlabeled", seeded(partial(scanvi, False)), TraceEnum_ELBO),
    Case("scanvi_labeled", seeded(partial(scanvi, True)), TraceEnum_ELBO, nuts=True),
    Case("air_baseline_value", seeded(partial(air, "value")), TraceGraph_ELBO),
    Case("air_nn_baseline", seeded(partial(air, "network")), TraceGraph_ELBO),
    Case(
        "flow_guide",
        seeded(flow_guide),
        lambda: Trace_ELBO(num_particles=4, vectorize_particles=True),
        nuts=True,
    ),
    Case("csis", seeded(csis), Trace_ELBO, nuts=True),
    Case("closures", seeded(closures), Trace_ELBO, nuts=True),
    Case("amortized_minibatch", seeded(minibatch), Trace_ELBO, refused={"mcmc": "subsample"}),
    Case("normalized_guide", seeded(normalized_guide), Trace_ELBO, nuts=True),
    Case("prodlda_dropout", seeded(prodlda), TraceMeanField_ELBO),
    Case("module_in_model", seeded(inner), Trace_ELBO, nuts=True),
    Case("codes_nearest", seeded(partial(codes, "nearest")), Trace_ELBO, refused=NEAREST),
    Case("codes_drawn", seeded(partial(codes, "drawn")), Trace_ELBO, refused=DISCRETE),
    Case(
        "codes_decaying_baseline",
        seeded(partial(codes, "lowered")),
        TraceGraph_ELBO,
        refused=DISCRETE,
    ),
    Case("codes_enumerated", seeded(partial(codes, "summed")), enumerated, refused=DISCRETE),
    Case("beta_bernoulli_baseline", seeded(beta_bernoulli), TraceGraph_ELBO, nuts=True),
    Case("lists_and_option", seeded(pieces), Trace_ELBO, nuts=True),
    Case(
        "zuko_flow_guide",
        seeded(zuko_guide),
        lambda: Trace_ELBO(num_particles=4, vectorize_particles=True),
        nuts=True,
    ),
    *MODULES,
]
