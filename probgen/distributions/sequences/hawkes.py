"""The distribution of events in time that excite each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.inside import point_inside
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.distributions.sequences.lists import takes_lists

NO_EVENT = -1.0  # stands after the last event


class EventTimes(constraints.Constraint):
    """Times that increase, from 0 to a horizon, each with a mark where there are several.

    After the last event -1 stands in every column.

    >>> EventTimes(5.0, 1).check(torch.tensor([[[0.5], [2.0], [-1.0]], [[2.0], [0.5], [-1.0]]]))
    tensor([ True, False])
    """

    event_dim = 2
    words = "times that increase, from 0 to the horizon, beside marks, and -1 after the last event"

    def __init__(self, horizon: float, marks: int):
        self.horizon, self.marks = horizon, marks

    def check(self, value: Tensor) -> Tensor:
        times = value[..., 0]
        seen = times != NO_EVENT
        ended = (value == NO_EVENT).all(-1)
        fine = ended | ((times >= 0) & (times <= self.horizon))
        in_order = ~seen[..., 1:] | (seen[..., :-1] & (times[..., 1:] >= times[..., :-1]))
        if self.marks > 1:
            mark = value[..., 1]
            fine = fine & (ended | ((mark == mark.round()) & (mark >= 0) & (mark < self.marks)))
        return fine.all(-1) & in_order.all(-1)


class HawkesEvents(BatchedDistribution):
    r"""Events of K marks up to a time T, each of which makes others likelier for a while.

    .. math:: \lambda_k(t) = \mu_k + \sum_{t_i < t} a_{k m_i}\, \beta_{k m_i} e^{-\beta_{k m_i} (t - t_i)}, \qquad
              \log p = \sum_i \log \lambda_{m_i}(t_i) - \sum_k \int_0^T \lambda_k(t)\, dt

    A value holds times, and the marks 0., ..., K - 1 beside them where K > 1, in the order of time:
    ``(most, 1)`` or ``(most, 2)``, with -1 after the last event. Its density is one of times (nats;
    a unit of time each) and exact. Sums over earlier events are a linear recursion, computed in a
    time of n K² for n events, in as many rounds as n has binary digits.

    Parameters
    ----------
    rates : Tensor
        mu, events a unit of time without any before: ``(K,)``.
    branching : Tensor
        a, expected number of events of each mark (rows) that one event (columns) leads to:
        ``(K, K)``.
    decay : Tensor
        beta, in 1 / time: ``(K, K)``.
    horizon : float
        T.
    most : int
        Largest number of events.

    Raises
    ------
    ValueError
        From ``log_prob``, if a value is missing (NaN) or no sequence of events; from ``sample``, if
        a draw has more than ``most`` events.

    References
    ----------
    Hawkes (1971), Spectra of some self-exciting and mutually exciting point processes,
    https://doi.org/10.1093/biomet/58.1.83; Ozaki (1979), Maximum likelihood estimation of Hawkes'
    self-exciting point processes, https://doi.org/10.1007/BF02480272

    >>> one = torch.ones(1, 1)
    >>> events = HawkesEvents(torch.ones(1), 0.5 * one, 2 * one, horizon=3.0, most=4)
    >>> events.log_prob(torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]]))     # -3 - 0.5 (1 - e^-4)
    tensor(-3.4908)
    """

    def __init__(self, rates: Tensor, branching: Tensor, decay: Tensor, horizon: float, most: int):
        self.rates, self.branching, self.decay = rates, branching, decay
        self.horizon, self.most = float(horizon), most
        self.marks = len(rates)
        columns = 1 if self.marks == 1 else 2
        super().__init__(torch.Size(), torch.Size([most, columns]), validate_args=False)

    padding = NO_EVENT

    @property
    def support(self) -> EventTimes:
        return EventTimes(self.horizon, self.marks)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.rates

    def log_prob(self, x: Tensor) -> Tensor:
        times, marks, seen, lead = self._events(x)
        past = self._past(times, marks, seen)
        own = self._intensities(past)[:, :-1].gather(-1, marks[..., None])[..., 0]
        total = torch.where(seen, own, 1.0).log().sum(-1) - self._expected(past, marks, seen)
        return total.reshape(lead)

    @takes_lists
    def intensities(self, x: Tensor) -> Tensor:
        """The intensity of each mark just before each event: ``(*batch, most, K)``."""
        times, marks, seen, lead = self._events(x)
        found = self._intensities(self._past(times, marks, seen))[:, :-1]
        return torch.where(seen[..., None], found, torch.nan).reshape(*lead, self.most, -1)

    @takes_lists
    def rescaled(self, x: Tensor) -> Tensor:
        r"""Waiting times in units of what was expected, from one event of a mark to the next.

        .. math:: \int_{t_{i'}}^{t_i} \lambda_{m_i}(t)\, dt

        ``(*batch, most)``, NaN after the last event. Under the right model they are independent and
        exponential with mean 1, but for the last one of each mark, which the horizon cuts: a test
        of fit.

        References
        ----------
        Ogata (1988), Statistical models for earthquake occurrences and residual analysis for point
        processes, https://doi.org/10.1080/01621459.1988.10478560
        """
        times, marks, seen, lead = self._events(x)
        past = self._past(times, marks, seen)[:, :-1]
        counts = self._counted(marks, seen)
        before = counts.cumsum(1) - counts
        gone = (self.branching * (before[..., None, :] - past)).sum(-1)
        whole = self.rates * times[..., None] + gone  # (R, n, K), increasing
        at_own = torch.where(counts > 0, whole, 0.0).cummax(1).values
        last = torch.cat([torch.zeros_like(at_own[:, :1]), at_own[:, :-1]], 1)
        waits = (whole - last).gather(-1, marks[..., None])[..., 0]
        return torch.where(seen, waits, torch.nan).reshape(*lead, self.most)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws by thinning: candidates come at the rate that there is after the last event.

        References
        ----------
        Ogata (1981), On Lewis' simulation method for point processes,
        https://doi.org/10.1109/TIT.1981.1056305
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        out = self.rates.new_full((shape.numel(), *self.event_shape), NO_EVENT)
        rows = torch.arange(len(out), device=out.device)
        past = self.rates.new_zeros(len(out), self.marks, self.marks)
        now = past.new_zeros(len(out))
        count = torch.zeros_like(rows)
        while len(rows):
            bound = self._intensities(past).sum(-1)
            wait = torch.empty_like(bound).exponential_() / bound
            past = past * (-self.decay * wait[:, None, None]).exp()
            now = now + wait
            rate = self._intensities(past)
            kept = (torch.rand_like(bound) * bound < rate.sum(-1)) & (now <= self.horizon)
            mark = torch.distributions.Categorical(rate, validate_args=False).sample()
            if (kept & (count == self.most)).any():
                raise ValueError(
                    f"expected draws of at most {self.most} events up to the time {self.horizon:g}, "
                    "got more; build the process with a larger most, or a shorter horizon"
                )
            own, at = rows[kept], count[kept]
            out[own, at, 0] = now[kept]
            if self.marks > 1:
                out[own, at, 1] = mark[kept].to(out)
            event = torch.nn.functional.one_hot(mark, self.marks).to(past) * kept[:, None]
            past = past + event[:, None, :]
            count = count + kept
            going = now <= self.horizon
            rows, past, now, count = rows[going], past[going], now[going], count[going]
        return out.reshape(*shape, *self.event_shape)

    def _events(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
        """Times, marks and whether there is an event, ``(R, n)`` each, and the dims of R."""
        check_event(x, self.event_shape)
        if has_missing(x):
            raise ValueError(
                "expected events that are all known, got NaN (missing); leave them out, with -1 "
                "after the last event, or give a list of sequences"
            )
        lead = self.lead(x)
        rows = x.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        if values_are_known() and not (fits := self.support.check(rows)).all():
            raise ValueError(
                f"expected {EventTimes.words}, got others in row {int((~fits).nonzero()[0])}; sort the "
                "events by time, and build the process with the horizon up to which they go"
            )
        seen = rows[..., 0] != NO_EVENT
        times = torch.where(seen, rows[..., 0], self.horizon)
        marks = rows[..., 1] if self.marks > 1 else torch.zeros_like(times)
        return times, torch.where(seen, marks, 0.0).long(), seen, lead

    def _counted(self, marks: Tensor, seen: Tensor) -> Tensor:
        """One at the mark of each event, ``(R, n, K)``."""
        each = torch.nn.functional.one_hot(marks, self.marks).to(self.rates)
        return each * seen[..., None]

    def _past(self, times: Tensor, marks: Tensor, seen: Tensor) -> Tensor:
        r"""Earlier events, each weighted by :math:`e^{-\beta (t - t_i)}`, by mark: ``(R, n + 1, K, K)``.

        Just before each event, and at the horizon.
        """
        whole = torch.cat([times, torch.full_like(times[:, :1], self.horizon)], 1)
        gaps = whole.diff(dim=1, prepend=whole[:, :1])
        kept = (-self.decay * gaps[..., None, None]).exp()
        added = torch.cat([torch.zeros_like(kept[:, :1, 0]), self._counted(marks, seen)], 1)
        return linear_recursion(kept, kept * added[..., None, :])

    def _intensities(self, past: Tensor) -> Tensor:
        """``(..., K, K) -> (..., K)``."""
        return self.rates + (self.branching * self.decay * past).sum(-1)

    def _expected(self, past: Tensor, marks: Tensor, seen: Tensor) -> Tensor:
        """Expected number of events up to the horizon, given those that there were: ``(R,)``."""
        counts = self._counted(marks, seen).sum(1)
        led_to = (self.branching * (counts[:, None, :] - past[:, -1])).sum((-2, -1))
        return self.rates.sum() * self.horizon + led_to


@point_inside.register(EventTimes)
def _(support: EventTimes, event: torch.Size, like: Tensor) -> Tensor:
    return like.new_full(event, NO_EVENT)


def linear_recursion(factor: Tensor, term: Tensor) -> Tensor:
    r"""All :math:`y_t = f_t\, y_{t-1} + b_t` from :math:`y_0 = 0`, along dim 1, by halves.

    A time proportional to the length, in as many rounds as it has binary digits.

    >>> linear_recursion(torch.full((1, 5), 2.0), torch.ones(1, 5))
    tensor([[ 1.,  3.,  7., 15., 31.]])
    """
    length = term.shape[1]
    if length == 1:
        return term
    even, odd = slice(0, length // 2 * 2, 2), slice(1, None, 2)
    pairs = linear_recursion(
        factor[:, odd] * factor[:, even], factor[:, odd] * term[:, even] + term[:, odd]
    )
    before = torch.cat([torch.zeros_like(term[:, :1]), pairs], 1)[:, : (length + 1) // 2]
    at_even = factor[:, ::2] * before + term[:, ::2]
    whole = torch.stack([at_even[:, : length // 2], pairs], 2).flatten(1, 2)
    return torch.cat([whole, at_even[:, length // 2 :]], 1)
