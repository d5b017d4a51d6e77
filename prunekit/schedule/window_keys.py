"""The keys of a policy that say when it acts: how they are read, and their JSON Schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prunekit.errors import shortened
from prunekit.progress import Window

Path = tuple[str | int, ...]
AddProblem = Callable[..., None]
"""`add_problem(path, message, key=False)`: something is wrong at a path of the schedule, at its value or at the key."""
_FREQUENCY = "frequency"


class _Form(NamedTuple):
    """The keys of windows that count in one unit: a range, or a list in its place."""

    unit: str

    @property
    def bounds(self) -> tuple[str, str]:
        return f"starting_{self.unit}", f"ending_{self.unit}"

    @property
    def range(self) -> tuple[str, ...]:
        return (*self.bounds, _FREQUENCY)

    @property
    def list(self) -> str:
        return f"{self.unit}s"

    @property
    def own(self) -> tuple[str, ...]:
        """Those that windows in other units don't have."""
        return (*self.bounds, self.list)


_EPOCHS, _STEPS = _FORMS = _Form("epoch"), _Form("step")
WINDOW_KEYS = (*_EPOCHS.bounds, _FREQUENCY, _EPOCHS.list, *_STEPS.own)
"""All of them."""


def read_window(data: Mapping[str, Any], path: Path, add_problem: AddProblem) -> Window | None:
    """The window of the policy at `path`, from its keys; None if what is wrong with them has been said."""
    epochs, steps = ([key for key in form.own if key in data] for form in _FORMS)
    if epochs and steps:
        # The one that comes later is the one that was added.
        late = [key for key in data if key in (*epochs, *steps)][-1]
        other = (steps if late in epochs else epochs)[0]
        message = f"a window is in epochs or in steps, and {other!r} is there already; give one of the two forms"
        add_problem((*path, late), message, key=True)
        return None
    form = _STEPS if steps else _EPOCHS
    given = [key for key in form.range if key in data]
    # Not isinstance: `true` is an int to Python.
    wrong = [key for key in given if type(data[key]) is not int]
    for key in wrong:
        add_problem((*path, key), f"must be an integer, got {shortened(data[key])}")
    if form.list in data:
        return _listed(data, form, given, path, add_problem)
    missing = [key for key in form.bounds if key not in data]
    if missing:
        add_problem(path, f"{' and '.join(map(repr, missing))} missing; a policy needs both, or {form.list!r}")
    return None if wrong or missing else _ranged(data, form, path, add_problem)


def _ranged(data: Mapping[str, Any], form: _Form, path: Path, add_problem: AddProblem) -> Window | None:
    frequency = data.get(_FREQUENCY, 1)
    if frequency < 1:
        add_problem((*path, _FREQUENCY), f"must be at least 1, got {frequency}")
    try:
        # With any frequency: what else is wrong is said at the same time.
        window = Window(**{key: data[key] for key in form.bounds}, frequency=max(frequency, 1))
    except ValueError as error:
        add_problem(path, str(error))
        return None
    return window if frequency >= 1 else None


def _listed(
    data: Mapping[str, Any], form: _Form, given: list[str], path: Path, add_problem: AddProblem
) -> Window | None:
    numbers, place = data[form.list], (*path, form.list)
    if given:
        add_problem(place, f"give either {form.list!r} or {', '.join(map(repr, given))}, not both", key=True)
        return None
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        add_problem(place, f"must be a list of integers, got {shortened(numbers)}")
        return None
    try:
        return Window(**{form.list: numbers})  # type: ignore[arg-type]
    except ValueError as error:
        add_problem(place, str(error))
        return None


def window_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON Schema of the keys, and the condition which of them a policy has: one of the forms of one unit."""
    properties = {key: schema for form in _FORMS for key, schema in _properties(form).items()}
    properties[_FREQUENCY] = {"type": "integer", "minimum": 1, "default": 1, "description": "every so many of them"}
    return properties, {"oneOf": [only for form in _FORMS for only in _either(form)]}


def _properties(form: _Form) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0}
    what = "step of the optimizer" if form is _STEPS else form.unit
    return {
        form.list: {"type": "array", "items": number, "minItems": 1, "uniqueItems": True},
        form.bounds[0]: {**number, "description": f"the first active {what}"},
        form.bounds[1]: {"type": "integer", "minimum": 1, "description": f"the first {what} that is too late"},
    }


def _either(form: _Form) -> tuple[dict[str, Any], dict[str, Any]]:
    """A list, or a range."""
    listed = dict.fromkeys((key for key in WINDOW_KEYS if key != form.list), False)
    ranged = dict.fromkeys((key for key in WINDOW_KEYS if key not in form.range), False)
    return {"required": [form.list], "properties": listed}, {"required": list(form.bounds), "properties": ranged}
