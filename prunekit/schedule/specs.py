"""The parts of a schedule as frozen data: a component to build, a policy and its window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunekit.components.kinds import KINDS
from prunekit.errors import ArgumentError, did_you_mean
from prunekit.progress import Window
from prunekit.schedule.yaml_source import plain


@dataclass(frozen=True)
class ComponentSpec:
    """A component to build: a named entry in one of the schedule's sections.

    `class_` is the registered name, `distribution:name` where several offer it, or, from Python, a class itself.
    """

    kind: str
    name: str
    class_: str | type
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    @property
    def class_name(self) -> str:
        """The name that stands behind `class:`."""
        return self.class_ if isinstance(self.class_, str) else self.class_.__name__

    @property
    def section(self) -> str:
        """The section of its kind."""
        return KINDS[self.kind].section

    @property
    def path(self) -> tuple[str, str]:
        """Its place in the schedule."""
        return self.section, self.name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ComponentSpec):
            return NotImplemented
        # A class from Python is equal to its name: the same schedule read from YAML is the same.
        return (self.kind, self.name, self.class_name) == (other.kind, other.name, other.class_name) and (
            plain(self.args) == plain(other.args)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class PolicySpec:
    """One component and its window; `place` is its index in the list that it was read from."""

    kind: str
    instance_name: str
    window: Window
    args: Mapping[str, Any] = field(default_factory=dict)
    place: int = -1

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, PolicySpec) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The policy as the dict that its YAML would load as."""
        component: dict[str, Any] = {"instance_name": self.instance_name}
        if self.args:
            component["args"] = plain(self.args)
        return {self.kind: component, **self.window.to_dict()}


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ArgumentError("kind", message=f"there is no kind {kind!r}{did_you_mean(kind, KINDS)}")
