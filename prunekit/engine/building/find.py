"""The first step: the class behind each component of a schedule, what its arguments name, and whose all that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunekit.components.arguments import Argument, arguments_of
from prunekit.components.curves import CURVE, changes_in, varies
from prunekit.components.named_kind import NamedKind, named_kind
from prunekit.engine.checked import FoundComponent, Keys, Used
from prunekit.engine.problems import Problems
from prunekit.errors import PluginError
from prunekit.plugins.contract import must_be_component
from prunekit.plugins.registry import CORE, Found, Registry
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import ComponentSpec
from prunekit.schedule.yaml_source import Path_

FoundComponents = dict[tuple[str, str], FoundComponent]
"""(kind, instance name) -> what was found, for the components whose class is found."""


def find(schedule: Schedule, registry: Registry, problems: Problems) -> FoundComponents:
    """What a schedule's components name: classes, and curves and the like among their arguments.

    What nobody offers, or is none of its kind, is said.
    """
    found: FoundComponents = {}
    for spec in schedule.components:
        try:
            cls = _find(spec, registry)
        except PluginError as error:
            problems.add((*spec.path, "class"), str(error))
        else:
            found[spec.kind, spec.name] = _with_named(spec, cls, registry, problems)
    return found


def _find(spec: ComponentSpec, registry: Registry) -> Used:
    if isinstance(spec.class_, type):
        found = Found(spec.class_, spec.class_.__module__, "")
        registry.must_be_unchanged(found, spec.kind, spec.class_name)
    else:
        found = registry.find(spec.kind, spec.class_)
    must_be_component(found, spec.kind, spec.class_name)
    return Used((*spec.path, "class"), spec.kind, spec.class_name.rpartition(":")[2], found)


def _with_named(spec: ComponentSpec, cls: Used, registry: Registry, problems: Problems) -> FoundComponent:
    """The class, and what stands behind those of its arguments that are names."""
    named: dict[Keys, Used] = {}
    usable = True
    for argument in arguments_of(cls.found.cls, spec.kind):
        for keys, kind, value in _names(argument, spec.args.get(argument.name)):
            place = (*spec.path, *keys)
            try:
                used = _used(place, kind, value, registry)
            except PluginError as error:
                problems.add(place, str(error))
                usable = False
            else:
                named |= {keys: used} if used is not None else {}
    return FoundComponent(cls, named, usable)


def _names(argument: Argument, value: Any) -> Iterator[tuple[Keys, NamedKind[Any], Any]]:
    """What an argument takes by name, and the curves in one that may change over time, each with its keys."""
    if kind := named_kind(argument.annotation):
        yield (argument.name,), kind, value
    for path, change in changes_in(value) if varies(argument.annotation) else ():
        yield (argument.name, *path, "curve"), CURVE, change["curve"]


def _used(place: Path_, kind: NamedKind[Any], value: object, registry: Registry) -> Used | None:
    """What an argument names, or the thing itself, which its type allows too; None for what is neither."""
    if isinstance(value, str):
        return Used(place, kind.name, value.rpartition(":")[2], registry.find_named(kind, value))
    if not kind.fits(value):
        return None
    definition: Any = value if hasattr(value, "__qualname__") else type(value)
    module, name = definition.__module__, definition.__qualname__
    used = Used(place, kind.name, name, Found(value, CORE if module.partition(".")[0] == CORE else module, ""))
    if not used.found.is_built_in:
        registry.must_be_unchanged(used.found, kind.name, name)
    return used
