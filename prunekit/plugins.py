"""Entry points -> a fresh pluggy manager with the listeners on it, and every way in which that can go wrong."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter, getmembers_static, signature
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
            _must_listen(implementation, offer)
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
    owners = {manager.register(_Offering(listener)): listener for listener in reversed(list(listeners))}

    def ask(hook: pluggy.HookCaller, **asked: str) -> Iterator[tuple[Listener, Any]]:
        for implementation in reversed(hook.get_hookimpls()):
            listener = owners[implementation.plugin_name]
            try:
                yield listener, implementation.function(*(asked[argument] for argument in implementation.argnames))
            except Exception as error:
                yield listener, PluginError(f"failed: {type(error).__name__}: {error}")

    def find(kind: Kind, name: str) -> list[Found]:
        wrong, found = [], []
        for listener, answer in ask(manager.hook.find_component, kind=kind, name=name):
            if isinstance(answer, type):
                found.append(Found(answer, listener.distribution, listener.version))
            elif answer is not None:
                what = str(answer) if isinstance(answer, PluginError) else f"returned {answer!r}, not a class"
                wrong.append(f"find_component of {listener.distribution} {listener.version} {what}")
        if wrong and not found:
            raise PluginError(f"no {kind} {name!r}: {'; '.join(wrong)}")
        return found

    def names(kind: Kind) -> list[str]:
        answers = [answer for _, answer in ask(manager.hook.list_components, kind=kind)]
        return [str(name) for answer in answers if isinstance(answer, Iterable) for name in answer]

    return Registry(find=find, names=names)


class _Offering:
    """What pluggy registers of a listener to ask it for components: those two hooks, and no property is evaluated."""

    def __init__(self, listener: Listener) -> None:
        for name in hook_names(listener.implementation, listener.distribution):
            if name in ("find_component", "list_components"):
                setattr(self, name, getattr(listener.implementation, name))


def _must_listen(implementation: object, offer: Offer) -> None:
    who = f"listener {offer.name!r} of {offer}"
    if isinstance(implementation, type):
        raise PluginError(f"{who} is a class, and prunekit makes no instance of it; offer an instance, or a module")
    if not hook_names(implementation, str(offer)):
        raise PluginError(f"{who} implements no hook; is @prunekit.hookimpl missing?")


def hook_names(implementation: object, who: str) -> list[str]:
    """The hooks that an object implements, without evaluating its properties.

    Raises:
        PluginError: it implements a hook that does not exist, or with an argument that the hook does not have.
    """
    owner = implementation if _has_namespace(implementation) else type(implementation)
    hooks = {name: value for name, value in getmembers_static(owner) if _is_marked(value)}
    for name, value in hooks.items():
        if name not in HOOKS:
            raise PluginError(f"{who} implements {name!r}, and there is no such hook{did_you_mean(name, HOOKS)}")
        known = signature(getattr(hookspecs, name)).parameters
        for argument in _arguments(value, isinstance(owner, type)):
            if argument not in known:
                hint = did_you_mean(argument, known)
                raise PluginError(f"{name} of {who} takes {argument!r}, which that hook does not give{hint}")
    return list(hooks)


def _is_marked(value: Any) -> bool:
    try:
        return isinstance(getattr(_function(value), f"{hookspecs.PROJECT}_impl", None), dict)
    except Exception:  # some objects object to being asked
        return False


def _arguments(value: Any, in_class: bool) -> list[str]:
    """What pluggy would pass to an implementation."""
    parameters = list(signature(_function(value)).parameters.values())
    bound = in_class and not isinstance(value, staticmethod) and not hasattr(value, "__self__")
    given = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters[bound:] if p.kind in given and p.default is Parameter.empty]


def _has_namespace(implementation: object) -> bool:
    return isinstance(implementation, type) or type(implementation).__name__ == "module"


def _function(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec"))
"""The name of every hook, in the order of `hookspecs`."""
