"""Which distribution offers which class under which name; nothing is imported until a schedule names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, cast

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
        except (Exception, SystemExit) as error:
            what = f"{self.kind} {self.name!r} of {self} can't be imported from {self.entry_point.value!r}"
            raise PluginError(f"{what}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Found:
    """A component class and who offers it."""

    cls: type
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def installed(group: str, kind: str) -> list[Offer]:
    """What the installed distributions offer in an entry-point group, from their metadata alone, in a fixed order."""
    return _offers({kind: group})


def _offers(groups: Mapping[str, str]) -> list[Offer]:
    entries = _entry_points()
    offers = [
        Offer(kind, entry.name, *_distribution(entry.dist), entry)
        for kind, group in groups.items()
        for entry in entries.select(group=group)
        if entry.dist is not None
    ]
    return sorted(offers, key=lambda offer: (offer.name, offer.distribution))


def _entry_points() -> Any:
    try:
        return metadata.entry_points()
    except Exception:  # one distribution's metadata can't be read: do without that one
        found: dict[tuple[str, str, str], metadata.EntryPoint] = {}
        for distribution in metadata.distributions():
            for entry in _readable(distribution):
                # Of a distribution that stands twice on the path the first counts.
                found.setdefault((_normal(_distribution(distribution)[0]), entry.group, entry.name), entry)
        return metadata.EntryPoints(found.values())


def _readable(distribution: metadata.Distribution) -> Iterable[metadata.EntryPoint]:
    try:
        return distribution.entry_points
    except Exception:
        return ()


def _distribution(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        return str(distribution.metadata["Name"] or "(unnamed)"), str(distribution.version or "")
    except Exception:
        return "(unnamed)", ""


class Registry:
    """Component classes by kind and name.

    Args:
        offers: what is installed, by default.
        find: asks the listeners for classes where no entry point has the name (`find_component`).
        names: asks the listeners for the names they would answer to (`list_components`).
    """

    def __init__(
        self,
        offers: Iterable[Offer] | None = None,
        find: Callable[[Kind, str], Sequence[Found]] = lambda kind, name: (),
        names: Callable[[Kind], Iterable[str]] = lambda kind: (),
    ) -> None:
        if offers is None:
            offers = _offers(cast(Mapping[str, str], GROUPS))
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
        found = [f for f in self._find(kind, short) if _same(f.distribution, distribution)]
        if len(found) > 1:
            raise PluginError(_ambiguous(kind, short, found))
        if found:
            return found[0]
        raise PluginError(self._unknown(kind, short, distribution))

    def _unknown(self, kind: Kind, name: str, distribution: str) -> str:
        if who := self._who(kind, name):
            return f"{name!r} is offered by {who}, not by {distribution!r}"
        for other in GROUPS:
            if who := self._who(other, name):
                return f"{name!r} is {_a(other)}, not {_a(kind)}; it belongs under {_section(other)!r} ({who})"
        guess = did_you_mean(name, self.names(kind))
        meant = [known for known in self.names(kind) if guess == f"; did you mean {known!r}?"]
        hint = f" ({self._who(kind, meant[0])})" if meant else ""
        return f"no {kind} is registered as {name!r}{guess}{hint}"

    def _who(self, kind: Kind, name: str) -> str:
        """The distributions that offer a name; no entry point is loaded for that."""
        offers = [offer for offer in self.offers if (offer.kind, offer.name) == (kind, name)]
        if offers:
            return ", ".join(map(str, offers))
        return ", ".join(map(str, self._find(kind, name) if name in self._names(kind) else ()))


def _same(distribution: str, asked: str) -> bool:
    return not asked or _normal(distribution) == _normal(asked)


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _class(offer: Offer) -> type:
    cls = offer.load()
    if not isinstance(cls, type):
        raise PluginError(f"{offer.kind} {offer.name!r} of {offer} is {type(cls).__name__} {cls!r}, not a class")
    return cls


def _ambiguous(kind: Kind, name: str, offers: Sequence[Offer | Found]) -> str:
    who, both = " and ".join(map(str, offers)), "both" if len(offers) == 2 else "all"
    return f"{who} {both} offer {kind} {name!r}; say which: class: {offers[0].distribution}:{name}"


def _section(kind: str) -> str:
    return next(section for section, k in SECTIONS.items() if k == kind)


def _a(kind: str) -> str:
    return f"an {kind}" if kind in ("extension", "lr_scheduler") else f"a {kind}"
