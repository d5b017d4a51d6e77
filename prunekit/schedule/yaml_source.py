"""A YAML text as plain data, with the position of every node and everything that PyYAML would pass over in silence.

Scalars follow YAML 1.2's core schema: `2e-6` is a number, `on` and `1:30` are strings. Keys are strings as written.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import Position, Problem, dotted

Path_ = tuple[str | int, ...]
"""Keys and indices from the top of a schedule to one of its nodes."""

_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_CORE = [
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"<<", "<"),
]
_PATTERNS = {name: re.compile(rf"(?:{pattern})\Z") for name, pattern, _ in _CORE}
_MOST_NODES = 100_000
_MOST_DIGITS = 300
_DEEPEST = 100


class _CoreResolver(yaml.resolver.BaseResolver):
    """YAML 1.2's core schema, and merge keys."""


for _name, _, _first in _CORE:
    # PyYAML asks by a scalar's first character, and by "" where there is none.
    _CoreResolver.add_implicit_resolver(_TAG + _name, _PATTERNS[_name], [*_first, ""])


# Without a constructor: `_Reader` makes the data, knows where it stands, and runs nothing.
class _Loader(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, _CoreResolver):
    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        _CoreResolver.__init__(self)


class _Dumper(yaml.emitter.Emitter, yaml.serializer.Serializer, yaml.representer.SafeRepresenter, _CoreResolver):
    def __init__(self, stream: Any) -> None:
        yaml.emitter.Emitter.__init__(self, stream, allow_unicode=True, width=100)
        yaml.serializer.Serializer.__init__(self)
        yaml.representer.SafeRepresenter.__init__(self, sort_keys=False, default_flow_style=False)
        _CoreResolver.__init__(self)

    def ignore_aliases(self, data: Any) -> bool:
        # Else two equal parts that happen to be one object would be written as an anchor and an alias.
        return True

    def represent_text(self, text: str) -> yaml.Node:
        # Line breaks of YAML 1.1 that PyYAML would not read back out of single quotes.
        style = '"' if any(letter in text for letter in "\x85\u2028\u2029") else None
        return self.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass
class Source:
    """Plain data (dicts, lists, strings, numbers, booleans, None), where it stands, and what is wrong with the YAML."""

    name: str
    data: Any = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)  # keys that stand twice with equal values
    _root: yaml.Node | None = None
    _start: Position | None = None
    _children: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: str | Path) -> Source:
        """Read a YAML file.

        Raises:
            OSError: it can't be read.
        """
        data = Path(path).read_bytes()
        try:
            # A byte order mark is no part of the text.
            return cls.from_text(data.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            before = data[: error.start].decode("utf-8", "replace")
            return cls(str(path), problems=[Problem(_end(str(path), before), "", f"not UTF-8: {error.reason}")])

    @classmethod
    def from_text(cls, text: str, name: str = "<yaml>") -> Source:
        """Read YAML; `name` stands for the file in positions."""
        source = cls(name, _start=Position(name, 1, 1))
        try:
            source._root = _Loader(text).get_single_node()
            if source._root is not None:
                _Reader(source).read()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = ": ".join(part for part in (error.context, error.problem) if part)
            hint = "; indent and separate with spaces" if "'\\t'" in what else ""
            source._refuse(_position(name, mark), (), f"not YAML: {what}{hint}")
        except yaml.reader.ReaderError as error:
            source._refuse(_end(name, text[: error.position]), (), f"not YAML: {error.reason}")
        except RecursionError:
            source._refuse(Position(name, 1, 1), (), "nested too deeply")
        except (ValueError, OverflowError) as error:
            source._refuse(Position(name, 1, 1), (), f"not YAML: {error}")
        return source

    @classmethod
    def from_data(cls, data: Any, name: str = "<dict>") -> Source:
        """Take plain data as it is (copied; keys become strings, tuples lists)."""
        source = cls(name)
        try:
            source.data = plain(data)
            if _height(source.data) > _DEEPEST:
                source._refuse(Position(name), (), f"nested more than {_DEEPEST} deep")
        except RecursionError:
            source._refuse(Position(name), (), "nested too deeply, or within itself")
        return source

    def locate(self, path: Sequence[str | int], *, key: bool = False) -> Position:
        """Where the value at `path` stands (or its key); of a path that ends in nothing, its last part that exists."""
        node, found = self._root, self._root
        for index, part in enumerate(path):
            step = self._child(node, part)
            if step is None:
                break
            key_node, node = step
            found = key_node if key and index == len(path) - 1 else node
        if found is None:
            return self._start or Position(self.name)
        return _position(self.name, found.start_mark)

    def problem(self, path: Sequence[str | int], message: str, *, key: bool = False) -> Problem:
        """Something wrong at `path`."""
        return Problem(self.locate(path, key=key), dotted(path), message)

    def _child(self, node: Any, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
            return node.value[part], node.value[part]
        return self._children.get(id(node), {}).get(str(part))

    def _refuse(self, position: Position, path: Path_, message: str) -> None:
        self.data = None
        self.problems.append(Problem(position, dotted(path), message))


class _Reader:
    """Nodes -> data, and where each key's node is. A node is read once, however many aliases it has."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.done: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.heights: dict[int, int] = {}
        self.open: set[int] = set()

    def read(self) -> None:
        root: Any = self.source._root
        data = self.value(root, ())
        # Counted with every alias written out, before anything is: a few lines may mean a billion nodes.
        if self.sizes.get(id(root), 1) > _MOST_NODES:
            self.source._refuse(_position(self.source.name, root.start_mark), (), f"more than {_MOST_NODES} nodes")
        elif self.heights.get(id(root), 0) > _DEEPEST:
            self.source._refuse(_position(self.source.name, root.start_mark), (), f"nested more than {_DEEPEST} deep")
        else:
            self.source.data = plain(data)  # a copy for each alias: nothing is shared

    def value(self, node: Any, path: Path_) -> Any:
        if id(node) in self.open:
            self.add_problem(node, path, "an alias to something that it is part of")
            return None
        if id(node) not in self.done:
            self.open.add(id(node))
            self.done[id(node)] = self.new_value(node, path)
            self.open.discard(id(node))
        return self.done[id(node)]

    def new_value(self, node: Any, path: Path_) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag != _TAG + ("seq" if isinstance(node, yaml.SequenceNode) else "map"):
            self.refuse_tag(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
            self.count(node, node.value)
            return items
        return self.mapping(node, path)

    def mapping(self, node: Any, path: Path_) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        inherited: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.add_problem(key, path, "a key must be a plain word, not a list or a mapping")
            elif key.tag == _TAG + "merge":
                # Of several merges the first wins, and what the mapping says itself over all of them.
                merged = {**self.merged(child, path), **merged}
                inherited = {**self.inherited(child), **inherited}
            elif key.value in data:
                self.twice(key, child, own[key.value], (*path, key.value))
            else:
                self.key(key, (*path, key.value))
                own[key.value] = key, child
                data[key.value] = self.value(child, (*path, key.value))
        self.count(node, [child for _, child in node.value])
        # By id, which stays unique because `_root` keeps all nodes alive.
        self.source._children[id(node)] = {**inherited, **own}
        return {**merged, **data}

    def twice(self, key: Any, child: Any, first: tuple[yaml.Node, yaml.Node], path: Path_) -> None:
        """A key stands a second time: no harm where it says the same."""
        said, again = self.value(first[1], path), self.value(child, path)
        # What is too large is refused anyway, and writing it out might take all the memory there is.
        small = all(self.sizes.get(id(node), 1) <= _MOST_NODES for node in (first[1], child))
        equal = small and _as_text(said) == _as_text(again)
        what = f"the key {key.value!r} stands twice, with {'equal' if equal else 'different'} values"
        self.add_problem(key, path, f"{what}; the first is on line {first[0].start_mark.line + 1}", warning=equal)

    def merged(self, node: Any, path: Path_) -> dict[str, Any]:
        value = self.value(node, path)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self.add_problem(node, path, "'<<' merges mappings only")
            return {}
        # Reversed, so that the first of the mappings wins.
        return {key: item for part in reversed(parts) for key, item in part.items()}

    def inherited(self, node: Any) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return {key: step for part in reversed(parts) for key, step in self.source._children.get(id(part), {}).items()}

    def key(self, node: Any, path: Path_) -> None:
        if node.tag.removeprefix(_TAG) not in _SCALARS:
            self.refuse_tag(node, path)
        elif not _is_text(node.value):
            self.add_problem(node, path, f"{node.value!r} is no text: it has half a character in it")

    def scalar(self, node: Any, path: Path_) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind not in _SCALARS:
            self.refuse_tag(node, path)
        elif not _is_text(text):
            self.add_problem(node, path, f"{text[:40]!r} is no text: it has half a character in it")
        elif kind != "str" and not _PATTERNS[kind].match(text):
            self.add_problem(node, path, f"{text[:40]!r} is no {kind}")
        elif kind == "int" and len(text) > _MOST_DIGITS:
            self.add_problem(node, path, f"an int of more than {_MOST_DIGITS} digits")
        else:
            return _SCALARS[kind](text)
        return None

    def count(self, node: Any, children: Sequence[Any]) -> None:
        self.sizes[id(node)] = 1 + sum(self.sizes.get(id(child), 1) for child in children)
        self.heights[id(node)] = 1 + max((self.heights.get(id(child), 0) for child in children), default=0)

    def refuse_tag(self, node: Any, path: Path_) -> None:
        self.add_problem(node, path, f"the tag {node.tag!r} is not accepted: schedules are plain data")

    def add_problem(self, node: Any, path: Path_, message: str, warning: bool = False) -> None:
        said = self.source.warnings if warning else self.source.problems
        said.append(Problem(_position(self.source.name, node.start_mark), dotted(path), message))


def _as_text(data: Any) -> str:
    """To compare by: 1, 1.0 and true are three values, and the order of keys is none."""
    return json.dumps(data, sort_keys=True)


def _int(text: str) -> int:
    # `int(…, 0)` refuses `012`, which YAML 1.2 reads as 12.
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    # Python spells infinity and NaN without YAML's dot.
    return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": _float,
    "merge": str,
}


def _is_text(text: str) -> bool:
    # An escape such as "\ud800" is half of a pair, which no file can hold as UTF-8.
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _height(data: Any) -> int:
    if isinstance(data, dict | list):
        return 1 + max(map(_height, data.values() if isinstance(data, dict) else data), default=0)
    return 0


def _end(name: str, before: str) -> Position:
    return Position(name, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _position(name: str, mark: Any) -> Position:
    return Position(name, 1, 1) if mark is None else Position(name, mark.line + 1, mark.column + 1)


def plain(data: Any) -> Any:
    """A deep copy of mappings and sequences as dicts with string keys and lists; the rest as it is."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return data


def dump(data: Any) -> str:
    """Plain data as YAML that `Source.from_text` reads back equal.

    Raises:
        yaml.representer.RepresenterError: something in it is no plain data.
    """
    stream = io.StringIO()
    dumper = _Dumper(stream)
    dumper.open()
    dumper.represent(data)
    dumper.close()
    return stream.getvalue()
