"""Group lasso: a penalty on the norm of each group of weights, which drives whole groups to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from prunekit import ArgumentError
from prunekit.components import Context, NonNegative, OverTime, PerParameter
from prunekit.pruning import Groups, check_group_types, groups_of

GroupType = Literal[
    "2D", "3D", "Filters", "4D", "Channels", "Rows", "Cols", "Rows+Cols", "Cols+Rows", "Channels+4D", "4D+Channels"
]
"""The groups of one tensor; with `+` its weights belong to groups of both shapes."""

_CHANNELS_EPSILON = 1e-8
_CACHED = 1 << 17
"""So many numbers stay in a core's cache between two looks at them."""


@dataclass
class GroupLassoRegularizer:
    """Adds strength · Σ_g ||w_g||₂ to the loss, and drops groups where `threshold_criteria` is given.

    Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables", without their √(group size);
    for networks Wen et al. 2016, "Learning structured sparsity in deep neural networks", arXiv 1608.03665, equation 2.

    Args:
        reg_regims: the parameters (names, globs, `re:` patterns), each with [strength, group type].
        threshold_criteria: given, groups whose mean (`Mean_Abs`) or largest (`Max`) magnitude is at most `strength`
            are set to zero after each mini-batch.
    """

    reg_regims: PerParameter[tuple[OverTime[NonNegative], GroupType]]
    threshold_criteria: Literal["Mean_Abs", "Max"] | None = None

    def __post_init__(self) -> None:
        for selector, (_, group) in self.reg_regims.items():
            if group not in get_args(GroupType):
                known = ", ".join(map(repr, get_args(GroupType)))
                raise ArgumentError("reg_regims", selector, 1, message=f"must be one of {known}, got {group!r}")

    @property
    def thresholds(self) -> bool:
        """Whether groups are dropped."""
        return self.threshold_criteria is not None

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each parameter that has no such groups."""
        group_types = {name: group for name, (_, group) in context.settings.items()}
        return check_group_types(parameters, group_types, get_args(GroupType), context)

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        settings = [context.settings[name] for name in parameters]
        regimes = [(context.now(strength), group) for strength, group in settings]
        total: Tensor = _GroupLasso.apply(  # type: ignore[no-untyped-call]
            regimes, torch.is_grad_enabled(), *parameters.values()
        )
        return total

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """A weight stays if every group that it belongs to does."""
        masks = {}
        for name, weight in parameters.items():
            strength, group = context.settings[name]
            kept = torch.ones_like(weight, dtype=torch.bool)
            for groups in groups_of(weight, group):
                kept &= groups.spread(self._magnitudes(weight, groups) > context.now(strength))
            masks[name] = kept
        return masks

    def _magnitudes(self, weight: Tensor, groups: Groups) -> Tensor:
        return groups.max_abs(weight) if self.threshold_criteria == "Max" else groups.mean_abs(weight)


class _GroupLasso(Function):
    """Σ strength · Σ_g ||w_g||₂ over tensors, and its gradient strength · w / ||w_g||₂: 0 where the norm is 0.

    autograd goes over all weights four times on the way back. Here the gradient is made together with the norms, tensor
    by tensor, while the weights are in the cache; on the way back it is only handed over.
    """

    @staticmethod
    def forward(ctx: Any, regimes: Sequence[tuple[float, str]], graded: bool, *weights: Tensor) -> Tensor:
        ctx.regimes = regimes
        ctx.save_for_backward(*weights)
        if not graded:
            return _penalty(regimes, weights)
        totals, ctx.gradients = zip(*map(_total_and_gradient, regimes, weights), strict=True)
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        weights: tuple[Tensor, ...] = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: somebody goes on to differentiate the gradient
            wanted = [weight for weight in weights if weight.requires_grad]
            found = iter(torch.autograd.grad(_penalty(ctx.regimes, weights), wanted, upstream, create_graph=True))
            return (None, None, *(next(found) if weight.requires_grad else None for weight in weights))
        gradients, ctx.gradients = ctx.gradients, None  # autograd takes over the memory of what nobody else holds
        if gradients is None:  # a second time through a graph that was retained
            gradients = [_total_and_gradient(*each)[1] for each in zip(ctx.regimes, weights, strict=True)]
        if upstream.device.type != "cpu" or upstream != 1:
            torch._foreach_mul_(gradients, upstream)
        return (None, None, *gradients)


def _penalty(regimes: Sequence[tuple[float, str]], weights: Sequence[Tensor]) -> Tensor:
    """The penalty as it is defined; autograd can differentiate it."""
    terms = [
        strength * _norms(weight, name).sum()
        for (strength, group), weight in zip(regimes, weights, strict=True)
        for name in group.split("+")
    ]
    return torch.stack(terms).sum()


def _norms(weight: Tensor, group: str) -> Tensor:
    """The L2 norm of each group; that of channels is kept off zero, where published runs have it so."""
    (groups,) = groups_of(weight, group)
    if group == "Channels":
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return (groups.sum(wide.square()) + _CHANNELS_EPSILON).sqrt()
    return groups.l2(weight)


def _total_and_gradient(regime: tuple[float, str], weight: Tensor) -> tuple[Tensor, Tensor]:
    """What one tensor adds to the penalty, and the gradient of that."""
    strength, group = regime
    (total, gradient), *others = [_one_shape(strength, name, weight) for name in group.split("+")]
    for further, also in others:
        total, gradient = total + further, gradient.add_(also)
    return total, gradient


def _one_shape(strength: float, group: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    (groups,) = groups_of(weight, group)
    if not weight.numel() or weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.is_contiguous():
        norms = _norms(weight, group)
        factors = groups.spread(_factors(strength, norms))
        return strength * norms.sum(), (weight * factors).to(weight.dtype)
    if groups.size == 1 and group != "Channels":
        return _singles(strength, weight)
    if groups.inside == tuple(range(weight.dim() - len(groups.inside), weight.dim())):
        return _rows(strength, weight, weight.reshape(groups.number, groups.size))
    return _columns(strength, weight, groups.number, _CHANNELS_EPSILON if group == "Channels" else 0)


def _singles(strength: float, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of one weight, whose norm is |w|: by Euler's theorem their sum is weight · gradient."""
    gradient, totals = torch.empty_like(weight), []
    for part, out in zip(*(torch.split(each.view(-1), _CACHED) for each in (weight, gradient)), strict=True):
        torch.sign(part, out=out).mul_(strength)
        totals.append(part.dot(out))
    return torch.stack(totals).sum(), gradient


def _rows(strength: float, weight: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Groups that lie in one piece: what weight normalization computes, strength · row / ||row||, in one pass."""
    gradient, norms = torch._weight_norm_interface(matrix, matrix.new_full((len(matrix), 1), strength))
    if not norms.all():
        gradient.masked_fill_(norms == 0, 0)  # and not 0 / 0
    return strength * norms.sum(), gradient.view_as(weight)


def _columns(strength: float, weight: Tensor, number: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Groups along dimension 1, as columns of a matrix that are summed in parts small enough for the cache."""
    matrix = weight.reshape(len(weight), -1)
    parts = torch.split(matrix, max(1, _CACHED // matrix.shape[1]))
    square, squares = torch.empty_like(parts[0]), matrix.new_zeros(matrix.shape[1])
    for part in parts:
        squares += torch.mul(part, part, out=square[: len(part)]).sum(0)
    norms = (squares.view(number, -1).sum(1) + epsilon).sqrt()
    factors = _factors(strength, norms).repeat_interleave(matrix.shape[1] // number)
    return strength * norms.sum(), (matrix * factors).view_as(weight)


def _factors(strength: float, norms: Tensor) -> Tensor:
    """By which a group's weights are multiplied: 0 where they all are 0."""
    return torch.where(norms > 0, strength / norms, 0)
