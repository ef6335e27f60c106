"""Updates as functions of tensors against torch's own optimizers."""

import pytest
import torch

from probgen.train.compiled.optimizer_updates import ADAM, OUTSIDE, SGD, rule_of

KINDS = {
    "Adam": (torch.optim.Adam, {"lr": 0.1}),
    "Adam, all options": (
        torch.optim.Adam,
        {"lr": 0.1, "weight_decay": 0.2, "amsgrad": True, "maximize": True},
    ),
    "AdamW": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
    "AdamW, all options": (
        torch.optim.AdamW,
        {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True, "maximize": True},
    ),
    "Adam with decoupled decay": (
        torch.optim.Adam,
        {"weight_decay": 0.3, "decoupled_weight_decay": True},
    ),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.2, "maximize": True}),
    "SGD with momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "SGD with Nesterov's": (
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
}


def changed(group, step):
    """Hyperparameters of a group after so many steps: as schedulers and callbacks change them."""
    group["lr"] = 0.1 / (1 + step)
    if "betas" in group:
        group["betas"] = (0.9 - 0.1 * step, 0.99 + 0.001 * step)
    elif group["momentum"]:
        group["momentum"] = 0.8 - 0.1 * step
    group["weight_decay"] += 0.05 * step


@pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=["32", "64"]
)
def test_the_rule_is_the_optimizer(kind, options, dtype, near):
    """From the second step on: the optimizer itself makes the first one, and its state."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(7, dtype=dtype, generator=generator) for _ in range(6)]
    p = torch.nn.Parameter(torch.randn(7, dtype=dtype, generator=generator))
    optimizer = kind([p], **options)
    group, rule = optimizer.param_groups[0], rule_of(optimizer)
    for step, gradient in enumerate(gradients):
        kept = {
            key: torch.as_tensor(v).clone()
            for key, v in optimizer.state[p].items()
            if v is not None
        }
        tensors = {"value": p.detach().clone(), **kept}
        p.grad = gradient.clone()
        optimizer.step()
        if step:
            numbers = torch.tensor(rule.numbers(group), dtype=torch.float64).unbind()
            factors = [factor.to(dtype) for factor in rule.factors(numbers, tensors)]
            new = rule.update(tensors, gradient, factors, group)
            assert new.keys() == tensors.keys()
            torch.testing.assert_close(new["value"], p.detach(), rtol=near, atol=near)
            for key in kept:
                torch.testing.assert_close(new[key], optimizer.state[p][key], rtol=near, atol=near)
        changed(group, step)


def test_other_optimizers_stay_outside():
    class Own(torch.optim.Adam):
        pass

    p = [torch.zeros(1)]
    assert rule_of(torch.optim.Adam(p)) is rule_of(torch.optim.AdamW(p)) is ADAM
    assert rule_of(torch.optim.SGD(p)) is SGD
    assert rule_of(torch.optim.RMSprop(p)) is rule_of(Own(p)) is OUTSIDE
