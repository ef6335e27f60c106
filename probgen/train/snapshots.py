"""Pictures of a model while it is trained, in a folder or for loggers that take images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.modes import inference_mode_of
from probgen.core.seeds import seeded
from probgen.core.turns import turn
from probgen.train.callbacks import Every
from probgen.train.history import FitWarning

if TYPE_CHECKING:
    from probgen.train.run import Run

ADVICE = (
    "pass the path of a folder, or a logger such as lightning_fabric.loggers.TensorBoardLogger("
    "'logs'), whose experiment has add_figure or add_image"
)


@explained
def snapshots(
    draw: Callable[[Any], Any],
    to: str | os.PathLike | Any,
    *,
    every: int = 500,
    name: str = "samples",
    seed: int = 0,
) -> Every:
    """A callback of :func:`probgen.fit` that draws the model after every so many steps.

    With the same random numbers each time, so that pictures differ by what was learned; the random
    numbers of the run are left alone, and its steps stay compiled. The model is in eval mode, with
    averaged weights where there are some. A picture that fails does not end training.

    Parameters
    ----------
    draw : callable
        ``draw(gen)`` gives Matplotlib axes or a figure, as the functions of :mod:`probgen.plot` do:
        ``lambda gen: pg.plot.samples(held_out, pg.sample(gen, 100))`` shows images, tables, points,
        series and tokens, whatever the family draws.
    to : path, logger, or list of them
        A folder, in which ``samples_000500.png`` is written, and so on; or a logger whose
        ``experiment`` has ``add_figure`` or ``add_image``, as that of ``TensorBoardLogger``.
    every : int
        Steps from one picture to the next.
    name : str
        Of the files, or of the picture in the logger.
    seed : int
        Of the random numbers of each picture.

    Returns
    -------
    Every
        For ``callbacks=[...]``.

    Raises
    ------
    TypeError, ValueError
        For what cannot be called, and what is neither a folder nor takes images.

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> from probgen.plot.samples import samples
    >>> x = torch.randn(20, 2)
    >>> snapshots(lambda gen: samples(x, gen().sample((9,))), "pictures", every=100).steps
    100
    """
    checks.function("pass draw(gen), which gives axes or a figure", draw=draw)
    checks.at_least(1, every=every)
    checks.text(name=name)
    checks.is_seed(seed=seed)
    targets = to if isinstance(to, list | tuple) else [to]
    writers = [
        _writer(f"to[{place}]" * (targets is to) or "to", each)
        for place, each in enumerate(targets)
    ]
    return Every(int(every), _Snapshot(draw, writers, name, int(seed)))


class _Snapshot:
    """Draws a run's model and hands the figure out."""

    def __init__(self, draw: Callable, writers: Sequence[Callable], name: str, seed: int):
        self.draw = draw
        self.writers = writers
        self.name = name
        self.seed = seed
        self.failed = False

    def __call__(self, run: Run) -> None:
        if self.failed or not run.fabric.is_global_zero:
            return
        try:
            figure = self._figure(run)
            for write in self.writers:
                write(figure, self.name, run.step)
            _close(figure)
        except Exception as error:
            self.failed = True
            warnings.warn(
                f"the picture '{self.name}' failed after step {run.step} "
                f"({type(error).__name__}: {error}); training goes on without it",
                FitWarning,
                stacklevel=10,
            )

    def _figure(self, run: Run) -> Any:
        gen: Any = run.gen
        with turn(), run.averaged(), inference_mode_of(gen), torch.no_grad(), seeded(self.seed):
            drawn = self.draw(gen)
        first = np.asarray(drawn, dtype=object).reshape(-1)[0]
        figure = first if getattr(first, "savefig", None) else getattr(first, "figure", None)
        if getattr(figure, "savefig", None) is None:
            raise TypeError(
                f"expected draw(gen) to give axes or a figure, got {type(drawn).__name__}; return "
                "what a function of probgen.plot gives"
            )
        return figure


def _writer(name: str, to: Any) -> Callable[[Any, str, int], None]:
    """What keeps a figure of a name and a step."""
    if isinstance(to, str | os.PathLike):
        checks.path(**{name: to})
        return _Folder(Path(to))
    checks.no_class(**{name: to})
    experiment: Any = getattr(to, "experiment", None)
    if callable(getattr(experiment, "add_figure", None)):
        return lambda figure, tag, step: experiment.add_figure(tag, figure, step, close=False)
    if callable(getattr(experiment, "add_image", None)):
        return lambda figure, tag, step: experiment.add_image(
            tag, pixels_of(figure), step, dataformats="HWC"
        )
    raise TypeError(f"expected {name} that takes pictures, got {type(to).__name__}; {ADVICE}")


class _Folder:
    """Files in a folder, which is made with the first of them."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, figure: Any, name: str, step: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path / f"{name}_{step:06d}.png", dpi=120)


def pixels_of(figure: Any) -> np.ndarray:
    """A figure as bytes of red, green and blue, ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _close(figure: Any) -> None:
    """Matplotlib keeps figures that it has made itself."""
    import matplotlib.pyplot as plt

    plt.close(figure)
