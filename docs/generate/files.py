"""Each file that is made, wholly or in part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from docs.generate.cards import PART, list_of_classes, problems_of, rows_of_cards
from docs.generate.keys import parameters
from docs.generate.plugins import Plugin, registry_of
from docs.generate.rooms import import_contracts, table_of_packages
from docs.generate.text import ROOT, relative_path
from prunekit import PluginError
from prunekit.plugins.registry import Registry
from prunekit.schedule.json_schema import schema_document

PAGES = tuple(ROOT / "docs" / page for page in ("architecture.md", "choose-a-pruner.md", "plugins.md"))
SCHEMA = ROOT / "examples" / "schedule.schema.json"
CONTRACTS = ROOT / ".importlinter"


def generated(plugins: Sequence[Plugin]) -> tuple[dict[Path, str], list[str]]:
    """Each file that is made, wholly or in part, with the text it should have; and what is wrong with the cards."""
    registry, problems = registry_of(plugins), [problem for plugin in plugins for problem in problems_of(plugin)]
    schema = schema_document(registry, problems.append)
    files = {SCHEMA: json.dumps(schema, indent=1, ensure_ascii=False) + "\n", CONTRACTS: import_contracts(plugins)}
    for page in [*(plugin.card for plugin in plugins if plugin.card.exists()), *PAGES]:
        try:
            files[page] = filled(page.read_text(encoding="utf-8"), plugins, registry)
        except PluginError as error:
            problems.append(f"{relative_path(page)}: {error}")
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
        "packages": lambda which: table_of_packages(),
    }
    return PART.sub(lambda part: f"{part[1]}\n{makers[part[2]](part[3])}\n\n{part[5]}", text)


def stale(files: Mapping[Path, str]) -> list[Path]:
    """Files that are not as they should be."""
    return [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
