"""Components that are only known at run time: every listener is asked for them, through pluggy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from prunekit.errors import PluginError, shortened
from prunekit.hookspecs import hookimpl
from prunekit.plugins.hooks import Namespace, create_manager
from prunekit.plugins.listeners import Listener
from prunekit.plugins.registry import Found


@dataclass(frozen=True)
class _Offered:
    """What a listener returned, or why that can't be used."""

    listener: Listener
    value: Any = None
    error: Exception | None = None


class RunTimeComponents:
    """What listeners offer where no entry point does: `find_component`, `list_components`."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = tuple(listeners)
        self._manager = create_manager()
        for listener in reversed(self._listeners):  # pluggy calls the last registered first
            self._manager.register(Namespace(**_hooks(listener)))

    def plus(self, listeners: Iterable[Listener]) -> RunTimeComponents:
        """The same, and what further listeners offer."""
        return RunTimeComponents([*self._listeners, *listeners])

    def find(self, kind: str, name: str) -> list[Found]:
        """The classes that listeners offer under a name: two of them are an error for who asks.

        Raises:
            PluginError: nobody offers one, and somebody failed over it.
        """
        offered: list[_Offered] = self._manager.hook.find_component(kind=kind, name=name)
        wrong = [each for each in offered if each.error is not None]
        if wrong and len(wrong) == len(offered):
            told = "; ".join(f"find_component of {_what_failed(each)}" for each in wrong)
            raise PluginError(f"no {kind} {name!r}: {told}") from wrong[0].error
        return [
            Found(each.value, each.listener.distribution, each.listener.version, each.listener.module)
            for each in offered
            if each.error is None
        ]

    def names(self, kind: str) -> list[str]:
        """The names that listeners know for a kind; who fails over it has none."""
        offered: list[_Offered] = self._manager.hook.list_components(kind=kind)
        return [name for each in offered if each.error is None for name in each.value]

    def must_list(self, kind: str) -> None:
        """Whether all listeners can say which names they know.

        Raises:
            PluginError: one failed over it.
        """
        for each in self._manager.hook.list_components(kind=kind):
            if each.error is not None:
                raise PluginError(f"list_components of {_what_failed(each)}") from each.error


class _WrongResultError(PluginError):
    """An implementation has returned something else than it should have."""


def _hooks(listener: Listener) -> dict[str, Callable[..., Any]]:
    """Its hooks that offer components. Only who has some is made: a class may open a file when it is."""
    if not _EXPECTED.keys() & listener.hook_names:
        return {}
    hooks = listener.implementations().hooks
    return {name: hookimpl(_asked(hooks[name], name, listener)) for name in _EXPECTED if name in hooks}


def _asked(function: Callable[..., Any], hook: str, listener: Listener) -> Callable[..., Any]:
    """The implementation, which says whose result it is, and disturbs nobody else where it fails."""

    @functools.wraps(function)
    def run(*arguments: Any, **optional: Any) -> _Offered | None:
        try:
            value = function(*arguments, **optional)
            return None if value is None else _Offered(listener, _EXPECTED[hook](value))
        except Exception as error:
            error.add_note(f"raised in {hook} by {listener.origin}")
            return _Offered(listener, error=error)

    return run


def _class(value: object) -> type:
    if not isinstance(value, type):
        raise _WrongResultError(f"returned {shortened(value)}, not a class")
    return value


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        names = tuple(value)  # it may be a generator
        if all(isinstance(name, str) for name in names):
            return names
    raise _WrongResultError(f"returned {shortened(value)}, not the names of components")


_EXPECTED: dict[str, Callable[[object], Any]] = {"find_component": _class, "list_components": _names}


def _what_failed(offered: _Offered) -> str:
    error, listener = offered.error, offered.listener
    what = str(error) if isinstance(error, _WrongResultError) else f"failed: {type(error).__name__}: {error}"
    return f"{listener.distribution} {listener.version} {what}"
