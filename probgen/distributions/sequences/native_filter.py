"""The loops of the Kalman filter of one observed variable as machine code.

The same operations as those in NumPy of :mod:`probgen.distributions.sequences.diffuse_filter`,
where the steps are explained; products leave out what a zero of the transition takes away.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from probgen.core import machine_code

Array = np.ndarray
# Steps x states from which it pays, and states up to which. A step takes NumPy 5 to 10 microseconds,
# with one state or with 13, and machine code 0.2 to 1.5; larger products are better left to BLAS.
# The compiler takes 0.4 seconds once on a machine, loading some milliseconds once in a process. By
# size, not by what is there already, so that equal calls give equal bits.
LEAST, MOST = 64, 64

SOURCE = r"""
#include <cmath>
#include <cstdint>
#include <cstring>

using Size = int64_t;

// a matrix times a matrix: (k, k) each
static void times(Size k, const double* a, const double* b, double* out) {
    for (Size i = 0; i < k; i++) {
        double* row = out + i * k;
        for (Size j = 0; j < k; j++) row[j] = 0.0;
        for (Size p = 0; p < k; p++) {
            const double factor = a[i * k + p];
            if (factor == 0.0) continue;
            const double* other = b + p * k;
            for (Size j = 0; j < k; j++) row[j] += factor * other[j];
        }
    }
}

static void transpose(Size k, const double* a, double* out) {
    for (Size i = 0; i < k; i++)
        for (Size j = 0; j < k; j++) out[j * k + i] = a[i * k + j];
}

// a c a', with the zeros of a left out twice
static void both_sides(Size k, const double* a, const double* c, double* out, double* work) {
    times(k, a, c, out);
    transpose(k, out, work);
    times(k, a, work, out);
    transpose(k, out, work);
    std::memcpy(out, work, k * k * sizeof(double));
}

static double dot(Size k, const double* a, const double* b) {
    double total = 0.0;
    for (Size i = 0; i < k; i++) total += a[i] * b[i];
    return total;
}

static bool settled(Size size, const double* before, const double* after, double change) {
    double most = 0.0, largest = 0.0;
    for (Size i = 0; i < size; i++) {
        const double moved = std::fabs(after[i] - before[i]), here = std::fabs(after[i]);
        if (!(moved <= 1e300)) return false;  // infinite, or not a number
        most = moved > most ? moved : most;
        largest = here > largest ? here : largest;
    }
    return most < change * largest;
}

struct System {
    const double *move, *cov, *z, *cov0, *mean0;
    double noise, change, least;
};

static System system_of(Size k, const double* packed) {
    System s;
    s.move = packed;
    s.cov = s.move + k * k;
    s.cov0 = s.cov + k * k;
    s.z = s.cov0 + k * k;
    s.noise = s.z[k];
    s.change = s.z[k + 1];
    s.least = s.z[k + 2];
    s.mean0 = s.z + k + 3;
    return s;
}

extern "C" void forward(Size n, Size batch, Size k, const double* packed, const uint8_t* seen,
                        const double* y, double* out, uint8_t* same) {
    const System s = system_of(k, packed);
    const Size square = k * k, rows = batch * k;
    double *variances = out, *reaches = variances + n, *gains = reaches + n * k;
    double *lefts = gains + n * k, *covs = lefts + n * square, *means = covs + (n + 1) * square;
    double *errors = means + (n + 1) * rows, *moved = errors + n * batch, *work = moved + k;
    std::memcpy(covs, s.cov0, square * sizeof(double));
    std::memcpy(means, s.mean0, rows * sizeof(double));
    bool still = false;
    double before = 0.0;
    for (Size t = 0; t < n; t++) {
        double *reach = reaches + t * k, *gain = gains + t * k, *left = lefts + t * square;
        double *cov = covs + t * square, *ahead = cov + square;
        same[t] = still && seen[t];
        if (same[t]) {
            variances[t] = variances[t - 1];
            std::memcpy(reach, reach - k, k * sizeof(double));
            std::memcpy(gain, gain - k, k * sizeof(double));
            std::memcpy(left, left - square, square * sizeof(double));
            std::memcpy(ahead, cov, square * sizeof(double));
        } else {
            still = false;
            for (Size i = 0; i < k; i++) reach[i] = dot(k, cov + i * k, s.z);
            both_sides(k, s.move, cov, ahead, work);
            if (seen[t]) {
                const double given = dot(k, s.z, reach) + s.noise;
                const double variance = s.least > given ? s.least : given;
                variances[t] = variance;
                for (Size i = 0; i < k; i++) moved[i] = dot(k, s.move + i * k, reach);
                for (Size i = 0; i < k; i++) gain[i] = moved[i] / variance;
                for (Size i = 0; i < k; i++)
                    for (Size j = 0; j < k; j++)
                        ahead[i * k + j] = ahead[i * k + j] - moved[i] * gain[j] + s.cov[i * k + j];
                if (std::fabs(variance - before) < s.change * variance)
                    still = settled(square, cov, ahead, s.change);
                before = variance;
                if (still) std::memcpy(ahead, cov, square * sizeof(double));
            } else {
                variances[t] = 1.0;
                for (Size i = 0; i < k; i++) gain[i] = 0.0;
                for (Size i = 0; i < square; i++) ahead[i] += s.cov[i];
            }
            for (Size i = 0; i < k; i++)
                for (Size j = 0; j < k; j++) left[i * k + j] = s.move[i * k + j] - gain[i] * s.z[j];
        }
        for (Size b = 0; b < batch; b++) {
            const double* mean = means + t * rows + b * k;
            double* next = means + (t + 1) * rows + b * k;
            const double value = seen[t] ? y[t * batch + b] : 0.0;
            errors[t * batch + b] = seen[t] ? value - dot(k, mean, s.z) : 0.0;
            for (Size i = 0; i < k; i++) next[i] = dot(k, left + i * k, mean) + gain[i] * value;
        }
    }
}

extern "C" void backward(Size n, Size batch, Size k, const double* z, double change,
                         const double* error, const double* variance, const uint8_t* seen,
                         const double* lefts, const uint8_t* same, double* out) {
    const Size square = k * k, rows = batch * k;
    double *first = out, *second = first + (n + 1) * rows;
    double *turned = second + (n + 1) * square, *work = turned + square;
    std::memset(first + n * rows, 0, rows * sizeof(double));
    std::memset(second + n * square, 0, square * sizeof(double));
    bool still = false;
    for (Size t = n - 1; t >= 0; t--) {
        double *curve = second + t * square;
        const double *later = curve + square;
        if (t == n - 1 || !same[t + 1]) transpose(k, lefts + t * square, turned);
        for (Size b = 0; b < batch; b++) {
            const double shrunk = error[t * batch + b] / variance[t];
            const double* slope = first + (t + 1) * rows + b * k;
            double* told = first + t * rows + b * k;
            for (Size i = 0; i < k; i++) told[i] = dot(k, turned + i * k, slope) + shrunk * z[i];
        }
        if (still && same[t]) {
            std::memcpy(curve, later, square * sizeof(double));
            continue;
        }
        both_sides(k, turned, later, curve, work);
        const double weight = seen[t] / variance[t];
        for (Size i = 0; i < k; i++)
            for (Size j = 0; j < k; j++) curve[i * k + j] += z[i] * z[j] * weight;
        still = same[t] && t % 4 == 0 && settled(square, later, curve, change);
    }
}
"""


class ForwardLoop(NamedTuple):
    """What the loop forwards leaves of n steps and B series: see ``ProperSteps``.

    ``mean`` and ``cov`` have one step more, after the last.
    """

    mean: Array
    cov: Array
    error: Array
    variance: Array
    reach: Array
    gain: Array
    left: Array
    same: Array


@functools.cache
def _library() -> Any:
    try:
        library = machine_code.load(SOURCE)
    except machine_code.NotCompiled:
        return None
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.forward.argtypes = (*(size,) * 3, *(pointer,) * 5)
    library.backward.argtypes = (*(size,) * 3, pointer, ctypes.c_double, *(pointer,) * 6)
    library.forward.restype = library.backward.restype = None
    return library


def pays(steps: int, states: int) -> bool:
    """Whether there is enough to do, of matrices that are small, and a compiler."""
    return steps * states >= LEAST and states <= MOST and _library() is not None


def forward_loop(
    move: Array,
    cov: Array,
    loading: Array,
    limits: tuple[float, float, float],
    start: tuple[Array, Array],
    y: Array,
    seen: Array,
) -> ForwardLoop:
    """The filter from a proper start ``(B, k)``, ``(k, k)`` over ``(n, B)``.

    ``limits``: the variance of the noise, the change below which a covariance is settled, and the
    least variance of an error.
    """
    (n, batch), k = y.shape, len(loading)
    packed = np.concatenate(
        [move.ravel(), cov.ravel(), start[1].ravel(), loading, limits, start[0].ravel()]
    )
    shapes = ((n,), (n, k), (n, k), (n, k, k), (n + 1, k, k), (n + 1, batch, k), (n, batch))
    out, (variance, reach, gain, left, covs, means, error) = _parts(shapes, k + k * k)
    same = np.empty(n, dtype=bool)
    values, there = np.ascontiguousarray(y), np.ascontiguousarray(seen)
    _library().forward(n, batch, k, *map(_place, (packed, there, values, out, same)))
    return ForwardLoop(means, covs, error, variance, reach, gain, left, same)


def backward_loop(loading: Array, change: float, passed: Any, seen: Array) -> tuple[Array, Array]:
    """What later observations tell: ``(n + 1, B, k)`` and ``(n + 1, k, k)``."""
    (n, batch), k = passed.error.shape, len(loading)
    out, (first, second) = _parts(((n + 1, batch, k), (n + 1, k, k)), 2 * k * k)
    z, there = np.ascontiguousarray(loading), np.ascontiguousarray(seen)
    given = map(_place, (passed.error, passed.variance, there, passed.left, passed.same, out))
    _library().backward(n, batch, k, _place(z), change, *given)
    return first, second


def _parts(shapes: Sequence[tuple[int, ...]], work: int) -> tuple[Array, list[Array]]:
    """Memory for arrays of these shapes and so many numbers after them."""
    sizes = [math.prod(shape) for shape in shapes]
    out = np.empty(sum(sizes) + work)
    parts, place = [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        parts.append(out[place : place + size].reshape(shape))
        place += size
    return out, parts


def _place(array: Array) -> int:
    return array.__array_interface__["data"][0]
