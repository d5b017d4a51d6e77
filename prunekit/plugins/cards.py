"""All about a plugin before it is used: parameters, hooks, distribution, place, and its method card."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import importlib_metadata as metadata

from prunekit.components.arguments import Argument, arguments_of, type_name
from prunekit.components.docstrings import documented_arguments as documented_arguments, summary
from prunekit.components.kinds import KINDS
from prunekit.errors import PluginError, did_you_mean
from prunekit.plugins.contract import must_be_component
from prunekit.plugins.entry_points import ALL_KINDS, Offer
from prunekit.plugins.hooks import hook_names
from prunekit.plugins.listeners import Listener
from prunekit.plugins.loading import Plugins
from prunekit.plugins.registry import Found
from prunekit.pruning.named_kinds import NAMED_KINDS


@dataclass(frozen=True)
class Parameter:
    """One YAML key: its type and default as a reader of YAML would write them, and what the docstring says of it."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Card:
    """A plugin: a component of a kind, a curve or the like, or a listener.

    Attributes:
        summary: the first sentence of its docstring.
        parameters: the constructor's arguments; only a component has some.
        hooks: the hooks that it implements itself.
        location: the file that it is defined in.
        text: the README of its distribution, if that is installed with it.
    """

    kind: str
    name: str
    distribution: str
    version: str
    summary: str
    location: str
    parameters: tuple[Parameter, ...]
    hooks: tuple[str, ...]
    text: str


def cards(plugins: Plugins, name: str) -> list[Card]:
    """The plugins of this name, of every kind; `distribution:name` where several have one, or all of a distribution.

    Raises:
        PluginError: there is none, or what is there can't be used.
    """
    offered: list[Offer | Listener] = [*plugins.registry.offers, *plugins.listeners]
    names = dict.fromkeys(f"{name}:{offer.name}" for offer in offered if offer.distribution == name) or [name]
    found = [card for each in names for card in _cards(plugins, each)]
    if found:
        return found
    left_out = [left for left in (*plugins.broken, *plugins.switched_off) if name in _names(left.offer)]
    if left_out:
        raise PluginError("; ".join(f"{left.offer} is left out: {left.reason}" for left in left_out))
    known = {known for kind in ALL_KINDS for known in plugins.registry.names(kind)}
    known |= {listener.name for listener in plugins.listeners}
    raise PluginError(f"no plugin is called {name!r}{did_you_mean(name, known)}")


def _names(offer: Offer) -> tuple[str, str]:
    return offer.name, f"{offer.distribution}:{offer.name}"


def _cards(plugins: Plugins, name: str) -> Iterator[Card]:
    for kind in KINDS:
        if name.rpartition(":")[2] in plugins.registry.names(kind):
            found = plugins.registry.find(kind, name)
            must_be_component(found, kind, name)
            yield _of_component(found, kind, name.rpartition(":")[2])
    for named in NAMED_KINDS.values():
        short = name.rpartition(":")[2]
        if short in named.built_in or short in plugins.registry.names(named.name):
            yield _of_named(plugins.registry.find_named(named, name), named.name, short)
    for listener in plugins.listeners:
        if name in (listener.name, f"{listener.distribution}:{listener.name}"):
            yield _of_listener(listener)


def _of_component(found: Found, kind: str, name: str) -> Card:
    meanings = documented_arguments(found.cls)
    parameters = tuple(
        Parameter(argument.name, type_name(argument.annotation), _default(argument), meanings.get(argument.name, ""))
        for argument in arguments_of(found.cls, kind)
    )
    hooks = tuple(hook_names(found.cls, found.distribution))
    about = (found.distribution, found.version, summary(found.cls), _location(found.cls))
    return Card(kind, name, *about, parameters, hooks, readme(found.distribution))


def _of_named(found: Found, kind: str, name: str) -> Card:
    what = found.value if hasattr(found.value, "__qualname__") else type(found.value)
    text = "" if found.is_built_in else readme(found.distribution)
    return Card(kind, name, found.distribution, found.version, summary(what), _location(what), (), (), text)


def _of_listener(listener: Listener) -> Card:
    what = listener.implementation
    owner = what if inspect.ismodule(what) or isinstance(what, type) else type(what)
    about = (listener.distribution, listener.version, summary(owner), _location(owner))
    hooks = tuple(listener.hook_names)
    return Card("listener", listener.name, *about, (), hooks, readme(listener.distribution))


def readme(distribution: str) -> str:
    """The README that a distribution was built with; empty where there is none."""
    try:
        return metadata.metadata(distribution).get("Description", "").strip()
    except metadata.PackageNotFoundError:
        return ""


def _default(argument: Argument) -> str:
    return "required" if argument.required else repr(argument.default)


def _location(owner: Any) -> str:
    try:
        return inspect.getsourcefile(owner) or ""
    except TypeError:
        return ""
