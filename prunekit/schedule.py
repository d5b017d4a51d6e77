"""YAML, a dict or Python objects -> frozen Schedule data; nothing is imported or built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from prunekit.components import SECTIONS, Kind
from prunekit.errors import ArgumentError, Problem, ScheduleError, did_you_mean
from prunekit.progress import Window
from prunekit.source import Source, dump, plain

VERSION = 1
"""The version of the schedule language that this prunekit reads."""
_WINDOW_KEYS = ("starting_epoch", "ending_epoch", "frequency")
_TOP_KEYS = ("version", *SECTIONS, "policies")
_KINDS = tuple(SECTIONS.values())
_COMPONENT_KEYS = ("instance_name", "args")
_WITH_ARGS = ("pruner", "regularizer")


@dataclass(frozen=True)
class ComponentSpec:
    """A component to build: a named entry in one of the schedule's sections.

    `class_` is the registered name, `distribution:name` where several offer it, or, from Python, a class itself.
    """

    kind: Kind
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
        return next(section for section, kind in SECTIONS.items() if kind == self.kind)

    @property
    def path(self) -> tuple[str, str]:
        """Its place in the schedule."""
        return self.section, self.name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ComponentSpec):
            return NotImplemented
        return (self.kind, self.name, self.class_name) == (other.kind, other.name, other.class_name) and (
            plain(self.args) == plain(other.args)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class PolicySpec:
    """One component and its window of epochs; `place` is its index in the list that it was read from."""

    kind: Kind
    instance_name: str
    window: Window
    args: Mapping[str, Any] = field(default_factory=dict)
    place: int = -1

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    def __eq__(self, other: object) -> bool:
        return _policy_dict(self) == _policy_dict(other) if isinstance(other, PolicySpec) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Schedule:
    """What to do to a network, and when.

    Of a text that could be read in part, `unread` says what is wrong with the rest, and `spoilt` are policies without a
    usable window, kept to check what else they say.

    Written back with `to_yaml` and read again it is equal. Positions of errors come from `source`.
    """

    components: Sequence[ComponentSpec]
    policies: Sequence[PolicySpec]
    source: Source = field(default_factory=lambda: Source("<python>"), compare=False, repr=False)
    unread: Sequence[Problem] = field(default=(), compare=False, repr=False)
    spoilt: Sequence[PolicySpec] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.components, key=lambda spec: _KINDS.index(spec.kind))
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
        data["policies"] = [_policy_dict(policy) for policy in self.policies]
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
        say, found = self.source.problem, list(self.unread)
        seen: set[tuple[str, str]] = set()
        for spec in self.components:
            if (spec.kind, spec.name) in seen:
                found.append(say(spec.path, f"two components of kind {spec.kind} are called {spec.name!r}"))
            seen.add((spec.kind, spec.name))
        for policy in (*self.policies, *self.spoilt):
            section = next(section for section, kind in SECTIONS.items() if kind == policy.kind)
            names = {name for kind, name in seen if kind == policy.kind} | self._named_in(section)
            if policy.instance_name not in names and not self._is_spoilt(section):
                path = ("policies", policy.place, policy.kind, "instance_name")
                hint = did_you_mean(policy.instance_name, names) or f"; the section {section} is empty"
                found.append(say(path, f"no {policy.kind} is called {policy.instance_name!r}{hint}"))
        return found

    def _named_in(self, section: str) -> set[str]:
        """The names in a section of the source, those included whose entry could not be understood."""
        data = self.source.data.get(section) if isinstance(self.source.data, dict) else None
        return set(data) if isinstance(data, dict) else set()

    def _is_spoilt(self, section: str) -> bool:
        data = self.source.data.get(section) if isinstance(self.source.data, dict) else None
        return data is not None and not isinstance(data, dict)

    def warnings(self) -> list[Problem]:
        """What is allowed and probably not meant: no version, components that no policy uses."""
        used = {(policy.kind, policy.instance_name) for policy in (*self.policies, *self.spoilt)}
        found = [
            self.source.problem(spec.path, f"no policy uses the {spec.kind} {spec.name!r}")
            for spec in self.components
            if (spec.kind, spec.name) not in used
        ]
        if isinstance(self.source.data, dict) and "version" not in self.source.data:
            found.append(self.source.problem((), f"no version is given; {VERSION} is assumed"))
        if not self.policies:
            found.append(self.source.problem(("policies",), "no policy: this schedule does nothing"))
        return found


def parse(source: Source) -> Schedule:
    """All of a schedule that can be understood; its `problems()` say what is wrong with the rest."""
    if source.data is None and source.problems:
        return Schedule((), (), source, tuple(source.problems))
    parser = _Parser(source)
    components, policies = parser.top()
    return Schedule(components, policies, source, (*source.problems, *parser.problems), tuple(parser.spoilt))


def _policy_dict(policy: PolicySpec) -> dict[str, Any]:
    component: dict[str, Any] = {"instance_name": policy.instance_name}
    if policy.args:
        component["args"] = plain(policy.args)
    window = policy.window
    if window.epochs is not None:
        return {policy.kind: component, "epochs": list(window.epochs)}
    return {policy.kind: component, **{key: getattr(window, key) for key in _WINDOW_KEYS}}


def _check_kind(kind: str) -> None:
    if kind not in _KINDS:
        raise ArgumentError("kind", message=f"there is no kind {kind!r}{did_you_mean(kind, _KINDS)}")


class _Parser:
    """Walks the data once; what it can't use it says and leaves out."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.spoilt: list[PolicySpec] = []

    def top(self) -> tuple[list[ComponentSpec], list[PolicySpec]]:
        data = self.mapping(self.source.data, (), "a schedule")
        self.only(data, _TOP_KEYS, ())
        version = data.get("version", VERSION)
        if type(version) is not int or version != VERSION:
            self.say(("version",), f"this prunekit reads version {VERSION} of the schedule language, got {version!r}")
        if isinstance(self.source.data, dict) and "policies" not in data:
            self.say((), "'policies' is missing: a schedule without policies never does anything")
        sections = [(section, kind) for section, kind in SECTIONS.items() if data.get(section) is not None]
        components = [spec for section, kind in sections for spec in self.section(data[section], section, kind)]
        return components, list(self.policies(data.get("policies")))

    def section(self, data: Any, section: str, kind: Kind) -> Iterator[ComponentSpec]:
        for name, entry in self.mapping(data, (section,), f"the section {section}").items():
            path = (section, name)
            args = self.mapping(entry, path, f"the {kind} {name!r}")
            class_ = args.get("class")
            if isinstance(class_, str) and class_:
                yield ComponentSpec(kind, name, class_, {k: v for k, v in args.items() if k != "class"})
            elif "class" in args:
                self.say((*path, "class"), f"must be the name of a {kind} class, got {_short(class_)}")
            elif isinstance(entry, dict):
                self.say(path, f"the {kind} {name!r} has no 'class'{_instead('class', args)}")

    def policies(self, data: Any) -> Iterator[PolicySpec]:
        if data is None:
            return
        if not isinstance(data, list):
            self.say(("policies",), f"policies must be a list, got {_kind_of(data)}")
            return
        for index, entry in enumerate(data):
            policy = self.policy(entry, ("policies", index))
            if policy is not None:
                yield policy

    def policy(self, data: Any, path: tuple[str | int, ...]) -> PolicySpec | None:
        if not isinstance(data, dict):
            self.say(path, f"a policy must be a mapping, got {_kind_of(data)}")
            return None
        self.only(data, (*_KINDS, *_WINDOW_KEYS, "epochs"), path)
        window = self.window(data, path)
        kinds = [kind for kind in _KINDS if kind in data]
        if len(kinds) != 1:
            strange = [key for key in data if key not in (*_WINDOW_KEYS, "epochs")]
            if kinds or not any(_is_like(kind, strange) for kind in _KINDS):  # else that key has been reported
                got = " and ".join(kinds) or "none"
                self.say(path, f"a policy names exactly one of {', '.join(_KINDS)}; got {got}")
            return None
        kind = kinds[0]
        where = (*path, kind)
        component = self.mapping(data[kind], where, f"the policy's {kind}")
        if not isinstance(data[kind], dict):
            return None
        self.only(component, _COMPONENT_KEYS, where)
        given = component.get("args")
        args = self.mapping({} if given is None else given, (*where, "args"), "args")
        if args and kind not in _WITH_ARGS:
            self.say((*where, "args"), f"a policy of kind {kind} takes no args", key=True)
        name = component.get("instance_name")
        if not isinstance(name, str) or not name:
            got = f"must be a string, got {_short(name)}" if "instance_name" in component else "is missing"
            self.say((*where, "instance_name"), f"instance_name {got}")
            return None
        spec = PolicySpec(kind, name, window or Window(0, 1), args, place=int(path[-1]))
        if window is None:
            self.spoilt.append(spec)
        return None if window is None else spec

    def window(self, data: Mapping[str, Any], path: tuple[str | int, ...]) -> Window | None:
        given = [key for key in _WINDOW_KEYS if key in data]
        wrong = [key for key in given if type(data[key]) is not int]
        for key in wrong:
            self.say((*path, key), f"must be an integer, got {_short(data[key])}")
        if "epochs" in data:
            return self.listed(data["epochs"], given, path)
        missing = [key for key in ("starting_epoch", "ending_epoch") if key not in data]
        if missing:
            self.say(path, f"{' and '.join(map(repr, missing))} missing; a policy needs both, or 'epochs'")
        if wrong or missing:
            return None
        frequency = data.get("frequency", 1)
        if frequency < 1:
            self.say((*path, "frequency"), f"must be at least 1, got {frequency}")
        window = self.try_window(path, data["starting_epoch"], data["ending_epoch"], max(frequency, 1))
        return window if frequency >= 1 else None

    def listed(self, epochs: Any, given: list[str], path: tuple[str | int, ...]) -> Window | None:
        if given:
            self.say((*path, "epochs"), f"give either 'epochs' or {', '.join(map(repr, given))}, not both", key=True)
            return None
        if not isinstance(epochs, list) or any(type(epoch) is not int for epoch in epochs):
            self.say((*path, "epochs"), f"must be a list of integers, got {_short(epochs)}")
            return None
        return self.try_window((*path, "epochs"), epochs=epochs)

    def try_window(self, path: tuple[str | int, ...], *args: int, epochs: list[int] | None = None) -> Window | None:
        try:
            return Window(*args, epochs=epochs)
        except ValueError as error:
            self.say(path, str(error))
            return None

    def mapping(self, data: Any, path: tuple[str | int, ...], what: str) -> Mapping[str, Any]:
        if isinstance(data, dict):
            return cast(Mapping[str, Any], data)
        self.say(path, f"{what} must be a mapping, got {_kind_of(data)}")
        return {}

    def only(self, data: Mapping[str, Any], known: Iterable[str], path: tuple[str | int, ...]) -> None:
        for key in data:
            if key not in known:
                hint = _belongs(key, data, path) or did_you_mean(key, known)
                self.say((*path, key), f"unknown key {key!r}{hint}", key=True)

    def say(self, path: tuple[str | int, ...], message: str, *, key: bool = False) -> None:
        self.problems.append(self.source.problem(path, message, key=key))


def _kind_of(data: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing", str: f"the text {data!r}"}
    return names.get(type(data), repr(data))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _belongs(key: str, data: Mapping[str, Any], path: tuple[str | int, ...]) -> str:
    """The end of a message about a key of a policy that stands one level too high or too low."""
    depth = len(path) if path[:1] == ("policies",) else 0
    kind = next((kind for kind in _KINDS if kind in data), "the policy's kind")
    if depth == 2 and key in _COMPONENT_KEYS:
        return f"; it belongs one level deeper, below {kind!r}"
    if depth == 3 and key in (*_WINDOW_KEYS, "epochs"):
        return f"; it belongs one level up, beside {path[-1]!r}"
    return ""


def _is_like(word: str, keys: Iterable[str]) -> bool:
    return "did you mean" in did_you_mean(word, keys)


def _instead(word: str, keys: Iterable[str]) -> str:
    return next((f"; is it {key!r}?" for key in keys if _is_like(word, [key])), "")
