"""Control variates of score-function terms.

What a program asks for, and the mean of the other particles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core.construction import Recorded
from probgen.core.private_torch import pytree
from probgen.core.recording import score_function
from probgen.core.sites import Site, Sites, is_summed

AVERAGE = "average_"


class Signal(NamedTuple):
    """A draw that was not reparameterized.

    Its site, the term whose gradient is its score, and the costs it had.

    Both entry by entry. The costs are those in the site's own plates, without a gradient.
    """

    site: Site
    score: Tensor
    cost: Tensor


class Baseline(NamedTuple):
    """What ``infer={"baseline": {...}}`` of a guide site may hold.

    With Pyro's names and defaults.
    """

    nn_baseline: Any = None
    nn_baseline_input: Any = None
    use_decaying_avg_baseline: bool = False
    baseline_beta: float = 0.90
    baseline_value: Any = None

    def learned(self, signal: Signal) -> Tensor:
        """The value of the network, or the one that was given, with gradients.

        An entry for each of the score's.
        """
        if self.nn_baseline is not None:
            value = self.nn_baseline(
                pytree.tree_map_only(Tensor, Tensor.detach, self.nn_baseline_input)
            )
        else:
            value = torch.as_tensor(
                self.baseline_value, dtype=signal.score.dtype, device=signal.score.device
            )
        wanted = signal.score.shape
        got = value.shape
        if len(got) > len(wanted) or any(
            a not in (1, b) for a, b in zip(got[::-1], wanted[::-1], strict=False)
        ):
            raise ValueError(
                f"expected a baseline of shape {tuple(wanted)} at guide site "
                f"'{signal.site['name']}', one number per "
                f"draw, got {tuple(got)}; drop dims of size 1 with squeeze(-1)"
            )
        return value.expand(wanted)


def baseline_of(site: Site) -> Baseline | None:
    """The options of a guide site; ``None`` where it has none, or none that asks for anything.

    Raises ``ValueError`` for options that are unknown, incomplete, or exclude each other.

    >>> baseline_of({"name": "z", "infer": {"baseline": {"use_decaying_avg_baseline": True}}}).baseline_beta
    0.9
    """
    given = site["infer"].get("baseline") or {}
    name = site["name"]
    if unknown := sorted(given.keys() - set(Baseline._fields)):
        raise ValueError(
            f"expected baseline options among {', '.join(Baseline._fields)} at guide site "
            f"'{name}', got "
            f"{', '.join(map(repr, unknown))}; rename or drop it"
        )
    options = Baseline(**given)
    if options.nn_baseline is not None and options.baseline_value is not None:
        raise ValueError(
            f"expected nn_baseline or baseline_value at guide site '{name}', got both; drop one"
        )
    if (options.nn_baseline is None) != (options.nn_baseline_input is None):
        raise ValueError(
            f"expected nn_baseline together with nn_baseline_input at guide site '{name}', got one "
            "of them; pass both"
        )
    if not 0 <= options.baseline_beta < 1:
        raise ValueError(
            f"expected 0 <= baseline_beta < 1 at guide site '{name}', got {options.baseline_beta}"
        )
    learns = options.nn_baseline is not None or options.baseline_value is not None
    return options if learns or options.use_decaying_avg_baseline else None


def refuse_baselines(guide: Sites, objective: str) -> None:
    """Refuses baselines where an objective that knows none would need them.

    At sites with score-function terms.
    """
    for name, site in guide.items():
        drawn = not site["is_observed"] and not is_summed(site)
        if drawn and baseline_of(site) is not None and score_function(site) is not None:
            raise ValueError(
                f"{objective}: expected guide sites without infer={{'baseline': ...}}, got "
                f"'{name}'; drop it, or use "
                "ELBO() with that site and all others drawn"
            )


class Baselines(Recorded, nn.Module):
    r"""Score-function terms of an evidence lower bound, with control variates.

    Keeps decaying averages as buffers.

    For a draw with score s and downstream reward r, the log p - log q in its plates (its own left
    out where that divergence is in closed form), the term's gradient is :math:`-\nabla s \, (r -
    b)` for a baseline b that does not depend on the draw: the mean of the other particles, and what
    the site asks for in ``infer={"baseline": {...}}``, by Pyro's names:

    - ``use_decaying_avg_baseline`` with ``baseline_beta``: :math:`\bar r \leftarrow \beta \bar r +
      (1 - \beta) r`, an average per entry over the steps before, from 0, in training mode. A batch
      of another size uses, and moves, the mean over its rows. Against the other particles it adds
      nothing.
    - ``nn_baseline`` with ``nn_baseline_input``: a network's value, which learns by the gradient of
      its squared error; the loss keeps its value. Its parameters are trained where they are
      parameters of the model.
    - ``baseline_value``: the same for a tensor.

    References
    ----------
    Mnih, Gregor (2014), Neural variational inference and learning in belief networks,
    https://arxiv.org/abs/1402.0030; Schulman, Heess, Weber, Abbeel (2015),
    https://arxiv.org/abs/1506.05254

    >>> site = {"name": "z", "infer": {"baseline": {"baseline_value": -2.0}}}
    >>> score = torch.zeros(3, requires_grad=True)
    >>> loss = Baselines()([[Signal(site, score, torch.tensor([2.0, 3.0, 4.0]))]])
    >>> loss, torch.autograd.grad(loss, score)
    (tensor(0., grad_fn=<AddBackward0>), (tensor([0., 1., 2.]),))
    """

    def forward(self, runs: list[list[Signal]], particles: int = 1) -> Tensor | float:
        """Zero, with the gradient of the score-function terms.

        Particles stand in the first dim, or in a run each.
        """
        total: Tensor | float = 0.0
        for signals in zip(*runs, strict=True):
            score = _together([signal.score for signal in signals])
            cost, error = self._against(signals, particles)
            if particles > 1:
                cost = (cost - cost.mean(0)) * (particles / (particles - 1))
            total = total + ((score - score.detach()) * cost).sum() + error
        return total

    def start(self, name: str, like: Tensor) -> Tensor:
        """The buffer with the average of a site.

        Made here, with zeros of that shape, where there is none.
        """
        key = AVERAGE + name.replace(".", "/")  # buffers have no dots in their names
        if key not in self._buffers:
            self.register_buffer(key, torch.zeros_like(like))
        return self.get_buffer(key)

    def _against(
        self, signals: tuple[Signal, ...], particles: int
    ) -> tuple[Tensor, Tensor | float]:
        """Costs less what the site's baseline predicts.

        And zero with the gradient of its squared error.
        """
        options: list[Any] = [baseline_of(signal.site) for signal in signals]
        if options[0] is None:
            return _together([signal.cost for signal in signals]), 0.0
        reward = _together([-signal.cost.expand(signal.score.shape) for signal in signals])
        guess = torch.zeros_like(reward)
        if options[0].use_decaying_avg_baseline:
            recent = reward.mean(0) if particles > 1 else reward
            guess = guess + self._average(signals[0].site["name"], recent, options[0].baseline_beta)
        if options[0].nn_baseline is None and options[0].baseline_value is None:
            return guess - reward, 0.0
        guess = guess + _together(
            [own.learned(signal) for own, signal in zip(options, signals, strict=True)]
        )
        error = (reward - guess).square().sum()
        return guess.detach() - reward, error - error.detach()

    def _average(self, name: str, reward: Tensor, beta: float) -> Tensor:
        """The average over the steps before; takes this one in."""
        kept = self.start(name, reward)
        old = kept.clone()
        others = [d for d in range(-kept.ndim, 0) if kept.shape[d] != reward.shape[d]]
        if others:  # a batch of another size
            old, reward = (value.mean(others, keepdim=True) for value in (old, reward))
        if self.training:
            kept.lerp_(reward.expand(kept.shape), 1 - beta)
        return old

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in state_dict.items():
            if name.startswith(prefix + AVERAGE):
                self.start(name[len(prefix + AVERAGE) :], value)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _together(tensors: list[Tensor]) -> Tensor:
    """One run as it is, several stacked."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)
