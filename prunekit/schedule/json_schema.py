"""The JSON Schema (draft 2020-12) of a schedule, from the classes that a registry offers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from prunekit.components.arguments import json_schema
from prunekit.components.docstrings import documented_arguments, summary
from prunekit.components.kinds import KINDS, Kind
from prunekit.components.named_kind import NAMED
from prunekit.errors import PluginError
from prunekit.plugins.registry import Found, Registry
from prunekit.pruning.named_kinds import NAMED_KINDS
from prunekit.schedule.language import VERSION
from prunekit.schedule.window_keys import window_schema

Schema = dict[str, Any]


def schema_document(registry: Registry, left_out: Callable[[str], object] = lambda reason: None) -> Schema:
    """The schema of a schedule that may name any class in the registry.

    It accepts every schedule that prunekit accepts. What JSON Schema can't say (that a policy's component exists, that
    epochs ascend, that a model has a parameter) `prunekit validate` says.

    Args:
        registry: its classes are imported; curves and the like are not.
        left_out: told about each class that can't be imported.
    """
    definitions: Schema = {name: {"enum": registry.spellings(kind)} for name, kind in NAMED_KINDS.items()}
    for name, kind in KINDS.items():
        definitions.update(_components(registry, name, left_out))
        definitions[f"policy.{name}"] = _policy_component(kind, definitions)
    definitions["policy"] = _policy()
    instances = {"type": ["object", "null"]}
    sections = {k.section: {**instances, "additionalProperties": _reference(k.name)} for k in KINDS.values()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prunekit schedule",
        "type": "object",
        "properties": {
            "version": {"const": VERSION, "description": "of the schedule language"},
            **sections,
            "policies": {"type": ["array", "null"], "items": _reference("policy")},
        },
        "required": ["policies"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _components(registry: Registry, kind: str, left_out: Callable[[str], object]) -> Schema:
    """The schema of a section's entry: which keys it has depends on its class."""
    definitions: Schema = {}
    names: list[str] = []
    cases: list[Schema] = []
    for spellings, found in _classes(registry, kind, left_out):
        try:
            definition = _arguments(found.cls, kind, f"{kind}.{spellings[-1]}", definitions)
        except Exception as error:
            left_out(f"{kind} {spellings[-1]!r} has no schema: {type(error).__name__}: {error}")
            continue
        names += spellings
        condition = {"properties": {"class": {"enum": spellings}}, "required": ["class"]}
        definitions[f"{kind}.{spellings[-1]}"] = definition
        cases.append({"if": condition, "then": _reference(f"{kind}.{spellings[-1]}")})
    entry: Schema = {"type": "object", "properties": {"class": {"enum": names}}, "required": ["class"]}
    definitions[kind] = {**entry, "allOf": cases} if cases else entry
    return definitions


def _classes(registry: Registry, kind: str, left_out: Callable[[str], object]) -> Iterator[tuple[list[str], Found]]:
    """Each class, and how `class:` may name it: by its full name (the last), by the short one if nobody shares it."""
    offers = [offer for offer in registry.offers if offer.kind == kind]
    times = Counter(offer.name for offer in offers)
    names = [(offer.name, f"{offer.distribution}:{offer.name}") for offer in offers]
    names += [(name, name) for name in registry.names(kind) if name not in times]
    for name, full in names:
        try:
            found = registry.find(kind, full)
        except PluginError as error:
            left_out(str(error))
            continue
        full = full if ":" in full else f"{found.distribution}:{full}"
        yield [*([name] if times[name] < 2 else []), full], found


def _arguments(cls: type, kind: str, title: str, definitions: Schema) -> Schema:
    """The keys of an entry of this class; shared definitions go in under a name of their own."""
    schema = json_schema(cls, kind)
    for name, definition in schema["$defs"].items():
        definitions[f"{title}.{name}"] = _renamed(definition, title)
    for name, meaning in documented_arguments(cls).items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = meaning
    return {
        "description": summary(cls),
        # The entry of the section judges it; here it must only not be an additional property.
        "properties": {"class": True, **_renamed(schema["properties"], title)},
        "required": schema["required"],
        "additionalProperties": False,
    }


def _renamed(schema: Any, title: str) -> Any:
    """The schema with its references led to where `_arguments` puts what they mean, and names to those installed."""
    if isinstance(schema, list):
        return [_renamed(item, title) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if NAMED in schema:
        others = {key: value for key, value in schema.items() if key not in ("enum", NAMED)}
        return {**others, **_reference(schema[NAMED])}
    if isinstance(reference := schema.get("$ref"), str):
        schema = {**schema, **_reference(f"{title}.{reference.removeprefix('#/$defs/')}")}
        return {key: value if key == "$ref" else _renamed(value, title) for key, value in schema.items()}
    return {key: _renamed(value, title) for key, value in schema.items()}


def _policy() -> Schema:
    """One component and its window, in one of its two forms."""
    window, form = window_schema()
    return {
        "type": "object",
        "properties": {
            **{kind: _reference(f"policy.{kind}") for kind in KINDS},
            **window,
        },
        "additionalProperties": False,
        "allOf": [{"oneOf": [{"required": [kind]} for kind in KINDS]}, form],
    }


def _policy_component(kind: Kind, definitions: Schema) -> Schema:
    args: Schema = {"maxProperties": 0}
    if kind.arguments:
        args = _arguments(kind.arguments, kind.name, f"args.{kind}", definitions)
        del args["properties"]["class"]
    properties = {"instance_name": {"type": "string", "minLength": 1}, "args": {"type": ["object", "null"], **args}}
    return {"type": "object", "properties": properties, "required": ["instance_name"], "additionalProperties": False}


def _reference(name: str) -> Schema:
    # A JSON Pointer within a URI: first `~` and `/` are escaped, then whatever a URI may not hold.
    return {"$ref": f"#/$defs/{quote(name.replace('~', '~0').replace('/', '~1'), safe='~:')}"}
