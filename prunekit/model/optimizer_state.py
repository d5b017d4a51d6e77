"""What optimizers remember of single weights: momentum, moments, step sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Adagrad, Optimizer, Rprop

from prunekit.model.optimizer import is_optimizer


@dataclass(frozen=True)
class WeightState:
    """All that optimizers remember of one parameter.

    Attributes:
        by_weight: tensors of one value for each weight, with the value that a weight begins with, which is mostly 0.
        others: what else there is, such as the factored moments of Adafactor: (class of the optimizer, key).
    """

    by_weight: list[tuple[Tensor, float]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, parameter: Parameter, optimizers: Iterable[Optimizer]) -> WeightState:
        """What these optimizers remember of a parameter now; nothing before their first step."""
        state, seen = cls(), set[int]()
        for optimizer in optimizers:
            for key, value in _entries(optimizer, parameter):
                if id(value) in seen or not isinstance(value, Tensor) or value.numel() < 2:
                    continue  # counts of steps, and what wrappers share with the optimizer inside
                seen.add(id(value))
                plain = type(value) in (Tensor, Parameter) and value.layout == torch.strided
                if plain and value.shape == parameter.shape and not isinstance(optimizer, LBFGS):
                    state.by_weight.append((value, _first(optimizer, parameter, key)))
                else:
                    state.others.append((type(optimizer).__name__, key))
        return state

    def reset(self, where: Tensor) -> None:
        """Set the state of these weights [bool, the parameter's shape] back."""
        for value, first in self.by_weight:
            value.detach().masked_fill_(where.to(value.device), first)

    def snapshot(self) -> Callable[[], None]:
        """A copy; the function that is returned puts it back."""
        copies = [(value, value.detach().clone()) for value, _ in self.by_weight]

        def restore() -> None:
            for value, copy in copies:
                value.detach().copy_(copy)

        return restore


def _entries(optimizer: Optimizer, parameter: Parameter) -> Iterator[tuple[str, Any]]:
    state = getattr(optimizer, "state", None)
    # `in` first: torch's own is a defaultdict, in which a look would make an entry.
    if state is not None and is_optimizer(optimizer) and parameter in state:
        yield from dict(state[parameter]).items()


def _first(optimizer: Optimizer, parameter: Parameter, key: str) -> float:
    """What an optimizer begins with, where that is not 0."""
    group = _group(optimizer.param_groups, parameter)
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])  # at 0 the weight would hardly move
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


def _group(groups: Sequence[dict[str, Any]], parameter: Parameter) -> dict[str, Any]:
    return next((group for group in groups if any(each is parameter for each in group["params"])), {})
