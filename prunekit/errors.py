"""What can go wrong, and where: every error that prunekit raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class PrunekitError(Exception):
    """The root of every error that prunekit raises on purpose."""


class PluginError(PrunekitError):
    """A plugin can't be found, imported or used; the message names its distribution."""


class StateError(PrunekitError):
    """A saved state does not fit the scheduler that was asked to load it."""


class ApplicationError(PrunekitError):
    """An application that can't be trained: which part of it, what that is or gave, and what would be right.

    >>> print(ApplicationError("loss", "must give a scalar, got a tensor of shape (4,)", "app.py:7"))
    app.py:7: application: loss: must give a scalar, got a tensor of shape (4,)

    Attributes:
        part: the attribute of `Application`.
        message: what is wrong with it.
        place: `file:line` of its code, where that is known.
        application: what it is called.
    """

    def __init__(self, part: str, message: str, place: str = "") -> None:
        super().__init__(part, message, place)
        self.part, self.message, self.place, self.application = part, message, place, "application"

    def __str__(self) -> str:
        return ": ".join(text for text in (self.place, self.application, self.part, self.message) if text)


class ArgumentError(PrunekitError, ValueError):
    """A constructor argument that its type allows and its meaning does not.

    Raised by a component's constructor or yielded by its `check`; prunekit reports it at the line
    of `key` in the schedule. A dotted way into the value goes in as further keys.

    >>> str(ArgumentError("final_sparsity", message="must be above initial_sparsity 0.5, got 0.3"))
    'final_sparsity: must be above initial_sparsity 0.5, got 0.3'
    """

    def __init__(self, *keys: str | int, message: str) -> None:
        super().__init__(f"{dotted(keys)}: {message}" if keys else message)
        self.keys = keys
        self.message = message


@dataclass(frozen=True)
class Position:
    """A place in a file; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a schedule: where, on which key, what, and what would be right."""

    position: Position
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.position), self.path, self.message) if part)


class ScheduleError(PrunekitError):
    """A schedule that can't be used, with every problem found in it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.position.line or 0, p.position.column or 0)))
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Iterable[str | int]) -> str:
    """A path into a schedule as text.

    >>> dotted(("policies", 0, "pruner"))
    'policies[0].pruner'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def nearest(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known words that are spelled most like a word, the likest first; none where none comes near it.

    >>> nearest("pruner", ["pruners", "policies"])
    ['pruners']
    """
    # Reversed, so that of names that differ by case alone the first stays.
    folded = {name.lower(): name for name in sorted(set(known), reverse=True)}
    return [folded[name] for name in get_close_matches(word.lower(), folded, n=most, cutoff=0.6)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: its nearest neighbour, or all that is known.

    >>> did_you_mean("pruner", ["pruners", "policies"])
    "; did you mean 'pruners'?"
    """
    names = sorted(set(known))
    for name in nearest(word, names):
        return f"; did you mean {name!r}?"
    shown = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    return f"; known are {shown}" if names else ""


def shortened(value: object, most: int = 60) -> str:
    """A value as text that fits into a message, on one line: a module's or a tensor's own text has many.

    >>> shortened("a" * 100, most=10)
    "'aaaaaa..."
    """
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= most else f"{text[: most - 3]}..."
