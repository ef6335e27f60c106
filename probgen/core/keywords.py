"""Keywords that a function does not take: refused in one sentence that says what does the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
HIDING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_running: ContextVar[tuple[str, tuple[str, ...]]] = ContextVar("running", default=("", ()))
FEW = 8  # names of parameters that a sentence lists


class Meaning(NamedTuple):
    """What other libraries call a thing, and what parameters here do it, the first taken by far."""

    words: frozenset[str]
    does: dict[str, str]


def _meaning(words: str, **does: str) -> Meaning:
    return Meaning(frozenset(words.split()), does)


# by parameter: what is written; the first that a function has is advised
MEANINGS = (
    _meaning(
        "lr learning_rate optim opt learningrate weight_decay betas momentum",
        optimizer="optimizer=probgen.train.adam(1e-3)",
    ),
    _meaning(
        "lr_scheduler lr_schedule schedule sched", scheduler="scheduler=lambda optimizer: ..."
    ),
    _meaning(
        "n_iter n_iters num_iter niter iterations num_iterations n_iterations iters maxiter "
        "num_steps n_steps max_steps training_steps nsteps max_iter steps svi_steps",
        steps="steps=1000",
        max_iter="max_iter=200",
        num_steps="num_steps=100",
        flow_steps="flow_steps=4",
        sweeps="sweeps=200",
        length="length=...",
        draws="draws=1000",
    ),
    _meaning(
        "k cd_k chain_length chain_steps mcmc_steps gibbs_steps n_gibbs sweeps n_sweeps",
        num_steps="num_steps=100",
        sweeps="sweeps=200",
    ),
    _meaning(
        "T n_timesteps num_timesteps time_steps maxlen max_len max_length seq_len "
        "sequence_length horizon",
        length="length=...",
    ),
    _meaning(
        "chunk chunks chunk_size chunksize batch_rows block_size max_batch max_batch_size "
        "batch_size",
        max_rows="max_rows=1024",
    ),
    _meaning("max_numbers max_size", max_elements="max_elements=10**8"),
    _meaning(
        "epoch n_epochs num_epochs max_epochs nb_epochs epochs",
        epochs="epochs=10",
        max_iter="max_iter=200",
    ),
    _meaning("batchsize bs minibatch minibatch_size batch", batch_size="batch_size=128"),
    _meaning(
        "verbose progress_bar progressbar pbar disp show_progress silent quiet",
        progress="progress=False",
    ),
    _meaning("callback hooks hook on_step", callbacks="callbacks=[lambda run: ...]"),
    _meaning(
        "loggers log log_dir logdir writer summary_writer tensorboard tensorboard_dir wandb mlflow",
        logger="logger=lightning_fabric.loggers.TensorBoardLogger('logs')",
    ),
    _meaning("log_interval log_every_n_steps log_freq print_every", log_every="log_every=50"),
    _meaning(
        "random_state rng generator manual_seed rng_seed key prng_key random_seed seed",
        seed="seed=0",
    ),
    _meaning(
        "loss loss_fn criterion loss_function elbo",
        objective="objective=probgen.ELBO()",
    ),
    _meaning(
        "validation_data val val_data valid x_val dev eval_data held_out",
        validation="validation=rows",
    ),
    _meaning("early_stopping early_stop", patience="patience=10, with validation=rows"),
    _meaning(
        "grad_clip gradient_clip clip_grad clip_norm gradient_clip_val max_grad_norm max_norm",
        clip="clip=10.0",
    ),
    _meaning(
        "device accelerator gpus devices precision cuda strategy",
        fabric="fabric=lightning_fabric.Fabric(accelerator=..., devices=...)",
        gen="gen=gen.to(device)",
    ),
    _meaning("ema_decay use_ema moving_average", ema="ema=0.999"),
    _meaning("checkpoint_dir save_path ckpt ckpt_path", checkpoint="checkpoint='run.safetensors'"),
    _meaning("X x y inputs dataset train_data rows", data="data=rows"),
    _meaning(
        "n_samples num_samples nsamples n_draws num_draws samples size sample_shape n draws S",
        draws="draws=1000",
        n="n=100",
        particles="particles=100",
    ),
    _meaning(
        "n_particles num_particles particles K n_importance importance_samples draws num_samples",
        particles="particles=64",
    ),
    _meaning(
        "warmup warmup_steps n_warmup burn_in burnin num_warmup n_tune tuning",
        tune="tune=1000",
    ),
    _meaning("n_chains num_chains nchains cores", chains="chains=4"),
    _meaning(
        "n_components num_components k K n_clusters num_clusters clusters n_mixtures mixtures "
        "num_mixtures n_mixture",
        components="components=...",
        states="states=...",
        factors="factors=2",
    ),
    _meaning("n_states num_states hidden_states K n_components", states="states=..."),
    _meaning(
        "n_factors num_factors latent_dim latent_dims z_dim n_latents latents rank n_components q",
        factors="factors=2",
    ),
    _meaning(
        "dim n_dims ndim features n_features num_features input_dim in_features d D data_dim "
        "event_dim event_size event_shape shape size",
        dims="dims=2",
        shape="shape=(2,)",
        event_shape="event_shape=(2,)",
    ),
    _meaning(
        "hidden_dims hidden_dim hidden_size hidden_sizes hidden_features hidden_units n_hidden "
        "hidden_layers width widths units",
        hidden="hidden=...",
        width="width=64",
    ),
    _meaning(
        "n_layers num_layers depth n_flows num_flows n_transforms num_transforms transforms K "
        "n_blocks blocks flow_length",
        layers="layers=...",
    ),
    _meaning("n_bins num_bins count_bins bins knots", bins="bins=8"),
    _meaning(
        "context_dim context_features cond_dim condition conditional n_context cond "
        "context_size num_context",
        context="context=...",
    ),
    _meaning(
        "covariance_type cov_type cov",
        covariance="covariance=probgen.distributions.Full",
    ),
    _meaning("init n_inits num_init restarts n_restarts", n_init="n_init=10"),
    _meaning("eps epsilon rtol atol tolerance threshold", tol="tol=1e-4"),
)


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """A function that says, of a keyword that it does not take, what does the same.

    A decorator. What takes any keyword is left as it is.

    >>> @explained
    ... def train(data, *, optimizer=None, steps=100): pass
    >>> train(0, lr=0.1)
    Traceback (most recent call last):
    TypeError: expected arguments that train takes, got lr; give optimizer=probgen.train.adam(1e-3)
    """
    return explained_by("")(function)


def explained_by(hint: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """:func:`explained`, with what to do about keywords that mean nothing known, for ``{word}``.

    >>> @explained_by("look {word} up")
    ... def answer(*, x): pass
    >>> answer(rain=1)
    Traceback (most recent call last):
    TypeError: expected arguments that answer takes, got rain; look rain up
    """

    def decorator(function: Callable[P, R]) -> Callable[P, R]:
        known = taken(function)
        if known is None:
            return function
        signature = inspect.signature(function)

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            check_taken(function.__name__, kwargs, known, hint)
            check_bound(function.__name__, signature, args, kwargs)
            if known[:1] != ("gen",):
                return function(*args, **kwargs)
            with called_as(function.__name__, known):
                return function(*args, **kwargs)

        return called

    return decorator


@contextmanager
def called_as(name: str, known: tuple[str, ...] = ()) -> Iterator[None]:
    """Messages inside the block show arguments as a function takes them, see :func:`call_form`."""
    token = _running.set((name, known))
    try:
        yield
    finally:
        _running.reset(token)


def call_form(*names: str) -> str:
    """The call of the public function that runs, with these arguments.

    Without names of keywords it is an argument of its own.

    >>> call_form("x", "context")
    '(x, context)'
    >>> with called_as("fit", ("gen", "data")):
    ...     call_form("x", "context")
    'fit(gen, (x, context))'
    >>> with called_as("sample", ("gen", "n")):
    ...     call_form("context")
    'sample(gen, n, context)'
    >>> with called_as("validation"):
    ...     call_form("x", "context")
    'validation=(x, context)'
    """
    name, known = _running.get()
    listed = ", ".join(names)
    together = f"({listed})" if len(names) != 1 else listed
    if not known:
        return f"{name}={together}" if name else together
    if "data" in known:
        return f"{name}(gen, {together})"
    first = ["gen", "n"] if "n" in known else ["gen"]
    return f"{name}({', '.join([*first, *names])})"


def draws_rows() -> bool:
    """Whether the public function that runs is told how many rows to draw, and given none."""
    return "n" in _running.get()[1]


def taken(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names of the keywords that a function takes; ``None`` where it takes any.

    >>> taken(lambda x, *, y: 0), taken(lambda **rest: 0)
    (('x', 'y'), None)
    """
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in NAMED)


def taken_by(cls: type) -> tuple[str, ...] | None:
    """The names of the keywords that make an object of a class; ``None`` where it takes any.

    Those that a constructor passes on (``**options``) are those of the class that it is built on.
    """
    found: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        found += [p.name for p in parameters if p.kind in NAMED and p.name != "self"]
        if not any(p.kind in HIDING for p in parameters):
            return tuple(dict.fromkeys(found))
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            return None
    return None


def check_taken(
    name: str, given: Iterable[str], known: Collection[str] | None, hint: str = ""
) -> None:
    """Raises ``TypeError`` for the first keyword that is not among those that are known."""
    if known is None:
        return
    for word in given:
        if word not in known:
            raise TypeError(
                f"expected arguments that {name} takes, got {word}; {advice(word, known, hint)}"
            )


def check_bound(
    name: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Raises ``TypeError`` where arguments lack, are too many, or are given twice.

    >>> def judge(data, *, statistic): pass
    >>> check_bound("judge", inspect.signature(judge), (1,), {})
    Traceback (most recent call last):
    TypeError: expected the arguments of judge, got no statistic; give judge(data, statistic=...)
    >>> check_bound("judge", inspect.signature(judge), (1, 2), {"statistic": 3})
    Traceback (most recent call last):
    TypeError: expected 1 argument of judge by place, got 2 (int, int); give judge(data, statistic=...), several ...
    """
    try:
        signature.bind(*args, **kwargs)
        return
    except TypeError:
        pass
    needed = [p for p in signature.parameters.values() if p.default is p.empty]
    form = f"{name}({', '.join(map(_as_given, needed))})"
    placed = [p.name for p in signature.parameters.values() if p.kind in PLACED]
    given = {*placed[: len(args)], *kwargs}
    if len(args) > len(placed) and not any(
        p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()
    ):
        kinds = ", ".join(type(each).__name__ for each in args)
        more = ", several arguments of a model as one: data=(x, y)" * ("data" in placed)
        raise TypeError(
            f"expected {len(placed)} argument{'s' * (len(placed) != 1)} of {name} by place, got "
            f"{len(args)} ({kinds}); give {form}{more}, and others by name"
        )
    if lacking := [p.name for p in needed if p.name not in given and p.kind in NAMED]:
        raise TypeError(
            f"expected the arguments of {name}, got no {' and no '.join(lacking)}; give {form}"
        )
    twice = next(each for each in placed[: len(args)] if each in kwargs)
    raise TypeError(
        f"expected each argument of {name} once, got {twice} by place and by name; leave one out"
    )


def _as_given(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.KEYWORD_ONLY:
        return f"{parameter.name}=..."
    return "*" * (parameter.kind is parameter.VAR_POSITIONAL) + parameter.name


def advice(word: str, known: Collection[str], hint: str = "") -> str:
    """What to write instead of a keyword, in a function that takes the ``known`` ones.

    >>> advice("n_iter", ("x", "max_iter")), advice("stps", ("steps",)), advice("foo", ("a", "b"))
    ('give max_iter=200', 'did you mean steps?', 'it takes a, b')
    """
    for meaning in MEANINGS:
        if word in meaning.words:
            for parameter, text in meaning.does.items():
                if parameter in known:
                    return f"give {text}"
    if close := get_close_matches(word, known, n=1):
        return f"did you mean {close[0]}?"
    if hint:
        return hint.format(word=word)
    listed = ", ".join(list(known)[:FEW])
    more = len(known) - FEW
    return f"it takes {listed or 'none'}" + (f" and {more} more" if more > 0 else "")
