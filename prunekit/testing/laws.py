"""What a law is, how one is broken, and what came of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from textwrap import indent
from traceback import extract_tb, format_list
from typing import TYPE_CHECKING

import pluggy

from prunekit.components.kinds import KINDS

if TYPE_CHECKING:
    from prunekit.testing.subject import Subject

_OURS = (Path(__file__).parents[1], Path(pluggy.__file__).parent)
PRUNER, REGULARIZER, QUANTIZER, LR_SCHEDULER, EXTENSION = COMPONENTS = tuple(KINDS)
LISTENER = "listener"
OWNERS = tuple(kind.name for kind in KINDS.values() if kind.owns_parameters)
ACTING = (*OWNERS, EXTENSION)


class Broken(Exception):
    """A law is broken: what it asks for, what was seen instead, and of an exception where it came from."""

    def __init__(self, expected: str, got: str, traceback: str = "") -> None:
        super().__init__(f"expected {expected}; got {got}")
        self.expected, self.got, self.traceback = expected, got, traceback


class NotApplicable(Exception):
    """A law has nothing to say about this component, and why."""


@dataclass(frozen=True)
class Law:
    """One sentence that holds for every component of some kinds, and the function that tries it.

    Where a `basic` one is broken, no other is tried: they would only say the same.

    `test` raises `Broken` or `NotApplicable`; any other exception is the component's, and breaks the law too.
    """

    name: str
    sentence: str
    kinds: tuple[str, ...]
    test: Callable[[Subject], None] = field(repr=False)
    basic: bool = False


def law(*kinds: str, basic: bool = False) -> Callable[[Callable[[Subject], None]], Law]:
    """Make a law of these kinds of a function; its name and its docstring are those of the law."""

    def make(test: Callable[[Subject], None]) -> Law:
        sentence = (test.__doc__ or "").partition("\n")[0].removesuffix(".")
        return Law(test.__name__, sentence, kinds, test, basic)

    return make


@dataclass(frozen=True)
class Failure:
    """A broken law, told so that it can be seen again in three lines; `traceback`: where it was raised."""

    law: Law
    expected: str
    got: str
    reproduction: tuple[str, ...]
    traceback: str = ""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.law.name}: {self.law.sentence}",
                f"  expected: {_hanging(self.expected)}",
                f"  got:      {_hanging(self.got)}",
                *([f"  raised at:\n{indent(self.traceback, '  ')}"] if self.traceback else []),
                f"  reproduce:\n{indent(chr(10).join(self.reproduction), '    ')}",
            ]
        )


@dataclass(frozen=True)
class Report:
    """What came of a check: the laws that were kept, those that are broken, and those that do not apply, with why."""

    component: str
    kept: tuple[str, ...]
    broken: tuple[Failure, ...]
    not_applicable: dict[str, str]


class LawsBroken(AssertionError):
    """A component breaks laws; `report` has each of them."""

    def __init__(self, report: Report) -> None:
        self.report = report
        tried = len(report.kept) + len(report.broken)
        head = f"{report.component} breaks {len(report.broken)} of {tried} laws"
        super().__init__("\n\n".join([head, *map(str, report.broken)]))


def must(holds: bool, expected: str, got: str) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(expected, got)


def traceback_of(error: BaseException) -> str:
    """Where an exception was raised, most recent call last, from the component's own code on; then its causes.

    The many frames by which prunekit comes there are left out, unless nothing else would be left.
    """
    frames = extract_tb(error.__traceback__)
    own = list(dropwhile(lambda frame: any(folder in Path(frame.filename).parents for folder in _OURS), frames))
    lines = "".join(format_list(own or frames)).rstrip()
    cause = error.__cause__
    return lines if cause is None else f"{lines}\ncaused by {type(cause).__name__}: {cause}\n{traceback_of(cause)}"


def listed(items: Iterable[object], most: int = 4) -> str:
    """Some of them as text."""
    words = list(map(str, items))
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _hanging(text: str) -> str:
    return text.replace("\n", "\n            ")
