"""Classification by Bayes' rule over generative models, with a reject option."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import arguments_became
from probgen.core.contexts import size_of
from probgen.core.conversion import rows_from
from probgen.core.described import described
from probgen.core.keywords import explained
from probgen.core.kinds import worst
from probgen.core.missing import has_missing
from probgen.core.modes import infers
from probgen.core.score import Score
from probgen.core.seeds import Seed
from probgen.decisions.anomalies import lacking_cells
from probgen.decisions.class_posterior import (
    ClassPosterior,
    Decision,
    check_class_labels,
    decided,
    indices_of,
    label_of,
    labels_in,
)
from probgen.decisions.conformal import conformal_p_values
from probgen.decisions.risk_coverage import RiskCoverage
from probgen.decisions.temperature import COLDEST, HOTTEST, TemperatureScaling, temperature_scaling
from probgen.distributions.energy.labeled import LabeledEnergy
from probgen.infer.em import SupportsEM, em
from probgen.scoring import log_likelihood
from probgen.train.fit import fit

Labels = Sequence[Any] | Mapping[Any, Any]


@runtime_checkable
class Solvable(Protocol):
    """A family whose likelihood has a maximum in closed form."""

    def solve(self, x: Tensor) -> Any:
        """Sets the parameters to it, in place: ``(N, *event)``, complete."""


@described
class GenerativeClassifier(nn.Module):
    r"""A classifier that is Bayes' rule over densities of the classes.

    .. math:: p(c \mid x) = \frac{p(c)\, p(x \mid c)}{\sum_k p(k)\, p(x \mid k)}

    The densities are those of one family for each class, or of one conditional family given a
    context for each. Missing features (NaN) are integrated out by families that do so, and refused
    by the others. What the row is worth altogether, :math:`p(x)`, tells whether it belongs to any
    class at all: a classifier that was trained on labels alone cannot say so.

    Log-probabilities are of kind *exact* where the densities of all classes are; a difference of
    bounds or estimates is *approximate*.

    Parameters
    ----------
    models : mapping of label to GenerativeModel, or GenerativeModel
        A family for each class, all of the same rows, masses or densities alike; or a conditional
        one. A model of rows and labels (:class:`~probgen.SemiSupervisedVAE`,
        :class:`~probgen.JointEnergyModel`) brings its own priors along.
    labels : sequence of labels, or mapping of label to context, optional
        Of a conditional family: with a mapping its context for each label, without one the one-hot
        vector (or number) of the label's place.
    priors : mapping of label to float, optional
        Probabilities of the classes up to a factor, as they are where the classifier is used;
        default: all equal, and after :meth:`fit` the shares of the training rows.
    temperature : float
        T of :math:`p_T(c \mid x) \propto p(c)\, p(x \mid c)^{1/T}`, which :meth:`calibrate` sets.
    usual : Tensor, optional
        ``(M,)``: :math:`\log p(x)` of held-out rows of known classes, which :meth:`calibrate` sets;
        rows to be rejected as outliers are compared with them.

    Raises
    ------
    ValueError
        For fewer than two classes, priors of other labels, contexts that the family does not take.

    References
    ----------
    Ng, Jordan (2001), On discriminative vs. generative classifiers: a comparison of logistic
    regression and naive Bayes, https://papers.nips.cc/paper/2020-on-discriminative-vs-generative;
    Chow (1970), On optimum recognition error and reject tradeoff,
    https://doi.org/10.1109/TIT.1970.1054406

    >>> from probgen.models.factor_analysis import PPCA
    >>> x = torch.randn(300, 3) + 4.0 * (torch.arange(300) % 2)[:, None]
    >>> y = ["low", "high"] * 150
    >>> clf = GenerativeClassifier({"low": PPCA(3, factors=1), "high": PPCA(3, factors=1)}).fit(x, y)
    >>> clf.predict(torch.tensor([[0.0, 0.0, 0.0], [4.0, torch.nan, 4.0]])).tolist()
    ['low', 'high']
    >>> clf.log_posterior(x).kind
    'exact'
    """

    log_prior: Tensor
    temperature: Tensor
    contexts: Tensor | None
    usual: Tensor | None

    def __init__(
        self,
        models: Mapping[Any, nn.Module] | nn.Module,
        labels: Labels | None = None,
        *,
        priors: Mapping[Any, float] | None = None,
        temperature: float = 1.0,
        usual: Tensor | None = None,
    ):
        checks.mapping(**checks.given(priors=priors))
        checks.positive(temperature=temperature)
        super().__init__()
        self.labels, parts, contexts = _parts(models, labels)
        check_class_labels(self.labels)
        if len(self.labels) < 2:
            raise ValueError(
                f"expected two classes or more, got {list(self.labels)}; to tell usual rows from "
                "others take pg.AnomalyDetector"
            )
        self.models = nn.ModuleList(parts)
        self.learns_priors = priors is None
        self.register_buffer("contexts", contexts)
        self.register_buffer("log_prior", _log_prior(priors, self.labels))
        self.register_buffer("temperature", torch.tensor(float(temperature), dtype=torch.float64))
        self.register_buffer("usual", None if usual is None else _one_for_each_row(usual))

    @property
    def conditional(self) -> bool:
        """Whether one family is given a context for each class."""
        return self.contexts is not None

    @explained
    def fit(
        self,
        x: Any,
        y: Any,
        how: Callable[..., Any] | None = None,
        **options: Any,
    ) -> GenerativeClassifier:
        """Fits each class to its own rows, and the priors to the shares of the classes.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, *event)``, NaN = missing where the families take it. A frame where they are
            :class:`~probgen.Tabular`.
        y : sequence of labels
            ``(N,)``.
        how : callable, optional
            ``how(model, rows, **options)``, in place of ``model.solve`` for families that have a
            closed form, :func:`probgen.em` for those that have one of its steps, and
            :func:`probgen.fit` for the others; a conditional family is fitted to ``(rows,
            contexts)``.
        **options
            Of that function, the same for every class.

        Returns
        -------
        GenerativeClassifier
            Itself.

        Raises
        ------
        ValueError
            For other numbers of rows and labels, unknown labels, and classes without rows.
        """
        checks.function(**checks.given(how=how))
        rows = self._rows(x)
        index = self._index(y, len(rows))
        counts = index.bincount(minlength=len(self.labels))
        if (empty := (counts == 0).nonzero().flatten().tolist()) != []:
            raise ValueError(
                f"expected rows of every class, got none of {self.labels[empty[0]]!r}; give some, "
                "or leave its model out"
            )
        if self.contexts is not None:
            model: Any = self.models[0]
            (how or fit)(model, (rows, self.contexts.to(rows.device)[index]), **options)
        else:
            for number, model in enumerate(self.models):
                own = rows[index == number]
                self._named(how or _fitting(model, own), number, model, own, options=options)
        if self.learns_priors and not self.states_joint:
            self.log_prior.copy_((counts.double() / counts.sum()).log())
        self.temperature.fill_(1.0)
        self.usual = None  # those of the models as they were
        arguments_became(self, usual=None)
        return self

    @explained
    @infers
    @torch.no_grad()
    def log_posterior(
        self,
        x: Any,
        *,
        particles: int = 64,
        memory: float | None = None,
        seed: Seed = 0,
    ) -> ClassPosterior:
        """Log-probabilities of the classes, ``(N, C)``, with their kind.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, *event)``, NaN = missing.
        particles, memory, seed
            As in :func:`probgen.log_likelihood`; the same draws for all classes.

        Raises
        ------
        ValueError
            For rows that the families do not take.
        TypeError
            For densities that do not compare: masses beside densities, and those of other unknown
            constants.
        NotImplementedError
            From an implicit family.
        """
        scores = self.scores(x, particles=particles, memory=memory, seed=seed)
        heat = self.temperature
        likelihood = _stacked(scores)
        impossible = likelihood.isneginf().all(-1, keepdim=True)
        value = (likelihood / heat + self.log_prior).log_softmax(-1)
        value = torch.where(impossible, torch.nan, value)
        density = (likelihood + self.log_prior).logsumexp(-1)
        kind = worst(*(score.kind for score in scores))
        first = scores[0]
        return ClassPosterior(
            value,
            "exact" if kind == "exact" or self._one_constant else "approximate",
            self.labels,
            Score(
                density,
                "approximate" if kind == "bound" else kind,
                first.unit,
                first.particles,
                first.measure,
            ),
        )

    @explained
    @infers
    @torch.no_grad()
    def scores(
        self, x: Any, *, particles: int = 64, memory: float | None = None, seed: Seed = 0
    ) -> list[Score]:
        r"""The score :math:`\log p(x \mid c)` of rows under each class.

        Of :math:`p(x, c)` where the model is one of rows and labels.
        """
        rows = self._rows(x)
        how: dict[str, Any] = {"particles": particles, "memory": memory, "seed": seed}
        scores = []
        for number, label in enumerate(self.labels):
            model = self.models[0 if self.conditional else number]
            given = self._given(number, rows)
            scores.append(self._named(log_likelihood, number, model, *given, options=how))
            self._check_constant(scores[-1], label)
            scores[0].difference(scores[-1])  # refuses what does not compare
        return scores

    def predict(
        self,
        x: Any,
        *,
        reject: float | None = None,
        outliers: float | None = None,
        particles: int = 64,
        memory: float | None = None,
        seed: Seed = 0,
    ) -> np.ndarray:
        """The most probable label of each row, ``(N,)``; ``None`` where the row is rejected.

        As :meth:`decide`, which says why.
        """
        how: dict[str, Any] = {"particles": particles, "memory": memory, "seed": seed}
        if reject is None and outliers is None:
            return self.log_posterior(x, **how).predict()
        return self.decide(x, reject=reject, outliers=outliers, **how).labels

    @explained
    def decide(
        self,
        x: Any,
        *,
        reject: float | None = None,
        outliers: float | None = None,
        particles: int = 64,
        memory: float | None = None,
        seed: Seed = 0,
    ) -> Decision:
        """Answers where they are worth it.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, *event)``, NaN = missing.
        reject : float, optional
            What it costs to give no answer, where a wrong one costs 1: rows whose probability of an
            error is larger are in doubt (Chow's rule, the best one if probabilities are right).
        outliers : float, optional
            Share of the rows of known classes that may be rejected as like no class: those whose
            density is lower than that of so many of the complete rows of :meth:`calibrate`.
        particles, memory, seed
            As in :meth:`log_posterior`.

        Raises
        ------
        ValueError
            With ``outliers``, before :meth:`calibrate` has seen complete rows, or so few that none
            could be rejected; and for rows with missing cells, whose densities are those of fewer
            features and do not compare.
        """
        checks.within("(0, 1)", **checks.given(reject=reject, outliers=outliers))
        found = self.log_posterior(x, particles=particles, memory=memory, seed=seed)
        none = torch.zeros_like(found.confidence, dtype=torch.bool)
        doubtful = none if reject is None else 1 - found.confidence > reject
        outlying = none
        if outliers is not None:
            known = self._usual(outliers)
            self._check_complete(x)
            outlying = conformal_p_values(found.density.value.double(), known) <= outliers
        return decided(found, doubtful, outlying)

    @explained
    def calibrate(
        self,
        x: Any,
        y: Any,
        *,
        particles: int = 64,
        memory: float | None = None,
        seed: Seed = 0,
    ) -> TemperatureScaling:
        r"""Sets the temperature by held-out rows, and keeps their densities to tell outliers.

        .. math:: p_T(c \mid x) \propto p(c)\, p(x \mid c)^{1 / T}

        with the T of the smallest log loss. Densities of many features that are not quite right
        add their errors up: the classifier is right less often than it says. Answers stay as they
        are where priors are equal.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, *event)``, none of them used in :meth:`fit`.
        y : sequence of labels
            ``(N,)``.
        particles, memory, seed
            As in :meth:`log_posterior`, and best the same.

        Warns
        -----
        UserWarning
            If the loss falls all the way to temperature 0 (no error among the rows) or infinity.

        References
        ----------
        Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks,
        https://arxiv.org/abs/1706.04599
        """
        rows = self._rows(x)
        truth = self._index(y, len(rows))
        found = _stacked(self.scores(rows, particles=particles, memory=memory, seed=seed))
        truth = truth.to(found.device)
        possible = found.gather(1, truth[:, None])[:, 0] > -torch.inf
        if not possible.any():
            raise ValueError(
                "expected held-out rows that are possible under the models of their classes, got "
                "none; fit the models first, or smooth them"
            )
        result = temperature_scaling(found[possible], self.log_prior, truth[possible])
        if not COLDEST * 1.01 < result.temperature < HOTTEST / 1.01:
            why = "no answer is wrong" if result.temperature < 1 else "densities tell nothing"
            warnings.warn(
                f"the temperature {result.temperature:.3g} is at the end of its range: {why} in "
                f"these {len(rows)} rows; calibrate on more of them",
                stacklevel=3,
            )
        self.temperature.fill_(result.temperature)
        density = (found + self.log_prior).logsumexp(-1)
        complete = ~self._lacking(rows).to(density.device)
        self.usual = density[complete].sort().values if complete.any() else None
        arguments_became(self, usual=self.usual)
        return result

    @explained
    def risk_coverage(
        self,
        x: Any,
        y: Any,
        *,
        particles: int = 64,
        memory: float | None = None,
        seed: Seed = 0,
    ) -> RiskCoverage:
        """What rejecting the least sure rows buys, on rows ``(N, *event)`` with labels ``(N,)``."""
        found = self.log_posterior(x, particles=particles, memory=memory, seed=seed)
        truth = self._index(y, len(found.value))
        known = ~found.value.isnan().any(-1)
        confidence = torch.where(known, found.confidence, 0.0)
        return RiskCoverage.of(confidence, known & (found.index == truth.to(known.device)))

    @property
    def states_joint(self) -> bool:
        """Whether the model is one of rows and labels, with priors of its own."""
        model: Any = self.models[0]
        if not self.conditional:
            return False
        return getattr(model, "context_site", None) is not None or self._one_constant

    @property
    def _one_constant(self) -> bool:
        """Whether densities of all classes have one unknown constant, which cancels."""
        if self.contexts is None or self.models[0].context_ndim:
            return False
        return isinstance(self.models[0](self.contexts), LabeledEnergy)

    def _check_constant(self, score: Score, label: Any) -> None:
        if score.kind != "unnormalized" or self._one_constant:
            return
        raise TypeError(
            f"expected densities whose constants are known, got an unnormalized one of {label!r}: "
            "constants of other classes differ; estimate each by "
            "pg.samplers.annealed_importance and wrap the model in pg.Normalized(model, log_z)"
        )

    def _usual(self, rate: float) -> Tensor:
        if self.usual is None:
            raise ValueError(
                "expected complete held-out rows to compare with, got none; calibrate(x, y) on some "
                "first"
            )
        needed = math.ceil(1 / rate - 1e-9) - 1
        if len(self.usual) < needed:
            raise ValueError(
                f"expected at least {needed} held-out rows to reject a share of {rate:g} as "
                f"outliers, got {len(self.usual)}; calibrate(x, y) on more, or let outliers be "
                f"{1 / (len(self.usual) + 1):.2g}"
            )
        return self.usual

    def _lacking(self, rows: Tensor) -> Tensor:
        """Which rows have missing cells, ``(N,)``."""
        if not has_missing(rows):
            return torch.zeros(len(rows), dtype=torch.bool)
        model: Any = self.models[0]
        return lacking_cells(model, rows, self._given(0, rows)[1:]).flatten(1).any(1)

    def _check_complete(self, x: Any) -> None:
        """Refuses rows whose density is one of fewer features than those that it is compared with."""
        lacking = self._lacking(self._rows(x))
        if lacking.any():
            raise ValueError(
                "expected complete rows to tell outliers, got missing cells in row "
                f"{int(lacking.nonzero()[0])}: densities of fewer features do not compare; decide on "
                "such rows without outliers=, or judge them by a pg.AnomalyDetector of each class"
            )

    def _rows(self, x: Any) -> Tensor:
        """Rows as the families take them; their shape and support are checked where they are scored."""
        model: Any = self.models[0]
        (rows,) = model.settle((x,))
        if not torch.is_tensor(rows) or rows.ndim == 0:
            raise TypeError(
                f"expected rows x of shape (N, *event), got {type(x).__name__}; give a tensor, an "
                "array or a frame"
            )
        return rows

    def _index(self, y: Any, rows: int) -> Tensor:
        index = indices_of(y, self.labels)
        if len(index) != rows:
            raise ValueError(
                f"expected one label for each row, got {rows} rows x and {len(index)} labels y; "
                "align them"
            )
        return index

    def _given(self, number: int, rows: Tensor) -> tuple[Tensor, ...]:
        if self.contexts is None:
            return (rows,)
        context = self.contexts[number].to(rows.device)
        return rows, context.expand(len(rows), *context.shape)

    def _named(
        self, function: Callable, number: int, model: Any, *rows: Any, options: Mapping[str, Any]
    ) -> Any:
        """The function of a class's model; an error says which class it was."""
        try:
            return function(model, *rows, **options)
        except Exception as error:
            error.add_note(f"(this was class {self.labels[number]!r})")
            raise


def _one_for_each_row(usual: Any) -> Tensor:
    found = rows_from("usual", usual).double()
    if found.ndim != 1 or not len(found):
        raise ValueError(
            f"expected usual of shape (M,), M >= 1, got {tuple(found.shape)}; calibrate(x, y) sets it"
        )
    return found


def _stacked(scores: Sequence[Score]) -> Tensor:
    return torch.stack([score.value.double() for score in scores], -1)


def _fitting(model: Any, rows: Tensor) -> Callable[..., Any]:
    """The closed form of the maximum where the family has one, else EM, else gradients."""
    if isinstance(model, Solvable) and not has_missing(rows):
        return type(model).solve
    inner = model.family if getattr(model, "inside", None) else model
    return em if isinstance(inner, SupportsEM) else fit


def _parts(models: Any, labels: Any) -> tuple[tuple, list[nn.Module], Tensor | None]:
    """Labels, families and, of a conditional one, a context for each label."""
    if isinstance(models, Mapping):
        if labels is not None:
            raise ValueError(
                "expected labels beside one conditional model alone, got them beside a mapping; "
                "its keys are the labels"
            )
        for model in models.values():
            checks.generative(models=model)
        _check_own(models)
        return tuple(map(label_of, models)), list(models.values()), None
    checks.generative(models=models)
    if labels is None:
        raise ValueError(
            "expected labels of the classes beside one conditional model, got None; give "
            "GenerativeClassifier(model, labels=[...]), or a mapping of label to model"
        )
    if isinstance(labels, Mapping):
        contexts = [torch.as_tensor(context) for context in labels.values()]
        if len({context.shape for context in contexts}) > 1:
            raise ValueError(
                "expected contexts of one shape, got "
                f"{[tuple(context.shape) for context in contexts][:5]}; give one for each label"
            )
        names = tuple(map(label_of, labels))
        return names, [models], torch.stack(contexts) if contexts else torch.zeros(0)
    names = tuple(labels_in(labels, "labels"))
    return names, [models], _contexts_by_place(models, len(names))


def _check_own(models: Mapping[Any, nn.Module]) -> None:
    """Refuses one model for two classes: the fit to the second would undo that to the first."""
    seen: dict[int, Any] = {}
    for label, model in models.items():
        if id(model) in seen:
            raise ValueError(
                "expected a model of its own for each class, got one for both "
                f"{seen[id(model)]!r} and {label!r}; build one for each: "
                "{label: pg.PPCA(64, factors=12) for label in labels}"
            )
        seen[id(model)] = label


def _contexts_by_place(model: Any, count: int) -> Tensor:
    """Numbers of the labels, or one-hot vectors of them."""
    if model.context_ndim == 0:
        return torch.arange(count, dtype=torch.get_default_dtype())
    size = size_of(model)
    if model.context_ndim == 1 and size in (count, None):
        return torch.eye(count)
    if size == 0:
        raise ValueError(
            f"expected a model that is given labels as contexts, got {type(model).__name__} without "
            f"contexts; build it with context={count}, or give a model for each: {{label: model, ...}}"
        )
    raise ValueError(
        f"expected a model whose contexts are one-hot vectors of {count} labels, got "
        f"{type(model).__name__} with contexts of size {size}; give "
        "labels={label: context, ...}"
    )


def _log_prior(priors: Mapping[Any, float] | None, labels: Sequence[Any]) -> Tensor:
    if priors is None:
        return torch.full((len(labels),), -math.log(max(1, len(labels))), dtype=torch.float64)
    if set(priors) != set(labels):
        raise ValueError(
            f"expected a prior for each of the labels {list(labels)}, got {list(priors)}; give "
            "{label: probability, ...}"
        )
    for label in labels:
        checks.positive(priors=priors[label])
    shares = torch.tensor([float(priors[label]) for label in labels], dtype=torch.float64)
    return (shares / shares.sum()).log()
