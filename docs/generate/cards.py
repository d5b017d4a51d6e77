"""What a card must have, and the rows that are made of cards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from docs.generate.plugins import Plugin
from docs.generate.text import names_in, on_one_line, relative_path, table
from prunekit.components.kinds import KINDS

HEADINGS = ("What it does", "In a schedule", "When to use it", "Paper")
"""What a card of a component has; a listener's has those of `LISTENERS_HEADINGS`."""
LISTENERS_HEADINGS = ("What it does", "When to use it")
COMPARED = ("pruner", "regularizer")
"""Kinds whose cards say when to prefer another."""
PART = re.compile(r"(<!-- (parameters|cards|list|packages): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bal\.)(?<!\b[A-Z]\.)\s+(?=[A-Z`*\"])")
PAPER = re.compile(r"""(\*[^*]+\*|"[^"]+")(?:(?!\.\s)[^\[])*(\[[^\]]+\]\([^)]+\))?""")


def problems_of(plugin: Plugin) -> Iterator[str]:
    """What a card lacks, in the order in which it should come."""
    where, text = relative_path(plugin.card), plugin.text()
    if not text.startswith(f"# {plugin.name}\n"):
        yield f"{where}: must begin with '# {plugin.name}'"
    if not intro(text):
        yield f"{where}: no paragraph behind the title"
    for heading in HEADINGS if plugin.components else LISTENERS_HEADINGS:
        if not section(text, heading):
            yield f"{where}: nothing under '## {heading}'"
    if any(plugin.of_kind(kind) for kind in COMPARED) and not prefer(text):
        yield f"{where}: no sentence under '## When to use it' begins with 'Prefer'"
    shown = [name for part in PART.finditer(text) if part[2] == "parameters" for name in names_in(part[3])]
    for offer in plugin.components:
        if offer.kind != "lr_scheduler" and shown.count(offer.name) != 1:
            yield f"{where}: '<!-- parameters: {offer.name} -->' must stand in it once, with '<!-- end -->' below"
    for name in set(shown) - {offer.name for offer in plugin.components}:
        yield f"{where}: '<!-- parameters: {name} -->' is no class of its pyproject.toml"


def intro(card: str) -> str:
    """The paragraph behind the title, on one line."""
    return on_one_line(card.partition("\n\n")[2].partition("\n\n")[0])


def section(card: str, heading: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""


def sentences(text: str) -> list[str]:
    """The sentences of some paragraphs, each on one line."""
    return [s for paragraph in text.split("\n\n") for s in SENTENCE_END.split(on_one_line(paragraph)) if s]


def prefer(card: str) -> str:
    """When to prefer another."""
    return " ".join(s for s in sentences(section(card, "When to use it")) if s.startswith("Prefer "))


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
    found = PAPER.search(on_one_line(text))
    return found[0].rstrip(" .,:;") if found else "".join(sentences(text)[:1])
