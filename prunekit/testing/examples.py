"""Arguments for a constructor, made up from its types: something valid, each number above the one before."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from prunekit.components.arguments import Argument, arguments_of, check_value
from prunekit.components.named_kind import named_kind
from prunekit.errors import PluginError
from prunekit.quantization.bits import BitsQuantizer

EVERY_WEIGHT = "*.weight"
# In the order in which they are tried: a sparsity gets a fraction, a count the first whole number that it allows.
_NUMBERS: tuple[Any, ...] = (0.25, 0.5, 0.75, 0.9, 1, 2, 3, 4, 8, 0.1, 0.01, 0, -1, 100)


def example_arguments(cls: type, kind: str) -> dict[str, Any]:
    """A value for each argument that has no default.

    Selectors choose every weight, fractions ascend (0.25, 0.5, …): a final sparsity lies above an initial one.

    Raises:
        PluginError: the type of an argument suggests no value.
    """
    made_up: dict[str, Any] = {"bits_weights": 4, "bits_activations": 4} if issubclass(cls, BitsQuantizer) else {}
    for argument in arguments_of(cls, kind):
        if argument.required:
            made_up[argument.name] = _example(argument, made_up)
    return made_up


def _example(argument: Argument, before: Mapping[str, Any]) -> Any:
    adapter = argument.adapter()
    valid = [value for value in _candidates(argument.annotation) if not list(check_value(adapter, value, ()))]
    if not valid:
        raise PluginError(f"no value for {argument.name!r} can be made up from its type; give it one")
    taken = [value for value in before.values() if isinstance(value, int | float)]
    higher = [v for v in valid if isinstance(v, int | float) and all(v > other for other in taken)]
    return (higher or valid)[0]


def _candidates(annotation: Any) -> Iterator[Any]:
    """Values that may fit a type, the most telling first."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if (kind := named_kind(annotation)) is not None and origin is typing.Annotated:
        yield from kind.built_in
    elif origin is typing.Annotated:
        yield from _candidates(inner[0])
    elif origin in (typing.Union, types.UnionType):
        for member in inner:
            yield from _candidates(member)
    elif origin is Literal:
        yield from inner
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from ({EVERY_WEIGHT: value} for value in _candidates(inner[1]))
    elif origin is tuple:
        yield from _rows([part for part in inner if part is not ...])
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        yield from ([value] for value in _candidates(inner[0]))
    elif annotation is bool:
        yield from (False, True)
    elif annotation is int:
        yield from (number for number in _NUMBERS if isinstance(number, int))
    elif annotation is float:
        yield from _NUMBERS
    elif annotation is str:
        yield EVERY_WEIGHT


def _rows(parts: Sequence[Any]) -> Iterator[list[Any]]:
    """Lists with a value for each part; one part varies at a time."""
    choices = [list(_candidates(part)) for part in parts]
    if all(choices):
        for place, values in enumerate(choices):
            for value in values:
                yield [value if index == place else own[0] for index, own in enumerate(choices)]
