"""A schedule: components and policies, read from YAML, a dict or Python objects; nothing is imported or built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunekit.components.kinds import KINDS
from prunekit.errors import Problem, ScheduleError, did_you_mean
from prunekit.schedule.language import VERSION, Reader
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.schedule.yaml_source import Source, dump, plain


@dataclass(frozen=True)
class Schedule:
    """What to do to a network, and when.

    Of a text that could be read in part, `language_problems` say what is wrong with the rest, and `without_window` are
    policies without a usable window, kept to check what else they say.

    Written back with `to_yaml` and read again it is equal. Positions of errors come from `source`.
    """

    components: Sequence[ComponentSpec]
    policies: Sequence[PolicySpec]
    source: Source = field(default_factory=lambda: Source("<python>"), compare=False, repr=False)
    language_problems: Sequence[Problem] = field(default=(), compare=False, repr=False)
    without_window: Sequence[PolicySpec] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        # As YAML has them, section by section, so that what is written and read again is equal.
        ordered = sorted(self.components, key=lambda spec: list(KINDS).index(spec.kind))
        placed = (p if p.place >= 0 else replace(p, place=index) for index, p in enumerate(self.policies))
        object.__setattr__(self, "components", tuple(ordered))
        object.__setattr__(self, "policies", tuple(placed))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Schedule:
        """Read a YAML file.

        Raises:
            ScheduleError: every problem in the schedule's own language, with file, line and column.
            OSError: the file can't be read.
        """
        return cls._from(Source.from_file(path))

    @classmethod
    def from_text(cls, text: str, name: str = "<yaml>") -> Schedule:
        """Read YAML from a string; `name` stands for the file in errors."""
        return cls._from(Source.from_text(text, name))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Take a dict of the YAML's shape; it is not changed."""
        return cls._from(Source.from_data(data))

    @classmethod
    def _from(cls, source: Source) -> Schedule:
        schedule = parse(source)
        if problems := schedule.problems():
            raise ScheduleError(problems)
        return schedule

    def component(self, kind: str, name: str) -> ComponentSpec | None:
        """The component of a kind by its instance name."""
        return next((spec for spec in self.components if (spec.kind, spec.name) == (kind, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as the dict that its YAML would load as."""
        data: dict[str, Any] = {"version": VERSION}
        for spec in self.components:
            data.setdefault(spec.section, {})[spec.name] = {"class": spec.class_name, **plain(spec.args)}
        data["policies"] = [policy.to_dict() for policy in self.policies]
        return data

    def to_yaml(self) -> str:
        """The schedule as YAML text."""
        return dump(self.to_dict())

    def scaled(self, factor: float) -> Schedule:
        """The schedule for a run that is `factor` times as long: every policy's window is scaled (`Window.scaled`).

        What components themselves say in epochs (an LR scheduler's `step_size`, say) stays as it is written.
        """
        policies = [replace(policy, window=policy.window.scaled(factor)) for policy in self.policies]
        return replace(self, policies=policies)

    def problems(self) -> list[Problem]:
        """What could not be read, and what does not hold together: policies without their component, one name twice."""
        problem_at, found = self.source.problem, list(self.language_problems)
        seen: set[tuple[str, str]] = set()
        for spec in self.components:
            if (spec.kind, spec.name) in seen:
                found.append(problem_at(spec.path, f"two components of kind {spec.kind} are called {spec.name!r}"))
            seen.add((spec.kind, spec.name))
        for policy in (*self.policies, *self.without_window):
            section = KINDS[policy.kind].section
            names = {name for kind, name in seen if kind == policy.kind} | self._names_in_source(section)
            if policy.instance_name not in names and not self._is_unreadable(section):
                path = ("policies", policy.place, policy.kind, "instance_name")
                hint = did_you_mean(policy.instance_name, names) or f"; the section {section} is empty"
                found.append(problem_at(path, f"no {policy.kind} is called {policy.instance_name!r}{hint}"))
        return found

    def _names_in_source(self, section: str) -> set[str]:
        """The names in a section of the source, those included whose entry could not be understood."""
        data = self.source.data.get(section) if isinstance(self.source.data, dict) else None
        return set(data) if isinstance(data, dict) else set()

    def _is_unreadable(self, section: str) -> bool:
        """Whether the source has something in place of a section, of which no name can be known."""
        data = self.source.data.get(section) if isinstance(self.source.data, dict) else None
        return data is not None and not isinstance(data, dict)

    def warnings(self) -> list[Problem]:
        """What is allowed and probably not meant: no version, components that no policy uses, equal keys and values."""
        found = [*self.source.warnings, *self._unused()]
        if isinstance(self.source.data, dict) and "version" not in self.source.data:
            found.append(self.source.problem((), f"no version is given; {VERSION} is assumed"))
        if not self.policies and not self._policies_in_source():
            found.append(self.source.problem(("policies",), "no policy: this schedule does nothing"))
        return found

    def _unused(self) -> list[Problem]:
        """A warning for each component that no policy uses, as far as policies could be understood."""
        policies = (*self.policies, *self.without_window)
        if len(self._policies_in_source()) > len(policies):
            return []
        used = {(policy.kind, policy.instance_name) for policy in policies}
        # A policy that names none which there is means one of them.
        unclear = {kind for kind, name in used if self.component(kind, name) is None}
        return [
            self.source.problem(spec.path, f"no policy uses the {spec.kind} {spec.name!r}")
            for spec in self.components
            if (spec.kind, spec.name) not in used and spec.kind not in unclear
        ]

    def _policies_in_source(self) -> Sequence[Any]:
        """The policies that the source has, those included that could not be understood."""
        data = self.source.data.get("policies") if isinstance(self.source.data, dict) else None
        return data if isinstance(data, list) else () if data is None else (data,)


def parse(source: Source) -> Schedule:
    """All of a schedule that can be understood; its `problems()` say what is wrong with the rest."""
    if source.data is None and source.problems:
        return Schedule((), (), source, tuple(source.problems))
    parser = Reader(source)
    components, policies = parser.top()
    return Schedule(components, policies, source, (*source.problems, *parser.problems), tuple(parser.without_window))
