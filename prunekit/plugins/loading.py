"""What a run may use of all that is installed: listeners and a registry, and every way in which that can go wrong."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from packaging.utils import canonicalize_name

from prunekit.errors import PluginError, Position, Problem
from prunekit.plugins.entry_points import Offer, listener_offers, this_version
from prunekit.plugins.listeners import Listener, installed_listener
from prunekit.plugins.lock import Entry, hash_of
from prunekit.plugins.registry import Registry
from prunekit.plugins.run_time import RunTimeComponents
from prunekit.plugins.trust import Trust

DISABLE = "PRUNEKIT_DISABLE"
"""The environment variable that switches listeners off: names, joined by commas."""


@dataclass(frozen=True)
class UnusedListener:
    """A listener that is not on the bus, and why; with a traceback it was meant to be."""

    offer: Offer
    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Plugins:
    """The plugins that a run may use.

    Attributes:
        registry: component classes by name.
        listeners: what hears every event.
        broken: listeners that could not be used; they disturb nobody else.
        switched_off: listeners that are not to be used.
        refused: what a lock does not hold with; with any of these a run must not begin.
        trust: what was allowed.
    """

    registry: Registry
    listeners: tuple[Listener, ...] = ()
    broken: tuple[UnusedListener, ...] = ()
    switched_off: tuple[UnusedListener, ...] = ()
    refused: tuple[str, ...] = ()
    trust: Trust = field(default_factory=Trust)

    @property
    def problems(self) -> list[Problem]:
        """What is refused, as the schedule's own problems are told."""
        file = self.trust.lock.path if self.trust.lock else ""
        return [Problem(Position(file), "", reason) for reason in self.refused]

    def plus(self, listeners: Iterable[Listener]) -> Plugins:
        """The same, and these listeners behind the others; they may offer components too."""
        added = tuple(listeners)
        if not added:
            return self
        registry, lock, refused = self.registry, self.trust.lock, list(self.refused)
        if lock is not None:
            entries = [listener.entry for listener in added]
            # What was refused so far because it was missing, and is here now.
            found = set(lock.missing("listener", ())) - set(lock.missing("listener", entries))
            refused = [reason for reason in refused if reason not in found]
            refused += [objection for entry in entries if (objection := lock.objection(entry))]
        run_time = (registry.run_time or RunTimeComponents()).plus(added)
        registry = Registry(registry.offers, run_time, registry.trust, registry.left_out)
        return replace(self, registry=registry, listeners=(*self.listeners, *added), refused=tuple(refused))


def load_plugins(trust: Trust | None = None, offers: Iterable[Offer] | None = None) -> Plugins:
    """The installed plugins: listeners are imported, components only when a schedule names them.

    Args:
        trust: which distributions may be loaded; all that were made for this prunekit, by default.
        offers: of listeners; those installed, by default.
    """
    trust = trust or Trust()
    listeners: list[Listener] = []
    broken: list[UnusedListener] = []
    switched_off: list[UnusedListener] = []
    refused: list[str] = []
    differing: list[Entry] = []
    for offer in listener_offers() if offers is None else offers:
        if reason := _reason_to_leave_out(offer, trust):
            switched_off.append(UnusedListener(offer, reason))
            continue
        if trust.lock and (objection := trust.lock.objection(offer.entry)):
            refused.append(objection)
            # It is there, if changed: it must not be called missing as well.
            differing.append(offer.entry)
            continue
        try:
            listeners.append(installed_listener(offer))
        except PluginError as error:
            broken.append(UnusedListener(offer, str(error), traceback.format_exc()))
    if trust.lock:
        refused += trust.lock.missing("listener", [*differing, *(listener.entry for listener in listeners)])
        core = trust.lock.objection(core_entry())
        refused += [core] if core else []
    left_out = [str(listener.offer) for listener in (*switched_off, *broken)]
    registry = Registry(run_time=RunTimeComponents(listeners), trust=trust, left_out=left_out)
    return Plugins(registry, tuple(listeners), tuple(broken), tuple(switched_off), tuple(refused), trust)


def disabled_listeners() -> set[str]:
    """What `PRUNEKIT_DISABLE` names: listeners or their distributions."""
    return {name.strip() for name in os.environ.get(DISABLE, "").split(",")} - {""}


def is_disabled(offer: Offer) -> bool:
    """Whether `PRUNEKIT_DISABLE` names a listener or its distribution, in any spelling that pip takes for the same."""
    off = {canonicalize_name(name) for name in disabled_listeners()}
    return bool(off & {canonicalize_name(offer.name), canonicalize_name(offer.distribution)})


def core_entry() -> Entry:
    """What a lock says of prunekit itself."""
    return Entry("core", "prunekit", "prunekit", this_version(), hash_of("prunekit"))


def _reason_to_leave_out(offer: Offer, trust: Trust) -> str | None:
    if is_disabled(offer):
        return f"by {DISABLE}"
    return None if trust.allows(offer.distribution) else trust.not_allowed(str(offer))
