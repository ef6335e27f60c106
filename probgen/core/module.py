"""The contract: a generative model is a distribution, defined by a Pyro program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.arguments import is_plain, own_dtype
from probgen.core.contexts import check_no_texts, declares_contexts, for_each_context
from probgen.core.conversion import has_named_columns, rows_from
from probgen.core.described import described
from probgen.core.marginal import Marginal
from probgen.core.ragged import Ragged, with_one_series, with_sequences
from probgen.core.runtime import RowPlate


def data_plate(x: Tensor | None = None, context: Tensor | None = None) -> RowPlate:
    """The plate ``"data"`` at dim -1.

    One independent entry per row of ``x``, else of ``context``, else one.

    Models open it and never ask about mini-batches: :func:`probgen.fit` rescales what stands
    outside it.

    >>> data_plate(torch.zeros(7, 2)).size
    7
    """
    rows = x if x is not None else context
    return RowPlate("data", 1 if rows is None else rows.shape[0], dim=-1)


def first_length(batch: tuple) -> int | None:
    """The length of the first argument with dims.

    The rows of a family, whose arguments are ``x`` and ``context``.
    """
    return next((len(value) for value in batch if torch.is_tensor(value) and value.ndim), None)


def settled_batch(module: nn.Module, batch: tuple) -> tuple:
    """``x`` and ``context`` of a family as tensors of its own floating-point type.

    ``x`` are numbers, whatever they came as, unless the family ``keeps_integers``; integers of a
    context are left to what takes it.

    >>> settled_batch(nn.Linear(2, 1), ([[1, None]], None))
    (tensor([[1., nan]]), None)
    """
    if len(batch) > 2:
        raise TypeError(
            f"expected x and context at most, got {len(batch)} arguments; pass options by name"
        )
    own = own_dtype(module)
    named = zip(("x", "context"), batch, strict=False)
    return tuple(_settled(module, name, value, own) for name, value in named)


def _settled(module: Any, name: str, value: Any, own: torch.dtype | None) -> Any:
    if value is None or (name == "context" and isinstance(value, int | float)):
        return value
    if name == "x" and isinstance(value, list | tuple):
        value = with_sequences(module, value)
    if name == "x" and getattr(module, "names_columns", False) and has_named_columns(value):
        value = module.rows(value)  # by name: the order of columns is not that of the nodes
    if name == "context":
        check_no_texts(module, value)
    plain = is_plain(value)
    rows = value if plain else rows_from(name, value, own or torch.get_default_dtype())
    if name == "x":
        rows = with_one_series(module, rows)
    if rows.is_floating_point():
        return rows if own is None else rows.to(own)
    if name == "context" or getattr(module, "keeps_integers", False):
        return rows
    return rows.to(own or torch.get_default_dtype())


def asked_inside(summed_out: str | None, x: str) -> str | None:
    """What asks for the latents of a family inside of another one, whose data are ``x`` there.

    >>> asked_inside("states: gen().smooth(x)", "gen.standardize(x)")
    'states: gen.family().smooth(gen.standardize(x))'
    """
    if summed_out is None:
        return None
    return summed_out.replace("gen", "gen.family").replace("(x)", f"({x})")


@runtime_checkable
class GenerativeModel(Protocol):
    """What every family is.

    A conditional distribution, and the ``model``/``guide`` pair that tells it.

    Attributes
    ----------
    plate : str
        Name of the plate whose entries are the rows of the data.
    max_plate_nesting : int
        Number of dims that the program's own plates use; the next dim to the left belongs to
        callers.
    vectorized : bool
        Whether the program accepts draws in a plate to the left of its own (otherwise it is run
        once a draw).
    context_ndim : int
        Number of event dims of a context: 1 for vectors, 3 for images.
    training : bool
        Whether the module is in training mode.
    """

    plate: str
    max_plate_nesting: int
    vectorized: bool
    context_ndim: int
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ``forward`` gives."""

    def train(self, mode: bool = True) -> Any:
        """Training mode, or eval mode, as of any module."""

    def eval(self) -> Any:
        """Eval mode."""

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """The distribution p(x | context), with ``batch_shape == context.shape[:-context_ndim]``."""

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The Pyro program p(x, z | context); returns x, drawn when it is not given."""

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        """The Pyro program q(z | x, context); without ``x`` it draws the globals alone."""

    def settle(self, batch: tuple) -> tuple:
        """The arguments as the programs take them, arrays and tables as tensors.

        Asked by all that takes data.
        """

    @property
    def takes_nothing(self) -> bool:
        """Whether the programs have no arguments, so that without any they are complete."""

    def rows_in(self, batch: tuple) -> int | None:
        """How many rows the arguments in a batch have; ``None`` where the programs take none."""


@described
@declares_contexts
class DistributionModule(nn.Module, ABC):
    """A family that states its distribution.

    Write ``__init__`` and ``forward``, the program follows.

    One site ``"x"`` drawn from ``self(context)`` in the data plate, and an empty guide: the ELBO
    *is* the log-likelihood, and maximum likelihood is SVI without latents.

    >>> class Exponential(DistributionModule):
    ...     context_size = 0
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.log_rate = nn.Parameter(torch.zeros(1))
    ...     def forward(self, context=None):
    ...         return dist.Exponential(self.log_rate.exp()).to_event(1)
    >>> Exponential().model(torch.ones(5, 1)).shape
    torch.Size([5, 1])
    """

    plate = "data"
    max_plate_nesting = 1
    vectorized = True
    any_rows = True  # the programs run on any part of the rows
    keeps_integers = False  # whether x of integers stays so, to index with
    ragged: Ragged | None = None  # how a list of sequences becomes rows
    summed_out: str | None = None  # latents that the density sums out, and what asks for them
    context_ndim = 1

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """The distribution p(x | context): ``(*batch, C) -> batch_shape (*batch,)``."""

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with data_plate(x, context):
            return pyro.sample("x", self(context), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        pass

    def settle(self, batch: tuple) -> tuple:
        return settled_batch(self, batch)

    takes_nothing = False

    def rows_in(self, batch: tuple) -> int | None:
        return first_length(batch)


@described
@declares_contexts
class LatentVariableModel(nn.Module, ABC):
    """A family that defines model() and guide().

    Write ``model`` and ``guide``; ``forward`` is their marginal.

    >>> class LinearGaussian(LatentVariableModel):
    ...     context_size = 0
    ...     def model(self, x=None, context=None):
    ...         with data_plate(x, context):
    ...             z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...             return pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)
    ...     def guide(self, x=None, context=None):
    ...         with data_plate(x, context):
    ...             pyro.sample("z", dist.Normal(x[..., 0] / 2, 0.5**0.5))
    >>> LinearGaussian()().log_prob(torch.zeros(3, 1))     # exact here: the guide is the posterior
    tensor([-1.2655, -1.2655, -1.2655])
    """

    plate = "data"
    max_plate_nesting = 1
    vectorized = True
    any_rows = True  # the programs run on any part of the rows
    keeps_integers = False  # whether x of integers stays so, to index with
    ragged: Ragged | None = None  # how a list of sequences becomes rows
    summed_out: str | None = None  # latents that the density sums out, and what asks for them
    marginal_kind = "unbiased"  # a bound where the guide leaves values of discrete latents out
    # an observed site that holds the context, where that is data of the program: without parents,
    # so that p(x | context) is what is left without its term
    context_site: str | None = None
    context_ndim = 1

    @abstractmethod
    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The Pyro program p(x, z | context) with observed site ``"x"``; returns x, drawn when it is not given."""

    @abstractmethod
    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        """The Pyro program q(z | x, context); without ``x`` it draws the globals alone."""

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        return Marginal(self, context)

    def settle(self, batch: tuple) -> tuple:
        return settled_batch(self, batch)

    takes_nothing = False

    def rows_in(self, batch: tuple) -> int | None:
        return first_length(batch)


class Fixed(DistributionModule):
    """A distribution without parameters to learn, as a module; its tensors follow ``.to(device)``.

    Parameters
    ----------
    family : callable
        A distribution class or function, called with ``arguments``.
    event_ndim : int
        How many of the rightmost dims are event dims.
    arguments : Tensor or float
        Parameters of the distribution, by name.

    >>> Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0)().event_shape
    torch.Size([3])
    """

    ignores_contexts = True

    def __init__(
        self,
        family: Callable[..., dist.TorchDistribution],
        event_ndim: int = 1,
        **arguments: Tensor | float,
    ):
        checks.factory(family=family)
        checks.at_least(0, event_ndim=event_ndim)
        checks.numeric(**arguments)
        super().__init__()
        self.family = family
        self.event_ndim = event_ndim
        for name, value in arguments.items():
            self.register_buffer(name, torch.as_tensor(value))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        arguments: dict[str, Any] = self._buffers
        distribution = self.family(**arguments)
        distribution = distribution.to_event(self.event_ndim - len(distribution.event_shape))
        return for_each_context(distribution, context)


def standard_normal(*shape: int) -> Fixed:
    """The usual prior: independent standard normals, events of the given shape.

    >>> standard_normal(3)().sample((5,)).shape
    torch.Size([5, 3])
    """
    checks.sizes(shape=shape)
    return Fixed(dist.Normal, event_ndim=len(shape), loc=torch.zeros(shape), scale=1.0)


class Independent(DistributionModule):
    """Independent copies along the rightmost context dim.

    A prior, encoder or emission applied to every step.

    ``p(x | c) = prod_t p(x_t | c_t)`` for a context of shape ``(*batch, T, C)`` and events of shape
    ``(T, *event)``.

    Parameters
    ----------
    module : DistributionModule
        The distribution of one entry given its context of shape ``(*batch, C)``.
    ndim : int
        How many batch dims of ``module(context)`` become event dims.

    Raises
    ------
    ValueError
        When called, where ``module(context)`` has fewer batch dims.

    >>> Independent(standard_normal(3))(torch.zeros(5, 7, 2)).event_shape
    torch.Size([7, 3])
    """

    def __init__(self, module: DistributionModule, ndim: int = 1):
        checks.generative(module=module)
        checks.at_least(0, ndim=ndim)
        super().__init__()
        self.module = module
        self.ndim = ndim
        self.context_ndim = module.context_ndim + ndim

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        copies = self.module(context)
        if len(copies.batch_shape) < self.ndim:
            got = "None" if context is None else f"shape {tuple(context.shape)}"
            dims = ", ".join(["*batch", *["T"] * self.ndim, *["C"] * self.module.context_ndim])
            raise ValueError(
                f"expected a context of shape ({dims}), whose T tells how many copies there are, "
                f"got {got}; give one, or a part with a batch dim for them: "
                "Fixed(dist.Normal, loc=torch.zeros(T, D), scale=1.0)"
            )
        return copies.to_event(self.ndim)
