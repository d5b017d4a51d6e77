"""Which distribution offers what under which name; nothing is imported until a schedule names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from packaging.utils import canonicalize_name

from prunekit.components.kinds import KINDS, Kind
from prunekit.components.named_kind import NamedKind
from prunekit.errors import PluginError, did_you_mean, nearest
from prunekit.plugins.entry_points import ALL_KINDS, Offer, named_offers, stray_offers, this_version
from prunekit.plugins.lock import Entry, hash_of, hash_of_source
from prunekit.plugins.trust import Trust
from prunekit.pruning.named_kinds import NAMED_KINDS

CORE = "prunekit"
"""Whose what prunekit itself has is, for names such as `prunekit:cubic`."""


@dataclass(frozen=True)
class Found:
    """A component class, or a curve or the like, who offers it, and the module that its distribution offered.

    What is given from Python has no such module; its distribution is the module that defines it.
    """

    value: Any
    distribution: str
    version: str
    module: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()

    @property
    def cls(self) -> type:
        """The class of a component."""
        assert isinstance(self.value, type)
        return self.value

    @property
    def is_built_in(self) -> bool:
        """Whether it is prunekit's own: no plugin then, and part of prunekit's own entry in a lock."""
        return self.distribution == CORE

    def entry(self, kind: str, name: str) -> Entry:
        """What a lock says of it, under the name that the schedule gives it."""
        sha256 = hash_of(self.module) if self.module else hash_of_source(self.value)
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
    """Component classes, and curves and the like, by kind and name.

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
        self.offers = tuple(named_offers() if offers is None else offers)
        self.run_time = run_time
        self.trust = trust or Trust()
        self.left_out = tuple(left_out)

    def names(self, kind: str) -> list[str]:
        """Every name that resolves for this kind."""
        return sorted({offer.name for offer in self.offers if offer.kind == kind} | set(self._names(kind)))

    def spellings(self, kind: NamedKind[Any]) -> list[str]:
        """Every text by which a schedule can name one of this kind: short where nobody shares the name, and full."""
        owners = [(CORE, name) for name in kind.built_in]
        owners += [(offer.distribution, offer.name) for offer in self.offers if offer.kind == kind.name]
        times = Counter(name for _, name in owners)
        short = [name for _, name in owners if times[name] == 1]
        return [*short, *(f"{owner}:{name}" for owner, name in owners)]

    def find(self, kind: str, name: str) -> Found:
        """The class behind `class: name`; `distribution:name` where several offer it.

        Raises:
            PluginError: nobody or more than one offers the name, it is not trusted, or its import fails.
        """
        distribution, _, short = name.rpartition(":")
        if offer := self._offer(kind, short, distribution):
            cls = self._load(offer)
            if not isinstance(cls, type):
                raise PluginError(f"{kind} {short!r} of {offer} is {type(cls).__name__} {cls!r}, not a class")
            return Found(cls, offer.distribution, offer.version, offer.module)
        found = [f for f in self._find(kind, short) if _same(f.distribution, distribution)]
        if len(found) > 1:
            raise PluginError(_ambiguous(kind, short, found))
        if not found:
            raise PluginError(self._unknown(KINDS[kind], short, distribution))
        self.must_be_unchanged(found[0], kind, short)
        return found[0]

    def find_named(self, kind: NamedKind[Any], name: str) -> Found:
        """The curve, granularity or ranking behind a name; `distribution:name` where several have it.

        What prunekit has itself is `prunekit:name`, is always allowed, and collides like any other.

        Raises:
            PluginError: as `find` does, or what is offered is none of this kind.
        """
        distribution, _, short = name.rpartition(":")
        own = built_in(kind.name, short) if _same(CORE, distribution) else []
        if offer := self._offer(kind.name, short, distribution, own):
            try:
                value = kind.made(self._load(offer))
            except ValueError as error:
                raise PluginError(f"{kind} {short!r} of {offer} {error}") from error
            return Found(value, offer.distribution, offer.version, offer.module)
        if not own:
            raise PluginError(self._unknown(kind, short, distribution))
        return own[0]

    def must_be_unchanged(self, found: Found, kind: str, name: str) -> None:
        """Whether a class that is imported already is the one of the lock, if there is a lock.

        Raises:
            PluginError: it is not.
        """
        if self.trust.lock and (objection := self.trust.lock.objection(found.entry(kind, name))):
            raise PluginError(objection)

    def _names(self, kind: str) -> Iterable[str]:
        return self.run_time.names(kind) if self.run_time is not None and kind in KINDS else ()

    def _find(self, kind: str, name: str) -> Sequence[Found]:
        return self.run_time.find(kind, name) if self.run_time is not None else ()

    def _offer(self, kind: str, name: str, distribution: str, own: Sequence[Found] = ()) -> Offer | None:
        """The one entry point that is meant by a name which prunekit itself may have too; None where there is none."""
        offers = [o for o in self.offers if (o.kind, o.name) == (kind, name) and _same(o.distribution, distribution)]
        allowed = [offer for offer in offers if self.trust.allows(offer.distribution)]
        if len([*allowed, *own]) > 1:
            raise PluginError(_ambiguous(kind, name, [*allowed, *own]))
        if offers and not allowed and not own:
            raise PluginError(self.trust.not_allowed(" and ".join(map(str, offers))))
        return allowed[0] if allowed else None

    def _load(self, offer: Offer) -> Any:
        if objection := self.trust.objection(offer):
            raise PluginError(objection)
        return offer.load()

    def _unknown(self, kind: Kind | NamedKind[Any], name: str, distribution: str) -> str:
        if who := self._offered_by(kind, name):
            return f"{name!r} is offered by {who}, not by {distribution!r}"
        for other in ALL_KINDS.values():
            if who := self._offered_by(other, name):
                belongs = f"; it belongs under {other.section!r}" if isinstance(other, Kind) else ""
                return f"{name!r} is {other.described}, not {kind.described}{belongs} ({who})"
        strays = [f"{o} offers it in {o.group!r}" for o in stray_offers() if o.name == name]
        right = f"which is no group: {kind.described} belongs in {kind.group!r}"
        known = [*self.names(kind.name), *_own(kind.name)]
        meant = nearest(name, known) if not strays else []
        guess = did_you_mean(name, known) if not strays else f"; {' and '.join(strays)}, {right}"
        hint = f" ({self._offered_by(kind, meant[0])})" if meant else ""
        left_out = f"; not asked, since left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"no {kind} is registered as {name!r}{guess}{hint}{left_out}"

    def _offered_by(self, kind: Kind | NamedKind[Any], name: str) -> str:
        """The distributions that offer a name; no entry point is loaded for that."""
        offers = [str(offer) for offer in self.offers if (offer.kind, offer.name) == (kind.name, name)]
        offers += map(str, built_in(kind.name, name))
        if offers:
            return ", ".join(offers)
        return ", ".join(map(str, self._find(kind.name, name) if name in self._names(kind.name) else ()))


def built_in(kind: str, name: str) -> list[Found]:
    """What prunekit itself has of a kind under a name; it has no component."""
    own = _own(kind)
    return [Found(own[name], CORE, this_version(), CORE)] if name in own else []


def _own(kind: str) -> Mapping[str, Any]:
    return NAMED_KINDS[kind].built_in if kind in NAMED_KINDS else {}


def _same(distribution: str, asked: str) -> bool:
    return not asked or canonicalize_name(distribution) == canonicalize_name(asked)


def _ambiguous(kind: str, name: str, offers: Sequence[Offer | Found]) -> str:
    who, both = " and ".join(map(str, offers)), "both" if len(offers) == 2 else "all"
    key = "class: " if kind in KINDS else ""  # an argument's key may be another than its kind
    return f"{who} {both} offer {kind} {name!r}; say which: {key}{offers[0].distribution}:{name}"
