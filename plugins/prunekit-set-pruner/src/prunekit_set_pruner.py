"""Sparse evolutionary training: as many weights as a budget allows, rewired at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, OverTime, Selectors, Sparsity
from prunekit.pruning import Distribution, budgets, draws, drop_lowest, grow_highest, random_mask

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(kw_only=True)
class SETPruner:
    """Keeps a random choice of weights, and at each active epoch swaps those closest to zero for others at random.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", arXiv 1707.04780, Algorithm 1. The first active epoch draws the masks, each later one drops and
    grows. How many weights a tensor keeps never changes.

    Args:
        weights: the parameters. Each has a budget of its own, and only the sharing out of these looks at all of them.
        desired_sparsity: the fraction of zeros, 0 to 1, over all `weights` together; of each by itself where
            `initialization` is `uniform`.
        initialization: how the kept weights are shared out: `erdos-renyi` (equation 3: the density of a matrix is
            ε (n_out + n_in) / (n_out · n_in), with the ε that meets the sparsity), `erdos-renyi-kernel` (the same over
            all dimensions of a convolution) or `uniform` (the same density everywhere).
        zeta: the fraction ζ of a tensor's kept weights that is swapped, 0 to 1; the paper's stays the same.
        signs: `apart` drops the fraction ζ of the smallest that are positive (or zero) and of the largest that are
            negative, as Algorithm 1 does; `together` drops the fraction ζ that is closest to zero.
        seed: of the draws; the same on all ranks and after a resume.
    """

    weights: Selectors
    desired_sparsity: Sparsity
    initialization: Distribution = "erdos-renyi"
    zeta: OverTime[Fraction] = 0.3
    signs: Literal["apart", "together"] = "apart"
    seed: int = 0
    regrows: ClassVar[bool] = True
    _moment: tuple[int, int] | None = field(default=None, init=False, repr=False)

    def frees(self, name: str, context: Context) -> bool:
        """Whether nothing is to be pruned."""
        return self.desired_sparsity == 0

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """Drawn masks where there are none yet, then rewired ones: once for each moment, however often it is asked."""
        last, self._moment = self._moment, (context.progress.epoch, context.progress.minibatch)
        shapes = {name: weight.shape for name, weight in parameters.items()}
        kept, zeta = budgets(shapes, self.desired_sparsity, self.initialization), context.now(self.zeta)
        masks = {}
        for name, weight in parameters.items():
            mask = None if last is None else context.masks.get(name)
            if kept[name] < weight.numel() and (mask is None or last != self._moment):
                chances = draws(weight, self.seed, context.progress, name)
                masks[name] = random_mask(chances, kept[name]) if mask is None else self._left(mask, weight, zeta)
                masks[name] = grow_highest(masks[name], chances, kept[name])
        return masks

    def state_dict(self) -> dict[str, Any]:
        """When it last chose. The masks are in the scheduler's state."""
        return {"moment": None if self._moment is None else list(self._moment)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        moment = state["moment"]
        self._moment = None if moment is None else (moment[0], moment[1])

    def _left(self, mask: Tensor, weight: Tensor, zeta: float) -> Tensor:
        """What of a mask is not dropped."""
        if self.signs == "together":
            return drop_lowest(mask, weight.abs(), zeta)
        negative = weight < 0
        smallest = drop_lowest(mask & ~negative, weight, zeta)
        largest = drop_lowest(mask & negative, -weight, zeta)
        return smallest | largest
