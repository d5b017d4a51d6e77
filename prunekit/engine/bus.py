"""The event bus: fires an event at the hook implementations that are live, and says which one failed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pluggy

from prunekit.components.origin import Origin, Result
from prunekit.engine.wrappers import Watched
from prunekit.errors import PluginError, shortened
from prunekit.hookspecs import hookimpl, notification
from prunekit.plugins.hooks import HOOKS, Implementations, Namespace, create_manager, options_of
from prunekit.plugins.listeners import Listener
from prunekit.progress import Progress
from prunekit.trace import Trace

_KEPT = 32
"""So many sets of live implementations are kept ready."""


@dataclass
class EventBus:
    """Its listeners, and the implementations that are live now: what they are together is one pluggy manager.

    Args:
        trace: where a line goes for each implementation that runs, and for each that fails.
        now: the moment of training, for those lines.
        listeners: on the bus for good, classes as instances of this bus alone; they run after what is live.
    """

    trace: Trace
    now: Callable[[], Progress]
    listeners: Sequence[Listener] = ()
    _live: tuple[Implementations, ...] = ()
    callers: Mapping[str, pluggy.HookCaller] = field(default_factory=dict)
    _known: dict[tuple[Implementations, ...], Mapping[str, pluggy.HookCaller]] = field(default_factory=dict)
    _namespaces: dict[Implementations, Namespace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._always = [listener.implementations() for listener in self.listeners]
        self.callers = self._known[()] = self._made(())

    def set_live(self, implementations: Iterable[Implementations]) -> None:
        """From now on these run, in this order, and no others."""
        live = tuple(implementations)
        if live == self._live:
            return
        # Kept, because a window of steps may come and go with every few mini-batches, and making one takes long.
        if live not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[live] = self._made(live)
        self._live, self.callers = live, self._known[live]

    @contextmanager
    def listeners_only(self) -> Iterator[None]:
        """Whoever is live does not hear what is fired within."""
        live = self._live
        self.set_live(())
        try:
            yield
        finally:
            self.set_live(live)

    def hears(self, hook: str) -> bool:
        """Whether anybody implements the hook at this moment: nobody, and firing it costs nothing."""
        return hook in self.callers

    def live_in(self, hook: str) -> list[Origin]:
        """Whose implementations of a hook are live now, listeners left out."""
        return list(dict.fromkeys(live.origin for live in self._live if hook in live.hooks))

    def fire(self, hook: str, **arguments: Any) -> list[Result]:
        """Call every live implementation, in order.

        Raises:
            Exception: what an implementation raised, with a note that names hook, policy, plugin and version.
        """
        caller = self.callers.get(hook)
        results: list[Result] = caller(**arguments) if caller is not None else []
        return results

    def decide(self, hook: str, **arguments: Any) -> Result | None:
        """The first result that is not None, of a hook where that one counts."""
        caller = self.callers.get(hook)
        return caller(**arguments) if caller is not None else None

    def blame(self, error: Exception, hook: str, origin: Origin) -> None:
        """Say in the error and in the trace whose it is."""
        error.add_note(f"raised in {hook} by {origin}")
        where = self._where(hook, origin)
        self.trace.error("hook failed", **where, error=f"{type(error).__name__}: {error}", exc_info=error)

    def _made(self, live: tuple[Implementations, ...]) -> Mapping[str, pluggy.HookCaller]:
        """Who is called in each hook that anybody hears while these are live."""
        manager = create_manager()
        # In reverse: pluggy calls the last registered first, and listeners are to come last.
        for each in reversed([*live, *self._always]):
            manager.register(self._namespace(each))
        callers = {name: getattr(manager.hook, name) for name in HOOKS}
        return {name: caller for name, caller in callers.items() if caller.get_hookimpls()}

    def _namespace(self, implementations: Implementations) -> Namespace:
        # Kept, because pluggy unregisters the very object that it was given.
        if implementations not in self._namespaces:
            origin = implementations.origin
            hooks = {name: self._watched(name, hook, origin) for name, hook in implementations.hooks.items()}
            self._namespaces[implementations] = Namespace(**hooks)
        return self._namespaces[implementations]

    def _watched(self, hook: str, function: Callable[..., Any], origin: Origin) -> Callable[..., Any]:
        """What pluggy calls in place of an implementation: it leaves lines, and says whose result it is."""
        options = options_of(function)
        if options is not None and options["wrapper"]:
            return self._watched_wrapper(hook, function, origin)
        returns_nothing = HOOKS[hook] is notification

        # By `__wrapped__` pluggy sees which arguments the implementation takes, and passes no others.
        @functools.wraps(function)
        def run(*arguments: Any, **optional: Any) -> Result | None:
            start = time.perf_counter_ns() if self.trace.debug_on else 0
            try:
                value = function(*arguments, **optional)
                if returns_nothing and value is not None:
                    message = f"{hook} of {origin} returned {shortened(value)}; nothing is done with what it returns"
                    raise PluginError(message)
            except Exception as error:
                self.blame(error, hook, origin)
                raise
            if start:
                self._tell_ran(hook, origin, (time.perf_counter_ns() - start) / 1e6)
            return None if value is None else Result(origin, value)

        # `wraps` has copied a plugin's own mark; methods of policies have none.
        return run if options is not None else hookimpl(run)

    def _watched_wrapper(self, hook: str, function: Callable[..., Any], origin: Origin) -> Callable[..., Any]:
        return Watched(
            function,
            origin,
            HOOKS[hook].first_result,
            on_change=functools.partial(self._tell_change, hook, origin),
            on_failure=functools.partial(self.blame, hook=hook, origin=origin),
            on_return=functools.partial(self._tell_ran, hook, origin),
        ).as_implementation()

    def _tell_ran(self, hook: str, origin: Origin, ms: float) -> None:
        if self.trace.debug_on:
            self.trace.debug("hook ran", **self._where(hook, origin), ms=round(ms, 3))

    def _tell_change(self, hook: str, origin: Origin, were: list[str], became: list[str]) -> None:
        self.trace.info("results changed", **self._where(hook, origin), were=were, became=became)

    def _where(self, hook: str, origin: Origin) -> dict[str, Any]:
        return {"hook": hook, **origin._asdict(), **self.now().trace_keys()}
