"""Gaussian hidden Markov models beside hmmlearn and pomegranate.

Likelihood, posteriors, a step of EM, a long sequence.

All start from the same parameters and see the same sequences, turn by turn. Tables give medians,
ratios to each peer, and the mean log-likelihood of a sequence that each reports; after the step of
EM that of its parameters, computed by one function in float64. Peak memory (Linux) is that of a
process of its own, less what it held before.

    python benchmarks/hidden_markov.py                       # 200 x 50 steps, 50 states; 500 x 200
    steps, 8 states python benchmarks/hidden_markov.py --form diag           # covariances without
    correlations python benchmarks/hidden_markov.py --only long           # one sequence of
    1,000,000 steps python benchmarks/hidden_markov.py --cpu                 # processor time, on a
    machine that others use

Peers that are not installed (pip install hmmlearn pomegranate) are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import command_line, resident

from probgen.distributions.covariance import Diagonal, Full
from probgen.models.emissions import GaussianEmission
from probgen.models.hidden_markov import HiddenMarkovModel

PROBLEMS = {"200 x 50, 50 states": (200, 50, 10, 50), "500 x 200, 8 states": (500, 200, 10, 8)}
TASKS = ("likelihood", "posteriors", "EM step")
FORMS = {"full": Full, "diag": Diagonal}


class Parameters(NamedTuple):
    """``(K,)``, ``(K, K)``, ``(K, D)``, ``(K, D, D)``, in float64."""

    initial: np.ndarray
    transitions: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def problem(
    rows: int, steps: int, dims: int, states: int, form: str
) -> tuple[np.ndarray, Parameters]:
    """Sequences from a chain that stays in its states for a while.

    And a start that is off the truth.
    """
    rng = np.random.default_rng(0)
    transitions = rng.dirichlet(np.ones(states), states) * 0.3 + 0.7 * np.eye(states)
    means = 1.5 * rng.normal(size=(states, dims))
    path = np.empty((steps, rows), int)
    path[0] = rng.integers(states, size=rows)
    for t in range(1, steps):
        path[t] = (
            (transitions[path[t - 1]].cumsum(-1) < rng.random((rows, 1)))
            .sum(-1)
            .clip(max=states - 1)
        )
    x = means[path.T] + rng.normal(size=(rows, steps, dims))
    roots = np.eye(dims) + 0.1 * rng.normal(size=(states, dims, dims)) * (form == "full")
    begin = 0.8 * transitions + 0.2 / states
    return x, Parameters(
        np.full(states, 1 / states),
        begin,
        means + 0.3 * rng.normal(size=means.shape),
        roots @ roots.mT,
    )


class Probgen:
    """The likelihood without gradients, the posterior of every state, and one step of EM."""

    def __init__(self, x: np.ndarray, begin: Parameters, form: str, dtype: str = "float32"):
        states, dims = begin.means.shape
        self.x = torch.as_tensor(x.astype(dtype))
        self.gen = HiddenMarkovModel(
            states, x.shape[1], GaussianEmission(states, dims, FORMS[form])
        ).to(self.x.dtype)
        with torch.no_grad():
            self.gen.initial.value.copy_(torch.tensor(begin.initial).log())
            self.gen.transition.value.copy_(torch.tensor(begin.transitions).log())
            self.gen.emission.loc.copy_(torch.tensor(begin.means))
            covariance = self.gen.emission.covariance
            factor = torch.linalg.cholesky(torch.tensor(begin.covariances))
            scale = factor.diagonal(dim1=-2, dim2=-1)
            covariance.log_scale.copy_(scale.log())
            if form == "full":
                i, j = torch.tril_indices(dims, dims, offset=-1)
                covariance.lower.copy_((factor / scale[..., None])[:, i, j])

    @torch.no_grad()
    def likelihood(self) -> float:
        return self.gen().log_prob(self.x).double().mean().item()

    @torch.no_grad()
    def posteriors(self) -> float:
        return self.gen().smooth(self.x)[0, 0, 0].item()

    @torch.no_grad()
    def step(self) -> None:
        self.gen.maximize(
            {name: part.double() for name, part in self.gen.expect(self.x)[1].items()}
        )

    def found(self) -> Parameters:
        tril = self.gen.emission.covariance.scale_tril.detach()
        parts = (
            self.gen.initial_probabilities,
            self.gen.transition_matrix,
            self.gen.emission.loc.detach(),
            tril @ tril.mT,
        )
        return Parameters(*(part.double().numpy() for part in parts))


class Hmmlearn:
    """Its compiled passes with scaling, which are its fast ones; no priors."""

    def __init__(self, x: np.ndarray, begin: Parameters, form: str):
        from hmmlearn.hmm import GaussianHMM

        self.x = x.reshape(-1, x.shape[-1])
        self.lengths = [x.shape[1]] * len(x)
        options = {
            "n_iter": 1,
            "tol": -np.inf,
            "init_params": "",
            "min_covar": 0.0,
            "covars_prior": 0.0,
        }
        self.model = GaussianHMM(len(begin.means), form, implementation="scaling", **options)
        self.model.startprob_, self.model.transmat_, self.model.means_ = begin[:3]
        covariances = begin.covariances
        self.model.covars_ = (
            covariances if form == "full" else np.diagonal(covariances, axis1=1, axis2=2).copy()
        )
        self.model.n_features = x.shape[-1]

    def likelihood(self) -> float:
        return self.model.score(self.x, self.lengths) / len(self.lengths)

    def posteriors(self) -> float:
        return self.model.score_samples(self.x, self.lengths)[1][0, 0]

    def step(self) -> None:
        self.model.fit(self.x, self.lengths)

    def found(self) -> Parameters:
        return Parameters(
            self.model.startprob_, self.model.transmat_, self.model.means_, self.model.covars_
        )


class Pomegranate:
    """In float32; with a probability of 1 to end anywhere, so that likelihoods compare."""

    def __init__(self, x: np.ndarray, begin: Parameters, form: str):
        from pomegranate.distributions import Normal
        from pomegranate.hmm import DenseHMM

        self.x = torch.as_tensor(x.astype("float32"))
        initial, transitions, means, covariances = (torch.tensor(part).float() for part in begin)
        if form == "diag":
            covariances = covariances.diagonal(dim1=-2, dim2=-1).clone()
        self.parts = [
            Normal(*pair, covariance_type=form) for pair in zip(means, covariances, strict=True)
        ]
        ends = torch.ones(len(means))
        self.model = DenseHMM(self.parts, edges=transitions, starts=initial, ends=ends)

    @torch.no_grad()
    def likelihood(self) -> float:
        return self.model.log_probability(self.x).double().mean().item()

    @torch.no_grad()
    def posteriors(self) -> float:
        return self.model.forward_backward(self.x)[1][0, 0, 0].exp().item()

    @torch.no_grad()
    def step(self) -> None:
        self.model.summarize(self.x)
        self.model.from_summaries()

    def found(self) -> None:
        """It estimates probabilities to end as well.

        So its likelihood after a step is another model's.
        """


PEERS = {"probgen": Probgen, "hmmlearn": Hmmlearn, "pomegranate": Pomegranate}


def installed(arguments: argparse.Namespace) -> dict[str, type]:
    return {
        name: peer for name, peer in PEERS.items() if name in arguments.peers and find_spec(name)
    }


def checked(x: np.ndarray, found: Parameters | None, form: str) -> float:
    """Mean log-likelihood of a sequence, by Probgen in float64."""
    return float("nan") if found is None else Probgen(x, found, form, "float64").likelihood()


def speed(arguments: argparse.Namespace) -> None:
    peers = installed(arguments)
    clock = time.process_time if arguments.cpu else time.perf_counter
    for title, sizes in PROBLEMS.items():
        x, begin = problem(*sizes, arguments.form)
        times: dict[str, dict[str, list[float]]] = {
            name: {task: [] for task in TASKS} for name in peers
        }
        values: dict[str, dict[str, float]] = {name: {} for name in peers}
        for turn in range(arguments.repeats + 1):
            for name, peer in peers.items():
                made = peer(x, begin, arguments.form)
                torch.set_num_threads(arguments.threads)  # which pomegranate changes
                for task, function in zip(
                    TASKS, (made.likelihood, made.posteriors, made.step), strict=True
                ):
                    began = clock()
                    values[name][task] = function()
                    times[name][task] += [clock() - began] * bool(turn)  # the first turn warms up
                if turn == 0:
                    values[name]["after"] = checked(x, made.found(), arguments.form)
                    values[name]["first"] = values[name]["posteriors"]
        report(f"{title}, 10 variables, {arguments.form} covariances", times, values)


def report(title: str, times: dict, values: dict) -> None:
    print(
        f"\n{title}\n{'milliseconds':14s}" + "".join(f"{task:>12s}{'ratio':>8s}" for task in TASKS),
        end="",
    )
    print(f"{'log-lik.':>14s}{'p(z_1 = 1)':>12s}{'after EM':>14s}")
    for name, tasks in times.items():
        line = f"{name:14s}"
        for task, each in tasks.items():
            ratio = statistics.median(
                b / a for a, b in zip(times["probgen"][task], each, strict=True)
            )
            line += f"{1e3 * statistics.median(each):12.1f}{ratio:7.1f}x"
        print(
            line
            + f"{values[name]['likelihood']:14.4f}{values[name]['first']:12.6f}{values[name]['after']:14.4f}"
        )


def long(arguments: argparse.Namespace, argv: list[str]) -> None:
    print(
        f"\none sequence of {arguments.steps:,} steps, 10 variables, 8 states, {arguments.form} "
        "covariances"
    )
    print(
        f"{'':14s}"
        + "".join(f"{task + ' s':>14s}" for task in TASKS)
        + f"{'peak MB':>10s}{'log-lik. a step':>18s}"
    )
    for name in installed(arguments):
        run = subprocess.run(
            [sys.executable, __file__, *argv, "--alone", name], capture_output=True, text=True
        )
        print(
            f"{name:14s}"
            + (
                run.stdout.splitlines()[-1]
                if run.returncode == 0
                else f"  failed ({run.returncode})"
            )
        )


def alone(arguments: argparse.Namespace) -> None:
    """All tasks once in this process, where the kernel's record of the peak is started anew."""
    x, begin = problem(1000, arguments.steps // 1000, 10, 8, arguments.form)
    x = x.reshape(1, -1, 10)
    made = PEERS[arguments.alone](x[:, :1000], begin, arguments.form)
    made.likelihood(), made.posteriors(), made.step()  # what the library itself loads
    made = PEERS[arguments.alone](x, begin, arguments.form)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    line = ""
    clock = time.process_time if arguments.cpu else time.perf_counter
    for function in (made.likelihood, made.posteriors, made.step):
        began = clock()
        value = function()
        if function == made.likelihood:
            score = value / arguments.steps
        line += f"{clock() - began:14.2f}"
    print(line + f"{resident() - before:10.0f}{score:18.6f}")


def main(argv: list[str]) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time in place of time")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", type=int, default=1_000_000, help="length of the long sequence")
    parser.add_argument("--only", choices=("speed", "long"))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        return alone(arguments)
    print(f"{arguments.threads} threads, load average {os.getloadavg()[0]:.1f}")
    if arguments.only != "long":
        speed(arguments)
    if arguments.only != "speed":
        long(arguments, argv)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
