"""Listeners, installed or given from Python, and the plugins of a run: every way in which loading them can go wrong."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from packaging.utils import canonicalize_name

from prunekit.components.kinds import KINDS
from prunekit.components.origin import Origin
from prunekit.components.selecting import selecting_arguments
from prunekit.errors import PluginError, Position, Problem
from prunekit.hookspecs import offer as offer_of_components
from prunekit.plugins.entry_points import LISTENERS, Offer, listener_offers, this_version
from prunekit.plugins.hooks import HOOKS, Implementations, hook_names
from prunekit.plugins.lock import Entry, hash_of, hash_of_source
from prunekit.plugins.registry import Found, Registry
from prunekit.plugins.run_time import RunTimeComponents
from prunekit.plugins.trust import Trust
from prunekit.quantization.quantizable import QuantizesModules

DISABLE = "PRUNEKIT_DISABLE"
"""The environment variable that switches listeners off: names, joined by commas."""


@dataclass(frozen=True)
class Listener:
    """What hears every event, the distribution it comes from, and the module that this one offered.

    `implementation` is a module, an object, or a class, of which each scheduler has an instance of its own. A listener
    that is given from Python has no such module; its distribution is the module that defines it.
    """

    name: str
    distribution: str
    version: str
    implementation: object
    module: str = ""

    @property
    def entry(self) -> Entry:
        """What a lock says of it."""
        sha256 = hash_of(self.module) if self.module else hash_of_source(_definition(self.implementation))
        return Entry("listener", self.name, self.distribution, self.version, sha256)

    @property
    def origin(self) -> Origin:
        """By whose hand its effects are."""
        return Origin("", self.name, self.distribution, self.version)

    @property
    def hook_names(self) -> list[str]:
        """The hooks that it implements."""
        return hook_names(self.implementation, str(self.origin))

    def implementations(self) -> Implementations:
        """What goes on a bus; of a class it is a new instance's.

        Raises:
            PluginError: the class can't be made without arguments.
        """
        return Implementations.of(self.instance(), self.origin)

    def instance(self) -> object:
        """What goes on a bus: a new instance of a class, a module or object as it is.

        Raises:
            PluginError: the class can't be made without arguments.
        """
        if not isinstance(self.implementation, type):
            return self.implementation
        try:
            return self.implementation()
        except Exception as error:
            who = f"listener {self.name!r} of {self.distribution} {self.version}".rstrip()
            what = f"{type(error).__name__}: {error}"
            raise PluginError(f"{who} is a class that can't be made without arguments: {what}") from error


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
            differing.append(offer.entry)
            continue
        try:
            listeners.append(_installed(offer))
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


def must_be(found: Found, kind: str, name: str) -> None:
    """Whether a class is a component of its kind, with hooks that exist.

    Raises:
        PluginError: it is not; the message names its distribution and the kind that it looks like.
    """
    missing = [method for method in KINDS[kind].methods if not callable(getattr(found.cls, method, None))]
    if missing:
        alike = [k for k in KINDS.values() if k.methods and all(hasattr(found.cls, m) for m in k.methods)]
        hint = f"; it looks like {alike[0].described}: the group for those is {alike[0].group!r}" if alike else ""
        raise PluginError(f"{name!r} of {found.distribution} is no {kind}: it has no {missing[0]}(){hint}")
    owns = KINDS[kind].owns_parameters and not issubclass(found.cls, QuantizesModules)
    if owns and not selecting_arguments(found.cls, kind):
        what = "no argument of its constructor selects parameters; one must be of type Selectors or PerParameter"
        raise PluginError(f"{name!r} of {found.distribution} is no {kind}: {what}")
    for hook in hook_names(found.cls, found.distribution):
        if HOOKS[hook] is offer_of_components:  # asked before any component is made
            what = f"a component is never asked: {hook} belongs in a listener (group {LISTENERS!r})"
            raise PluginError(f"{name!r} of {found.distribution} implements {hook}, and {what}")


def _reason_to_leave_out(offer: Offer, trust: Trust) -> str | None:
    if is_disabled(offer):
        return f"by {DISABLE}"
    return None if trust.allows(offer.distribution) else trust.not_allowed(str(offer))


def _installed(offer: Offer) -> Listener:
    """A listener, imported; of a class one instance is made, to see that it can be."""
    if offer.incompatibility:
        raise PluginError(offer.incompatibility)
    listener = Listener(offer.name, offer.distribution, offer.version, offer.load(), offer.module)
    if not hook_names(listener.implementation, str(offer)):
        raise PluginError(f"listener {offer.name!r} of {offer} {_NO_HOOK}")
    listener.instance()
    return listener


def given_listeners(
    given: Iterable[object], installed: Sequence[Listener] = ()
) -> tuple[list[Listener], list[Problem]]:
    """Listeners that are given from Python, each a module, an object or a class, and what is wrong with the others."""
    listeners: list[Listener] = []
    problems: list[Problem] = []
    known = [listener.implementation for listener in installed]
    for index, implementation in enumerate(given):
        try:
            if any(implementation is other for other in known):
                raise PluginError("is on the bus already, and would hear every event twice")
            listeners.append(_given(implementation))
        except PluginError as error:
            problems.append(Problem(Position("<python>"), f"listeners[{index}]", str(error)))
        known.append(implementation)
    return listeners, problems


def _given(implementation: object) -> Listener:
    definition = _definition(implementation)
    name = getattr(definition, "__qualname__", definition.__name__).rpartition(".")[2]
    listener = Listener(name, getattr(definition, "__module__", definition.__name__), "", implementation)
    if not listener.hook_names:
        raise PluginError(f"{listener.origin} {_NO_HOOK}")
    return replace(listener, implementation=listener.instance())


def _definition(implementation: object) -> Any:
    """The module or class that defines it."""
    is_one = isinstance(implementation, type) or inspect.ismodule(implementation)
    return implementation if is_one else type(implementation)


_NO_HOOK = "implements no hook; is @prunekit.hookimpl missing?"
