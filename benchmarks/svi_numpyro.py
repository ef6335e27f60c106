"""The models of compiled_svi.py in NumPyro.

The same priors, guides, initial locations and mini-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from jax.scipy.special import logsumexp
from numpyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_feasible, init_to_value
from svi_models import COMPONENTS, GROUPS, STATES
from svi_networks import HIDDEN, LATENT, PIXELS

Array = jax.Array


class Form(NamedTuple):
    """One way to write a model: programs, and the loss that they are for."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    elbo: Any = Trace_ELBO()


def rows_of(batch: Array, total: int) -> numpyro.plate:
    """The plate of the rows.

    A mini-batch that was gathered outside counts for all ``total`` rows.
    """
    return numpyro.plate("data", total, subsample_size=len(batch))


def schools(y: Array, sigma: Array, total: int) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with rows_of(y, total):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def components() -> tuple[Array, Array, Array]:
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(COMPONENTS)))
    with numpyro.plate("components", COMPONENTS):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
        scales = numpyro.sample("scales", dist.LogNormal(0.0, 1.0))
    return weights, locs, scales


def mixture(x: Array, total: int) -> None:
    weights, locs, scales = components()
    with rows_of(x, total):
        c = numpyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(locs[c], scales[c]), obs=x)


def marginal_mixture(x: Array, total: int) -> None:
    weights, locs, scales = components()
    distribution = dist.MixtureSameFamily(
        dist.Categorical(probs=weights), dist.Normal(locs, scales)
    )
    with rows_of(x, total):
        numpyro.sample("x", distribution, obs=x)


def logistic(x: Array, group: Array, y: Array, total: int) -> None:
    slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("groups", GROUPS):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    intercepts = mean + spread * offset
    with rows_of(y, total):
        numpyro.sample("y", dist.Bernoulli(logits=x @ slopes + intercepts[group]), obs=y)


def linear(x: Array, y: Array, total: int) -> None:
    slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with rows_of(y, total):
        numpyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)


def forward_sum(alpha: Array, transition: Array) -> Array:
    return logsumexp(alpha[:, None] + jnp.log(transition)[..., None], 0)


def forward_product(alpha: Array, transition: Array) -> Array:
    top = jax.lax.stop_gradient(alpha.max(0))
    return jnp.log(transition.T @ jnp.exp(alpha - top)) + top


def hmm(advance: Callable[[Array, Array], Array]) -> Form:
    def model(x: Array, total: int) -> None:
        initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(STATES)))
        with numpyro.plate("states", STATES):
            transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones(STATES)))
            locs = numpyro.sample("locs", dist.Normal(0.0, 5.0))
            scales = numpyro.sample("scales", dist.LogNormal(0.0, 1.0))
        emissions = dist.Normal(locs[:, None], scales[:, None]).log_prob(x.T[:, None])
        start = jnp.log(initial)[:, None] + emissions[0]
        alpha, _ = jax.lax.scan(
            lambda alpha, e: (advance(alpha, transition) + e, None), start, emissions[1:]
        )
        with rows_of(x, total):
            numpyro.factor("x", logsumexp(alpha, 0))

    locs = init_to_value(values={"locs": jnp.linspace(-6.0, 6.0, STATES)})
    return Form(model, AutoNormal(model, init_loc_fn=locs))


def vae() -> Form:
    def layers(*sizes: int) -> Any:
        return stax.serial(stax.Dense(sizes[0]), stax.Softplus, stax.Dense(sizes[1]))

    def model(x: Array, total: int) -> None:
        decoder = numpyro.module("decoder", layers(HIDDEN, PIXELS), (len(x), LATENT))
        with rows_of(x, total):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), LATENT)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Array, total: int) -> None:
        encoder = numpyro.module("encoder", layers(HIDDEN, 2 * LATENT), (len(x), PIXELS))
        with rows_of(x, total):
            loc, raw = jnp.split(encoder(x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-3).to_event(1))

    return Form(model, guide, TraceMeanField_ELBO())


def mixture_guide() -> AutoNormal:
    start = init_to_value(values={"locs": jnp.linspace(-6.0, 6.0, COMPONENTS)})
    return AutoNormal(lambda x, total: components(), init_loc_fn=start)


FORMS: dict[str, Callable[[], dict[str, Form]]] = {
    "schools": lambda: {"": Form(schools, AutoNormal(schools, init_loc_fn=init_to_feasible))},
    "mixture": lambda: {
        "": Form(mixture, mixture_guide(), TraceEnum_ELBO()),
        "by hand": Form(marginal_mixture, mixture_guide()),
    },
    "logistic": lambda: {"": Form(logistic, AutoNormal(logistic, init_loc_fn=init_to_feasible))},
    "linear": lambda: {
        "": Form(linear, AutoMultivariateNormal(linear, init_loc_fn=init_to_feasible))
    },
    "hmm": lambda: {"": hmm(forward_sum), "product": hmm(forward_product)},
    "vae": lambda: {"": vae()},
}
