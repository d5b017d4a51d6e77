"""The plugins of this repository: what they offer, and their cards."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from importlib_metadata import EntryPoint

from docs.generate.text import ROOT
from prunekit import PluginError
from prunekit.plugins.entry_points import GROUPS, LISTENERS, Offer
from prunekit.plugins.registry import Found, Registry


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
        return [offer for offer in self.offers if offer.kind in GROUPS]

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
        kinds = {group: str(kind) for kind, group in GROUPS.items()} | {LISTENERS: "listener"}
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

    components = [offer for offer in offers if offer.kind in GROUPS]
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
