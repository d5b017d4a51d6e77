"""Whether a saved state fits the scheduler that is to continue from it, and what differs if not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import unified_diff
from typing import Any

from torch.nn import Parameter

from prunekit.components.context import Stateful
from prunekit.errors import StateError
from prunekit.model.names import without_wrappers
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.yaml_source import dump

_KEYS = (
    *("schedule", "plugins", "next_epoch", "progress", "parameters", "masks"),
    *("components", "policies", "learning_rates", "ledger"),
)


def fingerprint(schedule: Schedule) -> str:
    """The schedule as text, to compare; functions and classes in it by name."""
    return dump(_named(schedule.to_dict()))


def stateful(components: Mapping[str, Any]) -> dict[str, Stateful]:
    """The components with something to remember."""
    return {key: component for key, component in components.items() if isinstance(component, Stateful)}


def check_fit(state: Mapping[str, Any], schedule: Schedule, components: Mapping[str, Any], groups: int) -> None:
    """Compare a saved state with the schedule, its components and the number of parameter groups, if there are any yet.

    Raises:
        StateError: they differ; the message shows how.
    """
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise StateError(f"not the state of a scheduler: it has no {missing[0]!r}")
    if state["schedule"] != fingerprint(schedule):
        saved, now = state["schedule"].split("\n"), fingerprint(schedule).split("\n")
        difference = "\n".join(unified_diff(saved, now, "saved", "now", n=1, lineterm=""))
        way = "scheduler.take_masks(state) takes its masks alone"
        raise StateError(f"the state was saved under another schedule ({way}):\n{difference}")
    if set(state["components"]) != set(stateful(components)):
        saved, now = sorted(state["components"]), sorted(stateful(components))
        raise StateError(f"the state holds what {saved} remembered; the components here are {now}")
    saved_groups = len(state["learning_rates"])
    if saved_groups and groups and saved_groups != groups:
        raise StateError(f"saved with {saved_groups} parameter groups; the optimizer has {groups}")


def fitting_masks(state: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """The saved masks under the names of this model, which may be wrapped otherwise.

    Raises:
        StateError: a mask belongs to no parameter, or to one of another shape.
    """
    bare = {without_wrappers(name): name for name in parameters}
    masks = {bare.get(without_wrappers(name), name): saved for name, saved in state["masks"].items()}
    for name, saved in masks.items():
        mask = saved["pruned"] if saved["pruned"] is not None else saved["kept"]
        if name not in parameters:
            raise StateError(f"the state holds a mask for {name!r}, and the model has no such parameter")
        if mask.shape != parameters[name].shape:
            shapes = f"{tuple(mask.shape)}, the parameter is {tuple(parameters[name].shape)}"
            raise StateError(f"the mask of {name!r} is {shapes}")
    return masks


def renamed(state: Any, saved: Iterable[str], parameters: Mapping[str, Parameter]) -> Any:
    """A component's state with the parameter names among its keys as this model has them."""
    bare = {without_wrappers(name): name for name in parameters}
    names = {name: bare[without_wrappers(name)] for name in saved if without_wrappers(name) in bare}

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): rename(item) for key, item in value.items()}
        return value

    return rename(state)


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    has_name = hasattr(value, "__qualname__")
    if not has_name and f"{id(value):x}" in repr(value).lower():
        value, has_name = type(value), True  # its address is another in the next process
    return f"{value.__module__}.{value.__qualname__}" if has_name else repr(value)
