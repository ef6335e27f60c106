"""Models side by side on the same held-out rows, with paired differences and kinds of numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.core.score import Score
from probgen.core.seeds import Seed
from probgen.scoring import log_likelihood

if TYPE_CHECKING:
    import pandas as pd

    from probgen.core.module import GenerativeModel

ERRORS = 2.0  # standard errors of a paired difference that count as more than noise


@in_short
@dataclass(frozen=True)
class ModelComparison:
    """Scores of several models on the same rows, the highest mean first.

    Attributes
    ----------
    scores : dict of Score
        By name, best first.
    behind : dict of (float, float)
        How much better the first is than each, row by row: mean and standard error, in nats.
    findings : dict of str
        What follows for each: ``"best"``; ``"worse"``; ``"not told apart"``, within two standard
        errors; ``"not settled"``, where the kinds of numbers leave open which model is better;
        ``"no number"``, where the score is not one (NaN), which stands last.
    seconds : dict of float
        What each took to be scored; nothing for scores that were given.

    >>> import torch
    >>> rows = torch.tensor([-1.0, -2.0, -1.5])
    >>> print(compare({"a": Score(rows - 1.0, "exact"), "b": Score(rows, "exact")}))
       log-likelihood, nats  behind the first  finding
    b  = -1.50 ± 0.29 (exact)                 -  best
    a  = -2.50 ± 0.29 (exact)       1.00 ± 0.00  worse
    """

    scores: dict[str, Score]
    behind: dict[str, tuple[float, float]]
    findings: dict[str, str]
    seconds: dict[str, float]

    @property
    def best(self) -> str:
        """Name of the model with the highest mean."""
        return next(iter(self.scores))

    def to_frame(self) -> pd.DataFrame:
        """A data frame with one row for each model, best first.

        >>> import torch
        >>> found = compare({"a": Score(torch.tensor([-1.0, -2.0]), "exact")})
        >>> found.to_frame()["mean"].tolist()
        [-1.5]
        """
        import pandas as pd

        rows = [
            {
                "mean": score.mean,
                "stderr": score.stderr,
                "behind": self.behind[name][0],
                "behind_stderr": self.behind[name][1],
                "finding": self.findings[name],
                "kind": score.kind,
                "particles": score.particles,
                "seconds": self.seconds.get(name),
            }
            for name, score in self.scores.items()
        ]
        return pd.DataFrame(rows, index=pd.Index(self.scores, name="model"))

    def __str__(self) -> str:
        unit = self.scores[self.best].unit
        lines = [("", f"log-likelihood, {unit}", "behind the first", "finding")]
        for name, score in self.scores.items():
            mean, stderr = self.behind[name]
            lag = "-" if name == self.best else f"{mean:.2f} ± {stderr:.2f}"
            lines.append((name, str(score).replace(f" {unit}", ""), lag, self.findings[name]))
        names, shown, lags, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
        return "\n".join(
            f"{name:{names}}  {score:{shown}}  {lag:>{lags}}  {finding}"
            for name, score, lag, finding in lines
        )


@explained
def compare(
    models: Mapping[str, GenerativeModel | Score],
    *batch: Any,
    weights: Tensor | Sequence[float] | None = None,
    particles: int = 64,
    memory: float | None = None,
    seed: Seed = 0,
) -> ModelComparison:
    """Compares models on the same held-out rows.

    Scores are those of :func:`probgen.log_likelihood`. Most of their spread over rows is shared by
    all models, so that the paired differences decide, not the scores' own errors. Two bounds never
    tell which model is better, however far apart they are: :attr:`ModelComparison.findings`.

    Parameters
    ----------
    models : mapping of str to GenerativeModel or Score
        By name; scores stand for models that were scored before, on the same rows.
    *batch : Tensor
        The rows, ``(B, *event)``, and contexts where there are; every model is given the same.
    weights : Tensor, array or sequence of float, optional
        How often each row counts, ``(B,)``.
    particles : int
        Draws of latents per row.
    memory : float, optional
        Bytes that the tensors of one evaluation may take.
    seed : int, torch.Generator or None
        Of the draws, the same for every model.

    Raises
    ------
    ValueError
        For no models.
    TypeError
        For scores that do not compare: densities beside probability masses, nats beside bits per
        dim, other particles.
    NotImplementedError
        For a model without a density.

    >>> import pyro.distributions as dist
    >>> import torch
    >>> from probgen.core.module import Fixed
    >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> near, far = (Fixed(dist.Normal, loc=torch.full((1,), at), scale=1.0) for at in (0.0, 1.0))
    >>> found = compare({"far": far, "near": near}, x)
    >>> found.best, found.findings["far"]
    ('near', 'worse')
    """
    checks.instance(Mapping, models=models)
    if not models:
        raise ValueError("expected one model at least, got none; pass {'name': model, ...}")
    checks.texts(models=list(models))
    scores: dict[str, Score] = {}
    seconds: dict[str, float] = {}
    for name, each in models.items():
        if isinstance(each, Score):
            scores[name] = each
            continue
        began = time.perf_counter()
        try:
            scores[name] = log_likelihood(
                each, *batch, weights=weights, particles=particles, memory=memory, seed=seed
            )
        except Exception as error:
            error.add_note(f"(this was model {name!r})")
            raise
        seconds[name] = time.perf_counter() - began
    higher = next(iter(scores.values())).unit == "nats"
    ranked = sorted(scores, key=lambda name: _place(scores[name].mean, higher))
    first = scores[ranked[0]]
    behind: dict[str, tuple[float, float]] = {}
    findings: dict[str, str] = {}
    for name in ranked:
        behind[name] = first.difference(scores[name])
        lag = behind[name]
        findings[name] = "best" if name == ranked[0] else _finding(first, scores[name], lag)
        if math.isnan(scores[name].mean):
            findings[name] = "no number"
    return ModelComparison({name: scores[name] for name in ranked}, behind, findings, seconds)


def _place(mean: float, higher: bool) -> tuple[bool, float]:
    """What is sorted by: the best first, what is no number last."""
    return math.isnan(mean), -mean if higher else mean


def _finding(first: Score, other: Score, lag: tuple[float, float]) -> str:
    """What a difference says of two models, not of two numbers."""
    gain, stderr = lag
    if abs(gain) == math.inf and first.kind == other.kind:
        return "worse"  # rows that the other model says are impossible
    if first.kind == other.kind == "exact":
        return "worse" if gain > ERRORS * stderr else "not told apart"
    try:
        return "worse" if first > other else "not told apart"
    except TypeError:
        return "not settled"
