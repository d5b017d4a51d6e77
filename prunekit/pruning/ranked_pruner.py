"""Ranked pruning: any ranking, with any sparsity curve, over any granularity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components.context import Context
from prunekit.components.types import PositiveInt, Probability, Selectors
from prunekit.errors import ArgumentError
from prunekit.model.parameters import transposed
from prunekit.pruning.granularity import (
    Granularity,
    GranularityName,
    Groups,
    Tiles,
    Units,
    granularity_of,
    has_direction,
)
from prunekit.pruning.random_numbers import generator_at
from prunekit.pruning.selection import prune_count

RankedGroupType = Literal["3D", "Filters", "Channels", "Rows", "Blocks"]
Rounding = Literal["floor", "ceil", "round"]

# In the language ranked "Rows" and "Channels" are both dimension 1, inputs: published schedules use them so.
_DIMENSIONS = {"3D": 0, "Filters": 0, "Channels": 1, "Rows": 1}
_FEWEST_DIMENSIONS = {"3D": 3, "Filters": 3, "Channels": 2, "Rows": 2}
_ROUNDED: Mapping[str, Callable[[float], int]] = {"floor": math.floor, "ceil": math.ceil, "round": round}


class Target(Protocol):
    """What says how much to prune: `FixedSparsity`, `GradualSparsity` or another with this method."""

    def sparsity(self, context: Context) -> float:
        """The fraction of units to prune now."""


@dataclass(kw_only=True)
class RankedPruner:
    """Prunes the groups of each tensor that rank lowest. A ranking is a subclass with `scores`.

    Together with what says how much (`FixedSparsity`, `GradualSparsity`) it is a pruner:

        @dataclass(kw_only=True)
        class LargestWeightPruner(FixedSparsity, RankedPruner):
            def scores(self, name, weight, groups, context):
                return groups.max_abs(weight)

    Exactly floor(s · n) of n groups go, of equal scores those that come first.

    Args:
        weights: the parameters, each ranked by itself unless `group_dependency` says otherwise.
        group_type: the groups, by name: `3D` or `Filters` (dimension 0 of a convolution: outputs), `Channels` or
            `Rows` (dimension 1: inputs, the columns of a matrix) or `Blocks`.
        granularity: the groups without ambiguity, in place of `group_type`: `{dim: 0}` and on (`size`, `heads`,
            `parts`) or `{shape: […]}`, of any tensor, or a granularity by name, prunekit's own or installed.
        group_dependency: `Leader` prunes in every tensor the groups that rank lowest in the first of `weights`.
        kwargs: `block_shape` of `Blocks`: [repetitions, depth, height, width].
        group_size: groups go in multiples of this number.
        rounding_fn: how s · n becomes a number of such multiples: `floor`, `ceil` or `round`.
        noise: the probability with which a score is multiplied by a draw from N(0, 1).
        seed: of the draws; the same on all ranks and after a resume.
    """

    weights: Selectors
    group_type: RankedGroupType | None = None
    granularity: Units | Tiles | GranularityName | None = None
    group_dependency: Literal["Leader"] | None = None
    kwargs: dict[Literal["block_shape"], list[PositiveInt]] | None = None
    group_size: PositiveInt = 1
    rounding_fn: Rounding = "floor"
    noise: Probability = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.group_type is None) == (self.granularity is None):
            what = "say either group_type or granularity" if self.granularity is None else "leave out one of the two"
            raise ArgumentError("granularity", message=f"{what}: both name the groups")
        if (self.group_type == "Blocks") != (self.kwargs is not None):
            raise ArgumentError("kwargs", message="block_shape goes with group_type 'Blocks', and only with it")
        # Only to see that it has a meaning: what has none is refused now, not in the middle of training.
        self._granularity()
        # A pruner has several parents with keys to check; the last of them is `object`, which checks none.
        getattr(super(), "__post_init__", lambda: None)()

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor | None:
        """A score for each group [groups.number], the lowest pruned first; None while nothing is known."""
        raise NotImplementedError(f"{type(self).__name__} has no ranking: it must define scores()")

    def sparsity_of(self, name: str, context: Context) -> float:
        """The fraction of this parameter's groups to prune now."""
        target: Target = self  # type: ignore[assignment]  # what FixedSparsity or another adds
        return target.sparsity(context)

    def choose(self, name: str, scores: Tensor, sparsity: float, context: Context) -> Tensor | None:
        """Which groups stay [number]; None where none goes."""
        count = number_to_prune(scores.numel(), sparsity, self.group_size, self.rounding_fn)
        return prune_count(scores, count) if count else None

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each parameter that has no such groups, or not as many as its leader."""
        turned, numbers = transposed(context.model), {}
        for name, weight in parameters.items():
            try:
                self._must_be_meant(weight, turned.get(name))
                numbers[name] = self.groups(weight).number
            except ValueError as error:
                yield ArgumentError(*context.keys[name], message=f"{name!r} {error}")
        leader = self._leader(parameters, context)
        for name, number in numbers.items():
            if leader in numbers and number != numbers[leader]:
                own, its = list(parameters[name].shape), list(parameters[leader].shape)
                leads = f"its leader {leader!r} has {its} and {numbers[leader]}"
                message = f"{name!r} has shape {own} and {number} groups; {leads}"
                yield ArgumentError(*context.keys[name], message=message)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """The masks of all tensors of which a group goes."""
        leader = self._leader(parameters, context)
        chosen: dict[str, Tensor | None] = {}
        for name in parameters if leader is None else [leader]:
            chosen[name] = self._chosen(name, parameters[name], context)
        masks = {}
        for name, weight in parameters.items():
            keep = chosen[name if leader is None else leader]
            if keep is not None:
                masks[name] = self.groups(weight).spread(keep.to(weight.device))
        return masks

    def groups(self, weight: Tensor) -> Groups:
        """The groups of one tensor.

        Raises:
            ValueError: it has none such.
        """
        if self.group_type in _FEWEST_DIMENSIONS and weight.dim() < _FEWEST_DIMENSIONS[self.group_type]:
            other = "; granularity: {dim: 0} means the rows of a matrix" if weight.dim() == 2 else ""
            raise ValueError(f"has shape {list(weight.shape)} and no groups {self.group_type!r}{other}")
        return self._granularity().groups(weight)

    def generator(self, context: Context, name: str = "") -> torch.Generator:
        """Draws that depend on the seed, the step and the parameter, and on nothing else."""
        return generator_at(self.seed, context.progress, name)

    def _granularity(self) -> Granularity:
        if self.granularity is not None:
            return granularity_of(self.granularity)
        if self.group_type == "Blocks" and self.kwargs is not None:
            return Tiles(self.kwargs["block_shape"])
        return Units(_DIMENSIONS[str(self.group_type)])

    def _chosen(self, name: str, weight: Parameter, context: Context) -> Tensor | None:
        groups = self.groups(weight)
        scores = self.scores(name, weight.detach(), groups, context)
        if scores is None:
            return None
        if self.noise:
            scores = self._disturbed(scores, self.generator(context, name))
        return self.choose(name, scores, self.sparsity_of(name, context), context)

    def _disturbed(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        hit = torch.rand(scores.shape, generator=generator) < self.noise
        draws = torch.randn(scores.shape, generator=generator)
        return torch.where(hit.to(scores.device), scores * draws.to(scores), scores)

    def _leader(self, parameters: Mapping[str, Parameter], context: Context) -> str | None:
        """The parameter that the first of `weights` selects."""
        if self.group_dependency is None:
            return None
        # `weights` is one selector, or a list of which the first counts.
        return next((name for name in parameters if context.keys[name] in (("weights",), ("weights", 0))), None)

    def _must_be_meant(self, weight: Tensor, kind: str | None) -> None:
        if kind is not None and (self.group_type in _DIMENSIONS or has_direction(self._granularity())):
            said = f"group_type: {self.group_type}" if self.group_type else "a name"
            raise ValueError(
                f"has shape {list(weight.shape)} in a {kind}: dimension 0 is inputs and 1 outputs; "
                f"say granularity: {{dim: 0}} or {{dim: 1}} in place of {said}"
            )


def number_to_prune(number: int, sparsity: float, group_size: int = 1, rounding: Rounding = "floor") -> int:
    """How many of so many groups go: a multiple of `group_size`, all of them only at sparsity 1.

    >>> number_to_prune(10, 0.35), number_to_prune(10, 0.35, group_size=2), number_to_prune(10, 0.99, rounding="ceil")
    (3, 2, 9)
    """
    count = _ROUNDED[rounding](sparsity * number / group_size) * group_size
    if count >= number and sparsity < 1:
        count = (number - 1) // group_size * group_size
    return max(0, min(count, number))
