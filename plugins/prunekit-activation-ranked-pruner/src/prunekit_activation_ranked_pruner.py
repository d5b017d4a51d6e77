"""Activation ranking: the filters whose activations are zero most often, or smallest on average, go first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from prunekit import ArgumentError, PluginError, hookimpl
from prunekit.components import Context
from prunekit.model import CONVOLUTION, LINEAR, Activation, following_activations, operation_of, without_wrappers
from prunekit.pruning import FixedSparsity, GradualSparsity, Groups, RankedPruner, RankSums, Units, widened


@dataclass(kw_only=True)
class ActivationRanked(RankedPruner):
    """Ranks filters by what their activations have been since the last pruning: a subclass says what of them counts.

    The statistic of a filter is a sum over all elements of its feature maps, divided by their number, so that large
    batches weigh more than small ones. Under torch.distributed it is summed over all ranks.

    Args:
        weights: the weights of convolutions or linear layers, each ranked by itself unless `group_dependency` says
            otherwise.
        group_type: `3D` or `Filters`, the filters of a convolution.
        granularity: in place of `group_type`: `{dim: 0}` and on (`size`, `heads`, `parts`), which means the outputs of
            a linear layer too. The statistic of a larger unit is the mean of its outputs'.
        activations_of: weight -> the module whose output is the activation, for layers whose activation can't be found
            by following the data flow: `{conv1.weight: relu1}`.
        phase: which forward passes count: `training` (the model is in training mode), `evaluation` or `all`.
        revive: `false` keeps a pruned filter pruned, which a bias or a batch normalization makes active although its
            weights are zero; with `true` it is ranked as any other and may come back in place of one that goes.
    """

    group_type: Literal["3D", "Filters"] | None = None
    granularity: Units | None = None
    kwargs: None = field(default=None, init=False)
    activations_of: dict[str, str] | None = None
    phase: Literal["all", "training", "evaluation"] = "training"
    revive: bool = True
    _sums: RankSums = field(default_factory=RankSums, init=False, repr=False)
    _weights: dict[str, Parameter] = field(default_factory=dict, init=False, repr=False)
    _model: Module | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.granularity, Mapping):
            self.granularity = Units(**self.granularity)
        if self.granularity is not None and self.granularity.dim != 0:
            what = f"must be 0, where outputs lie: an input has no activation, got {self.granularity.dim}"
            raise ArgumentError("granularity", "dim", message=what)

    def amounts(self, activation: Tensor, dims: tuple[int, ...]) -> Tensor:
        """What counts of an activation, summed over the dimensions outside the channels: [channels]."""
        raise NotImplementedError(f"{type(self).__name__} has no statistic: it must define amounts()")

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor | None:
        sums = self._sums.agreed.get(name)
        if sums is None or not sums[-1]:
            return None
        means = (sums[:-1] / sums[-1]).to(weight.device)
        return groups.sum(Units(0).groups(weight).spread(means)) / max(groups.size, 1)

    def choose(self, name: str, scores: Tensor, sparsity: float, context: Context) -> Tensor | None:
        if not self.revive and name in context.masks:
            mask = context.masks[name].float()
            scores = scores.masked_fill(self.groups(mask).max_abs(mask) == 0, -torch.inf)
        return super().choose(name, scores, sparsity, context)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        self._agree(parameters)
        agreed = self._sums.agreed
        silent = [name for name in parameters if name not in agreed or not agreed[name][-1]]
        if silent:
            context.warn("no activations seen, nothing pruned", parameters=silent, phase=self.phase)
        masks = super().compute_masks(parameters, context)
        self._sums.take()
        return masks

    # Statistics

    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        """A hook on the module behind each layer."""
        self._weights, self._model = dict(parameters), context.model
        found, _ = self._activations(parameters, context)
        for name, activation in found.items():
            module = context.model.get_submodule(activation.module)
            yield module.register_forward_hook(partial(self._hear, name, activation))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled model calls it between two of its graphs
    @torch.no_grad()
    def _hear(self, name: str, activation: Activation, module: Module, inputs: Any, output: Any) -> None:
        """Add what a forward pass has shown."""
        assert self._model is not None
        counts = self.phase == "all" or (self.phase == "training") == self._model.training
        if not counts or not isinstance(output, Tensor):
            return
        seen, axis = activation.of(output.detach()), 1 - self._weights[name].dim()
        axis = axis if seen.dim() >= -axis else -1
        channels = self._weights[name].shape[0]
        if seen.dim() < 2 or seen.shape[axis] != channels:
            what = f"{activation.module!r} gives a tensor of shape {list(seen.shape)}"
            raise PluginError(f"activations_of: {what}, and {name!r} has {channels} outputs")
        sums = self.amounts(seen, tuple(d for d in range(seen.dim()) if d != axis % seen.dim()))
        sums = widened(sums)
        self._sums.add(name, torch.cat([sums, sums.new_full((1,), seen.numel() / max(channels, 1))]))

    @hookimpl
    def on_epoch_end(self) -> None:
        """All ranks remember the same between epochs, whichever of them writes the checkpoint."""
        self._agree(self._weights)

    def _agree(self, parameters: Mapping[str, Parameter]) -> None:
        """Add what this rank has seen, and all others, to what they agree on."""
        for name, weight in parameters.items():
            self._sums.agree(name, [len(weight) + 1 if weight.dim() else 1], weight.device)

    def state_dict(self) -> dict[str, Any]:
        """Per parameter the sums of each output and, last, the number of elements: of this rank, and of all."""
        return self._sums.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the sums of `state_dict()`."""
        self._sums.load_state_dict(state)

    # Where the activations are

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """Besides what every ranked pruner refuses: layers without outputs, and layers whose activation is unknown."""
        yield from super().check(parameters, context)
        modules = {without_wrappers(name): module for name, module in context.model.named_modules()}
        for name in self.activations_of or {}:
            if without_wrappers(name) not in map(without_wrappers, parameters):
                yield ArgumentError("activations_of", name, message=f"{name!r} is none of the weights of this pruner")
        for name, module in (self.activations_of or {}).items():
            if without_wrappers(module) not in modules:
                near = get_close_matches(module, modules, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield ArgumentError("activations_of", name, message=f"the model has no module {module!r}{hint}")
        layers = {}
        for name, weight in parameters.items():
            owner = modules.get(without_wrappers(name).rpartition(".")[0])
            if weight.dim() > 1 and operation_of(owner) not in (CONVOLUTION, LINEAR):
                what = f"{name!r} belongs to a {type(owner).__name__}, which is no convolution and no linear layer"
                yield ArgumentError(*context.keys[name], message=what)
            elif weight.dim() > 1:
                layers[name] = weight
        found, reason = self._activations(layers, context)
        for name in layers:
            if name not in found and without_wrappers(name) not in self._named:
                what = f"{reason}; name the module that gives it: activations_of: {{{name}: …}}"
                yield ArgumentError(*context.keys[name], message=f"the activation behind {name!r} {what}")

    @property
    def _named(self) -> dict[str, str]:
        named = (self.activations_of or {}).items()
        return {without_wrappers(name): without_wrappers(module) for name, module in named}

    def _activations(self, parameters: Iterable[str], context: Context) -> tuple[dict[str, Activation], str]:
        """Weight -> where its activation is, and why others have none."""
        modules = {without_wrappers(name): name for name, _ in context.model.named_modules()}
        found = {
            name: Activation(modules[self._named[without_wrappers(name)]])
            for name in parameters
            if self._named.get(without_wrappers(name)) in modules
        }
        rest = [name for name in parameters if without_wrappers(name) not in self._named]
        reason = "is not found: no activation alone takes what the layer puts out"
        try:
            traced = following_activations(context.model) if rest else {}
        except Exception as error:
            traced, what = {}, str(error).partition("\n")[0]
            reason = f"is not found: torch.fx can't trace the model ({type(error).__name__}: {what})"
        behind = {without_wrappers(f"{layer}.weight"): activation for layer, activation in traced.items()}
        found |= {name: behind[bare] for name in rest if (bare := without_wrappers(name)) in behind}
        return found, reason


@dataclass(kw_only=True)
class APoZRanked(ActivationRanked):
    """Ranks filters by the fraction of their activations that are not zero, which is 1 - APoZ."""

    def amounts(self, activation: Tensor, dims: tuple[int, ...]) -> Tensor:
        return (activation != 0).sum(dims)


@dataclass(kw_only=True)
class MeanRanked(ActivationRanked):
    """Ranks filters by their mean activation."""

    def amounts(self, activation: Tensor, dims: tuple[int, ...]) -> Tensor:
        return activation.sum(dims, dtype=torch.promote_types(activation.dtype, torch.float32))


@dataclass(kw_only=True)
class ActivationAPoZRankedFilterPruner(FixedSparsity, APoZRanked):
    """Prunes the filters of each tensor whose activations are zero most often, at once.

    Hu et al. 2016, "Network Trimming", arXiv 1607.03250, equation 1: the Average Percentage of Zeros of a filter.
    """


@dataclass(kw_only=True)
class ActivationAPoZRankedFilterPruner_AGP(GradualSparsity, APoZRanked):  # noqa: N801  # the language's name
    """Prunes the filters of each tensor whose activations are zero most often, along a sparsity curve.

    Hu et al. 2016, arXiv 1607.03250, equation 1, as gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """


@dataclass(kw_only=True)
class ActivationMeanRankedFilterPruner(FixedSparsity, MeanRanked):
    """Prunes the filters of each tensor with the smallest mean activation, at once.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv 1611.06440,
    section 2.2, activation.
    """


@dataclass(kw_only=True)
class ActivationMeanRankedFilterPruner_AGP(GradualSparsity, MeanRanked):  # noqa: N801  # the language's name
    """Prunes the filters of each tensor with the smallest mean activation, along a sparsity curve.

    Molchanov et al. 2017, arXiv 1611.06440, section 2.2, as gradually as Zhu & Gupta 2017, arXiv 1710.01878,
    equation 1.
    """
