"""Curves: how a number goes from one value to another while a window passes, and arguments that may do so."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard, TypeVar

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from prunekit.components.named_kind import ByName, NamedKind, takes
from prunekit.components.types import Sparsity
from prunekit.errors import ArgumentError

T = TypeVar("T")

Curve = Callable[[float, float, float], float]
"""(initial value, final value, fraction of the window that has passed, 0 to 1) -> value."""
Shares = Annotated[list[Sparsity], Field(min_length=2)]
"""A curve of the user's own: the share of the way at equal distances, such as [0, 0.8, 1]; straight between them."""

ROUNDING = 1e-9
"""So much a formula may be off."""


def cubic(initial: float, final: float, fraction: float) -> float:
    """Fast at first, slower as little is left. Zhu & Gupta 2017, arXiv 1710.01878, equation 1."""
    return final + (initial - final) * (1 - fraction) ** 3


def linear(initial: float, final: float, fraction: float) -> float:
    """The same number of weights at each step."""
    return initial * (1 - fraction) + final * fraction  # exact at both ends


def exponential(initial: float, final: float, fraction: float) -> float:
    """The same fraction of what is left at each step: what is kept falls from 1 - initial to 1 - final geometrically.

    Frankle & Carbin 2019, arXiv 1803.03635, section 1: "each iteration prunes p^(1/n) % of the weights that survive".
    """
    kept: float = (1 - initial) ** (1 - fraction) * (1 - final) ** fraction
    return 1 - kept


def cosine(initial: float, final: float, fraction: float) -> float:
    """Slow at both ends: half a turn of a cosine. Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5."""
    return final + (initial - final) * (1 + math.cos(math.pi * fraction)) / 2


def one_shot(initial: float, final: float, fraction: float) -> float:
    """All of it at the first active epoch."""
    return final


def through(shares: list[float]) -> Curve:
    """A curve through given shares of the way, at equal distances over the window.

    >>> through([0, 0.8, 1])(0.0, 0.5, 0.25)
    0.2
    """

    def curve(initial: float, final: float, fraction: float) -> float:
        place = fraction * (len(shares) - 1)
        # At the very end nothing begins any more: it is the end of the last piece.
        left = min(math.floor(place), len(shares) - 2)
        share = shares[left] + (shares[left + 1] - shares[left]) * (place - left)
        return linear(initial, final, share)

    return curve


CURVES: Mapping[str, Curve] = {
    "cubic": cubic,
    "linear": linear,
    "exponential": exponential,
    "cosine": cosine,
    "one-shot": one_shot,
}
"""Every curve of prunekit by its name in a schedule."""
CURVE = NamedKind("curve", "curves", CURVES, "a function (initial, final, fraction) -> value", takes(3))
CurveName = Annotated[Curve | str, ByName(CURVE)]
"""A curve, by its name in a schedule: prunekit's own, or one that a distribution offers."""


def curve_of(value: Curve | str | list[float]) -> Curve:
    """What the key `curve` means.

    Raises:
        ArgumentError: prunekit has no curve of that name.
    """
    return through(value) if isinstance(value, list) else CURVE.of(value, "curve")


def along(curve: Curve, initial: float, final: float, fraction: float) -> float:
    """The value when this fraction of the window has passed, exact at both ends where a formula rounds.

    Raises:
        ValueError: the curve gives no finite number.
    """
    value = curve(initial, final, fraction)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{gives(curve, value, fraction)}, going from {initial} to {final}")
    end = final if fraction == 1 else initial
    near = abs(value - end) <= ROUNDING * max(abs(initial), abs(final))
    return end if fraction in (0, 1) and near else value


def wrong_ends(curve: Curve | str | list[float], ends: Mapping[str, float]) -> Iterator[ArgumentError]:
    """Why this curve can't reach its last end; `ends` are the first value and the last one, by their keys.

    Raises:
        ArgumentError: prunekit has no curve of that name.
    """
    last = list(ends)[-1]
    if curve_of(curve) is exponential and 1 in ends.values():
        what = "exponential never prunes all: a fraction of what is left always leaves something"
        yield ArgumentError("curve", message=what)
    if isinstance(curve, list) and curve[-1] != 1:
        what = f"must end with 1, where {last} is reached, got {curve[-1]}"
        yield ArgumentError("curve", len(curve) - 1, message=what)


def wrong_changes(value: Any) -> Iterator[ArgumentError]:
    """Why curves within an argument can't lead from one of their values to the other.

    Of a name that is not prunekit's own nothing is said: it is that of another's curve, or has been refused.
    """
    for path, change in changes_in(value):
        curve, start, end = change["curve"], change["from"], change["to"]
        if isinstance(curve, str) and curve not in CURVES:
            continue
        try:
            wrong = list(wrong_ends(curve, {"from": start, "to": end}))
            for quarters in range(0 if wrong else 5):
                value_at(change, quarters / 4)
        except ValueError as error:
            wrong = [ArgumentError("curve", message=str(error))]
        yield from (ArgumentError(*path, *each.keys, message=each.message) for each in wrong)


def with_names(value: Any) -> Any:
    """An argument with a name in place of each curve that is an object: data that can be checked as it is written."""
    if is_change(value):
        return {**value, "curve": "linear" if CURVE.fits(value["curve"]) else value["curve"]}
    if isinstance(value, Mapping):
        return {key: with_names(inner) for key, inner in value.items()}
    return [with_names(inner) for inner in value] if isinstance(value, list) else value


def _between(curve: Curve, initial: float, final: float, fraction: float) -> float:
    value, tolerance = along(curve, initial, final, fraction), ROUNDING * max(abs(initial), abs(final))
    if not min(initial, final) - tolerance <= value <= max(initial, final) + tolerance:
        raise ValueError(f"{gives(curve, value, fraction)}, which is not between {initial} and {final}")
    return min(max(value, min(initial, final)), max(initial, final))


def gives(curve: Curve, value: object, fraction: float) -> str:
    """What a curve does, in words."""
    name = getattr(curve, "__qualname__", type(curve).__qualname__)
    return f"curve {name!r} gives {value} when {fraction} of the window has passed"


# Arguments


@dataclass(frozen=True)
class Varies:
    """What marks the type of an argument that may change while the window passes: a number, or a curve between two."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = handler.generate_schema(typing.get_args(source)[0])
        fields = {
            "curve": core_schema.typed_dict_field(handler.generate_schema(CurveName | Shares)),
            "from": core_schema.typed_dict_field(number),
            "to": core_schema.typed_dict_field(number),
        }
        changing = core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        # By the value's shape, so that what is wrong is said of the form that was meant.
        return core_schema.tagged_union_schema(
            {"number": number, "change": changing}, lambda value: "change" if isinstance(value, dict) else "number"
        )


Change = Mapping[str, Any]
"""`{curve: cosine, from: 0.3, to: 0}`: from one value at the first active moment to another at the last."""
OverTime = Annotated[T | Change, Varies()]
"""A number that may change while the window passes: `OverTime[Sparsity]`. `context.now(…)` is its value."""


def varies(annotation: Any) -> bool:
    """Whether something in an argument of this type may change while the window passes.

    >>> from prunekit.components.types import PerParameter
    >>> varies(PerParameter[OverTime[Sparsity]]), varies(Sparsity)
    (True, False)
    """
    return isinstance(annotation, Varies) or any(map(varies, typing.get_args(annotation)))


def is_change(value: object) -> TypeGuard[Change]:
    """Whether a value is a curve between two."""
    return isinstance(value, Mapping) and value.keys() == {"curve", "from", "to"}


def changes_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Change]]:
    """Every curve between two values within an argument, and where it stands."""
    if is_change(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from changes_in(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from changes_in(inner, (*path, index))


def value_at(value: float | Change, fraction: float) -> float:
    """The value of such an argument when this fraction of the window, 0 to 1, has passed.

    >>> value_at({"curve": "cosine", "from": 0.4, "to": 0}, 0.5), value_at(0.3, 0.5)
    (0.2, 0.3)

    Raises:
        ValueError: the curve leaves what lies between its ends.
    """
    if not isinstance(value, Mapping):
        return value
    return _between(curve_of(value["curve"]), value["from"], value["to"], fraction)
