"""YAML as plain data: YAML 1.2's scalars, every position, and nothing passed over in silence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers import TRICKY
from hypothesis import given, settings, strategies as st

from prunekit.errors import Position
from prunekit.schedule.yaml_source import Source, dump


def read(text: str) -> Any:
    """The data of a YAML text with nothing wrong in it."""
    source = Source.from_text(text)
    assert [str(problem) for problem in source.problems] == []
    return source.data


def complaints(text: str) -> list[str]:
    return [str(problem) for problem in Source.from_text(text, "f").problems]


# Scalars: what YAML 1.2's core schema says, which is not what PyYAML does


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[("2e-6", 2e-6), ("1e-4", 1e-4), ("1E5", 1e5), ("-1e+3", -1000.0), (".5e3", 500.0), ("1.", 1.0)],
        *[(".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf), ("1e400", math.inf)],
        *[("0777", 777), ("007", 7), ("0o17", 15), ("0x1F", 31), ("0xff", 255), ("+12", 12), ("-0", 0)],
        *[("-.5", -0.5), ("9" * 300, 10**300 - 1)],
        *[("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("Null", None)],
    ],
)  # fmt: skip
def test_a_plain_scalar_is_a_number_a_boolean_or_nothing(written: str, value: Any) -> None:
    got = read(f"a: {written}")["a"]
    assert (got, type(got)) == (value, type(value))


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(read("a: .NaN")["a"])


@pytest.mark.parametrize(
    "written",
    [
        *["on", "off", "yes", "no", "y", "N", "tRue", "nULL", "nan", "inf", "none", "None"],
        *["1:30", "190:20:30.15", "1_000", "0b101", "0o8", "0xZ", "-0o7", "1e", "e5", "1e5.0", "0x", "."],
        *["2020-01-01", "2001-12-14t21:59:43.10-05:00", "=", "<<", "1.2.3", "+", "--1"],
    ],
)
def test_any_other_plain_scalar_is_the_text_as_it_stands(written: str) -> None:
    assert read(f"a: {written}") == {"a": written}


@pytest.mark.parametrize("written", ["1", "1e-4", "true", "null", "~", "", ".inf", "0x1F", "<<", " a "])
def test_a_quoted_scalar_is_text(written: str) -> None:
    assert read(f"a: '{written}'\nb: \"{written}\"\n") == {"a": written, "b": written}


def test_keys_are_text_as_written() -> None:
    assert read("1: a\n1.50: b\nnull: c\non: d\n'': e\n0x1F: f\ntrue: g\n? |\n  two\n  lines\n: h\n") == {
        "1": "a",
        "1.50": "b",
        "null": "c",
        "on": "d",
        "": "e",
        "0x1F": "f",
        "true": "g",
        "two\nlines\n": "h",
    }


def test_standard_tags_are_taken_and_checked() -> None:
    assert read("[!!str 1, !!int '7', !!float 1, !!bool 'true', !!null '', !!map {}, !!seq [], !!str on]") == [
        *["1", 7, 1.0, True, None, {}, [], "on"]
    ]
    assert complaints("[!!int 0b1, !!float 0x1, !!bool yes, !!null x, !!int '', !!seq {}, !!map []]") == [
        "f:1:2: [0]: '0b1' is no int",
        "f:1:13: [1]: '0x1' is no float",
        "f:1:26: [2]: 'yes' is no bool",
        "f:1:38: [3]: 'x' is no null",
        "f:1:48: [4]: '' is no int",
        "f:1:58: [5]: the tag 'tag:yaml.org,2002:seq' is not accepted: schedules are plain data",
        "f:1:68: [6]: the tag 'tag:yaml.org,2002:map' is not accepted: schedules are plain data",
    ]


# Refused


@pytest.mark.parametrize(
    "tag",
    [
        *["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/object:object", "!!python/tuple"],
        *["!mine", "!<tag:example.org,2000:x>", "!!set", "!!omap", "!!binary", "!!timestamp", "!!value"],
    ],
)
@pytest.mark.parametrize("value", ["x", "[x]", "{x: 1}"])
def test_other_tags_are_refused_and_nothing_is_executed(tag: str, value: str) -> None:
    name = tag.replace("!!", "tag:yaml.org,2002:").replace("!<", "").rstrip(">")
    assert complaints(f"a: {tag} {value}") == [f"f:1:4: a: the tag {name!r} is not accepted: schedules are plain data"]


def test_a_tag_on_a_key_is_refused() -> None:
    assert complaints("!!python/name:os.system a: 1") == [
        "f:1:1: a: the tag 'tag:yaml.org,2002:python/name:os.system' is not accepted: schedules are plain data"
    ]


def test_a_key_that_stands_twice_is_refused_with_the_line_of_the_first() -> None:
    """Peer failure 9 (PyYAML keeps the last in silence)."""
    text = "a: 1\nb:\n  c: 1\n  d: 2\n  'c': 3\na: 4\n? a\n: 5\n"
    source = Source.from_text(text, "f")
    assert [str(problem) for problem in source.problems] == [
        "f:5:3: b.c: the key 'c' stands twice, with different values; the first is on line 3",
        "f:6:1: a: the key 'a' stands twice, with different values; the first is on line 1",
        "f:7:3: a: the key 'a' stands twice, with different values; the first is on line 1",
    ]
    assert source.data == {"a": 1, "b": {"c": 1, "d": 2}}


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("0.5", ".5", True),
        ("{x: [1, a], y: 2}", "{y: 2, x: [1, 'a']}", True),
        (".nan", ".NaN", True),
        ("~", "", True),
        ("1", "1.0", False),
        ("1", "true", False),
        ("a", "'a '", False),
        ("[1, 2]", "[2, 1]", False),
    ],
)
def test_a_key_that_stands_twice_with_equal_values_is_a_warning(first: str, second: str, equal: bool) -> None:
    source = Source.from_text(f"k:\n  a: {first}\n  a: {second}\n", "f")
    how = "equal" if equal else "different"
    said = f"f:3:3: k.a: the key 'a' stands twice, with {how} values; the first is on line 2"
    assert ([str(p) for p in source.problems], [str(p) for p in source.warnings]) == (
        ([], [said]) if equal else ([said], [])
    )


def test_large_values_under_one_key_are_not_written_out_to_compare_them() -> None:
    bomb = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9))
    source = Source.from_text(f"a0: &a0 [1]\n{bomb}k: *a9\nk: *a9\n", "f")
    assert "more than 100000 nodes" in str(source.problems[-1])


@pytest.mark.parametrize("key", ["? [a]\n: 1", "? {a: 1}\n: 1", "{[a]: 1}"])
def test_a_key_must_be_a_word(key: str) -> None:
    assert [c.partition(": ")[2] for c in complaints(key)] == ["a key must be a plain word, not a list or a mapping"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1", "f:1:6: not YAML: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\nb", "f:2:2: not YAML: while scanning a simple key: could not find expected ':'"),
        ("a: 1\n b: 2", "f:2:3: not YAML: mapping values are not allowed here"),
        ("a: *b", "f:1:4: not YAML: found undefined alias 'b'"),
        ("a: &b 1\nc: &b 2", "f:2:4: not YAML: found duplicate anchor 'b'; first occurrence: second occurrence"),
        ("a: !x!y z", "f:1:4: not YAML: while parsing a node: found undefined tag handle '!x!'"),
        ("a: 'x", "f:1:6: not YAML: while scanning a quoted scalar: found unexpected end of stream"),
        ("%YAML 9.9\n---\na: 1", "f:1:1: not YAML: found incompatible YAML document (version 1.* is required)"),
        (
            "a:\n\tb: 1",
            "f:2:1: not YAML: while scanning for the next token: found character '\\t' that cannot start any token"
            "; indent and separate with spaces",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "f:2:1: not YAML: expected a single document in the stream: but found another document",
        ),
        ("a: x\x01y", "f:1:5: not YAML: special characters are not allowed"),
        ("a: 1\nb: \x00", "f:2:4: not YAML: special characters are not allowed"),
        ("é: \x1b[31m", "f:1:4: not YAML: special characters are not allowed"),
        ("a: '\\ud800'\nb: \ud800", "f:2:4: not YAML: special characters are not allowed"),
    ],
)
def test_what_is_not_yaml_is_refused_where_it_stops_being_yaml(text: str, complaint: str) -> None:
    assert complaints(text) == [complaint]
    assert Source.from_text(text).data is None


def test_half_a_character_is_refused() -> None:
    assert complaints('a: "x\\ud800"\n"\\udfff": 1') == [
        "f:1:4: a: 'x\\ud800' is no text: it has half a character in it",
        "f:2:1: \udfff: '\\udfff' is no text: it has half a character in it",
    ]


def test_an_endless_number_is_refused() -> None:
    """Python takes no int of more than 4300 digits out of a text, and a float none above 308."""
    assert complaints(f"a: {'9' * 5000}\nb: 0x{'f' * 400}") == [
        "f:1:4: a: an int of more than 300 digits",
        "f:2:4: b: an int of more than 300 digits",
    ]


# Aliases and merge keys


def test_an_alias_is_a_copy() -> None:
    """Peer failure 20: what one component does to its list must not reach another's."""
    data = read("a: &x [1, {b: 2}]\nc: *x\n")
    data["a"][1]["b"] = 3
    assert data == {"a": [1, {"b": 3}], "c": [1, {"b": 2}]}


def test_merge_keys_give_what_the_mapping_itself_does_not() -> None:
    text = """\
base: &base {x: 1, y: 2}
more: &more {y: 3, z: 4}
one: {<<: *base, y: 5}
both: {w: 0, <<: [*base, *more]}
nested: &nested {<<: *more, v: 6}
deep:
  <<: *nested
  z: 7
text: {'<<': 1}
"""
    assert read(text) == {
        "base": {"x": 1, "y": 2},
        "more": {"y": 3, "z": 4},
        "one": {"x": 1, "y": 5},
        "both": {"x": 1, "y": 2, "z": 4, "w": 0},
        "nested": {"y": 3, "z": 4, "v": 6},
        "deep": {"y": 3, "z": 7, "v": 6},
        "text": {"<<": 1},
    }


def test_only_mappings_are_merged() -> None:
    assert complaints("a: {<<: 1}\nb: {<<: [{x: 1}, 2]}\n") == [
        "f:1:9: a: '<<' merges mappings only",
        "f:2:9: b: '<<' merges mappings only",
    ]


def test_what_is_merged_is_located_where_it_is_written() -> None:
    text = "base: &base\n  x: 1\n  y: {v: 2}\nnext: &next\n  <<: *base\n  x: 3\nlast:\n  <<: [*next, *base]\n"
    source = Source.from_text(text, "f")
    paths = [("next", "x"), ("next", "y", "v"), ("last", "x"), ("last", "y", "v")]
    assert [str(source.locate(path)) for path in paths] == ["f:6:6", "f:3:10", "f:6:6", "f:3:10"]
    assert str(source.locate(("last", "y"), key=True)) == "f:3:3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x [*x]", ["f:1:4: a[0]: an alias to something that it is part of"]),
        ("a: &x {b: [1, *x]}", ["f:1:4: a.b[1]: an alias to something that it is part of"]),
        ("&x a: 1\nb: *x", []),
        (
            "a: &x {<<: *x}",
            ["f:1:4: a: an alias to something that it is part of", "f:1:4: a: '<<' merges mappings only"],
        ),
    ],
)
def test_an_alias_within_what_it_names_is_refused(text: str, expected: list[str]) -> None:
    assert complaints(text) == expected
    assert str(Source.from_text(text, "f").locate(("a", "no such key"))) in ("f:1:4", "f:1:7")


def test_a_billion_laughs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert complaints("\n".join(lines)) == ["f:1:1: more than 100000 nodes"]


def test_a_billion_merges_are_refused_at_once() -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 64)]
    assert complaints("\n".join(lines)) == ["f:1:1: more than 100000 nodes"]


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep = "[" * 120 + "]" * 120
    chain = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2000))])
    assert complaints(f"a: {deep}") == ["f:1:1: nested more than 100 deep"]
    assert complaints(chain) == ["f:1:1: more than 100000 nodes"]
    assert complaints(chain[: chain.index("\na300:")]) == ["f:1:1: nested more than 100 deep"]
    assert complaints("[" * 20_000) == ["f:1:1: nested too deeply"]
    assert complaints("{a: " * 20_000) == ["f:1:1: nested too deeply"]


# Files, and where things stand


@pytest.mark.parametrize(
    ("text", "place"),
    [("", "1:1"), ("\n\n", "1:1"), ("# only a comment\n", "1:1"), ("\ufeff", "1:1"), ("---\n", "2:1")],
)
def test_a_text_with_nothing_in_it_has_no_data_and_a_position(text: str, place: str) -> None:
    source = Source.from_text(text, "f")
    assert (source.data, source.problems, str(source.locate(("a", 0)))) == (None, [], f"f:{place}")


def test_positions_count_lines_and_columns_from_one() -> None:
    text = "# comment\na: 1\n'b':\n  - x\n  -   y: [p, {q: r}]\né: &n !!str z\n"
    source = Source.from_text(text, "f")
    paths: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("b", 0), ("b", 1), ("b", 1, "y", 1, "q"), ("é",)]
    assert {path: str(source.locate(path)) for path in paths} == {
        (): "f:2:1",
        ("a",): "f:2:4",
        ("b",): "f:4:3",
        ("b", 0): "f:4:5",
        ("b", 1): "f:5:7",
        ("b", 1, "y", 1, "q"): "f:5:18",
        ("é",): "f:6:4",
    }
    assert {path: str(source.locate(path, key=True)) for path in paths[1:]} == {
        ("a",): "f:2:1",
        ("b",): "f:3:1",
        ("b", 0): "f:4:5",
        ("b", 1): "f:5:7",
        ("b", 1, "y", 1, "q"): "f:5:15",
        ("é",): "f:6:1",
    }


def test_what_does_not_exist_is_located_at_the_last_thing_that_does() -> None:
    source = Source.from_text("a:\n  b: [1, 2]\n", "f")
    paths: list[tuple[str | int, ...]] = [
        ("x",),
        ("a", "x"),
        ("a", "b", 2),
        ("a", "b", -1),
        ("a", "b", 0, "y"),
        ("a", 0),
    ]
    assert [str(source.locate(path)) for path in paths] == ["f:1:1", "f:2:3", "f:2:6", "f:2:6", "f:2:7", "f:2:3"]
    assert str(source.problem(("a", "b", 1), "is wrong")) == "f:2:10: a.b[1]: is wrong"


def test_windows_line_ends_and_a_byte_order_mark_move_nothing(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes("\ufeffa: 1\r\nb:\r\n  c: é\r\n".encode())
    source = Source.from_file(file)
    assert (source.data, source.locate(("b", "c"))) == ({"a": 1, "b": {"c": "é"}}, Position(str(file), 3, 6))


@pytest.mark.parametrize(
    ("data", "place"),
    [(b"a: \xff", "1:4"), ("a: 1\né: ö\n".encode() + b"ab\xe9", "3:3"), ("a: 1".encode("utf-16"), "1:1")],
)
def test_a_file_that_is_not_utf8_is_refused_at_the_byte_that_is_wrong(data: bytes, place: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(data)
    [problem] = Source.from_file(file).problems
    assert str(problem).startswith(f"{file}:{place}: not UTF-8: ")


def test_data_is_copied_and_its_keys_are_text() -> None:
    given: dict[Any, Any] = {1: (1, 2), "a": [{"b": None}], None: 0.5}
    source = Source.from_data(given)
    source.data["a"][0]["b"] = 1
    assert source.data == {"1": [1, 2], "a": [{"b": 1}], "None": 0.5}
    assert given == {1: (1, 2), "a": [{"b": None}], None: 0.5}
    assert str(source.locate(("a",))) == "<dict>"


def test_data_within_itself_is_refused() -> None:
    round_: list[Any] = []
    round_.append(round_)
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    assert [str(p) for p in Source.from_data({"a": round_}).problems] == ["<dict>: nested too deeply, or within itself"]
    assert [str(p) for p in Source.from_data({"a": deep}).problems] == ["<dict>: nested more than 100 deep"]


# Written and read again

words = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False) | words
plain_data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(data=plain_data)
def test_what_is_written_is_read_back_equal(data: Any) -> None:
    """Peer failure 24."""
    written = dump(data)
    back = Source.from_text(written)
    assert (back.problems, repr(back.data)) == ([], repr(data))
    assert dump(back.data) == written


@pytest.mark.parametrize("word", TRICKY)
def test_tricky_words_are_written_so_that_they_stay_words(word: str) -> None:
    data = {word: word, "list": [word, {"key": word}]}
    assert Source.from_text(dump(data)).data == data


def test_not_a_number_is_written_and_read_back() -> None:
    assert math.isnan(read(dump([math.nan]))[0])
    assert dump([math.inf, -math.inf, 1e-4, 2e-6, 1e300]) == "- .inf\n- -.inf\n- 0.0001\n- 2.0e-06\n- 1.0e+300\n"
