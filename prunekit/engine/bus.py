"""The event bus: fires an event at the hook implementations that are live, and says which one failed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pluggy

import prunekit.hookspecs as hookspecs
from prunekit.components.effects import Origin
from prunekit.plugins.listeners import Listener, create_manager, hook_names
from prunekit.progress import Progress
from prunekit.trace import Trace

_OPTIONS = f"{hookspecs.PROJECT}_impl"


@dataclass(frozen=True)
class Result:
    """What one hook implementation returned."""

    origin: Origin
    value: Any


@dataclass(eq=False)
class Participant:
    """Hook implementations that go on and off the bus together, and by whose hand they are."""

    origin: Origin
    hooks: Mapping[str, Callable[..., Any]]

    @classmethod
    def of(cls, implementation: object, origin: Origin) -> Participant:
        """All hooks that a plugin's object or module implements."""
        names = hook_names(implementation, str(origin))
        return cls(origin, {name: getattr(implementation, name) for name in names})


@dataclass
class EventBus:
    """One pluggy manager, its listeners, and the participants that are live now.

    Args:
        trace: where a line goes for each implementation that runs, and for each that fails.
        now: the moment of training, for those lines.
        listeners: on the bus for good, classes as instances of this bus alone; they run after the participants.
    """

    trace: Trace
    now: Callable[[], Progress]
    listeners: Sequence[Listener] = ()
    _manager: pluggy.PluginManager = field(default_factory=create_manager)
    _live: tuple[Participant, ...] = ()
    _callers: dict[str, pluggy.HookCaller] = field(default_factory=dict)
    _namespaces: dict[Participant, _Namespace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for listener in reversed(self.listeners):
            origin = Origin("", listener.name, listener.distribution, listener.version)
            self._manager.register(self._namespace(Participant.of(listener.instance(), origin)))
        self._find_callers()

    def set_live(self, participants: Iterable[Participant]) -> None:
        """From now on these participants run, in this order, and no others."""
        live = tuple(participants)
        if live == self._live:
            return
        for participant in self._live:
            self._manager.unregister(self._namespaces[participant])
        # pluggy calls the last registered first.
        for participant in reversed(live):
            self._manager.register(self._namespace(participant))
        self._live = live
        self._find_callers()

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
        return hook in self._callers

    def fire(self, hook: str, **arguments: Any) -> list[Result]:
        """Call every live implementation, in order.

        Raises:
            Exception: what an implementation raised, with a note that names hook, policy, plugin and version.
        """
        caller = self._callers.get(hook)
        results: list[Result] = caller(**arguments) if caller is not None else []
        return results

    def ask(self, hook: str, **arguments: Any) -> Result | None:
        """The first answer that is not None, of a hook whose first answer counts."""
        caller = self._callers.get(hook)
        return caller(**arguments) if caller is not None else None

    def _find_callers(self) -> None:
        callers = {name: getattr(self._manager.hook, name) for name in vars(self._manager.hook) if name[0] != "_"}
        self._callers = {name: caller for name, caller in callers.items() if caller.get_hookimpls()}

    def _namespace(self, participant: Participant) -> _Namespace:
        if participant not in self._namespaces:
            hooks = {name: self._watch(name, hook, participant.origin) for name, hook in participant.hooks.items()}
            self._namespaces[participant] = _Namespace(**hooks)
        return self._namespaces[participant]

    def _watch(self, hook: str, function: Callable[..., Any], origin: Origin) -> Callable[..., Any]:
        options = getattr(function, _OPTIONS, {})
        if options.get("wrapper") or options.get("hookwrapper"):
            return function  # a generator around the others: pluggy drives it

        @functools.wraps(function)
        def run(*arguments: Any) -> Result | None:
            start = time.perf_counter_ns() if self.trace.debug_on else 0
            try:
                value = function(*arguments)
            except Exception as error:
                self.blame(error, hook, origin)
                raise
            if start:
                ms = round((time.perf_counter_ns() - start) / 1e6, 3)
                self.trace.debug("hook ran", **self._where(hook, origin), ms=ms)
            return None if value is None else Result(origin, value)

        return run if options else hookspecs.hookimpl(run)

    def blame(self, error: Exception, hook: str, origin: Origin) -> None:
        """Say in the error and in the trace whose it is."""
        error.add_note(f"raised in {hook} by {origin}")
        where = self._where(hook, origin)
        self.trace.error("hook failed", **where, error=f"{type(error).__name__}: {error}", exc_info=error)

    def _where(self, hook: str, origin: Origin) -> dict[str, Any]:
        return {"hook": hook, **origin._asdict(), **self.now().trace_keys()}


class _Namespace:
    """What pluggy registers: attributes and nothing else, equal to nothing but itself."""

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        vars(self).update(hooks)
