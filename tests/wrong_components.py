"""What is wrong on purpose, each in one way, for `test_testing.py`: every one breaks the laws that it names."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import AdaptiveAvgPool2d, Module, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prunekit import Progress, hookimpl
from prunekit.components import Context, NonNegative, OverTime, Selectors, Sparsity
from prunekit.pruning import Groups, prune_count, prune_lowest
from prunekit.quantization import BitsQuantizer

Weights = Mapping[str, Tensor]


@dataclass
class Right:
    """Prunes the smallest weights: what the pruners below would be if they were right.

    Args:
        sparsity: fraction of zeros.
        weights: the parameters.
    """

    sparsity: Sparsity
    weights: Selectors

    def frees(self, name: str, context: Context) -> bool:
        """Whether nothing is to be pruned."""
        return self.sparsity == 0

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        return {name: prune_lowest(weight.abs(), self.sparsity) for name, weight in parameters.items()}


class Untyped(Right):
    """An argument without a type.

    Args:
        fraction: of zeros.
    """

    breaks = ("typed_constructor",)

    def __init__(self, weights: Selectors = "*.weight", fraction=0.5) -> None:  # type: ignore[no-untyped-def]
        super().__init__(fraction, weights)


class WrongDefault(Right):
    """A default that its own type refuses.

    Args:
        weights: the parameters.
        sparsity: fraction of zeros.
    """

    breaks = ("typed_constructor",)

    def __init__(self, weights: Selectors, sparsity: Sparsity = 50) -> None:
        super().__init__(sparsity, weights)


class Undocumented(Right):
    """Says nothing of an argument."""

    breaks = ("documented_constructor",)

    def __init__(self, fraction: Sparsity, weights: Selectors) -> None:
        super().__init__(fraction, weights)


class SharesItsDefault(Right):
    """Peer failure 20: a default that can change belongs to all instances.

    Args:
        sparsity: fraction of zeros.
        weights: the parameters.
    """

    breaks = ("own_state",)

    def __init__(self, sparsity: Sparsity, weights: Selectors = ["fc1.weight"]) -> None:  # noqa: B006
        super().__init__(sparsity, weights)


class SharesItsNotes(Right):
    """A dict on the class."""

    breaks = ("own_state",)
    seen: dict[str, int] = {}  # noqa: RUF012


class FloatMasks(Right):
    """Masks of 0 and 1."""

    breaks = ("boolean_masks",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        return {name: mask.float() for name, mask in super().compute_masks(parameters, context).items()}


class FlatMasks(Right):
    """Masks of another shape."""

    breaks = ("boolean_masks",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        return {name: mask.flatten() for name, mask in super().compute_masks(parameters, context).items()}


class Stranger(Right):
    """A mask for a parameter that is not its own."""

    breaks = ("boolean_masks",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        return {"fc2.bias": torch.ones(4, dtype=torch.bool), **super().compute_masks(parameters, context)}


class Fails(Right):
    """Raises in the third epoch of its window."""

    breaks = ("runs",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        if context.progress.epoch == 3:
            raise RuntimeError("not this epoch")
        return super().compute_masks(parameters, context)


class PrunesNothing(Right):
    """Peer failure 8: silently prunes nothing."""

    breaks = ("decides", "exact_sparsity", "number_types")

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in parameters.items()}


class HoldsOn(Right):
    """Asked for nothing, it does nothing."""

    breaks = ("zero_frees",)

    def frees(self, name: str, context: Context) -> bool:
        return False

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        return super().compute_masks(parameters, context) if self.sparsity else {}


class TakesGradients(Right):
    """Changes something itself."""

    breaks = ("hands_off",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        for weight in parameters.values():
            weight.grad = None
        return super().compute_masks(parameters, context)


class TakesGradientsAsItLooks(Right):
    """Changes something itself, when it is shown gradients."""

    breaks = ("hands_off",)

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> None:
        if context.window.is_open(context.progress):
            for weight in parameters.values():
                weight.grad = None


class FloatMasksOfGradients(Right):
    """Masks of 0 and 1, when it is shown gradients."""

    breaks = ("boolean_masks",)

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Weights:
        return {name: (weight.grad != 0).float() for name, weight in parameters.items()}  # type: ignore[union-attr]


class NeedsGradients(Right):
    """A frozen parameter has none."""

    breaks = ("odd_parameters",)

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> None:
        torch.stack([weight.grad.abs().sum() for weight in parameters.values()])  # type: ignore[union-attr]


class NeedsGradientsInFloat32(Right):
    """numpy knows no bfloat16, of gradients neither."""

    breaks = ("number_types",)

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> None:
        for gradient in (weight.grad for weight in parameters.values() if weight.grad is not None):
            gradient.numpy()


class TiesGoTogether(Right):
    """Peer failure 6: a threshold that equal weights share."""

    breaks = ("exact_sparsity", "number_types")

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        masks = {}
        for name, weight in parameters.items():
            count = int(self.sparsity * weight.numel())
            if count:
                masks[name] = weight.abs() > weight.abs().flatten().kthvalue(count).values
        return masks


class Compounds(Right):
    """Peer failure 3: prunes a fraction of what is left."""

    breaks = ("exact_sparsity", "idempotent", "number_types")

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        masks = {}
        for name, weight in parameters.items():
            left = int(context.masks[name].sum()) if name in context.masks else weight.numel()
            masks[name] = prune_count(weight.abs(), weight.numel() - left + int(self.sparsity * left))
        return masks


@dataclass
class Alternates(Right):
    """Prunes other weights each time it is asked."""

    breaks = ("idempotent",)
    _times: int = field(default=0, init=False)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        self._times += 1
        sign = (-1) ** self._times
        return {name: prune_lowest(sign * weight.abs(), self.sparsity) for name, weight in parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"times": self._times}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._times = state["times"]


class Unseeded(Right):
    """Random numbers that no seed reaches."""

    breaks = ("idempotent", "odd_parameters", "deterministic", "resume", "compiled", "two_processes", "in_steps")

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        dice = random.SystemRandom()
        scores = {n: torch.tensor([dice.random() for _ in range(w.numel())]) for n, w in parameters.items()}
        return {
            name: prune_lowest(score.reshape(parameters[name].shape), self.sparsity) for name, score in scores.items()
        }


class NeedsAMaximum(Right):
    """An empty tensor has none."""

    breaks = ("odd_parameters",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        scores = {name: weight.abs() / weight.abs().max() for name, weight in parameters.items()}
        return {name: prune_lowest(score, self.sparsity) for name, score in scores.items()}


class ReadsMemory(Right):
    """Takes the order of memory for the order of the weights."""

    breaks = ("odd_parameters",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        memory = {n: w.detach().as_strided(w.shape, torch.empty(w.shape).stride()) for n, w in parameters.items()}
        return super().compute_masks(memory, context)


class NeedsFloat32(Right):
    """numpy knows no bfloat16."""

    breaks = ("number_types",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        arrays = {name: torch.from_numpy(weight.detach().numpy()) for name, weight in parameters.items()}
        return super().compute_masks(arrays, context)


@dataclass
class Forgets(Right):
    """Peer failure 4: what is decided once and not saved."""

    breaks = ("resume", "in_steps")
    _first: dict[str, Tensor] = field(default_factory=dict, init=False)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        for name, weight in parameters.items():
            self._first.setdefault(name, -weight.detach().abs())
        return {name: prune_lowest(scores, self.sparsity) for name, scores in self._first.items()}


@dataclass
class LeaksItsState(Right):
    """The state that it gives goes on changing."""

    breaks = ("state_round_trip",)
    _epochs: list[int] = field(default_factory=list, init=False)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        self._epochs.append(context.progress.epoch)
        return super().compute_masks(parameters, context)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epochs = list(state["epochs"])


@dataclass
class SavesObjects(Right):
    """A state that torch.load refuses by default."""

    breaks = (
        "state_round_trip",
        "resume",
        "deterministic",
        "quiet_outside_its_window",
        "compiled",
        "two_processes",
        "in_steps",
    )

    def state_dict(self) -> dict[str, Any]:
        return {"me": Right(0.5, "*")}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class CountsWithinEpochs(Right):
    """Prunes less each time that it is asked within an epoch, and does not save how often that was."""

    breaks = ("in_steps",)
    asked = 0

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        self.asked += context.progress.minibatch > 0 and context.window.in_steps
        sparsity = self.sparsity / (1 + self.asked)
        return {name: prune_lowest(weight.abs(), sparsity) for name, weight in parameters.items()}


class StaysAtItsFirstValue(Right):
    """Takes a curve, and never moves along it.

    Args:
        weights: the parameters.
        sparsity: fraction of zeros.
    """

    breaks = ("over_time",)

    def __init__(self, weights: Selectors = "*.weight", sparsity: OverTime[Sparsity] = 0.5) -> None:
        super().__init__(sparsity if isinstance(sparsity, float) else sparsity["from"], weights)  # type: ignore[index]


@dataclass
class ThrowsDice(Right):
    """Draws a random number when it is made."""

    breaks = ("quiet_outside_its_window", "in_steps")

    def __post_init__(self) -> None:
        torch.rand(1)


class FollowsItsRank(Right):
    """Peer failure 15: processes that decide for themselves."""

    breaks = ("two_processes",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        return {name: prune_lowest(weight.abs() * (-1) ** rank, self.sparsity) for name, weight in parameters.items()}


class FailsInCompany(Right):
    """Raises where it is not alone."""

    breaks = ("two_processes",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        if distributed.is_initialized():
            raise RuntimeError("alone I would")
        return super().compute_masks(parameters, context)


class ComparesAll(Right):
    """Each weight with each other one."""

    breaks = ("growth",)

    def compute_masks(self, parameters: Weights, context: Context) -> Weights:
        ranks = {n: (w.flatten().abs() > w.reshape(-1, 1).abs()).sum(0).reshape(w.shape) for n, w in parameters.items()}
        return {name: prune_lowest(rank.float(), self.sparsity) for name, rank in ranks.items()}


class ChangesTheGraph:
    """Peer failure 19: says the same to a compiled model in other words, so that it is compiled again."""

    breaks = ("compiled",)

    @hookimpl
    def on_epoch_begin(self, model: Module, progress: Progress) -> None:
        (pool,) = (module for module in model.modules() if isinstance(module, AdaptiveAvgPool2d))
        pool.output_size = (2, [2, 2], (2, 2))[progress.epoch % 3]  # type: ignore[assignment]


@dataclass
class Penalty:
    """The sum of squares: what the regularizers below would be if they were right.

    Args:
        strength: factor of the penalty.
        weights: the parameters.
    """

    strength: NonNegative
    weights: Selectors

    def penalty(self, parameters: Weights, context: Context) -> Tensor:
        return torch.stack([self.strength * weight.square().sum() for weight in parameters.values()]).sum()


class CutOff(Penalty):
    """A penalty that no gradient comes from."""

    breaks = ("differentiable",)

    def penalty(self, parameters: Weights, context: Context) -> Tensor:
        return super().penalty(parameters, context).detach()


class NaNAtZero(Penalty):
    """A norm as the root of a sum has no gradient at zero."""

    breaks = ("differentiable",)

    def penalty(self, parameters: Weights, context: Context) -> Tensor:
        return torch.stack([self.strength * weight.square().sum().sqrt() for weight in parameters.values()]).sum()


class WrongGradient(Penalty):
    """A value that its gradient does not belong to."""

    breaks = ("differentiable",)

    def penalty(self, parameters: Weights, context: Context) -> Tensor:
        right = super().penalty(parameters, context)
        return right + right.detach()


@dataclass
class Rounds:
    """Rounds weights without a straight-through estimator: nothing is ever trained.

    Args:
        weights: the parameters.
    """

    breaks = ("differentiable",)
    weights: Selectors

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        return (weight * 8).round() / 8


@dataclass(kw_only=True)
class Steps(BitsQuantizer):
    """Rounds what is between -1 and 1 to 2^k - 1 steps: what the quantizers below would be if they were right."""

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        return in_steps(weight.clamp(-1, 1), 2 ** (context.settings[name] - 1) - 1)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        return in_steps(output.clamp(0, 1), 2 ** context.activations[name] - 1)


def in_steps(values: Tensor, steps: float) -> Tensor:
    return values + ((values * steps).round() / steps - values).detach()


@torch.compiler.disable
def is_training(context: Context) -> bool:
    return context.model.training


class RoundsActivations(Steps):
    """Rounds what activations give without a straight-through estimator: nothing before them is ever trained."""

    breaks = ("differentiable",)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        return (output.clamp(0, 1) * 15).round() / 15


class OneBitTooMany(Steps):
    """2^k + 1 levels."""

    breaks = ("levels",)

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        return in_steps(weight.clamp(-1, 1), 2 ** context.settings[name] / 2)


class OneBitTooManyBehindARelu(Steps):
    """2^k + 1 levels of activations."""

    breaks = ("levels",)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        return in_steps(output.clamp(0, 1), 2 ** context.activations[name])


class OneBitTooManyInEvaluation(Steps):
    """2^k + 1 levels of activations, in evaluation; training goes on in floats."""

    breaks = ("levels",)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        return output if is_training(context) else in_steps(output.clamp(0, 1), 2 ** context.activations[name])


class DividesByZero(Steps):
    """Peer failure 23: a pruned weight does not come out as zero."""

    breaks = ("masked_zeros",)

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        values = super().quantize(name, weight, context)
        return torch.where(weight == 0, values + torch.inf, values)


class MovesIn(Steps):
    """Peer failure 13: a model that it has prepared has another state."""

    breaks = ("resume", "strict_load", "in_steps")

    @hookimpl
    def on_epoch_begin(self, model: Module) -> None:
        model.register_buffer("scale", torch.ones(1))


class BelowZero(LRScheduler):
    """A learning rate that falls through zero.

    Args:
        step: what it loses in an epoch.
    """

    breaks = ("rate_of_the_epoch",)

    def __init__(self, optimizer: Optimizer, step: NonNegative, last_epoch: int = -1) -> None:
        self.step_size = step
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        return [base - self.step_size * self.last_epoch for base in self.base_lrs]


class Gambler:
    """A listener that takes random numbers away from the training that it listens to."""

    breaks = ("only_listens",)

    @hookimpl
    def on_epoch_begin(self) -> None:
        torch.rand(1)


# Curves, granularities and rankings, each a class whose instances are one; `kind` says which.


class Curve:
    """A straight curve: what the curves below would be if they were right."""

    kind = "curve"

    def __call__(self, initial: float, final: float, fraction: float) -> float:
        return initial + (final - initial) * fraction


class NeverArrives(Curve):
    """Half of the way."""

    breaks = ("curve_ends",)

    def __call__(self, initial: float, final: float, fraction: float) -> float:
        return super().__call__(initial, final, fraction / 2)


class Overshoots(Curve):
    """Prunes more than all on the way, and comes back."""

    breaks = ("curve_range",)

    def __call__(self, initial: float, final: float, fraction: float) -> float:
        return super().__call__(initial, final, fraction) + 4 * fraction * (1 - fraction)


class Wavers(Curve):
    """A little more or less each time, but at its ends."""

    breaks = ("pure_function",)

    def __call__(self, initial: float, final: float, fraction: float) -> float:
        draw = 0.01 * float(torch.rand(1)) if 0 < fraction < 1 else 0
        return super().__call__(initial, final, fraction) - draw * fraction


class EveryOther:
    """The rows of a matrix, even and odd ones: what the granularities below would be if they were right."""

    kind = "granularity"

    def groups(self, tensor: Tensor) -> Groups:
        if tensor.dim() != 2 or len(tensor) % 2:
            raise ValueError(f"has shape {list(tensor.shape)}, not an even number of rows")
        rows, columns = tensor.shape
        return Groups((rows, columns), (rows // 2, 2, columns), (0, 2))


class CountsOneGroup(EveryOther):
    """Spreads as if all were in the first group."""

    breaks = ("partition",)

    def groups(self, tensor: Tensor) -> Groups:
        return OneGroup(**vars(super().groups(tensor)))


class OneGroup(Groups):
    def spread(self, values: Tensor) -> Tensor:
        return super().spread(values[:1].expand(len(values)))


class RefusesWithoutAWord(EveryOther):
    """Whoever reads the message does not learn what the tensor has."""

    breaks = ("refusal",)

    def groups(self, tensor: Tensor) -> Groups:
        try:
            return super().groups(tensor)
        except ValueError:
            raise ValueError("no") from None


class Turns(EveryOther):
    """Rows now, columns then."""

    breaks = ("pure_function",)

    def __init__(self) -> None:
        self.asked = 0

    def groups(self, tensor: Tensor) -> Groups:
        even, self.asked = super().groups(tensor), self.asked + 1
        return even if self.asked % 2 else Groups(even.shape, even.shape, (0,))


class Ranking:
    """The sum of magnitudes: what the rankings below would be if they were right."""

    kind = "ranking"

    def __call__(self, weight: Tensor, groups: Groups) -> Tensor:
        return groups.l1(weight)


class DividesByZeros(Ranking):
    """Infinity for a group of zeros."""

    breaks = ("finite_scores",)

    def __call__(self, weight: Tensor, groups: Groups) -> Tensor:
        scores = super().__call__(weight, groups)
        return torch.where(scores == 0, torch.inf, scores)


class ScalesTheWeight(Ranking):
    """Leaves something else than it was given."""

    breaks = ("weight_untouched",)

    def __call__(self, weight: Tensor, groups: Groups) -> Tensor:
        return super().__call__(weight.mul_(2), groups)


class Draws(Ranking):
    """Another order each time."""

    breaks = ("pure_function",)

    def __call__(self, weight: Tensor, groups: Groups) -> Tensor:
        return torch.rand(groups.number)
