"""Everything that is wrong with a schedule, gathered: nothing is said twice, and nothing stops at the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from prunekit.errors import ArgumentError, Problem
from prunekit.schedule.yaml_source import Path_, Source


@dataclass
class Problems:
    """What is wrong with a schedule, and what in it has no effect.

    Attributes:
        source: knows where each path into the schedule stands.
        errors: with any of these the schedule can't be used.
        warnings: what is allowed and probably not meant.
    """

    source: Source
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def add(self, path: Path_, message: str, *, key: bool = False) -> None:
        """Something is wrong at a path: at its value, or (`key`) where its last key itself stands."""
        problem = self.source.problem(path, message, key=key)
        # A component is checked once for each of its policies.
        if problem not in self.errors:
            self.errors.append(problem)

    def warn(self, path: Path_, message: str) -> None:
        """A key has no effect."""
        self.warnings.append(self.source.problem(path, message, key=True))

    def refuse(
        self, errors: Iterable[ArgumentError], place: Callable[[Path_], Path_], known: Collection[str] | None = None
    ) -> bool:
        """Say what is wrong with some arguments, and whether anything is.

        Args:
            errors: each with the keys that lead to what is wrong.
            place: those keys -> a path into the schedule.
            known: the arguments that there are: of an unknown one the key is wrong, whatever its value; None where all
                are known.
        """
        refused = False
        for error in errors:
            unknown = known is not None and len(error.keys) == 1 and error.keys[0] not in known
            self.add(place(error.keys), error.message, key=unknown)
            refused = True
        return refused


def text_of(error: BaseException) -> str:
    """An exception in a message."""
    return f"{type(error).__name__}: {error}"
