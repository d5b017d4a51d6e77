"""What the ranks of torch.distributed have seen, added up, so that all of them decide the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return distributed.is_available() and distributed.is_initialized()


@dataclass
class RankSums:
    """Sums by name, in 64 bits where the device has them: what this rank alone has added, and what all ranks agree on.

    Without other ranks agreeing just takes what was added.

    >>> sums = RankSums()
    >>> sums.add("a", torch.tensor([1.0, 2.0]))
    >>> sums.agree("a", [2], torch.device("cpu"))
    >>> sums.agreed["a"]
    tensor([1., 2.], dtype=torch.float64)
    """

    own: dict[str, Tensor] = field(default_factory=dict)
    agreed: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, more: Tensor) -> None:
        """Add what this rank has seen."""
        _add(self.own, name, widened(more))

    def agree(self, name: str, shape: Sequence[int], device: torch.device) -> None:
        """Add what every rank has added to what all agree on. All ranks must call it, in the same order of names.

        Args:
            name: of the sum.
            shape: of it, for a rank that has added nothing.
            device: where ranks can add up.
        """
        own = self.own.pop(name, None)
        if is_distributed():
            # A rank that has seen nothing must take part all the same: the others wait for it.
            own = widened(torch.zeros(*shape, device=device) if own is None else own.to(device))
            distributed.all_reduce(own)
        if own is not None:
            _add(self.agreed, name, own)

    def take(self) -> dict[str, Tensor]:
        """What all agree on, which begins anew."""
        agreed, self.agreed = self.agreed, {}
        return agreed

    def state_dict(self) -> dict[str, Any]:
        """Both, as they are."""
        return {"own": dict(self.own), "agreed": dict(self.agreed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.own, self.agreed = dict(state["own"]), dict(state["agreed"])


def _add(sums: dict[str, Tensor], name: str, more: Tensor) -> None:
    # Not in place: a state that was saved holds this tensor. And one that was loaded may lie on another device.
    sums[name] = sums[name].to(more.device) + more if name in sums else more


def widened(tensor: Tensor) -> Tensor:
    """A tensor in 64 bits, or in 32 where its device has no more."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
