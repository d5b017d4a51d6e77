"""What the groups of optimizers hold besides the parameters: learning rates, momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from prunekit.errors import PluginError, PrunekitError, did_you_mean, shortened

Groups = Sequence[dict[str, Any]]


def sequence_of(optimizers: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """One optimizer, several or none, as a list.

    Raises:
        PrunekitError: something in it is no optimizer: it has no `param_groups` or no `step()`.
    """
    several = isinstance(optimizers, Sequence) and not hasattr(optimizers, "param_groups")
    found: list[Any] = list(optimizers) if several else [] if optimizers is None else [optimizers]  # type: ignore[arg-type]
    for each in found:
        if not is_optimizer(each):
            raise PrunekitError(f"an optimizer has param_groups and step(), got {shortened(each)}")
    return found


def is_optimizer(value: object) -> bool:
    """Whether it is one by its looks: many that wrap another inherit from nothing."""
    return hasattr(value, "param_groups") and callable(getattr(value, "step", None))


def groups_of(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """The groups of optimizers in their order, each once: an optimizer that wraps another shares the other's."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return list({id(group): group for group in groups}.values())


def set_groups(groups: Groups, values: Sequence[Mapping[str, Any]]) -> None:
    """Write values into groups; a learning rate that is a tensor stays that tensor."""
    for group, given in zip(groups, values, strict=True):
        for key, value in given.items():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = value


def must_fit_groups(values: Sequence[Mapping[str, Any]], groups: Groups) -> None:
    """Whether values can be written into groups.

    Raises:
        PluginError: there is no group, or another number of them, a group has no such key or no learning rate, or what
            must be a number is none.
    """
    if not groups:
        raise PluginError("a learning rate, and the scheduler has no optimizer")
    if len(values) != len(groups):
        raise PluginError(f"values for {len(values)} parameter groups; the optimizer has {len(groups)}")
    for given, group in zip(values, groups, strict=True):
        for key in given:
            if key not in group:
                raise PluginError(f"the optimizer's groups have no {key!r}{did_you_mean(key, group)}")
            if key == "lr" and group["lr"] is None:
                raise PluginError(WITHOUT_RATE)
            if (key == "lr" or isinstance(group[key], Tensor)) and not _is_number(given[key]):
                raise PluginError(f"{key!r} of the optimizer's groups must be a number, got {shortened(given[key])}")


WITHOUT_RATE = "the optimizer's groups hold lr=None: it finds its rate itself; give it one, or take the policy out"


def current_groups(groups: Groups) -> list[dict[str, Any]]:
    """A copy of what each group holds besides its parameters."""
    return [
        # Cloned, since `set_groups` writes into the tensor itself.
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"}
        for group in groups
    ]


def learning_rates(groups: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """The learning rate of each group; None where the optimizer finds it itself, or has none."""
    rates = (group.get("lr") for group in groups)
    return [None if rate is None else float(rate) for rate in rates]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
