"""The first step: the class behind each component of a schedule, and whose it is."""

from __future__ import annotations

from prunekit.engine.building.problems import Problems
from prunekit.errors import PluginError
from prunekit.plugins.listeners import must_be
from prunekit.plugins.registry import Found, Registry
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import ComponentSpec

FoundClasses = dict[tuple[str, str], Found]
"""(kind, instance name) -> the class, for the components whose class is found."""


def find(schedule: Schedule, registry: Registry, problems: Problems) -> FoundClasses:
    """The classes of a schedule's components; those that nobody offers, or that are none of their kind, are said."""
    found: FoundClasses = {}
    for spec in schedule.components:
        try:
            found[spec.kind, spec.name] = _find(spec, registry)
        except PluginError as error:
            problems.say((*spec.path, "class"), str(error))
    return found


def _find(spec: ComponentSpec, registry: Registry) -> Found:
    if isinstance(spec.class_, type):
        found = Found(spec.class_, spec.class_.__module__, "")
        registry.must_be_unchanged(found, spec.kind, spec.class_name)
    else:
        found = registry.find(spec.kind, spec.class_)
    must_be(found, spec.kind, spec.class_name)
    return found
