"""The hooks that an object implements: found without evaluating anything of it, and checked against `hookspecs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, getmembers_static, isgeneratorfunction, signature
from typing import Any

import pluggy

import prunekit.hookspecs as hookspecs
from prunekit.components.origin import Origin
from prunekit.errors import PluginError, did_you_mean
from prunekit.hookspecs import Role

HOOKS: dict[str, Role] = {name: hook.role for name, hook in vars(hookspecs).items() if hasattr(hook, "role")}
"""What the implementations of each hook may do, in the order of `hookspecs`."""


@dataclass(eq=False)
class Implementations:
    """Hook implementations that go on and off a bus together, and by whose hand they are."""

    origin: Origin
    hooks: Mapping[str, Callable[..., Any]]

    @classmethod
    def of(cls, implementation: object, origin: Origin) -> Implementations:
        """All hooks that a plugin's object or module implements."""
        names = hook_names(implementation, str(origin))
        return cls(origin, {name: getattr(implementation, name) for name in names})


class Namespace:
    """What pluggy registers: attributes and nothing else, equal to nothing but itself.

    pluggy evaluates the properties of what it registers, and takes what is equal for the same.
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        vars(self).update(hooks)


def create_manager() -> pluggy.PluginManager:
    """A manager that knows prunekit's hooks and nobody else's."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def options_of(function: object) -> Mapping[str, Any] | None:
    """What `@hookimpl(…)` has marked a function with; None where it has not."""
    try:
        options = getattr(_function(function), f"{hookspecs.PROJECT}_impl", None)
    except Exception:  # some objects object to being asked
        return None
    return options if isinstance(options, dict) else None


def hook_names(implementation: object, who: str) -> list[str]:
    """The hooks that an object implements, without evaluating its properties.

    Raises:
        PluginError: it implements a hook that does not exist, with an argument that the hook does not have, or in a
            way that the hook does not allow.
    """
    # On the class of an object: to look at the object itself would evaluate its properties.
    owner = implementation if _has_namespace(implementation) else type(implementation)
    hooks = {name: value for name, value in getmembers_static(owner) if options_of(value) is not None}
    for name, value in hooks.items():
        if name not in HOOKS:
            raise PluginError(f"{who} implements {name!r}, and there is no such hook{did_you_mean(name, HOOKS)}")
        known = signature(getattr(hookspecs, name)).parameters
        for argument in _arguments(value, isinstance(owner, type)):
            if argument not in known:
                hint = did_you_mean(argument, known)
                raise PluginError(f"{name} of {who} takes {argument!r}, which that hook does not give{hint}")
        _must_be_allowed(name, value, who)
    return list(hooks)


def _must_be_allowed(name: str, value: object, who: str) -> None:
    """Whether the mark of an implementation asks only for what its hook allows."""
    role, options = HOOKS[name], options_of(value) or {}
    for option in (option for option, setting in options.items() if setting and option not in role.options):
        if option == "hookwrapper":
            raise PluginError(
                f"{name} of {who} is marked hookwrapper=True, which prunekit does not know{_instead(role)}"
            )
        allowed = f"allows only {', '.join(role.options)}" if role.options else "allows no option"
        mark, article = f"{option}={options[option]!r}", "an" if role.name[0] in "aeiou" else "a"
        raise PluginError(f"{name} of {who} is marked {mark}; {article} {role.name} {allowed}: {role.reason}")
    if options.get("wrapper") and not isgeneratorfunction(_function(value)):
        raise PluginError(f"{name} of {who} is marked wrapper=True and does not yield: it must do so once")


def _instead(role: Role) -> str:
    return "; a wrapper is marked wrapper=True" if "wrapper" in role.options else f": {role.reason}"


def _arguments(value: Any, in_class: bool) -> list[str]:
    """What pluggy would pass to an implementation."""
    parameters = list(signature(_function(value)).parameters.values())
    bound = in_class and not isinstance(value, staticmethod) and not hasattr(value, "__self__")
    given = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    # `bound` leaves out `self`. pluggy passes nothing for an argument that has a default.
    return [p.name for p in parameters[bound:] if p.kind in given and p.default is Parameter.empty]


def _has_namespace(implementation: object) -> bool:
    return isinstance(implementation, type) or type(implementation).__name__ == "module"


def _function(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value
