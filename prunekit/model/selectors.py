"""Exact names, globs and `re:` patterns -> the names that they select."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from prunekit.errors import did_you_mean, nearest
from prunekit.model.names import without_wrappers

EVERYTHING = "*"
"""The selector of every name that no other one selects."""


@dataclass
class Selection:
    """Name -> the selector that chose it, in the order of the names; and what is wrong with which selector."""

    chosen: dict[str, str] = field(default_factory=dict)
    wrong: list[tuple[str, str]] = field(default_factory=list)


def select(selectors: Iterable[str], names: Sequence[str], aliases: Mapping[str, str] | None = None) -> Selection:
    """Who selects what.

    A selector is tried as an exact name; then, both sides without path components `module`, as an exact name; then as
    a glob; then, behind `re:`, as a regular expression that matches the whole name. Exact names come before patterns
    and `*` after them; of several patterns the first in the list wins.

    Args:
        selectors: as the schedule spells them.
        names: what can be selected.
        aliases: other names of some of them (tied parameters).
    """
    owners: dict[str, str] = {}
    selection = Selection()
    for selector in sorted(dict.fromkeys(selectors), key=_rank):
        try:
            found = _matches(selector, names, aliases or {})
        # `re` raises these too: of a number of repetitions that is too large, and of groups nested too deeply.
        except (re.error, OverflowError, RecursionError) as error:
            selection.wrong.append((selector, f"{selector!r} is no regular expression: {error}"))
            continue
        free = [name for name in found if name not in owners]
        if not free and selector != EVERYTHING:
            selection.wrong.append((selector, _nothing(selector, found, owners, [*names, *(aliases or {})])))
        # Two parameters may differ by nothing but a component `module`.
        elif _is_name(selector) and len(found) > 1:
            both = " and ".join(map(repr, found))
            selection.wrong.append((selector, f"{selector!r} may be {both}; give the name in full"))
        owners.update(dict.fromkeys(free, selector))
    selection.chosen = {name: owners[name] for name in names if name in owners}
    return selection


def matches(selector: str, name: str, *, expressions: bool = False) -> bool:
    """Whether a pattern matches a name, with or without what wrappers add to both.

    Args:
        selector: a glob, or behind `re:` a regular expression for the whole name.
        name: of a parameter or module.
        expressions: regular expressions have no `re:` before them, as in the overrides of quantizers; what is neither
            that nor a glob matches nothing.

    Raises:
        re.error, OverflowError, RecursionError: what stands behind `re:` is no regular expression.

    >>> matches("conv*", "module.conv1.weight"), matches("conv[12]|fc", "fc", expressions=True)
    (True, True)
    """
    bare = without_wrappers(name)
    if selector.startswith("re:") and not expressions:
        pattern = re.compile(selector.removeprefix("re:"))
        return any(pattern.fullmatch(spelling) for spelling in (name, bare))
    asked = without_wrappers(selector)
    if fnmatchcase(name, selector) or fnmatchcase(bare, asked):
        return True
    try:
        return expressions and re.fullmatch(asked, bare) is not None
    except re.error:
        return False


def _rank(selector: str) -> int:
    return 2 if selector == EVERYTHING else 0 if _is_name(selector) else 1


def _is_name(selector: str) -> bool:
    return not selector.startswith("re:") and not any(letter in selector for letter in "*?[")


def _matches(selector: str, names: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    if selector in names:
        return [selector]
    if selector in aliases:
        return [aliases[selector]]
    own = {**dict(zip(names, names, strict=True)), **aliases}
    bare = without_wrappers(selector)
    same = [own[name] for name in own if without_wrappers(name) == bare]
    return list(dict.fromkeys(same or (own[name] for name in own if matches(selector, name))))


def _nothing(selector: str, found: Sequence[str], owners: Mapping[str, str], names: Sequence[str]) -> str:
    if found:
        return f"{selector!r} selects nothing that {owners[found[0]]!r} has not selected already"
    if not names:
        return f"{selector!r} selects nothing: the model has no parameters"
    bare = {without_wrappers(name): name for name in names}
    close = nearest(without_wrappers(selector), bare, most=3)
    if close:
        return f"{selector!r} selects nothing in the model; nearest are {', '.join(repr(bare[name]) for name in close)}"
    return f"{selector!r} selects nothing in the model{did_you_mean(selector, names)}"
