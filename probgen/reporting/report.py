"""A fitted model, judged on a page that can be sent and kept."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probgen.core import checks
from probgen.core.conversion import has_named_columns
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.modes import infers
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.seeds import seeded
from probgen.reporting.page import Section, page, paragraph
from probgen.reporting.sections import SECTIONS, Subject, first_line, subject
from probgen.train.history import History

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


@explained
@infers
def report(
    gen: GenerativeModel,
    data: Any,
    path: str | os.PathLike,
    *,
    history: History | None = None,
    shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    particles: int = 64,
    judged_rows: int = 1000,
    seed: int = 0,
    progress: Reported = None,
) -> Path:
    """Writes one HTML page about a fitted model, which needs no other file and no network.

    Verdict, log-likelihood with its kind, course of the fit, generated rows beside real ones, what
    numbers say of both, k-hat of the guide, versions and seed. What does not apply to a family, or
    fails, says so in its place.

    Parameters
    ----------
    gen : GenerativeModel
        The fitted model; it is judged in eval mode, and left in the mode that it is in.
    data : Tensor, data frame or tuple
        Rows ``(N, *event)``, better ones that the model has not seen; with contexts ``(x,
        context)``. Rows are then generated in the contexts of the real ones.
    path : path
        Of the page, which replaces an earlier one.
    history : History, optional
        What :func:`probgen.fit` returned.
    shape : sequence of int, optional
        ``(H, W)`` or ``(C, H, W)``, for rows that are flat images. Events ``(C, H, W)`` and ``(H,
        W)`` of six pixels and more a side are images as they are, ``(T, D)`` series, others tables.
    names : sequence of str, optional
        Of columns; those of a frame are known.
    title : str, optional
        Default: the name of the family.
    particles : int
        Draws of the latents per row, for the log-likelihood of all rows.
    judged_rows : int
        Rows, evenly spaced, that everything else looks at.
    seed : int
        For all that is random; torch's random state is left as it was.
    progress : bool, float or None
        Rate and time left: in one line that is renewed where there is a terminal; elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.

    Returns
    -------
    pathlib.Path
        Where the page is.

    Raises
    ------
    TypeError, ValueError
        For rows that the model does not take, and a path that is a folder.

    >>> import tempfile, torch
    >>> from probgen.models.mixture import GaussianMixture
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = report(GaussianMixture(2, dims=1), torch.randn(30, 1), folder + "/page.html")
    ...     page = path.read_text()
    >>> page.startswith("<!DOCTYPE html>"), "(exact)" in page
    (True, True)
    """
    checks.generative(gen=gen)
    checks.path(path=path)
    checks.instance(History, "pass what fit returned", **checks.given(history=history))
    checks.sizes(1, 2, **checks.given(shape=shape))
    checks.texts(**checks.given(names=names))
    checks.text(**checks.given(title=title))
    checks.at_least(1, particles=particles, judged_rows=judged_rows)
    checks.is_seed(seed=seed)
    check_progress(progress)
    target = Path(path)
    if target.is_dir():
        raise ValueError(
            f"expected the path of a file, got the folder {target}; pass {target / 'report.html'}"
        )
    batch = as_rows(gen, *(data if isinstance(data, tuple) else (data,)))
    about = subject(
        gen,
        batch,
        int(judged_rows),
        history=history,
        shape=shape,
        names=_names(names, data, batch),
        particles=particles,
        seed=int(seed),
    )
    with seeded(int(seed)), Progress("report", len(SECTIONS), "sections", asked=progress) as shown:
        sections = list(filter(None, (_section(name, about, shown) for name in SECTIONS)))
    name = title or type(gen).__name__
    rows = f"{type(gen).__name__} on {about.rows:,} rows"
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = page(name, rows, sections, f"Written by probgen at {written}.")
    target.write_text(text, encoding="utf-8")
    return target


def _section(name: str, about: Subject, progress: Progress) -> Section | None:
    """A section, or a note why there is none: a page is not to be lost to one of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = SECTIONS[name](about)
    except Exception as error:
        found = Section(name, (paragraph(f"Not available: {first_line(error)}", "note"),))
    progress.advance(1, lambda: name.lower())
    return found


def _names(names: Sequence[str] | None, data: Any, batch: tuple) -> Sequence[str] | None:
    """Names of the columns, where there is one for each."""
    asked = names is not None
    if names is None:
        first = data[0] if isinstance(data, tuple) and data else data
        if has_named_columns(first):
            names = [str(column) for column in first.columns]
    flat = batch[0].flatten(1).shape[1] if batch[0].ndim > 1 else 1
    if asked and names is not None and len(names) != flat:
        raise ValueError(
            f"expected names of {flat} columns, got {len(names)}; give one for each, or leave them out"
        )
    return names if names is not None and len(names) == flat else None
