"""Hidden Markov models with priors on first states, transitions and emissions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.missing import MissingAware
from probgen.core.module import DistributionModule, Fixed, LatentVariableModel, data_plate
from probgen.core.ragged import Ragged
from probgen.distributions.mean_field import mean_field_parameters, sample_mean_field
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.heads import distributions


def normal_emission(means: Tensor, scales: Tensor) -> MissingAware:
    """Independent normal variables: means and standard deviations ``(*batch, K, D)``."""
    return MissingAware(dist.Normal(means, scales), 1)


def poisson_emission(rates: Tensor) -> MissingAware:
    """Independent counts: expected counts ``(*batch, K, D)``."""
    return MissingAware(distributions.Poisson(_log(rates)), 1)


def categorical_emission(probabilities: Tensor) -> MissingAware:
    """One label 0, 1, ..., L - 1: probabilities ``(*batch, K, L)``, events ``(1,)``."""
    return MissingAware(distributions.Categorical(_log(probabilities)[..., None, :]), 1)


class BayesianHiddenMarkovModel(LatentVariableModel):
    r"""Hidden Markov model whose probabilities and emissions have priors.

    The states are summed out exactly.

    .. math::
        \pi \sim p(\pi), \quad A_k \sim p(A), \quad \theta_k \sim p(\theta), \qquad
        p(x \mid \pi, A, \theta) = \sum_{z_{1:T}} \pi_{z_1} \prod_{t=2}^T A_{z_{t-1} z_t}
        \prod_{t=1}^T p(x_t \mid \theta_{z_t})

    Missing entries, steps and ends (NaN) are integrated out. The posterior of the globals comes
    from :func:`probgen.mcmc`, or from the guide by :func:`probgen.fit`, which is independent over
    the globals and normal in their unconstrained space. It has a mode for each order of the states:
    see :meth:`in_order`. Sites: ``"initial"`` (K,), ``"transitions"`` (K, K), those of ``priors``,
    ``"x"`` ``(B, T, *event)``.

    Parameters
    ----------
    states : int
        Number K of states.
    length : int
        Largest length T of a sequence.
    emission : callable
        The distributions of all states, batch shape ``(*batch, K)``, from the values of the sites
        of ``priors`` as keyword arguments: :func:`normal_emission`, :func:`poisson_emission`,
        :func:`categorical_emission`, or any other.
    priors : mapping of str to DistributionModule
        Priors on the emission's parameters in one state; all states have the same, independently.
    initial, transition : DistributionModule, optional
        Priors on the probabilities of the first state and of the next one, events (K,); default:
        uniform Dirichlet distributions. The prior of transitions may have batch shape (K,), one for
        each present state.

    References
    ----------
    Scott (2002), Bayesian methods for hidden Markov models,
    https://doi.org/10.1198/016214502753479464

    >>> rates = Fixed(dist.Gamma, concentration=torch.tensor([2.0]), rate=0.2)
    >>> gen = BayesianHiddenMarkovModel(2, 50, poisson_emission, {"rates": rates})
    >>> gen.given({"initial": torch.ones(2), "transitions": torch.ones(2, 2), "rates": torch.ones(2, 1)}).event_shape
    torch.Size([50, 1])
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(
        self,
        states: int,
        length: int,
        emission: Callable[..., dist.TorchDistribution],
        priors: Mapping[str, DistributionModule],
        *,
        initial: DistributionModule | None = None,
        transition: DistributionModule | None = None,
    ):
        checks.at_least(1, states=states, length=length)
        checks.callable_(emission=emission)
        checks.mapping(priors=priors)
        checks.generative(**checks.given(initial=initial, transition=transition))
        super().__init__()
        self.states = int(states)
        self.length = int(length)
        self.emission = emission
        uniform = Fixed(dist.Dirichlet, concentration=torch.ones(states))
        self.priors = nn.ModuleDict(
            {"initial": initial or uniform, "transitions": transition or uniform, **priors}
        )
        self.locs, self.log_scales = mean_field_parameters(self._prior_distributions(), 0.1)

    def _prior_distributions(self) -> dict[str, dist.TorchDistribution]:
        """Distribution of each site.

        Of the first state's probabilities, and of K independent rows or parameters of the rest.
        """
        found = {}
        for name, prior in self.priors.items():
            distribution = prior()
            if name in ("initial", "transitions") and distribution.event_shape != (self.states,):
                raise ValueError(
                    f"expected a prior on {name} with events of shape ({self.states},), got "
                    f"{tuple(distribution.event_shape)}; "
                    "give a Dirichlet distribution over the states"
                )
            found[name] = (
                distribution
                if name == "initial"
                else distribution.expand((self.states,)).to_event(1)
            )
        return found

    def given(self, values: Mapping[str, Tensor]) -> HiddenMarkov:
        """The distribution of sequences given values of all global sites, ``(*draws, K, ...)``.

        Batch shape ``(*draws)``.

        It smooths, forecasts and so on under each draw: ``gen.given(chains.merged).smooth(x)`` is
        ``(draws, T, K)`` for one sequence x.
        """
        own = {name: value for name, value in values.items() if name in self.priors}
        initial = _log(own.pop("initial"))
        transitions = _log(own.pop("transitions"))
        return HiddenMarkov(initial, transitions, self.emission(**own), self.length)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        with torch.no_grad():
            values = {
                name: biject_to(distribution.support)(self.locs[name])
                for name, distribution in self._prior_distributions().items()
            }
            entry = self.given(values).event_shape[1:]
        return Ragged(self.length, entry, longer="length={0}")

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        drawn = {
            name: pyro.sample(name, distribution)
            for name, distribution in self._prior_distributions().items()
        }
        with data_plate(x, context):
            return pyro.sample("x", self.given(drawn), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        sample_mean_field(self._prior_distributions(), self.locs, self.log_scales)

    @torch.no_grad()
    def start_at(
        self, values: Mapping[str, Tensor], scale: float = 0.1
    ) -> BayesianHiddenMarkovModel:
        """Sets the guide, in place.

        Medians at natural values of some sites, from EM say, and one scale.

        Raises
        ------
        ValueError
            If a value lies outside the support of its prior.
        """
        for name, distribution in self._prior_distributions().items():
            if name in values:
                support: Any = distribution.support
                if not support.check(values[name]).all():
                    raise ValueError(
                        f"expected {name} in the prior's support {support}, got "
                        f"{values[name].tolist()}"
                    )
                self.locs[name].copy_(biject_to(distribution.support).inv(values[name]))
                self.log_scales[name].fill_(scale).log_()
        return self

    def in_order(self, draws: Mapping[str, Tensor], by: str) -> dict[str, Tensor]:
        """Draws ``(*draws, K, ...)`` with the states of each sorted by the first entry of one site.

        Smallest first.

        One name for each state in all draws, provided that their order at this site tells them
        apart.

        Raises
        ------
        ValueError
            If ``by`` is not a site with one entry for each state.
        """
        if by not in self.priors or by == "transitions":
            raise ValueError(
                f"expected by to be one of {sorted(set(self.priors) - {'transitions'})}, got '{by}'"
            )
        lead = draws["initial"].ndim - 1
        found = dict(draws)
        order = draws[by].reshape(*draws[by].shape[: lead + 1], -1)[..., 0].argsort(-1)
        for name in set(self.priors) & set(draws):
            value = draws[name]
            found[name] = value.take_along_dim(
                order.reshape(*order.shape, *[1] * (value.ndim - order.ndim)), lead
            )
        found["transitions"] = found["transitions"].take_along_dim(order.unsqueeze(-2), -1)
        return found


def _log(probabilities: Tensor) -> Tensor:
    """Logarithms whose gradients are finite where draws underflow."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
