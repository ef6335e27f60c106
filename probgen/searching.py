"""A density of a table, chosen among several families on held-out rows within a given time."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.comparing import ModelComparison, compare
from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.module import DistributionModule
from probgen.core.turns import own_random_state
from probgen.heads import Mixed
from probgen.infer.em import em
from probgen.models.autoregressive_flow import NSF
from probgen.models.autoregressive_table import AutoregressiveTable
from probgen.models.chow_liu import ChowLiu
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.tabular import Tabular
from probgen.nn import Constant
from probgen.scoring import log_likelihood
from probgen.table.kinds import Leveled
from probgen.table.schema import Table
from probgen.train.callbacks import Every
from probgen.train.fit import adam, fit

if TYPE_CHECKING:
    import pandas as pd

SHARE = 0.15  # of the rows for validation, and for the test
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
PATIENCE = 8  # looks at the validation rows without a gain, after which training stops
WARMUP = 100  # steps in which the learning rate rises

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
        Whether :func:`probgen.em` trains it, in place of :func:`probgen.fit`.

    Raises
    ------
    TypeError, ValueError
        For what cannot be called, and a rate that is not positive.

    >>> from probgen.nn import Constant
    >>> Candidate(lambda table, x: Mixed(Constant(2), table.heads()), lr=0.01).em
    False
    """

    build: Builder
    lr: float = 5e-3
    em: bool = False

    def __post_init__(self) -> None:
        checks.function("pass build(table, x)", build=self.build)
        checks.positive(lr=self.lr)
        checks.flag(em=self.em)


@dataclass(frozen=True)
class SearchResult:
    """What :func:`search` has found.

    Attributes
    ----------
    model : Tabular
        The winner: that with the highest score on the validation rows.
    best : str
        Its name.
    comparison : ModelComparison
        All models on the test rows, which had no part in training or in the choice.
    models : dict of Tabular
        All that were trained, by name.
    failures : dict of str
        Why others were not, by name.
    seconds : dict of float
        What training took, by name.
    cut_short : dict of int
        Steps of the models whose time was up before the validation rows gained nothing: with more
        of it they may come out in another order.
    rows : (int, int, int)
        Rows of training, validation and test.
    """

    model: Tabular
    best: str
    comparison: ModelComparison
    models: dict[str, Tabular]
    failures: dict[str, str]
    seconds: dict[str, float]
    cut_short: dict[str, int]
    rows: tuple[int, int, int]

    def to_frame(self) -> pd.DataFrame:
        """The leaderboard as a data frame: test rows, best first."""
        frame = self.comparison.to_frame()
        frame["seconds"] = [self.seconds[name] for name in frame.index]
        frame["chosen"] = [name == self.best for name in frame.index]
        return frame

    def __str__(self) -> str:
        train, validation, test = self.rows
        lines = [
            str(self.comparison),
            f"chosen on {validation:,} validation rows: {self.best}; scores of {test:,} test rows, "
            f"after training on {train:,} rows in {sum(self.seconds.values()):.0f} s",
            *self._shortened(),
            *(f"left out: {name}: {reason}" for name, reason in self.failures.items()),
        ]
        return "\n".join(lines)

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
    seed: int = 0,
    progress: bool | float | None = None,
) -> SearchResult:
    """Fits several families to a table and chooses among them on held-out rows.

    Rows are divided at random: 70 % train, 15 % say when a model is done and which is chosen, 15 %
    are left for the leaderboard, so that its numbers are honest for the winner as well. Every model
    gets an equal part of the time, and what earlier ones have left over; training stops where the
    validation rows gain nothing. One that fails is named, and the others go on. Ctrl-C ends the
    search with the models that are done.

    Parameters
    ----------
    frame : data frame
        The table; missing cells are allowed.
    budget : str or float
        Time of training: ``"90 s"``, ``"2 min"``, ``"1 h"``, or seconds.
    table : Table, optional
        What the columns are; default: ``Table.read(frame)``.
    candidates : mapping of str to Candidate, optional
        By name; default: :func:`portfolio`.
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
        For fewer than 20 rows, no candidates, and a budget that is no time.
    RuntimeError
        If no candidate could be trained, with the reasons.

    >>> import pandas
    >>> x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    >>> frame = pandas.DataFrame({"x": x.numpy(), "y": (x > 0).numpy()})
    >>> found = search(frame, budget="4 s", progress=False)
    >>> found.best != "independent columns", list(found.model.sample(2).columns)
    (True, ['x', 'y'])
    """
    seconds = _seconds(budget)
    checks.is_seed(seed=seed)
    checks.instance(Table, **checks.given(table=table))
    checks.instance(Mapping, **checks.given(candidates=candidates))
    schema = Table.read(frame) if table is None else table
    _warn_of_names(schema)
    parts = _divided(schema, frame, int(seed))
    plan = portfolio(schema) if candidates is None else dict(candidates)
    checks.instance(Candidate, **plan)
    if not plan:
        raise ValueError("expected one candidate at least, got none; leave candidates out")
    run = _Run()
    run.train(schema, plan, parts, seconds, int(seed), progress)
    if not run.models:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in run.failures.items())
        raise RuntimeError(
            f"expected a model that can be trained, got none ({reasons}); correct the schema with "
            "table.change, or clean the table"
        )
    took = sum(run.seconds.values())
    if took > OVERRUN * seconds:
        warnings.warn(
            f"the search took {took:.1f} s of a budget of {seconds:g} s, for {len(plan)} models are "
            "begun whatever the time is; give more of it, or fewer candidates",
            stacklevel=2,
        )
    best = max(run.chosen, key=lambda name: run.chosen[name])
    return SearchResult(
        run.models[best],
        best,
        compare(run.models, parts[2]),
        run.models,
        run.failures,
        {name: run.seconds[name] for name in run.models},
        run.cut_short,
        (len(parts[0]), len(parts[1]), len(parts[2])),
    )


class _Run:
    """The models of a search, one after the other."""

    def __init__(self) -> None:
        self.models: dict[str, Tabular] = {}
        self.failures: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.chosen: dict[str, float] = {}  # log-likelihood of the validation rows
        self.cut_short: dict[str, int] = {}

    def train(
        self,
        table: Table,
        plan: Mapping[str, Candidate],
        parts: list[Tensor],
        seconds: float,
        seed: int,
        progress: bool | float | None,
    ) -> None:
        for place, (name, candidate) in enumerate(plan.items()):
            began = time.perf_counter()
            # what others have left over, but no less than an equal part where they took too much
            left = (seconds - sum(self.seconds.values())) / (len(plan) - place)
            share = max(seconds / len(plan), left)
            try:
                model, steps = _trained(table, candidate, parts, share, seed, progress)
                self._keep(name, model, steps, log_likelihood(model, parts[1], seed=0).mean)
            except KeyboardInterrupt:
                if not self.models:
                    raise
                self.failures |= dict.fromkeys(list(plan)[place:], "interrupted")
                return
            except FAILURES as error:
                self.failures[name] = str(error).split("\n")[0]
            finally:
                self.seconds[name] = time.perf_counter() - began

    def _keep(self, name: str, model: Tabular, steps: int, score: float) -> None:
        if not math.isfinite(score):
            raise ArithmeticError(f"the log-likelihood of validation rows is {score}")
        self.models[name] = model
        self.chosen[name] = score
        if steps:
            self.cut_short[name] = steps


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


def _divided(table: Table, frame: Any, seed: int) -> list[Tensor]:
    """Rows as numbers, for training, validation and test."""
    rows = table.encode(frame)
    if len(rows) < FEWEST:
        raise ValueError(
            f"expected {FEWEST} rows at least, to be divided into training, validation and test, got "
            f"{len(rows)}; take one family and pg.fit"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    test = max(3, round(SHARE * len(rows)))
    rows = rows[order].to(torch.get_default_dtype())
    return [rows[2 * test :], rows[test : 2 * test], rows[:test]]


def _trained(
    table: Table,
    candidate: Candidate,
    parts: list[Tensor],
    seconds: float,
    seed: int,
    progress: bool | float | None,
) -> tuple[Tabular, int]:
    """A model, trained until its time is up or the validation rows gain nothing.

    With its steps in the first case, 0 in the other.
    """
    train, validation, _ = parts
    clock = _Clock(seconds)
    with own_random_state(seed):
        prepared = Tabular(table, _independent(table, train)).prepare(train)
        model = Tabular(table, candidate.build(table, prepared))
        if candidate.em:
            em(model, train, n_init=3, seed=seed)
            return model.eval(), 0
        history = fit(
            model,
            train,
            steps=10**7,
            batch_size=min(BATCH, max(1, len(train) // 4)),
            optimizer=adam(candidate.lr),
            scheduler=clock.scheduler,
            clip=10.0,
            validation=validation,
            validate_every=max(25, len(train) // BATCH),
            patience=PATIENCE,
            callbacks=[Every(5, clock)],
            compile="auto" if seconds > LONG else False,
            progress=progress,
            seed=seed,
            verdict=False,
        )
        if history.interrupted:
            raise KeyboardInterrupt
    return model.eval(), history.steps if clock.used >= 1 else 0


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
        left = math.cos(math.pi / 2 * min(self.used, 1.0)) ** 2
        return min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * left)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)


def portfolio(table: Table) -> dict[str, Candidate]:
    """The families that :func:`search` tries for a table, the simplest first.

    >>> import pandas
    >>> list(portfolio(Table.read(pandas.DataFrame({"a": [0.5, 1.5], "b": ["u", "v"]}))))
    ['independent columns', 'mixture of 5', 'mixture of 20', 'autoregressive', 'autoregressive, wide']
    """
    kinds = list(table.kinds.values())
    found = {"independent columns": Candidate(_independent, 0.05)}
    if all(isinstance(kind, Leveled) for kind in kinds):
        found["tree"] = Candidate(_tree, em=True)
    for count in (5, 20):
        found[f"mixture of {count}"] = Candidate(partial(_mixture, count=count), 0.02)
    narrow = partial(_autoregressive, hidden=[64], dropout=0.0)
    wide = partial(_autoregressive, hidden=[256, 256], dropout=0.1)
    found |= {"autoregressive": Candidate(narrow), "autoregressive, wide": Candidate(wide, 2e-3)}
    if not any(kind.whole or kind.label for kind in kinds) and all(
        type(head).__name__ == "Gaussian" for head in table.heads()
    ):
        found["Gaussian mixture"] = Candidate(_gaussians, em=True)
        found["neural spline flow"] = Candidate(lambda t, x: NSF(x.shape[1], hidden=(64,)), 2e-3)
    return found


def _independent(table: Table, x: Tensor) -> DistributionModule:
    heads = table.heads()
    return Mixed(Constant(Mixed(None, heads).width), heads)


def _tree(table: Table, x: Tensor) -> DistributionModule:
    return ChowLiu([round(kind.ends[1]) + 1 for kind in table.kinds.values()])


def _gaussians(table: Table, x: Tensor) -> DistributionModule:
    count = max(1, min(10, len(x) // 20))
    return GaussianMixture(count, x.shape[1], regularization=1e-3)


def _mixture(table: Table, x: Tensor, count: int) -> DistributionModule:
    """Each component learns the rows of a cluster first: from one start all would learn the same."""
    count = min(count, max(1, len(x) // 4))
    cluster = _clusters(table, x, count)
    made = []
    for number in range(count):
        component = _independent(table, x)
        rows = x[cluster == number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a start: of labels that its rows do not have, say
            history = fit(
                component,
                rows if len(rows) > 1 else x,
                steps=50,
                optimizer=adam(0.1),
                compile=False,
                progress=False,
                verdict=False,
            )
        if history.interrupted:
            raise KeyboardInterrupt
        made.append(component)
    return Mixture(made)


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
