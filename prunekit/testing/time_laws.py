"""Laws of time: windows in steps of the optimizer, and arguments that change over a window."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch

from prunekit.components.arguments import Argument, arguments_of
from prunekit.components.curves import Varies, is_change, varies
from prunekit.components.pruner import Observing
from prunekit.errors import ScheduleError
from prunekit.progress import Progress, Window
from prunekit.testing.asking import masks_of, observed_masks_of, penalty_of
from prunekit.testing.laws import (
    ACTING,
    COMPONENTS,
    OWNERS,
    QUANTIZER,
    REGULARIZER,
    Broken,
    NotApplicable,
    law,
    listed,
    must,
)
from prunekit.testing.run_laws import deterministic, quiet_outside_its_window, resume
from prunekit.testing.runs import FIRST, LAST, MINIBATCHES, Run, differences, reseed, straight_outcome
from prunekit.testing.subject import Subject

STEPS = Window(starting_step=FIRST * MINIBATCHES + 1, ending_step=(LAST + 1) * MINIBATCHES - 2, frequency=2)
"""Opens within epoch 1 and closes within epoch 4."""


@law(*COMPONENTS)
def in_steps(subject: Subject) -> None:
    """In a window of steps it is deterministic, quiet before it opens, and continued from anywhere, bit for bit."""
    stepped = replace(subject, window=STEPS, remembered={})
    Run(subject)
    try:
        Run(stepped)
    except ScheduleError as error:
        raise NotApplicable(f"it refuses windows in steps: {error}") from error
    quiet = [quiet_outside_its_window] if subject.kind in ACTING else []
    for each in (deterministic, *quiet, resume):
        try:
            each.test(stepped)
        except Broken as broken:
            raise Broken(f"{broken.expected} (in {STEPS})", broken.got, broken.traceback) from broken


@law(*OWNERS)
def over_time(subject: Subject) -> None:
    """An argument along a curve has its values at both ends of the window, and along a flat curve stays the same."""
    changing = [each for each in arguments_of(subject.cls, subject.kind) if varies(each.annotation)]
    if not changing or subject.kind == QUANTIZER:
        raise NotApplicable("no argument of it changes over time")
    for argument in changing:
        _follows_its_curve(subject, argument)


def _follows_its_curve(subject: Subject, argument: Argument) -> None:
    """Whether one argument does."""

    def along(change: Callable[[float], Any]) -> Subject:
        value = _changed(argument.annotation, subject.arguments.get(argument.name, argument.default), change)
        return replace(subject, arguments={**subject.arguments, argument.name: value}, remembered={})

    number, flat = along(lambda value: value), along(lambda value: _curve("linear", value, value))
    half = along(lambda value: _curve("linear", value / 2, value / 2))
    opening, closing, what = Progress(FIRST, 0, MINIBATCHES), Progress(LAST, 0, MINIBATCHES), repr(argument.name)
    for curve in ("linear", "cosine"):
        falling = along(lambda value, curve=curve: _curve(curve, value, value / 2))  # type: ignore[misc]
        _must_agree(falling, number, opening, f"{what} from a to b: at the opening what a number a decides")
        _must_agree(falling, half, closing, f"{what} from a to b: at the closing what b decides")
    found = list(differences(straight_outcome(along(lambda v: _curve("cosine", v, v))), straight_outcome(flat)))
    must(not found, f"{what} along one flat curve and another: the same outcome", listed(found))
    # One that looks at gradients may give a number a course of its own, as RigL does: only a curve is flat then.
    if not isinstance(subject.make(), Observing):
        found = list(differences(straight_outcome(number), straight_outcome(flat)))
        must(not found, f"{what} along a flat curve: the outcome of the number", listed(found))


def _must_agree(one: Subject, other: Subject, moment: Progress, expected: str) -> None:
    found = list(differences(_decided(one, moment), _decided(other, moment)))
    must(not found, expected, listed(found))


def _decided(subject: Subject, moment: Progress) -> dict[str, Any]:
    """What it decides about a model that is not trained, at a moment."""
    run = Run(subject)
    reseed()
    if subject.kind == REGULARIZER:
        with torch.no_grad():
            return {"penalty": penalty_of(run, moment)}
    return {**masks_of(run, moment), **{f"observed {k}": mask for k, mask in observed_masks_of(run, moment).items()}}


def _curve(name: str, start: float, end: float) -> dict[str, Any]:
    return {"curve": name, "from": start, "to": end}


def _changed(annotation: Any, value: Any, change: Callable[[float], Any]) -> Any:
    """A value with each number in it that may change over time, found by its type, changed."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if any(isinstance(each, Varies) for each in inner):
        return change(value["from"] if is_change(value) else value)
    if not varies(annotation) or value is None:
        return value
    if origin in (Annotated, types.UnionType, typing.Union):
        return _changed(next(member for member in inner if varies(member)), value, change)
    if isinstance(value, Mapping):
        return {key: _changed(inner[1], each, change) for key, each in value.items()}
    parts = inner if origin is tuple else [inner[0]] * len(value)
    return [_changed(part, each, change) for part, each in zip(parts, value, strict=True)]
