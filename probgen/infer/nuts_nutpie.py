"""nutpie's No-U-Turn sampler on a log density compiled into one graph."""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.compile.broadcast_hoisting import hoist_broadcasts
from probgen.compile.column_order import order_columns
from probgen.compile.mask_indices import index_masks
from probgen.compile.tracing import Compiled, NotCompilable, Portable, record_operations
from probgen.core import checks
from probgen.core.turns import lent
from probgen.infer.log_density import value_and_grad
from probgen.infer.nuts import Chain, ChainInterrupt, ChainPlan, ChainSteps
from probgen.libraries import load
from probgen.parallel import are_sent

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "logp": "lp",
    "mean_tree_accept": "acceptance_rate",
    "step_size": "step_size",
    "n_steps": "n_steps",
    "depth": "tree_depth",
}


@dataclass(frozen=True)
class Nutpie:
    """The sampler of nutpie (Rust) on the log density and its gradient, compiled into one graph.

    It adapts the scales of the coordinates to gradients as well as to draws, and needs shorter
    warm-ups for it.

    Parameters
    ----------
    low_rank : bool
        Whether to adapt to correlations, too; for posteriors of up to some hundred dims.

    Raises
    ------
    ModuleNotFoundError
        From the call, without nutpie.
    NotCompilable
        From the call, if the log density cannot become one graph.

    References
    ----------
    https://github.com/pymc-devs/nutpie; Hoffman, Gelman (2014), The No-U-Turn sampler,
    https://arxiv.org/abs/1111.4246
    """

    low_rank: bool = False

    def __post_init__(self) -> None:
        checks.flag(low_rank=self.low_rank)

    def __call__(self, log_density: Callable[[Tensor], Tensor], example: Tensor) -> Chain:
        load("nutpie", "nutpie.compiled_pyfunc")  # its absence shows before a compilation

        if example.device.type != "cpu":
            raise NotCompilable(f"nutpie works in main memory, the model is on {example.device}")
        both = value_and_grad(log_density)
        recording = hoist_broadcasts(index_masks(record_operations(both, example)), example)
        recording = order_columns(recording)
        # processes that it is sent to need a library
        return NutpieChain(self, Compiled(recording).build(example, library=are_sent()), example)


class NutpieChain:
    """Chains on machine code, which other processes get without what it was made of."""

    def __init__(self, sampler: Nutpie, fast: Compiled | Portable, example: Tensor):
        self.sampler = sampler
        self.fast = fast
        self.example = example

    def __reduce__(self) -> tuple[Any, ...]:
        fast = self.fast.portable(self.example) if isinstance(self.fast, Compiled) else self.fast
        return NutpieChain, (self.sampler, fast, self.example)

    def __call__(self, start: Tensor, seed: int, plan: ChainPlan) -> ChainSteps:
        return one_chain(self.sampler, self.fast, start, seed, plan)


def one_chain(
    sampler: Nutpie, fast: ValueAndGrad, start: Tensor, seed: int, plan: ChainPlan
) -> ChainSteps:
    """A chain of a function that gives a log density and its gradient: ``(D,) -> (), (D,)``."""
    import nutpie

    with lent():  # other threads may go on: the compiled density runs no program
        trace = nutpie.sample(
            Callbacks(fast, start, plan).model(),
            draws=plan.draws,
            tune=plan.tune,
            chains=1,
            cores=1,
            seed=seed,
            target_accept=plan.target_accept,
            maxdepth=plan.max_tree_depth,
            store_unconstrained=True,
            progress_bar=False,
            return_raw_trace=True,
            **_adaptation(nutpie.sample, sampler.low_rank),
        )
    _, (steps,) = trace.get_arrow_trace()
    if not steps.num_rows:
        raise KeyboardInterrupt
    points = _column(steps, "unconstrained_draw").reshape(-1, len(start))
    made = ChainSteps(
        points.to(start), {name: _column(steps, column) for column, name in STATS.items()}
    )
    if steps.num_rows < plan.tune + plan.draws:  # nutpie ends early and quietly
        raise ChainInterrupt(made)
    return made


def _adaptation(sample: Callable[..., Any], low_rank: bool) -> dict[str, Any]:
    """What nutpie adapts, by the option that the installed version has (since 0.16.11 one name)."""
    if "adaptation" in inspect.signature(sample).parameters:
        return {"adaptation": "low_rank" if low_rank else "diag"}
    return {"low_rank_modified_mass_matrix": low_rank}


class Callbacks:
    """What nutpie calls during one chain, from a thread of its own."""

    def __init__(self, fast: ValueAndGrad, start: Tensor, plan: ChainPlan):
        self.fast = fast
        self.plan = plan
        self.dtype = start.numpy().dtype
        self.start = start.double().numpy()
        self.thread = ForeignThread()
        self.left = plan.tune + plan.draws
        self.tries = 0

    def model(self) -> Any:
        from nutpie.compiled_pyfunc import from_pyfunc

        # no variables: the points are among the statistics
        nothing: tuple[list, list, list] = ([], [], [])
        return from_pyfunc(
            len(self.start),
            lambda: self.log_density,
            lambda *_: self.after_step,
            *nothing,
            make_initial_point_fn=self.first,
        )

    def first(self, seed: int) -> np.ndarray:
        """The start; at later tries a point beside it.

        Nutpie takes none where an entry of the gradient is 0.
        """
        self.tries += 1
        if self.tries == 1:
            self.thread.keep()
            return self.start
        return self.start + 1e-3 * np.random.default_rng(seed).normal(size=len(self.start))

    def log_density(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = self.fast(torch.from_numpy(u.astype(self.dtype, copy=False)))
        return value.item(), grad.numpy().astype(np.float64, copy=False)

    def after_step(self, u: np.ndarray) -> dict[str, np.ndarray]:
        self.plan.advance()
        self.left -= 1
        if not self.left:
            self.thread.release()
        return {}


class ForeignThread:
    """Python's record of a thread that it did not start.

    Kept from one call out of that thread to the next.

    Without it the interpreter makes one for every call, which takes longer than a small log
    density.
    """

    def __init__(self) -> None:
        self._kept: int | None = None

    def keep(self) -> None:
        """To be called from the thread, once."""
        ctypes.pythonapi.PyGILState_Ensure()
        self._kept = threading.get_ident()

    def release(self) -> None:
        """To be called from the same thread at the end; does nothing in another one."""
        if self._kept == threading.get_ident():
            ctypes.pythonapi.PyGILState_Release(0)
            self._kept = None


def _column(table: Any, name: str) -> Tensor:
    """A column of an Arrow table, lists one after the other."""
    import pyarrow

    values = pyarrow.array(table.column(name))
    values = values.flatten() if pyarrow.types.is_nested(values.type) else values
    array = values.to_numpy(zero_copy_only=False)
    return torch.tensor(array.astype(np.int64) if array.dtype == np.uint64 else array)
