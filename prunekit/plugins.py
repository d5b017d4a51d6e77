"""Entry points -> a fresh pluggy manager with the listeners on it, and every way in which that can go wrong."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import getmembers_static
from typing import Any

import pluggy

from prunekit import hookspecs
from prunekit.components import Kind
from prunekit.errors import PluginError, did_you_mean
from prunekit.registry import LISTENERS, Found, Offer, Registry, installed

DISABLE = "PRUNEKIT_DISABLE"
"""The environment variable that switches listeners off: names, joined by commas."""


@dataclass(frozen=True)
class Listener:
    """An object on every bus, and the distribution it comes from."""

    name: str
    distribution: str
    version: str
    implementation: object


@dataclass(frozen=True)
class Broken:
    """A listener that could not be used: it is left out, and said so."""

    offer: Offer
    reason: str
    traceback: str


def load_listeners(offers: Iterable[Offer] | None = None) -> tuple[list[Listener], list[Broken]]:
    """Import the installed listeners that `PRUNEKIT_DISABLE` does not name; a broken one stops nobody else."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    listeners, broken = [], []
    for offer in installed(LISTENERS, "listener") if offers is None else offers:
        if offer.name in disabled or offer.distribution in disabled:
            continue
        try:
            implementation = offer.load()
            hook_names(implementation, str(offer))
            listeners.append(Listener(offer.name, offer.distribution, offer.version, implementation))
        except PluginError as error:
            broken.append(Broken(offer, str(error), traceback.format_exc()))
    return listeners, broken


def create_manager() -> pluggy.PluginManager:
    """A manager that knows prunekit's hooks and nobody else's."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def create_registry(listeners: Iterable[Listener]) -> Registry:
    """The registry of installed components, and of those that listeners offer at run time."""
    manager = create_manager()
    owners = {manager.register(listener.implementation): listener for listener in reversed(list(listeners))}

    def find(kind: Kind, name: str) -> Found | None:
        asked = {"kind": kind, "name": name}
        for implementation in reversed(manager.hook.find_component.get_hookimpls()):
            cls = implementation.function(*(asked[argument] for argument in implementation.argnames))
            if isinstance(cls, type):
                listener = owners[implementation.plugin_name]
                return Found(cls, listener.distribution, listener.version)
        return None

    def names(kind: Kind) -> list[str]:
        return [name for offered in manager.hook.list_components(kind=kind) for name in offered]

    return Registry(find=find, names=names)


def hook_names(implementation: object, who: str) -> list[str]:
    """The hooks that an object implements, without evaluating its properties.

    Raises:
        PluginError: it implements a hook that does not exist.
    """
    owner = implementation if _has_namespace(implementation) else type(implementation)
    marker = f"{hookspecs.PROJECT}_impl"
    names = [name for name, value in getmembers_static(owner) if getattr(_function(value), marker, None) is not None]
    for name in names:
        if name not in HOOKS:
            raise PluginError(f"{who} implements {name!r}, and there is no such hook{did_you_mean(name, HOOKS)}")
    return names


def _has_namespace(implementation: object) -> bool:
    return isinstance(implementation, type) or type(implementation).__name__ == "module"


def _function(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec"))
"""The name of every hook, in the order of `hookspecs`."""
