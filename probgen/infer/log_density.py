"""The log density of a Pyro program in unconstrained space: a pure function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from probgen.compile.tracing import NotCompilable, record_operations
from probgen.core.enumerating import enumerating
from probgen.core.kinds import density_kind
from probgen.core.missing import assume_missing
from probgen.core.private_torch import pytree
from probgen.core.recording import Recorder, enumerated_elbo, log_prob
from probgen.core.rows import tensors_of
from probgen.core.runtime import evaluating, validation
from probgen.core.sites import (
    Site,
    densities,
    density_sites,
    is_deterministic,
    is_enumerated,
    latent_sites,
    plate_dims,
    role,
    sample_sites,
    shape_of,
)
from probgen.core.sums import sum_of
from probgen.infer.posterior import complete
from probgen.infer.precision import Cast, default_dtype
from probgen.infer.simulate import Draws, trace_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


class LogDensity:
    r"""The log joint density of a program and its data at a point u of unconstrained space.

    .. math:: \ell(u) = \log \sum_k p(x, k, \theta(u)) + \log \left| \frac{\partial \theta}{\partial u} \right|

    u holds the continuous latent sites one after the other, each carried to the reals by the
    bijection that :func:`torch.distributions.biject_to` has for its support; a bound may depend on
    other sites. Sites marked ``infer={"enumerate": "parallel"}`` are summed out exactly; masks,
    scales and factors count, but entries of latent sites that a tensor masks keep their prior,
    which integrates to one. Parameters of modules stay as they are.

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program; its guide is not used.
    *batch : Tensor
        What the programs take: all of the data.
    dtype : torch.dtype, optional
        Precision of all that is computed, on copies of parameters, buffers and data; default: that
        of the model.

    Attributes
    ----------
    batch : tuple
        The data that the density reads at every call: converted copies under another ``dtype``.
    origin : Tensor
        The point zero, ``(D,)``: tells number of dims, precision and device.
    shapes : dict of str to torch.Size
        Natural shape ``(*plate dims, *event)`` of every site in u, in the order of u.

    Raises
    ------
    ValueError
        If nothing is observed, a plate is subsampled, a discrete site is not enumerated, a site's
        density is only estimated, or there is no continuous latent site.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> def model(x):
    ...     rate = pyro.sample("rate", dist.Exponential(1.0))
    ...     pyro.sample("x", dist.Exponential(rate), obs=x)
    >>> log_density = LogDensity(Program(model), torch.tensor(2.0))
    >>> log_density(torch.zeros(1))            # at rate 1: -1 (prior), -2 (likelihood), 0 (Jacobian)
    tensor(-3.)
    >>> log_density.constrain(torch.tensor([[0.0], [1.0]]))
    {'rate': tensor([1.0000, 2.7183])}
    """

    def __init__(self, gen: GenerativeModel, *batch: Any, dtype: torch.dtype | None = None):
        if dtype is None and any(value.dtype == torch.float64 for value in tensors_of(batch)):
            dtype = torch.float64  # the data are that precise: so is the density
        self._cast = None if dtype is None else Cast(dtype)
        self.batch = batch if self._cast is None else self._cast.cast(batch)
        with torch.no_grad(), self._precision():
            probe = trace_of(gen.model, self.batch)
            self.gen = gen = enumerating(gen, latent_sites(probe).values())
            probe = trace_of(gen.model, self.batch)
            sites = sampled_sites(probe, not batch and gen.takes_nothing)
            pieces = [biject_to(site["fn"].support).inv(site["value"]) for site in sites.values()]
        self.origin = pieces[0].new_zeros(sum(piece.numel() for piece in pieces))
        self.shapes = {name: shape_of(site) for name, site in sites.items()}
        self._pieces = {name: piece.shape for name, piece in zip(sites, pieces, strict=True)}
        self._values = {name: site["value"].shape for name, site in sites.items()}
        found = sample_sites(probe).values()
        self._deterministic = [site["name"] for site in found if is_deterministic(site)]
        self._enumerated = any(is_enumerated(site) and not site["is_observed"] for site in found)
        self._plate_dims = max(gen.max_plate_nesting, plate_dims(probe))
        self._missing = any(
            _has_nan(value)
            for value in [*pytree.tree_leaves(self.batch), *(s["value"] for s in found)]
        )

    def __call__(self, u: Tensor) -> Tensor:
        """The log density in nats: ``(D,) -> ()``."""
        placed = Placed(self._split(u))
        with self._running(), placed:
            value = self._summed_out() if self._enumerated else self._joint()
        return value + sum(placed.log_jacobians)

    def constrain(self, u: Tensor) -> Draws:
        """Natural values of the latent and deterministic sites at many points.

        ``(S, D) -> (S, *natural shape)`` each.

        Deterministic sites of a program with enumerated ones see draws of those from their exact
        conditional.
        """
        values = for_each(self._natural, u.detach())
        if not (self._enumerated and self._deterministic):
            return values
        with self._running():
            return complete(self.gen, *self.batch, given=values, discrete=False)

    def unconstrain(self, values: Mapping[str, Tensor], u: Tensor) -> Tensor:
        """Points ``u``, ``(S, D)``.

        With the coordinates of some sites replaced by the images of natural values.

        Raises ``ValueError`` if the values of a site are not of shape ``(S, *natural shape)``.
        """
        given = {
            name: value.detach().to(u) for name, value in values.items() if name in self.shapes
        }
        for name, value in given.items():
            if value.shape != (expected := (len(u), *self.shapes[name])):
                raise ValueError(
                    f"expected values of '{name}' of shape {tuple(expected)}, got "
                    f"{tuple(value.shape)}"
                )
        return for_each(partial(self._place, list(given)), u, *given.values()) if given else u

    def _joint(self) -> Tensor:
        """log p(x, theta) of a program without sites to sum out."""
        with (recorder := Recorder()):
            self.gen.model(*self.batch)
        return sum_of(log_prob(site).sum() for site in densities(recorder.sites).values())

    def _summed_out(self) -> Tensor:
        """log p(x, theta) by message passing.

        The evidence bound with nothing left to draw is exact.
        """
        expanded = poutine.enum(self.gen.model, first_available_dim=-1 - self._plate_dims)
        return enumerated_elbo(
            prune_subsample_sites(poutine.trace(expanded).get_trace(*self.batch)), poutine.Trace()
        )

    def _natural(self, u: Tensor) -> Draws:
        """Natural values of the sites at one point ``(D,)``."""
        placed = Placed(self._split(u))
        with self._running(), placed, (recorder := Recorder()):
            self.gen.model(*self.batch)
        values = {name: placed.natural[name].reshape(shape) for name, shape in self.shapes.items()}
        return (
            values
            if self._enumerated
            else values | {n: recorder.sites[n]["value"] for n in self._deterministic}
        )

    def _place(self, names: list[str], u: Tensor, *natural: Tensor) -> Tensor:
        """One point ``(D,)`` with some natural values put into it."""
        given = {
            name: value.reshape(self._values[name])
            for name, value in zip(names, natural, strict=True)
        }
        placed = Placed(self._split(u), given)
        with self._running(), placed:
            self.gen.model(*self.batch)
        return torch.cat([placed.unconstrained[name].flatten() for name in self.shapes])

    def _split(self, u: Tensor) -> Draws:
        parts = u.split([shape.numel() for shape in self._pieces.values()])
        return {
            n: part.reshape(shape)
            for (n, shape), part in zip(self._pieces.items(), parts, strict=True)
        }

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Runs of the program on its own.

        A trajectory may leave a support by rounding, so values are not checked.
        """
        with (
            evaluating(),
            validation(False),
            assume_missing(self._missing),
            self._precision(),
        ):
            yield

    @contextmanager
    def _precision(self) -> Iterator[None]:
        if self._cast is None:
            yield
        else:
            with default_dtype(self._cast.dtype), self._cast:
                yield


class Placed(Messenger):
    """Gives latent sites their values.

    Natural ones where there are some, else the images of unconstrained ones.

    Attributes
    ----------
    unconstrained, natural : dict of str to Tensor
        Both values of every site met.
    log_jacobians : list of Tensor
        The logarithm of the volume change of each bijection, a scalar.
    """

    def __init__(
        self, unconstrained: Mapping[str, Tensor], natural: Mapping[str, Tensor] | None = None
    ):
        super().__init__()
        self.unconstrained = dict(unconstrained)
        self.natural = dict(natural or {})
        self.log_jacobians: list[Tensor] = []

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if msg["is_observed"] or name not in self.unconstrained:
            return
        if torch.is_tensor(
            msg["mask"]
        ):  # nothing depends on masked entries: their prior makes the density proper
            msg["mask"] = None
        bijection = biject_to(msg["fn"].support)
        if name in self.natural:
            self.unconstrained[name] = bijection.inv(self.natural[name])
        else:
            self.natural[name] = bijection(self.unconstrained[name])
        u = self.unconstrained[name]
        value = self.natural[name]
        self.log_jacobians.append(bijection.log_abs_det_jacobian(u, value).sum())
        msg["value"], msg["done"] = value, True


def value_and_grad(
    function: Callable[[Tensor], Tensor],
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A scalar function of one tensor with its gradient, both detached.

    >>> value_and_grad(lambda u: (u**2).sum())(torch.tensor([1.0, 2.0]))
    (tensor(5.), tensor([2., 4.]))
    """

    def both(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            value = function(leaf)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

    return both


@torch.no_grad()
def for_each(function: Callable[..., Any], *rows: Tensor, numbers: int = 2**23) -> Any:
    """A function of one row of each argument, for all rows: its results stacked, ``(S, ...)``.

    The operations that the results need are recorded once and run for many rows together, at most
    ``numbers`` numbers in any of them; a function that cannot be recorded is called row by row.

    >>> for_each(lambda row: {"sum": row.sum()}, torch.ones(3, 2))
    {'sum': tensor([2., 2., 2.])}
    """
    try:
        recording: Any = record_operations(function, *(row[0] for row in rows))
        graph = recording.graph
        graph.graph.eliminate_dead_code()
        graph.recompile()
        largest = max(
            node.meta["val"].numel()
            for node in graph.graph.nodes
            if torch.is_tensor(node.meta.get("val"))
        )
        return torch.vmap(
            recording, randomness="different", chunk_size=max(1, numbers // max(1, largest))
        )(*rows)
    except (NotCompilable, RuntimeError):
        found = [function(*row) for row in zip(*rows, strict=True)]
        return pytree.tree_map(lambda *values: torch.stack(values), *found)


def sampled_sites(probe: poutine.Trace, whole: bool = False) -> dict[str, Site]:
    """The continuous latent sites of a plain run.

    Refuses programs that a sampler would get wrong.
    """
    given = any(role(site) in ("observed", "factor") for site in density_sites(probe).values())
    if not given and not whole:
        raise ValueError(
            "expected observed sites, found none; pass the data, or draw with prior_predictive"
        )
    for site in sample_sites(probe).values():
        _check_plates(site)
        _check_density(site)
    sites = {name: site for name, site in latent_sites(probe).items() if not is_enumerated(site)}
    for name, site in sites.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"expected continuous latent sites, '{name}' is discrete; sum it out with "
                f"infer={{'enumerate': "
                "'parallel'}, or write the marginal density (probgen.distributions)"
            )
    if not sites:
        raise ValueError(
            "expected continuous latent sites, found none; there is nothing to draw by MCMC"
        )
    return sites


def _check_plates(site: Site) -> None:
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"expected the full data, plate '{frame.name}' around site '{site['name']}' holds "
                f"{frame.size} of "
                f"{frame.full_size} rows; MCMC needs all rows, or use fit with a guide for "
                "mini-batches"
            )


def _check_density(site: Site) -> None:
    """A latent prior may lack its constant; a likelihood must not, and no term may be random."""
    kind = density_kind(site["fn"])
    allowed = ("exact",) if site["is_observed"] else ("exact", "unnormalized")
    if kind not in allowed:
        raise ValueError(
            f"expected an exact density at site '{site['name']}', got {kind}; its gradient is not "
            "that of the "
            "posterior: use a family with an exact density there, or fit a guide"
        )


def _has_nan(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_floating_point() and bool(value.isnan().any())
