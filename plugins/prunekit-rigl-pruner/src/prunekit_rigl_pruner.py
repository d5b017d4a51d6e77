"""RigL: as many weights as a budget allows, rewired to where the gradient is largest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, OverTime, PositiveInt, Selectors, Sparsity, is_change
from prunekit.pruning import Distribution, budgets, draws, drop_lowest, grow_highest, random_mask

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(kw_only=True)
class RigLPruner:
    """Keeps a random choice of weights, and every few mini-batches swaps the smallest for those with large gradients.

    Evci et al. 2020, "Rigging the lottery: making all tickets winners", arXiv 1911.11134, Algorithm 1. Of a tensor's
    kept weights θ the fraction f(t) = α/2 · (1 + cos(t π / T_end)) goes, by magnitude, and as many come, by the
    gradient of the dense loss: I_drop = ArgTopK(−|θ|, k), I_grow = ArgTopK_{i ∉ θ∖I_drop}(|∇L|, k). t counts
    mini-batches from the first of the window. How many weights a tensor keeps never changes.

    Args:
        weights: the parameters. Each has a budget of its own, and only the sharing out of these looks at all of them.
        desired_sparsity: the fraction of zeros, 0 to 1, over all `weights` together; of each by itself where
            `initialization` is `uniform`.
        initialization: how the kept weights are shared out: `erdos-renyi-kernel` (the density of a tensor is in
            proportion to the sum of its dimensions over their product), `erdos-renyi` (the same over inputs and outputs
            alone) or `uniform` (the same density everywhere).
        delta_t: the mini-batches from one update to the next, ΔT.
        alpha: the fraction α of the kept weights that the first update swaps, 0 to 1. A curve is f itself, in place of
            the cosine: `{curve: linear, from: 0.3, to: 0}`.
        t_end: the mini-batch T_end at which updates end, counted from the first of the window; by default they end with
            the window.
        seed: of the first masks; the same on all ranks and after a resume.
    """

    weights: Selectors
    desired_sparsity: Sparsity
    initialization: Distribution = "erdos-renyi-kernel"
    delta_t: PositiveInt = 100
    alpha: OverTime[Fraction] = 0.3
    t_end: PositiveInt | None = None
    seed: int = 0
    regrows: ClassVar[bool] = True
    _started: bool = field(default=False, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)

    def frees(self, name: str, context: Context) -> bool:
        """Whether nothing is to be pruned."""
        return self.desired_sparsity == 0

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """Drawn masks for the parameters that have none yet."""
        masks = {}
        for name, kept in self._budgets(parameters).items():
            if kept < parameters[name].numel() and not (self._started and name in context.masks):
                masks[name] = random_mask(draws(parameters[name], self.seed, context.progress, name), kept)
        self._started = True
        return masks

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        """Where an update is due: masks of as many weights as before."""
        t = context.window.minibatches_elapsed(context.progress)
        t_end = self.t_end or context.window.minibatches(context.progress)
        if not context.window.is_open(context.progress) or not self._next <= t < t_end:
            return None
        self._next = (t // self.delta_t + 1) * self.delta_t
        # A curve says itself how it decays.
        fraction = context.now(self.alpha) * (1 if is_change(self.alpha) else (1 + math.cos(t * math.pi / t_end)) / 2)
        masks = {}
        for name, kept in self._budgets(parameters).items():
            mask, weight = context.masks.get(name), parameters[name]
            if mask is not None and (gradient := _gradient(name, weight, mask, context)) is not None:
                masks[name] = grow_highest(drop_lowest(mask, weight.abs(), fraction), gradient.abs(), kept)
        return masks or None

    def state_dict(self) -> dict[str, Any]:
        """Whether there are masks, and when the next update is due. The masks are in the scheduler's state."""
        return {"started": self._started, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._started, self._next = state["started"], state["next"]

    def _budgets(self, parameters: Mapping[str, Parameter]) -> dict[str, int]:
        shapes = {name: weight.shape for name, weight in parameters.items()}
        return budgets(shapes, self.desired_sparsity, self.initialization)


def _gradient(name: str, weight: Parameter, mask: Tensor, context: Context) -> Tensor | None:
    """What there is to grow by; None, with a warning, where no pruned weight has any."""
    gradient = context.gradient(weight)
    if gradient is not None and bool((gradient.bool() & ~mask).any()):
        return gradient
    if not bool(mask.all()):
        context.warn("no gradient to grow by, mask left as it is", parameter=name)
    return None
