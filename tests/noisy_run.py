"""A run in which every step counts: draws, running averages, schedules, validation, a file."""

import pyro.distributions as dist
import torch
from torch import nn

from probgen.core.module import DistributionModule
from probgen.train.fit import adam, fit


class Noisy(DistributionModule):
    """Dropout makes every draw count, batch normalization changes buffers in every step."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.3), nn.Linear(2, 2))

    def forward(self, context=None):
        return dist.Normal(self.loc + self.net(torch.ones(4, 2) * self.loc).mean(0), 1.0).to_event(
            1
        )


ROWS = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) + 1
STEPS = 12


def run(path=None, resume=False, data=ROWS, **settings):
    torch.manual_seed(1)
    gen = Noisy()
    usual = {
        "steps": STEPS,
        "batch_size": 8,
        "ema": 0.9,
        "clip": 1.0,
        "validation": ROWS[:8],
        "validate_every": 3,
        "optimizer": adam(0.05),
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9], 0.5),
        "checkpoint_every": 4,
        "seed": 3,
        "compile": False,
    }
    usual = usual | settings | {"verdict": False, "progress": False}
    if path is None:
        del usual["checkpoint_every"]
    return gen, fit(gen, data, checkpoint=path, resume=resume, **usual)


def identical(one, other, exact=True):
    (gen, history), (again, resumed) = one, other
    near = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    assert history.steps == resumed.steps
    assert [step for step, _ in history.validation] == [step for step, _ in resumed.validation]
    torch.testing.assert_close(torch.tensor(history.loss), torch.tensor(resumed.loss), **near)
    torch.testing.assert_close(
        torch.tensor(history.validation), torch.tensor(resumed.validation), **near
    )
    torch.testing.assert_close(dict(gen.state_dict()), dict(again.state_dict()), **near)
