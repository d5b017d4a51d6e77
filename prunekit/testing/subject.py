"""What is being checked: a component's class, a curve or the like, or a listener; its kind, and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from prunekit.components.arguments import arguments_of, check_arguments
from prunekit.components.kinds import EXTENSION, PRUNER, QUANTIZER, REGULARIZER
from prunekit.components.named_kind import named_kind
from prunekit.engine.rates.schedule import LearningRateSchedule
from prunekit.errors import ArgumentError, PluginError, did_you_mean
from prunekit.plugins.contract import must_be_component
from prunekit.plugins.entry_points import ALL_KINDS, listener_offers, named_offers
from prunekit.plugins.hooks import hook_names
from prunekit.plugins.listeners import Listener
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.registry import Found, built_in
from prunekit.progress import Window
from prunekit.pruning.named_kinds import NAMED_KINDS
from prunekit.testing.examples import example_arguments


@dataclass(frozen=True)
class Subject:
    """A component's class, or what an entry point of a listener, a curve or the like gives.

    `arguments` are the YAML keys that instances are made with; `given` says that they were not made up, and `named` is
    what installed distributions have under names among them. `window` is when it acts, where that is not as in other
    runs of the kit. `folder` is where the runs of a listener may write. `remembered` is what laws have found out for
    each other.
    """

    target: Any
    kind: str
    name: str
    distribution: str
    version: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False
    named: Mapping[str, Any] = field(default_factory=dict)
    window: Window | None = None
    folder: str | None = None
    remembered: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def cls(self) -> type:
        """The class of a component."""
        assert isinstance(self.target, type)
        return self.target

    def thing(self) -> Any:
        """A curve or the like as a component gets it; of a class each time a new instance."""
        return NAMED_KINDS[self.kind].made(self.target)

    def listener(self) -> Listener:
        """The listener; each scheduler has a new instance of it where it is a class."""
        return Listener(self.name, self.distribution, self.version, self.target)

    def make(self) -> Any:
        """A new instance; a learning-rate scheduler gets an optimizer of its own."""
        if self.kind == "lr_scheduler":
            optimizer = SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
            return LearningRateSchedule(self.cls, self.own_arguments(), optimizer.param_groups)
        return self.cls(**self.own_arguments())

    def own_arguments(self) -> dict[str, Any]:
        """The arguments as data of their own, with what they name in place of installed names."""
        return {**deepcopy(dict(self.arguments)), **self.named}

    def reproduction(self, law: str) -> tuple[str, ...]:
        """Three lines that try one law."""
        module, name = _module_and_name(self.target)
        first, what = (
            (f"from {module} import {name}", name) if name else (f"# {self.name!r} is installed", repr(self.name))
        )
        if not name:
            what += f", kind={self.kind!r}" * (self.kind == "listener")
        what += f", kind={self.kind!r}" * (self.kind in NAMED_KINDS)
        words = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        return (
            "from prunekit.testing import check_component",
            first,
            f"check_component({what}, laws=[{law!r}]{words})",
        )


def find_subject(component: Any, kind: str | None, arguments: Mapping[str, Any]) -> Subject:
    """A subject by its registered name, or from the class or listener itself.

    Raises:
        PluginError: there is no such component, it is not of its kind, or no instance can be made of it.
    """
    subject = _named(component, kind) if isinstance(component, str) else _given(component, kind)
    if subject.kind == "listener":
        if not hook_names(subject.target, subject.distribution):
            raise PluginError(f"listener {subject.name!r} implements no hook; is @prunekit.hookimpl missing?")
        return subject
    if subject.kind in NAMED_KINDS:
        return _checked(subject, arguments)
    must_be_component(Found(subject.cls, subject.distribution, subject.version), subject.kind, subject.name)
    made_up = {} if arguments else example_arguments(subject.cls, subject.kind)
    return _with(subject, arguments or made_up, bool(arguments))


def _checked(subject: Subject, arguments: Mapping[str, Any]) -> Subject:
    """A curve or the like, if it looks like one."""
    if arguments:
        raise PluginError(f"a {subject.kind} is not made with arguments, got {', '.join(map(repr, arguments))}")
    try:
        subject.thing()
    except ValueError as error:
        raise PluginError(f"{subject.kind} {subject.name!r} {error}") from error
    return subject


def _with(subject: Subject, arguments: Mapping[str, Any], given: bool) -> Subject:
    """The subject with arguments that it accepts."""
    hint = "" if given else "; these were made up from the types: give it others"
    errors = list(check_arguments(subject.cls, subject.kind, arguments))
    full = replace(subject, arguments=dict(arguments), given=given, named=_installed(subject, arguments))
    if not errors:
        try:
            full.make()
        except ArgumentError as error:
            errors = [error]
    if errors:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise PluginError(f"{subject.name} can't be made with {shown}: {'; '.join(map(str, errors))}{hint}")
    return full


def _installed(subject: Subject, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What distributions have under the names among the arguments that are not prunekit's own."""
    kinds = {argument.name: named_kind(argument.annotation) for argument in arguments_of(subject.cls, subject.kind)}
    return {
        name: load_plugins().registry.find_named(kind, value).value
        for name, value in arguments.items()
        if (kind := kinds.get(name)) is not None and isinstance(value, str) and value not in kind.built_in
    }


def _named(name: str, kind: str | None) -> Subject:
    short = name.rpartition(":")[2]
    for offer in listener_offers():
        if kind in (None, "listener") and name in (offer.name, f"{offer.distribution}:{offer.name}"):
            return Subject(offer.load(), "listener", offer.name, offer.distribution, offer.version)
    registry = load_plugins().registry
    kinds = [k for k in ALL_KINDS if kind in (None, k) and (short in registry.names(k) or built_in(k, short))]
    if not kinds and (target := _imported(name)) is not None:
        return _given(target, kind)
    if not kinds:
        known = [known for k in ALL_KINDS for known in registry.names(k)] + [offer.name for offer in listener_offers()]
        raise PluginError(f"no {kind or 'plugin'} is called {name!r}{did_you_mean(name, known)}")
    if len(kinds) > 1:
        raise PluginError(f"{name!r} is {' and '.join(kinds)}; say which: kind={kinds[0]!r}")
    (chosen,) = kinds
    named = NAMED_KINDS.get(chosen)
    found = registry.find(chosen, name) if named is None else registry.find_named(named, name)
    return Subject(found.value, chosen, short, found.distribution, found.version)


def _imported(name: str) -> Any:
    """What `module:name` stands for, or None where there is no such module or nothing of that name in it."""
    module, _, attribute = name.partition(":")
    try:
        found = attribute and module.replace(".", "").isidentifier() and find_spec(module)
    except ModuleNotFoundError:  # of the package that it would be in
        found = None
    return getattr(import_module(module), attribute, None) if found else None


def _given(target: Any, kind: str | None) -> Subject:
    """A subject that is not asked for by name, but may be registered."""
    module, name = _module_and_name(target)
    value = f"{module}:{name}" if name else module
    for offer in [*named_offers(), *listener_offers()]:
        if offer.entry_point.value == value and kind in (None, offer.kind):
            return Subject(target, offer.kind, offer.name, offer.distribution, offer.version)
    if kind is not None and kind in NAMED_KINDS:
        return Subject(target, kind, name or type(target).__name__, module, "")
    if inspect.ismodule(target) or not isinstance(target, type):
        return Subject(target, "listener", name or module, module, "")
    return Subject(target, kind or _kind_of(target), target.__name__, module, "")


def _kind_of(cls: type) -> str:
    """The kind that a class looks like."""
    if issubclass(cls, LRScheduler):
        return "lr_scheduler"
    owners = (REGULARIZER, PRUNER, QUANTIZER)  # a regularizer with a threshold has compute_masks too
    return next((kind.name for kind in owners if all(hasattr(cls, m) for m in kind.methods)), EXTENSION.name)


def _module_and_name(target: Any) -> tuple[str, str]:
    """Module and name of a class or function; of a module its name alone."""
    if inspect.ismodule(target):
        return target.__name__, ""
    owner = target if isinstance(target, type) or inspect.isfunction(target) else type(target)
    return owner.__module__, owner.__qualname__ if owner is target else ""
