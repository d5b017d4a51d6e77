"""Whether a saved state fits the scheduler that is to continue from it, and what differs if not."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import unified_diff
from typing import Any

import yaml
from torch.nn import Parameter

from prunekit.components import Stateful
from prunekit.errors import StateError
from prunekit.schedule import Schedule
from prunekit.selectors import without_module

_KEYS = ("schedule", "plugins", "next_epoch", "progress", "masks", "components", "policies", "learning_rates", "ledger")


def fingerprint(schedule: Schedule) -> str:
    """The schedule as text, to compare."""
    try:
        return schedule.to_yaml()
    except yaml.representer.RepresenterError:
        return repr(schedule.to_dict())


def stateful(components: Mapping[str, Any]) -> dict[str, Stateful]:
    """The components with something to remember."""
    return {key: component for key, component in components.items() if isinstance(component, Stateful)}


def check_fit(state: Mapping[str, Any], schedule: Schedule, components: Mapping[str, Any], groups: int) -> None:
    """Compare a saved state with the schedule, the components and the optimizer's number of parameter groups.

    Raises:
        StateError: they differ; the message shows how.
    """
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise StateError(f"not the state of a scheduler: it has no {missing[0]!r}")
    if state["schedule"] != fingerprint(schedule):
        saved, now = state["schedule"].split("\n"), fingerprint(schedule).split("\n")
        difference = "\n".join(unified_diff(saved, now, "saved", "now", n=1, lineterm=""))
        raise StateError(f"the state was saved under another schedule:\n{difference}")
    if set(state["components"]) != set(stateful(components)):
        saved, now = sorted(state["components"]), sorted(stateful(components))
        raise StateError(f"the state holds what {saved} remembered; the components here are {now}")
    if len(state["learning_rates"]) != groups:
        raise StateError(f"saved with {len(state['learning_rates'])} parameter groups; the optimizer has {groups}")


def fitting_masks(state: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """The saved masks under the names of this model, which may be wrapped otherwise.

    Raises:
        StateError: a mask belongs to no parameter, or to one of another shape.
    """
    bare = {without_module(name): name for name in parameters}
    masks = {bare.get(without_module(name), name): saved for name, saved in state["masks"].items()}
    for name, saved in masks.items():
        mask = saved["pruned"] if saved["pruned"] is not None else saved["kept"]
        if name not in parameters:
            raise StateError(f"the state holds a mask for {name!r}, and the model has no such parameter")
        if mask.shape != parameters[name].shape:
            shapes = f"{tuple(mask.shape)}, the parameter is {tuple(parameters[name].shape)}"
            raise StateError(f"the mask of {name!r} is {shapes}")
    return masks
