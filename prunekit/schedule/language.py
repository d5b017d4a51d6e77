"""The schedule language: plain data -> components and policies, and what in it can't be understood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from prunekit.components.kinds import KINDS, Kind
from prunekit.errors import Problem, did_you_mean, nearest, shortened
from prunekit.progress import Window
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.schedule.window_keys import WINDOW_KEYS, read_window
from prunekit.schedule.yaml_source import Source

VERSION = 1
"""The version of the schedule language that this prunekit reads."""
_TOP_KEYS = ("version", *(kind.section for kind in KINDS.values()), "policies")
_COMPONENT_KEYS = ("instance_name", "args")


class Reader:
    """Walks the data once; what it can't use it says and leaves out."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.without_window: list[PolicySpec] = []

    def top(self) -> tuple[list[ComponentSpec], list[PolicySpec]]:
        data = self.mapping(self.source.data, (), "a schedule")
        self.only(data, _TOP_KEYS, ())
        version = data.get("version", VERSION)
        # Not isinstance: `true` is an int to Python, and equal to 1.
        if type(version) is not int or version != VERSION:
            self.add_problem(
                ("version",), f"this prunekit reads version {VERSION} of the schedule language, got {version!r}"
            )
        if isinstance(self.source.data, dict) and "policies" not in data:
            self.add_problem((), "'policies' is missing: a schedule without policies never does anything")
        kinds = [kind for kind in KINDS.values() if data.get(kind.section) is not None]
        components = [spec for kind in kinds for spec in self.section(data[kind.section], kind)]
        return components, list(self.policies(data.get("policies")))

    def section(self, data: Any, kind: Kind) -> Iterator[ComponentSpec]:
        for name, entry in self.mapping(data, (kind.section,), f"the section {kind.section}").items():
            path = (kind.section, name)
            args = self.mapping(entry, path, f"the {kind} {name!r}")
            class_ = args.get("class")
            if isinstance(class_, str) and class_:
                yield ComponentSpec(kind.name, name, class_, {k: v for k, v in args.items() if k != "class"})
            elif "class" in args:
                self.add_problem((*path, "class"), f"must be the name of a {kind} class, got {shortened(class_)}")
            elif isinstance(entry, dict):
                self.add_problem(path, f"the {kind} {name!r} has no 'class'{_instead('class', args)}")

    def policies(self, data: Any) -> Iterator[PolicySpec]:
        if data is None:
            return
        if not isinstance(data, list):
            self.add_problem(("policies",), f"policies must be a list, got {_kind_of(data)}")
            return
        for index, entry in enumerate(data):
            policy = self.policy(entry, ("policies", index))
            if policy is not None:
                yield policy

    def policy(self, data: Any, path: tuple[str | int, ...]) -> PolicySpec | None:
        if not isinstance(data, dict):
            self.add_problem(path, f"a policy must be a mapping, got {_kind_of(data)}")
            return None
        self.only(data, (*KINDS, *WINDOW_KEYS), path)
        window = read_window(data, path, self.add_problem)
        kinds = [kind for kind in KINDS if kind in data]
        if len(kinds) != 1:
            strange = [key for key in data if key not in WINDOW_KEYS]
            if kinds or not any(nearest(kind, strange) for kind in KINDS):  # else that key has been reported
                got = " and ".join(kinds) or "none"
                self.add_problem(path, f"a policy names exactly one of {', '.join(KINDS)}; got {got}")
            return None
        kind = kinds[0]
        where = (*path, kind)
        component = self.mapping(data[kind], where, f"the policy's {kind}")
        if not isinstance(data[kind], dict):
            return None
        self.only(component, _COMPONENT_KEYS, where)
        given = component.get("args")
        args = self.mapping({} if given is None else given, (*where, "args"), "args")
        if args and KINDS[kind].arguments is None:
            self.add_problem((*where, "args"), f"a policy of kind {kind} takes no args", key=True)
        name = component.get("instance_name")
        if not isinstance(name, str) or not name:
            got = f"must be a string, got {shortened(name)}" if "instance_name" in component else "is missing"
            self.add_problem((*where, "instance_name"), f"instance_name {got}")
            return None
        # Where the window is unusable any other stands in for it, so that what else the policy says is checked.
        spec = PolicySpec(kind, name, window or Window(0, 1), args, place=int(path[-1]))
        if window is None:
            self.without_window.append(spec)
        return None if window is None else spec

    def mapping(self, data: Any, path: tuple[str | int, ...], what: str) -> Mapping[str, Any]:
        if isinstance(data, dict):
            return cast(Mapping[str, Any], data)
        self.add_problem(path, f"{what} must be a mapping, got {_kind_of(data)}")
        return {}

    def only(self, data: Mapping[str, Any], known: Iterable[str], path: tuple[str | int, ...]) -> None:
        for key in data:
            if key not in known:
                hint = _belongs(key, data, path) or did_you_mean(key, known)
                self.add_problem((*path, key), f"unknown key {key!r}{hint}", key=True)

    def add_problem(self, path: tuple[str | int, ...], message: str, *, key: bool = False) -> None:
        self.problems.append(self.source.problem(path, message, key=key))


def _kind_of(data: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing", str: f"the text {data!r}"}
    return names.get(type(data), repr(data))


def _belongs(key: str, data: Mapping[str, Any], path: tuple[str | int, ...]) -> str:
    """The end of a message about a key of a policy that stands one level too high or too low."""
    depth = len(path) if path[:1] == ("policies",) else 0
    kind = next((kind for kind in KINDS if kind in data), "the policy's kind")
    if depth == 2 and key in _COMPONENT_KEYS:
        return f"; it belongs one level deeper, below {kind!r}"
    if depth == 3 and key in WINDOW_KEYS:
        return f"; it belongs one level up, beside {path[-1]!r}"
    return ""


def _instead(word: str, keys: Iterable[str]) -> str:
    return next((f"; is it {key!r}?" for key in nearest(word, keys)), "")
