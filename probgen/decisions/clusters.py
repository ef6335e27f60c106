"""Which component of a model each row belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from pyro import poutine
from torch import Tensor
from torch.nn.functional import one_hot

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.marginal import Marginal
from probgen.core.modes import infers
from probgen.core.program import Program
from probgen.core.seeds import Seed, takes_seed
from probgen.core.sites import in_plate, is_enumerated, latent_sites
from probgen.core.supports import support_of
from probgen.decisions.codes import NoCodes
from probgen.distributions.codes import CodeDistribution
from probgen.distributions.energy.labeled import LabeledEnergy
from probgen.distributions.flows.rescaled import Rescaled
from probgen.distributions.mixture_of import MixtureOf
from probgen.distributions.rounded import Rounded
from probgen.distributions.support import responsibilities
from probgen.infer.given import model_trace
from probgen.infer.posterior import posterior
from probgen.scoring import log_likelihood

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

HOW = "cluster rows by pg.GaussianMixture or pg.Mixture, or features: pg.em(mixture, pg.encode(gen, x))"


@dataclass(frozen=True)
class Clusters:
    r"""Components of rows.

    Attributes
    ----------
    label : Tensor
        The most probable component of each row, ``(N,)``, integers.
    probability : Tensor
        Responsibilities :math:`p(k \mid x)`, ``(N, K)``.
    kind : str
        ``"exact"`` under the model, else ``"approximate"``: by a guide, a recognizer, or draws of
        parameters.

    >>> Clusters.of(torch.tensor([[0.2, 0.8], [0.9, 0.1]]), "exact").sizes
    tensor([1, 1])
    """

    label: Tensor
    probability: Tensor
    kind: str

    @classmethod
    def of(cls, probability: Tensor, kind: str) -> Clusters:
        """By responsibilities."""
        return cls(probability.argmax(-1), probability, kind)

    @property
    def sizes(self) -> Tensor:
        """Number of rows in each cluster, ``(K,)``."""
        return self.label.bincount(minlength=self.probability.shape[-1])

    def __repr__(self) -> str:
        return f"Clusters({self.kind}, {len(self.label)} rows in clusters of {self.sizes.tolist()})"


@explained
@infers
@torch.no_grad()
@takes_seed
def cluster(
    gen: GenerativeModel,
    x: Any,
    context: Tensor | None = None,
    *,
    site: str | None = None,
    draws: int = 64,
    seed: Seed = 0,
) -> Clusters:
    r"""The component that each row belongs to, with its probability.

    By Bayes' rule for mixtures, of tables and in other units too; for a Bayesian one averaged over
    draws of its parameters; for a model that classifies or recognizes, by that; for a VAE whose
    prior is a mixture, :math:`E_{q(z \mid x)}\, p(k \mid z)`; for a program with a discrete latent
    of each row by Bayes' rule where that is its only latent, else by draws from its posterior.

    Parameters
    ----------
    gen : GenerativeModel
        A model with one discrete latent for each row.
    x : Tensor, array or frame
        ``(N, *event)``, NaN = missing where the model integrates it out.
    context : Tensor, optional
        ``(N, *context_event)``.
    site : str, optional
        The discrete latent of a program, where it has several.
    draws : int
        Draws that are averaged where there is no closed form.
    seed : int or torch.Generator, optional
        Of these draws.

    Raises
    ------
    NoCodes
        A ``TypeError``, for families without a discrete latent of rows; it says what to ask
        instead.
    ValueError
        If there are several and none is named, and for rows that are impossible under all
        components.

    >>> from probgen.models.mixture import GaussianMixture
    >>> cluster(GaussianMixture(3, 2), torch.randn(5, 2)).probability.shape
    torch.Size([5, 3])
    """
    checks.generative(gen=gen)
    checks.text(**checks.given(site=site))
    checks.at_least(1, draws=draws)
    batch = as_rows(gen, *((x,) if context is None else (x, context)))
    found = None if site is not None else _by_model(gen, batch, draws)
    found = found or _by_draws(gen, batch, site, draws)
    if found is None:
        raise NoCodes(
            f"expected a model with one discrete latent for each row, got {type(gen).__name__}; "
            f"{_instead(gen)}"
        )
    return found


def _by_model(gen: Any, batch: tuple, draws: int) -> Clusters | None:
    """By what the family says of components, or by its distribution."""
    x, *beside = batch
    if asked := getattr(gen, "responsibilities", None):
        summed = getattr(gen, "summed_out", None) is not None
        kind = "exact" if summed and density_kind(gen(*beside)) == "exact" else "approximate"
        return Clusters.of(asked(x, *beside), kind)
    if asked := getattr(gen, "classify", None):
        kind = "exact" if isinstance(gen(), LabeledEnergy) else "approximate"
        return Clusters.of(_with_labels(asked(x).probs, *beside), kind)
    if asked := getattr(gen, "recognize", None):
        return _of_code(asked(x))
    prior = getattr(gen, "prior", None)
    if getattr(prior, "responsibilities", None) is not None:
        return _of_prior(gen, batch, draws)
    try:
        distribution = gen(*beside)
    except (TypeError, ValueError, NotImplementedError):  # a program of other arguments
        return None
    if isinstance(distribution, Marginal) and distribution.gen is gen:
        return None
    joint = log_joint_of(distribution, x, draws)
    if joint is None or isinstance(joint, Clusters):
        return joint
    kind = "exact" if density_kind(distribution) == "exact" else "approximate"
    return Clusters.of(responsibilities(joint), kind)


@singledispatch
def log_joint_of(distribution: Any, x: Tensor, draws: int) -> Any:
    """Log weights plus log densities of components ``(N, K)``; ``None`` where there are none."""
    return None


@log_joint_of.register(MixtureOf)
def _(distribution: MixtureOf, x: Tensor, draws: int) -> Tensor:
    return distribution.joint(x)


@log_joint_of.register(td.MixtureSameFamily)
def _(distribution: td.MixtureSameFamily, x: Tensor, draws: int) -> Tensor:
    event = len(distribution.event_shape)
    own = distribution.component_distribution.log_prob(x.unsqueeze(-1 - event))
    return own + distribution.mixture_distribution.logits.log_softmax(-1)


@log_joint_of.register(Rescaled)
def _(distribution: Rescaled, x: Tensor, draws: int) -> Any:
    return log_joint_of(distribution.base_dist, distribution.units(x), draws)


@log_joint_of.register(Rounded)
def _(distribution: Rounded, x: Tensor, draws: int) -> Any:
    """In the middle of the steps of a grid."""
    return log_joint_of(distribution.base_dist, x + distribution.resolution / 2, draws)


@log_joint_of.register(Marginal)
def _(distribution: Marginal, x: Tensor, draws: int) -> Any:
    beside = () if distribution.context is None else (distribution.context,)
    return _by_model(distribution.gen, (x, *beside), draws)


def _with_labels(probability: Tensor, labels: Tensor | None = None) -> Tensor:
    """Probabilities of classes, certain where the label of a row is known."""
    if labels is None:
        return probability
    known = labels.isfinite()
    certain = one_hot(torch.where(known, labels, 0.0).long(), probability.shape[-1])
    return torch.where(known[:, None], certain.to(probability), probability)


def _of_code(code: CodeDistribution) -> Clusters | None:
    """The category of a code, where it has one."""
    blocks = code.probabilities()
    if len(blocks) == 1:
        return Clusters.of(blocks[0], "approximate")
    if not blocks:
        return None
    raise ValueError(
        f"expected a code with one category, got {len(blocks)}; take the one that you mean: "
        "gen.recognize(x).probabilities()[0]"
    )


def _of_prior(gen: Any, batch: tuple, draws: int) -> Clusters | None:
    """Components of a mixture that is a prior, averaged over the latents of each row."""
    z = posterior(gen, *batch, draws=draws, compile=False).get("z")
    if z is None:
        return None
    shares = gen.prior.responsibilities(z.flatten(0, 1))
    return Clusters.of(shares.unflatten(0, z.shape[:2]).mean(0), "approximate")


def _by_draws(gen: Any, batch: tuple, site: str | None, draws: int) -> Clusters | None:
    """Shares of draws of a discrete latent with one number for each row."""
    trace = model_trace(gen, batch)
    rows = len(batch[0]) if torch.is_tensor(batch[0]) and batch[0].ndim else 0
    names = {
        name
        for name, value in latent_sites(trace).items()
        if in_plate(value, gen.plate)
        and support_of(value["fn"]).is_discrete
        and not value["fn"].event_shape
    }
    if not names or not rows:
        return None
    if (site is None and len(names) > 1) or (site is not None and site not in names):
        raise ValueError(
            f"expected the name of one discrete latent of rows in site, of {sorted(names)}, got "
            f"{site!r}; give site={sorted(names)[0]!r}"
        )
    name = site or next(iter(names))
    distribution: Any = trace.nodes[name]["fn"]
    levels = distribution.enumerate_support(expand=False).flatten()
    if set(latent_sites(trace)) == {name} and is_enumerated(latent_sites(trace)[name]):
        return _by_levels(gen, batch, name, levels)
    found = posterior(gen, *batch, draws=draws, discrete=True, compile=False)[name]
    shares = one_hot(found.reshape(draws, rows).long(), len(levels)).double().mean(0)
    return Clusters.of(shares.to(torch.get_default_dtype()), "approximate")


def _by_levels(gen: Any, batch: tuple, name: str, levels: Tensor) -> Clusters:
    """Bayes' rule over the values of the one latent that there is."""
    scores = []
    for level in levels:
        value = level.expand(len(batch[0]))
        given = Program(poutine.condition(gen.model, data={name: value}), gen.guide)
        scores.append(log_likelihood(given, *batch))
    joint = torch.stack([score.value for score in scores], -1)
    exact = all(score.kind == "exact" for score in scores)
    return Clusters.of(responsibilities(joint), "exact" if exact else "approximate")


def _instead(gen: Any) -> str:
    told = getattr(gen, "summed_out", None)
    if told is None:
        return HOW
    what, _, how = told.partition(": ")
    return f"its {what} are told by {how}, and {HOW}"
