"""What is said of a run that Ctrl-C ended: where it stands, and how it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probgen.train.loop import RunPlan
    from probgen.train.run import Run


def how_to_go_on(run: Run, plan: RunPlan, stages: int) -> str:
    """One line: at which step of how many the run stopped, what is kept, and what to call.

    Parameters
    ----------
    run : Run
        That was stopped.
    plan : RunPlan
        What it was to do.
    stages : int
        How many stages there are.
    """
    where = f"interrupted at {_place(run, plan)}"
    if stages > 1:
        begun = "before" if _is_over(run, plan) else "in"
        where += f", {begun} stage {_stage(run, plan)} of {stages}"
    if plan.checkpoint is not None and run.saved == run.step:
        return (
            f"{where}, before training was done; {plan.checkpoint} has the state: the same call "
            "with resume=True continues"
        )
    return (
        f"{where}, before training was done; the model has the weights of then, the state of the "
        f"optimizer and the order of the data are lost: the same call with {_rest(run, plan, stages)} "
        "trains on from these weights, and checkpoint='run.ckpt' keeps everything"
    )


def _place(run: Run, plan: RunPlan) -> str:
    text = f"step {run.step:,}"
    if plan.steps is not None:
        return f"{text} of {plan.steps:,}"
    return f"{text}, in epoch {run.source.epoch + 1} of {plan.epochs}"


def _is_over(run: Run, plan: RunPlan) -> bool:
    """Whether the stage was done, and what came was between two of them."""
    return plan.done(run) is not None


def _stage(run: Run, plan: RunPlan) -> int:
    """The number of the stage that goes on, from 1."""
    return run.standing.number + 1 + _is_over(run, plan)


def _rest(run: Run, plan: RunPlan, stages: int) -> str:
    if stages > 1:
        return f"the stages from the {_stage(run, plan)}. on"
    if plan.steps is not None:
        return f"steps={plan.steps - run.step}"
    return f"epochs={max(1, (plan.epochs or 1) - run.source.epoch)}"
