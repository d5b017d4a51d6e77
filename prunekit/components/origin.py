"""By whose hand something is done to a network: what implementations return, and what becomes of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class Origin(NamedTuple):
    """By whose hand: the policy, its component, and the distribution that offers it."""

    policy: str
    component: str
    plugin: str
    version: str

    def __str__(self) -> str:
        parts = (self.component, self.policy, f"{self.plugin} {self.version}".strip())
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Result:
    """What one hook implementation returned: a wrapper sees those of the others."""

    origin: Origin
    value: Any

    def __str__(self) -> str:
        values = self.value if isinstance(self.value, list | tuple) else [self.value]
        return f"{', '.join(map(_in_words, values))} by {self.origin}"


@dataclass(frozen=True)
class MaskChange:
    """What became of one parameter; sparsities are counted from the tensor."""

    parameter: str
    sparsity_before: float
    sparsity_after: float
    origin: Origin


def _in_words(value: object) -> str:
    """As text, and a tensor by its shape: nobody reads thousands of numbers in a line of the trace."""
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
