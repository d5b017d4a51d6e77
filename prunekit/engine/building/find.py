"""The first step: the class behind each component of a schedule, what its arguments name, and whose all that is."""

from __future__ import annotations

from typing import Any

from prunekit.components.arguments import arguments_of
from prunekit.components.named_kind import NamedKind, named_kind
from prunekit.engine.checked import FoundComponent, Used
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
    named: dict[str, Used] = {}
    usable = True
    for argument in arguments_of(cls.found.cls, spec.kind):
        place, kind = (*spec.path, argument.name), named_kind(argument.annotation)
        if kind is None:
            continue
        try:
            used = _used(place, kind, spec.args.get(argument.name), registry)
        except PluginError as error:
            problems.add(place, str(error))
            usable = False
        else:
            named |= {argument.name: used} if used is not None else {}
    return FoundComponent(cls, named, usable)


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
