"""Installed plugins -> listeners and a registry, a fresh pluggy manager, and every way in which that can go wrong."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from inspect import Parameter, getmembers_static, signature
from typing import Any

import pluggy
from packaging.utils import canonicalize_name

import prunekit.hookspecs as hookspecs
from prunekit.components.kinds import KINDS
from prunekit.components.quantizer import QuantizesModules
from prunekit.components.selecting import selecting_arguments
from prunekit.errors import PluginError, Position, Problem, did_you_mean
from prunekit.plugins.entry_points import Offer, listener_offers, this_version
from prunekit.plugins.lock import Entry, hash_of
from prunekit.plugins.registry import Found, Registry
from prunekit.plugins.trust import Trust

DISABLE = "PRUNEKIT_DISABLE"
"""The environment variable that switches listeners off: names, joined by commas."""


@dataclass(frozen=True)
class Listener:
    """What hears every event, the distribution it comes from, and the module that this one offered.

    `implementation` is a module, an object, or a class, of which each scheduler has an instance of its own.
    """

    name: str
    distribution: str
    version: str
    implementation: object
    module: str = ""

    @property
    def entry(self) -> Entry:
        """What a lock says of it."""
        return Entry("listener", self.name, self.distribution, self.version, hash_of(self.module))

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
            who = f"listener {self.name!r} of {self.distribution} {self.version}"
            what = f"{type(error).__name__}: {error}"
            raise PluginError(f"{who} is a class that can't be made without arguments: {what}") from error


@dataclass(frozen=True)
class LeftOut:
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
        switched_off: listeners that are not wanted.
        refused: what a lock does not hold with; with any of these a run must not begin.
        trust: what was allowed.
    """

    registry: Registry
    listeners: tuple[Listener, ...] = ()
    broken: tuple[LeftOut, ...] = ()
    switched_off: tuple[LeftOut, ...] = ()
    refused: tuple[str, ...] = ()
    trust: Trust = field(default_factory=Trust)

    @property
    def problems(self) -> list[Problem]:
        """What is refused, as the schedule's own problems are told."""
        file = self.trust.lock.path if self.trust.lock else ""
        return [Problem(Position(file), "", reason) for reason in self.refused]


def load_plugins(trust: Trust | None = None, offers: Iterable[Offer] | None = None) -> Plugins:
    """The installed plugins: listeners are imported, components only when a schedule names them.

    Args:
        trust: which distributions may be loaded; all that were made for this prunekit, by default.
        offers: of listeners; those installed, by default.
    """
    trust = trust or Trust()
    listeners: list[Listener] = []
    broken: list[LeftOut] = []
    switched_off: list[LeftOut] = []
    refused: list[str] = []
    differing: list[Entry] = []
    for offer in listener_offers() if offers is None else offers:
        if reason := _unwanted(offer, trust):
            switched_off.append(LeftOut(offer, reason))
            continue
        if trust.lock and (objection := trust.lock.objection(offer.entry)):
            refused.append(objection)
            differing.append(offer.entry)
            continue
        try:
            listeners.append(_listener(offer))
        except PluginError as error:
            broken.append(LeftOut(offer, str(error), traceback.format_exc()))
    if trust.lock:
        refused += trust.lock.missing("listener", [*differing, *(listener.entry for listener in listeners)])
        core = trust.lock.objection(core_entry())
        refused += [core] if core else []
    registry = create_registry(listeners, trust, [str(listener.offer) for listener in (*switched_off, *broken)])
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
    hook_names(found.cls, found.distribution)


def create_manager() -> pluggy.PluginManager:
    """A manager that knows prunekit's hooks and nobody else's."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def create_registry(listeners: Iterable[Listener], trust: Trust | None = None, silent: Iterable[str] = ()) -> Registry:
    """The registry of installed components, and of those that listeners offer at run time.

    `silent` are the listeners that could have offered more.
    """
    manager = create_manager()
    owners = {manager.register(_Offering(listener)): listener for listener in reversed(list(listeners))}

    def ask(hook: pluggy.HookCaller, **asked: str) -> Iterator[tuple[Listener, Any]]:
        for implementation in reversed(hook.get_hookimpls()):
            listener = owners[implementation.plugin_name]
            try:
                yield listener, implementation.function(*(asked[argument] for argument in implementation.argnames))
            except Exception as error:
                yield listener, PluginError(f"failed: {type(error).__name__}: {error}")

    def find(kind: str, name: str) -> list[Found]:
        wrong, found = [], []
        for listener, answer in ask(manager.hook.find_component, kind=kind, name=name):
            if isinstance(answer, type):
                found.append(Found(answer, listener.distribution, listener.version, listener.module))
            elif answer is not None:
                what = str(answer) if isinstance(answer, PluginError) else f"returned {answer!r}, not a class"
                wrong.append(f"find_component of {listener.distribution} {listener.version} {what}")
        if wrong and not found:
            raise PluginError(f"no {kind} {name!r}: {'; '.join(wrong)}")
        return found

    def names(kind: str) -> list[str]:
        answers = [answer for _, answer in ask(manager.hook.list_components, kind=kind)]
        return [str(name) for answer in answers if isinstance(answer, Iterable) for name in answer]

    return Registry(find=find, names=names, trust=trust, silent=tuple(silent))


class _Offering:
    """What pluggy registers of a listener to ask it for components: those two hooks, and no property is evaluated."""

    def __init__(self, listener: Listener) -> None:
        offering = {"find_component", "list_components"} & {*hook_names(listener.implementation, listener.distribution)}
        asked = listener.instance() if offering else None
        for name in offering:
            setattr(self, name, getattr(asked, name))


def _unwanted(offer: Offer, trust: Trust) -> str | None:
    if is_disabled(offer):
        return f"by {DISABLE}"
    return None if trust.allows(offer.distribution) else trust.not_allowed(str(offer))


def _listener(offer: Offer) -> Listener:
    """A listener, imported; of a class one instance is made, to see that it can be."""
    if offer.incompatibility:
        raise PluginError(offer.incompatibility)
    listener = Listener(offer.name, offer.distribution, offer.version, offer.load(), offer.module)
    if not hook_names(listener.implementation, str(offer)):
        raise PluginError(f"listener {offer.name!r} of {offer} implements no hook; is @prunekit.hookimpl missing?")
    listener.instance()
    return listener


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
