"""The plugins of this repository: what they offer, and their cards."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from importlib_metadata import EntryPoint

from docs.generate.text import ROOT
from prunekit import PluginError
from prunekit.components.kinds import KINDS
from prunekit.plugins.entry_points import ALL_KINDS, LISTENERS, Offer
from prunekit.plugins.listeners import Listener
from prunekit.plugins.registry import Registry
from prunekit.plugins.run_time import RunTimeComponents


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
        kinds = {kind.group: name for name, kind in ALL_KINDS.items()} | {LISTENERS: "listener"}
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
    named = [offer for offer in offers if offer.kind in ALL_KINDS]
    return Registry(
        sorted(named, key=lambda offer: (offer.name, offer.distribution)), RunTimeComponents(_listeners(offers))
    )


def _listeners(offers: Iterable[Offer]) -> Iterator[Listener]:
    for offer in offers:
        if offer.kind == "listener":
            try:
                yield Listener(offer.name, offer.distribution, offer.version, offer.load(), offer.module)
            except PluginError:  # what it logs to is not installed
                continue
