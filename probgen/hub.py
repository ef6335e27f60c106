"""Models for others: a folder with weights and a card that says what they are, and a place to put it.

``pip install 'probgen[hub]'`` for :func:`push_to_hub` and repositories; folders need nothing.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.modes import infers
from probgen.core.score import Score
from probgen.core.training_record import TrainingRecord, training_records, versions
from probgen.core.turns import same_random_state
from probgen.train.checkpoint import CheckpointError
from probgen.train.files import replace
from probgen.train.saved import load, save

__all__ = ["from_hub", "model_card", "push_to_hub", "save_to_folder"]

MODEL = "model.safetensors"
CARD = "README.md"
PLACE = 'pg.hub.from_hub("owner/name")  # or the folder of this file'
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
MEANINGS = {
    "exact": "it is the log-likelihood",
    "unbiased": "an estimate, unbiased as a probability: on average below the log-likelihood",
    "bound": "a lower bound of the log-likelihood on average",
    "approximate": "an approximation, on either side of the log-likelihood",
    "unnormalized": "the log-likelihood up to a constant that is the same for all rows",
    "implicit": "the model has draws and no density",
}


@explained
def save_to_folder(
    gen: nn.Module,
    folder: str | os.PathLike,
    *,
    scores: Mapping[str, Score] | None = None,
    name: str | None = None,
    description: str = "",
    license: str | None = None,
    tags: Sequence[str] = (),
) -> Path:
    """Saves a model as others find it: ``model.safetensors`` and a card, ``README.md``.

    Parameters
    ----------
    gen : nn.Module
        The model.
    folder : path
        Where; it is made where it is not there, and other files in it are left alone.
    scores, name, description, license, tags
        As :func:`model_card` takes them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TypeError, ValueError
        As :func:`model_card` and :func:`probgen.save`.
    CheckpointError
        If the folder cannot be written.

    Warns
    -----
    UserWarning
        As :func:`probgen.save`, for parts that no file can describe.

    >>> from probgen.models.mixture import GaussianMixture
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = save_to_folder(GaussianMixture(2, 3), folder)
    ...     from_hub(saved)
    GaussianMixture(components=2, dims=3)
    """
    checks.path(folder=folder)
    card = model_card(
        gen, scores=scores, name=name, description=description, license=license, tags=tags
    )
    return _write(gen, card, Path(folder))


@explained
def push_to_hub(
    gen: nn.Module,
    repo_id: str,
    *,
    scores: Mapping[str, Score] | None = None,
    name: str | None = None,
    description: str = "",
    license: str | None = None,
    tags: Sequence[str] = (),
    private: bool = False,
    revision: str | None = None,
    message: str = "Model saved by probgen",
    token: str | None = None,
) -> str:
    """Uploads a model and its card to a repository of the Hugging Face Hub.

    The repository is made where there is none.

    Parameters
    ----------
    gen : nn.Module
        The model.
    repo_id : str
        ``"owner/name"``.
    scores, name, description, license, tags
        As :func:`model_card` takes them.
    private : bool
        Whether a new repository is seen by its owner alone.
    revision : str, optional
        A branch, which is made where there is none; default: the main one.
    message : str
        Of the commit.
    token : str, optional
        Default: that of ``hf auth login``.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    ImportError
        Without ``huggingface_hub``.
    ValueError, TypeError
        For an id that is none, and as :func:`model_card`.

    Errors of the connection are those of ``huggingface_hub``.
    """
    _check_repository(repo_id)
    checks.flag(private=private)
    checks.text(message=message, **checks.given(revision=revision, token=token))
    card = model_card(
        gen,
        scores=scores,
        name=name or repo_id.split("/")[1],
        description=description,
        license=license,
        tags=tags,
    )
    api = _library().HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        _write(gen, card.replace(PLACE, f'pg.hub.from_hub("{repo_id}")'), Path(folder))
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision
        )
    return str(getattr(commit, "commit_url", commit))


@explained
def from_hub(
    source: str | os.PathLike,
    *,
    into: nn.Module | None = None,
    allow: Collection[Any] = (),
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """Builds a model of a repository of the Hugging Face Hub, or of a folder, in eval mode.

    A file is data: code of others in it is refused unless it is allowed, as :func:`probgen.load`
    does. Of a repository nothing but ``model.safetensors`` is downloaded, and kept in the cache of
    ``huggingface_hub``.

    Parameters
    ----------
    source : str or path
        ``"owner/name"``, or a folder of :func:`save_to_folder`.
    into, allow
        As :func:`probgen.load` takes them.
    revision : str, optional
        Branch, tag or commit of a repository; a commit is always the same model.
    token : str, optional
        For private repositories; default: that of ``hf auth login``.

    Raises
    ------
    CheckpointError
        For a folder without a model, and as :func:`probgen.load`.
    ImportError
        For a repository, without ``huggingface_hub``.
    ValueError, TypeError
        For what is neither a folder that is there nor the id of a repository.

    Errors of the connection are those of ``huggingface_hub``.
    """
    checks.path(source=source)
    checks.text(**checks.given(revision=revision, token=token))
    if os.fspath(source) and Path(source).is_dir():
        path = Path(source) / MODEL
        if not path.is_file():
            raise CheckpointError(
                f"expected {MODEL} in the folder {source}, found none; give a folder of "
                "pg.hub.save_to_folder, or a file to pg.load"
            )
        return load(path, into, allow=allow)
    repo_id = os.fspath(source)
    _check_repository(repo_id)
    path = _library().hf_hub_download(repo_id, MODEL, revision=revision, token=token)
    return load(path, into, allow=allow)


def _write(gen: nn.Module, card: str, folder: Path) -> Path:
    """The two files of a model."""
    save(gen, folder / MODEL)
    try:
        replace(folder / CARD, card.encode())
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder / CARD}: {error}; choose a folder that is writable and has space"
        ) from error
    return folder


def _check_repository(repo_id: Any) -> None:
    checks.text(repo_id=repo_id)
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(
            f"expected a folder that is there, or a repository 'owner/name', got {repo_id!r}; "
            "check the path, or give both names"
        )


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "expected huggingface_hub for repositories, found none; pip install 'probgen[hub]', or "
            "share the folder of pg.hub.save_to_folder"
        ) from error
    return huggingface_hub


# -- the card


@explained
@infers
@torch.no_grad()
def model_card(
    gen: nn.Module,
    *,
    scores: Mapping[str, Score] | None = None,
    name: str | None = None,
    description: str = "",
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """What a model is, in Markdown: its family and equation, scores with errors and kinds, its training.

    Begins with the metadata that the Hugging Face Hub reads (``model-index``).

    Parameters
    ----------
    gen : nn.Module
        The model.
    scores : mapping of str to Score, optional
        What :func:`probgen.log_likelihood` gave, by the name of the rows: ``{"test rows of digits":
        score}``. Numbers without a kind are refused.
    name : str, optional
        Of the model; default: that of its class.
    description : str
        What it was made for, of which data, and what it is not good for; Markdown.
    license : str, optional
        An identifier, such as ``"apache-2.0"``.
    tags : sequence of str
        More words to find it by.

    Raises
    ------
    TypeError
        For what is no model, and scores that are none.

    References
    ----------
    Mitchell, Wu, Zaldivar, Barnes, Vasserman, Hutchinson, Spitzer, Raji, Gebru (2019), Model cards
    for model reporting, https://arxiv.org/abs/1810.03993

    >>> from probgen.models.mixture import GaussianMixture
    >>> print(model_card(GaussianMixture(2, 3)).splitlines()[1])
    library_name: probgen
    """
    checks.instance(nn.Module, gen=gen)
    checks.text(description=description, **checks.given(name=name, license=license))
    checks.texts(tags=tags)
    checks.mapping(**checks.given(scores=scores))
    known = dict(scores or {})
    checks.texts(scores=tuple(known))
    checks.instance(Score, "pass what pg.log_likelihood gave, which has its kind", **known)
    title = name or type(gen).__name__
    parts = [
        _metadata(gen, title, license, tags, known),
        f"# {title}",
        description.strip(),
        _family(gen),
        _scored(gen, known),
        _trained(gen),
        _how_to_load(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(
    gen: nn.Module, title: str, license: str | None, tags: Sequence[str], scores: dict[str, Score]
) -> str:
    """The front matter, as YAML, whose strings are JSON's."""
    lines = ["---", "library_name: probgen"]
    if license is not None:
        lines.append(f"license: {json.dumps(license)}")
    lines.append("tags:")
    words = dict.fromkeys(["probgen", "generative-model", type(gen).__name__, *tags])
    lines += [f"- {json.dumps(word)}" for word in words]
    finite = {rows: score for rows, score in scores.items() if math.isfinite(score.mean)}
    if finite:
        lines += ["model-index:", f"- name: {json.dumps(title)}", "  results:"]
    for rows, score in finite.items():
        lines += [
            "  - task:",
            "      type: density-estimation",
            "    dataset:",
            f"      name: {json.dumps(rows)}",
            "      type: rows",
            "    metrics:",
            f"    - type: {json.dumps('log-likelihood' if score.unit == 'nats' else score.unit)}",
            f"      name: {json.dumps(f'{score.unit} a row, {score.kind}')}",
            f"      value: {score.mean:.6g}",
        ]
    return "\n".join([*lines, "---"])


def _family(gen: nn.Module) -> str:
    """Name and equation of the family, and the call that built the model."""
    count = sum(parameter.numel() for parameter in gen.parameters())
    text = inspect.getdoc(type(gen)) or ""
    first = _plain(text.split("\n\n")[0])
    lines = ["## Model", f"{first} {count:,} parameters.".strip()]
    if equation := _equation(text):
        lines.append(f"$$\n{equation}\n$$")
    lines.append(f"```python\n{gen!r}\n```")
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """A sentence of a docstring without the marks of its markup."""
    shown = re.sub(r":[\w:]+:`~?(?:[^`<]*<)?(?:[\w.]*\.)?([^`>.]+)>?`", r"`\1`", text)
    return " ".join(shown.replace("``", "`").split())


def _equation(text: str) -> str:
    """The first equation of a docstring."""
    lines = text.splitlines()
    starts = [at for at, line in enumerate(lines) if line.strip().startswith(".. math::")]
    if not starts:
        return ""
    at = starts[0]
    found = [lines[at].split("::", 1)[1]]
    for line in lines[at + 1 :]:
        if line.strip() and not line.startswith(" "):
            break
        found.append(line)
    return "\n".join(line.strip() for line in found if line.strip())


def _scored(gen: nn.Module, scores: dict[str, Score]) -> str:
    """Scores with errors, units and kinds, and what the kinds mean."""
    own = _kind(gen)
    kinds = list(dict.fromkeys([*([own] if own else []), *(s.kind for s in scores.values())]))
    if not kinds:
        return ""
    lines = ["## Scores"]
    if scores:
        rows = ["| rows | mean of a row | standard error | unit | kind | of | count |"]
        rows.append("|---|---|---|---|---|---|---|")
        rows += [
            f"| {_cell(rows_of)} | {s.mean:.6g} | {s.stderr:.2g} | {s.unit} | {s.kind}"
            f"{f', {s.particles} particles' if s.particles > 1 else ''} | {s.measure} "
            f"| {len(s.value):,} |"
            for rows_of, s in scores.items()
        ]
        lines.append("\n".join(rows))
    if own:
        lines.append(f"The density of this model is *{own}*.")
    lines.append("\n".join(f"- *{kind}*: {MEANINGS[kind]}." for kind in kinds))
    return "\n\n".join(lines)


def _kind(gen: Any) -> str:
    """The kind of the density of a model that needs no context; else nobody is told."""
    with same_random_state():
        try:
            return "" if getattr(gen, "context_size", None) else density_kind(gen())
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            return ""


def _trained(gen: nn.Module) -> str:
    """The calls that trained it and its parts."""
    named = [
        (name, record) for name, part in gen.named_modules() for record in training_records(part)
    ]
    if not named:
        return "## Training\n\nNo record of how it was trained."
    rows = ["| part | by | objective | steps | rows | best validation | seconds | ended |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    rows += [_row(name, record) for name, record in named]
    return "## Training\n\n" + "\n".join(rows)


def _row(name: str, record: TrainingRecord) -> str:
    validation = "" if record.validation is None else f"{record.validation:.6g}"
    if validation and record.kind:
        validation += f" ({record.kind})"
    rows = "" if record.rows is None else f"{record.rows:,.10g}"
    cells = [
        name or "the model",
        record.by,
        f"`{_cell(record.objective)}`",
        f"{record.steps:,}",
        rows,
        validation,
        f"{record.seconds:.1f}",
        record.stopped,
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _how_to_load() -> str:
    made = ", ".join(f"{name} {number}" for name, number in sorted(versions().items()))
    return (
        "## Use\n\n```python\nimport probgen as pg\n\n"
        f"gen = {PLACE}\n"
        "x = pg.sample(gen, 10)\n```\n\nSaved with " + made + "."
    )
