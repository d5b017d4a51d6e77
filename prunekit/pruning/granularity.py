"""The shapes of structure: which weights of a tensor are kept or dropped as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from prunekit.components.context import Context
from prunekit.components.named_kind import ByName, NamedKind
from prunekit.components.types import NonNegativeInt, PositiveInt
from prunekit.errors import ArgumentError
from prunekit.model.parameters import transposed


@dataclass(frozen=True)
class Groups:
    """The groups of a tensor.

    Attributes:
        shape: the tensor's.
        view: the shape in which a group is all elements that share their index outside the dimensions `inside`.
        inside: the dimensions of `view` within a group.

    Groups count in the row-major order of the dimensions that stay. Scores and choices are flat: [number].

    What can't be said by a view, such as diagonals, is a subclass with a `number`, `size`, `sum`, `norm` and `spread`
    of its own; all other methods are made of these.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    inside: tuple[int, ...]

    @property
    def number(self) -> int:
        """How many groups there are."""
        return math.prod(size for d, size in enumerate(self.view) if d not in self.inside)

    @property
    def size(self) -> int:
        """How many elements each has."""
        return math.prod(self.view[d] for d in self.inside)

    def l1(self, tensor: Tensor) -> Tensor:
        """The sum of magnitudes in each group."""
        return self.norm(tensor, 1)

    def l2(self, tensor: Tensor) -> Tensor:
        """The L2 norm of each group."""
        return self.norm(tensor, 2)

    def mean_abs(self, tensor: Tensor) -> Tensor:
        """The mean magnitude of each group."""
        return self.l1(tensor) / max(self.size, 1)

    def max_abs(self, tensor: Tensor) -> Tensor:
        """The largest magnitude in each group."""
        return self.norm(tensor, math.inf)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of each group."""
        values = tensor.reshape(self.view)
        return values.sum(self.inside, dtype=_sum_type(tensor)).reshape(-1) if self.inside else values.reshape(-1)

    def spread(self, values: Tensor) -> Tensor:
        """A value for each group [number] -> one for each element, shaped like the tensor; a view where it can be."""
        # Expanded, not repeated: by such a view `ParameterMask` sees that a group has one value, and stores only that.
        thin = [1 if d in self.inside else size for d, size in enumerate(self.view)]
        return values.reshape(thin).expand(self.view).reshape(self.shape)

    def norm(self, tensor: Tensor, order: float) -> Tensor:
        """The norm of each group: of order 1 the sum of magnitudes, 2 the L2 norm, infinity the largest magnitude."""
        # In 32 bits or more: in bfloat16 whole filters would tie.
        # torch refuses to say which of no elements is the largest.
        if not tensor.numel():
            return tensor.new_zeros(self.number, dtype=_sum_type(tensor))
        values = tensor.reshape(self.view)
        if not self.inside:
            return values.reshape(-1).abs().to(_sum_type(tensor))
        if order == 1:  # in half the time of vector_norm on a CPU
            # Groups that lie one behind the other in memory are the rows of a matrix.
            if self.inside == tuple(range(len(self.view) - len(self.inside), len(self.view))):
                return _row_sums(values.reshape(self.number, -1))
            return values.abs().sum(self.inside, dtype=_sum_type(tensor)).reshape(-1)
        norms: Tensor = torch.linalg.vector_norm(values, order, self.inside, dtype=_sum_type(tensor))
        return norms.reshape(-1)


class Granularity(Protocol):
    """A shape of structure. Of any tensor that it fits it knows the groups."""

    def groups(self, tensor: Tensor) -> Groups:
        """The groups of a tensor.

        Raises:
            ValueError: there are none in this shape; the message says why, and starts with "has".
        """


@dataclass(frozen=True)
class KeepsDimensions:
    """Groups by a name of the schedule language: all elements that share their index in the dimensions `keeps`."""

    name: str
    meaning: str
    keeps: tuple[int, ...]
    least_ndim: int
    most_ndim: int

    def groups(self, tensor: Tensor) -> Groups:
        """The groups of a tensor, refused with what else it has where it has none of these."""
        if not self.least_ndim <= tensor.dim() <= self.most_ndim:
            raise ValueError(f"has shape {list(tensor.shape)} and no groups {self.name!r}")
        return _keeping(tensor, self.keeps)


@dataclass(frozen=True)
class Units:
    """The units along one dimension of any tensor: rows of a matrix, filters, channels, embeddings, gates, heads.

    Args:
        dim: the dimension along which they lie.
        size: how many consecutive indices make a unit.
        heads: in place of `size`: how many units there are (attention heads).
        parts: how many equal parts the dimension has, each holding a slice of every unit: 4 for an LSTM's gates,
            3 for a GRU's and for the queries, keys and values of `in_proj_weight`.
    """

    dim: NonNegativeInt
    size: PositiveInt = 1
    heads: PositiveInt | None = None
    parts: PositiveInt = 1
    # pydantic looks for it here: without it a misspelt key of `{dim: 0, …}` would be passed over.
    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid")

    def groups(self, tensor: Tensor) -> Groups:
        """The groups of a tensor whose dimension can be divided so."""
        shape = tuple(tensor.shape)
        if self.dim >= len(shape):
            raise ValueError(f"has shape {list(shape)} and no dimension {self.dim}")
        if self.heads is not None and self.size != 1:
            raise ValueError("has either units of a size or a number of heads, not both")
        length = shape[self.dim]
        if self.heads is not None:
            size, rest = divmod(length, self.parts * self.heads)
        else:
            size, rest = self.size, length % (self.parts * self.size)
        if rest or not size:
            what = f"{self.heads} heads" if self.heads else f"units of {size}"
            parts = f" in {self.parts} parts" if self.parts > 1 else ""
            raise ValueError(f"has shape {list(shape)}: its dimension {self.dim} is not divided into {what}{parts}")
        if size == self.parts == 1:
            return _keeping(tensor, (self.dim,))
        # The dimension as [part, unit, place]: a unit is all of its parts and places.
        view = (*shape[: self.dim], self.parts, length // (self.parts * size), size, *shape[self.dim + 1 :])
        kept = self.dim + 1
        return Groups(shape, view, tuple(d for d in range(len(view)) if d != kept))


@dataclass(frozen=True)
class Tiles:
    """Tiles of one shape that cover a tensor.

    Args:
        shape: how far a tile reaches along each of the tensor's dimensions; ones at the end may be more or fewer than
            the tensor has. `Blocks` of [repetitions, depth, height, width] are tiles of a convolution's weights.
    """

    shape: Annotated[list[PositiveInt], Field(min_length=1)]
    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid")

    def groups(self, tensor: Tensor) -> Groups:
        """The groups of a tensor that tiles of this shape cover exactly."""
        shape, tile = tuple(tensor.shape), tuple(self.shape)
        # Filled up with ones but never cut: dimensions that the tensor lacks must be ones too, as is checked next.
        tile = (tile + (1,) * len(shape))[: max(len(shape), len(tile))]
        fits = len(shape) > 0 and all(edge == 1 for edge in tile[len(shape) :])
        if not fits or any(size % edge for size, edge in zip(shape, tile, strict=False)):
            raise ValueError(f"has shape {list(shape)}, which tiles of shape {list(self.shape)} do not cover")
        # Each dimension as [tiles, edge], so that what lies within a tile are the odd dimensions of the view.
        view = tuple(part for size, edge in zip(shape, tile, strict=False) for part in (size // edge, edge))
        return Groups(shape, view, tuple(range(1, len(view), 2)))


_MANY = 9
_CACHED = 1 << 16
"""So many numbers stay in a core's cache between two looks at them."""
_FILTERS = ("one output filter of a convolution", (0,), 3, _MANY)
_ALL = (
    KeepsDimensions("Elements", "one weight", tuple(range(_MANY)), 0, _MANY),
    KeepsDimensions("2D", "one kernel: the weights between an input and an output channel", (0, 1), 4, 4),
    KeepsDimensions("3D", *_FILTERS),
    KeepsDimensions("Filters", *_FILTERS),
    KeepsDimensions("4D", "a whole convolution", (), 4, 4),
    KeepsDimensions("Channels", "one input channel of a convolution", (1,), 3, _MANY),
    KeepsDimensions("Rows", "one row of a matrix: an output", (0,), 2, 2),
    KeepsDimensions("Cols", "one column of a matrix: an input", (1,), 2, 2),
)
GRANULARITIES: Mapping[str, Granularity] = {granularity.name: granularity for granularity in _ALL}
"""Every granularity of prunekit by its name in a schedule."""
GRANULARITY = NamedKind(
    "granularity",
    "granularities",
    GRANULARITIES,
    "an object with a method groups(tensor) -> Groups",
    lambda thing: callable(getattr(thing, "groups", None)),
)
GranularityName = Annotated[Granularity | str, ByName(GRANULARITY)]
"""A granularity, by its name in a schedule: prunekit's own, or one that a distribution offers."""


def granularities(name: str) -> tuple[Granularity, ...]:
    """The granularities of a name such as `3D` or `Rows+Cols`.

    Raises:
        ValueError: the name holds a part that is no granularity.
    """
    unknown = [part for part in name.split("+") if part not in GRANULARITIES]
    if unknown:
        raise ValueError(
            f"no granularity is called {unknown[0]!r}; known are {', '.join(GRANULARITIES)}, joined by '+'"
        )
    return tuple(GRANULARITIES[part] for part in name.split("+"))


def granularity_of(setting: str | Mapping[str, Any] | Granularity) -> Granularity:
    """A granularity from what a schedule says: a name, `{dim: 0, …}` (`Units`) or `{shape: […]}` (`Tiles`).

    >>> granularity_of({"dim": 0, "size": 2}).groups(torch.ones(4, 3)).number
    2
    """
    if isinstance(setting, Mapping):
        return Tiles(**setting) if "shape" in setting else Units(**setting)
    return GRANULARITY.of(setting)


def groups_of(tensor: Tensor, name: str) -> list[Groups]:
    """The groups of a tensor by the name of a granularity, or of several joined by `+`.

    Raises:
        ValueError: there is no such granularity, or the tensor has no such groups.
    """
    return [granularity.groups(tensor) for granularity in granularities(name)]


def fitting(tensor: Tensor, names: Iterable[str]) -> list[str]:
    """Those of some names of granularities, or of several joined by `+`, of which a tensor has groups.

    >>> fitting(torch.ones(2, 3), ["Filters", "Rows", "Rows+Cols"])
    ['Rows', 'Rows+Cols']
    """
    return [name for name in names if all(_has_groups(tensor, part) for part in name.split("+"))]


def has_direction(granularity: Granularity) -> bool:
    """Whether the name of a granularity means outputs, or inputs, and would mislead where these are turned round."""
    return isinstance(granularity, KeepsDimensions) and len({0, 1}.intersection(granularity.keeps)) == 1


def check_group_types(
    parameters: Mapping[str, Tensor], group_types: Mapping[str, str], known: Sequence[str], context: Context
) -> Iterator[ArgumentError]:
    """One error for each parameter that has no groups of its type, or that the type takes the wrong way round.

    Args:
        parameters: by name.
        group_types: parameter -> the name of a granularity, or of several joined by `+`.
        known: every name that the schedule could say instead.
        context: of the component that is being checked.
    """
    turned = transposed(context.model)
    for name, tensor in parameters.items():
        group = group_types[name]
        if not fitting(tensor, [group]):
            names = ", ".join(map(repr, fitting(tensor, known)))
            hint = f"it has {names}" if names else "a vector has no groups at all"
            message = f"{name!r} has shape {list(tensor.shape)} and no groups {group!r}; {hint}"
            yield ArgumentError(*context.keys[name], message=message)
        elif (owner := turned.get(name)) and any(map(has_direction, granularities(group))):
            message = f"{name!r} belongs to a {owner}: its dimension 0 is inputs, and {group!r} takes it for outputs"
            yield ArgumentError(*context.keys[name], message=message)


def _has_groups(tensor: Tensor, name: str) -> bool:
    try:
        GRANULARITIES[name].groups(tensor)
    except ValueError:
        return False
    return True


def _keeping(tensor: Tensor, keeps: tuple[int, ...]) -> Groups:
    shape = tuple(tensor.shape)
    return Groups(shape, shape, tuple(d for d in range(len(shape)) if d not in keeps))


def _row_sums(matrix: Tensor) -> Tensor:
    """The sum of magnitudes in each row, on a CPU in parts that stay in its cache."""
    step = max(_CACHED // matrix.shape[1], 1)
    # torch refuses `out=` where it records gradients.
    if matrix.device.type != "cpu" or len(matrix) <= step or (matrix.requires_grad and torch.is_grad_enabled()):
        return matrix.abs().sum(1, dtype=_sum_type(matrix))
    spare, sums = torch.empty_like(matrix[:step]), matrix.new_empty(len(matrix), dtype=_sum_type(matrix))
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step]
        torch.sum(torch.abs(rows, out=spare[: len(rows)]), 1, dtype=sums.dtype, out=sums[start : start + step])
    return sums


def _sum_type(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
