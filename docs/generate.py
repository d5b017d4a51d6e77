"""Writes what is made from the plugins: their cards' tables, those of docs/choose-a-pruner.md, the schema for editors.

    python docs/generate.py            writes what is not up to date
    python docs/generate.py --check    writes nothing, and ends with 1 if there is something to write

Between two comments the text is made, everything else is its author's:

    <!-- parameters: MyPruner -->      a card: the arguments of one class or of several, of their types and docstrings
    <!-- end -->
    <!-- cards: pruner -->             docs/choose-a-pruner.md: a row for each card with a class of that kind
    <!-- end -->
    <!-- list: components -->          docs/plugins.md: a row for each class
    <!-- end -->

A plugin is a folder of plugins/ with a pyproject.toml. It need not be installed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from importlib_metadata import EntryPoint
from pydantic import TypeAdapter

from prunekit import PluginError
from prunekit.components import Selectors
from prunekit.components.arguments import Argument, arguments_of
from prunekit.components.docstrings import documented_arguments
from prunekit.components.kinds import KINDS
from prunekit.plugins.entry_points import LISTENERS, Offer
from prunekit.plugins.registry import Found, Registry
from prunekit.schedule.json_schema import Schema, schema_document

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "choose-a-pruner.md", ROOT / "docs" / "plugins.md")
SCHEMA = ROOT / "examples" / "schedule.schema.json"

HEADINGS = ("What it does", "In a schedule", "When to use it", "Paper")
"""What a card of a component has; a listener's has those of `LISTENERS_HEADINGS`."""
LISTENERS_HEADINGS = ("What it does", "When to use it")
COMPARED = ("pruner", "regularizer")
"""Kinds whose cards say when to prefer another."""

PART = re.compile(r"(<!-- (parameters|cards|list): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bal\.)(?<!\b[A-Z]\.)\s+(?=[A-Z`*\"])")
PAPER = re.compile(r"""(\*[^*]+\*|"[^"]+")(?:(?!\.\s)[^\[])*(\[[^\]]+\]\([^)]+\))?""")


@dataclass(frozen=True)
class Plugin:
    """A distribution of this repository: its offers, and its card."""

    folder: Path
    offers: tuple[Offer, ...]

    @property
    def name(self) -> str:
        """What pip installs."""
        return self.folder.name

    @property
    def card(self) -> Path:
        """The README."""
        return self.folder / "README.md"

    @property
    def components(self) -> list[Offer]:
        """What a schedule can name by entry points."""
        return [offer for offer in self.offers if offer.kind in KINDS]

    def of_kind(self, kind: str) -> list[Offer]:
        """Its classes of a kind."""
        return [offer for offer in self.offers if offer.kind == kind]

    def text(self) -> str:
        """The card's text; empty where there is none."""
        return self.card.read_text(encoding="utf-8") if self.card.exists() else ""


def plugins_of(root: Path = ROOT) -> list[Plugin]:
    """The plugins of the repository, whose modules can be imported from now on."""
    plugins = []
    for file in sorted(root.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        kinds = {kind.group: name for name, kind in KINDS.items()} | {LISTENERS: "listener"}
        offers = tuple(
            Offer(kinds[group], name, project["name"], project["version"], EntryPoint(name, value, group))
            for group, entries in project.get("entry-points", {}).items()
            for name, value in entries.items()
            if group in kinds
        )
        plugins.append(Plugin(file.parent, offers))
        sys.path.append(str(file.parent / "src"))
    return plugins


def registry_of(plugins: Iterable[Plugin]) -> Registry:
    """The classes that these plugins offer, at run time as well."""
    offers = [offer for plugin in plugins for offer in plugin.offers]
    listeners = list(_listeners(offers))

    def find(kind: str, name: str) -> list[Found]:
        found = [(offer, listener.find_component(kind, name)) for offer, listener in listeners]
        return [Found(cls, offer.distribution, offer.version) for offer, cls in found if cls is not None]

    def names(kind: str) -> list[str]:
        return [name for _, listener in listeners for name in listener.list_components(kind)]

    components = [offer for offer in offers if offer.kind in KINDS]
    return Registry(sorted(components, key=lambda offer: (offer.name, offer.distribution)), find, names)


def _listeners(offers: Iterable[Offer]) -> Iterator[tuple[Offer, Any]]:
    """Those that offer components."""
    for offer in offers:
        if offer.kind == "listener":
            try:
                listener = offer.load()
            except PluginError:  # what it logs to is not installed
                continue
            if hasattr(listener, "find_component"):
                yield offer, listener


# All files


def generated(plugins: Sequence[Plugin]) -> tuple[dict[Path, str], list[str]]:
    """Each file that is made, wholly or in part, with the text it should have; and what is wrong with the cards."""
    registry, problems = registry_of(plugins), [problem for plugin in plugins for problem in problems_of(plugin)]
    schema = schema_document(registry, problems.append)
    files = {SCHEMA: json.dumps(schema, indent=1, ensure_ascii=False) + "\n"}
    for page in [*(plugin.card for plugin in plugins if plugin.card.exists()), *PAGES]:
        try:
            files[page] = filled(page.read_text(encoding="utf-8"), plugins, registry)
        except PluginError as error:
            problems.append(f"{_shown(page)}: {error}")
    return files, problems


def filled(text: str, plugins: Sequence[Plugin], registry: Registry) -> str:
    """The text with each part between two comments made anew.

    Raises:
        PluginError: a class is not here, or can't be imported.
    """
    offers = {offer.name: offer for plugin in plugins for offer in plugin.components}
    makers: Mapping[str, Callable[[str], str]] = {
        "parameters": partial(parameters, registry, offers),
        "cards": partial(rows_of_cards, plugins),
        "list": lambda kind: list_of_classes(plugins),
    }
    return PART.sub(lambda part: f"{part[1]}\n{makers[part[2]](part[3])}\n\n{part[5]}", text)


def stale(files: Mapping[Path, str]) -> list[Path]:
    """Files that are not as they should be."""
    return [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]


# What a card must have


def problems_of(plugin: Plugin) -> Iterator[str]:
    """What a card lacks, in the order in which it should come."""
    where, text = _shown(plugin.card), plugin.text()
    if not text.startswith(f"# {plugin.name}\n"):
        yield f"{where}: must begin with '# {plugin.name}'"
    if not intro(text):
        yield f"{where}: no paragraph behind the title"
    for heading in HEADINGS if plugin.components else LISTENERS_HEADINGS:
        if not section(text, heading):
            yield f"{where}: nothing under '## {heading}'"
    if any(plugin.of_kind(kind) for kind in COMPARED) and not prefer(text):
        yield f"{where}: no sentence under '## When to use it' begins with 'Prefer'"
    shown = [name for part in PART.finditer(text) if part[2] == "parameters" for name in _names(part[3])]
    for offer in plugin.components:
        if offer.kind != "lr_scheduler" and shown.count(offer.name) != 1:
            yield f"{where}: '<!-- parameters: {offer.name} -->' must stand in it once, with '<!-- end -->' below"
    for name in set(shown) - {offer.name for offer in plugin.components}:
        yield f"{where}: '<!-- parameters: {name} -->' is no class of its pyproject.toml"


def intro(card: str) -> str:
    """The paragraph behind the title, on one line."""
    return _on_one_line(card.partition("\n\n")[2].partition("\n\n")[0])


def section(card: str, heading: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""


def sentences(text: str) -> list[str]:
    """The sentences of some paragraphs, each on one line."""
    return [s for paragraph in text.split("\n\n") for s in SENTENCE_END.split(_on_one_line(paragraph)) if s]


def prefer(card: str) -> str:
    """When to prefer another."""
    return " ".join(s for s in sentences(section(card, "When to use it")) if s.startswith("Prefer "))


# Rows of cards


def rows_of_cards(plugins: Iterable[Plugin], kind: str) -> str:
    """A table with a row for each card that has a class of the kind."""
    titles = (
        "class",
        "distribution",
        "what it does",
        "granularity",
        "when to use it",
        "when to prefer another",
        "paper",
    )
    return table(titles, [_row(plugin, kind) for plugin in plugins if plugin.of_kind(kind) and plugin.text()])


def list_of_classes(plugins: Iterable[Plugin]) -> str:
    """A table with a row for each class, by kind."""
    rows = []
    for kind in KINDS:
        for plugin in plugins:
            link, source = f"[{plugin.name}](methods.md#{plugin.name})", paper(section(plugin.text(), "Paper"))
            what = "".join(sentences(intro(plugin.text()))[:1])
            rows += [[f"`{offer.name}`", kind, link, source, what] for offer in plugin.of_kind(kind)]
    return table(("class", "kind", "distribution", "paper", "what it does"), rows)


def _row(plugin: Plugin, kind: str) -> list[str]:
    card = plugin.text()
    when = [s for s in sentences(section(card, "When to use it")) if not s.startswith("Prefer ")]
    granularity = re.search(r"^Granularity: (.+?)\.?$", card, re.MULTILINE)
    return [
        ", ".join(f"`{offer.name}`" for offer in plugin.of_kind(kind)),
        f"[{plugin.name}](methods.md#{plugin.name})",
        "".join(sentences(intro(card))[:1]),
        granularity[1] if granularity else "",
        "".join(when[:1]),
        prefer(card),
        paper(section(card, "Paper")),
    ]


def paper(text: str) -> str:
    """Title, year and link of the first paper; "none" where the section begins with that."""
    if text.startswith("None"):
        return "none"
    found = PAPER.search(_on_one_line(text))
    return found[0].rstrip(" .,:;") if found else "".join(sentences(text)[:1])


# Tables of parameters


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
    names = _names(classes)
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
    if "enum" in schema or "const" in schema:
        return _or([f"`{value}`" for value in schema.get("enum", [schema.get("const")])])
    if "anyOf" in schema or "oneOf" in schema:
        options = [option for option in schema.get("anyOf") or schema["oneOf"] if option != {"type": "null"}]
        selectors = TypeAdapter(Selectors).json_schema()["anyOf"]
        if options == selectors:
            return "name, glob or `re:` pattern, or a list of these"
        words = list(dict.fromkeys(in_words(option, definitions) for option in options))
        return "; or ".join(words) if any(" or " in word for word in words) else _or(words)
    inner = partial(in_words, definitions=definitions)
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{'; '.join(map(inner, schema['prefixItems']))}]"
        case "array":
            return f"list of {_plural(inner(schema.get('items', {})))}"
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


# Text


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _names(classes: str) -> list[str]:
    return re.findall(r"\w+", classes)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def main(arguments: Sequence[str]) -> int:
    """What the command does, and its exit code."""
    files, problems = generated(plugins_of())
    changed, check = stale(files), "--check" in arguments
    for path in changed:
        print(f"{_shown(path)}: {'not up to date: run python docs/generate.py' if check else 'written'}")
        if not check:
            path.write_text(files[path], encoding="utf-8", newline="\n")
    for problem in problems:
        print(problem)
    return 1 if problems or (check and changed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
