"""From rows to latents and back: features, reconstructions, interpolation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.marginal import Marginal
from probgen.core.missing import has_missing
from probgen.core.modes import infers
from probgen.core.rows import layout_of
from probgen.core.seeds import Seed, seeded, takes_seed
from probgen.core.sites import sample_sites
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.probability_flow import ReverseFlow
from probgen.distributions.energy.boltzmann import Boltzmann
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.multi_scale import MultiScale
from probgen.distributions.flows.rescaled import Rescaled
from probgen.distributions.low_rank import LowRankMultivariateNormal
from probgen.distributions.rounded import Rounded
from probgen.distributions.sequences.state_space import StateSpace
from probgen.infer.given import guide_trace
from probgen.infer.posterior import posterior, predictive
from probgen.nn.quantizers import Quantization

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

CODES = "expected a model that encodes and decodes (a VAE, a flow, a diffusion)"
FEATURES = "take features from a VAE, a PPCA or a flow of the same rows"


class NoCodes(TypeError):
    """A model without latents of rows, or without a way to them."""


@dataclass(frozen=True)
class Coder:
    """From rows to latents and back, in means.

    Attributes
    ----------
    encode : callable
        ``(N, *event)`` to ``(N, *latent)``.
    decode : callable
        The way back.
    prior : TorchDistribution or None
        Of the latents of one row, or of each; ``None`` where points between codes have none.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    prior: Any


@explained
def encode(
    gen: GenerativeModel,
    x: Any,
    context: Tensor | None = None,
    *,
    site: str | None = None,
    draws: int = 64,
    seed: Seed = 0,
) -> Tensor:
    r"""The latents of rows: features for another model.

    Posterior means :math:`E[z \mid x]`, exact for linear factor models, state spaces and the hidden
    units of an RBM, by the guide for variational models; for flows and diffusions the noise that
    makes the row.

    Parameters
    ----------
    gen : GenerativeModel
        A model with continuous latents for each row.
    x : Tensor, array or frame
        ``(N, *event)``, NaN = missing where the model integrates it out.
    context : Tensor, optional
        ``(N, *context_event)``.
    site : str, optional
        The latent variable, where there are several: ``"z1"`` of a hierarchical VAE.
    draws : int
        Draws that are averaged where a mean has no closed form.
    seed : int or torch.Generator, optional
        Of these draws.

    Returns
    -------
    Tensor
        ``(N, *latent)``.

    Raises
    ------
    NoCodes
        A ``TypeError``, for families without continuous latents of rows; it says what to ask
        instead.
    ValueError
        If there are several latent variables and none is named, or for incomplete rows of a family
        that needs complete ones.

    >>> from probgen.models.factor_analysis import PPCA
    >>> encode(PPCA(4, factors=2), torch.zeros(5, 4)).shape
    torch.Size([5, 2])
    """
    checks.generative(gen=gen)
    checks.text(**checks.given(site=site))
    checks.at_least(1, draws=draws)
    return _encoded(gen, *_beside(x, context), site=site, draws=draws, seed=seed)


@explained
def reconstruct(
    gen: GenerativeModel,
    x: Any,
    context: Tensor | None = None,
    *,
    draws: int = 64,
    seed: Seed = 0,
) -> Any:
    r"""What a model makes of the latents of rows.

    The mean of :math:`p(x \mid z)` at the posterior mean of z where the model encodes and decodes,
    else the mean of ``draws`` from the posterior predictive distribution. Missing entries (NaN) are
    filled where the model has latents for incomplete rows; flows give complete rows back as they
    are.

    Parameters
    ----------
    gen : GenerativeModel
        A model with latents for each row: a VAE, a PPCA, a flow, a program with a guide.
    x : Tensor, array or frame
        ``(N, *event)``.
    context : Tensor, optional
        ``(N, *context_event)``.
    draws, seed
        Of the posterior predictive distribution.

    Returns
    -------
    Tensor
        ``(N, *event)``; a frame from a :class:`~probgen.Tabular`.

    Raises
    ------
    NoCodes
        A ``TypeError``, for families without latents of rows; it says what to ask instead.

    >>> from probgen.models.factor_analysis import PPCA
    >>> reconstruct(PPCA(4, factors=2), torch.tensor([[1.0, 2.0, 3.0, torch.nan]])).isnan().any()
    tensor(False)
    """
    checks.generative(gen=gen)
    checks.at_least(1, draws=draws)
    return framed(gen, reconstructed(gen, *_beside(x, context), draws=draws, seed=seed))


@explained
def interpolate(
    gen: GenerativeModel,
    a: Any,
    b: Any,
    n: int = 9,
    context: Tensor | None = None,
    *,
    spherical: bool = False,
) -> Tensor:
    r"""Rows between two, along a line between their latents.

    .. math:: x_w = \mathrm{decode}\big((1 - w)\, \mathrm{encode}(a) + w\, \mathrm{encode}(b)\big)

    Parameters
    ----------
    gen : GenerativeModel
        A model that encodes and decodes: a VAE, a PPCA, a flow, flow matching, a diffusion.
    a, b : Tensor, array or frame
        ``(N, *event)``.
    n : int
        Number of points w, from 0 to 1, the reconstructions of both ends among them.
    context : Tensor, optional
        ``(N, *context_event)``, that of both ends.
    spherical : bool
        Whether to go along a great circle, which keeps to the norms that normal noise of many
        dims has (White 2016): for flows and diffusions.

    Returns
    -------
    Tensor
        ``(N, n, *event)``.

    References
    ----------
    White (2016), Sampling generative networks, https://arxiv.org/abs/1609.04468

    >>> from probgen.models.factor_analysis import PPCA
    >>> interpolate(PPCA(4, factors=2), torch.zeros(3, 4), torch.ones(3, 4), 5).shape
    torch.Size([3, 5, 4])
    """
    checks.generative(gen=gen)
    checks.at_least(2, n=n)
    checks.flag(spherical=spherical)
    left, right = (as_rows(gen, *_beside(each, context))[0] for each in (a, b))
    if left.shape != right.shape:
        raise ValueError(
            f"expected a and b of one shape, got {tuple(left.shape)} and {tuple(right.shape)}; "
            "give as many rows of both"
        )
    beside = as_rows(gen, *_beside(a, context))[1:]
    return interpolated(gen, left, right, int(n), *beside, spherical=spherical)


def coder(gen: Any, context: Tensor | None = None) -> Coder:
    """By the model's own ``encode`` and ``decode``, or by those of its distribution.

    Raises
    ------
    NoCodes
        If it has neither.
    """
    beside = () if context is None else (context,)
    if not _has_coder(gen, beside):
        if (distribution := distribution_of(gen, beside)) is None:
            raise NoCodes(f"{CODES}, got {type(gen).__name__}; {_instead(gen)}")
        try:
            return coder_of(distribution)
        except NoCodes as error:
            raise NoCodes(f"{error}{_instead(gen)}") from None
    if getattr(gen, "quantizer", None) is not None:
        return _of_codebook(gen)
    return Coder(
        lambda x: _mean_of(gen.encode(x, *beside)),
        lambda z: _mean_of(gen.decode(z, *beside)),
        gen.prior() if context is None else _prior_given(gen.prior, context),
    )


def _has_coder(gen: Any, beside: tuple) -> bool:
    """Whether it encodes what stands in a row to a distribution, and decodes the latents."""
    parts: list[Any] = [getattr(gen, name, None) for name in ("encode", "decode", "prior")]
    if None in parts or getattr(gen, "context_site", None) is not None:
        return False
    try:
        inspect.signature(parts[0]).bind(None, *beside)
    except TypeError:
        return getattr(gen, "quantizer", None) is not None
    return True


def _of_codebook(gen: Any) -> Coder:
    """Codes as the decoder takes them; between two codes there is none, but the decoder goes on."""
    places = gen.decoder.context_ndim - 1

    def codes(x: Tensor) -> Tensor:
        made: Quantization = gen.encode(x)
        return made.code.movedim(-1, -1 - places)

    return Coder(codes, lambda z: _mean_of(gen.decoder(z)), None)


def _prior_given(prior: Any, context: Tensor) -> Any:
    try:
        return prior(context)
    except (TypeError, ValueError):  # one that does not depend on it
        return prior()


@singledispatch
def coder_of(distribution: Any) -> Coder:
    """The way between a distribution's events and its latents, where it is one to one or linear.

    >>> import pyro.distributions as dist
    >>> coder_of(dist.Normal(0.0, 1.0))
    Traceback (most recent call last):
    probgen.decisions.codes.NoCodes: expected a model that encodes and decodes (a VAE, a flow, a diffusion), got...
    """
    raise NoCodes(f"{CODES}, got one whose distribution is {type(distribution).__name__}; ")


@coder_of.register(Pushforward)
def _(distribution: Pushforward) -> Coder:
    return Coder(distribution.transform, distribution.transform.inv, distribution.base_dist)


@coder_of.register(Rescaled)
def _(distribution: Rescaled) -> Coder:
    inner = coder_of(distribution.base_dist)
    return Coder(
        lambda x: inner.encode(distribution.units(x)),
        lambda z: distribution.units.inv(inner.decode(z)),
        inner.prior,
    )


@coder_of.register(Rounded)
def _(distribution: Rounded) -> Coder:
    """By the middle of the steps of a grid."""
    inner = coder_of(distribution.base_dist)
    return Coder(
        lambda x: inner.encode(x + distribution.resolution / 2),
        lambda z: distribution.rounded(inner.decode(z)),
        inner.prior,
    )


@coder_of.register(GaussianDiffused)
def _(distribution: GaussianDiffused) -> Coder:
    return Coder(distribution.encode, distribution.decode, distribution.noise)


@coder_of.register(ReverseFlow)
def _(distribution: ReverseFlow) -> Coder:
    return coder_of(distribution.diffused)


@coder_of.register(LowRankMultivariateNormal)
def _(distribution: LowRankMultivariateNormal) -> Coder:
    factor: Tensor = distribution.cov_factor
    zeros = torch.zeros_like(factor[..., 0, :])
    prior = torch.distributions.Independent(torch.distributions.Normal(zeros, 1.0), 1)
    return Coder(
        lambda x: distribution.posterior(x).mean,
        lambda z: distribution.loc + torch.einsum("...dk,...k->...d", factor, z),
        prior,
    )


@coder_of.register(MultiScale)
def _(distribution: MultiScale) -> Coder:
    if distribution.support.is_discrete:
        raise NoCodes(
            "expected a model with continuous latents, got a flow of integers, between whose "
            "latents there is nothing; "
        )
    return Coder(distribution.flat_latents, distribution.from_flat_latents, None)


@coder_of.register(Marginal)
def _(distribution: Marginal) -> Coder:
    beside = () if distribution.context is None else (distribution.context,)
    if not _has_coder(distribution.gen, beside):
        raise NoCodes(f"{CODES}, got {type(distribution.gen).__name__}; ")
    return coder(distribution.gen, distribution.context)


@singledispatch
def latent_means_of(distribution: Any, x: Tensor) -> Tensor | None:
    """Means of latents that a distribution sums out, given rows; ``None`` where it has none."""
    return None


@latent_means_of.register(StateSpace)
def _(distribution: StateSpace, x: Tensor) -> Tensor:
    return distribution.smooth(x)[0]


@latent_means_of.register(Boltzmann)
def _(distribution: Boltzmann, x: Tensor) -> Tensor | None:
    """Probabilities of the hidden units, where there is one layer of them."""
    if distribution.above or has_missing(x):
        return None
    return distribution.field.excitation(x.flatten(1)).sigmoid()


@latent_means_of.register(Rescaled)
def _(distribution: Rescaled, x: Tensor) -> Tensor | None:
    return latent_means_of(distribution.base_dist, distribution.units(x))


def _instead(gen: Any) -> str:
    """What to do with a model that has no way to latents."""
    told = getattr(gen, "summed_out", None)
    if told is None:
        return FEATURES
    what, _, how = told.partition(": ")
    return f"its {what} are told by {how}"


def _mean_of(found: Any) -> Tensor:
    """The mean of a distribution, its mode where it has none."""
    if torch.is_tensor(found):
        return found
    try:
        mean = found.mean
    except NotImplementedError:
        with seeded(0):  # the same number every time
            return found.sample((64,)).to(torch.get_default_dtype()).mean(0)
    return found.mode if mean.isnan().all() else mean


@infers
@torch.no_grad()
@takes_seed
def _encoded(gen: Any, *rows: Any, site: str | None, draws: int) -> Tensor:
    batch = as_rows(gen, *rows, missing=True)
    if site is None:
        with seeded(0):  # distributions may draw what they are made of
            found = _by_coder(gen, batch, lambda made, x: made.encode(x))
        if found is not None:
            return found
        found = latent_means_of(distribution_of(gen, batch[1:]), batch[0])
        if found is not None:
            return found
    return posterior_means(gen, *batch, site=site, draws=draws)[1]


@infers
@torch.no_grad()
@takes_seed
def reconstructed(gen: Any, *rows: Any, draws: int) -> Tensor:
    """:func:`reconstruct`, in numbers."""
    batch = as_rows(gen, *rows, missing=True)
    with seeded(0):
        found = _by_coder(gen, batch, lambda made, x: made.decode(made.encode(x)))
    if found is not None:
        return found
    _check_drawn(gen, batch)
    made = predictive(gen, *batch, draws=draws, compile=False)
    if "x" not in made:
        raise NoCodes(
            f"expected a model of rows 'x', got sites {sorted(made)}; ask pg.predictive for them"
        )
    return made["x"].to(torch.get_default_dtype()).mean(0)


@infers
@torch.no_grad()
def interpolated(
    gen: Any, a: Tensor, b: Tensor, n: int, *beside: Tensor, spherical: bool = False
) -> Tensor:
    """Decoded points ``(N, n, *event)`` of lines between the latents of rows."""
    made = coder(gen, *beside)
    start, end = made.encode(a), made.encode(b)
    between = _on_sphere if spherical else torch.lerp
    weights = torch.linspace(0, 1, n).to(start)
    return torch.stack([made.decode(between(start, end, weight)) for weight in weights], 1)


def _on_sphere(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Between rows of latents ``(N, *latent)``, their norms interpolated as well."""
    a, b = start.flatten(1), end.flatten(1)
    norms = [each.norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (a, b)]
    cosine = (a / norms[0] * (b / norms[1])).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    narrow = angle.sin() < 1e-4
    sine = torch.where(narrow, 1.0, angle.sin())
    shares = [torch.sin((1 - weight) * angle) / sine, torch.sin(weight * angle) / sine]
    shares = [
        torch.where(narrow, line, share)
        for line, share in zip((1 - weight, weight), shares, strict=True)
    ]
    direction = shares[0] * a / norms[0] + shares[1] * b / norms[1]
    return (torch.lerp(norms[0], norms[1], weight) * direction).reshape(start.shape)


def _by_coder(gen: Any, batch: tuple, ask: Callable[[Coder, Tensor], Tensor]) -> Tensor | None:
    """The answer of a model that encodes; ``None`` where its guide draws the latents."""
    x, *beside = batch
    try:
        made = coder(gen, *beside)
    except TypeError:  # of a program, too, which is no distribution of rows
        return None
    found = ask(made, x)
    if has_missing(x) and found.isnan().any():
        raise ValueError(
            f"expected complete rows, got NaN (missing), for which {type(gen).__name__} has no "
            "latents; complete them first: pg.impute(gen, x).mean(), or take a VAE or a PPCA"
        )
    return found


def distribution_of(gen: Any, beside: tuple) -> Any:
    """The distribution of rows given a context; ``None`` where there is none."""
    try:
        return gen(*beside)
    except (TypeError, ValueError, NotImplementedError):
        return None


def _check_drawn(gen: Any, batch: tuple) -> None:
    with seeded(0):
        drawn = sample_sites(guide_trace(gen, batch))
    if not drawn:
        raise NoCodes(
            f"expected a model with latents for each row, got {type(gen).__name__}; {_instead(gen)}"
        )


def framed(gen: Any, rows: Tensor) -> Any:
    """A frame of rows ``(N, D)``, from a model that gives frames."""
    return gen.frame(rows) if getattr(gen, "gives_frames", False) else rows


def _beside(x: Any, context: Any) -> tuple:
    return (x,) if context is None else (x, context)


# posterior means


@infers
@torch.no_grad()
@takes_seed
def posterior_means(
    gen: GenerativeModel, *batch: Any, site: str | None, draws: int
) -> tuple[str, Tensor]:
    """The name of a latent variable of the rows, and its posterior means ``(N, *latent)``."""
    batch = as_rows(gen, *batch)
    rows = layout_of(gen, batch).size
    sites = sample_sites(guide_trace(gen, batch))
    local = {
        name: value["fn"]
        for name, value in sites.items()
        if value["value"].shape[:1] == (rows,) and value["value"].is_floating_point()
    }
    name = _chosen(gen, local, site)
    if len(sites) == 1:
        try:
            return name, local[name].mean
        except NotImplementedError:
            pass
    return name, posterior(gen, *batch, draws=draws, compile=False)[name].mean(0)


def _chosen(gen: Any, local: dict, site: str | None) -> str:
    if not local:
        raise NoCodes(
            f"expected a guide that draws latents for each row, got {type(gen).__name__}, whose "
            f"guide draws none; {_instead(gen)}"
        )
    if site is None and len(local) == 1:
        return next(iter(local))
    if site not in local:
        raise ValueError(
            f"expected the name of one latent variable in site, of {sorted(local)}, got {site!r}; "
            f"give site={sorted(local)[0]!r}"
        )
    return str(site)
