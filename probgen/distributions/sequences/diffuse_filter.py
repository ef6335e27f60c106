r"""The Kalman filter of one observed variable with an exact diffuse start, its gradient and smoother.

Loops over small matrices as machine code, or in NumPy, where they cost a tenth of the same loops
in torch, with the adjoint of each step written out. Time first: observations ``(T, B)``, all of them seen or missing
at the same steps, so that covariances ``(k, k)`` are shared.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from probgen.distributions.sequences import native_filter

Array = np.ndarray
_CHANGE = 1e-12  # relative, of covariances that are taken for settled
_LEAST = 1e-200  # a variance: the density of what is sure is very large
_TOLERANCE = 1e-10  # of a diffuse variance that is none, relative to the first ones, which are 1


class SystemArrays(NamedTuple):
    r"""A linear Gaussian system with k states that shows one variable.

    .. math:: y_t = z^\top \alpha_t + \epsilon_t, \quad \alpha_{t+1} = T \alpha_t + \eta_t, \qquad
              \epsilon_t \sim N(0, h), \; \eta_t \sim N(0, V), \quad
              \alpha_1 \sim N(a_1, P_1 + \kappa P_\infty), \; \kappa \to \infty

    Attributes
    ----------
    transition, cov : ndarray
        T and V: ``(k, k)`` each.
    loading : ndarray
        z: ``(k,)``.
    noise : float
        h, a variance.
    mean : ndarray
        a_1: ``(B, k)``.
    initial_cov, diffuse_cov : ndarray
        P_1 and P_infinity: ``(k, k)`` each.
    """

    transition: Array
    cov: Array
    loading: Array
    noise: float
    mean: Array
    initial_cov: Array
    diffuse_cov: Array


class DiffuseStep(NamedTuple):
    """One step of the filter while states are diffuse.

    Moments of the state before the observation, and what follows from them: products with the
    loading, their variances, the error of the prediction, and the moments after. ``seen`` is
    False where nothing is observed; ``diffuse_variance`` is 0 unless the observation tells
    something of a diffuse state.
    """

    mean: Array
    cov: Array
    diffuse_cov: Array
    seen: bool
    error: Array
    reach: Array
    variance: float
    diffuse_reach: Array
    diffuse_variance: float
    mean_after: Array
    cov_after: Array
    diffuse_after: Array | None


class ProperSteps(NamedTuple):
    """The n steps after those, when nothing is diffuse any more.

    Attributes
    ----------
    mean, cov : ndarray
        Moments of the states before the observations: ``(n, B, k)`` and ``(n, k, k)``.
    error : ndarray
        Of the predictions, 0 where nothing is observed: ``(n, B)``.
    variance, seen : ndarray
        Of the errors, and which steps are observed: ``(n,)`` each.
    reach, gain, left : ndarray
        P z, K = T P z / F and L = T - K z': ``(n, k)``, ``(n, k)``, ``(n, k, k)``.
    same : ndarray of bool
        Whether the covariances of a step are those of the step before.
    """

    mean: Array
    cov: Array
    error: Array
    variance: Array
    seen: Array
    reach: Array
    gain: Array
    left: Array
    same: Array


class LikelihoodGradient(NamedTuple):
    """Derivatives of a weighted sum of log-likelihoods, as the fields of :class:`SystemArrays`."""

    transition: Array
    cov: Array
    noise: float
    mean: Array
    initial_cov: Array
    y: Array


class DiffuseFiltered(NamedTuple):
    """What the filter found.

    Log-likelihoods ``(B,)``, the diffuse steps and the others, and the moments of the state one
    step after the last.
    """

    log_likelihood: Array
    diffuse: list[DiffuseStep]
    steps: ProperSteps
    mean: Array
    cov: Array
    diffuse_cov: Array | None


def diffuse_filter(system: SystemArrays, y: Array, seen: Array) -> DiffuseFiltered:
    r"""The exact diffuse filter of ``(T, B)``, of which ``seen`` says which steps are observed.

    The log-likelihood is the limit of that under a wide normal start, less what the width adds to
    it,

    .. math:: \log L = \lim_{\kappa \to \infty} \log p_\kappa(y) + \tfrac{q}{2} \log \kappa

    with q the number of diffuse states that are observed: a density with respect to an improper
    start, comparable between models with the same diffuse states.

    Source: Koopman (1997), https://doi.org/10.1080/01621459.1997.10473685; Durbin, Koopman (2012),
    Time series analysis by state space methods, chapter 5.

    >>> one = np.ones((1, 1))
    >>> walk = SystemArrays(one, one, np.ones(1), 1.0, np.zeros((1, 1)), 0 * one, one)
    >>> diffuse_filter(walk, np.array([[5.0], [6.0]]), np.array([True, True])).log_likelihood.round(4)
    array([-2.5538])
    """
    move = system.transition
    mean, cov = system.mean, system.initial_cov
    diffuse: Array | None = system.diffuse_cov if system.diffuse_cov.any() else None
    total: Any = np.zeros(y.shape[1])
    first = []
    for value, there in zip(y, seen.tolist(), strict=True):
        if diffuse is None:
            break
        step = _updated(system, mean, cov, diffuse, value if there else None)
        first.append(step)
        if there:
            total = total + _log_density(step)
        mean = step.mean_after @ move.T
        cov = move @ step.cov_after @ move.T + system.cov
        diffuse = step.diffuse_after
        if diffuse is not None:
            diffuse = move @ diffuse @ move.T
    steps, mean, cov = _ordinary(system, mean, cov, y[len(first) :], seen[len(first) :])
    squares = (steps.error**2 / steps.variance[:, None]).sum(0)
    logs = np.log(2 * math.pi * steps.variance[steps.seen]).sum()
    return DiffuseFiltered(total - 0.5 * (squares + logs), first, steps, mean, cov, diffuse)


def _ordinary(
    system: SystemArrays, mean: Array, cov: Array, y: Array, seen: Array
) -> tuple[ProperSteps, Array, Array]:
    """The steps from a proper state on, and the moments one step after the last."""
    if not native_filter.pays(len(y), len(system.loading)):
        return _in_numpy(system, mean, cov, y, seen)
    limits = (system.noise, _CHANGE, _LEAST)
    found = native_filter.forward_loop(
        system.transition, system.cov, system.loading, limits, (mean, cov), y, seen
    )
    steps = ProperSteps(
        found.mean[:-1],
        found.cov[:-1],
        found.error,
        found.variance,
        seen,
        found.reach,
        found.gain,
        found.left,
        found.same,
    )
    return steps, found.mean[-1], found.cov[-1]


def _in_numpy(
    system: SystemArrays, mean: Array, cov: Array, y: Array, seen: Array
) -> tuple[ProperSteps, Array, Array]:
    """The same.

    Covariances do not depend on the data, and are taken over once they no longer change.
    """
    move, z = system.transition, system.loading
    covs, reaches, variances, gains, same = [], [], [], [], []
    still = False
    turned = move.T
    before = 0.0
    reach = gain = z
    variance = 1.0
    for there in seen.tolist():
        covs.append(cov)
        same.append(still and there)
        if same[-1]:
            reaches.append(reach)
            variances.append(variance)
            gains.append(gain)
            continue
        reach = cov @ z
        still = False
        if not there:
            reaches.append(reach)
            variances.append(1.0)
            gains.append(np.zeros_like(z))
            cov = move @ cov @ turned + system.cov
            continue
        variance = max(float(z @ reach) + system.noise, _LEAST)
        moved = move @ reach
        gain = moved / variance
        reaches.append(reach)
        variances.append(variance)
        gains.append(gain)
        ahead = move @ cov @ turned
        ahead -= moved[:, None] * gain
        ahead += system.cov
        if abs(variance - before) < _CHANGE * variance:
            still = _settled(cov, ahead)
        before = variance
        cov = cov if still else ahead
    gained = np.array(gains).reshape(len(y), len(z))
    left = move - gained[:, :, None] * z
    value = np.where(seen[:, None], y, 0.0)
    told = value[:, :, None] * gained[:, None]
    rows = [mean]
    for matrix, add in zip(left.transpose(0, 2, 1), told, strict=True):
        mean = mean @ matrix
        mean += add
        rows.append(mean)
    means = np.array(rows)
    error = np.where(seen[:, None], value - means[:-1] @ z, 0.0)
    variance_of = np.array(variances)
    shape = (len(y), len(z))
    steps = ProperSteps(
        means[:-1],
        np.array(covs).reshape(*shape, len(z)),
        error,
        variance_of,
        seen,
        np.array(reaches).reshape(shape),
        gained,
        left,
        np.array(same, dtype=bool),
    )
    return steps, means[-1], cov


def _log_density(step: DiffuseStep) -> Any:
    if step.diffuse_variance:
        return -0.5 * math.log(2 * math.pi * step.diffuse_variance)
    normal = math.log(2 * math.pi * step.variance)
    return -0.5 * (normal + step.error * step.error / step.variance)


def _updated(
    system: SystemArrays, mean: Array, cov: Array, diffuse: Array, value: Array | None
) -> DiffuseStep:
    """The moments after one observation; ``None`` where it is missing."""
    z = system.loading
    if value is None:
        return DiffuseStep(mean, cov, diffuse, False, z, z, 1.0, z, 0.0, mean, cov, diffuse)
    error = value - mean @ z
    reach = cov @ z
    variance = max(float(z @ reach) + system.noise, _LEAST)
    wide = diffuse @ z
    width = float(z @ wide)
    if width > _TOLERANCE:
        gain = wide / width
        both = np.outer(reach, gain)
        after = cov - both - both.T + variance * np.outer(gain, gain)
        rest = diffuse - np.outer(wide, gain)
        left: Array | None = rest if np.abs(rest).max() > _TOLERANCE else None
        moved = mean + error[:, None] * gain
        return DiffuseStep(
            mean, cov, diffuse, True, error, reach, variance, gain, width, moved, after, left
        )
    gain = reach / variance
    moved = mean + error[:, None] * gain
    after = cov - reach[:, None] * gain
    return DiffuseStep(
        mean, cov, diffuse, True, error, reach, variance, z, 0.0, moved, after, diffuse
    )


class _Told(NamedTuple):
    """What observations tell of the state before each step, and the last entry, after all.

    ``(n + 1, B, k)`` and ``(n + 1, k, k)``: the first and, negative, the second derivatives of the
    log-likelihood of what comes by the mean.
    """

    first: Array
    second: Array


def _told(system: SystemArrays, steps: ProperSteps) -> _Told:
    """Backwards over the ordinary steps."""
    if not native_filter.pays(len(steps.error), len(system.loading)):
        return _told_in_numpy(system, steps)
    return _Told(*native_filter.backward_loop(system.loading, _CHANGE, steps, steps.seen))


def _told_in_numpy(system: SystemArrays, steps: ProperSteps) -> _Told:
    """The same.

    Second derivatives do not depend on the data, and are taken over while they do not change.
    """
    z = system.loading
    shrunk = (steps.error / steps.variance[:, None])[:, :, None] * z
    squares = np.outer(z, z) * (steps.seen / steps.variance)[:, None, None]
    slope = np.zeros(steps.mean.shape[1:])
    first = [slope]
    for matrix, add in zip(steps.left[::-1], shrunk[::-1], strict=True):
        slope = slope @ matrix
        slope += add
        first.append(slope)
    curve = np.zeros((len(z), len(z)))
    second = [curve]
    same = steps.same.tolist()
    still = False
    for number in range(len(shrunk) - 1, -1, -1):
        if not (still and same[number]):
            matrix = steps.left[number]
            before = curve
            curve = matrix.T @ before @ matrix
            curve += squares[number]
            still = same[number] and number % 4 == 0 and _settled(before, curve)
        second.append(curve)
    return _Told(np.array(first[::-1]), np.array(second[::-1]))


def _settled(before: Array, after: Array) -> bool:
    """Whether a matrix no longer changes."""
    return bool(np.abs(after - before).max() < _CHANGE * np.abs(after).max())


def likelihood_gradient(
    system: SystemArrays, found: DiffuseFiltered, weights: Array, *, by_transition: bool = True
) -> LikelihoodGradient:
    r"""Derivatives of the log-likelihoods weighted by ``(B,)``.

    .. math:: \frac{\partial \log L}{\partial V} = \tfrac12 \sum_t (r_t r_t^\top - N_t), \quad
              \frac{\partial \log L}{\partial h} = \tfrac12 \sum_t (u_t^2 - D_t), \quad
              u_t = v_t / F_t - K_t^\top r_t, \; D_t = 1 / F_t + K_t^\top N_t K_t

    and each step reversed while states are diffuse. Source: Koopman, Shephard (1992), Exact score
    for time series models in state space form, https://doi.org/10.1093/biomet/79.4.823
    """
    steps = found.steps
    told = _told(system, steps)
    total = weights.sum()
    after, curved = told.first[1:], told.second[1:]
    scaled = steps.error / steps.variance[:, None] - np.einsum("tbk,tk->tb", after, steps.gain)
    scaled = np.where(steps.seen[:, None], scaled, 0.0)
    spread = steps.seen / steps.variance + np.einsum("tk,tkl,tl->t", steps.gain, curved, steps.gain)
    of_noise = 0.5 * float((scaled**2 @ weights).sum() - total * spread[steps.seen].sum())
    weighted = told.first * weights[:, None]
    both = np.einsum("tbk,tbl->tkl", weighted, told.first) - total * told.second
    moved = both[0 if found.diffuse else 1 : -1] if len(steps.error) else both[:0]
    of_cov = 0.5 * moved.sum(0)
    of_move = np.zeros_like(of_cov)
    if by_transition and len(steps.error) > 1:
        shrunk = steps.error / steps.variance[:, None]
        means = (steps.mean + shrunk[:, :, None] * steps.reach[:, None])[:-1]
        part = (steps.seen / steps.variance)[:, None] * steps.reach
        covs = (steps.cov - part[:, :, None] * steps.reach[:, None])[:-1]
        of_move += np.einsum("tbk,tbl->kl", weighted[1:-1], means)
        of_move += (both[1:-1] @ (system.transition @ covs)).sum(0)
    of_y = -scaled * weights
    start = (weighted[0], 0.5 * both[0], of_move, of_cov, of_noise)
    return _through_diffuse(system, found, weights, of_y, start)


def _through_diffuse(
    system: SystemArrays,
    found: DiffuseFiltered,
    weights: Array,
    of_y: Array,
    start: tuple[Array, Array, Array, Array, float],
) -> LikelihoodGradient:
    """Goes on with the diffuse steps, each reversed."""
    mean, cov, of_move, of_cov, of_noise = start
    move = system.transition
    diffuse = np.zeros_like(cov)
    ahead = len(found.steps.error) > 0
    rows: list[Array] = []
    for step in found.diffuse[::-1]:
        if ahead:  # what moves the state to the next step
            if rows:  # of the first, the ordinary steps have it
                of_cov = of_cov + cov
            turned = cov @ move
            of_move = of_move + mean.T @ step.mean_after + 2 * turned @ step.cov_after
            mean, cov = mean @ move, move.T @ turned
            if rows and step.diffuse_after is not None:
                turned = diffuse @ move
                of_move = of_move + 2 * turned @ step.diffuse_after
                diffuse = move.T @ turned
        of_error = np.zeros_like(weights)
        if step.seen:
            of_error, variance, mean, cov, diffuse = _reversed(
                system, step, weights, mean, cov, diffuse
            )
            of_noise += variance
        rows.append(of_error)
        ahead = True
    of_y = np.concatenate([np.array(rows[::-1]).reshape(-1, len(weights)), of_y])
    return LikelihoodGradient(of_move, of_cov, of_noise, mean, cov, of_y)


def _reversed(
    system: SystemArrays, step: DiffuseStep, weights: Array, mean: Array, cov: Array, diffuse: Array
) -> tuple[Array, float, Array, Array, Array]:
    """One update of a diffuse state: derivatives by the error, the noise and the moments before."""
    if step.diffuse_variance:
        return _reversed_diffuse(system, step, weights, mean, cov, diffuse)
    return *_reversed_proper(system, step, weights, mean, cov), diffuse


def _reversed_proper(
    system: SystemArrays, step: DiffuseStep, weights: Array, mean: Array, cov: Array
) -> tuple[Array, float, Array, Array]:
    """An update that tells nothing of a diffuse state."""
    z, gain = system.loading, step.reach / step.variance
    shrunk = step.error / step.variance
    along = mean @ gain
    turned = cov @ gain
    of_error = along - weights * shrunk
    of_variance = float(
        gain @ turned
        - along @ shrunk
        + 0.5 * (weights @ (shrunk * shrunk) - weights.sum() / step.variance)
    )
    of_reach = shrunk @ mean - 2 * turned + of_variance * z
    before = mean - of_error[:, None] * z
    half = 0.5 * of_reach[:, None] * z
    return of_error, of_variance, before, cov + half + half.T


def _reversed_diffuse(
    system: SystemArrays, step: DiffuseStep, weights: Array, mean: Array, cov: Array, diffuse: Array
) -> tuple[Array, float, Array, Array, Array]:
    """One update that tells something of a diffuse state."""
    z, gain, width = system.loading, step.diffuse_reach, step.diffuse_variance
    of_error = mean @ gain
    turned, wider = cov @ gain, diffuse @ gain
    of_variance = float(gain @ turned)
    of_gain = (
        step.error @ mean - 2 * cov @ step.reach + 2 * step.variance * turned - 2 * width * wider
    )
    of_reach = of_variance * z - 2 * turned
    of_width = -0.5 * weights.sum() / width - gain @ wider - of_gain @ gain / width
    of_wide = of_gain / width + of_width * z
    before = mean - of_error[:, None] * z
    half, wide = 0.5 * of_reach[:, None] * z, 0.5 * of_wide[:, None] * z
    return of_error, of_variance, before, cov + half + half.T, diffuse + wide + wide.T


def diffuse_smoother(system: SystemArrays, found: DiffuseFiltered) -> tuple[Array, Array]:
    r"""Moments of the states given all observations: ``(T, B, k)`` and ``(T, k, k)``.

    Backwards over what the filter found, in powers of the diffuse width.

    .. math:: \hat\alpha_t = a_t + P_t r_0 + P_{\infty,t} r_1, \qquad
              V_t = P_t - P_t N_0 P_t - (P_{\infty,t} N_1 P_t)^\top - P_{\infty,t} N_1 P_t
                    - P_{\infty,t} N_2 P_{\infty,t}

    Source: Durbin, Koopman (2012), section 5.3.
    """
    steps = found.steps
    told = _told(system, steps)
    mean = steps.mean + np.einsum("tbk,tkl->tbl", told.first[:-1], steps.cov)
    cov = steps.cov - steps.cov @ told.second[:-1] @ steps.cov
    none = np.zeros((2, *system.transition.shape))
    back = _Backward(told.first[0], np.zeros_like(found.mean), told.second[0], *none)
    means, covs = [], []
    for step in found.diffuse[::-1]:
        back = _one_back(system, step, back)
        across = step.diffuse_cov @ back.n1 @ step.cov
        means.append(step.mean + back.r0 @ step.cov + back.r1 @ step.diffuse_cov)
        covs.append(
            step.cov
            - step.cov @ back.n0 @ step.cov
            - across
            - across.T
            - step.diffuse_cov @ back.n2 @ step.diffuse_cov
        )
    if not means:
        return mean, cov
    return np.concatenate([means[::-1], mean]), np.concatenate([covs[::-1], cov])


class _Backward(NamedTuple):
    """What later observations tell: ``(B, k)`` and ``(k, k)``, in powers of the diffuse width."""

    r0: Array
    r1: Array
    n0: Array
    n1: Array
    n2: Array


def _one_back(system: SystemArrays, step: DiffuseStep, back: _Backward) -> _Backward:
    move, z = system.transition, system.loading
    if not step.seen:
        return _Backward(
            back.r0 @ move,
            back.r1 @ move,
            move.T @ back.n0 @ move,
            move.T @ back.n1 @ move,
            move.T @ back.n2 @ move,
        )
    square = np.outer(z, z)
    if not step.diffuse_variance:
        left = move - np.outer(move @ step.reach / step.variance, z)
        told = (step.error / step.variance)[:, None] * z
        return _Backward(
            told + back.r0 @ left,
            back.r1 @ move,
            square / step.variance + left.T @ back.n0 @ left,
            move.T @ back.n1 @ left,
            move.T @ back.n2 @ move,
        )
    width = step.diffuse_variance
    left = move - np.outer(move @ step.diffuse_reach, z)
    slight = move @ (step.reach - step.diffuse_reach * step.variance) / width
    less = -np.outer(slight, z)
    told = (step.error / width)[:, None] * z
    across = left.T @ back.n1 @ less
    return _Backward(
        back.r0 @ left,
        told + back.r1 @ left + back.r0 @ less,
        left.T @ back.n0 @ left,
        square / width + left.T @ back.n1 @ left + less.T @ back.n0 @ left,
        -square * step.variance / width**2
        + left.T @ back.n2 @ left
        + across
        + across.T
        + less.T @ back.n0 @ less,
    )
