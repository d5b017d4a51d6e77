"""Keeping zeros: a network that is sparse already is fine-tuned and stays as sparse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, Selectors


@dataclass(kw_only=True)
class KeepZeros:
    """Masks the weights that are zero when its window opens, and no others: fine-tuning keeps the network as sparse.

    It chooses once; weights that happen to become zero afterwards are not masked.

    Args:
        weights: the parameters whose zeros are kept.
    """

    weights: Selectors
    _chosen: bool = field(default=False, init=False, repr=False)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """The weights that are not zero, at the first call; a tensor without zeros has no mask."""
        if self._chosen:
            return {}
        self._chosen = True
        kept = {name: weight.detach() != 0 for name, weight in parameters.items()}
        masks = {name: mask for name, mask in kept.items() if not mask.all()}
        if not masks:
            context.warn("no weight is zero", parameters=list(parameters))
        for name, mask in masks.items():
            if not mask.any():
                context.warn("no weight is left", parameter=name)
        return masks

    def state_dict(self) -> dict[str, Any]:
        """Whether it has chosen; the masks themselves are kept by the scheduler."""
        return {"chosen": self._chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._chosen = state["chosen"]
