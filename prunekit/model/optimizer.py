"""What an optimizer's parameter groups hold besides the parameters: learning rates, momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from prunekit.errors import PluginError, did_you_mean, shortened


def set_groups(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Write values into an optimizer's groups; a learning rate that is a tensor stays that tensor."""
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        for key, value in values.items():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = value


def must_fit_groups(groups: Sequence[Mapping[str, Any]], optimizer: Optimizer | None) -> None:
    """Whether values can be written into an optimizer's groups.

    Raises:
        PluginError: there is no optimizer, it has another number of groups, a group has no such key, or what must be
            a number is none.
    """
    if optimizer is None:
        raise PluginError("a learning rate, and the scheduler has no optimizer")
    if len(groups) != len(optimizer.param_groups):
        raise PluginError(f"values for {len(groups)} parameter groups; the optimizer has {len(optimizer.param_groups)}")
    for values, group in zip(groups, optimizer.param_groups, strict=True):
        for key in values:
            if key not in group:
                raise PluginError(f"the optimizer's groups have no {key!r}{did_you_mean(key, group)}")
            if (key == "lr" or isinstance(group[key], Tensor)) and not _is_number(values[key]):
                raise PluginError(f"{key!r} of the optimizer's groups must be a number, got {shortened(values[key])}")


def current_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """A copy of what each group holds besides its parameters."""
    return [
        # Cloned, since `set_groups` writes into the tensor itself.
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def learning_rates(optimizer: Optimizer | None) -> list[float]:
    """The learning rate of each group."""
    return [] if optimizer is None else [float(group["lr"]) for group in optimizer.param_groups]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
