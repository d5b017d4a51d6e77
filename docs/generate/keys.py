"""Tables of a class's keys: the arguments of its constructor, their types in words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import TypeAdapter

from docs.generate.text import names_in, table
from prunekit import PluginError
from prunekit.components import Selectors
from prunekit.components.arguments import Argument, arguments_of
from prunekit.components.docstrings import documented_arguments
from prunekit.components.named_kind import NAMED
from prunekit.plugins.entry_points import Offer
from prunekit.plugins.registry import Registry
from prunekit.schedule.json_schema import Schema


@dataclass(frozen=True)
class Row:
    """A key of one class."""

    key: str
    type: str
    default: str
    meaning: str


def parameters(registry: Registry, offers: Mapping[str, Offer], classes: str) -> str:
    """The table of one class's keys, or of several classes'; then a column says whose key it is."""
    owners: dict[Row, list[str]] = {}
    names = names_in(classes)
    for name in names:
        if name not in offers:
            raise PluginError(f"no plugin here offers {name!r}")
        for row in rows_of(registry, offers[name]):
            owners.setdefault(row, []).append(name)
    if all(owner == names for owner in owners.values()):
        return table(("key", "type", "default", "meaning"), [dataclasses.astuple(row) for row in owners])
    whose = ["all" if owner == names else ", ".join(f"`{name}`" for name in owner) for owner in owners.values()]
    cells = [(row.key, who, row.type, row.default, row.meaning) for row, who in zip(owners, whose, strict=True)]
    return table(("key", "of", "type", "default", "meaning"), cells)


def rows_of(registry: Registry, offer: Offer) -> Iterator[Row]:
    """The keys of a class.

    Raises:
        PluginError: it can't be imported.
    """
    cls = registry.find(offer.kind, f"{offer.distribution}:{offer.name}").cls
    meanings = documented_arguments(cls)
    for argument in arguments_of(cls, offer.kind):
        schema = argument.adapter().json_schema()
        meaning = meanings.get(argument.name, "").removesuffix(".")
        yield Row(f"`{argument.name}`", in_words(schema, schema.get("$defs", {})), default_of(cls, argument), meaning)


def default_of(cls: type, argument: Argument) -> str:
    """A default as YAML has it."""
    if argument.required:
        return "required"
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if field.name == argument.name and field.default_factory is not dataclasses.MISSING:
            return f"`{json.dumps(field.default_factory())}`"
    if argument.default is None:
        return "none"
    text = argument.default if isinstance(argument.default, str) else json.dumps(argument.default, default=str)
    return f"`{text}`"


def in_words(schema: Schema, definitions: Schema) -> str:
    """A type as a reader of YAML would say it.

    >>> in_words({"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}}, {})
    'list of numbers, 0 to 1'
    """
    if "$ref" in schema:
        return in_words(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if NAMED in schema:
        return _or([*(f"`{value}`" for value in schema["enum"]), f"an installed {schema[NAMED]}"])
    if "enum" in schema or "const" in schema:
        return _or([f"`{value}`" for value in schema.get("enum", [schema.get("const")])])
    if "anyOf" in schema or "oneOf" in schema:
        options = [option for option in schema.get("anyOf") or schema["oneOf"] if option != {"type": "null"}]
        if options == TypeAdapter(Selectors).json_schema()["anyOf"]:
            return "name, glob or `re:` pattern, or a list of these"
        words = list(dict.fromkeys(in_words(option, definitions) for option in options))
        return "; or ".join(words) if any(" or " in word for word in words) else _or(words)
    inner = partial(in_words, definitions=definitions)
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{'; '.join(map(inner, schema['prefixItems']))}]"
        case "array":
            return f"list of {_plural(inner(schema.get('items', {})))}"
        case "object" if list(schema.get("properties", ())) == ["curve", "from", "to"]:
            return "curve between two such"
        case "object" if "properties" in schema:
            return f"mapping with {', '.join(f'`{k}` ({inner(v)})' for k, v in schema['properties'].items())}"
        case "object":
            return f"mapping of name to {inner(schema.get('additionalProperties') or {})}"
        case "number" | "integer" as word:
            return ", ".join([word, *_range(schema)])
    return {"string": "text", "boolean": "`true` or `false`", "null": "none"}.get(schema.get("type", ""), "anything")


def _range(schema: Schema) -> Iterator[str]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        yield f"{least:g} to {most:g}"
    elif least is not None:
        yield "not negative" if least == 0 else f"at least {least:g}"
    elif most is not None:
        yield f"at most {most:g}"
    if "exclusiveMinimum" in schema:
        yield f"above {schema['exclusiveMinimum']:g}"
    if "exclusiveMaximum" in schema:
        yield f"below {schema['exclusiveMaximum']:g}"


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _plural(words: str) -> str:
    return re.sub(r"^(number|integer|text|list|mapping)\b", r"\1s", words)
