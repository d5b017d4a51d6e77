"""Types for the arguments of constructors, which are the keys of a schedule."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

T = TypeVar("T")
Marker = TypeVar("Marker")

Sparsity = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A fraction of zeros, from 0 to 1."""
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A part that is never the whole: from 0 to below 1."""
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""How likely something is, from 0 to 1."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number that is not negative."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NonNegativeInt = Annotated[int, Field(ge=0)]
"""A whole number that is not negative."""
PositiveInt = Annotated[int, Field(ge=1)]
"""A whole number above 0."""

SELECTS_NOTHING = "selects_nothing"
"""The type of pydantic's error about an argument that selects no parameter."""


@dataclass(frozen=True)
class Selects:
    """What marks the type of an argument that says which parameters a component owns: it is never empty."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # After the type's own check: what runs before it would see a JSON list as a Python one, which is no tuple.
        return core_schema.no_info_after_validator_function(_not_empty, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        # A validator function says nothing in a JSON Schema: that it is never empty must be added.
        for member in described.get("anyOf", [described]):
            member[_LEAST[member["type"]]] = 1
        return described


def marked(annotation: Any, marker: type[Marker]) -> Marker | None:
    """The marker of this class on a type, or on a member of a union; None where there is none.

    >>> marked(Selectors | None, Selects)
    Selects()
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        own = [each for each in inner[1:] if isinstance(each, marker)]
        return own[0] if own else marked(inner[0], marker)
    if origin in (typing.Union, types.UnionType):
        return next((found for member in inner if (found := marked(member, marker)) is not None), None)
    return None


def _not_empty(value: Any) -> Any:
    if not value:
        raise PydanticCustomError(SELECTS_NOTHING, "selects nothing: name at least one parameter, or '*'")
    return value


_LEAST = {"string": "minLength", "array": "minItems", "object": "minProperties"}

Selectors = Annotated[str | list[str], Selects()]
"""Which parameters: one exact name, glob or `re:` pattern, or several. Never empty."""
PerParameter = Annotated[dict[str, T], Selects()]
"""Which parameters, each selector with its setting: `PerParameter[Sparsity]`. Never empty."""
