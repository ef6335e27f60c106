"""Structural time series: a series as a sum of components, each a small state space model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.conversion import complete_rows
from probgen.core.described import described
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put
from probgen.distributions.sequences.structural import StructuralSeries, StructuralSystem


class StateParts(NamedTuple):
    """What a component with k states adds to a system.

    Attributes
    ----------
    transition, cov, initial_cov : Tensor
        ``(k, k)`` each.
    diffuse : Tensor
        ``(k,)``: 1.0 for states that start from anywhere, else 0.0.
    outputs : dict of str to Tensor
        What the states show by name, ``(k,)`` each; the first is the part of the series.
    """

    transition: Tensor
    cov: Tensor
    initial_cov: Tensor
    diffuse: Tensor
    outputs: dict[str, Tensor]


@described
class SeriesComponent(nn.Module, ABC):
    """A part of a series: states of its own that move, and what they show.

    ``a + b`` is the list of both, for :class:`StructuralTimeSeries`. Standard deviations are kept
    in units of ``unit``, a number that ``initialize`` sets to the size of the steps of a series.

    >>> LocalLevel() + Seasonal(12)
    [LocalLevel(), Seasonal(period=12)]
    """

    unit: Tensor
    starts: ClassVar[dict[str, float]] = {"scale": 0.5}  # what training begins with

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(()))

    @abstractmethod
    def states(self) -> StateParts | None:
        """The states, ``None`` of what has none."""

    def __add__(self, other: Any) -> Any:
        if isinstance(other, SeriesComponent):
            return [self, other]
        return [self, *other] if isinstance(other, list) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return [*other, self] if isinstance(other, list) else NotImplemented


class LocalLevel(SeriesComponent):
    r"""A level that walks at random: :math:`\mu_{t+1} = \mu_t + \eta_t`, :math:`\eta_t \sim N(0, \sigma^2)`.

    It starts from anywhere.

    Parameters
    ----------
    fixed : bool
        Whether the level never moves: a constant.

    >>> LocalLevel().std
    tensor(0.5000, grad_fn=<MulBackward0>)
    """

    def __init__(self, *, fixed: bool = False):
        checks.flag(fixed=fixed)
        super().__init__()
        self.scale = _scale(self, "scale", fixed)

    @property
    def std(self) -> Tensor:
        """Standard deviation of a step of the level, in the unit of the series."""
        return _std(self.scale, self.unit)

    def states(self) -> StateParts:
        one = torch.ones(1, 1).to(self.unit)
        return StateParts(
            one, _variance(self.scale, self.unit) * one, 0 * one, one[0], {"level": one[0]}
        )


class LocalTrend(SeriesComponent):
    r"""A level and a slope that walk at random: the local linear trend.

    .. math:: \mu_{t+1} = \mu_t + \nu_t + \eta_t, \quad \nu_{t+1} = \nu_t + \zeta_t, \qquad
              \eta_t \sim N(0, \sigma_\mu^2), \; \zeta_t \sim N(0, \sigma_\nu^2)

    Parameters
    ----------
    fixed_level : bool
        Whether the level has no noise of its own: a smooth trend, or integrated random walk.
    fixed_slope : bool
        Whether the slope never moves: a random walk with drift; with both, a straight line.

    >>> list(LocalTrend().states().outputs)
    ['level', 'slope']
    """

    starts: ClassVar[dict[str, float]] = {"scale": 0.5, "slope_scale": 0.1}

    def __init__(self, *, fixed_level: bool = False, fixed_slope: bool = False):
        checks.flag(fixed_level=fixed_level, fixed_slope=fixed_slope)
        super().__init__()
        self.scale = _scale(self, "scale", fixed_level)
        self.slope_scale = _scale(self, "slope_scale", fixed_slope)

    @property
    def std(self) -> Tensor:
        """Standard deviation of a step of the level, in the unit of the series."""
        return _std(self.scale, self.unit)

    @property
    def slope_std(self) -> Tensor:
        """Standard deviation of a step of the slope, in the unit of the series."""
        return _std(self.slope_scale, self.unit)

    def states(self) -> StateParts:
        move = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).to(self.unit)
        stds = [_signed(self.scale, self.unit), _signed(self.slope_scale, self.unit)]
        cov = torch.stack(stds).square().diag()
        identity = torch.eye(2).to(self.unit)
        outputs = {"level": identity[0], "slope": identity[1]}
        return StateParts(move, cov, torch.zeros_like(move), torch.ones(2).to(self.unit), outputs)


class Seasonal(SeriesComponent):
    r"""A season: a pattern of ``period`` steps that may change, and sums to about zero.

    .. math:: \gamma_{t+1} = -\sum_{j=1}^{s-1} \gamma_{t+1-j} + \omega_t, \qquad \omega_t \sim N(0, \sigma^2)

    Or, with ``trigonometric``, a sum of waves of which each turns with noise of the same size,
    which changes smoothly.

    Parameters
    ----------
    period : int
        Number s of steps after which the pattern comes again, at least 2.
    trigonometric : bool
        Whether it is a sum of waves rather than of steps.
    fixed : bool
        Whether the pattern never changes.

    >>> Seasonal(12).states().transition.shape
    torch.Size([11, 11])
    """

    starts: ClassVar[dict[str, float]] = {"scale": 0.1}

    def __init__(self, period: int, *, trigonometric: bool = False, fixed: bool = False):
        checks.at_least(2, period=period)
        checks.flag(trigonometric=trigonometric, fixed=fixed)
        super().__init__()
        self.period = period
        self.trigonometric = trigonometric
        self.scale = _scale(self, "scale", fixed)

    @property
    def std(self) -> Tensor:
        """Standard deviation of a change of the pattern, in the unit of the series."""
        return _std(self.scale, self.unit)

    def states(self) -> StateParts:
        move, shown, noisy = (_waves if self.trigonometric else _dummies)(self.period)
        move, shown, noisy = (part.to(self.unit) for part in (move, shown, noisy))
        cov = _variance(self.scale, self.unit) * noisy.diag()
        return StateParts(
            move, cov, torch.zeros_like(cov), torch.ones_like(shown), {"seasonal": shown}
        )


class Cycle(SeriesComponent):
    r"""A wave of a length that is learned, whose height and phase drift: a business cycle.

    .. math:: \begin{pmatrix} c_{t+1} \\ c^*_{t+1} \end{pmatrix} = \rho
              \begin{pmatrix} \cos\lambda & \sin\lambda \\ -\sin\lambda & \cos\lambda \end{pmatrix}
              \begin{pmatrix} c_t \\ c^*_t \end{pmatrix} + \kappa_t, \qquad \kappa_t \sim N(0, \sigma^2 I)

    Parameters
    ----------
    shortest, longest : float
        Bounds of the length :math:`2 \pi / \lambda` in steps, 2 < ``shortest`` < ``longest``.
    damped : bool
        Whether it fades, by a factor rho < 1 that is learned; it then starts from its long-run
        distribution.
    diffuse : bool
        Whether it starts from anywhere also where it is damped, as in statsmodels. One that is not
        damped always does.
    fixed : bool
        Whether the wave never drifts.

    >>> Cycle(shortest=6, longest=60).period.round()
    tensor(11., grad_fn=<RoundBackward0>)
    """

    starts: ClassVar[dict[str, float]] = {"scale": 0.3, "place": 0.0, "fading": 2.0}

    def __init__(
        self,
        *,
        shortest: float = 3.0,
        longest: float = 100.0,
        damped: bool = True,
        diffuse: bool = False,
        fixed: bool = False,
    ):
        checks.positive(shortest=shortest, longest=longest)
        checks.ordered(shortest=shortest, longest=longest)
        checks.within("(2, inf)", "a wave takes more than two steps", shortest=shortest)
        checks.flag(damped=damped, diffuse=diffuse, fixed=fixed)
        super().__init__()
        self.shortest = float(shortest)
        self.longest = float(longest)
        self.diffuse = diffuse or not damped or fixed
        self.place = nn.Parameter(torch.zeros(()))
        self.fading = nn.Parameter(torch.tensor(self.starts["fading"])) if damped else None
        self.scale = _scale(self, "scale", fixed)

    @property
    def frequency(self) -> Tensor:
        """Angle lambda of a step, in radians."""
        low, high = 2 * math.pi / self.longest, 2 * math.pi / self.shortest
        return low + (high - low) * self.place.sigmoid()

    @property
    def period(self) -> Tensor:
        """Length of the wave in steps."""
        return 2 * math.pi / self.frequency

    @property
    def damping(self) -> Tensor:
        """The factor rho by which it fades at each step."""
        return torch.ones_like(self.unit) if self.fading is None else self.fading.sigmoid()

    @property
    def std(self) -> Tensor:
        """Standard deviation of a change of the wave, in the unit of the series."""
        return _std(self.scale, self.unit)

    def states(self) -> StateParts:
        frequency = self.frequency
        cos, sin = frequency.cos(), frequency.sin()
        move = self.damping * torch.stack([cos, sin, -sin, cos]).view(2, 2)
        identity = torch.eye(2).to(self.unit)
        cov = _variance(self.scale, self.unit) * identity
        first = torch.zeros_like(cov) if self.diffuse else cov / (1 - self.damping.square())
        wide = torch.full((2,), float(self.diffuse)).to(self.unit)
        return StateParts(move, cov, first, wide, {"cycle": identity[0]})

    @torch.no_grad()
    def suit(self, series: Tensor, generator: torch.Generator | None = None) -> None:
        """The length that stands out most from a straight line."""
        low, high = 2 * math.pi / self.longest, 2 * math.pi / self.shortest
        trial = torch.linspace(low, high, 202).to(series)[1:-1]
        if generator is not None:
            trial = trial[torch.randint(len(trial), (3,), generator=generator)]
        time = torch.arange(series.shape[-1]).to(series)
        rest = _detrended(series, time)
        angles = time[:, None] * trial
        power = (rest @ angles.cos()).square() + (rest @ angles.sin()).square()
        best = trial[power.sum(0).argmax()]
        put(self.place, torch.logit((best - low) / (high - low)))


class Autoregression(SeriesComponent):
    r"""A stationary autoregression :math:`u_{t+1} = \sum_{j=1}^p \phi_j u_{t+1-j} + \xi_t`.

    With coefficients that are stationary whatever the parameters, which are partial
    autocorrelations. It starts from its long-run distribution.

    Parameters
    ----------
    order : int
        Number p of coefficients.

    References
    ----------
    Monahan (1984), A note on enforcing stationarity in autoregressive-moving average models,
    https://doi.org/10.1093/biomet/71.2.403

    >>> Autoregression(2).coefficients.shape
    torch.Size([2])
    """

    starts: ClassVar[dict[str, float]] = {"scale": 0.5, "partial": 0.3}

    def __init__(self, order: int = 1):
        checks.at_least(1, order=order)
        super().__init__()
        self.order = order
        self.partial = nn.Parameter(torch.full((order,), self.starts["partial"]))
        self.scale = _scale(self, "scale", False)

    @property
    def coefficients(self) -> Tensor:
        """The coefficients phi: ``(order,)``."""
        found = self.partial.new_zeros(0)
        for partial in self.partial.tanh():
            found = torch.cat([found - partial * found.flip(0), partial[None]])
        return found

    @property
    def std(self) -> Tensor:
        """Standard deviation of a step, in the unit of the series."""
        return _std(self.scale, self.unit)

    def states(self) -> StateParts:
        count = self.order
        shift = torch.eye(count).to(self.unit)
        move = torch.cat([self.coefficients[None], shift[: count - 1]])
        noisy = shift[0].diag()
        flat = torch.eye(count * count).to(self.unit) - torch.kron(move, move)
        first = torch.linalg.solve(flat, noisy.reshape(-1)).view(count, count)
        square = _variance(self.scale, self.unit)
        none = torch.zeros(count).to(self.unit)
        outputs = {"autoregression": shift[0]}
        return StateParts(move, square * noisy, square * first, none, outputs)


class Regression(SeriesComponent):
    r"""Known covariates times coefficients that are learned: :math:`\sum_j b_j c_{tj}`.

    Parameters
    ----------
    covariates : Tensor
        ``(T, P)`` or ``(T,)``: of all steps, and of those to come where the series is to be
        forecast; none missing.

    >>> Regression(torch.arange(10.0)).coefficients
    tensor([0.], grad_fn=<DivBackward0>)
    """

    covariates: Tensor
    starts: ClassVar[dict[str, float]] = {"weight": 0.0}

    def __init__(self, covariates: Tensor):
        super().__init__()
        given = complete_rows("covariates", covariates)
        if given.ndim > 2:
            raise ValueError(
                f"expected covariates of shape (T, P) or (T,), got {tuple(given.shape)}; give one "
                "row for each step"
            )
        self.register_buffer("covariates", given.reshape(len(given), -1).clone())
        self.weight = nn.Parameter(torch.zeros(self.covariates.shape[1]))

    @property
    def coefficients(self) -> Tensor:
        """The coefficients b: ``(P,)``, in units of the series a unit of the covariate."""
        spread = self.covariates.square().mean(0).sqrt()
        return self.unit * self.weight / spread.where(spread > 0, 1.0)

    def states(self) -> None:
        return None

    def offset(self) -> Tensor:
        """What it adds to each step: ``(T,)``."""
        return self.covariates @ self.coefficients


class StructuralTimeSeries(DistributionModule):
    r"""A series as a sum of components and noise, each with a meaning of its own.

    .. math:: x_t = \text{level}_t + \text{seasonal}_t + \dots + \epsilon_t, \qquad \epsilon_t \sim N(0, h)

    Exact density by the Kalman filter with an exact diffuse start, also with missing steps (NaN)
    and of other lengths; its gradient is exact, too, so that
    :func:`probgen.maximum_likelihood` fits it in a few dozen passes. Events are ``(T, 1)``. The
    distribution, :class:`StructuralSeries`, also smooths, splits and forecasts:
    ``gen().components(x)``, ``gen().forecast(x, 12)``. Sums over steps are in double precision;
    ``gen.double()`` keeps it for the parameters, too.

    A density with a diffuse start is one of an improper distribution: it compares models with the
    same diffuse states, and there are no draws but of what follows or lies between observations.

    Parameters
    ----------
    components : sequence of SeriesComponent
        Of :mod:`probgen.sequences`: ``LocalTrend() + Seasonal(12)``, or a list.
    length : int
        Largest length T of a series.
    noise : bool
        Whether there is noise beside the components.
    initial_scale : float, optional
        Standard deviation of the first states, with mean zero, where they would start from
        anywhere: a proper distribution, with draws. Default: a diffuse start.

    References
    ----------
    Harvey (1989), Forecasting, structural time series models and the Kalman filter; Durbin, Koopman
    (2012), Time series analysis by state space methods

    >>> from probgen.infer.maximum_likelihood import maximum_likelihood
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(1, 60, 1).cumsum(1) + torch.randn(1, 60, 1)
    >>> gen = StructuralTimeSeries([LocalLevel()], length=60)
    >>> maximum_likelihood(gen, x).converged
    True
    >>> gen().forecast(x, 12).mean.shape
    torch.Size([1, 12, 1])
    """

    context_size = 0
    context_hint = WITHOUT
    summed_out = "components: gen().components(x)"

    def __init__(
        self,
        components: Sequence[SeriesComponent],
        length: int,
        *,
        noise: bool = True,
        initial_scale: float | None = None,
    ):
        components = [components] if isinstance(components, SeriesComponent) else components
        checks.instances(SeriesComponent, "give LocalLevel() + Seasonal(12)", components=components)
        checks.at_least(1, length=length)
        checks.flag(noise=noise)
        checks.positive(**checks.given(initial_scale=initial_scale))
        super().__init__()
        _check_together(components, length)
        self.components = nn.ModuleList(components)
        self.length = length
        self.initial_scale = initial_scale
        self.scale = _scale(self, "scale", not noise)
        self.register_buffer("unit", torch.ones(()))

    unit: Tensor
    starts: ClassVar[dict[str, float]] = {"scale": 0.5}

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of the noise, in the unit of the series."""
        return _std(self.scale, self.unit)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of series becomes rows: NaN after their ends, which is summed out."""
        return Ragged(self.length, (1,), longer="length={0}")

    def forward(self, context: Tensor | None = None) -> StructuralSeries:
        own: list[Any] = list(self.components)
        found = [part for each in own if (part := each.states()) is not None]
        known = [each.offset() for each in self.components if isinstance(each, Regression)]
        diffuse = torch.cat([part.diffuse for part in found])
        first = _in_blocks([part.initial_cov for part in found])
        if self.initial_scale is not None:
            first = first + (self.initial_scale**2 * diffuse).diag()
            diffuse = torch.zeros_like(diffuse)
        system = StructuralSystem(
            transition=_in_blocks([part.transition for part in found]),
            cov=_in_blocks([part.cov for part in found]),
            loading=torch.cat([next(iter(part.outputs.values())) for part in found]),
            noise=_variance(self.scale, self.unit),
            mean=torch.zeros_like(diffuse),
            initial_cov=first,
            diffuse=diffuse,
            offset=known[0] if known else None,
        )
        return StructuralSeries(system, self.length, _outputs(found))

    @property
    def free_parameters(self) -> int:
        """Number of free parameters, the diffuse states among them, whose start is estimated."""
        return trained(self) + int(self().system.diffuse.sum())

    aic = aic
    bic = bic

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Standard deviations in the size of the steps of the series ``(N, T, 1)``.

        With a generator, each of them is multiplied by a number between 1/4 and 4.
        """
        series = x[..., 0].double()
        steps = series.diff(dim=-1)
        size = steps[~steps.isnan()].square().mean().sqrt()
        size = size if size > 0 else series[~series.isnan()].std()
        if not size > 0:
            raise ValueError(
                "expected a series whose values differ, got a constant one or too few steps; give "
                "more"
            )
        for module in (self, *self.components):
            module.unit.copy_(size)
        for component in self.components:
            _restart(component, generator)
            if isinstance(component, Cycle):
                component.suit(series, generator)
        _restart(self, generator)


def _check_together(components: Sequence[SeriesComponent], length: int) -> None:
    """Refuses components that no series can tell apart, and covariates that are too short."""
    for kinds in ((LocalLevel, LocalTrend), (Regression,)):
        found = [type(each).__name__ for each in components if isinstance(each, kinds)]
        if len(found) > 1:
            raise ValueError(
                f"expected one component of {' or '.join(kind.__name__ for kind in kinds)}, got "
                f"{' and '.join(found)}; a LocalTrend has a level, and a Regression any number of "
                "covariates"
            )
    if not any(not isinstance(each, Regression) for each in components):
        raise ValueError(
            "expected a component with states, got none; add LocalLevel(fixed=True), a constant"
        )
    for each in components:
        if isinstance(each, Regression) and len(each.covariates) < length:
            raise ValueError(
                f"expected covariates of {length} steps or more, got {len(each.covariates)}; give "
                "one row for each step"
            )


def _in_blocks(matrices: Sequence[Tensor]) -> Tensor:
    """Along the diagonal; one alone is left as it is, which spares a step back through it."""
    return matrices[0] if len(matrices) == 1 else torch.block_diag(*matrices)


def _outputs(parts: Sequence[StateParts]) -> dict[str, Tensor]:
    """How the states of all components show each of them; a number sets equal names apart."""
    total = sum(len(part.diffuse) for part in parts)
    found: dict[str, Tensor] = {}
    start = 0
    for part in parts:
        for name, output in part.outputs.items():
            count = 1 + sum(other.split(" ")[0] == name for other in found)
            whole = output.new_zeros(total)
            whole[start : start + len(output)] = output
            found[name if count == 1 else f"{name} {count}"] = whole
        start += len(part.diffuse)
    return found


def _scale(module: Any, name: str, fixed: bool) -> nn.Parameter | None:
    return None if fixed else nn.Parameter(torch.tensor(module.starts[name]))


def _restart(module: Any, generator: torch.Generator | None) -> None:
    """Its own parameters at their starts, with a generator those times a number from 1/4 to 4."""
    for name, value in module.named_parameters(recurse=False):
        start = module.starts[name]
        if generator is not None:
            start *= float(4 ** (2 * torch.rand((), generator=generator) - 1))
        put(value, torch.full_like(value, start))


def _std(scale: Tensor | None, unit: Tensor) -> Tensor:
    """A standard deviation, of any sign as a parameter, so that none is no bound."""
    return torch.zeros_like(unit) if scale is None else unit * scale.abs()


def _variance(scale: Tensor | None, unit: Tensor) -> Tensor:
    return _signed(scale, unit).square()


def _signed(scale: Tensor | None, unit: Tensor) -> Tensor:
    """Plus or minus a standard deviation."""
    return torch.zeros_like(unit) if scale is None else unit * scale


def _dummies(period: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transition, output and which states have noise, of the season as steps."""
    count = period - 1
    identity = torch.eye(count)
    move = torch.cat([-torch.ones(1, count), identity[: count - 1]])
    return move, identity[0], identity[0]


def _waves(period: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the season as waves; that of two steps has one state."""
    blocks = []
    shown = []
    for number in range(1, period // 2 + 1):
        angle = 2 * math.pi * number / period
        if 2 * number == period:
            blocks.append(-torch.ones(1, 1))
            shown += [1.0]
        else:
            cos, sin = math.cos(angle), math.sin(angle)
            blocks.append(torch.tensor([[cos, sin], [-sin, cos]]))
            shown += [1.0, 0.0]
    return torch.block_diag(*blocks), torch.tensor(shown), torch.ones(len(shown))


def _detrended(series: Tensor, time: Tensor) -> Tensor:
    """Less a straight line, zero where missing: ``(N, T) -> (N, T)``."""
    line = torch.stack([torch.ones_like(time), time / len(time)], -1)
    rows = []
    for row in series:
        seen = ~row.isnan()
        slopes = torch.linalg.lstsq(line[seen], row[seen][:, None], driver="gelsd").solution
        rows.append((row - (line @ slopes)[:, 0]).nan_to_num(0.0))
    return torch.stack(rows)
