"""The keys of a policy that say when it acts: how they are read, and their JSON Schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.errors import shortened
from prunekit.progress import Window

_BOUNDS = ("starting_epoch", "ending_epoch")
_RANGE = (*_BOUNDS, "frequency")
_LIST = "epochs"
WINDOW_KEYS = (*_RANGE, _LIST)
"""All of them."""
Path = tuple[str | int, ...]
AddProblem = Callable[..., None]
"""`add_problem(path, message, key=False)`: something is wrong at a path of the schedule, at its value or at the key."""


def read_window(data: Mapping[str, Any], path: Path, add_problem: AddProblem) -> Window | None:
    """The window of the policy at `path`, from its keys; None if what is wrong with them has been said."""
    given = [key for key in _RANGE if key in data]
    # Not isinstance: `true` is an int to Python.
    wrong = [key for key in given if type(data[key]) is not int]
    for key in wrong:
        add_problem((*path, key), f"must be an integer, got {shortened(data[key])}")
    if _LIST in data:
        return _listed(data[_LIST], given, path, add_problem)
    missing = [key for key in _BOUNDS if key not in data]
    if missing:
        add_problem(path, f"{' and '.join(map(repr, missing))} missing; a policy needs both, or {_LIST!r}")
    return None if wrong or missing else _ranged(data, path, add_problem)


def _ranged(data: Mapping[str, Any], path: Path, add_problem: AddProblem) -> Window | None:
    start, end, frequency = data[_BOUNDS[0]], data[_BOUNDS[1]], data.get("frequency", 1)
    if frequency < 1:
        add_problem((*path, "frequency"), f"must be at least 1, got {frequency}")
    try:
        window = Window(start, end, max(frequency, 1))  # what else is wrong is said at the same time
    except ValueError as error:
        add_problem(path, str(error))
        return None
    return window if frequency >= 1 else None


def _listed(epochs: Any, given: list[str], path: Path, add_problem: AddProblem) -> Window | None:
    if given:
        add_problem((*path, _LIST), f"give either {_LIST!r} or {', '.join(map(repr, given))}, not both", key=True)
        return None
    if not isinstance(epochs, list) or any(type(epoch) is not int for epoch in epochs):
        add_problem((*path, _LIST), f"must be a list of integers, got {shortened(epochs)}")
        return None
    try:
        return Window(epochs=epochs)
    except ValueError as error:
        add_problem((*path, _LIST), str(error))
        return None


def window_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON Schema of the keys, and the condition which of them a policy has: one of the two forms."""
    epoch = {"type": "integer", "minimum": 0}
    properties = {
        _LIST: {"type": "array", "items": epoch, "minItems": 1, "uniqueItems": True},
        "starting_epoch": {**epoch, "description": "the first active epoch"},
        "ending_epoch": {"type": "integer", "minimum": 1, "description": "the first epoch that is too late"},
        "frequency": {"type": "integer", "minimum": 1, "default": 1},
    }
    listed = {"required": [_LIST], "properties": dict.fromkeys(_RANGE, False)}
    ranged = {"required": list(_BOUNDS), "properties": {_LIST: False}}
    return properties, {"oneOf": [listed, ranged]}
