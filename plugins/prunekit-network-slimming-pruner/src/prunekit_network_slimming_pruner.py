"""Network slimming: channels are ranked by the scales of batch normalizations, all layers together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor
from torch.nn import Module, Parameter

from prunekit import ArgumentError
from prunekit.components import Context, Selectors, Share
from prunekit.model import BATCH_NORM, Parameters, following_batchnorms, operation_of
from prunekit.pruning import FixedSparsity, GradualSparsity, Units, prune_smallest_together


@dataclass(kw_only=True)
class NetworkSlimming:
    """Ranks the channels of all batch normalizations together by |γ|.

    Args:
        weights: the scales γ of batch normalizations; the shifts β beside them go along.
        filters: the weights of the convolutions before them, whose filters then go with the channels; by default they
            stay as they are.
        floor: the fraction of each layer's channels that stays in any case, 0 to below 1; one channel always does. What
            more would have gone there goes from the other layers, so the budget is the same.
    """

    weights: Selectors
    filters: Selectors | None = None
    floor: Share = 0

    def companions(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, str]:
        """The shift beside each scale."""
        return {shift: scale for scale, shift in _shifts(context.model).items() if scale in parameters}

    def sparsity(self, context: Context) -> float:
        """The fraction of all channels to prune now: what `FixedSparsity` or `GradualSparsity` adds."""
        raise NotImplementedError(f"{type(self).__name__} must have FixedSparsity or GradualSparsity as a base")

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """An error for each parameter that goes with no selected scale, and one if the layers must keep too many."""
        errors = [
            ArgumentError(*context.keys[name], message=f"{name!r} {message}")
            for name, message in _misfits(parameters, self._filters(parameters, context), context.model)
        ]
        yield from errors
        scales = [parameters[name] for name in _shifts(context.model) if name in parameters]
        number, most = sum(scale.numel() for scale in scales), sum(map(self._most, scales))
        sparsity = max(self.sparsity(context), self.sparsity(context.at_the_end()))
        if not errors and math.floor(sparsity * number) > most:
            what = f"the layers keep {number - most} of {number} channels in any case, so {most} can go"
            yield ArgumentError("floor", message=f"{what}, and {sparsity} asks for {math.floor(sparsity * number)}")

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        shifts = {scale: shift for scale, shift in _shifts(context.model).items() if scale in parameters}
        scales = [parameters[name] for name in shifts]
        count = math.floor(self.sparsity(context) * sum(scale.numel() for scale in scales))
        if not count:
            return {}
        keeps = dict(zip(shifts, prune_smallest_together(scales, count, [*map(self._most, scales)]), strict=True))
        masks = {name: keep for scale, keep in keeps.items() for name in (scale, shifts[scale])}
        filters = self._filters(parameters, context)
        for name, scale in _scales_of(context.model).items() if filters else ():
            if name in filters:
                masks[name] = Units(0).groups(parameters[name]).spread(keeps[scale].to(parameters[name].device))
        return {name: mask for name, mask in masks.items() if name in context.masks or not mask.all()}

    def _most(self, scale: Tensor) -> int:
        """How many channels of a layer may go."""
        return max(scale.numel() - max(math.ceil(Fraction(str(self.floor)) * scale.numel()), 1), 0)

    def _filters(self, parameters: Iterable[str], context: Context) -> list[str]:
        """The parameters that `filters` selects."""
        return [name for name in parameters if context.keys[name][0] == "filters"]


@dataclass(kw_only=True)
class NetworkSlimmingPruner(FixedSparsity, NetworkSlimming):
    """Prunes the channels with the smallest |γ| of all batch normalizations together: exactly floor(s · n) of n.

    Liu et al. 2017, "Learning efficient convolutional networks through network slimming", arXiv 1708.06519, section 3:
    a global threshold across all layers, on the scales γ of y = γ · x̂ + β.
    """


@dataclass(kw_only=True)
class NetworkSlimmingPruner_AGP(GradualSparsity, NetworkSlimming):  # noqa: N801  # as in the language's other names
    """Prunes the channels with the smallest |γ| of all batch normalizations together, along a sparsity curve.

    Liu et al. 2017, arXiv 1708.06519, section 3, as gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """


def _misfits(parameters: Mapping[str, Parameter], filters: list[str], model: Module) -> Iterator[tuple[str, str]]:
    """Each parameter that is no scale, no shift beside one and no filters before one, and what is wrong with it."""
    shifts = _shifts(model)
    scales = {shift: scale for scale, shift in shifts.items()}
    try:
        before = _scales_of(model) if filters else {}
    except Exception as error:
        yield filters[0], f"goes with no channels: torch.fx can't trace the model: {type(error).__name__}: {error}"
        return
    for name, parameter in parameters.items():
        shape = list(parameter.shape)
        if name in filters:
            norm = parameters.get(before.get(name, ""))
            if norm is None:
                yield name, f"has shape {shape}, and no batch normalization of `weights` alone takes what it puts out"
            elif shape[:1] != [norm.numel()]:
                yield name, f"has shape {shape}, and the batch normalization behind it {norm.numel()} channels"
        elif name in shifts:
            shift = parameters[shifts[name]]
            if parameter.dim() != 1 or shift.shape != parameter.shape:
                yield (
                    name,
                    f"has shape {shape}, and its shift {shifts[name]!r} {list(shift.shape)}: no scales of channels",
                )
        elif scales.get(name) not in parameters:
            yield name, f"has shape {shape} and is no scale of a batch normalization"


def _shifts(model: Module) -> dict[str, str]:
    """Scale -> shift of each batch normalization, by parameter name."""
    names = {id(parameter): name for name, parameter in Parameters.of(model).by_name.items()}
    norms = [module for module in model.modules() if operation_of(module) is BATCH_NORM and module.affine]
    return {names[id(norm.weight)]: names[id(norm.bias)] for norm in norms}


def _scales_of(model: Module) -> dict[str, str]:
    """Weights of a convolution -> scale of the batch normalization that alone takes its output, by parameter name."""
    names = {id(parameter): name for name, parameter in Parameters.of(model).by_name.items()}
    modules = dict(model.named_modules())
    pairs = [(modules[conv], modules[norm]) for conv, norm in following_batchnorms(model).items()]
    return {names[id(conv.weight)]: names[id(norm.weight)] for conv, norm in pairs if norm.affine}
