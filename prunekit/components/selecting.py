"""Which parameters a component owns: the selectors among the arguments of its constructor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.components.arguments import Argument, arguments_of
from prunekit.components.types import Selects, marked


@dataclass(frozen=True)
class GivenSelector:
    """A selector as the arguments give it.

    Attributes:
        text: a name, glob or `re:` pattern.
        key: where it stands, from the argument's name on: `("weights", 2)`, `("levels", "conv1.weight")`.
        setting: what goes with it; None in a list.
    """

    text: str
    key: tuple[str | int, ...]
    setting: Any = None

    @property
    def in_mapping(self) -> bool:
        """Whether it is itself a key, beside its setting."""
        return self.key[-1] == self.text and len(self.key) > 1


def selecting_arguments(cls: type, kind: str) -> list[Argument]:
    """The arguments that select parameters: of type `Selectors` or `PerParameter`, or None besides."""
    return [argument for argument in arguments_of(cls, kind) if marked(argument.annotation, Selects)]


def given_selectors(cls: type, kind: str, values: Mapping[str, Any]) -> list[GivenSelector]:
    """The selectors of these arguments, of defaults where there is no value; what is no selector is left out.

    Values need not be valid: a wrong one hides nothing that the others say.
    """
    return [
        given
        for argument in selecting_arguments(cls, kind)
        for given in _given((argument.name,), values.get(argument.name, argument.default))
    ]


def _given(key: tuple[str | int, ...], value: Any) -> Iterator[GivenSelector]:
    if isinstance(value, str) and value:
        yield GivenSelector(value, key)
    elif isinstance(value, Mapping):
        yield from (GivenSelector(str(text), (*key, str(text)), setting) for text, setting in value.items())
    elif isinstance(value, list | tuple):
        yield from (GivenSelector(text, (*key, index)) for index, text in enumerate(value) if isinstance(text, str))
