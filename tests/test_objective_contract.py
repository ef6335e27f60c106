"""What objectives tell fit.

Whether their value descends, and what they make from a batch before the first step.
"""

import pytest
import torch
from torch import nn
from toys import Local

from probgen.objectives.base import Objective
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from probgen.train.checkpoint import CheckpointError
from probgen.train.fit import fit


class Remembering(Objective):
    """A stand-in for persistent chains.

    A buffer of the shape of the data, which takes part in the loss and moves.
    """

    descends = False

    def prepare(self, model, guide, *batch):
        self.register_buffer("chains", torch.zeros_like(batch[0]))
        self.bias = nn.Parameter(torch.zeros(batch[0].shape[1:]))

    def differentiable_loss(self, model, guide, *batch):
        guide(*batch)
        model(*batch)
        if self.training:
            self.chains.lerp_(torch.randn_like(self.chains), 0.3)
        return (batch[0] - self.bias - self.chains[: len(batch[0])]).square().sum() + self.weight(
            model
        )

    def weight(self, model):
        return sum(p.square().sum() for p in model.__self__.parameters())


def rows(n=20):
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def test_what_is_made_from_a_batch_is_trained_and_moves():
    objective = Remembering()
    fit(Local(), rows(), objective, steps=3, batch_size=8, verdict=False)
    assert objective.chains.shape == (8,) and objective.chains.any()
    assert objective.bias.any()


def test_compiled_chains_are_the_same(replayed):
    objectives, losses = (Remembering(), Remembering()), []
    for objective, compiled in zip(objectives, (False, True), strict=True):
        options = {"batch_size": 10, "verdict": False, "seed": 3, "compile": compiled}
        losses.append(fit(Local(), rows(), objective, steps=6, **options).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch.allclose(objectives[0].chains, objectives[1].chains, atol=1e-5)


def test_chains_resume_bit_for_bit(tmp_path):
    options = {"batch_size": 10, "verdict": False, "seed": 3, "compile": False}
    whole = fit(Local(), rows(), Remembering(), steps=6, **options).loss
    fit(Local(), rows(), Remembering(), steps=3, checkpoint=tmp_path / "state", **options)
    both = fit(
        Local(),
        rows(),
        Remembering(),
        steps=6,
        checkpoint=tmp_path / "state",
        resume=True,
        **options,
    )
    assert both.loss == whole


def test_a_state_of_other_chains_is_refused(tmp_path):
    fit(
        Local(),
        rows(),
        Remembering(),
        steps=1,
        batch_size=8,
        checkpoint=tmp_path / "state",
        verdict=False,
    )
    with pytest.raises(CheckpointError, match="chains: expected shape"):
        fit(
            Local(),
            rows(),
            Remembering(),
            steps=2,
            batch_size=4,
            checkpoint=tmp_path / "state",
            resume=True,
        )


def test_a_value_that_does_not_descend_is_neither_judged_nor_waited_for():
    gen, options = Local(), {"steps": 30, "batch_size": 8}
    assert fit(gen, rows(), Remembering(), **options).verdict.settled is None
    with pytest.raises(ValueError, match=r"for patience, got Remembering; drop patience"):
        fit(gen, rows(), Remembering(), validation=rows(), patience=2, **options)


def test_distributions_are_asked_in_words():
    with pytest.raises(
        TypeError,
        match=r"PseudoLikelihood: expected a distribution with pseudo_log_prob at site 'x', got "
        r"Norm",
    ):
        fit(Local(), rows(), PseudoLikelihood(), steps=1)
