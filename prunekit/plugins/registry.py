"""Which distribution offers which class under which name; nothing is imported until a schedule names it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from packaging.utils import canonicalize_name

from prunekit.components.kinds import KINDS
from prunekit.errors import PluginError, did_you_mean, nearest
from prunekit.plugins.entry_points import Offer, component_offers, stray_offers
from prunekit.plugins.lock import Entry, hash_of, hash_of_source
from prunekit.plugins.trust import Trust


@dataclass(frozen=True)
class Found:
    """A component class, who offers it, and the module that its distribution offered.

    A class given from Python has no such module; its distribution is the module that defines it.
    """

    cls: type
    distribution: str
    version: str
    module: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()

    def entry(self, kind: str, name: str) -> Entry:
        """What a lock says of it, under the name that the schedule gives it."""
        sha256 = hash_of(self.module) if self.module else hash_of_source(self.cls)
        return Entry(kind, name, self.distribution, self.version, sha256)


class OffersAtRunTime(Protocol):
    """Who is asked for a class where no entry point has its name."""

    def find(self, kind: str, name: str) -> Sequence[Found]:
        """All classes that are offered under the name."""

    def names(self, kind: str) -> Iterable[str]:
        """The names that are known."""

    def plus(self, listeners: Iterable[Any]) -> OffersAtRunTime:
        """The same, and what further listeners offer."""


class Registry:
    """Component classes by kind and name.

    Args:
        offers: what is installed, by default.
        run_time: what listeners offer where no entry point has the name; nothing, by default.
        trust: which distributions may be loaded.
        left_out: listeners that can't be asked.
    """

    def __init__(
        self,
        offers: Iterable[Offer] | None = None,
        run_time: OffersAtRunTime | None = None,
        trust: Trust | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        self.offers = tuple(component_offers() if offers is None else offers)
        self.run_time = run_time
        self.trust = trust or Trust()
        self.left_out = tuple(left_out)

    def names(self, kind: str) -> list[str]:
        """Every name that resolves for this kind."""
        return sorted({offer.name for offer in self.offers if offer.kind == kind} | set(self._names(kind)))

    def find(self, kind: str, name: str) -> Found:
        """The class behind `class: name`; `distribution:name` where several offer it.

        Raises:
            PluginError: nobody or more than one offers the name, it is not trusted, or its import fails.
        """
        distribution, _, short = name.rpartition(":")
        offers = [o for o in self.offers if (o.kind, o.name) == (kind, short) and _same(o.distribution, distribution)]
        allowed = [offer for offer in offers if self.trust.allows(offer.distribution)]
        if len(allowed) > 1:
            raise PluginError(_ambiguous(kind, short, allowed))
        if allowed:
            return self._load(allowed[0])
        if offers:
            raise PluginError(self.trust.not_allowed(" and ".join(map(str, offers))))
        found = [f for f in self._find(kind, short) if _same(f.distribution, distribution)]
        if len(found) > 1:
            raise PluginError(_ambiguous(kind, short, found))
        if not found:
            raise PluginError(self._unknown(kind, short, distribution))
        self.must_be_unchanged(found[0], kind, short)
        return found[0]

    def must_be_unchanged(self, found: Found, kind: str, name: str) -> None:
        """Whether a class that is imported already is the one of the lock, if there is a lock.

        Raises:
            PluginError: it is not.
        """
        if self.trust.lock and (objection := self.trust.lock.objection(found.entry(kind, name))):
            raise PluginError(objection)

    def _names(self, kind: str) -> Iterable[str]:
        return self.run_time.names(kind) if self.run_time is not None else ()

    def _find(self, kind: str, name: str) -> Sequence[Found]:
        return self.run_time.find(kind, name) if self.run_time is not None else ()

    def _load(self, offer: Offer) -> Found:
        if objection := self.trust.objection(offer):
            raise PluginError(objection)
        cls = offer.load()
        if not isinstance(cls, type):
            raise PluginError(f"{offer.kind} {offer.name!r} of {offer} is {type(cls).__name__} {cls!r}, not a class")
        return Found(cls, offer.distribution, offer.version, offer.module)

    def _unknown(self, kind: str, name: str, distribution: str) -> str:
        if who := self._who(kind, name):
            return f"{name!r} is offered by {who}, not by {distribution!r}"
        for other in KINDS.values():
            if who := self._who(other.name, name):
                belongs = f"it belongs under {other.section!r} ({who})"
                return f"{name!r} is {other.described}, not {KINDS[kind].described}; {belongs}"
        strays = [f"{o} offers it in {o.group!r}" for o in stray_offers() if o.name == name]
        right = f"which is no group: {KINDS[kind].described} belongs in {KINDS[kind].group!r}"
        meant = nearest(name, self.names(kind)) if not strays else []
        guess = did_you_mean(name, self.names(kind)) if not strays else f"; {' and '.join(strays)}, {right}"
        hint = f" ({self._who(kind, meant[0])})" if meant else ""
        left_out = f"; not asked, since left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"no {kind} is registered as {name!r}{guess}{hint}{left_out}"

    def _who(self, kind: str, name: str) -> str:
        """The distributions that offer a name; no entry point is loaded for that."""
        offers = [offer for offer in self.offers if (offer.kind, offer.name) == (kind, name)]
        if offers:
            return ", ".join(map(str, offers))
        return ", ".join(map(str, self._find(kind, name) if name in self._names(kind) else ()))


def _same(distribution: str, asked: str) -> bool:
    return not asked or canonicalize_name(distribution) == canonicalize_name(asked)


def _ambiguous(kind: str, name: str, offers: Sequence[Offer | Found]) -> str:
    who, both = " and ".join(map(str, offers)), "both" if len(offers) == 2 else "all"
    return f"{who} {both} offer {kind} {name!r}; say which: class: {offers[0].distribution}:{name}"
