"""What a law is, how one is broken, and what came of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from textwrap import indent
from typing import TYPE_CHECKING

from prunekit.components.kinds import KINDS

if TYPE_CHECKING:
    from prunekit.testing.subject import Subject

PRUNER, REGULARIZER, QUANTIZER, LR_SCHEDULER, EXTENSION = COMPONENTS = tuple(KINDS)
LISTENER = "listener"
OWNERS = tuple(kind.name for kind in KINDS.values() if kind.owns_parameters)
ACTING = (*OWNERS, EXTENSION)


class Broken(Exception):
    """A law is broken: what it asks for, and what was seen instead."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}; got {got}")
        self.expected, self.got = expected, got


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
    """A broken law, told so that it can be seen again in three lines."""

    law: Law
    expected: str
    got: str
    reproduction: tuple[str, ...]

    def __str__(self) -> str:
        lines = "\n".join(self.reproduction)
        return (
            f"{self.law.name}: {self.law.sentence}\n"
            f"  expected: {_hanging(self.expected)}\n"
            f"  got:      {_hanging(self.got)}\n"
            f"  reproduce:\n{indent(lines, '    ')}"
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


def listed(items: Iterable[object], most: int = 4) -> str:
    """Some of them as text."""
    words = list(map(str, items))
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _hanging(text: str) -> str:
    return text.replace("\n", "\n            ")
