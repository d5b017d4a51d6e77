"""A constructor's typed arguments are the schema of a schedule's section: its check, its JSON Schema, its table."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic import ConfigDict, TypeAdapter

from prunekit.components.curves import Varies, varies, with_names, wrong_changes
from prunekit.components.kinds import KINDS
from prunekit.components.named_kind import named_kind
from prunekit.components.types import SELECTS_NOTHING
from prunekit.errors import ArgumentError, did_you_mean, shortened

_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One YAML key of a component: an argument of its constructor."""

    name: str
    annotation: Any
    default: Any = _REQUIRED

    @property
    def required(self) -> bool:
        """Whether the key must be there."""
        return self.default is _REQUIRED

    def adapter(self) -> TypeAdapter[Any]:
        """The validator of its type; of a type that can't be validated, one that takes anything."""
        # pydantic takes no configuration for types that bring their own, such as dataclasses.
        for config in (ConfigDict(strict=True, arbitrary_types_allowed=True), None):
            try:
                return TypeAdapter(_eager(self.annotation), config=config)
            except (pydantic.errors.PydanticUserError, NameError):
                continue
        return TypeAdapter(Any)


def arguments_of(cls: type, kind: str) -> list[Argument]:
    """The YAML keys of a component class, in the constructor's order, without what prunekit gives it (`optimizer`)."""
    hints = _hints(cls)
    return [
        Argument(name, hints.get(name, Any), parameter.default)
        for name, parameter in signature_of(cls).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and name not in KINDS[kind].supplied
    ]


def check_arguments(cls: type, kind: str, values: Mapping[str, Any], who: str = "") -> Iterable[ArgumentError]:
    """What is wrong with a section's keys: unknown, missing, of a wrong type, out of range.

    `who` has the arguments, in the messages: the class, by default.
    """
    who = who or cls.__name__
    known = {argument.name: argument for argument in arguments_of(cls, kind)}
    for name in values:
        if name not in known:
            yield ArgumentError(name, message=f"{who} has no argument {name!r}{did_you_mean(name, known)}")
    for name, argument in known.items():
        if name in values and varies(argument.annotation):
            yield from _check_changing(argument, values[name])
        elif name in values:
            yield from check_value(argument.adapter(), values[name], (name,))
        elif argument.required:
            yield ArgumentError(message=f"{who} needs {name!r} ({type_name(argument.annotation)})")


def _check_changing(argument: Argument, value: Any) -> Iterable[ArgumentError]:
    """What is wrong with a value that may hold curves: with its data, or else with where its curves lead."""
    wrong = list(check_value(argument.adapter(), with_names(value), (argument.name,)))
    yield from wrong or (ArgumentError(argument.name, *e.keys, message=e.message) for e in wrong_changes(value))


def check_value(adapter: TypeAdapter[Any], value: Any, path: tuple[str | int, ...]) -> Iterable[ArgumentError]:
    """What is wrong with one value, at its place within `path`."""
    try:
        text = json.dumps(value)
    # What only Python can give, a function say, is checked as it is.
    except (TypeError, ValueError):
        text = None
    try:
        if text is None:
            adapter.validate_python(value)
        else:
            # As JSON a list may stand for a tuple and nothing else changes its type.
            adapter.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        places: dict[tuple[str | int, ...], list[str]] = {}
        values = {}
        for item in error.errors(include_url=False):
            place, got = _path_into(value, item["loc"])
            if item["type"] == SELECTS_NOTHING:
                yield ArgumentError(*path, *place, message=item["msg"])
                return
            places.setdefault(place, []).append(_wording(item))
            values[place] = got
        for place, messages in _deepest(places).items():
            yield ArgumentError(*path, *place, message=f"{_either(messages)}, got {shortened(values[place])}")


def json_schema(cls: type, kind: str) -> dict[str, Any]:
    """The JSON Schema of a section with `class: cls`, without the `class` key itself."""
    properties, required, definitions = {}, [], {}
    for argument in arguments_of(cls, kind):
        try:
            schema = argument.adapter().json_schema()
        except pydantic.errors.PydanticInvalidForJsonSchema:
            schema = {}
        definitions.update(schema.pop("$defs", {}))
        if not argument.required and _is_plain(argument.default):
            schema["default"] = argument.default
        properties[argument.name] = schema
        required += [argument.name] if argument.required else []
    return {"properties": properties, "required": required, "$defs": definitions}


def signature_of(cls: type) -> inspect.Signature:
    """A constructor's signature; annotations that can't be resolved (yet) do no harm."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(cls, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(cls)


def type_name(annotation: Any) -> str:
    """A type as a reader of YAML would call it.

    >>> type_name(dict[str, float])
    'dict[str, float]'
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        if any(isinstance(marker, Varies) for marker in inner[1:]):
            return f"{type_name(typing.get_args(inner[0])[0])} | curve"
        named = named_kind(annotation)
        return type_name(inner[0]) if named is None else f"name of {named.described}"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_name, inner))
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(_inner_name, inner))}]"
    if annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _inner_name(annotation: Any) -> str:
    if isinstance(annotation, list):  # of a Callable
        return f"[{', '.join(map(type_name, annotation))}]"
    return "..." if annotation is ... else type_name(annotation)


def _hints(cls: type) -> dict[str, Any]:
    # One by one: a name that is imported for type checkers only spoils its own argument and no other.
    hints: dict[str, Any] = {}
    # From the bases on: a subclass says it last. Each with the names of the module that it was written in.
    for owner in reversed(cls.__mro__[:-1]):
        names = vars(sys.modules.get(owner.__module__, types))
        generated = "__dataclass_fields__" in vars(owner) and vars(owner)["__dataclass_params__"].init
        if generated:
            hints |= _resolved(owner, names)
            continue
        for method in (vars(owner).get("__new__"), vars(owner).get("__init__")):
            function = inspect.unwrap(getattr(method, "__func__", method)) if method is not None else None
            hints |= _resolved(function, {**getattr(function, "__globals__", {}), **names})
    return hints


def _resolved(owner: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    known = {**vars(typing), **vars(collections.abc), **names}
    for name, annotation in getattr(owner, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(Exception):
            hint = typing.get_type_hints(holder, known, include_extras=True)[name]
            hints[name] = hint.type if isinstance(hint, dataclasses.InitVar) else hint
    return hints


def _eager(annotation: Any) -> Any:
    # pydantic would look at an Iterable's items only when they are taken out.
    if typing.get_origin(annotation) is Iterable:
        return list[typing.get_args(annotation)[0]]  # type: ignore[misc]
    return annotation


def _path_into(value: Any, loc: Iterable[str | int]) -> tuple[tuple[str | int, ...], Any]:
    # A location also holds the names of a union's members: only what leads into the value counts.
    place: list[str | int] = []
    for part in loc:
        inside_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside_list or (isinstance(value, dict) and part in value):
            place.append(part)
            value = value[part]
    return tuple(place), value


def _deepest(places: dict[tuple[str | int, ...], list[str]]) -> dict[tuple[str | int, ...], list[str]]:
    # Of a union, the member that failed further inside is the one that was meant.
    return {
        place: messages
        for place, messages in places.items()
        if not any(other[: len(place)] == place and len(other) > len(place) for other in places)
    }


def _wording(item: Any) -> str:
    if item["type"] == "missing":
        last = item["loc"][-1]
        return "must have more items" if isinstance(last, int) else f"must have a key {last!r}"
    if item["type"] == "too_long":
        return f"must have at most {item['ctx']['max_length']} items"
    message = item["msg"].replace("Input should", "must").replace("Value error, ", "")
    message = message.replace("a valid array", "a list").replace("an object", "a mapping")
    return f"{message[0].lower()}{message[1:]}"


def _either(messages: Iterable[str]) -> str:
    """What would be right by one member of a union or another, in one sentence."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.removeprefix("must be ") for other in others)])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | dict)
