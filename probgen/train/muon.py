"""Muon: hidden weight matrices move along orthogonal directions, all else by AdamW."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.stacked import maps_of
from probgen.train.optimizers import Optimizer
from probgen.train.sharding import is_sharded

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: the steepest at zero that stay bounded
ITERATIONS = 5
SIZE = 0.2  # root mean square of an update of AdamW, in units of its rate (Liu et al. 2025)


@explained
def muon(
    hidden: nn.Module | Iterable[nn.Module],
    lr: float = 5e-3,
    *,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    others: float | None = None,
) -> Optimizer:
    r"""A factory of optimizers that orthogonalize the updates of hidden layers.

    For ``fit(..., optimizer=muon(gen.net.blocks))``. With the gradient G of a weight matrix W of
    size A x B

    .. math:: M \leftarrow \mu M + (1 - \mu) G, \qquad U = \mu M + (1 - \mu) G, \qquad
              W \leftarrow (1 - \eta \lambda) W - 0.2\, \eta \sqrt{\max(A, B)}\; \text{orth}(U)

    where orth replaces all singular values by numbers near 1, by five Newton-Schulz iterations in
    bfloat16. The factor makes an update as large as one of AdamW at the same rate, so that one
    learning rate, and one schedule, serves both. Kernels of convolutions are matrices of A outputs;
    a weight that stacks the matrices of several maps, such as queries, keys and values, counts as
    these (:class:`StacksMaps <probgen.core.stacked.StacksMaps>`).
    Transformers and convolutional networks reach a loss in fewer steps than by AdamW; the matrix
    products cost as much as some hundred rows of a batch.

    Parameters
    ----------
    hidden : nn.Module or iterable of nn.Module
        Layers whose weights of two dims and more are orthogonalized: the blocks of a transformer,
        not its embedding nor its last layer. Biases, scales and everything outside are updated by
        AdamW (averages decay by 0.9 and 0.99), without weight decay.
    lr : float
        Learning rate.
    momentum, weight_decay : float
        Of the matrices.
    others : float, optional
        Learning rate of everything else; default: ``lr``.

    Raises
    ------
    ValueError
        When it is called, if no weight matrix of ``hidden`` is trained; at the first step, if
        matrices are sharded over processes.

    References
    ----------
    Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein (2024), Muon: an optimizer for hidden layers
    in neural networks, https://kellerjordan.github.io/posts/muon/; Liu et al. (2025), Muon is
    scalable for LLM training, https://arxiv.org/abs/2502.16982

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
    >>> made = muon(net[2], lr=0.01, others=0.003)(net.parameters())
    >>> [(group["lr"], [tuple(p.shape) for p in group["params"]]) for group in made.param_groups]
    [(0.01, [(8, 8)]), (0.003, [(8, 2), (8,), (8,), (1, 8), (1,)])]
    """
    layers: Any = (hidden,) if isinstance(hidden, nn.Module) else hidden
    modules = tuple(layers) if isinstance(layers, Iterable) else layers
    checks.instances(nn.Module, "pass gen.net.blocks, or a list of layers", hidden=modules)
    checks.positive(lr=lr, **checks.given(others=others))
    checks.within("[0, 1)", momentum=momentum)
    checks.not_negative(weight_decay=weight_decay)
    matrix = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    other = {"lr": lr if others is None else others, "weight_decay": 0.0}

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        inside = {id(p): 1 for module in modules for p in module.parameters() if p.ndim > 1}
        for module in modules:
            inside |= maps_of(module)
        every = list(parameters)
        counts = sorted({inside[id(p)] for p in every if id(p) in inside})
        if not counts:
            raise ValueError(
                "expected layers of the model that is trained, with weights of two dims or more, "
                f"got none among {len(every)} parameters; pass muon(gen.net.blocks), or adam(1e-3)"
            )
        rest = [p for p in every if id(p) not in inside]
        groups = [
            {"params": [p for p in every if inside.get(id(p)) == count], "maps": count, **matrix}
            for count in counts
        ]
        return MuonAdamW(groups + [{"params": rest, **other}] * bool(rest))

    return make


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups of ``maps=1`` or more in every weight, AdamW for all others.

    See :func:`muon`.

    >>> weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    >>> groups = [{"params": [weight], "maps": 1}, {"params": [bias]}]
    >>> optimizer = MuonAdamW(groups, lr=0.1)
    >>> (weight.sum() + bias.sum()).backward()
    >>> optimizer.step()
    >>> bias.data
    tensor([-0.1000, -0.1000])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "betas": betas, "eps": eps, "maps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                (self._orthogonal if group["maps"] else self._adamw)(moved, group)
        return loss

    def _orthogonal(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Matrices of one size are orthogonalized together."""
        maps = group["maps"]
        alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for p in parameters:
            if is_sharded(p):
                raise ValueError(
                    "expected whole matrices, got parts that are sharded over processes; pass "
                    "strategy='ddp', or train with adam(1e-3)"
                )
            alike[len(p), p.numel(), p.dtype, p.device].append(p)
        rate, mu = group["lr"], group["momentum"]
        for members in alike.values():
            directions = torch.stack(
                [self._direction(p, mu).flatten(1).unflatten(0, (maps, -1)) for p in members]
            )
            size = SIZE * math.sqrt(max(directions.shape[2:]))
            for p, update in zip(members, orthogonalized(directions), strict=True):
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-float(rate * size))

    def _direction(self, p: nn.Parameter, momentum: float) -> Tensor:
        """The average gradient, one step ahead (Nesterov)."""
        state: dict[str, Tensor] = self.state[p]
        assert p.grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        mean = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(mean, momentum)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        means, squares, steps = (
            [state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")
        )
        values: list[Any] = list(parameters)
        gradients: list[Any] = [p.grad for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            values, gradients, means, squares, [], steps, amsgrad=False, beta1=beta1,
            beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip


def orthogonalized(matrices: Tensor) -> Tensor:
    r"""Nearly U V' of the singular value decomposition U S V', ``(*batch, A, B)`` to the same.

    Five iterations of a polynomial that all singular values pass through, after a division by the
    Frobenius norm,

    .. math:: X \leftarrow a X + (b X X^T + c (X X^T)^2) X,

    in bfloat16; a matrix of zeros stays one.

    Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/

    >>> matrix = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    >>> values = torch.linalg.svdvals(orthogonalized(matrix))
    >>> ((0.6 < values) & (values < 1.3)).all()
    tensor(True)
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp_min(1e-7)
    x = (x.mT if tall else x).bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)
