"""A density of a table: families fitted within a given time, stacked by held-out rows."""

from __future__ import annotations

import copy
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.comparing import ModelComparison, compare
from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.module import DistributionModule, standard_normal
from probgen.core.turns import own_random_state
from probgen.distributions.orderings import random_orders
from probgen.heads import Bernoulli, Categorical, Gaussian, Head, Mixed, MixtureOfGaussians
from probgen.infer.em import em
from probgen.infer.stacking import selected, stacked_score, stacking_weights
from probgen.libraries import load
from probgen.models.autoregressive_flow import NSF
from probgen.models.autoregressive_table import AutoregressiveTable, ColumnFeatures
from probgen.models.chow_liu import ChowLiu
from probgen.models.corrected_tree import CorrectedTree
from probgen.models.factorized import Factorized
from probgen.models.hidden_chow_liu import HiddenChowLiu
from probgen.models.made import MADE
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.models.tabular import Tabular
from probgen.models.vae import VAE
from probgen.nn import MLP, Constant, OneHot
from probgen.parallel import Jobs, TasksInterrupted, check_jobs, is_asked, run_tasks
from probgen.scoring import log_likelihood
from probgen.table.kinds import Leveled
from probgen.table.schema import Table
from probgen.train.callbacks import Every
from probgen.train.fit import adam, fit

if TYPE_CHECKING:
    import pandas as pd

SHARE = 0.15  # of the rows for the leaderboard
FOLDS = 5  # parts of the other rows, of which one is held out
ROUNDS = 3  # of them that are held out, one after the other, where time allows it
FIRST = 0.5  # of the time for the first fold of every candidate
FIRST_OF_LABELS = 0.3  # of many rows of a matrix of labels, whose networks gain by long training
MOST = 3  # families of a stack
REFITS = 3  # of each of them to all rows, from different first parameters, where time allows it
GAIN = 0.003  # nats a row that a family must add to a stack
STACKED = "stacked"  # the name of the mixture of families on the leaderboard
FAILURES = (
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
)  # of one model, which others survive
OVERRUN = 2.0  # times the budget, beyond which a search tells that it took longer
FEWEST = 20  # rows: fewer could not be divided into three parts that say anything
LONG = 120.0  # seconds of one model from which on compiling its steps may pay
UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0}
UNITS |= {"h": 3600.0, "hour": 3600.0}
BUDGET = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]+?)s?\s*")
BATCH = 256  # rows of a training step, at most
ALMOST = 0.8  # of the time that a fit took before, without which none is begun
LITTLE = 0.25  # of the budget: what the first fit to all rows may take where nothing is left
FEW = 1000  # rows, below which dropout may pay
SOME = 5000  # rows of a matrix of labels, from which on networks learn more than simple models
MANY = 2000  # rows, from which on an autoencoder may
NORMALS = 5  # in the mixture of a number of an autoregressive table
MOST_LATENTS = 8
START = 25  # steps of each component of a mixture by itself
PATIENCE = 8  # looks at the validation rows without a gain, after which training stops
WARMUP = 100  # steps in which the learning rate rises
STARTS = 3  # of EM, where time allows it
ROUND = 5  # iterations of EM between two looks at the validation rows
ROUNDS_WITHOUT = 3  # of these without a gain, after which EM ends
WIDE = 30  # columns of labels, above which each is not predicted by a pass of its own
RIDGE = 0.3  # weight decay of logistic regressions, beside a learning rate of 0.01
MINOR = 0.1  # share of a stack, below which a fit is not trained longer
ITERATIONS = (10, 100)  # of EM, of a tree that a network corrects, at least and at most
WORK = 4e8  # and what these take together: rows times columns times pairs of states
ORDERS = 8  # of the columns, which one network learns where rows are few

Builder = Callable[[Table, Tensor], DistributionModule]


@dataclass(frozen=True)
class Candidate:
    """One entry of a portfolio: how its family is built and trained.

    Attributes
    ----------
    build : callable
        ``build(table, x)``: a family of rows as :class:`probgen.Tabular` prepares them; ``x`` are the
        training rows ``(N, D)``, NaN = missing.
    lr : float
        Learning rate of Adam, which rises at first and falls along a cosine as the time runs out.
    em : bool
        Whether :func:`probgen.em` trains it, in place of :func:`probgen.fit`: until the held-out
        rows gain nothing, too.
    weight_decay : float
        Share of the learning rate by which each step of :func:`probgen.fit` shrinks the parameters:
        a ridge penalty of logistic regressions.

    Raises
    ------
    TypeError, ValueError
        For what cannot be called, a rate that is not positive, and a weight decay below 0.

    >>> from probgen.nn import Constant
    >>> Candidate(lambda table, x: Mixed(Constant(2), table.heads()), lr=0.01).em
    False
    """

    build: Builder
    lr: float = 5e-3
    em: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        checks.function("pass build(table, x)", build=self.build)
        checks.positive(lr=self.lr)
        checks.flag(em=self.em)
        checks.not_negative(weight_decay=self.weight_decay)

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Adam, with decoupled weight decay."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


@in_short
@dataclass(frozen=True)
class SearchResult:
    """What :func:`search` has found.

    Attributes
    ----------
    model : Tabular
        The winner, trained again with the test rows where there was time for it: :attr:`refitted`.
    best : str
        Its name: ``"stacked"``, a mixture of several fits, or that of a candidate.
    comparison : ModelComparison
        All models on the test rows, which had no part in their training, in the choice or in the
        weights of the mixture.
    models : dict of Tabular
        The models that were compared, by name: one fit of each candidate, and ``"stacked"``.
    weights : dict of float
        Share of each candidate in the winner that was compared, by name.
    refitted : bool
        Whether :attr:`model` was trained again, with the test rows; :attr:`models` have never seen
        them.
    failures : dict of str
        Why other candidates have no model, by name.
    seconds : dict of float
        What training took, by name; of ``"stacked"`` the sum.
    cut_short : dict of int
        Steps of the models whose time was up before the held-out rows gained nothing: with more of
        it they may come out in another order.
    folds : int
        How many divisions of the rows the choice rests on.
    rows : (int, int, int)
        Rows of training and validation in a fold, and of the test.
    """

    model: Tabular
    best: str
    comparison: ModelComparison
    models: dict[str, Tabular]
    weights: dict[str, float]
    refitted: bool
    failures: dict[str, str]
    seconds: dict[str, float]
    cut_short: dict[str, int]
    folds: int
    rows: tuple[int, int, int]

    def to_frame(self) -> pd.DataFrame:
        """The leaderboard as a data frame: test rows, best first."""
        frame = self.comparison.to_frame()
        frame["seconds"] = [self.seconds[name] for name in frame.index]
        frame["weight"] = [self.weights.get(name, 0.0) for name in frame.index]
        frame["chosen"] = [name == self.best for name in frame.index]
        return frame

    def __str__(self) -> str:
        train, validation, test = self.rows
        spent = sum(took for name, took in self.seconds.items() if name != STACKED)
        folds = f"{self.folds} folds" if self.folds > 1 else "one fold"
        lines = [
            str(self.comparison),
            f"chosen: {self._chosen()}",
            f"by {folds} of {train:,} training and {validation:,} validation rows, in {spent:.0f} s; "
            f"scores of {test:,} test rows, which had no part in it",
            *(["the winner was then trained again, with the test rows"] if self.refitted else []),
            *self._shortened(),
            *(f"left out: {name}: {reason}" for name, reason in self.failures.items()),
        ]
        return "\n".join(lines)

    def _chosen(self) -> str:
        if len(self.weights) < 2:
            only = next(iter(self.weights))
            return only if only == self.best else f"{self.best}: several fits of {only}"
        ranked = sorted(self.weights.items(), key=lambda item: -item[1])
        return f"{self.best}: " + ", ".join(f"{100 * share:.0f} % {name}" for name, share in ranked)

    def _shortened(self) -> list[str]:
        if not self.cut_short:
            return []
        listed = ", ".join(f"{name} ({steps:,} steps)" for name, steps in self.cut_short.items())
        return [
            f"still gaining when their time was up: {listed}; a larger budget may change the order"
        ]


@explained
def search(
    frame: Any,
    *,
    budget: str | float = "2 min",
    table: Table | None = None,
    candidates: Mapping[str, Candidate] | None = None,
    stack: bool = True,
    n_jobs: Jobs = None,
    seed: int = 0,
    progress: bool | float | None = None,
) -> SearchResult:
    r"""Fits several families to a table, and makes the best of them one by held-out rows.

    1. 15 % of the rows, at random, are left for the leaderboard. They have no part in what follows,
       so that its numbers are honest for the winner as well.
    2. The others are divided into five folds. Every family is trained on four, in an equal part of
       half of the time, until the fifth gains nothing.
    3. The few families that a mixture needs to be likeliest on the held-out fold go on: they are
       trained with a second and a third fold held out where there is time for it.
    4. The winner is the mixture of their fits, :math:`\sum_k w_k p_k(x)`, whose weights are those
       under which all rows that were held out are likeliest (*stacking*). It is never much worse
       than the best of them, where a choice of one may be, and as exact as they are.
    5. The leaderboard compares it with one fit of each family. After that the families of the winner
       are trained again, on all rows for as long as the held-out rows gained, up to three times from
       different first parameters: these are ``model``. Where time was up before the held-out rows
       gained nothing, they are trained for the time that is left on all rows but those of the
       leaderboard, which end the training and give the weights of these fits beside the first ones.

    A family that fails is named, and the others go on. Ctrl-C ends the search with the models that
    are done.

    Parameters
    ----------
    frame : data frame
        The table; missing cells are allowed, and drawn: :meth:`Tabular.sample`.
    budget : str or float
        Time of training: ``"90 s"``, ``"2 min"``, ``"1 h"``, or seconds.
    table : Table, optional
        What the columns are; default: ``Table.read(frame)``.
    candidates : mapping of str to Candidate, optional
        By name; default: :func:`portfolio`.
    stack : bool
        Whether the winner may be a mixture; else it is one fit of the family that is best by the
        folds, smaller and faster to draw from.
    n_jobs : int, optional
        Candidates that are trained side by side, each in a process with one core, by joblib; -1: as
        many as there are cores. The budget is the time of all of them together, so that the search
        is over sooner. Default: one after the other, or what ``joblib.parallel_config`` says.
    seed : int
        Of the division, of first parameters and of training.
    progress : bool, float or None
        As in :func:`probgen.fit`.

    Warns
    -----
    UserWarning
        Where columns name rows (e-mails, identifiers), and where the search took far longer than its
        budget.

    Raises
    ------
    ValueError
        For fewer than 20 rows, no candidates, one that is called "stacked", and a budget that is no
        time.
    RuntimeError
        If no candidate could be trained, with the reasons.

    References
    ----------
    Smyth, Wolpert (1999), Linearly combining density estimators via stacking,
    https://doi.org/10.1023/A:1007511322260; Breiman (1996), Bagging predictors,
    https://doi.org/10.1007/BF00058655

    >>> import pandas
    >>> x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    >>> frame = pandas.DataFrame({"x": x.numpy(), "y": (x > 0).numpy()})
    >>> found = search(frame, budget="4 s", progress=False)
    >>> found.best != "independent columns", list(found.model.sample(2).columns)
    (True, ['x', 'y'])
    """
    seconds = _seconds(budget)
    checks.is_seed(seed=seed)
    checks.flag(stack=stack)
    check_jobs(n_jobs)
    checks.instance(Table, **checks.given(table=table))
    checks.instance(Mapping, **checks.given(candidates=candidates))
    schema = Table.read(frame) if table is None else table
    _warn_of_names(schema)
    pool, test = _divided(schema, frame, int(seed))
    plan = portfolio(schema) if candidates is None else dict(candidates)
    _check_plan(plan)
    load(
        "lightning_fabric", "sklearn.cluster"
    )  # before the clock runs: the first would pay for all
    run = _Run(schema, plan, pool, seconds, int(seed), progress, n_jobs)
    run.screen()
    if not run.trials:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in run.failures.items())
        raise RuntimeError(
            f"expected a model that can be trained, got none ({reasons}); correct the schema with "
            "table.change, or clean the table"
        )
    leading = run.leading(bool(stack))
    if not run.interrupted:
        run.more(leading)
    found = _result(run, leading if stack else run.winner(leading), test, bool(stack))
    if sum(run.seconds.values()) > OVERRUN * seconds:
        warnings.warn(
            f"the search took {sum(run.seconds.values()):.1f} s of a budget of {seconds:g} s, for "
            f"{len(plan)} models are begun whatever the time is; give more of it, or fewer candidates",
            stacklevel=2,
        )
    return found


def _check_plan(plan: dict[str, Candidate]) -> None:
    checks.instance(Candidate, **plan)
    if not plan:
        raise ValueError("expected one candidate at least, got none; leave candidates out")
    if STACKED in plan:
        raise ValueError(
            f"expected other names than {STACKED!r}, which is that of the mixture, got {list(plan)}; "
            "rename it"
        )


def _result(run: _Run, names: list[str], test: Tensor, stack: bool) -> SearchResult:
    """The winner of what was trained, all on the test rows, and the winner trained again."""
    trials, weights = run.stack(names)
    models = {name: own[-1].model for name, own in run.trials.items()}
    best = names[0]
    if sum(map(len, trials)) > 1:
        best = STACKED
        models[best] = _mixed(run.table, [[each.model for each in own] for own in trials], weights)
    comparison = compare(models, test)
    again, anew = run.again(names, test, stack)
    seconds = {
        name: run.seconds.get(name, sum(run.seconds[each] for each in names)) for name in models
    }
    cut_short = {name: own[-1].cut_short for name, own in run.trials.items() if own[-1].cut_short}
    held_out = len(run.fold(0)[1])
    return SearchResult(
        _mixed(run.table, again, weights if anew is None else anew) if again else models[best],
        best,
        comparison,
        models,
        dict(zip(names, weights.tolist(), strict=True)),
        bool(again),
        run.failures,
        seconds,
        cut_short,
        run.folds,
        (len(run.pool) - held_out, held_out, len(test)),
    )


class _Trial(NamedTuple):
    """One fit of a candidate, and what it took."""

    model: Tabular
    scores: Tensor  # log-likelihoods of the rows that were held out
    seconds: float
    rows: int
    steps: int  # until these gained nothing; 0: without steps
    used: float  # share of its time by then, which the learning rate follows
    cut_short: int  # steps, where the time was up before


class _Run:
    """The fits of a search, one after the other or side by side."""

    def __init__(
        self,
        table: Table,
        plan: Mapping[str, Candidate],
        pool: Tensor,
        budget: float,
        seed: int,
        progress: bool | float | None,
        n_jobs: Jobs = None,
    ):
        self.table = table
        self.plan = plan
        self.pool = pool
        self.budget = budget
        self.seed = seed
        self.progress = progress
        self.n_jobs = n_jobs
        self.trials: dict[str, list[_Trial]] = {}  # by name, those of the first fold first
        self.failures: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.interrupted = False
        self.folds = 1  # that have been held out of every leading candidate

    @property
    def left(self) -> float:
        return self.budget - sum(self.seconds.values())

    def fold(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows of training, and those that are held out."""
        held_out = torch.arange(len(self.pool)) % FOLDS == number
        return self.pool[~held_out], self.pool[held_out]

    def screen(self) -> None:
        """One fit of every candidate."""
        many = _is_matrix(self.table) and len(self.pool) >= (1 - SHARE) * SOME
        first = FIRST_OF_LABELS if many else FIRST
        time_of_all = first * self.budget
        if is_asked(self.n_jobs):
            self._screen_side_by_side(time_of_all / len(self.plan))
            return
        for place, (name, _) in enumerate(self.plan.items()):
            # what others have left over, but no less than an equal part where they took too much
            left = (time_of_all - sum(self.seconds.values())) / (len(self.plan) - place)
            share = max(time_of_all / len(self.plan), left)
            try:
                self.trials[name] = [self._trial(name, 0, share)]
            except KeyboardInterrupt:
                if not self.trials:
                    raise
                self.failures |= dict.fromkeys(list(self.plan)[place:], "interrupted")
                self.interrupted = True
                return
            except FAILURES as error:
                self.failures[name] = str(error).split("\n")[0]

    def _screen_side_by_side(self, share: float) -> None:
        tasks = [(name, 0, share) for name in self.plan]
        try:
            found = dict(enumerate(self._side_by_side(_Run._tried, tasks)))
        except TasksInterrupted as stop:
            found = {number: each for number, (each, _) in stop.done.items()}
            if not any(isinstance(each, _Trial) for each in found.values()):
                raise
            self.interrupted = True
        for number, name in enumerate(self.plan):
            trial = found.get(number, "interrupted")
            if isinstance(trial, _Trial):
                self.trials[name] = [trial]
                self.seconds[name] = trial.seconds
            else:
                self.failures[name] = trial

    def _tried(self, name: str, rows: int, share: float) -> _Trial | str:
        """A fit, or why there is none."""
        try:
            return self._trial(name, rows, share)
        except FAILURES as error:
            return str(error).split("\n")[0]

    def _side_by_side(self, method: Callable[..., Any], tasks: list[tuple]) -> list[Any]:
        """A method for each of some candidates, whose names come first in the tasks."""
        without: list[int | None] = [None] * len(tasks)  # each fit has a seed of its own
        sent = copy.copy(self)
        sent.seconds = {}
        timed = partial(_timed, sent, method)
        found = run_tasks(timed, tasks, without, n_jobs=self.n_jobs, name="candidate")
        for (name, *_), (_, took) in zip(tasks, found, strict=True):
            self.seconds[name] = self.seconds.get(name, 0.0) + took
        return [each for each, _ in found]

    def leading(self, stack: bool) -> list[str]:
        """Names of the candidates that go on, the best first."""
        scores = {name: own[0].scores for name, own in self.trials.items()}
        best = max(scores, key=lambda name: float(scores[name].mean()))
        if not stack:
            return sorted(
                (name for name in scores if _is_near(scores[name], scores[best])),
                key=lambda name: -float(scores[name].mean()),
            )[:MOST]
        exact = [name for name in scores if _is_exact(self.trials[name][0].model.family)]
        if not exact:
            return [best]
        columns = torch.stack([scores[name] for name in exact], 1)
        found = [exact[each] for each in selected(columns, MOST, GAIN)]
        together = stacked_score(torch.stack([scores[name] for name in found], 1))
        if best not in exact and not _is_near(together, scores[best]):
            return [best]
        # a simpler one that a few rows do not tell apart may be as good by other folds
        simple = [name for name in exact if _is_near(scores[name], together)][:1]
        return found + [name for name in simple if name not in found]

    def more(self, names: list[str]) -> None:
        """Fits of some candidates with other folds held out, while there is time for all of them."""
        for number in range(1, ROUNDS):
            latest = [self.trials[name][-1] for name in names]
            left = self.left - self._time_of_all_rows(names)
            if any(each.cut_short for each in latest) or left < sum(
                each.seconds for each in latest
            ):
                return
            try:
                found = self._round(names, number, [left / len(names)] * len(names))
            except (KeyboardInterrupt, *FAILURES):
                return  # what is there is a whole round for everyone
            for name, trial in zip(names, found, strict=True):
                self.trials[name].append(trial)
            self.folds = number + 1

    def _round(
        self,
        names: list[str],
        rows: int | tuple[Tensor, Tensor],
        shares: list[float],
        number: int = FOLDS,
    ) -> list[_Trial]:
        """A fit of each within its share of the time, and what those before it have left over."""
        if is_asked(self.n_jobs):
            tasks = [(name, rows, share, number) for name, share in zip(names, shares, strict=True)]
            return self._side_by_side(_Run._trial, tasks)
        found: list[_Trial] = []
        for place, name in enumerate(names):
            left = sum(shares) - sum(each.seconds for each in found)
            share = left * shares[place] / sum(shares[place:])
            found.append(self._trial(name, rows, share, number))
        return found

    def _trial(
        self, name: str, rows: int | tuple[Tensor, Tensor], share: float, number: int = FOLDS
    ) -> _Trial:
        """A fit of one candidate within a time: to the rows of a fold, or to others.

        By the random numbers of the fold, or of that number.
        """
        began = time.perf_counter()
        number = rows if isinstance(rows, int) else number
        train, held_out = self.fold(rows) if isinstance(rows, int) else rows
        try:
            model, course = _trained(
                self.table,
                self.plan[name],
                train,
                held_out,
                share,
                self.seed + 1000 * number,
                self.progress,
            )
            scores = log_likelihood(model, held_out, seed=0).value.double()
            if not math.isfinite(float(scores.mean())):
                raise ArithmeticError(
                    f"the log-likelihood of validation rows is {float(scores.mean())}"
                )
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took
        return _Trial(model, scores, took, len(train), *course)

    def winner(self, names: list[str]) -> list[str]:
        """The candidate that is best by the rows of all of its folds."""
        means = {
            name: float(torch.cat([each.scores for each in self.trials[name]]).mean())
            for name in names
        }
        best = max(names, key=lambda name: means[name])
        self.trials[best] = self.trials[best][-1:]
        return [best]

    def stack(self, names: list[str]) -> tuple[list[list[_Trial]], Tensor]:
        """Their fits, and the weights of the candidates."""
        own = [self.trials[name] for name in names]
        scores = [torch.cat([each.scores for each in trials]) for trials in own]
        return own, stacking_weights(torch.stack(scores, 1))

    def _time_of_all_rows(self, names: Sequence[str]) -> float:
        """What it takes to train them once more, on all rows."""
        whole = 1 / ((1 - SHARE) * (1 - 1 / FOLDS))
        latest = [self.trials[name][-1] for name in names]
        return sum(whole * each.seconds * (each.used if each.steps else 1.0) for each in latest)

    def again(
        self, names: list[str], test: Tensor, stack: bool
    ) -> tuple[list[list[Tabular]], Tensor | None]:
        """More fits of each with the test rows, and other weights; none where there is no time."""
        latest = [self.trials[name][-1] for name in names]
        if self.interrupted:
            return [], None
        if any(each.cut_short for each in latest):
            return self._longer(names, test, stack)
        found: dict[str, list[Tabular]] = {name: [] for name in names}
        rows = torch.cat([self.pool, test])
        for number in range(REFITS if stack else 1):
            # EM has had several starts: another run says the same
            others = [name for name in names if not number or not self.plan[name].em]
            takes = self._time_of_all_rows(others)
            late = self.left < ALMOST * takes and (number or takes > LITTLE * self.budget)
            if not others or late:
                break
            seed = self.seed + 1000 * (FOLDS + number)
            try:
                more = self._all_repeated(others, rows, seed)
            except (KeyboardInterrupt, *FAILURES):
                break
            for name, model in more.items():
                found[name].append(model)
        return list(found.values()) if all(found.values()) else [], None

    def _all_repeated(self, names: list[str], rows: Tensor, seed: int) -> dict[str, Tabular]:
        if is_asked(self.n_jobs):
            tasks = [(name, rows, seed) for name in names]
            return dict(zip(names, self._side_by_side(_Run._repeated, tasks), strict=True))
        return {name: self._repeated(name, rows, seed) for name in names}

    def _longer(
        self, names: list[str], test: Tensor, stack: bool
    ) -> tuple[list[list[Tabular]], Tensor | None]:
        """Fits in all the time that is left, beside the last ones of a fold.

        Of those whose time was up, each in proportion to its part in the stack; of a stack again,
        from other first parameters, where they end before their time. None of them was trained on
        the test rows, which end the training and give the weights.
        """
        parts_of = dict(zip(names, self.stack(names)[1].tolist(), strict=True))
        cut = [name for name in names if self.trials[name][-1].cut_short]
        most = max(parts_of[name] for name in cut)
        longer = [name for name in cut if parts_of[name] >= MINOR * most]
        found = self._fits(
            longer, [parts_of[name] for name in longer], test, REFITS if stack else 1
        )
        if not found:
            return [], None
        before = [self.trials[name][-1].model for name in names]
        scores = [each.scores for each in found]
        scores += [log_likelihood(model, test, seed=0).value.double() for model in before]
        columns = torch.stack(scores, 1)
        parts = [[each.model] for each in found] + [[model] for model in before]
        if not stack:
            best = int(columns.mean(0).argmax())
            return parts[best : best + 1], None
        return parts, stacking_weights(columns)

    def _fits(self, names: list[str], parts: list[float], test: Tensor, most: int) -> list[_Trial]:
        """Rounds of fits that the test rows end, while there is time; those of whole rounds."""
        found: list[_Trial] = []
        latest = [self.trials[name][-1] for name in names]
        for number in range(most):
            left = self.left
            if left < ALMOST * sum(each.seconds for each in latest):
                break
            shares = [left * part / sum(parts) for part in parts]
            try:
                latest = self._round(names, (self.pool, test), shares, FOLDS + number)
            except (KeyboardInterrupt, *FAILURES):
                break
            found += latest
        return found

    def _repeated(self, name: str, rows: Tensor, seed: int) -> Tabular:
        """A fit to all rows, as many times as the last fit went through its own until it was best."""
        began = time.perf_counter()
        trial = self.trials[name][-1]
        candidate = self.plan[name]
        batch = _batch(trial.rows)
        steps = max(1, round(trial.steps * len(rows) / trial.rows))

        def rate(step: int) -> float:
            return _rate(step, trial.used * step / steps)

        try:
            with own_random_state(seed):
                model = _built(self.table, candidate, rows)
                if candidate.em:
                    _by_em(model, rows, None, _Clock(trial.seconds), seed, trial.steps)
                    return model.eval()
                history = fit(
                    model,
                    rows,
                    steps=steps,
                    scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate),
                    **_usual(candidate, batch, trial.seconds, seed, self.progress),
                )
        finally:
            self.seconds[name] += time.perf_counter() - began
        if history.interrupted:
            raise KeyboardInterrupt
        return model.eval()


def _timed(
    run: _Run, method: Callable[..., Any], advance: Any, name: str, *rest: Any
) -> tuple[Any, float]:
    """What a method of a search makes, in whichever process, and what the fit took."""
    before = run.seconds.get(name, 0.0)
    found = method(run, name, *rest)
    return found, run.seconds.get(name, 0.0) - before


def _is_near(scores: Tensor, best: Tensor) -> bool:
    """Whether one is not told apart from the best, row by row."""
    gain = best - scores
    return bool(gain.mean() <= gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else True


def _is_exact(family: DistributionModule) -> bool:
    """Whether a mixture with it can be scored, and filled in, without an estimate."""
    with torch.no_grad():
        return density_kind(family()) == "exact"


def _mixed(table: Table, parts: list[list[Tabular]], weights: Tensor) -> Tabular:
    """One model of several fits of several candidates, whose weights those of a candidate share."""
    families = [model.family for own in parts for model in own]
    if len(families) == 1:
        return parts[0][0]
    each = [weight / len(own) for own, weight in zip(parts, weights, strict=True) for _ in own]
    logits = torch.stack(each).log().to(torch.get_default_dtype())
    return Tabular(table, Mixture(families, Constant(len(families), initial=logits))).eval()


def _seconds(budget: Any) -> float:
    """Seconds of "2 min", or of a number."""
    if not isinstance(budget, str):
        checks.positive(budget=budget)
        return float(budget)
    found = BUDGET.fullmatch(budget.lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise ValueError(
            f"expected a time as budget, got {budget!r}; give '90 s', '2 min', '1 h', or seconds"
        )
    return float(found[1]) * UNITS[found[2]]


def _warn_of_names(table: Table) -> None:
    """Labels that nearly all differ teach a model nothing, and come out of its draws as they are."""
    names = [field.name for field in table.fields if field.looks_like_names and field.kind.label]
    if names:
        warnings.warn(
            f"nearly all rows have a label of their own in {names}: draws will repeat those of real "
            f"rows; leave them out: frame.drop(columns={names})",
            stacklevel=3,
        )


def _divided(table: Table, frame: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Rows as numbers: those for training and choosing, and those for the leaderboard."""
    rows = table.encode(frame)
    if len(rows) < FEWEST:
        raise ValueError(
            f"expected {FEWEST} rows at least, to be divided into training, validation and test, got "
            f"{len(rows)}; take one family and pg.fit"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    test = max(3, round(SHARE * len(rows)))
    rows = rows[order].to(torch.get_default_dtype())
    return rows[test:], rows[:test]


def _batch(count: int) -> int:
    """Rows of a step, of so many."""
    return min(BATCH, max(1, count // 4))


def _built(table: Table, candidate: Candidate, rows: Tensor) -> Tabular:
    prepared = Tabular(table, _independent(table, rows)).prepare(rows)
    return Tabular(table, candidate.build(table, prepared))


def _trained(
    table: Table,
    candidate: Candidate,
    train: Tensor,
    validation: Tensor,
    seconds: float,
    seed: int,
    progress: bool | float | None,
) -> tuple[Tabular, tuple[int, float, int]]:
    """A model, trained until its time is up or the validation rows gain nothing.

    With the steps of the best state, the share of the time until then, and all steps where the time
    was up, else 0.
    """
    clock = _Clock(seconds)
    with own_random_state(seed):
        model = _built(table, candidate, train)
        if candidate.em:
            course = _by_em(model, train, validation, clock, seed)
            return model.eval(), course
        history = fit(
            model,
            train,
            steps=10**7,
            scheduler=clock.scheduler,
            validation=validation,
            validate_every=max(25, len(train) // BATCH),
            patience=PATIENCE,
            callbacks=[Every(5, clock)],
            **_usual(candidate, _batch(len(train)), seconds, seed, progress),
        )
        if history.interrupted:
            raise KeyboardInterrupt
    best = min(history.validation, key=lambda each: each[1])[0] if history.validation else 0
    steps = max(1, best or history.steps)
    used = clock.used * steps / max(1, history.steps)
    return model.eval(), (steps, min(1.0, used), history.steps if clock.used >= 1 else 0)


def _usual(
    candidate: Candidate, batch: int, seconds: float, seed: int, progress: bool | float | None
) -> dict[str, Any]:
    """What all fits share."""
    return {
        "batch_size": batch,
        "optimizer": candidate.optimizer,
        "clip": 10.0,
        "compile": "auto" if seconds > LONG else False,
        "progress": progress,
        "seed": seed,
        "verdict": False,
    }


class _RunOfEM(NamedTuple):
    """One start of EM: the best of what it passes through."""

    value: float
    steps: int
    state: dict[str, Any]
    cut_short: int  # steps, where the time was up before
    closed: bool  # whether the start was the answer


def _by_em(
    model: Tabular,
    train: Tensor,
    validation: Tensor | None,
    clock: _Clock,
    seed: int,
    most: int | None = None,
) -> tuple[int, float, int]:
    """EM from several starts, of which the best is kept, each until validation rows gain nothing.

    Without these each takes ``most`` iterations, and the training rows choose. The iterations of the
    best, the share of the time that another fit takes, and the iterations where the time was up.
    """
    runs: list[_RunOfEM] = []
    collapse: torch.linalg.LinAlgError | None = None
    for start in range(STARTS):
        began = clock.used
        try:
            runs.append(_em_once(model, train, validation, clock, seed + start, most))
        except torch.linalg.LinAlgError as error:
            collapse = error
        if (runs and runs[-1].closed) or 2 * clock.used - began > 1:
            break  # another start says the same, or takes too long
    if not runs:
        assert collapse is not None
        raise collapse
    best = max(runs, key=lambda run: run.value)
    model.load_state_dict(best.state)
    return best.steps, 1.0, runs[0].cut_short


def _em_once(
    model: Tabular,
    train: Tensor,
    validation: Tensor | None,
    clock: _Clock,
    seed: int,
    most: int | None,
) -> _RunOfEM:
    best: _RunOfEM | None = None
    steps = 0
    while True:
        length = min(ROUND if steps else 1, math.inf if most is None else most - steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "EM stopped after", RuntimeWarning)
            found = em(
                model, train, max_iter=int(length), n_init=int(not steps), seed=seed, progress=False
            )
        closed = not steps and found.n_iter <= 1
        steps += found.n_iter
        value = float(found.log_likelihood[-1])
        if validation is not None:
            value = log_likelihood(model, validation, seed=0).mean
        if best is None or value > best.value or most is not None:
            best = _RunOfEM(value, steps, copy.deepcopy(model.state_dict()), 0, closed)
        gains = steps - best.steps < ROUNDS_WITHOUT * ROUND
        if found.converged or not gains or steps == most:
            return best
        if most is None and clock.used >= 1:
            return best._replace(cut_short=steps)


class _Clock:
    """Ends training when the time is up, and lets the learning rate fall until then."""

    def __init__(self, seconds: float):
        self.seconds = max(seconds, 1e-3)
        self.began = time.perf_counter()

    def __call__(self, run: Any) -> None:
        if self.used >= 1:
            run.stop = f"{self.seconds:.0f} s are up"

    @property
    def used(self) -> float:
        return (time.perf_counter() - self.began) / self.seconds

    def rate(self, step: int) -> float:
        return _rate(step, self.used)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)


def _rate(step: int, used: float) -> float:
    """What the learning rate is multiplied by: it rises at first, and falls as time is used up."""
    left = math.cos(math.pi / 2 * min(used, 1.0)) ** 2
    return min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * left)


def portfolio(table: Table) -> dict[str, Candidate]:
    """The families that :func:`search` tries for a table, the simplest first.

    A Gaussian mixture and a neural spline flow where all columns are real numbers; autoregressive
    tables whose numbers follow mixtures where there are some; with few rows one that is regularized
    by dropout, with many a variational autoencoder.

    Where all columns are labels: a tree, trees of hidden states, mixtures of trees where no cells are
    missing. If these labels are many, complete, and of the same number of levels (a matrix of zeros
    and ones), a hidden tree that a network corrects, masked autoencoders, with much dropout where rows
    are few, and there logistic regressions with a ridge penalty, in place of autoregressive tables.

    >>> import pandas
    >>> list(portfolio(Table.read(pandas.DataFrame({"a": [0.5, 1.5], "b": ["u", "v"]}))))[:3]
    ['independent columns', 'mixture of 5', 'mixture of 20']
    """
    kinds = list(table.kinds.values())
    rows = table.fields[0].facts.rows
    normal = [type(head) is Gaussian for head in table.heads()]
    found = {"independent columns": _independent_columns(table)}
    if _all_labels(table):
        found |= _trees(table)
    for count in _counts(table):
        found[f"mixture of {count}"] = Candidate(partial(_mixture, count=count), 0.02)
    if _is_matrix(table):
        found |= _masked(table)
    elif not _is_wide(table):
        found |= _tables(rows)
    if any(normal):
        found["autoregressive, mixtures"] = Candidate(_autoregressive_mixtures, 3e-3)
    if rows >= MANY and not _is_wide(table):
        found["variational autoencoder"] = Candidate(_autoencoder, 2e-3)
    if not any(kind.whole or kind.label for kind in kinds) and all(normal):
        found["Gaussian mixture"] = Candidate(_gaussians, em=True)
        found["neural spline flow"] = Candidate(lambda t, x: NSF(x.shape[1], hidden=(64,)), 2e-3)
    return found


def _counts(table: Table) -> tuple[int, ...]:
    """Of components of mixtures of independent columns."""
    if _is_matrix(table):  # others do better, and steps of many columns take long
        return (5,) if table.fields[0].facts.rows < SOME else (20,)
    return (5, 20)


def _tables(rows: int) -> dict[str, Candidate]:
    """Autoregressive tables."""
    narrow = partial(_autoregressive, hidden=[64], dropout=0.0)
    wide = partial(_autoregressive, hidden=[256, 256], dropout=0.1)
    found = {"autoregressive": Candidate(narrow), "autoregressive, wide": Candidate(wide, 2e-3)}
    if rows < FEW:
        dropping = partial(_autoregressive, hidden=[128], dropout=0.4)
        found["autoregressive, dropout"] = Candidate(dropping)
    return found


def _trees(table: Table) -> dict[str, Candidate]:
    """Trees of labels, and of states above them."""
    found = {"tree": Candidate(_tree, em=True)}
    many = _is_matrix(table) and table.fields[0].facts.rows >= SOME
    for states in (4,) if many else (4, 16):
        hidden = partial(_hidden_tree, states=states)
        found[f"hidden tree of {states}"] = Candidate(hidden, em=True)
    if not _has_gaps(table) and len(table.fields) < WIDE:  # each step finds all trees anew
        found["mixture of trees"] = Candidate(_mixture_of_trees, em=True)
    return found


def _masked(table: Table) -> dict[str, Candidate]:
    """Autoregressive models of a matrix of labels, whose factors are all made in one pass."""
    rows = table.fields[0].facts.rows
    found = {}
    if rows < SOME:
        linear = partial(_made, hidden=[], dropout=0.0, orders=1)
        found["logistic regressions"] = Candidate(linear, 0.01, weight_decay=RIDGE)
    narrow = partial(_corrected_tree, hidden=[256], dropout=0.5)
    found["corrected hidden tree"] = Candidate(narrow, 5e-3, weight_decay=0.05)
    if rows >= SOME:
        large = partial(_corrected_tree, hidden=[1000], dropout=0.2)
        found["corrected hidden tree, wide"] = Candidate(large, 2e-3, weight_decay=0.05)
    dropping = partial(_made, hidden=[256], dropout=0.5, orders=ORDERS)
    found["masked autoencoder, dropout"] = Candidate(dropping, 5e-3, weight_decay=0.05)
    if rows >= FEW:
        wide = partial(_made, hidden=[1000], dropout=0.2, orders=1)
        found["masked autoencoder"] = Candidate(wide, 2e-3, weight_decay=0.05)
    return found


def _levels(table: Table) -> list[int]:
    return [round(kind.ends[1]) + 1 for kind in table.kinds.values()]


def _same_levels(table: Table) -> int:
    """How many levels each of the columns has, 0 where these differ or some are no labels."""
    if not _all_labels(table):
        return 0
    levels = set(_levels(table))
    return levels.pop() if len(levels) == 1 else 0


def _is_matrix(table: Table) -> bool:
    """Whether columns are many labels of as many levels each, and no cell is missing."""
    return _same_levels(table) > 1 and _is_wide(table) and not _has_gaps(table)


def _is_wide(table: Table) -> bool:
    """Whether columns are too many labels for a pass of a network each."""
    return _all_labels(table) and len(table.fields) > WIDE


def _all_labels(table: Table) -> bool:
    return all(isinstance(kind, Leveled) for kind in table.kinds.values())


def _has_gaps(table: Table) -> bool:
    return any(field.facts.missing for field in table.fields)


def _independent_columns(table: Table) -> Candidate:
    """In closed form where it has one."""
    if _all_labels(table):
        return Candidate(_independent_labels, em=True)
    return Candidate(_independent, 0.05)


def _independent_labels(table: Table, x: Tensor) -> DistributionModule:
    """With Laplace's rule."""
    if levels := _same_levels(table):
        return Factorized(x.shape[1], levels, smoothing=1.0)
    return HiddenChowLiu(1, _levels(table), smoothing=1.0)


def _hidden_tree(table: Table, x: Tensor, states: int) -> DistributionModule:
    return HiddenChowLiu(states, _levels(table))


def _corrected_tree(
    table: Table, x: Tensor, hidden: list[int], dropout: float
) -> DistributionModule:
    """The tree is fitted here, and held: training corrects it."""
    states = 4
    work = len(x) * x.shape[1] * states**2
    iterations = max(ITERATIONS[0], min(ITERATIONS[1], round(WORK / work)))
    tree = HiddenChowLiu(states, _levels(table))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EM stopped after", RuntimeWarning)
        seed = int(torch.randint(2**31, ()))
        em(tree, x, max_iter=iterations, seed=seed, progress=False)
    return CorrectedTree(tree.requires_grad_(False), hidden, dropout=dropout, seed=seed)


def _mixture_of_trees(table: Table, x: Tensor) -> DistributionModule:
    count = max(1, min(10, len(x) // 50))
    return MixtureOfTrees(count, tuple(_levels(table)), smoothing=0.5)


def _made(
    table: Table, x: Tensor, hidden: list[int], dropout: float, orders: int
) -> DistributionModule:
    """Training starts at independent columns, so that it ends near them where rows tell no more."""
    levels = _same_levels(table)
    two = levels == 2
    made = MADE(
        x.shape[1],
        hidden,
        Bernoulli() if two else Categorical(levels=levels),
        orders=random_orders(orders, x.shape[1], int(torch.randint(2**31, ()))),
        encode=None if two else OneHot(levels),
        dropout=dropout,
    )
    shares = (torch.nn.functional.one_hot(x.long(), levels).sum(0) + 1.0).log()  # (D, levels)
    with torch.no_grad():
        for layer in (made.net.last, made.net.direct):
            if layer is not None:
                layer.weight.zero_()
                layer.bias.zero_()
        made.net.last.bias.copy_(shares[:, 1] - shares[:, 0] if two else shares.flatten())
    return made


def _independent(table: Table, x: Tensor) -> DistributionModule:
    heads = table.heads()
    return Mixed(Constant(Mixed(None, heads).width), heads)


def _tree(table: Table, x: Tensor) -> DistributionModule:
    return ChowLiu(_levels(table))


def _gaussians(table: Table, x: Tensor) -> DistributionModule:
    count = max(1, min(10, len(x) // 20))
    return GaussianMixture(count, x.shape[1], regularization=1e-3)


def _mixture(table: Table, x: Tensor, count: int) -> DistributionModule:
    """Each component learns the rows of a cluster first: from one start all would learn the same."""
    count = min(count, max(1, len(x) // 4))
    cluster = _clusters(table, x, count)
    made = []
    for number in range(count):
        rows = x[cluster == number]
        rows = rows if len(rows) > 1 else x
        if _all_labels(table):
            component = _independent_labels(table, x)
            em(component, rows, progress=False)
        else:
            component = _independent(table, x)
            _begin(component, rows)
        made.append(component)
    return Mixture(made)


def _begin(component: DistributionModule, rows: Tensor) -> None:
    """A few steps, from which the mixture goes on; a fit each would cost more than all that follows."""
    optimizer = adam(0.2)(component.parameters())
    for _ in range(START):
        optimizer.zero_grad()
        (-component().log_prob(rows).mean()).backward()
        optimizer.step()


def _clusters(table: Table, x: Tensor, count: int) -> Tensor:
    """Clusters ``(N,)`` by k-means of standardized numbers and indicators of labels."""
    from sklearn.cluster import KMeans

    columns = []
    for column, kind in zip(x.T, table.kinds.values(), strict=True):
        known = column.isnan().logical_not()
        if kind.label:
            levels = column[known].unique()
            columns.append((column[:, None] == levels).double())
        else:
            seen = column[known].double()
            scale = seen.std().nan_to_num(0.0).clamp(min=1e-6) if len(seen) else 1.0
            centered = (column.double() - (seen.mean() if len(seen) else 0.0)) / scale
            columns.append(torch.where(known, centered, 0.0)[:, None])
    state = int(torch.randint(2**31, ()))
    found = KMeans(count, n_init=1, random_state=state).fit(torch.cat(columns, 1).numpy())
    return torch.as_tensor(found.labels_)


def _autoregressive(
    table: Table, x: Tensor, hidden: list[int], dropout: float
) -> DistributionModule:
    return AutoregressiveTable.fitted(table.heads(), hidden, x, dropout=dropout)


def _autoregressive_mixtures(table: Table, x: Tensor) -> DistributionModule:
    """Whose numbers are mixtures given the columns before, not normal."""
    heads = table.heads()
    richer: dict[Head, Head] = {
        head: MixtureOfGaussians(components=NORMALS) for head in heads if type(head) is Gaussian
    }
    own = [richer.get(head, head) for head in heads]
    return AutoregressiveTable.fitted(own, [128, 128], x, dropout=0.1)


def _autoencoder(table: Table, x: Tensor) -> Any:
    heads = table.heads()
    latents = max(2, min(MOST_LATENTS, len(heads)))
    decoder = Mixed(MLP(latents, [128, 128], Mixed(None, heads).width), heads)
    seen = ColumnFeatures.fitted(heads, x)
    net = nn.Sequential(seen, MLP(seen.width, [128, 128], 2 * latents))
    return VAE(standard_normal(latents), decoder, Gaussian(net))
