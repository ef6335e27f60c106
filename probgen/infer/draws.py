"""Draws made elsewhere as chains of this library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probgen.infer.given import GivenDraws, by_chain, statistics
from probgen.infer.mcmc import Chains

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


def as_chains(draws: GivenDraws, gen: GenerativeModel, batch: tuple) -> Chains:
    """Draws of the latent sites of a model as :class:`Chains`, whoever made them.

    Parameters
    ----------
    draws : Chains, mapping of str to Tensor or array, pyro.infer.MCMC, pyro.infer.Importance or
    CSIS
        Tensors of shape ``(draw, *shape)`` or ``(chain, draw, *shape)``, told by the natural shape
        of their site. Weighted traces are drawn by their weights, from torch's generator.
    gen : GenerativeModel
        The model that they belong to.
    batch : tuple
        What its programs take.

    Raises
    ------
    ValueError
        For unknown sites, shapes that are no draws of a site, or different numbers of draws.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> gen = Program(lambda: pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0)))
    >>> as_chains({"mu": torch.zeros(50, 3)}, gen, ()).draws["mu"].shape
    torch.Size([1, 50, 3])
    >>> as_chains({"mu": torch.zeros(4, 50, 3)}, gen, ()).draws["mu"].shape
    torch.Size([4, 50, 3])
    """
    values = by_chain(draws, gen, batch)
    warmup = draws.warmup if isinstance(draws, Chains) else None
    return Chains(values, statistics(draws), warmup)
