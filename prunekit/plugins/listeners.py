"""Listeners: hook implementations that are on the bus of every run, installed or given from Python."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunekit.components.origin import Origin
from prunekit.errors import PluginError, Position, Problem
from prunekit.plugins.entry_points import Offer
from prunekit.plugins.hooks import Implementations, hook_names
from prunekit.plugins.lock import Entry, hash_of, hash_of_source

_NO_HOOK = "implements no hook; is @prunekit.hookimpl missing?"


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


def installed_listener(offer: Offer) -> Listener:
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
