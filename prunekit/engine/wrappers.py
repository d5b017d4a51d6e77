"""Implementations that wrap others (`wrapper=True`): blamed where they fail, traced where they change results."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from prunekit.components.origin import Origin, Result
from prunekit.errors import PluginError, shortened

_Wrapper = Callable[..., Generator[None, Any, Any]]


@dataclass(frozen=True)
class Watched:
    """A wrapper as the bus has it.

    Attributes:
        function: the plugin's own, a generator function that yields once.
        origin: whose it is.
        first_result: whether its hook has one result instead of a list.
        on_change: called with words for the results before and after where the wrapper has changed them.
        on_failure: called with what the wrapper itself has raised.
        on_return: called with the milliseconds that it took, without those of the others.
    """

    function: _Wrapper
    origin: Origin
    first_result: bool
    on_change: Callable[[list[str], list[str]], None]
    on_failure: Callable[[Exception], None]
    on_return: Callable[[float], None]

    def as_implementation(self) -> _Wrapper:
        """What pluggy drives in place of the plugin's function."""

        @functools.wraps(self.function)
        def run(*arguments: Any, **optional: Any) -> Generator[None, Any, Any]:
            failure: BaseException | None = None
            start = time.perf_counter_ns()
            try:
                generator = self.function(*arguments, **optional)
                _begin(generator)
                waiting = time.perf_counter_ns()
                try:
                    given = yield
                except BaseException as error:  # somebody else's, who is blamed already
                    failure, given = error, None
                start += time.perf_counter_ns() - waiting
                before = _as_list(given)
                seen = _fingerprint(before)
                after = self._checked(_end(generator, self._copy(given), failure), before)
            except Exception as error:
                # What another one raised came in through `throw` and may go out again: no failure of the wrapper.
                if error is not failure:
                    self.on_failure(error)
                raise
            self.on_return((time.perf_counter_ns() - start) / 1e6)
            if failure is not None or _fingerprint(after) != seen:
                self.on_change([_in_words(failure)] if failure else list(map(str, before)), list(map(str, after)))
            return (after[0] if after else None) if self.first_result else after

        return run

    def _copy(self, given: Any) -> Any:
        """A wrapper may change the list that it is given."""
        return given if self.first_result or given is None else list(given)

    def _checked(self, results: Any, before: Sequence[Result]) -> list[Result]:
        """What it returned; all that it has not left as it was is its own."""
        if not self.first_result and not isinstance(results, list | tuple):
            raise PluginError(f"a wrapper must return the list of results, got {shortened(results)}")
        # By identity: a result that the wrapper made is its own, though it be equal or name somebody else.
        known = {id(result) for result in before}
        return [
            item if id(item) in known else Result(self.origin, item.value if isinstance(item, Result) else item)
            for item in _as_list(results)
            if item is not None
        ]


def _begin(generator: Generator[None, Any, Any]) -> None:
    """All that comes before the others."""
    try:
        next(generator)
    except StopIteration:
        raise PluginError("a wrapper must yield once, and this one did not yield") from None


def _end(generator: Generator[None, Any, Any], results: Any, failure: BaseException | None) -> Any:
    """All that comes after the others, with their results or what one of them raised; what it returns."""
    try:
        generator.send(results) if failure is None else generator.throw(failure)
    except StopIteration as end:
        return end.value
    generator.close()
    raise PluginError("a wrapper must yield once, and this one yields twice")


def _as_list(results: Any) -> list[Any]:
    return [] if results is None else list(results) if isinstance(results, list | tuple) else [results]


def _in_words(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}"


def _fingerprint(value: Any) -> Any:
    """Equal for what is the same and has not been written to: tensors by identity and version, never by value."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, Mapping):
        return tuple((key, _fingerprint(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_fingerprint, value))
    if is_dataclass(value):
        return id(value), tuple(_fingerprint(getattr(value, field.name)) for field in fields(value))
    return id(value)
