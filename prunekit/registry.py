"""Which distribution offers which class under which name; nothing is imported until a schedule names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from prunekit.components import SECTIONS, Kind
from prunekit.errors import PluginError, did_you_mean

GROUPS: dict[Kind, str] = {kind: f"prunekit.{section}" for section, kind in SECTIONS.items()}
"""The entry-point group of each kind of component."""
LISTENERS = "prunekit"
"""The entry-point group of modules and objects that listen to every event."""


@dataclass(frozen=True)
class Offer:
    """One entry point: a distribution offers `value` (module:attribute) under `name`. Nothing is imported yet."""

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    def load(self) -> Any:
        """Import it.

        Raises:
            PluginError: whatever the import raised, with the distribution's name; the cause is chained.
        """
        try:
            return self.entry_point.load()
        except Exception as error:
            what = f"{self.kind} {self.name!r} of {self} can't be imported from {self.entry_point.value!r}"
            raise PluginError(f"{what}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Found:
    """A component class and who offers it."""

    cls: type
    distribution: str
    version: str


def installed(group: str, kind: str) -> list[Offer]:
    """What the installed distributions offer in an entry-point group, from their metadata alone, in a fixed order."""
    offers = [
        Offer(kind, entry.name, entry.dist.metadata["Name"], entry.dist.version, entry)
        for entry in metadata.entry_points(group=group)
        if entry.dist is not None
    ]
    return sorted(offers, key=lambda offer: (offer.name, offer.distribution))


class Registry:
    """Component classes by kind and name.

    Args:
        offers: what is installed, by default.
        find: asks the listeners for a class where no entry point has the name (`find_component`).
        names: asks the listeners for the names they would answer to (`list_components`).
    """

    def __init__(
        self,
        offers: Iterable[Offer] | None = None,
        find: Callable[[Kind, str], Found | None] = lambda kind, name: None,
        names: Callable[[Kind], Iterable[str]] = lambda kind: (),
    ) -> None:
        if offers is None:
            offers = [offer for kind, group in GROUPS.items() for offer in installed(group, kind)]
        self.offers = tuple(offers)
        self._find = find
        self._names = names

    def names(self, kind: Kind) -> list[str]:
        """Every name that resolves for this kind."""
        return sorted({offer.name for offer in self.offers if offer.kind == kind} | set(self._names(kind)))

    def find(self, kind: Kind, name: str) -> Found:
        """The class behind `class: name`; `distribution:name` where several offer it.

        Raises:
            PluginError: nobody or more than one offers the name, or its import fails.
        """
        distribution, _, short = name.rpartition(":")
        offers = [o for o in self.offers if (o.kind, o.name) == (kind, short) and _same(o.distribution, distribution)]
        if len(offers) > 1:
            raise PluginError(_ambiguous(kind, short, offers))
        if offers:
            return Found(_class(offers[0]), offers[0].distribution, offers[0].version)
        found = self._find(kind, short)
        if found is not None and _same(found.distribution, distribution):
            return found
        raise PluginError(self._unknown(kind, name, short))

    def _unknown(self, kind: Kind, name: str, short: str) -> str:
        elsewhere = [offer for offer in self.offers if offer.name == short]
        if elsewhere and elsewhere[0].kind != kind:
            other = elsewhere[0].kind
            return f"{short!r} is {_a(other)}, not {_a(kind)}; it belongs under {_section(other)}: ({elsewhere[0]})"
        if elsewhere:
            return f"{short!r} is offered by {', '.join(map(str, elsewhere))}, not by {name.rpartition(':')[0]!r}"
        guess = did_you_mean(short, self.names(kind))
        who = [str(offer) for offer in self.offers if offer.kind == kind and repr(offer.name) in guess]
        hint = f" ({who[0]})" if len(who) == 1 and "did you mean" in guess else ""
        return f"no {kind} is registered as {short!r}{guess}{hint}"


def _same(distribution: str, asked: str) -> bool:
    return not asked or _normal(distribution) == _normal(asked)


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _class(offer: Offer) -> type:
    cls = offer.load()
    if not isinstance(cls, type):
        raise PluginError(f"{offer.kind} {offer.name!r} of {offer} is {type(cls).__name__} {cls!r}, not a class")
    return cls


def _ambiguous(kind: Kind, name: str, offers: list[Offer]) -> str:
    who = " and ".join(map(str, offers))
    return f"{who} both offer {kind} {name!r}; say which: class: {offers[0].distribution}:{name}"


def _section(kind: str) -> str:
    return next(section for section, k in SECTIONS.items() if k == kind)


def _a(kind: str) -> str:
    return f"an {kind}" if kind in ("extension", "lr_scheduler") else f"a {kind}"
