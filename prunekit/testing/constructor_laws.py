"""Laws of the constructor, whose arguments are the YAML keys of a section."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from prunekit.components.arguments import Argument, arguments_of, check_value
from prunekit.plugins.cards import documented_arguments
from prunekit.testing.laws import COMPONENTS, NotApplicable, law, listed, must
from prunekit.testing.subject import Subject

_MUTABLE = (list, dict, set, bytearray)


@law(*COMPONENTS)
def typed_constructor(subject: Subject) -> None:
    """Every argument has a type, and a default of that type."""
    untyped = [argument.name for argument in _arguments(subject) if argument.annotation is Any]
    must(not untyped, "a type for every argument", f"none for {listed(untyped)}")
    made = _made_anew(subject.cls)
    for argument in _arguments(subject):
        if not argument.required and not isinstance(argument.default, _MUTABLE):
            default = made[argument.name]() if argument.name in made else argument.default
            wrong = list(check_value(argument.adapter(), default, (argument.name,)))
            must(not wrong, "defaults of the argument's own type", listed(wrong))


@law(*COMPONENTS)
def documented_constructor(subject: Subject) -> None:
    """The class says what it does, and each argument what it means, under `Args:` in a docstring."""
    must(bool(inspect.getdoc(subject.cls)), "a docstring of the class", "none")
    said = documented_arguments(subject.cls)
    silent = [argument.name for argument in _arguments(subject) if not said.get(argument.name)]
    must(not silent, "a line under 'Args:' for every argument", f"none for {listed(silent)}")


@law(*COMPONENTS)
def own_state(subject: Subject) -> None:
    """No two instances share anything that can change, and none changes what it was given."""
    defaults = [a.name for a in _arguments(subject) if not a.required and isinstance(a.default, _MUTABLE)]
    must(not defaults, "defaults that can't change", f"a list, dict or set for {listed(defaults)}")
    if subject.kind == "lr_scheduler":
        raise NotApplicable("made with an optimizer of its own each time")
    given = subject.own_arguments()
    one, other = subject.cls(**given), subject.cls(**subject.own_arguments())
    must(given == subject.own_arguments(), f"the arguments {subject.arguments!r} as they were", f"{given!r}")
    theirs = dict(_mutables(other))
    shared = [name for name, value in _mutables(one) if any(value is v for v in theirs.values())]
    must(not shared, "instances with nothing in common", f"both hold the same {listed(shared)}")
    of_class = [name for name, value in vars(subject.cls).items() if isinstance(value, _MUTABLE) and name[:2] != "__"]
    must(not of_class, "nothing on the class that can change", f"{listed(of_class)}")


def _made_anew(cls: type) -> dict[str, Any]:
    """The defaults of a dataclass that each instance makes for itself."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}


def _arguments(subject: Subject) -> list[Argument]:
    return arguments_of(subject.cls, subject.kind)


def _mutables(instance: object) -> Iterator[tuple[str, Any]]:
    """The attributes of an instance that can change."""
    for name, value in getattr(instance, "__dict__", {}).items():
        if isinstance(value, _MUTABLE) or (hasattr(value, "__dict__") and not isinstance(value, type | _FUNCTIONS)):
            yield name, value


_FUNCTIONS = type(lambda: None) | type(len)
