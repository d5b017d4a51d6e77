"""Spellings of events: a loop that was written for Distiller keeps its calls; what fits no event is told why."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from prunekit.errors import PrunekitError, did_you_mean, shortened
from prunekit.model.optimizer import is_optimizer

P = ParamSpec("P")
R = TypeVar("R")

METRICS = "on_epoch_end(epoch, optimizer, metrics=…)"
_ELSEWHERE = {"metrics": f"; an epoch that has ended has metrics: {METRICS}"}
"""Keywords that a loop may give to the wrong event: where they belong."""


def also_spelled(**older: str | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """An event that takes older keywords too; type checkers, `help()` and the documentation know today's alone.

    Args:
        older: the older keyword -> today's; None for one that has become needless, whatever its value.
    """

    def decorate(event: Callable[P, R]) -> Callable[P, R]:
        call: Callable[..., R] = event
        _, *known = inspect.signature(event).parameters

        @functools.wraps(event)
        def spelled(*arguments: P.args, **keywords: P.kwargs) -> R:
            # Four events in each mini-batch: one that is called by position alone pays for nothing but this line.
            return call(*arguments, **_today(event.__name__, known, older, keywords)) if keywords else call(*arguments)

        return spelled

    return decorate


def must_be_optimizer(value: object) -> None:
    """Whether what stands in an optimizer's place may be one.

    Raises:
        PrunekitError: it is something else, such as the metrics of an epoch.
    """
    if is_optimizer(value):
        return
    hint = f"; metrics are given by name: {METRICS}" if isinstance(value, Mapping) else ""
    raise PrunekitError(f"an optimizer belongs where {shortened(value)} is given{hint}")


def must_be_metrics(value: object) -> None:
    """Whether what stands in the metrics' place may be metrics.

    Raises:
        PrunekitError: it is something else, such as an optimizer, or a number without a name.
    """
    if value is not None and not isinstance(value, Mapping):
        given = f"the optimizer {type(value).__name__}" if hasattr(value, "step") else shortened(value)
        raise PrunekitError(
            f"metrics belong where {given} is given, such as {{'min': loss, 'max': accuracy}}: {METRICS}"
        )


def _today(
    event: str, known: Sequence[str], older: Mapping[str, str | None], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords of a call as the event names them."""
    keywords: dict[str, Any] = {}
    for name, value in given.items():
        today = older.get(name, name)
        if today is None:
            continue
        if today not in known:
            raise PrunekitError(f"{event} takes no {name!r}{_ELSEWHERE.get(name) or did_you_mean(name, known)}")
        if today in keywords:
            raise PrunekitError(f"{event} is given {today!r} twice: {' and '.join(map(repr, _names(today, older)))}")
        keywords[today] = value
    return keywords


def _names(today: str, older: Mapping[str, str | None]) -> list[str]:
    """All names of one argument."""
    return [today, *(name for name, new in older.items() if new == today)]
